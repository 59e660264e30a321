//! CACHE.TAGKEYS

use crate::args::{Arg, Args, once};
use crate::cache::write_options::checked_tag;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct TagKeys;

/// As in SCAN.
const DEFAULT_COUNT: i64 = 10;

#[derive(Debug)]
pub struct Request<'a> {
    tag: Arg<'a>,
    cursor: u64,
    count: usize,
}

impl Command for TagKeys {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.tagkeys",
        family: Family::Cache,
        summary: "Iterates over the keys that carry a tag.",
        complexity: "O(COUNT) for each call.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::ReadOnly],
        keys: Keys::None,
        access: Access::None,
        tips: &["nondeterministic_output", "request_policy:special", "response_policy:special"],
        args: &[
            ArgSpec::string("tag"),
            ArgSpec::integer("cursor").token("CURSOR").optional(),
            ArgSpec::integer("count").token("COUNT").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let tag = checked_tag(args.required()?)?;
        let (mut cursor, mut count) = (None, None);
        while let Some(word) = args.take() {
            if word.is("CURSOR") {
                once(&mut cursor, args.value()?)?;
            } else if word.is("COUNT") {
                once(&mut count, args.value()?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        let cursor = cursor
            .map_or(Ok(0), |arg| arg.int().ok().and_then(|c| u64::try_from(c).ok()).ok_or(Error::InvalidCursor))?;
        let count = count.map_or(Ok(DEFAULT_COUNT), |arg: Arg<'_>| arg.int_within("COUNT", 1, i64::MAX))?;
        Ok(Request { tag, cursor, count: usize::try_from(count).unwrap_or(usize::MAX) })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { tag, cursor, count } = request;
        if !server.permits(tag.bytes, Permission::Read) {
            return Err(Error::NoPermission);
        }
        let db = server.db();
        let (next, mut keys) = server.state().cache.tag_keys(db, tag.bytes, cursor, count);
        // Keys that have expired but were not noticed yet. To look is to remove them, so this works on copies.
        keys.retain(|key| server.exists(key));
        let keys = keys.into_iter().map(|key| Reply::OwnedBytes(key.into_vec())).collect();
        Ok(Reply::Array(vec![Reply::OwnedBytes(next.to_string().into_bytes()), Reply::Array(keys)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    /// The cursor and the keys.
    fn page(server: &mut FakeServer, line: &str) -> (String, Vec<String>) {
        let text = |reply: Reply<'_>| match reply {
            Reply::OwnedBytes(bytes) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        };
        let Ok(Reply::Array(parts)) = server.call::<TagKeys>(&format!("CACHE.TAGKEYS {line}")) else { panic!() };
        let [cursor, Reply::Array(keys)] = <[Reply<'_>; 2]>::try_from(parts).unwrap() else { panic!() };
        (text(cursor), keys.into_iter().map(text).collect())
    }

    #[test]
    fn walks_over_all_keys_of_the_tag() {
        let mut server = FakeServer::new();
        for i in 0..25 {
            server.call::<Set>(&format!("CACHE.SET k{i} v TAGS 1 t")).unwrap();
        }
        let (mut cursor, mut seen, mut calls) = ("0".to_owned(), Vec::new(), 0);
        loop {
            let (next, keys) = page(&mut server, &format!("t CURSOR {cursor}"));
            seen.extend(keys);
            calls += 1;
            if next == "0" {
                break;
            }
            cursor = next;
        }
        seen.sort();
        let mut all: Vec<String> = (0..25).map(|i| format!("k{i}")).collect();
        all.sort();
        assert_eq!((seen, calls), (all, 3));
        assert_eq!(page(&mut server, "t COUNT 1000").1.len(), 25);
        assert_eq!(page(&mut server, "unknown"), ("0".to_owned(), vec![]));
    }

    #[test]
    fn leaves_out_what_has_expired_or_was_invalidated_by_another_tag() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET a v PX 10 TAGS 1 t").unwrap();
        server.call::<Set>("CACHE.SET b v TAGS 2 t u").unwrap();
        server.call::<Set>("CACHE.SET c v TAGS 1 t").unwrap();
        server.advance_ms(10);
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"u", now);
        assert_eq!(page(&mut server, "t"), ("0".to_owned(), vec!["c".to_owned()]));
    }

    #[test]
    fn needs_the_right_to_read_the_tag_and_proper_options() {
        let mut server = FakeServer::new();
        server.denied.push(b"t".to_vec());
        assert_eq!(server.call::<TagKeys>("CACHE.TAGKEYS t"), Err(Error::NoPermission));
        for (line, error) in [
            ("t CURSOR x", Error::InvalidCursor),
            ("t CURSOR -1", Error::InvalidCursor),
            ("t COUNT 0", Error::CountRange("COUNT", 1, i64::MAX)),
            ("t COUNT x", Error::NotAnInteger),
            ("t COUNT 1 COUNT 1", Error::Syntax),
            ("t MATCH x", Error::Syntax),
            ("t CURSOR", Error::Syntax),
        ] {
            assert_eq!(server.call::<TagKeys>(&format!("CACHE.TAGKEYS {line}")), Err(error), "{line}");
        }
    }
}
