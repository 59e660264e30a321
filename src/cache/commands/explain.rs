//! CACHE.EXPLAIN

use super::ttl;
use crate::args::{Arg, Args};
use crate::cache::intent::Standing;
use crate::cache::key_history::Why;
use crate::cache::read::{Cached, look};
use crate::cache::write_through::standing;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Explain;

impl Command for Explain {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.explain",
        family: Family::Cache,
        summary: "Returns all that is known of a key: what a read would find and why, and why it last went.",
        complexity: "O(N) where N is keyward.explain-history-max.",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly],
        keys: Keys::First,
        access: Access::Inspect,
        tips: &["nondeterministic_output"],
        args: &[ArgSpec::key()],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        let key = args.required()?;
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(key) }
    }

    fn run<'s, S: Server>(key: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let (db, now) = (server.db(), server.now().to_ms());
        let state = state_of(server, key);
        let (soft, hard) = ttl::left(server, key);
        let cache = &server.state().cache;
        let name = |bytes: &[u8]| Reply::OwnedBytes(bytes.to_vec());
        let version = cache.version_seen(db, key.bytes, now).and_then(|version| i64::try_from(version).ok());
        let lease = cache.leases.deadline(db, key.bytes).map(|deadline| deadline.since(now).max(0));
        let went = cache.key_history.last(db, key.bytes);
        let number = |number: Option<i64>| number.map_or(Reply::Nil, Reply::Int);
        Ok(Reply::Map(vec![
            ("state", Reply::Word(state)),
            ("tags", Reply::Set(cache.tags(db, key.bytes).map(name).collect())),
            ("policy", cache.policies.find(key.bytes).map_or(Reply::Nil, |policy| name(&policy.name))),
            ("soft_ms", Reply::Int(soft)),
            ("hard_ms", Reply::Int(hard)),
            ("version", number(version)),
            ("lease", number(lease)),
            ("waiters", Reply::count(cache.leases.waiters_of(db, key.bytes))),
            ("last_gone", went.map_or(Reply::Nil, |(why, _)| Reply::OwnedBytes(describe(why)))),
            ("last_gone_ms", number(went.map(|(_, at)| at.0))),
        ]))
    }
}

fn describe(why: Why<'_>) -> Vec<u8> {
    match why {
        Why::Expired => b"expired".to_vec(),
        Why::Evicted => b"evicted".to_vec(),
        Why::Deleted => b"deleted".to_vec(),
        Why::Tag(tag) => [b"tag ", tag].concat(),
        Why::Event(event) => [b"event ", event].concat(),
    }
}

/// What CACHE.FETCH would find, in a word.
fn state_of<S: Server>(server: &mut S, key: Arg<'_>) -> &'static str {
    let (db, now) = (server.db(), server.now().to_ms());
    match look(server, key) {
        Err(_) => "other",
        Ok(Cached::Deleted) => "none",
        Ok(Cached::Pending) => "pending",
        Ok(_) if standing(server, key) == Standing::Open => "writing",
        Ok(Cached::Fresh(_)) => "fresh",
        Ok(Cached::Stale(_)) => "stale",
        Ok(Cached::Missing) if server.state().cache.is_negative(db, key.bytes, now) => "none",
        Ok(Cached::Missing) if server.exists(key.bytes) => "invalidated",
        Ok(Cached::Missing) => "missing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::emit::Emit;
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::fill_nil::FillNil;
    use crate::cache::commands::intent::Intent;
    use crate::cache::commands::invalidate::Invalidate;
    use crate::cache::commands::invalidate_tag::InvalidateTag;
    use crate::cache::commands::set::Set;
    use crate::cache::commands::stale::Stale;
    use crate::cache::commands::{policy, rule};
    use crate::fake_server::FakeServer;

    /// The field of this name, as text.
    fn told(server: &mut FakeServer, key: &str, field: &str) -> String {
        let Ok(Reply::Map(fields)) = server.call::<Explain>(&format!("CACHE.EXPLAIN {key}")) else { panic!() };
        let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
        let all = "state tags policy soft_ms hard_ms version lease waiters last_gone last_gone_ms";
        assert_eq!(names.join(" "), all);
        match fields.into_iter().find(|(name, _)| *name == field).unwrap().1 {
            Reply::Word(word) => word.to_owned(),
            Reply::OwnedBytes(bytes) => String::from_utf8(bytes).unwrap(),
            Reply::Int(n) => n.to_string(),
            Reply::Nil => "nil".to_owned(),
            other => format!("{other:?}"),
        }
    }

    fn why(server: &mut FakeServer, key: &str) -> String {
        told(server, key, "last_gone")
    }

    #[test]
    fn the_state_is_what_a_read_would_find() {
        let mut server = FakeServer::new();
        assert_eq!(told(&mut server, "k", "state"), "missing");
        server.call::<Set>("CACHE.SET k v EX 9 GRACE 9 TAGS 1 t").unwrap();
        assert_eq!(told(&mut server, "k", "state"), "fresh");
        server.call::<Stale>("CACHE.STALE k").unwrap();
        assert_eq!(told(&mut server, "k", "state"), "stale");
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"t", now);
        assert_eq!(told(&mut server, "k", "state"), "invalidated");
        server.call::<Set>("CACHE.SET k v").unwrap();
        server.call::<Intent>("CACHE.INTENT k").unwrap();
        assert_eq!(told(&mut server, "k", "state"), "writing");
        server.put_other("list");
        assert_eq!(told(&mut server, "list", "state"), "other");
    }

    #[test]
    fn what_is_known_is_told() {
        let mut server = FakeServer::new();
        server.call::<policy::Set>("CACHE.POLICY SET p PREFIX k").unwrap();
        server.call::<Set>("CACHE.SET k v PX 900 GRACE 100 TAGS 2 t u VERSION 7").unwrap();
        for (field, value) in [("policy", "p"), ("soft_ms", "900"), ("hard_ms", "1000"), ("version", "7")] {
            assert_eq!(told(&mut server, "k", field), value);
        }
        for (field, value) in [("lease", "nil"), ("waiters", "0"), ("last_gone", "nil"), ("last_gone_ms", "nil")] {
            assert_eq!(told(&mut server, "k", field), value);
        }
        assert!(told(&mut server, "k", "tags").contains("OwnedBytes"));
        server.call::<Fetch>("CACHE.FETCH other LEASE 500").unwrap();
        server.advance_ms(100);
        assert_eq!(told(&mut server, "other", "lease"), "400");
        assert_eq!(
            (told(&mut server, "other", "soft_ms"), told(&mut server, "other", "policy")),
            ("-2".into(), "nil".into())
        );
    }

    #[test]
    fn why_a_key_went_is_told_until_it_goes_again() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v PX 5 TAGS 1 t").unwrap();
        server.advance_ms(5);
        assert_eq!((told(&mut server, "k", "state"), why(&mut server, "k")), ("missing".into(), "expired".into()));
        assert_eq!(told(&mut server, "k", "last_gone_ms"), server.now.to_ms().0.to_string());
        server.call::<Set>("CACHE.SET k v TAGS 1 t").unwrap();
        assert_eq!(why(&mut server, "k"), "expired", "also when it is back");
        server.evict("k");
        assert_eq!(why(&mut server, "k"), "evicted");
        server.call::<Set>("CACHE.SET k v TAGS 1 t").unwrap();
        server.call::<Invalidate>("CACHE.INVALIDATE k").unwrap();
        assert_eq!(why(&mut server, "k"), "deleted");
        server.call::<Set>("CACHE.SET k v TAGS 1 t").unwrap();
        server.call::<InvalidateTag>("CACHE.INVALIDATETAG t").unwrap();
        assert_eq!(why(&mut server, "k"), "tag t");
        server.call::<rule::Set>("CACHE.RULE SET e KEYS 1 k TAGS 1 t").unwrap();
        for line in ["k v", "l v TAGS 1 t", "m v"] {
            server.call::<Set>(&format!("CACHE.SET {line}")).unwrap();
        }
        server.call::<Emit>("CACHE.EMIT e {}").unwrap();
        server.call::<Invalidate>("CACHE.INVALIDATE m").unwrap();
        assert_eq!(["k", "l", "m"].map(|key| why(&mut server, key)), ["event e", "event e", "deleted"]);
    }

    #[test]
    fn a_key_that_goes_after_its_tag_goes_by_the_tag_on_a_replica_too() {
        let mut server = FakeServer::new();
        server.replayed = true;
        server.call::<Set>("CACHE.SET k v TAGS 2 other t").unwrap();
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"t", now);
        server.take(&(0, b"k".to_vec()));
        server.event(crate::state::KeyEvent::Deleted, b"k");
        assert_eq!(why(&mut server, "k"), "tag t");
    }

    #[test]
    fn a_negative_answer_is_a_state() {
        let mut server = FakeServer::new();
        let Ok(Reply::Array(parts)) = server.call::<Fetch>("CACHE.FETCH k") else { panic!() };
        let Some(Reply::OwnedBytes(token)) = parts.last() else { panic!() };
        let token = String::from_utf8(token.clone()).unwrap();
        server.call::<FillNil>(&format!("CACHE.FILLNIL k {token} EX 9")).unwrap();
        assert_eq!((told(&mut server, "k", "state"), told(&mut server, "k", "lease")), ("none".into(), "nil".into()));
        assert_eq!(server.call::<Explain>("CACHE.EXPLAIN k l"), Err(Error::WrongArity("cache.explain")));
    }
}
