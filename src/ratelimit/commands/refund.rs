//! `RATELIMIT.REFUND key <limit> [<limit> ...] COST n`

use crate::args::Args;
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::limit::{Question, Tail};
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::{decision, effects, waiting};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Refund;

impl Command for Refund {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.refund",
        family: Family::RateLimit,
        summary: "Gives back what a request was charged.",
        complexity: "O(n) with n limits, at most 8, of up to 257 entries.",
        since: "0.1.0",
        arity: -7,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: Question::SPEC_WITH_COST,
    };
    type Request<'a> = Question<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Question<'a>, Error> {
        Question::parse(args, Tail::RequiredCost)
    }

    /// A limiter in which nothing is left goes. Where there is none, nothing was charged.
    fn run<'s, S: Server>(request: Question<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Question { key, limits, cost, .. } = &request;
        let (key, now) = (*key, server.now());
        let Some(limiter) = server.native::<Limiter>(key)? else {
            return Ok(decision::look(&Limiter::default(), limits, *cost, now).reply());
        };
        let refund = decision::refund(limiter, limits, *cost, now)?;
        let is_empty = limiter.is_empty();
        if let Some(effect) = refund.effect {
            effects::changed(server, key, is_empty, refund.expiry);
            effect.replicate(key, server);
            waiting::serve(server, key);
        }
        Ok(refund.answer.reply())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::ratelimit::commands::Check;

    fn ints(reply: Result<Reply<'_>, Error>) -> [i64; 7] {
        match reply {
            Ok(Reply::Ints(ints)) => ints[..].try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_charged_comes_back_and_never_more() {
        for limit in ["10 EX 60", "GCRA 10 EX 60", "FIXED 10 EX 600000"] {
            let mut server = FakeServer::new();
            server.call::<Check>(&format!("c k {limit} COST 5")).unwrap();
            server.take_replicated();
            let refund = |server: &mut FakeServer, cost: i64| {
                ints(server.call::<Refund>(&format!("RATELIMIT.REFUND k {limit} COST {cost}")))
            };
            assert_eq!(refund(&mut server, 2)[..4], [1, 10, 7, 0], "{limit}");
            assert_eq!(server.take_replicated().len(), 1);
            assert_eq!(refund(&mut server, 4), [1, 10, 10, 0, 0, 0, 0], "{limit}");
            assert_eq!(server.take_replicated().len(), 1);
            assert!(server.keys.is_empty(), "{limit}");
            assert_eq!(refund(&mut server, 1), [1, 10, 10, 0, 0, 0, 0], "{limit}");
            assert!(server.take_replicated().is_empty());
        }
    }

    #[test]
    fn the_newest_units_are_given_back() {
        let mut server = FakeServer::new();
        server.call::<Check>("c k 10 EX 60 COST 2").unwrap();
        server.advance_ms(30_000);
        server.call::<Check>("c k 10 EX 60 COST 3").unwrap();
        let [.., next_ms, reset_ms, _] = ints(server.call::<Refund>("RATELIMIT.REFUND k 10 EX 60 COST 3"));
        assert!(next_ms == reset_ms && next_ms < 31_000, "{next_ms} {reset_ms}");
    }

    #[test]
    fn other_limits_of_the_key_are_left_alone() {
        let mut server = FakeServer::new();
        server.call::<Check>("c k 10 EX 60 FIXED 10 EX 60 COST 5").unwrap();
        server.take_replicated();
        assert_eq!(ints(server.call::<Refund>("RATELIMIT.REFUND k 10 EX 60 COST 5"))[2], 10);
        let now = server.now.0;
        assert_eq!(server.take_replicated(), [format!("KEYWARD.APPLY REFUND k SLIDING 60000 {now} 5")]);
        assert_eq!(ints(server.call::<Check>("c k 10 EX 60 FIXED 10 EX 60 COST 5"))[6], 1);
    }

    #[test]
    fn a_cost_is_required_and_other_types_are_left_alone() {
        let mut server = FakeServer::new();
        server.put_string("s", "v");
        assert_eq!(server.call::<Refund>("RATELIMIT.REFUND k 10 EX 60"), Err(Error::Syntax));
        assert_eq!(server.call::<Refund>("RATELIMIT.REFUND k 10 EX 60 COST 1 WAIT 1"), Err(Error::Syntax));
        assert_eq!(server.call::<Refund>("RATELIMIT.REFUND s 10 EX 60 COST 1"), Err(Error::WrongType));
    }
}
