//! CACHE.COMMIT

use crate::args::{Arg, Args};
use crate::cache::governed;
use crate::cache::write_options::{
    CONDITION_SPEC, EXPIRY_SPEC, GRACE_SPEC, JITTER_SPEC, POLICY_SPEC, TAGS_SPEC, VERSION_SPEC, WriteOptions,
};
use crate::cache::write_through::{self, NewValue};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Commit;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    token: Arg<'a>,
    value: Option<Arg<'a>>,
    options: WriteOptions<'a>,
}

impl Command for Commit {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.commit",
        family: Family::Cache,
        summary: "Says that a database write is done, and stores the new value or removes the key.",
        complexity: "O(N+M) where N is the number of tags and M the number of clients that wait.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("token"),
            ArgSpec::block(
                "new-value",
                &[
                    ArgSpec::string("value"),
                    EXPIRY_SPEC.optional(),
                    JITTER_SPEC.optional(),
                    GRACE_SPEC,
                    TAGS_SPEC.optional(),
                    CONDITION_SPEC,
                    VERSION_SPEC,
                    POLICY_SPEC,
                ],
            )
            .optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, token, value) = (args.required()?, args.required()?, args.take());
        Ok(Request { key, token, value, options: WriteOptions::parse(args)? })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, token, value, options } = request;
        let new = match value {
            Some(value) => {
                let (expires, _) = governed::expires(server, key, &options, Self::SPEC.name)?;
                Some(NewValue { value, expires, options })
            }
            None => None,
        };
        Ok(Reply::yes_no(write_through::commit(server, key, token, new.as_ref())?))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::fill::Fill;
    use crate::cache::commands::floor::Floor;
    use crate::cache::commands::get::Get;
    use crate::cache::commands::intent::Intent;
    use crate::cache::commands::invalidate::Invalidate;
    use crate::cache::commands::invalidate_tag::InvalidateTag;
    use crate::cache::commands::rollback::Rollback;
    use crate::cache::commands::set::Set;
    use crate::cache::commands::stale::Stale;
    use crate::cache::{due, reclaim};
    use crate::fake_server::FakeServer;
    use crate::state::KeyEvent;

    pub fn intent(server: &mut FakeServer, key: &str) -> String {
        match server.call::<Intent>(&format!("CACHE.INTENT {key} PX 1000")).unwrap() {
            Reply::OwnedBytes(token) => String::from_utf8(token).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub fn value(server: &mut FakeServer, key: &str) -> Option<String> {
        match server.call::<Get>(&format!("CACHE.GET {key}")).unwrap() {
            Reply::Bytes(value) => Some(String::from_utf8_lossy(value).into_owned()),
            _ => None,
        }
    }

    fn commit(server: &mut FakeServer, token: &str, new: &str) -> i64 {
        match server.call::<Commit>(&format!("CACHE.COMMIT k {token}{new}")).unwrap() {
            Reply::Int(done) => done,
            other => panic!("{other:?}"),
        }
    }

    fn cached() -> FakeServer {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k old TAGS 1 t").unwrap();
        server.take_replicated();
        server
    }

    #[test]
    fn stores_the_new_value_with_its_options_and_answers_who_waits() {
        let mut server = cached();
        let token = intent(&mut server, "k");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k STALE NEVER WAIT 0"), Ok(Reply::Later));
        server.take_replicated();
        assert_eq!(commit(&mut server, &token, " new PX 500 GRACE 100 TAGS 1 u VERSION 2"), 1);
        let at = server.now.to_ms().0 + 500;
        assert_eq!(
            server.take_replicated(),
            [format!("CACHE.SET k new PXAT {at} GRACE 100 TAGS 1 u VERSION 2"), "KEYWARD.APPLY NOINTENT k".to_owned()]
        );
        assert_eq!(value(&mut server, "k").as_deref(), Some("new"));
        assert!(matches!(&server.answers[..], [(_, Reply::Array(told))] if told[0] == Reply::Word("HIT")));
        assert_eq!(commit(&mut server, &token, " again"), 0, "a token ends one write");
        assert!(!server.holds("k"));
        let counters = server.state.cache.counters;
        assert_eq!((counters.commits, counters.commits_refused), (1, 1));
        assert!(server.state.cache.leases.is_idle() && server.state.cache.intents() == 0);
    }

    #[test]
    fn without_a_value_it_removes_the_key() {
        let mut server = cached();
        let token = intent(&mut server, "k");
        server.take_replicated();
        assert_eq!(commit(&mut server, &token, ""), 1);
        assert_eq!(server.take_replicated(), ["UNLINK k", "KEYWARD.APPLY NOINTENT k"]);
    }

    #[test]
    fn of_two_that_were_open_together_none_stores() {
        for first_ends in ["commit", "rollback"] {
            let mut server = cached();
            let (a, b) = (intent(&mut server, "k"), intent(&mut server, "k"));
            if first_ends == "commit" {
                assert_eq!(commit(&mut server, &a, " a"), 0);
                assert!(!server.holds("k"));
            } else {
                server.call::<Rollback>(&format!("CACHE.ROLLBACK k {a}")).unwrap();
                assert_eq!(value(&mut server, "k"), None, "the other one is open still");
            }
            assert_eq!(server.state.cache.intents(), 1);
            assert_eq!(commit(&mut server, &b, " b"), 0, "{first_ends}");
            assert!(!server.holds("k"));
            let c = intent(&mut server, "k");
            assert_eq!(commit(&mut server, &c, " c"), 1, "that is forgotten when both are over");
        }
    }

    #[test]
    fn of_two_with_a_version_the_greater_is_stored() {
        for (first, second, replies, left) in [(1, 2, (1, 1), "v2"), (2, 1, (1, 0), "v2"), (2, 2, (1, 0), "v2")] {
            let mut server = cached();
            let (a, b) = (intent(&mut server, "k"), intent(&mut server, "k"));
            let one = commit(&mut server, &a, &format!(" v{first} VERSION {first}"));
            assert_eq!(value(&mut server, "k"), None, "the other one is open still");
            let two = commit(&mut server, &b, &format!(" v{second} VERSION {second}"));
            assert_eq!(((one, two), value(&mut server, "k").as_deref()), (replies, Some(left)), "{first}, {second}");
        }
    }

    #[test]
    fn one_version_alone_orders_nothing() {
        for (a_gives, b_gives, a_done) in
            [(" a VERSION 5", " b", 1), (" a", " b VERSION 5", 0), (" a VERSION 5", "", 1)]
        {
            let mut server = cached();
            let (a, b) = (intent(&mut server, "k"), intent(&mut server, "k"));
            assert_eq!(commit(&mut server, &a, a_gives), a_done);
            assert_eq!(commit(&mut server, &b, b_gives), 0, "{a_gives} and {b_gives}");
            assert!(!server.holds("k"), "{a_gives} and {b_gives}");
        }
    }

    #[test]
    fn who_waits_is_told_what_is_left_when_both_are_over() {
        let mut server = cached();
        let (a, b) = (intent(&mut server, "k"), intent(&mut server, "k"));
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k STALE NEVER WAIT 0"), Ok(Reply::Later));
        commit(&mut server, &a, " a VERSION 1");
        assert!(server.answers.is_empty());
        commit(&mut server, &b, " b VERSION 2");
        assert!(matches!(&server.answers[..], [(_, Reply::Array(told))] if told[1] == Reply::Shared(b"b"[..].into())));
    }

    #[test]
    fn nothing_is_stored_when_the_key_was_changed_meanwhile() {
        type Change = fn(&mut FakeServer);
        let changes: [(&str, Change); 12] = [
            ("written", |server| server.put_string("k", "plain")),
            ("set", |server| drop(server.call::<Set>("CACHE.SET k other VERSION 1").unwrap())),
            ("deleted", |server| {
                server.unlink(&[b"k"]);
            }),
            ("invalidated", |server| drop(server.call::<Invalidate>("CACHE.INVALIDATE k").unwrap())),
            ("made stale", |server| drop(server.call::<Stale>("CACHE.STALE k").unwrap())),
            ("hit by its tag", |server| drop(server.call::<InvalidateTag>("CACHE.INVALIDATETAG t").unwrap())),
            ("retired", |server| {
                let now = server.now.to_ms();
                server.state.cache.retire(0, b"t", now);
            }),
            ("given a floor", |server| drop(server.call::<Floor>("CACHE.FLOOR k 1").unwrap())),
            ("expired by a command", |server| server.event(KeyEvent::Expired, b"k")),
            ("restored", |server| server.event(KeyEvent::Replaced, b"k")),
            ("renamed", |server| {
                let now = server.now.to_ms();
                server.state.key_renamed(0, b"k", b"other", now);
            }),
            ("renamed to", |server| {
                let now = server.now.to_ms();
                server.state.key_renamed(0, b"other", b"k", now);
            }),
        ];
        for (how, change) in changes {
            for new in [" new", " new VERSION 9", ""] {
                let mut server = cached();
                let token = intent(&mut server, "k");
                change(&mut server);
                assert_eq!(commit(&mut server, &token, new), 0, "{how}");
                assert!(!server.holds("k") && server.state.cache.intents() == 0, "{how}");
            }
        }
    }

    #[test]
    fn an_invalidation_of_a_key_that_is_not_there_counts_as_well() {
        let mut server = FakeServer::new();
        let token = intent(&mut server, "k");
        assert_eq!(server.call::<Invalidate>("CACHE.INVALIDATE k"), Ok(Reply::Int(0)));
        assert_eq!(commit(&mut server, &token, " new"), 0);
    }

    #[test]
    fn a_value_whose_tag_was_invalidated_meanwhile_is_not_stored() {
        let mut server = cached();
        let token = intent(&mut server, "k");
        server.call::<InvalidateTag>("CACHE.INVALIDATETAG u").unwrap();
        assert_eq!(commit(&mut server, &token, " new TAGS 2 v u"), 0);
        assert!(!server.holds("k"));
        let token = intent(&mut server, "k");
        assert_eq!(commit(&mut server, &token, " new TAGS 2 v u"), 1);
        assert_eq!(server.state.cache.fence_tags(), 0);
    }

    #[test]
    fn what_happened_before_it_began_or_by_itself_does_not_matter() {
        let mut server = cached();
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"t", now);
        let token = intent(&mut server, "k");
        while reclaim(&mut server, 10) {}
        assert_eq!(commit(&mut server, &token, " new TAGS 1 t PX 10"), 1);
        let token = intent(&mut server, "k");
        server.advance_ms(10);
        assert!(value(&mut server, "k").is_none() && !server.holds("k"));
        assert_eq!(commit(&mut server, &token, " new"), 1, "it has expired");
        let token = intent(&mut server, "k");
        server.evict("k");
        assert_eq!(commit(&mut server, &token, " new"), 1);
    }

    #[test]
    fn an_unknown_token_removes_the_key_and_ends_all_that_is_under_way() {
        let mut server = cached();
        let token = intent(&mut server, "k");
        server.take_replicated();
        assert_eq!(commit(&mut server, "x", " new"), 0);
        assert_eq!(server.take_replicated(), ["UNLINK k"]);
        assert_eq!(commit(&mut server, &token, " new"), 0, "two writes, and which came last is not known");
        let Ok(Reply::Array(told)) = server.call::<Fetch>("CACHE.FETCH k") else { panic!() };
        let Reply::OwnedBytes(lease) = told[2].clone() else { panic!() };
        let lease = String::from_utf8(lease).unwrap();
        assert_eq!(commit(&mut server, &lease, " new"), 0, "a lease is no intent");
        assert_eq!(server.call::<Fill>(&format!("CACHE.FILL k {lease} old")), Ok(Reply::Int(0)), "read before");
        assert!(server.keys.is_empty());
    }

    #[test]
    fn one_that_ran_out_is_unknown_and_spoils_another() {
        let mut server = cached();
        let a = intent(&mut server, "k");
        server.advance_ms(999);
        let b = intent(&mut server, "k");
        server.advance_ms(1);
        assert!(due(&mut server) && !server.holds("k"));
        assert_eq!(commit(&mut server, &b, " b VERSION 7"), 0, "the other one may have written a later version");
        assert_eq!(commit(&mut server, &a, " a"), 0);
        let a = intent(&mut server, "k");
        server.advance_ms(1_000);
        assert_eq!(commit(&mut server, &a, " a"), 0, "no timer has come by, but its time is over");
    }

    #[test]
    fn a_version_or_condition_that_is_not_met_removes_the_key() {
        for (options, left) in [(" VERSION 5", false), (" VERSION 6", true), (" NX", false), (" XX", true)] {
            let mut server = FakeServer::new();
            server.call::<Set>("CACHE.SET k old VERSION 5").unwrap();
            let token = intent(&mut server, "k");
            assert_eq!(commit(&mut server, &token, &format!(" new{options}")), i64::from(left), "{options}");
            assert_eq!(server.holds("k"), left, "{options}");
        }
        let mut server = FakeServer::new();
        server.call::<Floor>("CACHE.FLOOR k 5").unwrap();
        let (a, b) = (intent(&mut server, "k"), intent(&mut server, "k"));
        assert_eq!(commit(&mut server, &a, " a VERSION 4"), 0);
        assert_eq!(commit(&mut server, &b, " b VERSION 6"), 1, "one that is too old does not harm the newer one");
        assert_eq!(value(&mut server, "k").as_deref(), Some("b"));
    }

    #[test]
    fn full_memory_removes_the_key_and_still_answers_who_waits() {
        let mut server = cached();
        let token = intent(&mut server, "k");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k STALE NEVER WAIT 0"), Ok(Reply::Later));
        server.memory_full = true;
        assert_eq!(server.call::<Commit>(&format!("CACHE.COMMIT k {token} new")), Err(Error::OutOfMemory));
        assert!(!server.holds("k") && server.state.cache.intents() == 0);
        assert!(
            matches!(&server.answers[..], [(_, Reply::Array(told))] if told[1] == Reply::Shared(b"new"[..].into()))
        );
        let token = intent(&mut server, "k");
        assert_eq!(commit(&mut server, &token, ""), 1, "nothing is added");
    }

    #[test]
    fn after_a_flush_or_a_swap_the_token_is_unknown() {
        let mut server = cached();
        let token = intent(&mut server, "k");
        server.keys.clear();
        server.state.flushed(Some(0));
        assert_eq!(commit(&mut server, &token, " new"), 0);
        let token = intent(&mut server, "k");
        server.state.swapped(0, 1);
        assert_eq!(commit(&mut server, &token, " new"), 0);
        server.advance_ms(1_000);
        assert!(due(&mut server) && !due(&mut server));
        assert!(server.state.cache.intents() == 0 && server.state.cache.leases.is_idle());
    }

    #[test]
    fn an_error_changes_nothing() {
        let mut server = cached();
        let token = intent(&mut server, "k");
        server.take_replicated();
        for (line, error) in [
            (" v VERSION", Error::Syntax),
            (" VERSION 5", Error::Syntax),
            (" v EX 0", Error::InvalidExpire("cache.commit")),
            (" v PX 9223372036854775807", Error::InvalidExpire("cache.commit")),
        ] {
            assert_eq!(server.call::<Commit>(&format!("CACHE.COMMIT k {token}{line}")), Err(error), "{line}");
        }
        assert_eq!(server.call::<Commit>("CACHE.COMMIT k"), Err(Error::WrongArity("cache.commit")));
        assert!(server.holds("k") && server.take_replicated().is_empty());
        assert_eq!(commit(&mut server, &token, " EX"), 1, "a value may look like an option");
    }
}
