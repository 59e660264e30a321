//! CACHE.HOT

use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Permission, Server};
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Hot;

/// As in SCAN.
const DEFAULT_COUNT: i64 = 10;

#[derive(Debug)]
pub struct Request<'a> {
    count: usize,
    prefix: &'a [u8],
}

impl Command for Hot {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.hot",
        family: Family::Cache,
        summary: "Returns the keys that CACHE reads ask for most.",
        complexity: "O(1): at most 2048 keys are counted in a database.",
        since: "0.1.0",
        arity: -1,
        flags: &[Flag::ReadOnly],
        keys: Keys::None,
        access: Access::None,
        tips: &["nondeterministic_output", "request_policy:special", "response_policy:special"],
        args: &[
            ArgSpec::integer("count").token("COUNT").optional(),
            ArgSpec::string("prefix").token("PREFIX").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (mut count, mut prefix) = (None, None);
        while let Some(word) = args.take() {
            if word.is("COUNT") {
                once(&mut count, args.value()?)?;
            } else if word.is("PREFIX") {
                once(&mut prefix, args.value()?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        let count = count.map_or(Ok(DEFAULT_COUNT), |arg: Arg<'_>| arg.int_within("COUNT", 1, i64::MAX))?;
        Ok(Request {
            count: usize::try_from(count).unwrap_or(usize::MAX),
            prefix: prefix.map_or(&[], |prefix| prefix.bytes),
        })
    }

    /// Keys that the caller may not read are passed over.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { count, prefix } = request;
        let db = server.db();
        let copied = |(key, reads): (&[u8], u64)| (Vec::from(key), i64::try_from(reads).unwrap_or(i64::MAX));
        let most_read: Vec<_> = server.state().cache.hot_keys.most_read(db, prefix).into_iter().map(copied).collect();
        let readable = most_read.into_iter().filter(|(key, _)| server.permits(key, Permission::Read)).take(count);
        let pair = |(key, reads)| Reply::Array(vec![Reply::OwnedBytes(key), Reply::Int(reads)]);
        Ok(Reply::Array(readable.map(pair).collect()))
    }
}
