//! Granting locks: to who asks, and to who has waited longest.
//!
//! Every event that may free a lock ends in [`serve`], which looks at its queue: at once where a command of ours brings the
//! event about, from a timer ([`due`]) where a key event, the clock or a closed connection does. Within a key event nothing is
//! granted: the grant would be replicated before what freed the lock.

use smallvec::SmallVec;

use super::record::{Attempt, Holder, Mode, Record, Released, Standing, Wanted};
use super::request::Request;
use super::{effects, keyspace};
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::fencing;
use crate::reply::Reply;
use crate::server::{Server, Waiter};

/// What a caller wants of one or several locks.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub owner: Arg<'a>,
    pub mode: Mode,
    /// From the grant on.
    pub lease_ms: i64,
    pub reentrant: bool,
    /// The connection that the lock is to end with.
    pub session: Option<u64>,
}

impl<'a> Wish<'a> {
    fn of(request: &'a Request) -> Wish<'a> {
        let Request { owner, lease_ms, mode, session, .. } = request;
        Wish { owner: Arg::named(owner), mode: *mode, lease_ms: *lease_ms, reentrant: false, session: *session }
    }

    fn deadline(&self, now: UnixMs) -> UnixMs {
        now.plus(self.lease_ms)
    }
}

/// Tries to get the lock; the token, or `None` if others hold it or came before. Nobody is overtaken.
pub fn acquire<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>) -> Result<Option<i64>, Error> {
    serve(server, key);
    let waited = waits(server, key);
    acquire_now(server, key, wish, waited)
}

fn waits<S: Server>(server: &mut S, key: Arg<'_>) -> bool {
    let db = server.db();
    let queues = &server.state().lock.queues;
    !queues.is_empty() && queues.len_of(db, key.bytes) > 0
}

fn acquire_now<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>, waited: bool) -> Result<Option<i64>, Error> {
    let now = server.now().to_ms();
    let &Wish { owner, mode, reentrant, .. } = wish;
    let wanted = Wanted { owner: owner.bytes, mode, deadline: wish.deadline(now), reentrant };
    let attempt = keyspace::open(server, key, |record| record.acquire(&wanted, now, waited))?;
    let attempt = attempt.unwrap_or(Ok(if waited { Attempt::Busy } else { Attempt::Free }))?;
    let token = match attempt {
        Attempt::Busy => return Ok(None),
        Attempt::Free | Attempt::Upgrade => {
            let token = fencing::next_token(server)?;
            give(server, key, wish, token, 1)?;
            return Ok(Some(token));
        }
        Attempt::Join => {
            let token = fencing::next_token(server)?;
            let holder = holder(wish, standing(wish, token, now, 1))?;
            keyspace::join(server, key, mode, holder)?;
            count_grant(server);
            effects::propagate_hold(server, key, owner, mode, standing(wish, token, now, 1));
            return Ok(Some(token));
        }
        Attempt::Same { token } => token,
        Attempt::Changed(standing) => {
            keyspace::announce(server, key, owner, standing)?;
            standing.token
        }
    };
    if let Some(session) = wish.session {
        keyspace::bind(server, key, token, session)?;
    }
    Ok(Some(token))
}

fn standing(wish: &Wish<'_>, token: i64, now: UnixMs, keys: u32) -> Standing {
    Standing { token, holds: 1, deadline: wish.deadline(now), keys }
}

fn holder(wish: &Wish<'_>, standing: Standing) -> Result<Holder, Error> {
    let mut holder = Holder::new(wish.owner.bytes, standing).ok_or(Error::BadEffect)?;
    holder.session = wish.session;
    Ok(holder)
}

/// Gives a lock that nobody holds, one of `keys`.
fn give<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>, token: i64, keys: u32) -> Result<(), Error> {
    let standing = standing(wish, token, server.now().to_ms(), keys);
    let record = Record::new(wish.mode, holder(wish, standing)?).ok_or(Error::BadEffect)?;
    keyspace::store(server, key, record)?;
    count_grant(server);
    effects::propagate_lock(server, key, wish.owner, wish.mode, standing);
    Ok(())
}

fn count_grant<S: Server>(server: &mut S) {
    let counters = &mut server.state().lock.counters;
    counters.grants = counters.grants.saturating_add(1);
}

/// Tries to get all of these locks, or none.
pub fn acquire_all<S: Server>(server: &mut S, keys: &[Arg<'_>], wish: &Wish<'_>) -> Result<Option<i64>, Error> {
    keys.iter().for_each(|key| serve(server, *key));
    let waited = keys.iter().any(|key| waits(server, *key));
    acquire_all_now(server, keys, wish, waited)
}

fn acquire_all_now<S: Server>(
    server: &mut S,
    keys: &[Arg<'_>],
    wish: &Wish<'_>,
    waited: bool,
) -> Result<Option<i64>, Error> {
    let now = server.now().to_ms();
    let count = u32::try_from(keys.len()).map_err(|_| Error::Syntax)?;
    let mut held: SmallVec<[Standing; 8]> = SmallVec::new();
    let mut busy = waited;
    for key in keys {
        let found = keyspace::open(server, *key, |record| {
            let own = record.holder(wish.owner.bytes, now).map(|holder| (record.mode(), holder.standing));
            (own, record.held(Some(now)))
        })?;
        match found {
            Some((Some((Mode::Exclusive, standing)), _)) => held.push(standing),
            Some((Some(_), _)) => return Err(Error::OwnerHoldsOne),
            Some((None, is_held)) => busy |= is_held,
            None => {}
        }
    }
    if let Some(first) = held.first() {
        let is_this_set =
            held.len() == keys.len() && held.iter().all(|held| held.token == first.token && held.keys == count);
        return if is_this_set { again(server, keys, wish) } else { Err(Error::OwnerHoldsOne) };
    }
    if busy {
        return Ok(None);
    }
    let token = fencing::next_token(server)?;
    for key in keys {
        give(server, *key, wish, token, count)?;
    }
    Ok(Some(token))
}

/// The owner holds exactly these locks, and asks for them again.
fn again<S: Server>(server: &mut S, keys: &[Arg<'_>], wish: &Wish<'_>) -> Result<Option<i64>, Error> {
    let mut token = None;
    for key in keys {
        token = acquire_now(server, *key, wish, false)?;
    }
    Ok(token)
}

/// Holds the caller until he is granted the locks. `None`: he cannot wait.
///
/// # Errors
/// `TooManyWaiters` if there is no room for him.
pub fn wait<S: Server>(
    server: &mut S,
    keys: &[Arg<'_>],
    wish: &Wish<'_>,
    wait_ms: i64,
) -> Result<Option<Reply<'static>>, Error> {
    let db = server.db();
    let state = server.state();
    let full = |waiting: usize, max: i64| usize::try_from(max).is_ok_and(|max| waiting >= max);
    let longest = keys.iter().map(|key| state.lock.queues.len_of(db, key.bytes)).max().unwrap_or(0);
    if full(state.waiters(), state.config.waiters_max) || full(longest, state.config.waiters_per_key_max) {
        let refused = &mut state.lock.counters.waits_refused;
        *refused = refused.saturating_add(1);
        return Err(Error::TooManyWaiters);
    }
    let Some(waiter) = server.block(wait_ms, Reply::Nil) else { return Ok(None) };
    let since = server.now().to_ms();
    let &Wish { owner, mode, lease_ms, session, .. } = wish;
    let names = keys.iter().map(|key| key.bytes.into()).collect();
    let state = &mut server.state().lock;
    state.queues.join(waiter, Request { db, keys: names, owner: owner.bytes.into(), lease_ms, mode, session, since });
    state.counters.waits = state.counters.waits.saturating_add(1);
    keys.iter().for_each(|key| looked_at(server, *key));
    Ok(Some(Reply::Later))
}

/// Grants the lock to those who wait for it, in the order of their arrival, as far as it goes.
pub fn serve<S: Server>(server: &mut S, key: Arg<'_>) {
    if server.state().lock.queues.is_empty() || server.replayed() || server.is_replica() {
        return;
    }
    let db = server.db();
    while let Some((waiter, request)) = server.state().lock.queues.head(db, key.bytes) {
        let told = if server.is_waiting(waiter) { serve_one(server, waiter, &request) } else { Ok(Some(0)) };
        let reply = match told {
            Ok(None) => break,
            Ok(Some(token)) => Reply::Int(token),
            Err(error) => Reply::Error(error),
        };
        server.state().lock.queues.leave(waiter);
        server.answer(waiter, reply);
    }
    looked_at(server, key);
}

fn serve_one<S: Server>(server: &mut S, waiter: Waiter, request: &Request) -> Result<Option<i64>, Error> {
    let wish = Wish::of(request);
    if let [key] = request.keys.as_slice() {
        return acquire_now(server, Arg::named(key), &wish, false);
    }
    if !server.state().lock.queues.heads_all(waiter) {
        return Ok(None);
    }
    let keys: SmallVec<[Arg<'_>; 8]> = request.keys.iter().map(|key| Arg::named(key)).collect();
    acquire_all_now(server, &keys, &wish, false)
}

/// The queue has been looked at; when is the next time?
fn looked_at<S: Server>(server: &mut S, key: Arg<'_>) {
    let (db, now) = (server.db(), server.now().to_ms());
    let wake = keyspace::look(server, key, |record| record.next_deadline(now));
    server.state().lock.queues.looked_at(db, key.bytes, wake.ok().flatten().flatten());
}

/// Does one piece of the work that no command does: releases what a closed connection held, or looks at one queue. Whether
/// there was any. For a timer, and only while the server may write.
pub fn due<S: Server>(server: &mut S) -> bool {
    if let Some(session) = server.state().lock.sessions.next_closed() {
        close_session(server, session);
        return true;
    }
    let now = server.now().to_ms();
    let Some(name) = server.state().lock.queues.next_due(now) else { return false };
    server.select(name.db);
    serve(server, Arg::named(&name.key));
    // A queue without waiters, and one whose turn came for nothing, must not be due for ever.
    looked_at(server, Arg::named(&name.key));
    true
}

fn close_session<S: Server>(server: &mut S, session: u64) {
    for name in server.state().lock.in_limbo_of(session) {
        server.select(name.db);
        keyspace::recall(server, Arg::named(&name.key));
    }
    for (token, name) in server.state().lock.sessions.held_by(session) {
        server.select(name.db);
        let key = Arg::named(&name.key);
        if !matches!(
            keyspace::release(server, key, |record| record.remove(token)),
            Ok(Released::OneLeft | Released::Last)
        ) {
            continue;
        }
        effects::propagate_leave(server, key, &[token]);
        let closed = &mut server.state().lock.counters.sessions_closed;
        *closed = closed.saturating_add(1);
        serve(server, key);
    }
}
