//! `WRITEBEHIND.ACK queue worker key version [key version ...]`

use smallvec::SmallVec;

use super::{QUEUE, worker};
use crate::args::{Arg, Args};
use crate::cache::behind;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};
use crate::writebehind::{deliver, keyspace};

pub struct Ack;

pub struct Request<'a> {
    queue: Arg<'a>,
    records: SmallVec<[(Arg<'a>, i64); 8]>,
}

impl Command for Ack {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "writebehind.ack",
        family: Family::WriteBehind,
        summary: "Tells that the database has these versions, which leave the queue.",
        complexity: "O(M*log(N)) where M is the number of versions and N that of the dirty keys of the queue.",
        since: "0.1.0",
        arity: -5,
        flags: &[Flag::Write],
        keys: Keys::First,
        access: Access::Update,
        tips: &[],
        args: &[
            QUEUE,
            ArgSpec::string("worker"),
            ArgSpec::block("record", &[ArgSpec::string("key"), ArgSpec::integer("version")]).multiple(),
        ],
    };
    type Request<'a> = Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Request<'a>, Error> {
        let (queue, name) = (args.required()?, args.required()?);
        let mut records = SmallVec::new();
        loop {
            records.push((args.required()?, args.required()?.int()?));
            if args.left() == 0 {
                break;
            }
        }
        worker(name)?;
        Ok(Request { queue, records })
    }

    /// Whoever holds the claim: what the database has is clean. Replicated as it came: each version is there or not.
    fn run<'s, S: Server>(request: Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let Request { queue, records } = request;
        let Some(id) = keyspace::open(server, queue)? else { return Ok(Reply::Int(0)) };
        let mut cleaned: usize = 0;
        for (key, version) in records {
            let state = &mut server.state().writebehind;
            let Some(entry) = state.entry_of(id, key.bytes) else { continue };
            if state.change_entry(id, entry, |queue| queue.ack(entry, version)).is_some() {
                state.counters.acks = state.counters.acks.saturating_add(1);
                cleaned = cleaned.saturating_add(1);
                behind::clean(server, key);
            }
        }
        if cleaned > 0 {
            server.changed(queue);
            server.replicate_verbatim();
            // What stood behind a record can be claimed now.
            deliver::serve(server, queue);
        }
        Ok(Reply::count(cleaned))
    }
}
