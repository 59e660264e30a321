//! `RATELIMIT.LEAVE key id [id ...]`

use smallvec::SmallVec;

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::concurrency;
use crate::ratelimit::{slots, waiting};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Leave;

pub struct Request<'a> {
    key: Arg<'a>,
    ids: SmallVec<[Arg<'a>; 4]>,
}

impl Command for Leave {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.leave",
        family: Family::RateLimit,
        summary: "Frees slots that were taken with RATELIMIT.ENTER.",
        complexity: "O(M*log(N)) where M is the number of ids and N the number of slots.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::string("id").multiple()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, first) = (args.required()?, args.required()?);
        let ids = std::iter::once(first).chain(args.rest()).map(concurrency::id).collect::<Result<_, Error>>()?;
        Ok(Request { key, ids })
    }

    /// Replicated as it came: where it is replayed the slots are the same, and no clock is asked.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, ids } = request;
        let now = (!server.replayed()).then(|| server.now().to_ms());
        let freed = slots::leave(server, key, ids.iter().map(|id| id.bytes), now)?;
        if freed > 0 {
            server.replicate_verbatim();
            waiting::serve(server, key);
        }
        Ok(Reply::count(freed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::ratelimit::commands::Enter;

    /// A server where `a` holds a slot of `k` for a second, and `b` for two.
    fn held() -> FakeServer {
        let mut server = FakeServer::new();
        server.call::<Enter>("e k a LIMIT 5 PX 1000").unwrap();
        server.call::<Enter>("e k b LIMIT 5 PX 2000").unwrap();
        server.take_replicated();
        server
    }

    #[test]
    fn frees_those_that_are_held_each_once_and_is_replicated_as_it_came() {
        let mut server = held();
        assert_eq!(server.call::<Leave>("ratelimit.leave k none a a"), Ok(Reply::Int(1)));
        assert_eq!(server.take_replicated(), ["ratelimit.leave k none a a"]);
        assert_eq!(server.call::<Leave>("ratelimit.leave k a"), Ok(Reply::Int(0)));
        assert_eq!(server.call::<Leave>("ratelimit.leave other a"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.call::<Leave>("ratelimit.leave k b"), Ok(Reply::Int(1)));
        assert!(!server.holds("k"), "the key goes with the last slot");
    }

    #[test]
    fn a_slot_whose_lease_is_over_is_not_freed_and_its_going_is_no_change() {
        let mut server = held();
        server.advance_ms(1000);
        assert_eq!(server.call::<Leave>("ratelimit.leave k a"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.call::<Leave>("ratelimit.leave k a b"), Ok(Reply::Int(1)));
        assert!(!server.holds("k"));
    }

    #[test]
    fn where_it_is_replayed_no_clock_is_asked() {
        let mut server = held();
        server.replayed = true;
        server.advance_ms(60_000);
        assert_eq!(server.call::<Leave>("ratelimit.leave k a b"), Ok(Reply::Int(2)));
        assert!(!server.holds("k"));
    }

    #[test]
    fn bad_arguments_are_refused() {
        let mut server = held();
        assert_eq!(server.call::<Leave>("ratelimit.leave k"), Err(Error::WrongArity("ratelimit.leave")));
        assert_eq!(server.call::<Leave>("ratelimit.leave k a "), Err(Error::IdLength));
        let long = "x".repeat(513);
        assert_eq!(server.call::<Leave>(&format!("ratelimit.leave k a {long}")), Err(Error::IdLength));
        assert!(server.take_replicated().is_empty());
    }
}
