//! `LOCK.VALIDATE key token`

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::lock::keyspace;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Validate;

pub struct Request<'a> {
    key: Arg<'a>,
    token: i64,
}

impl Command for Validate {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.validate",
        family: Family::Lock,
        summary: "Tells whether a fencing token is the current one of a lock that is held.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Read,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::integer("token")],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, token) = (args.required()?, args.required()?.int()?);
        args.end()?;
        Ok(Request { key, token })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let now = server.now().to_ms();
        let valid = keyspace::look(server, request.key, |record| record.valid(request.token, now))?;
        Ok(Reply::yes_no(valid == Some(true)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::Acquire;

    const TOKEN: i64 = 1_750_000_000_000_000;

    fn valid(server: &mut FakeServer, token: i64) -> bool {
        server.call::<Validate>(&format!("lock.validate job {token}")).unwrap() == Reply::Int(1)
    }

    #[test]
    fn a_token_is_valid_while_its_lock_is_held() {
        let mut server = FakeServer::new();
        assert!(!valid(&mut server, TOKEN), "no lock");
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        assert!(valid(&mut server, TOKEN));
        assert!(!valid(&mut server, TOKEN + 1));
        assert!(!valid(&mut server, -1));
        server.evict("job");
        assert!(valid(&mut server, TOKEN), "evicted, but held");
        server.advance_ms(1000);
        assert!(!valid(&mut server, TOKEN));
    }

    #[test]
    fn a_replica_judges_by_its_own_clock_as_for_ttl() {
        let mut server = FakeServer::new();
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        server.replayed = true;
        server.advance_ms(2000);
        assert!(!valid(&mut server, TOKEN));
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        let mut server = FakeServer::new();
        server.put_string("text", "v");
        for (line, error) in [
            ("job", Error::WrongArity("lock.validate")),
            ("job x", Error::NotAnInteger),
            ("job 1 2", Error::Syntax),
            ("text 1", Error::WrongType),
        ] {
            assert_eq!(server.call::<Validate>(&format!("lock.validate {line}")), Err(error), "{line}");
        }
    }
}
