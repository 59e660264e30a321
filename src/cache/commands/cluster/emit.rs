//! CACHE.CLUSTER EMIT

use super::everywhere;
use crate::args::Args;
use crate::cache::commands::emit::Request;
use crate::cache::fan_out::Task;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Emit;

impl Command for Emit {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.cluster|emit",
        family: Family::Cache,
        summary: "Removes the keys of the cluster, and the keys of the tags, that the rule of an event makes from its data.",
        complexity: "As CACHE.EMIT, on each shard for the keys it has, and one message to each and back.",
        since: "0.1.0",
        arity: 4,
        flags: &[Flag::Write, Flag::Admin, Flag::Blocking],
        keys: Keys::None,
        access: Access::None,
        tips: &[],
        args: &[ArgSpec::string("event"), ArgSpec::string("json")],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        args.skip_subcommand();
        Request::parse(args)
    }

    /// The keys and tags are made here, by the rule that this node has.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let names = request.names(server)?;
        let keys = names.keys.iter().map(|key| &**key).collect();
        let tags = names.tags.iter().map(|tag| &**tag).collect();
        let reply = everywhere(server, Task::Event { event: request.event.bytes, keys, tags }, Self::SPEC.name)?;
        request.count(server);
        Ok(reply)
    }
}
