//! `RATELIMIT.BAN key EX seconds | PX milliseconds`

use crate::args::{Arg, Args};
use crate::clock::UnixMs;
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::effects::{self, Effect};
use crate::ratelimit::limiter::Limiter;
use crate::ratelimit::waiting;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Ban;

pub struct Request<'a> {
    key: Arg<'a>,
    ms: i64,
}

impl Command for Ban {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.ban",
        family: Family::RateLimit,
        summary: "Denies every request for some time, whatever the limits say.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 4,
        flags: &[Flag::Write, Flag::DenyOom, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::one_of(
                "time",
                &[ArgSpec::integer("seconds").token("EX"), ArgSpec::integer("milliseconds").token("PX")],
            ),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, unit, time) = (args.required()?, args.required()?, args.required()?);
        args.end()?;
        let ms_per_unit = match () {
            () if unit.is("EX") => 1000,
            () if unit.is("PX") => 1,
            () => return Err(Error::Syntax),
        };
        let ms = time.int()?.checked_mul(ms_per_unit).filter(|ms| *ms > 0);
        Ok(Request { key, ms: ms.ok_or(Error::InvalidExpire(args.command()))? })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, ms } = request;
        let now = server.now().to_ms();
        let until = now.0.checked_add(ms).filter(|until| *until < MOST_MS);
        let until = UnixMs(until.ok_or(Error::InvalidExpire(Self::SPEC.name))?);
        let ban = Effect::Ban { until };
        match server.native::<Limiter>(key)? {
            // What changes nothing replicates nothing.
            Some(limiter) if limiter.banned_until(now) == Some(until) => return Ok(Reply::Ok),
            Some(limiter) => {
                let expiry = ban.apply_to(limiter)?;
                effects::changed(server, key, false, expiry);
            }
            None => {
                let mut limiter = Limiter::default();
                let expiry = ban.apply_to(&mut limiter)?;
                server.put_native(key, limiter, expiry);
            }
        }
        ban.replicate(key, server);
        server.announce(c"ratelimit.ban", key);
        // It may end earlier than the one before it.
        waiting::serve(server, key);
        Ok(Reply::Ok)
    }
}

/// A ban ends before this, in the year 294 000: it is counted in microseconds, too.
const MOST_MS: i64 = i64::MAX / 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::ratelimit::commands::{Check, Peek};

    fn ints(reply: Result<Reply<'_>, Error>) -> [i64; 7] {
        match reply {
            Ok(Reply::Ints(ints)) => ints[..].try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_is_denied_until_then_and_costs_nothing() {
        let mut server = FakeServer::new();
        server.call::<Check>("c k 10 EX 60 COST 4").unwrap();
        server.take_replicated();
        assert_eq!(server.call::<Ban>("RATELIMIT.BAN k EX 10"), Ok(Reply::Ok));
        let until = server.now.to_ms().0 + 10_000;
        assert_eq!(server.take_replicated(), [format!("KEYWARD.APPLY BAN k {until}")]);
        server.advance_ms(1);
        for limits in ["10 EX 60", "GCRA 5 EX 1 FIXED 9 EX 1"] {
            let denied = ints(server.call::<Check>(&format!("c k {limits}")));
            assert_eq!((denied[0], denied[2], denied[3], denied[4], denied[6]), (0, 0, 9999, 9999, -1), "{limits}");
            assert_eq!(ints(server.call::<Peek>(&format!("p k {limits}"))), denied);
        }
        assert!(server.take_replicated().is_empty());
        server.advance_ms(9999);
        assert_eq!(ints(server.call::<Check>("c k 10 EX 60"))[..3], [1, 10, 5]);
    }

    #[test]
    fn another_ban_takes_the_place_of_the_first_and_the_key_lives_as_long() {
        let mut server = FakeServer::new();
        for (ban, ms) in [("EX 100", 100_000), ("PX 5", 5), ("EX 7", 7000)] {
            server.call::<Ban>(&format!("b k {ban}")).unwrap();
            assert_eq!(server.key_expiry("k"), Some(UnixMs(server.now.to_ms().0 + ms)));
            assert_eq!(server.take_replicated().len(), 1);
            server.call::<Ban>(&format!("b k {ban}")).unwrap();
            assert!(server.take_replicated().is_empty(), "the same again");
        }
        server.advance_ms(7000);
        assert_eq!(ints(server.call::<Check>("c k 1 EX 1"))[0], 1);
    }

    #[test]
    fn a_ban_that_ends_earlier_lets_those_who_wait_in_earlier() {
        let mut server = FakeServer::new();
        server.call::<Ban>("b k EX 100").unwrap();
        assert_eq!(server.call::<Check>("c k 1 EX 60 WAIT 0"), Ok(Reply::Later));
        for (ban, ms) in [("EX 200", 200_000), ("PX 5", 5)] {
            server.call::<Ban>(&format!("b k {ban}")).unwrap();
            assert_eq!(server.state.ratelimit.next_deadline(), Some(server.now.to_ms().plus(ms)));
        }
    }

    #[test]
    fn a_key_full_of_states_can_be_banned() {
        let mut server = FakeServer::new();
        for ms in 1..=16 {
            server.call::<Check>(&format!("c k 5 PX {ms}000")).unwrap();
        }
        assert_eq!(server.call::<Ban>("b k EX 60"), Ok(Reply::Ok));
        assert_eq!(ints(server.call::<Check>("c k 5 EX 1"))[6], -1);
        server.advance_ms(60_000);
        assert_eq!(ints(server.call::<Check>("c k 5 EX 1"))[0], 1);
    }

    #[test]
    fn nothing_is_left_when_a_ban_ends_before_a_limit_has_more() {
        let mut server = FakeServer::new();
        server.call::<Check>("c k FIXED 1 EX 1000000 COST 1").unwrap();
        server.call::<Ban>("b k EX 1").unwrap();
        let banned = ints(server.call::<Check>("c k FIXED 1 EX 1000000"));
        assert_eq!((banned[3], banned[4]), (1000, banned[5]));
        assert!(banned[4] > 1000, "{banned:?}");
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        let mut server = FakeServer::new();
        server.put_string("s", "v");
        let expire = Error::InvalidExpire("ratelimit.ban");
        for (line, error) in [
            ("k EX", Error::WrongArity("ratelimit.ban")),
            ("k EX 1 1", Error::Syntax),
            ("k AT 1", Error::Syntax),
            ("k EX x", Error::NotAnInteger),
            ("k EX 0", expire.clone()),
            ("k PX -1", expire.clone()),
            ("k PX 9223372036854775807", expire.clone()),
            ("k EX 9223372036854775807", expire),
            ("s EX 1", Error::WrongType),
        ] {
            assert_eq!(server.call::<Ban>(&format!("b {line}")), Err(error), "{line}");
        }
        assert_eq!(server.keys.len(), 1);
    }
}
