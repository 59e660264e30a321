//! CACHE.TAGINFO

use crate::args::{Arg, Args};
use crate::cache::write_options::checked_tag;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct TagInfo;

impl Command for TagInfo {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.taginfo",
        family: Family::Cache,
        summary: "Returns what is known of a tag.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::None,
        access: Access::None,
        tips: &["nondeterministic_output", "request_policy:special", "response_policy:special"],
        args: &[ArgSpec::string("tag")],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        let tag = args.required()?;
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { checked_tag(tag) }
    }

    /// `bytes` is the module's memory for the tag; the values are not counted. An invalidation of a tag that no key
    /// carried changed nothing and is not counted either.
    fn run<'s, S: Server>(tag: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        if !server.permits(tag.bytes, Permission::Read) {
            return Err(Error::NoPermission);
        }
        let db = server.db();
        let info = server.state().cache.tag_info(db, tag.bytes);
        let invalidations = i64::try_from(info.invalidations.count).unwrap_or(i64::MAX);
        Ok(Reply::Map(vec![
            ("keys", Reply::count(info.keys)),
            ("bytes", Reply::count(info.bytes)),
            ("invalidations", Reply::Int(invalidations)),
            ("last_invalidated_ms", Reply::Int(info.invalidations.last.0)),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::invalidate_tag::InvalidateTag;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    fn info(server: &mut FakeServer, tag: &str) -> Vec<i64> {
        let Ok(Reply::Map(fields)) = server.call::<TagInfo>(&format!("CACHE.TAGINFO {tag}")) else { panic!() };
        let names: Vec<_> = fields.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["keys", "bytes", "invalidations", "last_invalidated_ms"]);
        fields.iter().map(|(_, reply)| if let Reply::Int(n) = reply { *n } else { panic!() }).collect()
    }

    #[test]
    fn tells_keys_memory_and_invalidations() {
        let mut server = FakeServer::new();
        assert_eq!(info(&mut server, "t"), [0, 0, 0, 0]);
        server.call::<Set>("CACHE.SET a v TAGS 1 t").unwrap();
        server.call::<Set>("CACHE.SET b v TAGS 1 t").unwrap();
        let before = info(&mut server, "t");
        assert!(before[0] == 2 && before[1] > 0 && before[2..] == [0, 0], "{before:?}");
        server.call::<InvalidateTag>("CACHE.INVALIDATETAG t").unwrap();
        let (after, now) = (info(&mut server, "t"), server.now.to_ms().0);
        assert!(after[0] == 0 && after[2..] == [1, now], "{after:?}");
        server.call::<InvalidateTag>("CACHE.INVALIDATETAG t").unwrap();
        assert_eq!(info(&mut server, "t"), after);
    }

    #[test]
    fn needs_the_right_to_read_the_tag() {
        let mut server = FakeServer::new();
        server.denied.push(b"t".to_vec());
        assert_eq!(server.call::<TagInfo>("CACHE.TAGINFO t"), Err(Error::NoPermission));
        assert_eq!(server.call::<TagInfo>("CACHE.TAGINFO t u"), Err(Error::WrongArity("cache.taginfo")));
    }
}
