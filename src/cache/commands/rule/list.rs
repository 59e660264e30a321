//! CACHE.RULE LIST

use crate::args::Args;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct List;

impl Command for List {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.rule|list",
        family: Family::Cache,
        summary: "Returns the events that have a rule.",
        complexity: "O(N) where N is the number of rules.",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly],
        keys: Keys::None,
        access: Access::None,
        tips: &[],
        args: &[],
    };
    type Request<'a> = ();

    fn parse(args: &mut Args<'_>) -> Result<(), Error> {
        args.skip_subcommand();
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(()) }
    }

    fn run<'s, S: Server>((): (), server: &'s mut S) -> Result<Reply<'s>, Error> {
        let rules = &server.state().cache.rules;
        Ok(Reply::Array(rules.iter().map(|rule| Reply::Bytes(&rule.event)).collect()))
    }
}
