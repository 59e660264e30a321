//! `LOCK.ACQUIRE key owner EX seconds | PX milliseconds [WAIT milliseconds] [SHARED | PERMITS n] [REENTRANT] [SESSION]`

use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::hold_options::{LEASE_SPEC, Lease, LeaseOption, OptionWords, Options, SESSION_SPEC, WAIT_SPEC};
use crate::lock::grant::{self, Wish};
use crate::lock::holders::MAX_PERMITS;
use crate::lock::record::{self, Mode};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Acquire;

pub struct Request<'a> {
    key: Arg<'a>,
    owner: Arg<'a>,
    lease: Lease,
    mode: Mode,
    reentrant: bool,
    options: Options,
}

impl Command for Acquire {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.acquire",
        family: Family::Lock,
        summary: "Acquires a lock for a limited time and returns its fencing token.",
        complexity: "O(log(N)) where N is the number of clients that wait, O(1) if nobody does.",
        since: "0.1.0",
        arity: -5,
        flags: &[Flag::Write, Flag::DenyOom, Flag::Blocking],
        keys: Keys::First,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("owner"),
            LEASE_SPEC,
            WAIT_SPEC,
            ArgSpec::one_of(
                "sharing",
                &[ArgSpec::word("shared", "SHARED"), ArgSpec::integer("permits").token("PERMITS")],
            )
            .optional(),
            ArgSpec::word("reentrant", "REENTRANT").optional(),
            SESSION_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, owner) = (args.required()?, args.required()?);
        let (mut lease, mut options) = (LeaseOption::default(), OptionWords::default());
        let (mut reentrant, mut shared, mut permits) = (None, None, None);
        while let Some(word) = args.take() {
            if word.is("REENTRANT") {
                once(&mut reentrant, ())?;
            } else if word.is("SHARED") {
                once(&mut shared, ())?;
            } else if word.is("PERMITS") {
                once(&mut permits, args.value()?)?;
            } else if !lease.take(word, args)? && !options.take(word, args)? {
                return Err(Error::Syntax);
            }
        }
        let mode = match (shared, permits) {
            (None, None) => Mode::Exclusive,
            (Some(()), None) => Mode::Shared,
            (None, Some(permits)) => Mode::Permits(parse_permits(permits)?),
            (Some(()), Some(_)) => return Err(Error::Syntax),
        };
        let (lease, options, owner) = (lease.finish(args.command())?, options.finish()?, record::owner(owner)?);
        Ok(Request { key, owner, lease, mode, reentrant: reentrant.is_some(), options })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, owner, lease, mode, reentrant, options } = request;
        lease.deadline(server.now().to_ms(), Self::SPEC.name)?;
        let session = options.connection(server)?;
        let wish = Wish { owner, mode, lease_ms: lease.ms(), reentrant, session };
        if let Some(token) = grant::acquire(server, key, &wish)? {
            return Ok(Reply::Int(token));
        }
        let Some(wait_ms) = options.wait_ms else { return Ok(Reply::Nil) };
        Ok(grant::wait(server, &[key], &wish, wait_ms)?.unwrap_or(Reply::Nil))
    }
}

fn parse_permits(arg: Arg<'_>) -> Result<u32, Error> {
    let permits = u32::try_from(arg.int()?).ok().filter(|permits| (1..=MAX_PERMITS).contains(permits));
    permits.ok_or(Error::CountRange("PERMITS", 1, i64::from(MAX_PERMITS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::Release;

    const START_US: i64 = 1_750_000_000_000_000;
    const START_MS: i64 = START_US / 1000;

    fn acquire<'s>(server: &'s mut FakeServer, line: &str) -> Reply<'s> {
        server.call::<Acquire>(&format!("lock.acquire {line}")).unwrap()
    }

    #[test]
    fn a_free_lock_is_granted_with_a_token_and_a_ttl_and_the_grant_is_replicated_in_absolute_terms() {
        let mut server = FakeServer::new();
        assert_eq!(acquire(&mut server, "job ann EX 10"), Reply::Int(START_US));
        assert_eq!(server.key_expiry("job"), Some(UnixMs(START_MS + 10_000)));
        assert_eq!(
            server.take_replicated(),
            [
                format!("KEYWARD.APPLY RESERVE {}", START_US + 10_000_000),
                format!("KEYWARD.APPLY LOCK job ann {START_US} {} 1", START_MS + 10_000),
            ]
        );
        assert_eq!(acquire(&mut server, "other ann px 10"), Reply::Int(START_US + 1));
        assert_eq!(
            server.take_replicated(),
            [format!("KEYWARD.APPLY LOCK other ann {} {} 1", START_US + 1, START_MS + 10)],
            "the reserve lasts for a while"
        );
    }

    #[test]
    fn a_held_lock_is_refused_to_others_without_a_trace() {
        let mut server = FakeServer::new();
        acquire(&mut server, "job ann PX 1000");
        server.take_replicated();
        assert_eq!(acquire(&mut server, "job bob PX 9000"), Reply::Nil);
        assert_eq!(server.key_expiry("job"), Some(UnixMs(START_MS + 1000)));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn an_expired_lock_goes_to_the_next_with_a_larger_token() {
        let mut server = FakeServer::new();
        acquire(&mut server, "job ann PX 1000");
        server.advance_ms(1000);
        assert_eq!(acquire(&mut server, "job bob PX 1000"), Reply::Int(START_US + 1_000_000));
    }

    #[test]
    fn a_lock_past_its_deadline_is_free_even_if_its_key_was_made_to_stay() {
        let mut server = FakeServer::new();
        acquire(&mut server, "job ann PX 1000");
        server.persist("job");
        server.advance_ms(2000);
        assert_eq!(acquire(&mut server, "job bob PX 1000"), Reply::Int(START_US + 2_000_000));
        assert_eq!(server.key_expiry("job"), Some(UnixMs(START_MS + 3000)), "the key has a TTL again");
        assert_eq!(server.state.lock.locks(), 1);
    }

    #[test]
    fn the_holder_gets_the_same_token_and_a_longer_lease_but_never_a_shorter_one() {
        let mut server = FakeServer::new();
        acquire(&mut server, "job ann PX 1000");
        server.take_replicated();
        assert_eq!(acquire(&mut server, "job ann PX 500"), Reply::Int(START_US));
        assert_eq!(server.key_expiry("job"), Some(UnixMs(START_MS + 1000)));
        assert!(server.take_replicated().is_empty(), "nothing changed");
        assert_eq!(acquire(&mut server, "job ann PX 4000"), Reply::Int(START_US));
        assert_eq!(server.key_expiry("job"), Some(UnixMs(START_MS + 4000)));
        assert_eq!(server.take_replicated(), [format!("KEYWARD.APPLY LOCK job ann {START_US} {} 1", START_MS + 4000)]);
    }

    #[test]
    fn reentrant_holds_take_as_many_releases() {
        let mut server = FakeServer::new();
        acquire(&mut server, "job ann PX 1000 REENTRANT");
        server.take_replicated();
        assert_eq!(acquire(&mut server, "job ann reentrant PX 10"), Reply::Int(START_US));
        assert_eq!(server.take_replicated(), [format!("KEYWARD.APPLY LOCK job ann {START_US} {} 2", START_MS + 1000)]);
        for held in [true, false] {
            assert_eq!(server.call::<Release>("lock.release job ann"), Ok(Reply::Int(1)));
            assert_eq!(server.holds("job"), held);
        }
        assert_eq!(server.call::<Release>("lock.release job ann"), Ok(Reply::Int(0)));
    }

    #[test]
    fn an_evicted_lock_is_still_held_and_its_key_comes_back_on_the_next_use() {
        let mut server = FakeServer::new();
        acquire(&mut server, "job ann PX 1000");
        server.take_replicated();
        server.evict("job");
        assert_eq!(acquire(&mut server, "job bob PX 1000"), Reply::Nil);
        assert!(server.holds("job"));
        assert_eq!(server.key_expiry("job"), Some(UnixMs(START_MS + 1000)));
        assert_eq!(server.take_replicated(), ["DEL job".to_owned(), format!("KEYWARD.APPLY PUTBACK job {START_US}")]);
    }

    #[test]
    fn other_types_are_left_alone() {
        let mut server = FakeServer::new();
        server.put_string("job", "v");
        assert_eq!(server.call::<Acquire>("lock.acquire job ann PX 10"), Err(Error::WrongType));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        let mut server = FakeServer::new();
        let long = "x".repeat(1025);
        let expire = Error::InvalidExpire("lock.acquire");
        for (line, error) in [
            ("job ann".to_owned(), Error::Syntax),
            ("job ann REENTRANT".to_owned(), Error::Syntax),
            ("job ann EX".to_owned(), Error::Syntax),
            ("job ann EX 1 PX 1".to_owned(), Error::Syntax),
            ("job ann EX 1 EX 1".to_owned(), Error::Syntax),
            ("job ann EX 1 REENTRANT REENTRANT".to_owned(), Error::Syntax),
            ("job ann EX 1 WAIT".to_owned(), Error::Syntax),
            ("job ann EX x NOW".to_owned(), Error::Syntax),
            ("job ann EX 1 SHARED PERMITS 2".to_owned(), Error::Syntax),
            ("job ann EX 1 WAIT x".to_owned(), Error::NotAnInteger),
            ("job ann EX 1 WAIT -1".to_owned(), Error::CountRange("WAIT", 0, i64::MAX)),
            ("job ann EX 1 PERMITS 0".to_owned(), Error::CountRange("PERMITS", 1, 1_000_000)),
            ("job ann EX 1 PERMITS 1000001".to_owned(), Error::CountRange("PERMITS", 1, 1_000_000)),
            ("job ann EX x".to_owned(), Error::NotAnInteger),
            ("job ann PX 01".to_owned(), Error::NotAnInteger),
            ("job ann EX 0".to_owned(), expire.clone()),
            ("job ann PX -1".to_owned(), expire.clone()),
            ("job ann EX 9223372036854775807".to_owned(), expire.clone()),
            ("job ann PX 9223372036854775807".to_owned(), expire),
            (format!("job {long} EX 1"), Error::OwnerLength),
            ("job  EX 1".to_owned(), Error::OwnerLength),
            ("job".to_owned(), Error::WrongArity("lock.acquire")),
        ] {
            assert_eq!(server.call::<Acquire>(&format!("lock.acquire {line}")), Err(error), "{line:.40}");
        }
        assert!(server.keys.is_empty());
        assert!(server.take_replicated().is_empty());
    }
}
