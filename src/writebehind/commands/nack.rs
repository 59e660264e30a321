//! `WRITEBEHIND.NACK queue worker key version [MSG text] [DELAY ms]`

use super::{QUEUE, worker};
use crate::args::{Arg, Args, once};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::deliver::{self, Failure};
use crate::writebehind::dump::MAX_MESSAGE;
use crate::writebehind::keyspace;
use crate::writebehind::settings::LONGEST_MS;

pub struct Nack;

const FIRST_DELAY_MS: i64 = 100;
const LONGEST_DELAY_MS: i64 = 60_000;

pub struct Request<'a> {
    queue: Arg<'a>,
    worker: Arg<'a>,
    key: Arg<'a>,
    version: i64,
    message: Option<Arg<'a>>,
    delay_ms: Option<i64>,
}

/// How long a record rests after so many failures: doubled with each.
fn growing_delay(failures: u32) -> i64 {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_DELAY_MS.saturating_mul(1 << doublings).min(LONGEST_DELAY_MS)
}

impl Command for Nack {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.nack",
        family: Family::WriteBehind,
        summary: "Gives a claimed record back, to be tried again after a while.",
        complexity: "O(log(N)) where N is the number of dirty keys of the queue.",
        since: "0.1.0",
        arity: -5,
        flags: &[Flag::Write],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[
            QUEUE,
            ArgSpec::string("worker"),
            ArgSpec::string("key"),
            ArgSpec::integer("version"),
            ArgSpec::string("text").token("MSG").optional(),
            ArgSpec::integer("milliseconds").token("DELAY").optional(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (queue, name, key, version) = (args.required()?, args.required()?, args.required()?, args.required()?);
        let (mut message, mut delay) = (None, None);
        while let Some(word) = args.take() {
            if word.is("MSG") {
                once(&mut message, args.value()?)?;
            } else if word.is("DELAY") {
                once(&mut delay, args.value()?)?;
            } else {
                return Err(Error::Syntax);
            }
        }
        let (version, delay_ms) =
            (version.int()?, delay.map(|arg| arg.int_within("DELAY", 0, LONGEST_MS)).transpose()?);
        if message.is_some_and(|message| message.bytes.len() > MAX_MESSAGE) {
            return Err(Error::MessageLength);
        }
        Ok(Request { queue, worker: worker(name)?, key, version, message, delay_ms })
    }

    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { queue, worker, key, version, message, delay_ms } = request;
        let Some(id) = keyspace::open(server, queue)? else { return Ok(Reply::Int(0)) };
        let state = &mut server.state().writebehind;
        let entry = state.entry_of(id, key.bytes);
        let held = entry.and_then(|entry| Some((entry, state.queue(id)?.held_by(entry, worker.bytes, version)?)));
        let Some((entry, failures)) = held else { return Ok(Reply::Int(0)) };
        state.counters.nacks = state.counters.nacks.saturating_add(1);
        let due = server.now().to_ms().plus(delay_ms.unwrap_or_else(|| growing_delay(failures)));
        deliver::failed(server, queue, id, Failure { entry, version, failures, due, message })?;
        deliver::serve(server, queue);
        Ok(Reply::Int(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_a_minute() {
        let delays: Vec<i64> = (1..=12).map(growing_delay).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(growing_delay(u32::MAX), 60_000);
    }
}
