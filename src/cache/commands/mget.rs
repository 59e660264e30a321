//! CACHE.MGET

use smallvec::SmallVec;

use super::get::{count_answer, read};
use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Server, StringValue};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct MGet;

type KeyList<'a> = SmallVec<[Arg<'a>; 16]>;

impl Command for MGet {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.mget",
        family: Family::Cache,
        summary: "Returns the string values of several keys, unless they were invalidated or are stale.",
        complexity: "O(N) where N is the number of keys.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::All,
        access: Access::Read,
        tips: &["request_policy:multi_shard"],
        args: &[ArgSpec::key().multiple()],
    };
    type Request<'a> = KeyList<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<KeyList<'a>, Error> {
        let first = args.required()?;
        Ok(std::iter::once(first).chain(args.rest()).collect())
    }

    /// One key of another type fails the whole call, unlike MGET: each element is what CACHE.GET would have answered.
    fn run<'s, S: Server>(keys: KeyList<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let mut values: SmallVec<[Option<StringValue>; 16]> = SmallVec::new();
        for &key in &keys {
            values.push(read(server, key)?);
        }
        for (&key, value) in keys.iter().zip(&values) {
            count_answer(server, key, value.is_some());
        }
        let server = &*server;
        let replies =
            values.into_iter().map(|value| value.map_or(Reply::Nil, |value| Reply::Bytes(server.bytes(value))));
        Ok(Reply::Array(replies.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    #[test]
    fn answers_in_the_order_of_the_keys_and_counts_each() {
        let mut server = FakeServer::new();
        server.put_string("a", "1");
        server.call::<Set>("CACHE.SET b 2 TAGS 1 t").unwrap();
        let all = server.call::<MGet>("CACHE.MGET b none a b").unwrap();
        assert_eq!(all, Reply::Array(vec![Reply::Bytes(b"2"), Reply::Nil, Reply::Bytes(b"1"), Reply::Bytes(b"2")]));
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"t", now);
        assert_eq!(server.call::<MGet>("CACHE.MGET b"), Ok(Reply::Array(vec![Reply::Nil])));
        assert_eq!((server.state.cache.counters.hits, server.state.cache.counters.misses), (3, 2));
    }

    #[test]
    fn one_key_of_another_type_fails_the_call() {
        let mut server = FakeServer::new();
        server.put_string("a", "1");
        server.put_other("list");
        assert_eq!(server.call::<MGet>("CACHE.MGET a list"), Err(Error::WrongType));
        assert_eq!(server.state.cache.counters.hits, 0);
        assert_eq!(server.call::<MGet>("CACHE.MGET"), Err(Error::WrongArity("cache.mget")));
    }
}
