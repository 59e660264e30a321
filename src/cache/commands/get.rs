//! CACHE.GET

use crate::args::{Arg, Args};
use crate::cache::governed;
use crate::cache::read::{Cached, count_read, look};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Server, StringValue};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Get;

/// The value of a string key; `None` if it is missing, invalidated or stale.
#[inline(always)]
pub(super) fn read<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Option<StringValue>, Error> {
    let cached = look(server, key)?;
    count_read(server, key);
    Ok(match cached {
        Cached::Fresh(value) => {
            governed::hit(server, key);
            Some(value)
        }
        Cached::Stale(_) | Cached::Missing | Cached::Deleted | Cached::Pending => None,
    })
}

#[inline(always)]
pub(super) fn count_answer<S: Server>(server: &mut S, key: Arg<'_>, found: bool) {
    server.state().cache.count(key.bytes, 1, |counters| if found { &mut counters.hits } else { &mut counters.misses });
}

impl Command for Get {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.get",
        family: Family::Cache,
        summary: "Returns the string value of a key, unless it was invalidated or is stale.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Read,
        tips: &[],
        args: &[ArgSpec::key()],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        let key = args.required()?;
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(key) }
    }

    fn run<'s, S: Server>(key: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let value = read(server, key)?;
        count_answer(server, key, value.is_some());
        Ok(match value {
            Some(value) => Reply::Bytes(server.bytes(value)),
            None => Reply::Nil,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    fn counted(server: &FakeServer) -> (u64, u64) {
        let counters = server.state.cache.counters;
        (counters.hits, counters.misses)
    }

    #[test]
    fn reads_any_string_and_counts() {
        let mut server = FakeServer::new();
        server.put_string("plain", "v");
        server.call::<Set>("CACHE.SET k w PX 10").unwrap();
        server.take_replicated();
        assert_eq!(server.call::<Get>("CACHE.GET plain"), Ok(Reply::Bytes(b"v")));
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Bytes(b"w")));
        server.advance_ms(10);
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Nil));
        assert_eq!(counted(&server), (2, 1));
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn another_type_is_an_error_and_neither_hit_nor_miss() {
        let mut server = FakeServer::new();
        server.put_other("list");
        assert_eq!(server.call::<Get>("CACHE.GET list"), Err(Error::WrongType));
        assert_eq!(counted(&server), (0, 0));
        assert_eq!(server.call::<Get>("CACHE.GET a b"), Err(Error::WrongArity("cache.get")));
        assert_eq!(server.call::<Get>("CACHE.GET"), Err(Error::WrongArity("cache.get")));
    }

    #[test]
    fn an_invalidated_value_is_missing_until_a_plain_write() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v TAGS 1 t").unwrap();
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"t", now);
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Nil));
        server.put_string("k", "new");
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Bytes(b"new")));
        assert_eq!(server.state.cache.tags(0, b"k").count(), 1, "a plain write keeps the tags");
    }
}
