//! CACHE.INVALIDATETAG

use smallvec::SmallVec;

use crate::args::{Arg, Args};
use crate::cache::invalidate;
use crate::cache::write_options::checked_tag;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct InvalidateTag;

pub(super) type Tags<'a> = SmallVec<[Arg<'a>; 8]>;

/// Every argument is a tag.
pub(super) fn parse_tags<'a>(args: &mut Args<'a>) -> Result<Tags<'a>, Error> {
    let first = args.required()?;
    std::iter::once(first).chain(args.rest()).map(checked_tag).collect()
}

impl Command for InvalidateTag {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.invalidatetag",
        family: Family::Cache,
        summary: "Removes every key that carries any of the tags.",
        complexity: "O(N) where N is the number of keys, at most keyward.invalidate-sync-keys; the rest is removed in the background.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write],
        keys: Keys::None,
        access: Access::None,
        tips: &["request_policy:all_shards", "response_policy:agg_sum"],
        args: &[ArgSpec::string("tag").multiple()],
    };
    type Request<'a> = Tags<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Tags<'a>, Error> {
        parse_tags(args)
    }

    fn run<'s, S: Server>(tags: Tags<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        if !tags.iter().all(|tag| server.permits(tag.bytes, Permission::Delete)) {
            return Err(Error::NoPermission);
        }
        Ok(Reply::count(invalidate::tags(server, &tags)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::get::Get;
    use crate::cache::commands::set::Set;
    use crate::cache::reclaim;
    use crate::fake_server::FakeServer;

    fn fill(server: &mut FakeServer, range: std::ops::Range<u32>, tags: &str) {
        for i in range {
            server.call::<Set>(&format!("CACHE.SET k{i} v TAGS {tags}")).unwrap();
        }
        server.take_replicated();
    }

    #[test]
    fn removes_every_key_once_and_replicates_the_retirement_first() {
        let mut server = FakeServer::new();
        fill(&mut server, 0..2, "2 a b");
        fill(&mut server, 2..3, "1 b");
        fill(&mut server, 3..4, "1 c");
        let now = server.now.to_ms().0;
        assert_eq!(server.call::<InvalidateTag>("CACHE.INVALIDATETAG a b unknown a"), Ok(Reply::Int(3)));
        let sent = server.take_replicated();
        assert_eq!(sent.first(), Some(&format!("KEYWARD.APPLY RETIRE {now} a b")));
        assert_eq!(sent[1..].iter().map(|line| line.split(' ').count() - 1).sum::<usize>(), 3);
        assert_eq!(server.keys.len(), 1);
        assert!(!server.state.cache.has_retired());
        assert_eq!(server.state.cache.counters.invalidated_keys, 3);
    }

    #[test]
    fn a_tag_without_keys_changes_and_sends_nothing() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<InvalidateTag>("CACHE.INVALIDATETAG a b"), Ok(Reply::Int(0)));
        assert!(server.take_replicated().is_empty());
        assert_eq!(server.state.cache.counters.invalidations, 0);
    }

    #[test]
    fn a_giant_tag_is_invalid_at_once_and_removed_in_slices() {
        let mut server = FakeServer::new();
        server.state.config.invalidate_sync_keys = 700;
        fill(&mut server, 0..2000, "2 a b");
        assert_eq!(server.call::<InvalidateTag>("CACHE.INVALIDATETAG a"), Ok(Reply::Int(2000)));
        assert_eq!((server.keys.len(), server.state.cache.backlog()), (1300, 1300));
        for i in 0..2000 {
            assert_eq!(server.call::<Get>(&format!("CACHE.GET k{i}")), Ok(Reply::Nil));
        }
        assert_eq!(server.call::<InvalidateTag>("CACHE.INVALIDATETAG a"), Ok(Reply::Int(0)), "no live key carries it");
        let survivor = server.keys.keys().next().unwrap().1.clone();
        server.put_string(std::str::from_utf8(&survivor).unwrap(), "new");
        let mut slices = 0;
        server.db = 5;
        while reclaim::reclaim(&mut server, 100) {
            slices += 1;
        }
        assert_eq!((server.keys.len(), slices), (1, 12));
        assert!(server.keys.contains_key(&(0, survivor)), "a key that was written meanwhile is spared");
        assert_eq!(server.state.cache.counters.invalidated_keys, 1999);
    }

    #[test]
    fn keys_that_an_earlier_invalidation_took_are_not_counted_again() {
        let mut server = FakeServer::new();
        fill(&mut server, 0..10, "2 a b");
        fill(&mut server, 10..15, "1 b");
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"a", now);
        assert_eq!(server.call::<InvalidateTag>("CACHE.INVALIDATETAG b"), Ok(Reply::Int(5)));
        assert!(server.keys.is_empty() && !server.state.cache.has_retired());
    }

    #[test]
    fn one_tag_that_the_user_may_not_delete_stops_everything() {
        let mut server = FakeServer::new();
        fill(&mut server, 0..3, "1 a");
        server.denied.push(b"b".to_vec());
        assert_eq!(server.call::<InvalidateTag>("CACHE.INVALIDATETAG a b"), Err(Error::NoPermission));
        assert!(server.keys.len() == 3 && server.take_replicated().is_empty());
        let long = format!("CACHE.INVALIDATETAG a {}", "x".repeat(513));
        assert_eq!(server.call::<InvalidateTag>(&long), Err(Error::TagLength));
    }

    #[test]
    fn only_the_selected_database_is_touched() {
        let mut server = FakeServer::new();
        fill(&mut server, 0..1, "1 a");
        server.db = 1;
        fill(&mut server, 0..1, "1 a");
        assert_eq!(server.call::<InvalidateTag>("CACHE.INVALIDATETAG a"), Ok(Reply::Int(1)));
        assert!(server.keys.contains_key(&(0, b"k0".to_vec())));
    }
}
