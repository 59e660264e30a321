//! CACHE.LOADS

use super::fetch::{LEASE_SPEC, lease_ms};
use crate::args::{Arg, Args, once};
use crate::cache::loaders::{self, Wish};
use crate::cache::policies::MAX_NAME_LENGTH;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Loads;

/// How many jobs one call can ask for.
const COUNT_MAX: i64 = 1_000_000;

/// The name of a loader: 1 to 512 bytes.
pub(in crate::cache) fn checked_loader(name: Arg<'_>) -> Result<Arg<'_>, Error> {
    if (1..=MAX_NAME_LENGTH).contains(&name.bytes.len()) { Ok(name) } else { Err(Error::LoaderLength) }
}

#[derive(Debug)]
pub struct Request<'a> {
    loader: Arg<'a>,
    count: usize,
    block_ms: Option<i64>,
    lease_ms: Option<i64>,
}

impl Command for Loads {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.loads",
        family: Family::Cache,
        summary: "Hands keys that are to be loaded to a loader, each with a lease.",
        complexity: "O(M*log(N)) where M is the number of keys handed out and N that of the keys that are queued for loaders.",
        since: "0.1.0",
        arity: -2,
        // It gives out leases, which only a primary does.
        flags: &[Flag::Write, Flag::Blocking],
        keys: Keys::None,
        access: Access::None,
        tips: &["nondeterministic_output", "request_policy:special", "response_policy:special"],
        args: &[
            ArgSpec::string("name"),
            ArgSpec::integer("count").token("COUNT").optional(),
            ArgSpec::integer("milliseconds").token("BLOCK").optional(),
            LEASE_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let loader = checked_loader(args.required()?)?;
        let (mut count, mut block, mut lease) = (None, None, None);
        while let Some(word) = args.take() {
            if word.is("COUNT") {
                once(&mut count, args.value()?)?;
            } else if word.is("BLOCK") {
                once(&mut block, args.value()?)?;
            } else if word.is("LEASE") {
                once(&mut lease, args.value()?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        let count = count.map_or(Ok(1), |arg| arg.int_within("COUNT", 1, COUNT_MAX))?;
        Ok(Request {
            loader,
            count: usize::try_from(count).map_err(|_| Error::Internal)?,
            block_ms: block.map(|arg| arg.int_within("BLOCK", 0, i64::MAX)).transpose()?,
            lease_ms: lease.map(|arg| arg.int()).transpose()?,
        })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { loader, count, block_ms, lease_ms: wanted } = request;
        let lease_ms = lease_ms(wanted, &server.state().config)?;
        let wish = Wish { count, lease_ms, user: server.user() };
        // Those who wait came first.
        loaders::serve(server, loader.bytes);
        let handed = loaders::hand_out(server, loader.bytes, &wish);
        match block_ms {
            Some(block_ms) if handed.is_empty() => {
                Ok(loaders::wait(server, loader.bytes, wish, block_ms)?.unwrap_or(Reply::Array(Vec::new())))
            }
            _ => Ok(loaders::reply(&handed)),
        }
    }
}
