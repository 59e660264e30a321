//! CACHE.UNTAG

use smallvec::SmallVec;

use super::tag::is_there;
use crate::args::{Arg, Args};
use crate::cache::reclaim;
use crate::cache::retirement::Retired;
use crate::cache::write_options::checked_tag;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Untag;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    /// Empty: all.
    tags: SmallVec<[&'a [u8]; 8]>,
}

impl Command for Untag {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.untag",
        family: Family::Cache,
        summary: "Removes tags from a key, or all of them.",
        complexity: "O(N) where N is the number of tags.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[ArgSpec::key(), ArgSpec::string("tag").optional().multiple()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let key = args.required()?;
        let tags = args.rest().map(|tag| checked_tag(tag).map(|tag| tag.bytes)).collect::<Result<_, _>>()?;
        Ok(Request { key, tags })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, tags } = request;
        if !is_there(server, key) {
            return Ok(Reply::Int(0));
        }
        let db = server.db();
        // A tag that is still to make the key stale cannot be taken from it before it has.
        if let Some(Retired { number, stale_since: Some(at) }) = server.state().cache.retired(db, key.bytes) {
            reclaim::make_stale_later(server, db, number, &[key.bytes], at);
        }
        let named = (!tags.is_empty()).then_some(&*tags);
        let removed = server.state().cache.remove_tags(db, key.bytes, named);
        if removed > 0 {
            server.replicate_verbatim();
        }
        Ok(Reply::count(removed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    #[test]
    fn removes_what_is_named_or_everything() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v TAGS 4 a b c d").unwrap();
        server.take_replicated();
        assert_eq!(server.call::<Untag>("CACHE.UNTAG k b b x"), Ok(Reply::Int(1)));
        assert_eq!(server.state.cache.tags(0, b"k").collect::<Vec<_>>(), [b"a", b"c", b"d"]);
        assert_eq!(server.call::<Untag>("CACHE.UNTAG k x"), Ok(Reply::Int(0)));
        assert_eq!(server.call::<Untag>("CACHE.UNTAG k"), Ok(Reply::Int(3)));
        assert_eq!(server.call::<Untag>("CACHE.UNTAG k"), Ok(Reply::Int(0)));
        assert_eq!(server.call::<Untag>("CACHE.UNTAG none"), Ok(Reply::Int(0)));
        assert_eq!(server.take_replicated(), ["CACHE.UNTAG k b b x", "CACHE.UNTAG k"]);
        assert_eq!(server.call::<Untag>(&format!("CACHE.UNTAG k {}", "x".repeat(513))), Err(Error::TagLength));
    }
}
