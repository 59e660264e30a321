//! `LOCK.EXEC key token command [arg ...]`

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::lock::keyspace;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Exec;

pub struct Request<'a> {
    key: Arg<'a>,
    token: i64,
    command: Arg<'a>,
}

impl Command for Exec {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "lock.exec",
        family: Family::Lock,
        summary: "Runs a command if a fencing token is the current one of a lock that is held.",
        complexity: "That of the command.",
        since: "0.1.0",
        arity: -4,
        flags: &[Flag::Write],
        keys: Keys::First,
        access: Access::Read,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::integer("token"),
            ArgSpec::string("command"),
            ArgSpec::string("arg").optional().multiple(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        Ok(Request { key: args.required()?, token: args.required()?.int()?, command: args.required()? })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, token, command } = request;
        let now = server.now().to_ms();
        match keyspace::look(server, key, |record| record.valid(token, now))? {
            Some(true) => server.execute(key, command),
            _ => Err(Error::Fenced),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::Acquire;

    const TOKEN: i64 = 1_750_000_000_000_000;

    #[test]
    fn a_command_runs_while_its_token_is_current_and_not_a_moment_longer() {
        let mut server = FakeServer::new();
        let line = format!("lock.exec job {TOKEN} SET k v");
        assert_eq!(server.call::<Exec>(&line), Err(Error::Fenced), "no lock");
        server.call::<Acquire>("lock.acquire job ann PX 1000").unwrap();
        assert_eq!(server.call::<Exec>(&format!("lock.exec job {} SET k v", TOKEN - 1)), Err(Error::Fenced));
        server.advance_ms(999);
        assert_eq!(server.call::<Exec>(&line), Ok(Reply::Relayed));
        server.advance_ms(1);
        assert_eq!(server.call::<Exec>(&line), Err(Error::Fenced));
        assert_eq!(server.executed, [["SET", "k", "v"].map(|word| word.as_bytes().to_vec())]);
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        let mut server = FakeServer::new();
        server.put_string("text", "v");
        for (line, error) in [
            ("job 1", Error::WrongArity("lock.exec")),
            ("job x PING", Error::NotAnInteger),
            ("text 1 PING", Error::WrongType),
        ] {
            assert_eq!(server.call::<Exec>(&format!("lock.exec {line}")), Err(error), "{line}");
        }
    }
}
