//! `CL.THROTTLE key max_burst count period [quantity]`, as redis-cell has it. The state is a plain string, the moment of
//! [`throttle_compat`](crate::ratelimit::throttle_compat) in decimal: whatever wrote it, the value decides, and not the key's
//! expiry.

use crate::args::{Arg, Args, parse_int};
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::throttle_compat::{Call, Change, expiry};
use crate::reply::Reply;
use crate::server::{Server, Word};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Throttle;

#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    call: Call,
}

impl Command for Throttle {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cl.throttle",
        family: Family::RateLimit,
        summary: "Admits a request if a rate with a burst allows it, and charges it: the command of redis-cell.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -5,
        // Not deny-oom: only a key that is not there yet needs memory, and run looks for that.
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &[
            ArgSpec::key(),
            ArgSpec::integer("max_burst"),
            ArgSpec::integer("count"),
            ArgSpec::integer("period"),
            ArgSpec::integer("quantity").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let key = args.required()?;
        let max_burst = args.required()?.int()?;
        let count = args.required()?.int()?;
        let period = args.required()?.int()?;
        let quantity = args.take().map_or(Ok(1), |quantity| quantity.int())?;
        args.end().map_err(|_| Error::WrongArity(args.command()))?;
        Ok(Request { key, call: Call::new(max_burst, count, period, quantity)? })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, call } = request;
        let now = server.now().0.saturating_mul(1000);
        let stored = match server.string(key)? {
            Some(value) => Some(moment(server.bytes(value))?),
            None => None,
        };
        let counters = &mut server.state().ratelimit;
        let reach = counters.longest_drain.max(call.drain());
        counters.longest_drain = reach;
        let decision = call.decide(stored, now, reach);
        match decision.change {
            Change::Nothing => {}
            Change::Store(_) if stored.is_none() && server.memory_full(key) => return Err(Error::OutOfMemory),
            Change::Store(tat) => store(tat, key, server),
            Change::Remove => {
                server.unlink(&[key.bytes]);
            }
        }
        if call.takes() {
            let counters = &mut server.state().ratelimit;
            let counter = if decision.limited { &mut counters.denied } else { &mut counters.allowed };
            *counter = counter.saturating_add(1);
        }
        Ok(Reply::Ints(decision.integers().into_iter().collect()))
    }
}

/// redis-cell stores no other numbers, and ends the server when it finds something else.
fn moment(bytes: &[u8]) -> Result<i64, Error> {
    parse_int(bytes).filter(|tat| *tat >= 0).ok_or(Error::NotAnInteger)
}

fn store<S: Server>(tat: i64, key: Arg<'_>, server: &mut S) {
    let until = expiry(tat);
    server.set_string(key, Arg::named(tat.to_string().as_bytes()), Some(until));
    server.replicate("SET", &[Word::Arg(key), Word::Int(tat), Word::Text("PXAT"), Word::Int(until.0)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{UnixMs, UnixUs};
    use crate::fake_server::{FakeServer, Value};

    fn throttle(server: &mut FakeServer, line: &str) -> [i64; 5] {
        match server.call::<Throttle>(&format!("CL.THROTTLE {line}")) {
            Ok(Reply::Ints(ints)) => ints[..].try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn value(server: &FakeServer, key: &str) -> String {
        match &server.keys[&(0, key.as_bytes().to_vec())].value {
            Value::String(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            _ => panic!("no string"),
        }
    }

    #[test]
    fn the_state_is_a_moment_in_decimal_nanoseconds_and_replicates_as_such() {
        let mut server = FakeServer::new();
        assert_eq!(throttle(&mut server, "k 15 30 60"), [0, 16, 15, -1, 2]);
        assert_eq!(value(&server, "k"), "1750000002000000000");
        assert_eq!(server.key_expiry("k"), Some(UnixMs(1_750_000_002_000)));
        assert_eq!(server.take_replicated(), ["SET k 1750000002000000000 PXAT 1750000002000"]);
    }

    #[test]
    fn an_expiry_is_rounded_up() {
        let mut server = FakeServer::new();
        server.now = UnixUs(server.now.0 + 1);
        throttle(&mut server, "k 0 1500 1");
        assert_eq!(server.take_replicated(), ["SET k 1750000000000667666 PXAT 1750000000001"]);
        assert_eq!(throttle(&mut server, "k 0 1500 1")[0], 1);
        server.now = UnixUs(server.now.0 + 667);
        assert_eq!(throttle(&mut server, "k 0 1500 1")[0], 0);
    }

    #[test]
    fn denials_and_looks_leave_no_trace() {
        let mut server = FakeServer::new();
        assert_eq!(throttle(&mut server, "k 0 1 10 0"), [0, 1, 1, -1, 0]);
        assert_eq!(throttle(&mut server, "k 0 1 10 2"), [1, 1, 1, -1, 0]);
        assert!(!server.holds("k"));
        throttle(&mut server, "k 0 1 10");
        server.take_replicated();
        assert_eq!(throttle(&mut server, "k 0 1 10"), [1, 1, 0, 10, 10]);
        assert_eq!(throttle(&mut server, "k 0 1 10 0"), [0, 1, 0, -1, 10]);
        assert!(server.take_replicated().is_empty());
        assert_eq!((server.state.ratelimit.allowed, server.state.ratelimit.denied), (1, 2));
    }

    #[test]
    fn a_refund_up_to_full_removes_the_key() {
        let mut server = FakeServer::new();
        throttle(&mut server, "k 5 1 10 3");
        server.take_replicated();
        assert_eq!(throttle(&mut server, "k 5 1 10 -1"), [0, 6, 4, -1, 20]);
        assert_eq!(server.take_replicated(), ["SET k 1750000020000000000 PXAT 1750000020000"]);
        assert_eq!(throttle(&mut server, "k 5 1 10 -3"), [0, 6, 6, -1, 0]);
        assert_eq!(server.take_replicated(), ["UNLINK k"]);
        assert!(!server.holds("k"));
        assert_eq!(throttle(&mut server, "k 5 1 10 -3"), [0, 6, 6, -1, 0]);
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn the_value_decides_and_not_the_expiry() {
        let mut server = FakeServer::new();
        throttle(&mut server, "k 0 1 10");
        server.persist("k");
        assert_eq!(throttle(&mut server, "k 0 1 10"), [1, 1, 0, 10, 10]);
        server.advance_ms(10_000);
        server.take_replicated();
        assert_eq!(throttle(&mut server, "k 0 1 10 0"), [0, 1, 1, -1, 0]);
        assert!(server.take_replicated().is_empty());
        assert_eq!(throttle(&mut server, "k 0 1 10"), [0, 1, 0, -1, 10]);
        assert_eq!(server.key_expiry("k"), Some(UnixMs(1_750_000_020_000)));
    }

    #[test]
    fn what_is_no_state_is_refused_and_left_alone() {
        let mut server = FakeServer::new();
        server.put_other("h");
        assert_eq!(server.call::<Throttle>("c h 0 1 1"), Err(Error::WrongType));
        for text in ["", "x", "-1", "01", "1.5", "9223372036854775808", "18446744073709551615"] {
            server.put_string("s", text);
            assert_eq!(server.call::<Throttle>("c s 0 1 1"), Err(Error::NotAnInteger), "{text}");
            assert_eq!(value(&server, "s"), text);
        }
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn memory_full_refuses_new_keys_only() {
        let mut server = FakeServer::new();
        throttle(&mut server, "old 5 1 10");
        server.memory_full = true;
        assert_eq!(server.call::<Throttle>("c new 5 1 10"), Err(Error::OutOfMemory));
        assert!(!server.holds("new"));
        assert_eq!(throttle(&mut server, "new 5 1 10 0"), [0, 6, 6, -1, 0]);
        assert_eq!(throttle(&mut server, "old 5 1 10"), [0, 6, 4, -1, 20]);
    }

    #[test]
    fn the_first_denial_after_the_clock_was_set_back_stores_the_new_time() {
        let mut server = FakeServer::new();
        throttle(&mut server, "k 0 1 10");
        server.take_replicated();
        server.advance_ms(-3_600_000);
        assert_eq!(throttle(&mut server, "k 0 1 10"), [1, 1, 0, 10, 10]);
        assert_eq!(server.take_replicated(), ["SET k 1749996410000000000 PXAT 1749996410000"]);
        assert_eq!(throttle(&mut server, "k 0 1 10"), [1, 1, 0, 10, 10]);
        assert!(server.take_replicated().is_empty());
        server.advance_ms(10_000);
        assert_eq!(throttle(&mut server, "k 0 1 10"), [0, 1, 0, -1, 10]);
    }

    #[test]
    fn callers_with_different_bursts_share_what_is_consumed() {
        let mut server = FakeServer::new();
        assert_eq!(throttle(&mut server, "k 99 1 1 100")[0], 0);
        for _ in 0..3 {
            assert_eq!(throttle(&mut server, "k 0 1 1"), [1, 1, 0, 100, 100]);
            assert_eq!(throttle(&mut server, "k 99 1 1"), [1, 100, 0, 1, 100]);
        }
    }

    #[test]
    fn words_are_counted_and_integers_follow_the_rules_of_redis() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<Throttle>("c k 1 1"), Err(Error::WrongArity("cl.throttle")));
        assert_eq!(server.call::<Throttle>("c k 1 1 1 1 1"), Err(Error::WrongArity("cl.throttle")));
        for line in ["c k +1 1 1", "c k 1 01 1", "c k 1 1 1.5", "c k 1 1 1 x", "c k 1 1 9223372036854775808"] {
            assert_eq!(server.call::<Throttle>(line), Err(Error::NotAnInteger), "{line}");
        }
        assert_eq!(server.call::<Throttle>("c k 1 0 1"), Err(Error::ZeroRate));
        assert!(server.keys.is_empty());
    }
}
