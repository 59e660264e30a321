//! Who waits for a limit: one queue for each key, first come first served.
//!
//! Every event that may let somebody in ends in [`serve`]: at once where a command of this family brings it about, from a timer
//! ([`due`]) where a key event, the clock or a closed connection does. Within a key event nothing is decided: the effect would be
//! replicated before what made room for it.

use super::admission::{self, Queued};
use super::concurrency::Verdict;
use super::slots::{self, Wish};
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::name::NameRef;
use crate::reply::Reply;
use crate::server::Server;
use crate::wait_queue;

/// How many of those who wait one command answers at most.
const ANSWERED_AT_ONCE: usize = 128;

#[derive(Debug)]
pub struct Request {
    db: usize,
    key: [Box<[u8]>; 1],
    pub wanted: Wanted,
    /// Since when he waits.
    pub since: UnixMs,
}

/// What a waiter waits for.
#[derive(Debug)]
pub enum Wanted {
    /// A slot.
    Enter { id: Box<[u8]>, limit: i64, lease_ms: i64, session: Option<u64> },
    /// To be admitted and charged.
    Check(Queued),
}

/// What becomes of the one who has waited longest.
pub(super) enum Turn {
    Answered(Reply<'static>),
    /// Not before this moment, if nothing else happens.
    Later(UnixMs),
}

impl Request {
    /// What he waits for.
    pub fn name(&self) -> NameRef<'_> {
        let [key] = &self.key;
        NameRef { db: self.db, key }
    }
}

impl wait_queue::Request for Request {
    fn db(&self) -> usize {
        self.db
    }

    fn keys(&self) -> &[Box<[u8]>] {
        &self.key
    }
}

/// Holds the caller until his turn has come; if the wait runs out before, he is told `otherwise`. `None`: he cannot wait.
///
/// # Errors
/// `TooManyWaiters` if there is no room for him.
pub fn wait<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    wanted: Wanted,
    wait_ms: i64,
    otherwise: Reply<'static>,
) -> Result<Option<Reply<'static>>, Error> {
    if server.is_replica() || !server.may_block() {
        return Ok(None);
    }
    let (db, since) = (server.db(), server.now().to_ms());
    let state = server.state();
    let waiting = state.ratelimit.queues.len_of(db, key.bytes);
    if !state.has_room_to_wait(waiting) {
        let refused = &mut state.ratelimit.waits_refused;
        *refused = refused.saturating_add(1);
        return Err(Error::TooManyWaiters);
    }
    let Some(waiter) = server.block(wait_ms, otherwise) else { return Ok(None) };
    let state = &mut server.state().ratelimit;
    state.queues.join(waiter, Request { db, key: [key.bytes.into()], wanted, since });
    state.waits = state.waits.saturating_add(1);
    if waiting == 0 {
        look(server, key, 1);
    }
    Ok(Some(Reply::Later))
}

/// How many wait for the key.
pub fn len_of<S: Server>(server: &mut S, key: Arg<'_>) -> usize {
    if server.state().ratelimit.queues.is_empty() {
        return 0;
    }
    let db = server.db();
    server.state().ratelimit.queues.len_of(db, key.bytes)
}

/// Answers those who wait, in the order of their arrival, as far as it goes. If a whole crowd can have its turn the rest comes from
/// the timer, and nobody overtakes it meanwhile.
pub fn serve<S: Server>(server: &mut S, key: Arg<'_>) {
    if server.state().ratelimit.queues.is_empty() || server.replayed() || server.is_replica() {
        return;
    }
    look(server, key, ANSWERED_AT_ONCE);
}

/// Looks at the queue; at most so many are answered.
fn look<S: Server>(server: &mut S, key: Arg<'_>, most: usize) {
    let db = server.db();
    let mut wake = None;
    let mut answered = 0_usize;
    while let Some((waiter, request)) = server.state().ratelimit.queues.head(db, key.bytes) {
        if answered == most {
            server.state().ratelimit.queues.look_at(db, key.bytes);
            break;
        }
        if server.is_waiting(waiter) {
            let reply = match turn(server, key, &request.wanted) {
                Ok(Turn::Later(at)) => {
                    wake = Some(at);
                    break;
                }
                Ok(Turn::Answered(reply)) => reply,
                Err(error) => Reply::Error(error),
            };
            server.state().ratelimit.queues.leave(waiter);
            server.answer(waiter, reply);
            answered = answered.saturating_add(1);
        } else {
            server.state().ratelimit.queues.leave(waiter);
        }
    }
    let state = &mut server.state().ratelimit;
    state.queues.looked_at(db, key.bytes, wake);
    if state.queues.len_of(db, key.bytes) == 0 {
        state.forecasts.remove(&NameRef { db, key: key.bytes });
    }
}

fn turn<S: Server>(server: &mut S, key: Arg<'_>, wanted: &Wanted) -> Result<Turn, Error> {
    // What makes room here may be that the limiter has moved to another node, where it is as full as it was.
    if !server.serves(key) {
        return Err(server.redirection(key.bytes));
    }
    match wanted {
        Wanted::Check(queued) => admission::turn(server, key, queued),
        Wanted::Enter { id, limit, lease_ms, session } => {
            let wish = Wish { id: Arg::named(id), limit: *limit, lease_ms: *lease_ms, session: *session };
            let answer = slots::enter_in_turn(server, key, &wish)?;
            Ok(match answer.verdict {
                Verdict::Denied => Turn::Later(server.now().to_ms().plus(answer.retry_after_ms)),
                Verdict::Renewed | Verdict::Given => Turn::Answered(answer.reply()),
            })
        }
    }
}

/// Who waits, in order: his id or his cost, and for how many milliseconds.
pub fn describe<S: Server>(server: &mut S, key: Arg<'_>) -> Reply<'static> {
    let (db, now) = (server.db(), server.now().to_ms());
    let waiters = server.state().ratelimit.queues.waiters(db, key.bytes).map(|request| {
        let who = match &request.wanted {
            Wanted::Enter { id, .. } => Reply::OwnedBytes(id.to_vec()),
            Wanted::Check(queued) => Reply::Int(queued.cost()),
        };
        Reply::Array(vec![who, Reply::Int(now.since(request.since))])
    });
    Reply::Array(waiters.collect())
}

/// Does one piece of the work that no command does: frees what a closed connection held, or looks at one queue. Whether there
/// was any. For a timer, and only while the server may write.
pub fn due<S: Server>(server: &mut S) -> bool {
    if slots::close_one(server) {
        return true;
    }
    let now = server.now().to_ms();
    let Some(name) = server.state().ratelimit.queues.next_due(now) else { return false };
    server.select(name.db);
    // One at a time, each at a moment of his own, which is read after the look at the key: time goes on here, unlike within a
    // command, and with it a limiter that is full expires.
    server.let_time_go_on();
    look(server, Arg::named(&name.key), 1);
    true
}
