//! CACHE.INVALIDATE

use smallvec::SmallVec;

use crate::args::Args;
use crate::cache::invalidate;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Invalidate;

pub(super) type Names<'a> = SmallVec<[&'a [u8]; 16]>;

/// Every argument is a key.
pub(super) fn parse_names<'a>(args: &mut Args<'a>) -> Result<Names<'a>, Error> {
    let first = args.required()?;
    Ok(std::iter::once(first).chain(args.rest()).map(|key| key.bytes).collect())
}

impl Command for Invalidate {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.invalidate",
        family: Family::Cache,
        summary: "Removes keys and ends their leases.",
        complexity: "O(N) where N is the number of keys.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write],
        keys: Keys::All,
        access: Access::Delete,
        tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
        args: &[ArgSpec::key().multiple()],
    };
    type Request<'a> = Names<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Names<'a>, Error> {
        parse_names(args)
    }

    fn run<'s, S: Server>(keys: Names<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        Ok(Reply::count(invalidate::keys(server, &keys)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    #[test]
    fn removes_keys_of_any_type_and_counts_each_once() {
        let mut server = FakeServer::new();
        server.put_other("list");
        server.call::<Set>("CACHE.SET k v TAGS 1 t").unwrap();
        server.take_replicated();
        assert_eq!(server.call::<Invalidate>("CACHE.INVALIDATE k none list k"), Ok(Reply::Int(2)));
        assert_eq!(server.take_replicated(), ["UNLINK k list"]);
        assert!(server.keys.is_empty() && server.state.cache.tagged_keys() == 0);
        assert_eq!(server.call::<Invalidate>("CACHE.INVALIDATE k"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.call::<Invalidate>("CACHE.INVALIDATE"), Err(Error::WrongArity("cache.invalidate")));
    }

    #[test]
    fn what_a_tag_invalidated_before_is_removed_but_not_counted_again() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET old v TAGS 1 t").unwrap();
        server.put_string("k", "v");
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"t", now);
        assert_eq!(server.call::<Invalidate>("CACHE.INVALIDATE old k"), Ok(Reply::Int(1)));
        assert!(server.keys.is_empty() && !server.state.cache.has_retired());
    }

    #[test]
    fn many_keys_go_in_batches() {
        let mut server = FakeServer::new();
        let names: String = (0..1100).map(|i| format!(" k{i}")).collect();
        for name in names.split_whitespace() {
            server.put_string(name, "v");
        }
        assert_eq!(server.call::<Invalidate>(&format!("CACHE.INVALIDATE{names}")), Ok(Reply::Int(1100)));
        assert_eq!(server.take_replicated().len(), 3);
    }
}
