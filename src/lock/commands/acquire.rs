//! `LOCK.ACQUIRE key owner EX seconds | PX milliseconds [REENTRANT]`

use crate::args::{Arg, Args, once};
use crate::clock::UnixMs;
use crate::commands::Command;
use crate::error::Error;
use crate::lock::lease::{self, Lease, LeaseOption};
use crate::lock::record::{self, Attempt, Record, Standing};
use crate::lock::{effects, keyspace};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Acquire;

pub struct Request<'a> {
    key: Arg<'a>,
    owner: Arg<'a>,
    lease: Lease,
    reentrant: bool,
}

impl Command for Acquire {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.acquire",
        family: Family::Lock,
        summary: "Acquires a lock for a limited time and returns its fencing token.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -5,
        flags: &[Flag::Write, Flag::DenyOom, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("owner"),
            lease::SPEC,
            ArgSpec::word("reentrant", "REENTRANT").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, owner) = (args.required()?, args.required()?);
        let (mut lease, mut reentrant) = (LeaseOption::default(), None);
        while let Some(word) = args.take() {
            if word.is("REENTRANT") {
                once(&mut reentrant, ())?;
            } else if !lease.take(word, args)? {
                return Err(Error::Syntax);
            }
        }
        let (lease, owner) = (lease.finish(args.command())?, record::owner(owner)?);
        Ok(Request { key, owner, lease, reentrant: reentrant.is_some() })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, owner, lease, reentrant } = request;
        let now = server.now().to_ms();
        let deadline = lease.deadline(now, Self::SPEC.name)?;
        let attempt = keyspace::open(server, key, |lock| {
            lock.record_mut().map(|record| record.acquire(owner.bytes, now, deadline, reentrant))
        })?;
        let token = match attempt.flatten() {
            None | Some(Attempt::Free) => grant(server, key, owner, deadline)?,
            Some(Attempt::Busy) => return Ok(Reply::Nil),
            Some(Attempt::Same { token }) => token,
            Some(Attempt::Changed { standing, longer }) => {
                keyspace::announce(server, key, owner, standing, longer);
                standing.token
            }
        };
        Ok(Reply::Int(token))
    }
}

/// Gives the lock, which nobody holds, to `owner` under a new token.
fn grant<S: Server>(server: &mut S, key: Arg<'_>, owner: Arg<'_>, deadline: UnixMs) -> Result<i64, Error> {
    let now = server.now();
    let granted = server.state().lock.fencing.grant(now).ok_or(Error::NoTokenLeft)?;
    let standing = Standing { token: granted.token, holds: 1, deadline };
    let record = Record::new(owner.bytes, standing).ok_or(Error::InvalidExpire(Acquire::SPEC.name))?;
    if let Some(reserve) = granted.reserve {
        effects::propagate_reserve(server, reserve);
    }
    keyspace::store(server, key, record)?;
    effects::propagate_lock(server, key, owner, standing);
    Ok(granted.token)
}

#[cfg(test)]
mod tests {
    use super::*;
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
            ("job ann EX 1 WAIT 5".to_owned(), Error::Syntax),
            ("job ann EX x SHARED".to_owned(), Error::Syntax),
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
