//! CACHE.TAGS

use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Tags;

impl Command for Tags {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.tags",
        family: Family::Cache,
        summary: "Returns the tags of a key.",
        complexity: "O(N) where N is the number of tags.",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Inspect,
        tips: &["nondeterministic_output_order"],
        args: &[ArgSpec::key()],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        let key = args.required()?;
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(key) }
    }

    fn run<'s, S: Server>(key: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let db = server.db();
        let there = server.exists(key.bytes);
        let cache = &server.state().cache;
        if !there || cache.is_retired(db, key.bytes) {
            return Ok(Reply::Set(Vec::new()));
        }
        Ok(Reply::Set(cache.tags(db, key.bytes).map(Reply::Bytes).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    #[test]
    fn lists_the_tags_while_the_key_lives() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v PX 10 TAGS 2 b a").unwrap();
        let both = Ok(Reply::Set(vec![Reply::Bytes(b"b"), Reply::Bytes(b"a")]));
        assert_eq!(server.call::<Tags>("CACHE.TAGS k"), both);
        server.db = 1;
        assert_eq!(server.call::<Tags>("CACHE.TAGS k"), Ok(Reply::Set(vec![])), "tags belong to a database");
        server.db = 0;
        server.advance_ms(10);
        assert_eq!(server.call::<Tags>("CACHE.TAGS k"), Ok(Reply::Set(vec![])));
    }

    #[test]
    fn an_invalidated_key_has_none() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v TAGS 2 a b").unwrap();
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"a", now);
        assert_eq!(server.call::<Tags>("CACHE.TAGS k"), Ok(Reply::Set(vec![])));
    }
}
