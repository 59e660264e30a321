//! CACHE.FAIL

use crate::args::{Arg, Args, once};
use crate::cache::lease::Token;
use crate::cache::{single_flight, waiters};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Fail;

/// How long nobody tries again after a failure with a message, in milliseconds.
const RETRY_MS: i64 = 1000;
const RETRY_MAX_MS: i64 = 86_400_000;
const MESSAGE_MAX: usize = 1024;

#[derive(Debug)]
pub struct Request<'a> {
    key: Arg<'a>,
    token: Arg<'a>,
    message: Option<Arg<'a>>,
    retry_ms: Option<i64>,
}

impl Command for Fail {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.fail",
        family: Family::Cache,
        summary: "Gives up a load that the caller was elected to do.",
        complexity: "O(1); with MSG O(N) where N is the number of clients that wait.",
        since: "0.1.0",
        arity: -3,
        flags: &[Flag::Write],
        keys: Keys::First,
        access: Access::Overwrite,
        tips: &[],
        args: &[
            ArgSpec::key(),
            ArgSpec::string("token"),
            ArgSpec::string("text").token("MSG").optional(),
            ArgSpec::integer("milliseconds").token("RETRY").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (key, token) = (args.required()?, args.required()?);
        let (mut message, mut retry) = (None, None);
        while let Some(word) = args.take() {
            if word.is("MSG") {
                once(&mut message, args.value()?)?;
            } else if word.is("RETRY") {
                once(&mut retry, args.value()?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        let retry_ms = retry.map(|arg| arg.int_within("RETRY", 0, RETRY_MAX_MS)).transpose()?;
        if message.is_some_and(|message| message.bytes.len() > MESSAGE_MAX) {
            return Err(Error::MessageLength);
        }
        Ok(Request { key, token, message, retry_ms })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { key, token, message, retry_ms } = request;
        let db = server.db();
        single_flight::end_what_ran_out(server, db, key.bytes);
        let cache = &mut server.state().cache;
        let Some(load) = Token::parse(token.bytes).and_then(|token| cache.leases.take(db, key.bytes, token)) else {
            return Ok(Reply::Int(0));
        };
        if load.revoked.is_some() {
            waiters::settle(server, key);
            return Ok(Reply::Int(0));
        }
        cache.count(key.bytes, 1, |counters| &mut counters.load_failures);
        match message {
            Some(message) => waiters::failed(server, key, message.bytes, retry_ms.unwrap_or(RETRY_MS)),
            None => waiters::given_up(server, key, retry_ms.unwrap_or(0)),
        }
        Ok(Reply::Int(1))
    }
}
