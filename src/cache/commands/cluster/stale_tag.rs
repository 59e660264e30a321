//! CACHE.CLUSTER STALETAG

use super::everywhere;
use crate::args::Args;
use crate::cache::commands::invalidate_tag::{Tags, parse_tags};
use crate::cache::fan_out::Task;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct StaleTag;

impl Command for StaleTag {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.cluster|staletag",
        family: Family::Cache,
        summary: "Makes every value of the cluster stale that carries any of the tags. Those without a grace are removed.",
        complexity: "As CACHE.STALETAG on each shard, and one message to each and back.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write, Flag::Admin, Flag::Blocking],
        keys: Keys::None,
        access: Access::None,
        tips: &[],
        args: &[ArgSpec::string("tag").multiple()],
    };
    type Request<'a> = Tags<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Tags<'a>, Error> {
        args.skip_subcommand();
        parse_tags(args)
    }

    fn run<'s, S: Server>(tags: Tags<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        if !tags.iter().all(|tag| server.permits(tag.bytes, Permission::Delete)) {
            return Err(Error::NoPermission);
        }
        let task = Task::StaleTags(tags.iter().map(|tag| tag.bytes).collect());
        everywhere(server, task, Self::SPEC.name)
    }
}
