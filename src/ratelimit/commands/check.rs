//! `RATELIMIT.CHECK key <limit> [<limit> ...] [COST n] [WAIT ms]`

use crate::args::Args;
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::admission;
use crate::ratelimit::limit::{Question, Tail};
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
        flags: &[Flag::Write, Flag::Blocking],
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
        admission::check(server, &request)
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

    /// Answers to those who waited, by their number: allowed, remaining.
    fn answered(server: &mut FakeServer) -> Vec<(u64, i64, i64)> {
        while crate::ratelimit::due(server) {}
        let ints = |reply: &Reply<'_>| match reply {
            Reply::Ints(ints) => (ints[0], ints[2]),
            other => panic!("{other:?}"),
        };
        let answers: Vec<_> = server.answers.iter().map(|(waiter, reply)| (waiter.0, ints(reply))).collect();
        answers.into_iter().map(|(waiter, (allowed, remaining))| (waiter, allowed, remaining)).collect()
    }

    fn queues(server: &mut FakeServer, line: &str) {
        assert_eq!(server.call::<Check>(&format!("c {line}")), Ok(Reply::Later), "{line}");
    }

    #[test]
    fn who_waits_is_admitted_in_turn_and_charged_then() {
        let mut server = FakeServer::new();
        check(&mut server, "k GCRA 1 PX 1000");
        server.take_replicated();
        queues(&mut server, "k GCRA 1 PX 1000 WAIT 1000");
        queues(&mut server, "k GCRA 1 PX 1000 WAIT 0");
        // The third would be admitted after three seconds.
        assert_eq!(check(&mut server, "k GCRA 1 PX 1000 WAIT 2999")[..4], [0, 1, 0, 3000]);
        queues(&mut server, "k GCRA 1 PX 1000 WAIT 3000");
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.state.ratelimit.next_deadline(), Some(UnixMs(server.now.to_ms().0 + 1000)));
        server.advance_ms(999);
        assert_eq!(answered(&mut server), []);
        server.advance_ms(1);
        assert_eq!(answered(&mut server), [(1, 1, 0)]);
        assert_eq!(server.take_replicated().len(), 1);
        server.advance_ms(2000);
        assert_eq!(
            answered(&mut server),
            [(1, 1, 0), (2, 1, 0)],
            "one at a time: the bucket was empty for a second only"
        );
        server.advance_ms(1000);
        assert_eq!(answered(&mut server).len(), 3);
        assert!(server.state.ratelimit.forecasts.is_empty() && server.state.ratelimit.queues.is_empty());
    }

    #[test]
    fn nobody_is_overtaken_and_who_does_not_wait_is_told_how_long_it_would_take() {
        let mut server = FakeServer::new();
        check(&mut server, "k FIXED 10 EX 3600 COST 5");
        queues(&mut server, "k FIXED 10 EX 3600 COST 6 WAIT 0");
        let before = check(&mut server, "k FIXED 10 EX 3600");
        assert_eq!((before[0], before[2]), (0, 5));
        assert!(before[3] > 0 && before[3] == before[4], "when the next window begins: {before:?}");
        server.state.waiter_left(crate::server::Waiter(1));
        assert_eq!(check(&mut server, "k FIXED 10 EX 3600")[..3], [1, 10, 4]);
    }

    #[test]
    fn a_refund_admits_the_next_at_once() {
        let mut server = FakeServer::new();
        check(&mut server, "k 1 EX 60");
        queues(&mut server, "k 1 EX 60 WAIT 0");
        server.call::<crate::ratelimit::commands::Refund>("r k 1 EX 60 COST 1").unwrap();
        assert_eq!(answered(&mut server), [(1, 1, 0)]);
    }

    #[test]
    fn who_cannot_wait_and_who_would_wait_for_ever_is_denied() {
        let mut server = FakeServer::new();
        check(&mut server, "k 1 EX 60");
        assert_eq!(check(&mut server, "k 1 EX 60 COST 2 WAIT 0")[..4], [0, 1, 0, -1]);
        assert_eq!(check(&mut server, "k 1 EX 60 WAIT 1")[0], 0);
        server.never_blocks = true;
        assert_eq!(check(&mut server, "k 1 EX 60 WAIT 0")[0], 0);
        server.never_blocks = false;
        server.state.config.waiters_per_key_max = 0;
        assert_eq!(server.call::<Check>("c k 1 EX 60 WAIT 0"), Err(Error::TooManyWaiters));
    }
}
