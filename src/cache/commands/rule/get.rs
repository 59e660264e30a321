//! CACHE.RULE GET

use super::{EVENT, only_argument};
use crate::args::{Arg, Args};
use crate::cache::rules::Rule;
use crate::cache::template::Template;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Get;

impl Command for Get {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.rule|get",
        family: Family::Cache,
        summary: "Returns the templates of an event.",
        complexity: "O(N) where N is the number of templates.",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::None,
        access: Access::None,
        tips: &[],
        args: &[EVENT],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        only_argument(args)
    }

    fn run<'s, S: Server>(event: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        Ok(server.state().cache.rules.get(event.bytes).map_or(Reply::Nil, |rule| describe(rule)))
    }
}

fn describe(rule: &Rule) -> Reply<'_> {
    let texts = |templates: &[Template]| {
        Reply::Array(templates.iter().map(|template| Reply::OwnedBytes(template.text().to_vec())).collect())
    };
    Reply::Map(vec![("keys", texts(&rule.keys)), ("tags", texts(&rule.tags))])
}
