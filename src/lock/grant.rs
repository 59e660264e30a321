//! Granting locks: to who asks, and to who has waited longest.
//!
//! Every event that may free a lock ends in [`serve`], which looks at its queue: at once where a command of ours brings the
//! event about, from a timer ([`due`]) where a key event, the clock or a closed connection does. Within a key event nothing is
//! granted: the grant would be replicated before what freed the lock.

use smallvec::SmallVec;

use super::holders::{Holder, Standing};
use super::record::{Attempt, Mode, Record, Released, Wanted};
use super::request::Request;
use super::{effects, keyspace};
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::fencing;
use crate::name::Name;
use crate::reply::Reply;
use crate::server::{Server, Waiter};

/// How many of those who wait for a lock are served in one go: readers may be many. The others' turn comes from a timer at once.
const MOST_AT_ONCE: usize = 100;

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
        let &Request { ref owner, lease_ms, mode, reentrant, session, .. } = request;
        Wish { owner: Arg::named(owner), mode, lease_ms, reentrant, session }
    }

    fn deadline(&self, now: UnixMs) -> UnixMs {
        now.plus(self.lease_ms)
    }
}

/// Tries to get the lock; the token, or `None` if others hold it or came before. Nobody is overtaken.
pub fn acquire<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>) -> Result<Option<i64>, Error> {
    serve_if_due(server, key);
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
        Attempt::Free => {
            let token = fencing::next_token(server)?;
            give(server, key, wish, standing(wish, token, now, 1))?;
            return Ok(Some(token));
        }
        // Who holds it already loses nothing: neither holds, nor time, nor that it ends with his connection.
        Attempt::Upgrade { standing, session } => {
            let token = fencing::next_token(server)?;
            let wish = Wish { session: wish.session.or(session), ..*wish };
            give(server, key, &wish, Standing { token, ..standing })?;
            return Ok(Some(token));
        }
        Attempt::Join => {
            let token = fencing::next_token(server)?;
            let standing = standing(wish, token, now, 1);
            keyspace::join(server, key, mode, holder(wish, standing)?)?;
            granted(server, key);
            effects::propagate_hold(server, key, owner, mode, standing);
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

/// Gives a lock that nobody else holds.
fn give<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>, standing: Standing) -> Result<(), Error> {
    let record = Record::new(wish.mode, holder(wish, standing)?).ok_or(Error::BadEffect)?;
    keyspace::store(server, key, record)?;
    granted(server, key);
    effects::propagate_lock(server, key, wish.owner, wish.mode, standing);
    Ok(())
}

fn granted<S: Server>(server: &mut S, key: Arg<'_>) {
    let counters = &mut server.state().lock.counters;
    counters.grants = counters.grants.saturating_add(1);
    server.announce(c"lock.acquire", key);
}

/// Tries to get all of these locks, or none.
pub fn acquire_all<S: Server>(server: &mut S, keys: &[Arg<'_>], wish: &Wish<'_>) -> Result<Option<i64>, Error> {
    keys.iter().for_each(|key| serve_if_due(server, *key));
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
        give(server, *key, wish, standing(wish, token, now, count))?;
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
    if !server.may_block() || server.is_replica() {
        return Ok(None);
    }
    let db = server.db();
    let state = server.state();
    let longest = keys.iter().map(|key| state.lock.queues.len_of(db, key.bytes)).max().unwrap_or(0);
    if !state.has_room_to_wait(longest) {
        let refused = &mut state.lock.counters.waits_refused;
        *refused = refused.saturating_add(1);
        return Err(Error::TooManyWaiters);
    }
    let Some(waiter) = server.block(wait_ms, Reply::Nil) else { return Ok(None) };
    let since = server.now().to_ms();
    let &Wish { owner, mode, lease_ms, reentrant, session } = wish;
    let owner = owner.bytes.into();
    let names = keys.iter().map(|key| key.bytes.into()).collect();
    let state = &mut server.state().lock;
    state.queues.join(waiter, Request { db, keys: names, owner, lease_ms, mode, reentrant, session, since });
    state.counters.waits = state.counters.waits.saturating_add(1);
    keys.iter().for_each(|key| looked_at(server, *key));
    Ok(Some(Reply::Later))
}

/// Grants the lock to those who wait for it, in the order of their arrival, as far as it goes.
pub fn serve<S: Server>(server: &mut S, key: Arg<'_>) {
    serve_all(server, &[key]);
}

/// The same for several locks, which were released together.
#[inline]
pub fn serve_all<S: Server>(server: &mut S, keys: &[Arg<'_>]) {
    if !server.state().lock.queues.is_empty() && !server.replayed() && !server.is_replica() {
        serve_queues(server, keys);
    }
}

#[inline(never)]
fn serve_queues<S: Server>(server: &mut S, keys: &[Arg<'_>]) {
    let mut stuck = None;
    for key in keys {
        serve_queue(server, *key, &mut stuck);
        looked_at(server, *key);
    }
}

/// A try looks at the queue only if it is time to: who waits is not overtaken in any case.
fn serve_if_due<S: Server>(server: &mut S, key: Arg<'_>) {
    let (db, now) = (server.db(), server.now().to_ms());
    if server.state().lock.queues.is_due(db, key.bytes, now) {
        serve(server, key);
    }
}

/// `stuck`: who waits for several locks and cannot have them yet. He may head many of these queues, and is judged once.
fn serve_queue<S: Server>(server: &mut S, key: Arg<'_>, stuck: &mut Option<Waiter>) {
    let db = server.db();
    for _ in 0..MOST_AT_ONCE {
        let Some((waiter, request)) = server.state().lock.queues.head(db, key.bytes) else { return };
        if *stuck == Some(waiter) {
            return;
        }
        let told = if server.is_waiting(waiter) { serve_one(server, waiter, &request) } else { Ok(Some(0)) };
        let reply = match told {
            Ok(None) => {
                *stuck = Some(waiter);
                return;
            }
            Ok(Some(token)) => Reply::Int(token),
            Err(error) => Reply::Error(error),
        };
        server.state().lock.queues.leave(waiter);
        server.answer(waiter, reply);
    }
    server.state().lock.queues.look_at(db, key.bytes);
}

fn serve_one<S: Server>(server: &mut S, waiter: Waiter, request: &Request) -> Result<Option<i64>, Error> {
    let wish = Wish::of(request);
    let keys: SmallVec<[Arg<'_>; 8]> = request.keys.iter().map(|key| Arg::named(key)).collect();
    if !server.state().lock.queues.heads_all(waiter) {
        return Ok(None);
    }
    // What frees a lock here may be that its slot moves to another node, where it is held still.
    let away = keys.iter().filter(|key| !server.serves(**key)).count();
    if let Some(first) = keys.first().filter(|_| away > 0) {
        return Err(if away == keys.len() { server.redirection(first.bytes) } else { Error::SlotMoves });
    }
    match keys.as_slice() {
        [key] => acquire_now(server, *key, &wish, false),
        keys => acquire_all_now(server, keys, &wish, false),
    }
}

/// The queue has been looked at; when is the next time?
fn looked_at<S: Server>(server: &mut S, key: Arg<'_>) {
    let (db, now) = (server.db(), server.now().to_ms());
    let wake = keyspace::look(server, key, |record| record.next_deadline(now));
    server.state().lock.queues.looked_at(db, key.bytes, wake.ok().flatten().flatten());
}

/// Does one piece of the work that no command does: releases a hold of a closed connection, or looks at one queue. Whether
/// there was any. For a timer, and only while the server may write.
pub fn due<S: Server>(server: &mut S) -> bool {
    if let Some((token, name)) = server.state().lock.sessions.next_ended() {
        end_hold(server, token, &name);
        return true;
    }
    let now = server.now().to_ms();
    let Some(name) = server.state().lock.queues.next_due(now) else { return false };
    let key = Arg::named(&name.key);
    server.select(name.db);
    serve(server, key);
    // A queue without waiters, and one whose turn came for nothing, must not be due for ever.
    looked_at(server, key);
    true
}

/// The connection is closed that a hold ended with.
fn end_hold<S: Server>(server: &mut S, token: i64, name: &Name) {
    server.select(name.db);
    let key = Arg::named(&name.key);
    let released = keyspace::release(server, key, |record| record.remove(token));
    if !matches!(released, Ok(Released::OneLeft | Released::Last)) {
        return;
    }
    effects::propagate_leave(server, key, &[token]);
    let state = &mut server.state().lock;
    state.counters.sessions_closed = state.counters.sessions_closed.saturating_add(1);
    // Who waits is served when all that this connection held is free: till then he might be told that he holds one of his locks.
    state.queues.look_at(name.db, &name.key);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_server::FakeServer;
    use crate::lock::commands::{Acquire, AcquireMany, Release, ReleaseMany};
    use crate::lock::put_back;

    /// A server where ann holds `job` for a minute, and these wait for it.
    fn contended(waiters: &[&str]) -> FakeServer {
        let mut server = FakeServer::new();
        server.call::<Acquire>("lock.acquire job ann PX 60000").unwrap();
        for waiter in waiters {
            waits(&mut server, waiter);
        }
        server
    }

    fn waits(server: &mut FakeServer, words: &str) {
        assert_eq!(server.call::<Acquire>(&format!("lock.acquire job {words} PX 60000 WAIT 0")), Ok(Reply::Later));
    }

    #[test]
    fn grants_releases_and_leases_that_end_are_told_and_nothing_else() {
        let mut server = contended(&["bob"]);
        server.call::<Acquire>("lock.acquire job ann PX 90000 REENTRANT").unwrap();
        server.call::<Acquire>("lock.acquire job cy PX 90000").unwrap();
        server.call::<Release>("lock.release job cy").unwrap();
        server.call::<Release>("lock.release job ann").unwrap();
        assert_eq!(server.take_announced(), ["lock.acquire job"], "a hold more or less is the same lock");
        server.call::<Release>("lock.release job ann").unwrap();
        assert_eq!(server.take_announced(), ["lock.release job", "lock.acquire job"]);
        server.advance_ms(60_000);
        server.call::<Acquire>("lock.acquire job dan PX 10 SHARED").unwrap();
        server.call::<Acquire>("lock.acquire job eve PX 20 SHARED").unwrap();
        assert_eq!(server.take_announced(), ["lock.expired job", "lock.acquire job", "lock.acquire job"]);
        server.advance_ms(10);
        server.call::<Acquire>("lock.acquire job fay PX 20 SHARED").unwrap();
        assert_eq!(server.take_announced(), ["lock.expired job", "lock.acquire job"]);
        server.replayed = true;
        server.call::<Release>("lock.release job fay").unwrap();
        assert!(server.take_announced().is_empty(), "told where it was decided");
    }

    #[test]
    fn many_readers_are_granted_a_hundred_at_a_time_and_no_writer_between() {
        let mut server = contended(&[]);
        (0..250).for_each(|n| waits(&mut server, &format!("reader-{n} SHARED")));
        waits(&mut server, "writer");
        server.call::<Release>("lock.release job ann").unwrap();
        assert_eq!(server.answers.len(), 100);
        assert_eq!(server.call::<Acquire>("lock.acquire job cy PX 1 SHARED"), Ok(Reply::Nil), "nor anybody else");
        while due(&mut server) {}
        assert_eq!(server.answers.len(), 250);
        assert!(server.answers.is_sorted_by(|(a, _), (b, _)| a < b));
        assert_eq!(server.waiting.len(), 1);
    }

    #[test]
    fn who_waits_for_a_lock_whose_slot_has_moved_is_not_granted_a_second_one_here() {
        let mut server = contended(&["bob", "cy"]);
        server.moved.push(b"job".to_vec());
        server.unlink(&[b"job"]);
        while due(&mut server) {}
        let answers: Vec<_> = server.answers.iter().map(|(_, reply)| reply.clone()).collect();
        let moved = || Reply::Error(Error::Moved(crate::slot::slot(b"job"), "other:6379".into()));
        assert_eq!(answers, [moved(), moved()]);
        assert!(!server.holds("job"));
    }

    #[test]
    fn a_full_queue_is_no_error_where_nobody_can_wait() {
        let mut server = contended(&["bob"]);
        server.state.config.waiters_per_key_max = 1;
        let line = "lock.acquire job cy PX 60000 WAIT 0";
        assert_eq!(server.call::<Acquire>(line), Err(Error::TooManyWaiters));
        server.never_blocks = true;
        assert_eq!(server.call::<Acquire>(line), Ok(Reply::Nil));
        server.never_blocks = false;
        server.replica = true;
        assert_eq!(server.call::<Acquire>(line), Ok(Reply::Nil), "a replica that can be written to serves nobody");
    }

    #[test]
    fn an_evicted_lock_with_waiters_comes_back_no_sooner_than_another() {
        let mut server = contended(&["bob"]);
        server.evict("job");
        while due(&mut server) {}
        assert!(!server.holds("job"));
        while put_back(&mut server, 10) {}
        assert!(server.holds("job"));
        server.evict("job");
        server.advance_ms(60_000);
        while due(&mut server) {}
        assert_eq!(server.answers.len(), 1, "its lease is over");
    }

    #[test]
    fn who_waits_for_an_evicted_lock_that_was_overwritten_is_told() {
        let mut server = contended(&["bob"]);
        server.evict("job");
        while due(&mut server) {}
        // On a server that does not report plain writes.
        server.put_other("job");
        while put_back(&mut server, 10) {}
        while due(&mut server) {}
        assert_eq!(server.answers.first().map(|(_, reply)| reply), Some(&Reply::Error(Error::WrongType)));
    }

    #[test]
    fn a_lease_that_is_over_beside_one_that_is_not_wakes_nobody_twice() {
        let mut server = FakeServer::new();
        for line in ["a ann PX 60000", "b ann PX 300 PERMITS 2", "b bob PX 60000 PERMITS 2", "a cy PX 1 WAIT 0"] {
            server.call::<Acquire>(&format!("lock.acquire {line}")).unwrap();
        }
        // He heads one of his queues, and not the other: he does not touch the lock.
        assert_eq!(server.call::<AcquireMany>("lock.macquire 2 a b dan PX 1 WAIT 0"), Ok(Reply::Later));
        server.advance_ms(300);
        assert!(due(&mut server));
        assert!(!due(&mut server));
    }

    #[test]
    fn the_locks_of_a_closed_connection_are_released_one_by_one() {
        let mut server = FakeServer::new();
        for key in ["a", "b", "c"] {
            server.call::<Acquire>(&format!("lock.acquire {key} ann PX 60000 SESSION")).unwrap();
        }
        server.evict("c");
        server.state.lock.connection_closed(1);
        for left in [2, 1, 0] {
            assert!(due(&mut server));
            assert_eq!(server.state.lock.locks(), left);
        }
        assert!(!due(&mut server));
        assert_eq!(server.state.lock.next_deadline(), None);
    }

    #[test]
    fn who_waits_for_many_locks_is_judged_once_when_many_are_released() {
        let mut server = FakeServer::new();
        server.call::<AcquireMany>("lock.macquire 2 a b ann PX 60000").unwrap();
        server.call::<Acquire>("lock.acquire c cy PX 60000").unwrap();
        let line = "lock.macquire 3 a b c bob PX 60000 WAIT 0";
        assert_eq!(server.call::<AcquireMany>(line), Ok(Reply::Later));
        assert_eq!(server.call::<ReleaseMany>("lock.mrelease 2 a b ann"), Ok(Reply::Int(2)));
        assert!(server.answers.is_empty());
        assert_eq!(server.call::<Release>("lock.release c cy"), Ok(Reply::Int(1)));
        assert_eq!(server.answers.len(), 1);
    }
}
