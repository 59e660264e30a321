//! `WRITEBEHIND.REQUEUE queue key`

use super::QUEUE;
use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::fencing;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::record::{Mark, Return, Revival};
use crate::writebehind::{deliver, effects, keyspace};

pub struct Requeue;

impl Command for Requeue {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.requeue",
        family: Family::WriteBehind,
        summary: "Queues the records of a key again that were given up.",
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

    fn run<'s, S: Server>((queue, key): Self::Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let now = server.now().to_ms();
        let Some(id) = keyspace::open(server, queue)? else { return Ok(Reply::Int(0)) };
        let state = &server.state().writebehind;
        let entry = state.entry_of(id, key.bytes);
        let found = entry.and_then(|entry| {
            let of = state.queue(id)?;
            let back = of.plan_revival(entry, state.frozen_to())?;
            Some((entry, back, of.entry(entry)?.joins(state.frozen_to()).is_some()))
        });
        let Some((entry, back, joins)) = found else { return Ok(Reply::Int(0)) };
        let revival = match back {
            Return::AsTheyWere => Revival::Kept { due: now },
            Return::AsTheirSum => Revival::Merged(Mark { version: fencing::next_token(server)?, now, due: now, joins }),
            Return::OutOfRange => return Err(Error::Overflow),
        };
        let state = &mut server.state().writebehind;
        if state.change_entry(id, entry, |queue| queue.revive(entry, revival)).is_none() {
            return Ok(Reply::Int(0));
        }
        server.changed(queue);
        effects::propagate_revival(server, queue, key, revival);
        deliver::serve(server, queue);
        Ok(Reply::Int(1))
    }
}
