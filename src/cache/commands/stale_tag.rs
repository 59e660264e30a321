//! CACHE.STALETAG

use super::invalidate_tag::{Tags, parse_tags};
use crate::args::Args;
use crate::cache::staleness;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct StaleTag;

impl Command for StaleTag {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.staletag",
        family: Family::Cache,
        summary: "Makes every value stale that carries any of the tags. Those without a grace are removed.",
        complexity: "O(N) where N is the number of keys, at most keyward.invalidate-sync-keys; the rest is dealt with in the background.",
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
        Ok(Reply::count(staleness::tags(server, &tags)))
    }
}
