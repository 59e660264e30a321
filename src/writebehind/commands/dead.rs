//! `WRITEBEHIND.DEAD queue [COUNT n]`

use super::QUEUE;
use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::keyspace;
use crate::writebehind::record::Record;

pub struct Dead;

const COUNT: i64 = 100;
const MOST: i64 = 1_000_000;

pub struct Request<'a> {
    queue: Arg<'a>,
    count: i64,
}

impl Command for Dead {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.dead",
        family: Family::WriteBehind,
        summary: "Lists records that were given up after too many failures.",
        complexity: "O(M) where M is the number of records listed.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::ReadOnly],
        keys: Keys::First,
        access: Access::Read,
        tips: &[],
        args: &[QUEUE, ArgSpec::integer("count").token("COUNT").optional()],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (queue, mut count) = (args.required()?, None);
        while let Some(word) = args.take() {
            if !word.is("COUNT") {
                return Err(Error::Syntax);
            }
            once(&mut count, args.value()?)?;
        }
        Ok(Request { queue, count: count.map(|arg| arg.int_within("COUNT", 1, MOST)).transpose()?.unwrap_or(COUNT) })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { queue, count } = request;
        let id = keyspace::look(server, queue)?;
        let queue = id.and_then(|id| server.state().writebehind.queue(id));
        let records = queue.into_iter().flat_map(|queue| queue.dead());
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        Ok(Reply::Array(records.take(count).map(|(key, record)| describe(key, record)).collect()))
    }
}

fn describe<'s>(key: &'s [u8], record: &'s Record) -> Reply<'s> {
    Reply::Array(vec![
        Reply::Bytes(key),
        Reply::Int(record.version),
        Reply::Word(record.op.word()),
        record.op.payload().map_or(Reply::Nil, |payload| Reply::OwnedBytes(payload.into_owned())),
        Reply::Int(i64::from(record.failures)),
        record.message.as_deref().map_or(Reply::Nil, Reply::Bytes),
    ])
}
