//! `WRITEBEHIND.SET queue key value [EX|PX|EXAT|PXAT t] [JITTER amount|percent%] [GRACE t] [TAGS n tag [tag ...]]`

use super::QUEUE;
use crate::args::{Arg, Args};
use crate::cache::{WriteOptions, behind};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::write;

pub struct Set;

pub struct Request<'a> {
    queue: Arg<'a>,
    key: Arg<'a>,
    value: Arg<'a>,
    options: WriteOptions<'a>,
}

impl Command for Set {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.set",
        family: Family::WriteBehind,
        summary: "Stores a value in the cache and queues it for the database, in one step.",
        complexity: "O(log(N)+T) where N is the number of dirty keys of the queue and T the number of tags.",
        since: "0.1.0",
        arity: -4,
        flags: &[Flag::Write, Flag::DenyOom],
        keys: Keys::FirstTwo,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &{
            let [expiry, jitter, grace, tags] = behind::OPTION_SPECS;
            [QUEUE, ArgSpec::key(), ArgSpec::string("value"), expiry, jitter, grace, tags]
        },
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (queue, key, value) = (args.required()?, args.required()?, args.required()?);
        Ok(Request { queue, key, value, options: behind::options(args)? })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { queue, key, value, options } = request;
        write::set(server, (queue, key), value, &options, Self::SPEC.name).map(Reply::Int)
    }
}
