//! `WRITEBEHIND.INCRBY queue key n [EX|PX|EXAT|PXAT t] [JITTER amount|percent%] [GRACE t] [TAGS n tag [tag ...]]`

use super::QUEUE;
use crate::args::{Arg, Args};
use crate::cache::{WriteOptions, behind};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::write;

pub struct Increment;

pub struct Request<'a> {
    queue: Arg<'a>,
    key: Arg<'a>,
    by: i64,
    options: WriteOptions<'a>,
}

impl Command for Increment {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.incrby",
        family: Family::WriteBehind,
        summary: "Adds to a number in the cache and queues the increment for the database, in one step.",
        complexity: "O(log(N)+T) where N is the number of dirty keys of the queue and T the number of tags.",
        since: "0.1.0",
        arity: -4,
        flags: &[Flag::Write, Flag::DenyOom],
        keys: Keys::FirstTwo,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &{
            let [expiry, jitter, grace, tags] = behind::OPTION_SPECS;
            [QUEUE, ArgSpec::key(), ArgSpec::integer("increment"), expiry, jitter, grace, tags]
        },
    };
    type Request<'a> = Request<'a>;

    /// Words are judged before numbers, as SET does.
    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (queue, key, by) = (args.required()?, args.required()?, args.required()?);
        let options = behind::options(args)?;
        Ok(Request { queue, key, by: by.int()?, options })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { queue, key, by, options } = request;
        let (value, version) = write::increment(server, (queue, key), by, &options, Self::SPEC.name)?;
        Ok(Reply::Array(vec![value.map_or(Reply::Nil, Reply::Int), Reply::Int(version)]))
    }
}
