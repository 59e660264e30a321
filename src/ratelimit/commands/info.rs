//! `RATELIMIT.INFO key`

use crate::args::{Arg, Args};
use crate::clock::UnixUs;
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::limiter::{Limiter, Metered};
use crate::ratelimit::{slots, waiting};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Info;

impl Command for Info {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.info",
        family: Family::RateLimit,
        summary: "Tells what a limiter has counted, for each algorithm and window, or who holds its slots.",
        complexity: "O(n) with n states under the key, at most 16 of up to 257 entries, or n slots and clients that wait.",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Read,
        tips: &["nondeterministic_output"],
        args: &[ArgSpec::key()],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        let key = args.required()?;
        args.end().map_err(|_| Error::WrongArity(args.command()))?;
        Ok(key)
    }

    /// A key that is not there is a limiter in which nothing is counted.
    fn run<'s, S: Server>(key: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        if let Some(described) = slots::describe(server, key) {
            return Ok(described);
        }
        let now = server.now();
        let (limits, banned_ms) = match server.native::<Limiter>(key)? {
            Some(limiter) => (
                limiter.states().iter().filter_map(|state| describe(state, now)).collect(),
                limiter.banned_until(now.to_ms()).map_or(0, |until| until.since(now.to_ms())),
            ),
            None => (Vec::new(), 0),
        };
        Ok(Reply::Map(vec![
            ("limits", Reply::Array(limits)),
            ("banned_ms", Reply::Int(banned_ms)),
            ("waiters", waiting::describe(server, key)),
        ]))
    }
}

/// `None` for a state that is full again, which is dropped at the next charge, and for a ban. GCRA is told at the rate of the
/// last charge.
fn describe(state: &Metered, now: UnixUs) -> Option<Reply<'static>> {
    let meter = state.meter()?;
    let reading = state.reading(meter, now);
    let used = reading.used();
    (used > 0).then(|| {
        Reply::Map(vec![
            ("algorithm", Reply::Word(meter.algorithm.name())),
            ("window_ms", Reply::Int(meter.window.ms())),
            ("used", Reply::Int(used)),
            ("next_ms", Reply::Int(reading.ms_until_used(used.saturating_sub(1)))),
            ("reset_ms", Reply::Int(reading.ms_until_used(0))),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::ratelimit::commands::{Check, Enter};

    #[test]
    fn lists_the_windows_in_which_something_is_counted() {
        let mut server = FakeServer::new();
        server.call::<Check>("c k 10 EX 1 COST 2").unwrap();
        server.call::<Check>("c k 10 EX 60 COST 3").unwrap();
        server.advance_ms(1_100);
        let Ok(Reply::Map(fields)) = server.call::<Info>("RATELIMIT.INFO k") else { panic!() };
        let [("limits", Reply::Array(limits)), ("banned_ms", Reply::Int(0)), ("waiters", _)] = &fields[..] else {
            panic!("{fields:?}")
        };
        let [Reply::Map(limit)] = &limits[..] else { panic!("{limits:?}") };
        assert_eq!(
            limit[..3],
            [("algorithm", Reply::Word("sliding")), ("window_ms", Reply::Int(60_000)), ("used", Reply::Int(3))]
        );
    }

    #[test]
    fn a_key_that_is_not_there_counts_nothing() {
        let mut server = FakeServer::new();
        assert_eq!(
            server.call::<Info>("i k"),
            Ok(Reply::Map(vec![
                ("limits", Reply::Array(vec![])),
                ("banned_ms", Reply::Int(0)),
                ("waiters", Reply::Array(vec![]))
            ]))
        );
    }

    #[test]
    fn slots_are_listed_with_who_holds_and_who_waits() {
        let mut server = FakeServer::new();
        server.call::<Enter>("e k a LIMIT 2 PX 2000").unwrap();
        server.call::<Enter>("e k b LIMIT 2 PX 1000 SESSION").unwrap();
        server.call::<Enter>("e k c LIMIT 2 PX 1000 WAIT 0").unwrap();
        server.advance_ms(300);
        let row = |id: &str, numbers: &[i64]| {
            let id = [Reply::OwnedBytes(id.into())];
            Reply::Array(id.into_iter().chain(numbers.iter().copied().map(Reply::Int)).collect())
        };
        let slots = vec![row("b", &[700, 1]), row("a", &[1700, 0])];
        let expected = vec![
            ("in_use", Reply::Int(2)),
            ("slots", Reply::Array(slots)),
            ("waiters", Reply::Array(vec![row("c", &[300])])),
        ];
        assert_eq!(server.call::<Info>("RATELIMIT.INFO k"), Ok(Reply::Map(expected)));
    }

    #[test]
    fn a_key_of_another_type_is_an_error() {
        let mut server = FakeServer::new();
        server.put_other("h");
        assert_eq!(server.call::<Info>("i h"), Err(Error::WrongType));
        assert_eq!(server.call::<Info>("i h h"), Err(Error::WrongArity("ratelimit.info")));
    }
}
