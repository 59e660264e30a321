//! `WRITEBEHIND.DROP queue key`

use super::QUEUE;
use crate::args::{Arg, Args};
use crate::cache::behind;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::keyspace;

pub struct DropDead;

impl Command for DropDead {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.drop",
        family: Family::WriteBehind,
        summary: "Forgets the records of a key that were given up.",
        complexity: "O(log(N)+M) where N is the number of dirty keys of the queue and M that of the key's records that were given up.",
        since: "0.1.0",
        arity: 3,
        flags: &[Flag::Write, Flag::Fast],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[QUEUE, ArgSpec::string("key")],
    };
    type Request<'a> = (Arg<'a>, Arg<'a>);

    fn parse<'a>(args: &mut Args<'a>) -> Result<Self::Request<'a>, Error> {
        let request = (args.required()?, args.required()?);
        args.end().map_err(|_| Error::WrongArity(args.command()))?;
        Ok(request)
    }

    /// Replicated as it came: it takes all that there is.
    fn run<'s, S: Server>((queue, key): Self::Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Some(id) = keyspace::open(server, queue)? else { return Ok(Reply::Int(0)) };
        let state = &mut server.state().writebehind;
        let Some(entry) = state.entry_of(id, key.bytes) else { return Ok(Reply::Int(0)) };
        if state.change_entry(id, entry, |queue| queue.drop_dead(entry).then_some(())).is_none() {
            return Ok(Reply::Int(0));
        }
        server.changed(queue);
        server.replicate_verbatim();
        behind::clean(server, key);
        Ok(Reply::Int(1))
    }
}
