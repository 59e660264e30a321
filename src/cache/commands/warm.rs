//! CACHE.WARM

use super::invalidate::{Names, parse_names};
use super::loads::checked_loader;
use crate::args::{Arg, Args};
use crate::cache::loaders;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Warm;

#[derive(Debug)]
pub struct Request<'a> {
    loader: Arg<'a>,
    keys: Names<'a>,
}

impl Command for Warm {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.warm",
        family: Family::Cache,
        summary: "Queues keys that are missing or stale for a loader.",
        complexity: "O(M*log(N)) where M is the number of keys and N that of the keys that are queued for loaders.",
        since: "0.1.0",
        arity: -3,
        // It makes loaders work, which only a primary has.
        flags: &[Flag::Write],
        keys: Keys::AllButFirst,
        access: Access::Inspect,
        tips: &["nondeterministic_output"],
        args: &[ArgSpec::string("name"), ArgSpec::key().multiple()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        Ok(Request { loader: checked_loader(args.required()?)?, keys: parse_names(args)? })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { loader, keys } = request;
        let queued = loaders::warm(server, loader.bytes, &keys)?;
        loaders::serve(server, loader.bytes);
        Ok(Reply::count(queued))
    }
}
