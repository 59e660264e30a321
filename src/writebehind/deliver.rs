//! Giving records to workers: to who asks, and to who has waited longest; and what becomes of claims that end without an ACK.
//!
//! A claim is memory of this process and is not replicated. What it leaves behind is: each failure, and that a record was given
//! up. Every event that may make a record claimable ends in [`serve`]: at once where a command of ours brings it about, from a
//! timer ([`due`]) where the clock does.

use std::borrow::Cow;
use std::sync::Arc;

use super::index::QueueId;
use super::queue::{EntryId, Lapsed};
use super::record::{Entry, Record};
use super::request::Request;
use super::state::State;
use super::{effects, keyspace};
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;

/// How many claims that have run out are dealt with between two looks at the clock.
const LAPSE_BATCH: usize = 64;

/// How many workers are served in one go; a timer goes on with the rest.
const MOST_AT_ONCE: usize = 100;

/// How many entries of queues that are gone are taken apart between two looks at the clock.
const CLEAR_BATCH: usize = 256;

/// What a worker asks for.
#[derive(Clone, Debug)]
pub struct Wish {
    pub worker: Arc<[u8]>,
    pub count: usize,
    pub lease_ms: i64,
}

/// A claim that ended without an ACK.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub entry: EntryId,
    pub version: i64,
    /// With this one.
    pub failures: u32,
    /// When the record is to be claimed again, unless it is given up.
    pub due: UnixMs,
    pub message: Option<Arg<'a>>,
}

/// What a worker was given.
#[derive(Debug, Default)]
pub struct Claimed {
    queue: QueueId,
    entries: Vec<EntryId>,
}

impl Claimed {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The reply of CLAIM. `bytes` makes a part of it of what lies in the queue.
    fn reply<'a, 's>(&self, state: &'a State, now: UnixMs, bytes: impl Fn(&'a [u8]) -> Reply<'s>) -> Reply<'s> {
        let entries = self.entries.iter().filter_map(|entry| state.entry(self.queue, *entry));
        Reply::Array(entries.filter_map(|entry| describe(entry, now, &bytes)).collect())
    }

    /// The same without a copy of keys and payloads.
    pub fn into_reply<S: Server>(self, server: &mut S) -> Reply<'_> {
        let now = server.now().to_ms();
        self.reply(&server.state().writebehind, now, Reply::Bytes)
    }
}

fn describe<'a, 's>(entry: &'a Entry, now: UnixMs, bytes: impl Fn(&'a [u8]) -> Reply<'s>) -> Option<Reply<'s>> {
    let Record { version, op, since, failures, .. } = entry.chain.first()?;
    let payload = match op.payload() {
        None => Reply::Nil,
        Some(Cow::Borrowed(payload)) => bytes(payload),
        Some(Cow::Owned(payload)) => Reply::OwnedBytes(payload),
    };
    Some(Reply::Array(vec![
        bytes(&entry.key),
        Reply::Int(*version),
        Reply::Word(op.word()),
        payload,
        Reply::Int(i64::from(*failures).saturating_add(1)),
        Reply::Int(now.since(*since).max(0)),
    ]))
}

/// Claims what is due, as far as it goes.
pub fn claim<S: Server>(server: &mut S, queue: Arg<'_>, wish: &Wish) -> Result<Claimed, Error> {
    let Some(id) = keyspace::open(server, queue)? else { return Ok(Claimed::default()) };
    // What has run out is to be had again. Of those some may be given up instead, so that there is one look more for each.
    end_lapsed(server, queue, id, wish.count.saturating_add(LAPSE_BATCH));
    let now = server.now().to_ms();
    let until = now.plus(wish.lease_ms);
    let state = &mut server.state().writebehind;
    let entries = state.change(id, |queue| {
        std::iter::from_fn(|| queue.claim(&wish.worker, now, until)).take(wish.count).collect::<Vec<_>>()
    });
    let entries = entries.unwrap_or_default();
    let count = u64::try_from(entries.len()).unwrap_or(u64::MAX);
    state.counters.claims = state.counters.claims.saturating_add(count);
    Ok(Claimed { queue: id, entries })
}

/// Holds the worker until something is to be claimed. `None`: he cannot wait.
///
/// # Errors
/// `TooManyWaiters` if there is no room for him.
pub fn wait<S: Server>(
    server: &mut S,
    queue: Arg<'_>,
    wish: Wish,
    block_ms: i64,
) -> Result<Option<Reply<'static>>, Error> {
    if !server.may_block() {
        return Ok(None);
    }
    let db = server.db();
    let state = server.state();
    let here = state.writebehind.waiting.len_of(db, queue.bytes);
    if !state.has_room_to_wait(here) {
        let refused = &mut state.writebehind.counters.waits_refused;
        *refused = refused.saturating_add(1);
        return Err(Error::TooManyWaiters);
    }
    let Some(waiter) = server.block(block_ms, Reply::Array(Vec::new())) else { return Ok(None) };
    let Wish { worker, count, lease_ms } = wish;
    let state = &mut server.state().writebehind;
    state.waiting.join(waiter, Request { db, key: [queue.bytes.into()], worker, count, lease_ms });
    state.counters.waits = state.counters.waits.saturating_add(1);
    looked_at(server, queue);
    Ok(Some(Reply::Later))
}

/// Gives what is due to those who wait for it, in the order of their arrival.
pub fn serve<S: Server>(server: &mut S, queue: Arg<'_>) {
    if server.state().writebehind.waiting.is_empty() || server.replayed() || server.is_replica() {
        return;
    }
    serve_some(server, queue);
    looked_at(server, queue);
}

fn serve_some<S: Server>(server: &mut S, queue: Arg<'_>) {
    let db = server.db();
    for _ in 0..MOST_AT_ONCE {
        let Some((waiter, request)) = server.state().writebehind.waiting.head(db, queue.bytes) else { return };
        let Request { worker, count, lease_ms, .. } = &*request;
        if server.is_waiting(waiter) {
            let wish = Wish { worker: Arc::clone(worker), count: *count, lease_ms: *lease_ms };
            // A queue whose key holds something else by now has nothing to give.
            let claimed = claim(server, queue, &wish).unwrap_or_default();
            if claimed.is_empty() {
                if server.serves(queue) {
                    return;
                }
                // It has moved to another node, or will be made there.
                let redirection = server.redirection(queue.bytes);
                server.state().writebehind.waiting.leave(waiter);
                server.answer(waiter, Reply::Error(redirection));
                continue;
            }
            let now = server.now().to_ms();
            let reply = claimed.reply(&server.state().writebehind, now, |part| Reply::OwnedBytes(part.to_vec()));
            if !server.answer(waiter, reply) {
                unclaim(server, &claimed);
            }
        }
        server.state().writebehind.waiting.leave(waiter);
    }
    server.state().writebehind.waiting.look_at(db, queue.bytes);
}

fn unclaim<S: Server>(server: &mut S, claimed: &Claimed) {
    let state = &mut server.state().writebehind;
    state.change(claimed.queue, |queue| claimed.entries.iter().for_each(|entry| queue.unclaim(*entry)));
}

/// The queue has been looked at; when is the next time?
fn looked_at<S: Server>(server: &mut S, queue: Arg<'_>) {
    let db = server.db();
    let id = keyspace::look(server, queue).ok().flatten();
    let state = &mut server.state().writebehind;
    let wake = id.and_then(|id| state.queue(id)?.next_due());
    state.waiting.looked_at(db, queue.bytes, wake);
}

/// Ends claims whose time is over, at most `max`.
fn end_lapsed<S: Server>(server: &mut S, queue: Arg<'_>, id: QueueId, max: usize) {
    let now = server.now().to_ms();
    for _ in 0..max {
        let lapsed = server.state().writebehind.queue(id).and_then(|queue| queue.lapsed(now));
        let Some(Lapsed { id: entry, version, failures, until }) = lapsed else { break };
        let lapses = &mut server.state().writebehind.counters.lapses;
        *lapses = lapses.saturating_add(1);
        if failed(server, queue, id, Failure { entry, version, failures, due: until, message: None }).is_err() {
            // It cannot be; were it to, it must not be looked at for ever.
            server.state().writebehind.change(id, |queue| queue.unclaim(entry));
        }
    }
}

/// The claim of a record ended without an ACK: it comes back, or is given up.
pub fn failed<S: Server>(server: &mut S, queue: Arg<'_>, id: QueueId, failure: Failure<'_>) -> Result<(), Error> {
    let Failure { entry, version, failures, due, message } = failure;
    let state = &mut server.state().writebehind;
    let Some(key) = state.entry(id, entry).map(|entry| entry.key.clone()) else { return Ok(()) };
    let gives_up = state.queue(id).is_some_and(|queue| queue.settings.gives_up(failures));
    let bytes = message.map(|message| message.bytes);
    if gives_up {
        state.change(id, |queue| queue.die(entry, version, failures, bytes)).flatten().ok_or(Error::Internal)?;
        state.counters.died = state.counters.died.saturating_add(1);
        effects::propagate_death(server, queue, &key, failure);
        server.announce(c"writebehind.dead", queue);
    } else {
        state.change(id, |queue| queue.fail(entry, version, failures, due, bytes)).flatten().ok_or(Error::Internal)?;
        effects::propagate_failure(server, queue, &key, failure);
    }
    server.changed(queue);
    Ok(())
}

/// Does one piece of the work that no command does: gives memory of queues that are gone back, and ends claims whose time is over,
/// or looks at a queue that workers wait for. Whether there was any. For a timer, and only while the server may write.
pub fn due<S: Server>(server: &mut S) -> bool {
    let cleared = server.state().writebehind.has_gone();
    server.state().clear_away(CLEAR_BATCH);
    let now = server.now().to_ms();
    let state = &mut server.state().writebehind;
    let lapsed = state.next_lapsed(now);
    let name = match lapsed {
        Some(id) => state.name(id).cloned(),
        None => state.waiting.next_due(now),
    };
    let Some(name) = name else { return cleared };
    server.select(name.db);
    let queue = Arg::named(&name.key);
    if let Some(id) = lapsed {
        match keyspace::open(server, queue) {
            Ok(Some(there)) if there == id => end_lapsed(server, queue, id, LAPSE_BATCH),
            // It was overwritten, and no event has told so yet.
            _ => server.state().writebehind.forget(id),
        }
    }
    serve(server, queue);
    // A queue without waiters, and one whose turn came for nothing, must not be due for ever.
    looked_at(server, queue);
    true
}
