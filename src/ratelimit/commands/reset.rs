//! `RATELIMIT.RESET key [key ...]`

use smallvec::SmallVec;

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::concurrency::Slots;
use crate::ratelimit::limiter::Limiter;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Reset;

pub struct Request<'a> {
    keys: SmallVec<[Arg<'a>; 4]>,
}

impl Command for Reset {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.reset",
        family: Family::RateLimit,
        summary: "Forgets what limiters have counted, so that they are full again, and frees all slots.",
        complexity: "O(n) with n keys.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::All,
        access: Access::Delete,
        tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
        args: &[ArgSpec::key().multiple()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let first = args.required()?;
        let mut keys = SmallVec::from_slice(&[first]);
        keys.extend(args.rest());
        Ok(Request { keys })
    }

    /// All keys are looked at before one is removed: a key that is no limiter must not leave the others half done.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        for key in &request.keys {
            find(server, *key)?;
        }
        let names: SmallVec<[&[u8]; 4]> = request.keys.iter().map(|key| key.bytes).collect();
        let removed = server.unlink(&names);
        let counters = &mut server.state().ratelimit;
        counters.resets = counters.resets.saturating_add(u64::try_from(removed).unwrap_or(u64::MAX));
        Ok(Reply::count(removed))
    }
}

/// Is the key a limiter of either kind, or not there?
fn find<S: Server>(server: &mut S, key: Arg<'_>) -> Result<(), Error> {
    match server.native::<Limiter>(key) {
        Err(Error::WrongType) => server.native::<Slots>(key).map(|_| ()),
        found => found.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::ratelimit::commands::{Check, Enter};

    #[test]
    fn resets_what_is_there_and_replicates_that() {
        let mut server = FakeServer::new();
        server.call::<Check>("c a 1 EX 60").unwrap();
        server.call::<Check>("c b 1 EX 60").unwrap();
        server.take_replicated();
        assert_eq!(server.call::<Reset>("RATELIMIT.RESET a none b a"), Ok(Reply::Int(2)));
        assert_eq!(server.take_replicated(), ["UNLINK a b"]);
        assert_eq!(server.state.ratelimit.resets, 2);
        let Ok(Reply::Ints(again)) = server.call::<Check>("c a 1 EX 60") else { panic!() };
        assert_eq!(again[0], 1);
    }

    #[test]
    fn resets_nothing_if_one_key_is_no_limiter() {
        let mut server = FakeServer::new();
        server.call::<Check>("c a 1 EX 60").unwrap();
        server.put_string("s", "v");
        server.take_replicated();
        assert_eq!(server.call::<Reset>("RATELIMIT.RESET a s"), Err(Error::WrongType));
        assert_eq!(server.keys.len(), 2);
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn slots_are_freed_and_who_waits_for_one_gets_it() {
        let mut server = FakeServer::new();
        server.call::<Enter>("e slots a LIMIT 1 EX 60").unwrap();
        server.call::<Check>("c limiter 1 EX 60").unwrap();
        assert_eq!(server.call::<Enter>("e slots b LIMIT 1 EX 60 WAIT 0"), Ok(Reply::Later));
        assert_eq!(server.call::<Reset>("RATELIMIT.RESET slots limiter"), Ok(Reply::Int(2)));
        assert!(server.answers.is_empty(), "not within the event");
        while crate::state::due(&mut server) {}
        assert_eq!(server.answers.len(), 1);
    }

    #[test]
    fn nothing_there_replicates_nothing() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<Reset>("RATELIMIT.RESET none"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
    }
}
