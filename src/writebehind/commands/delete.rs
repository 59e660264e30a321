//! `WRITEBEHIND.DEL queue key`

use super::QUEUE;
use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::write;

pub struct Delete;

impl Command for Delete {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.del",
        family: Family::WriteBehind,
        summary: "Removes a value from the cache and queues its deletion for the database, in one step.",
        complexity: "O(log(N)) where N is the number of dirty keys of the queue.",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::Write, Flag::DenyOom],
        keys: Keys::FirstTwo,
        access: Access::Update,
        tips: &["nondeterministic_output"],
        args: &[QUEUE, ArgSpec::key()],
    };
    type Request<'a> = (Arg<'a>, Arg<'a>);

    fn parse<'a>(args: &mut Args<'a>) -> Result<Self::Request<'a>, Error> {
        let names = (args.required()?, args.required()?);
        args.end().map_err(|_| Error::WrongArity(args.command()))?;
        Ok(names)
    }

    fn run<'s, S: Server>(names: Self::Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        write::delete(server, names).map(Reply::Int)
    }
}
