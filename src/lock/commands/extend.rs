//! `LOCK.EXTEND key owner EX seconds | PX milliseconds [TOKEN token]`

use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::hold_options::{LEASE_SPEC, Lease, LeaseOption};
use crate::lock::keyspace;
use crate::lock::record::{self, Extension};
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Extend;

pub struct Request<'a> {
    key: Arg<'a>,
    owner: Arg<'a>,
    lease: Lease,
    token: Option<i64>,
}

impl Command for Extend {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.extend",
        family: Family::Lock,
        summary: "Lengthens the lease of a lock that is held.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -5,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("owner"),
            LEASE_SPEC,
            ArgSpec::integer("token").token("TOKEN").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, owner) = (args.required()?, args.required()?);
        let (mut lease, mut token) = (LeaseOption::default(), None);
        while let Some(word) = args.take() {
            if word.is("TOKEN") {
                once(&mut token, args.value()?)?;
            } else if !lease.take(word, args)? {
                return Err(Error::Syntax);
            }
        }
        let lease = lease.finish(args.command())?;
        let token = token.map(|token| token.int()).transpose()?;
        Ok(Request { key, owner: record::owner(owner)?, lease, token })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, owner, lease, token } = request;
        let now = server.now().to_ms();
        let deadline = lease.deadline(now, Self::SPEC.name)?;
        let extension = keyspace::open(server, key, |record| record.extend(owner.bytes, token, now, deadline))?;
        match extension {
            None | Some(Extension::NotHolder) => return Ok(Reply::Int(0)),
            Some(Extension::Same) => {}
            Some(Extension::Longer(standing)) => keyspace::announce(server, key, owner, standing)?,
        }
        Ok(Reply::Int(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::Acquire;

    const TOKEN: i64 = 1_750_000_000_000_000;
    const START_MS: i64 = TOKEN / 1000;

    /// A server where ann holds `job` for a second.
    fn locked() -> FakeServer {
        let mut server = FakeServer::new();
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        server.take_replicated();
        server
    }

    #[test]
    fn the_holder_gets_more_time_counted_from_now() {
        let mut server = locked();
        server.advance_ms(900);
        assert_eq!(server.call::<Extend>("lock.extend job ann EX 1"), Ok(Reply::Int(1)));
        assert_eq!(server.key_expiry("job"), Some(UnixMs(START_MS + 1900)));
        assert_eq!(server.take_replicated(), [format!("KEYWARD.APPLY LOCK job ann {TOKEN} {} 1", START_MS + 1900)]);
    }

    #[test]
    fn a_lease_is_never_shortened() {
        let mut server = locked();
        assert_eq!(server.call::<Extend>("lock.extend job ann PX 10"), Ok(Reply::Int(1)));
        assert_eq!(server.key_expiry("job"), Some(UnixMs(START_MS + 1000)));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn only_the_holder_of_the_token_extends() {
        let mut server = locked();
        for line in ["job bob PX 5000", "job ann PX 5000 TOKEN 1", "other ann PX 5000"] {
            assert_eq!(server.call::<Extend>(&format!("lock.extend {line}")), Ok(Reply::Int(0)), "{line}");
        }
        assert!(server.take_replicated().is_empty());
        let line = format!("lock.extend job ann TOKEN {TOKEN} PX 5000");
        assert_eq!(server.call::<Extend>(&line), Ok(Reply::Int(1)));
    }

    #[test]
    fn an_expired_lock_is_not_revived() {
        let mut server = locked();
        server.persist("job");
        server.advance_ms(1000);
        assert_eq!(server.call::<Extend>("lock.extend job ann PX 5000"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        let mut server = locked();
        server.put_string("text", "v");
        for (line, error) in [
            ("job ann", Error::Syntax),
            ("job ann PX 0", Error::InvalidExpire("lock.extend")),
            ("job ann PX 9223372036854775807", Error::InvalidExpire("lock.extend")),
            ("job ann PX 1 REENTRANT", Error::Syntax),
            ("job ann PX 1 TOKEN x", Error::NotAnInteger),
            ("job  PX 1", Error::OwnerLength),
            ("text ann PX 1", Error::WrongType),
        ] {
            assert_eq!(server.call::<Extend>(&format!("lock.extend {line}")), Err(error), "{line}");
        }
    }
}
