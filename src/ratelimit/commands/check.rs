//! `RATELIMIT.CHECK key <limit> [<limit> ...] [COST n] [WAIT ms]`

use crate::args::Args;
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::decision::Decision;
use crate::ratelimit::limit::{Question, Tail};
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::{decision, effects};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Check;

impl Command for Check {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.check",
        family: Family::RateLimit,
        summary: "Admits a request if all its limits allow it, and charges it.",
        complexity: "O(n) with n limits, at most 8; a sliding one up to O(257) when a cost above 1 is denied.",
        since: "0.1.0",
        arity: -5,
        // Not deny-oom: only a key that is not there yet needs memory, and run looks for that.
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: Question::SPEC_WITH_WAIT,
    };
    type Request<'a> = Question<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Question<'a>, Error> {
        Question::parse(args, Tail::CostAndWait)
    }

    fn run<'s, S: Server>(request: Question<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Question { key, limits, cost, .. } = &request;
        let (key, now) = (*key, server.now());
        let decision = match server.native::<Limiter>(key)? {
            Some(limiter) => {
                let decision = decision::check(limiter, limits, *cost, now)?;
                if decision.effect.is_some() {
                    effects::changed(server, key, false, decision.expiry);
                }
                decision
            }
            None => {
                let mut limiter = Limiter::default();
                let decision = decision::check(&mut limiter, limits, *cost, now)?;
                if decision.effect.is_some() {
                    if server.memory_full(key) {
                        return Err(Error::OutOfMemory);
                    }
                    server.put_native(key, limiter, decision.expiry);
                }
                decision
            }
        };
        let Decision { answer, effect, .. } = decision;
        if let Some(effect) = effect {
            effect.replicate(key, server);
        }
        let counters = &mut server.state().ratelimit;
        let counter = if answer.allowed { &mut counters.allowed } else { &mut counters.denied };
        *counter = counter.saturating_add(1);
        Ok(answer.reply())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{UnixMs, UnixUs};
    use crate::fake_server::{FakeServer, Value};

    fn check(server: &mut FakeServer, line: &str) -> [i64; 7] {
        match server.call::<Check>(&format!("RATELIMIT.CHECK {line}")) {
            Ok(Reply::Ints(ints)) => ints[..].try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// A server at the very beginning of a tick of 60 s windows (234 375 us).
    fn server() -> FakeServer {
        let mut server = FakeServer::new();
        server.now = UnixUs(7_466_666_667 * 234_375);
        server
    }

    #[test]
    fn counts_down_and_then_says_when_to_come_back() {
        let mut server = server();
        // A tick that begins now has left after 257 of 234.375 ms.
        assert_eq!(check(&mut server, "k 3 EX 60"), [1, 3, 2, 0, 60_235, 60_235, 0]);
        server.advance_ms(10_000);
        assert_eq!(check(&mut server, "k 3 EX 60 COST 2"), [1, 3, 0, 0, 50_235, 60_079, 0]);
        assert_eq!(check(&mut server, "k 3 EX 60"), [0, 3, 0, 50_235, 50_235, 60_079, 0]);
        assert_eq!(check(&mut server, "k 3 EX 60 COST 2"), [0, 3, 0, 60_079, 50_235, 60_079, 0]);
        server.advance_ms(50_234);
        assert_eq!(check(&mut server, "k 3 EX 60"), [0, 3, 0, 1, 1, 9_845, 0]);
        server.advance_ms(1);
        assert_eq!(check(&mut server, "k 3 EX 60"), [1, 3, 0, 0, 9_844, 60_234, 0]);
    }

    #[test]
    fn a_cost_above_the_limit_never_fits_and_makes_no_key() {
        let mut server = server();
        assert_eq!(check(&mut server, "k 3 EX 60 COST 4"), [0, 3, 3, -1, 0, 0, 0]);
        assert!(server.keys.is_empty());
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn an_admission_replicates_one_absolute_booking_and_a_denial_nothing() {
        let mut server = server();
        check(&mut server, "k 3 EX 60 COST 3");
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY CHARGE k SLIDING 60000 1750000000078125 3"]);
        check(&mut server, "k 3 EX 60");
        assert!(server.take_replicated().is_empty());
        assert_eq!((server.state.ratelimit.allowed, server.state.ratelimit.denied), (1, 1));
    }

    #[test]
    fn the_key_lives_until_the_limit_is_full_again() {
        let mut server = server();
        let reset_ms = check(&mut server, "k 3 EX 60")[5];
        let id = (0, b"k".to_vec());
        assert_eq!(server.keys[&id].expiry, Some(UnixMs(server.now.to_ms().0 + reset_ms)));
        server.advance_ms(30_000);
        let reset_ms = check(&mut server, "k 3 EX 60")[5];
        // Rounding to milliseconds from now and from the epoch may differ by one.
        let lives_ms = server.keys[&id].expiry.unwrap().0 - server.now.to_ms().0;
        assert!((reset_ms..=reset_ms + 1).contains(&lives_ms), "{lives_ms} {reset_ms}");
    }

    #[test]
    fn windows_under_one_key_are_counted_apart() {
        let mut server = server();
        assert_eq!(check(&mut server, "k 1 EX 1")[0], 1);
        assert_eq!(check(&mut server, "k 1 EX 1")[0], 0);
        assert_eq!(check(&mut server, "k 1 EX 60")[0], 1);
        server.advance_ms(1_100);
        assert_eq!(check(&mut server, "k 1 EX 1")[0], 1);
        assert_eq!(check(&mut server, "k 1 EX 60")[0], 0);
    }

    #[test]
    fn what_was_consumed_stays_when_the_count_changes() {
        let mut server = server();
        check(&mut server, "k 10 EX 60 COST 8");
        assert_eq!(check(&mut server, "k 5 EX 60")[..3], [0, 5, 0]);
        assert_eq!(check(&mut server, "k 20 EX 60")[..3], [1, 20, 11]);
    }

    #[test]
    fn memory_full_refuses_new_keys_only() {
        let mut server = server();
        check(&mut server, "old 10 EX 60");
        server.memory_full = true;
        assert_eq!(server.call::<Check>("c new 10 EX 60"), Err(Error::OutOfMemory));
        assert!(!server.keys.contains_key(&(0, b"new".to_vec())));
        assert_eq!(check(&mut server, "old 10 EX 60")[0], 1);
        assert_eq!(check(&mut server, "old 10 EX 1")[0], 1);
    }

    #[test]
    fn a_key_holds_16_windows_and_forgets_those_that_are_full() {
        let mut server = server();
        for window in 1..=16 {
            assert_eq!(check(&mut server, &format!("k 10 EX {window}"))[0], 1);
        }
        server.take_replicated();
        assert_eq!(server.call::<Check>("c k 10 EX 17"), Err(Error::TooManyLimits));
        assert!(server.take_replicated().is_empty());
        server.advance_ms(1_005);
        assert_eq!(check(&mut server, "k 10 EX 17")[0], 1);
    }

    #[test]
    fn a_key_of_another_type_is_left_alone() {
        let mut server = server();
        server.put_string("s", "v");
        server.put_other("h");
        for key in ["s", "h"] {
            assert_eq!(server.call::<Check>(&format!("c {key} 10 EX 60")), Err(Error::WrongType));
        }
        assert!(matches!(server.keys[&(0, b"s".to_vec())].value, Value::String(_)));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn a_denial_tells_replicas_of_a_clock_that_was_set_back_once() {
        let mut server = server();
        check(&mut server, "k 1 EX 60");
        server.take_replicated();
        server.advance_ms(-3_600_000);
        assert_eq!(check(&mut server, "k 1 EX 60")[3], 60_235);
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY SETBACK k SLIDING 60000 1749996400078125"]);
        server.advance_ms(60_234);
        assert_eq!(check(&mut server, "k 1 EX 60")[..4], [0, 1, 0, 1]);
        assert!(server.take_replicated().is_empty());
        server.advance_ms(1);
        assert_eq!(check(&mut server, "k 1 EX 60")[0], 1);
    }
}
