//! CACHE.CLUSTER INVALIDATETAG

use super::everywhere;
use crate::args::Args;
use crate::cache::commands::invalidate_tag::{Tags, parse_tags};
use crate::cache::fan_out::Task;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct InvalidateTag;

impl Command for InvalidateTag {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.cluster|invalidatetag",
        family: Family::Cache,
        summary: "Removes every key of the cluster that carries any of the tags.",
        complexity: "As CACHE.INVALIDATETAG on each shard, and one message to each and back.",
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
        let task = Task::InvalidateTags(tags.iter().map(|tag| tag.bytes).collect());
        everywhere(server, task, Self::SPEC.name)
    }
}
