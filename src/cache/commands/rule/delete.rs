//! CACHE.RULE DEL

use super::{EVENT, only_argument};
use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Delete;

impl Command for Delete {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.rule|del",
        family: Family::Cache,
        summary: "Removes the rule of an event.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::Write, Flag::Admin],
        keys: Keys::None,
        access: Access::None,
        tips: &["request_policy:all_shards", "response_policy:all_succeeded"],
        args: &[EVENT],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        only_argument(args)
    }

    fn run<'s, S: Server>(event: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let removed = server.state().cache.rules.remove(event.bytes);
        if removed {
            server.replicate_verbatim();
        }
        Ok(Reply::yes_no(removed))
    }
}
