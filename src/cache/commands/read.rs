//! CACHE.READ

use super::fetch::{STALE_SPEC, parse_stale_never};
use super::loads::checked_loader;
use crate::args::{Arg, Args, once};
use crate::cache::single_flight::{self, By, Outcome, Wish};
use crate::cache::{governed, loaders, waiters};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Read;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    loader: Arg<'a>,
    wait_ms: Option<i64>,
    stale_never: bool,
}

impl Command for Read {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.read",
        family: Family::Cache,
        summary: "Returns a cached value; a missing or stale one is loaded by a loader, never by the caller.",
        complexity: "O(log(N)) where N is the number of keys that are queued for loaders; O(1) if the value is fresh.",
        since: "0.1.0",
        arity: -4,
        flags: &[Flag::ReadOnly, Flag::Blocking],
        keys: Keys::First,
        access: Access::Read,
        tips: &["nondeterministic_output"],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("name").token("LOADER"),
            ArgSpec::integer("milliseconds").token("WAIT").optional(),
            STALE_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let key = args.required()?;
        let (mut loader, mut wait, mut stale) = (None, None, None);
        while let Some(word) = args.take() {
            if word.is("LOADER") {
                once(&mut loader, args.value()?)?;
            } else if word.is("WAIT") {
                once(&mut wait, args.value()?)?;
            } else if word.is("STALE") {
                once(&mut stale, parse_stale_never(args)?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        Ok(Request {
            key,
            loader: checked_loader(loader.ok_or(Error::Syntax)?)?,
            wait_ms: wait.map(|arg| arg.int_within("WAIT", 0, i64::MAX)).transpose()?,
            stale_never: stale.unwrap_or(false),
        })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, loader, wait_ms, stale_never } = request;
        let wish = Wish { by: By::Loader(loader.bytes), stale_ok: !stale_never, beta: 0.0 };
        let found = single_flight::find(server, key, wish)?;
        let outcome = single_flight::decide(server, key, found, wish)?;
        if outcome.is_hit() {
            governed::hit(server, key);
        }
        if !matches!(outcome, Outcome::Hit(_)) {
            loaders::serve(server, loader.bytes);
        }
        if let (Outcome::Busy, Some(wait_ms)) = (&outcome, wait_ms)
            && let Some(later) = waiters::wait(server, key, wish, wait_ms)
        {
            return Ok(later);
        }
        Ok(outcome.into_reply(server))
    }
}
