//! CACHE.INTENT

use crate::args::{Arg, Args, once};
use crate::cache::write_through;
use crate::clock::UnixMs;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Intent;

/// How long an intent lasts unless the caller says otherwise, in milliseconds.
const DEFAULT_MS: i64 = 10_000;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    ms: i64,
}

impl Command for Intent {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.intent",
        family: Family::Cache,
        summary: "Says that a database write begins: until it is over the key's value counts as stale, and no load is stored.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &["nondeterministic_output"],
        args: &[ArgSpec::key(), ArgSpec::integer("milliseconds").token("PX").optional()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let key = args.required()?;
        let mut ms = None;
        while let Some(word) = args.take() {
            if !word.is("PX") {
                return Err(Error::Syntax);
            }
            once(&mut ms, args.value()?)?;
        }
        let ms = ms.map_or(Ok(DEFAULT_MS), |ms| ms.int())?;
        if ms > 0 { Ok(Request { key, ms }) } else { Err(Error::InvalidExpire(args.command())) }
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, ms } = request;
        let until = server.now().to_ms().0.checked_add(ms).ok_or(Error::InvalidExpire(Self::SPEC.name))?;
        let token = write_through::begin(server, key, UnixMs(until))?;
        Ok(Reply::OwnedBytes(token.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::cache::commands::commit::Commit;
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::fill::Fill;
    use crate::cache::commands::fill_nil::FillNil;
    use crate::cache::commands::get::Get;
    use crate::cache::commands::mfetch::MFetch;
    use crate::cache::commands::mget::MGet;
    use crate::cache::commands::rollback::Rollback;
    use crate::cache::commands::set::Set;
    use crate::cache::commands::ttl::Ttl;
    use crate::cache::due;
    use crate::fake_server::FakeServer;
    use crate::state::KeyEvent;

    fn token<C: Command>(server: &mut FakeServer, line: &str) -> String {
        match server.call::<C>(line).unwrap() {
            Reply::OwnedBytes(token) => String::from_utf8(token).unwrap(),
            Reply::Array(items) => match &items[2] {
                Reply::OwnedBytes(token) => String::from_utf8(token.clone()).unwrap(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn fetched(status: &'static str) -> Reply<'static> {
        Reply::Array(vec![Reply::Word(status), Reply::Nil, Reply::Nil])
    }

    fn stale() -> Reply<'static> {
        Reply::Array(vec![Reply::Word("STALE"), Reply::Bytes(b"old"), Reply::Nil])
    }

    #[test]
    fn a_value_that_is_being_written_is_stale_for_all_cache_reads() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k old PX 500").unwrap();
        token::<Intent>(&mut server, "CACHE.INTENT k");
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Nil));
        assert_eq!(server.call::<MGet>("CACHE.MGET k"), Ok(Reply::Array(vec![Reply::Nil])));
        assert_eq!(server.call::<Ttl>("CACHE.TTL k"), Ok(Reply::Ints(smallvec![0, 500])));
        assert_eq!(server.call::<Ttl>("CACHE.TTL none"), Ok(Reply::Ints(smallvec![-2, -2])));
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k BETA 1000"), Ok(stale()));
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k STALE NEVER"), Ok(fetched("BUSY")));
        let both = vec![stale(), fetched("BUSY")];
        token::<Intent>(&mut server, "CACHE.INTENT missing");
        assert_eq!(server.call::<MFetch>("CACHE.MFETCH 2 k missing"), Ok(Reply::Array(both)));
        assert_eq!(server.state.cache.leases(), 0, "nobody is elected");
        server.advance_ms(500);
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k"), Ok(fetched("BUSY")), "it has expired");
    }

    #[test]
    fn it_ends_the_lease_and_no_load_from_before_is_stored() {
        let mut server = FakeServer::new();
        let lease = token::<Fetch>(&mut server, "CACHE.FETCH k");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k WAIT 0"), Ok(Reply::Later));
        token::<Intent>(&mut server, "CACHE.INTENT k");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k WAIT 0"), Ok(Reply::Later));
        assert_eq!(server.call::<Fill>(&format!("CACHE.FILL k {lease} old")), Ok(Reply::Int(0)));
        assert!(!server.holds("k"));
        let answers: Vec<_> = server.answers.iter().map(|(waiter, _)| waiter.0).collect();
        assert_eq!(
            (answers, server.waiting.len()),
            (vec![1], 1),
            "he asked before the write, the other one goes on waiting"
        );
    }

    #[test]
    fn a_negative_answer_is_hidden_and_stands_again_with_a_rollback() {
        let mut server = FakeServer::new();
        let lease = token::<Fetch>(&mut server, "CACHE.FETCH k");
        server.call::<FillNil>(&format!("CACHE.FILLNIL k {lease} EX 60")).unwrap();
        let intent = token::<Intent>(&mut server, "CACHE.INTENT k");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k"), Ok(fetched("BUSY")));
        assert_eq!(server.call::<Rollback>(&format!("CACHE.ROLLBACK k {intent}")), Ok(Reply::Int(1)));
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k"), Ok(fetched("NONE")));
        let intent = token::<Intent>(&mut server, "CACHE.INTENT k");
        assert_eq!(server.call::<Commit>(&format!("CACHE.COMMIT k {intent}")), Ok(Reply::Int(1)));
        token::<Fetch>(&mut server, "CACHE.FETCH k");
    }

    #[test]
    fn one_that_runs_out_removes_the_key_and_elects_who_waits() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k old").unwrap();
        token::<Intent>(&mut server, "CACHE.INTENT k PX 100");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k STALE NEVER WAIT 0"), Ok(Reply::Later));
        server.take_replicated();
        assert_eq!(server.state.cache.next_deadline(), Some(server.now.to_ms().plus(100)));
        server.advance_ms(100);
        assert_eq!(server.call::<Ttl>("CACHE.TTL k"), Ok(Reply::Ints(smallvec![-2, -2])), "as if it were gone already");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k"), Ok(fetched("BUSY")));
        assert!(due(&mut server) && !due(&mut server));
        assert_eq!(server.take_replicated(), ["UNLINK k", "KEYWARD.APPLY NOINTENT k"]);
        assert!(matches!(&server.answers[..], [(_, Reply::Array(told))] if told[0] == Reply::Word("MISS")));
        assert_eq!((server.state.cache.intents(), server.state.cache.counters.intent_timeouts), (0, 1));
    }

    #[test]
    fn what_ran_out_is_dealt_with_before_the_next_write_begins() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k old").unwrap();
        token::<Intent>(&mut server, "CACHE.INTENT k PX 100");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k STALE NEVER WAIT 0"), Ok(Reply::Later));
        server.advance_ms(100);
        let intent = token::<Intent>(&mut server, "CACHE.INTENT k");
        assert!(!server.holds("k") && server.waiting.len() == 1, "nobody is elected just to be revoked");
        assert_eq!(server.call::<Commit>(&format!("CACHE.COMMIT k {intent} new")), Ok(Reply::Int(1)));
        assert!(matches!(&server.answers[..], [(_, Reply::Array(told))] if told[0] == Reply::Word("HIT")));
    }

    #[test]
    fn there_is_a_most_and_a_replica_gives_out_none() {
        let mut server = FakeServer::new();
        server.state.config.intents_max = 1;
        token::<Intent>(&mut server, "CACHE.INTENT a PX 100");
        server.take_replicated();
        assert_eq!(server.call::<Intent>("CACHE.INTENT b"), Err(Error::TooManyIntents));
        assert_eq!(server.call::<Intent>("CACHE.INTENT a"), Err(Error::TooManyIntents));
        assert_eq!((server.take_replicated().len(), server.state.cache.counters.intents_full), (0, 2));
        server.replica = true;
        assert_eq!(server.call::<Intent>("CACHE.INTENT a"), Err(Error::ReadOnly));
        assert_eq!(server.call::<Commit>("CACHE.COMMIT a x"), Err(Error::ReadOnly));
        assert_eq!(server.call::<Rollback>("CACHE.ROLLBACK a x"), Err(Error::ReadOnly));
    }

    #[test]
    fn only_the_first_on_a_key_and_the_end_of_the_last_are_told() {
        let mut server = FakeServer::new();
        let first = token::<Intent>(&mut server, "CACHE.INTENT k");
        let second = token::<Intent>(&mut server, "CACHE.INTENT k");
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY INTENT k"]);
        server.call::<Rollback>(&format!("CACHE.ROLLBACK k {first}")).unwrap();
        assert!(server.take_replicated().is_empty());
        server.call::<Rollback>(&format!("CACHE.ROLLBACK k {second}")).unwrap();
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY NOINTENT k"]);
    }

    #[test]
    fn plain_writes_are_listened_to_while_one_is_open() {
        let mut server = FakeServer::new();
        let intent = token::<Intent>(&mut server, "CACHE.INTENT k");
        assert!(server.state.cache.needs_write_events());
        server.event(KeyEvent::Expired, b"k");
        server.call::<Rollback>(&format!("CACHE.ROLLBACK k {intent}")).unwrap();
        assert!(!server.state.cache.needs_write_events() && server.state.cache.leases.is_idle());
    }

    #[test]
    fn the_duration_is_checked() {
        let mut server = FakeServer::new();
        for ms in ["0", "-1", "9223372036854775807"] {
            let line = format!("CACHE.INTENT k PX {ms}");
            assert_eq!(server.call::<Intent>(&line), Err(Error::InvalidExpire("cache.intent")), "{ms}");
        }
        for line in ["PX", "EX 1", "PX 1 PX 1", "1"] {
            assert_eq!(server.call::<Intent>(&format!("CACHE.INTENT k {line}")), Err(Error::Syntax), "{line}");
        }
        assert_eq!(server.call::<Intent>("CACHE.INTENT k PX x"), Err(Error::NotAnInteger));
        assert_eq!(server.call::<Intent>("CACHE.INTENT"), Err(Error::WrongArity("cache.intent")));
        assert_eq!(server.state.cache.intents(), 0);
    }
}
