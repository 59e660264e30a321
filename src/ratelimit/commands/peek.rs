//! `RATELIMIT.PEEK key <limit> [<limit> ...] [COST n]`

use crate::args::Args;
use crate::commands::Command;
use crate::error::Error;
use crate::ratelimit::decision;
use crate::ratelimit::limit::{Question, Tail};
use crate::ratelimit::limiter::Limiter;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Peek;

impl Command for Peek {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "ratelimit.peek",
        family: Family::RateLimit,
        summary: "Tells how limits stand and whether a request would be admitted, without charging it.",
        complexity: "O(n) with n limits, at most 8; a sliding one up to O(257) when entries have left or a cost above 1 is denied.",
        since: "0.1.0",
        arity: -5,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Read,
        tips: &["nondeterministic_output"],
        args: Question::SPEC,
    };
    type Request<'a> = Question<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Question<'a>, Error> {
        Question::parse(args, Tail::Cost)
    }

    fn run<'s, S: Server>(request: Question<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Question { key, limits, cost, .. } = &request;
        let now = server.now();
        let answer = match server.native::<Limiter>(*key)? {
            Some(limiter) => decision::look(limiter, limits, *cost, now),
            None => decision::look(&Limiter::default(), limits, *cost, now),
        };
        Ok(answer.reply())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::ratelimit::commands::Check;

    fn peek(server: &mut FakeServer, line: &str) -> [i64; 7] {
        match server.call::<Peek>(&format!("RATELIMIT.PEEK {line}")) {
            Ok(Reply::Ints(ints)) => ints[..].try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_limit_that_nobody_used_is_full() {
        let mut server = FakeServer::new();
        assert_eq!(peek(&mut server, "k 5 EX 60"), [1, 5, 5, 0, 0, 0, 0]);
        assert_eq!(peek(&mut server, "k 5 EX 60 COST 6"), [0, 5, 5, -1, 0, 0, 0]);
        assert!(server.keys.is_empty());
    }

    #[test]
    fn tells_whether_the_cost_would_pass_and_how_things_stand() {
        let mut server = FakeServer::new();
        server.call::<Check>("c k 5 EX 60 COST 3").unwrap();
        server.take_replicated();
        assert_eq!(peek(&mut server, "k 5 EX 60 COST 2")[..4], [1, 5, 2, 0]);
        let denied = peek(&mut server, "k 5 EX 60 COST 3");
        assert_eq!(denied[..3], [0, 5, 2]);
        assert_eq!(denied[3], denied[4]);
        assert!(server.take_replicated().is_empty());
        assert_eq!((server.state.ratelimit.allowed, server.state.ratelimit.denied), (1, 0));
    }

    #[test]
    fn a_replica_reads_a_limiter_that_is_due_as_full() {
        let mut server = FakeServer::new();
        server.call::<Check>("c k 5 EX 60 COST 5").unwrap();
        server.replayed = true;
        server.advance_ms(70_000);
        assert_eq!(peek(&mut server, "k 5 EX 60"), [1, 5, 5, 0, 0, 0, 0]);
    }

    #[test]
    fn a_key_of_another_type_is_an_error() {
        let mut server = FakeServer::new();
        server.put_string("s", "v");
        assert_eq!(server.call::<Peek>("p s 5 EX 60"), Err(Error::WrongType));
    }
}
