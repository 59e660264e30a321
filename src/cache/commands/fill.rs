//! CACHE.FILL

use std::rc::Rc;

use crate::args::{Arg, Args};
use crate::cache::write_options::{
    EXPIRY_SPEC, GRACE_SPEC, JITTER_SPEC, POLICY_SPEC, TAGS_SPEC, VERSION_SPEC, WriteOptions,
};
use crate::cache::{fill, governed, write};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Fill;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    token: Arg<'a>,
    value: Arg<'a>,
    options: WriteOptions<'a>,
}

impl Command for Fill {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.fill",
        family: Family::Cache,
        summary: "Stores the value that the caller was elected to load, and answers those who wait for it.",
        complexity: "O(N+M) where N is the number of tags and M the number of clients that wait.",
        since: "0.1.0",
        arity: -4,
        flags: &[Flag::Write],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("token"),
            ArgSpec::string("value"),
            EXPIRY_SPEC.optional(),
            JITTER_SPEC.optional(),
            GRACE_SPEC,
            TAGS_SPEC.optional(),
            VERSION_SPEC,
            POLICY_SPEC,
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, token, value) = (args.required()?, args.required()?, args.required()?);
        let options = WriteOptions::parse(args)?;
        if options.condition.is_some() { Err(Error::Syntax) } else { Ok(Request { key, token, value, options }) }
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, token, value, options } = request;
        let (expires, _) = governed::expires(server, key, &options, Self::SPEC.name)?;
        let answer = fill::Answer { status: "HIT", value: Some(Rc::from(value.bytes)) };
        let Some(load) = fill::accept(server, key, token, &options.tags, options.version, &answer)? else {
            return Ok(Reply::Int(0));
        };
        let stored = write::store(server, key, value, expires, &options, fill::took_us(server, &load));
        if let Ok(life) = stored {
            write::replicate(server, key, value, life, &options);
        }
        fill::done(server, key, &answer);
        stored.map(|_| Reply::Int(1))
    }
}
