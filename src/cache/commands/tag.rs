//! CACHE.TAG

use smallvec::SmallVec;

use crate::args::{Arg, Args};
use crate::cache::write_options::{TagList, checked_tag, distinct_tags};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Tag;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    tags: TagList<'a>,
}

/// Is there a key that can gain or lose tags? An invalidated one is missing; but where the primary has changed the tags
/// of a key, it was not invalidated there.
pub(super) fn is_there<S: Server>(server: &mut S, key: Arg<'_>) -> bool {
    let db = server.db();
    server.exists(key.bytes) && (!server.state().cache.is_retired(db, key.bytes) || server.replayed())
}

impl Command for Tag {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.tag",
        family: Family::Cache,
        summary: "Adds tags to an existing key of any type.",
        complexity: "O(N) where N is the number of tags.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write, Flag::DenyOom, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::string("tag").multiple()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, first) = (args.required()?, checked_tag(args.required()?)?);
        let tags = distinct_tags(std::iter::once(first).chain(args.rest())).map_err(|error| match error {
            Error::TagCount => Error::TooManyTags,
            other => other,
        })?;
        Ok(Request { key, tags })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, tags } = request;
        if !is_there(server, key) {
            return Ok(Reply::Int(0));
        }
        let tags: SmallVec<[&[u8]; 8]> = tags.iter().map(|tag| tag.bytes).collect();
        let db = server.db();
        let state = server.state();
        let added = state.cache.add_tags(&state.config, db, key.bytes, &tags)?;
        if added > 0 {
            server.replicate_verbatim();
        }
        Ok(Reply::count(added))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;

    #[test]
    fn adds_to_keys_of_any_type_and_tells_how_many_are_new() {
        let mut server = FakeServer::new();
        server.put_other("list");
        assert_eq!(server.call::<Tag>("CACHE.TAG list a b a"), Ok(Reply::Int(2)));
        assert_eq!(server.call::<Tag>("CACHE.TAG list b c"), Ok(Reply::Int(1)));
        assert_eq!(server.take_replicated(), ["CACHE.TAG list a b a", "CACHE.TAG list b c"]);
        assert_eq!(server.call::<Tag>("CACHE.TAG list c"), Ok(Reply::Int(0)));
        assert_eq!(server.call::<Tag>("CACHE.TAG none a"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.state.cache.tags(0, b"list").collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    }

    #[test]
    fn an_invalidated_key_is_missing() {
        let mut server = FakeServer::new();
        server.put_other("list");
        server.call::<Tag>("CACHE.TAG list a").unwrap();
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"a", now);
        assert_eq!(server.call::<Tag>("CACHE.TAG list b"), Ok(Reply::Int(0)));
        assert!(server.state.cache.is_retired(0, b"list"));
    }

    #[test]
    fn sixty_four_are_the_most() {
        let mut server = FakeServer::new();
        server.put_other("list");
        let numbered = |range: std::ops::Range<u32>| range.map(|i| format!(" t{i}")).collect::<String>();
        assert_eq!(server.call::<Tag>(&format!("CACHE.TAG list{}", numbered(0..63))), Ok(Reply::Int(63)));
        server.take_replicated();
        assert_eq!(server.call::<Tag>("CACHE.TAG list x y"), Err(Error::TooManyTags));
        assert_eq!(server.state.cache.tags(0, b"list").count(), 63, "an error changes nothing");
        assert_eq!(server.call::<Tag>("CACHE.TAG list t0 x"), Ok(Reply::Int(1)));
        assert_eq!(server.call::<Tag>(&format!("CACHE.TAG none{}", numbered(0..65))), Err(Error::TooManyTags));
        let long = "x".repeat(513);
        assert_eq!(server.call::<Tag>(&format!("CACHE.TAG list a {long}")), Err(Error::TagLength));
        assert_eq!(server.call::<Tag>("CACHE.TAG list"), Err(Error::WrongArity("cache.tag")));
    }
}
