//! CACHE.ROLLBACK

use crate::args::{Arg, Args};
use crate::cache::write_through;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Rollback;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    token: Arg<'a>,
}

impl Command for Rollback {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.rollback",
        family: Family::Cache,
        summary: "Says that a database write came to nothing: the old value stands again.",
        complexity: "O(N) where N is the number of clients that wait.",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::Write],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::string("token")],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, token) = (args.required()?, args.required()?);
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(Request { key, token }) }
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, token } = request;
        Ok(Reply::yes_no(write_through::roll_back(server, key, token)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::commit::tests::{intent, value};
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    #[test]
    fn the_old_value_stands_again_with_all_it_had() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k old PX 500 GRACE 500 TAGS 1 t VERSION 3").unwrap();
        let token = intent(&mut server, "k");
        assert_eq!(server.call::<Fetch>("CACHE.FETCH k STALE NEVER WAIT 0"), Ok(Reply::Later));
        server.take_replicated();
        assert_eq!(server.call::<Rollback>(&format!("CACHE.ROLLBACK k {token}")), Ok(Reply::Int(1)));
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY NOINTENT k"]);
        assert_eq!(value(&mut server, "k").as_deref(), Some("old"));
        assert_eq!(server.state.cache.tags(0, b"k").count(), 1);
        assert!(matches!(&server.answers[..], [(_, Reply::Array(told))] if told[0] == Reply::Word("HIT")));
    }

    #[test]
    fn an_unknown_token_changes_nothing() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k old").unwrap();
        let token = intent(&mut server, "other");
        server.take_replicated();
        for token in ["x", "0000000000000000-99", &token] {
            assert_eq!(server.call::<Rollback>(&format!("CACHE.ROLLBACK k {token}")), Ok(Reply::Int(0)), "{token}");
        }
        assert_eq!(value(&mut server, "k").as_deref(), Some("old"));
        assert!(server.take_replicated().is_empty() && server.state.cache.intents() == 1);
        assert_eq!(server.call::<Rollback>("CACHE.ROLLBACK k"), Err(Error::WrongArity("cache.rollback")));
        assert_eq!(server.call::<Rollback>("CACHE.ROLLBACK k a b"), Err(Error::WrongArity("cache.rollback")));
    }

    #[test]
    fn a_value_that_was_put_there_meanwhile_stays() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k old").unwrap();
        let token = intent(&mut server, "k");
        server.put_string("k", "plain");
        assert_eq!(server.call::<Rollback>(&format!("CACHE.ROLLBACK k {token}")), Ok(Reply::Int(1)));
        assert_eq!(value(&mut server, "k").as_deref(), Some("plain"));
    }
}
