//! `WRITEBEHIND.INFO queue`

use super::QUEUE;
use crate::args::{Arg, Args};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};
use crate::writebehind::keyspace;
use crate::writebehind::queue::Queue;

pub struct Info;

impl Command for Info {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.info",
        family: Family::WriteBehind,
        summary: "Describes a write-behind queue: what waits, since when, and what became of the rest.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 2,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::First,
        access: Access::Read,
        tips: &["nondeterministic_output"],
        args: &[QUEUE],
    };
    type Request<'a> = Arg<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
        let queue = args.required()?;
        args.end().map_err(|_| Error::WrongArity(args.command()))?;
        Ok(queue)
    }

    /// A queue that is not there is an empty one.
    fn run<'s, S: Server>(name: Arg<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let (db, now) = (server.db(), server.now().to_ms());
        let id = keyspace::look(server, name)?;
        let state = &server.state().writebehind;
        let none = Queue::default();
        let queue = id.and_then(|id| state.queue(id)).unwrap_or(&none);
        let (tally, counters) = (queue.tally(), queue.counters);
        let counter = |n: u64| Reply::Int(i64::try_from(n).unwrap_or(i64::MAX));
        Ok(Reply::Map(vec![
            ("dirty", Reply::count(tally.dirty)),
            ("in_flight", Reply::count(tally.in_flight)),
            ("oldest_ms", Reply::Int(queue.oldest().map_or(0, |since| now.since(since).max(0)))),
            ("retries", counter(counters.retries)),
            ("dead", Reply::count(tally.dead)),
            ("coalesced", counter(counters.coalesced)),
            ("cleaned", counter(counters.cleaned)),
            ("keys", Reply::count(tally.entries)),
            ("waiters", Reply::count(state.waiting.len_of(db, name.bytes))),
            ("bytes", Reply::count(queue.bytes())),
        ]))
    }
}
