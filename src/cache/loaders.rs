//! Loaders: programs that load keys for others. Whoever needs a key puts it into their queue, and they fetch it with a lease, as if
//! they had been elected.
//!
//! A job says only that the key was needed. Whether it still is, is found when it is handed out, so nothing that happens to a key
//! has to look for its jobs. Every event that may make one ends in [`want`]; [`serve`] gives them to loaders that wait, at once
//! where a command brings it about, from a timer ([`due`]) where the clock does.

use std::rc::Rc;

use super::jobs::{Job, Jobs, Pushed, Rank, Reason};
use super::lease::{Order, Token};
use super::read::{Cached, look};
use super::{ahead, governed, single_flight, waiters};
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Expiry, Permission, Server, UserName};
use crate::wait_queue::{self, WaitQueues};

/// How many jobs that are not for the caller, or not needed any more, one call passes over.
const PASSED_OVER: usize = 1000;
/// How many loaders are served in one go; a timer goes on with the rest.
const MOST_AT_ONCE: usize = 100;

#[derive(Debug, Default)]
pub struct Loaders {
    pub(super) jobs: Jobs,
    /// Loaders that wait for jobs.
    pub(super) waiting: WaitQueues<Request>,
    /// There were jobs, but no room for more leases than these. When some of them have ended, who waits is looked at.
    starved_at: Option<usize>,
}

/// A loader that waits. His key is the name of the loader.
#[derive(Debug)]
pub(super) struct Request {
    db: usize,
    loader: [Box<[u8]>; 1],
    wish: Wish,
}

/// What a loader asks for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub count: usize,
    pub lease_ms: i64,
    /// Who asks: he is given only keys that he may read.
    pub user: UserName,
}

/// A job that was handed out.
pub(super) struct Handed {
    key: Rc<[u8]>,
    token: Token,
    reason: Reason,
    left_ms: i64,
}

/// What becomes of a job whose turn has come.
enum Turn {
    Handed(Handed),
    /// The key needs no load any more, or somebody is at it.
    Needless,
    /// Too many leases are out.
    NoRoom,
}

impl wait_queue::Request for Request {
    fn db(&self) -> usize {
        self.db
    }

    fn keys(&self) -> &[Box<[u8]>] {
        &self.loader
    }
}

impl Loaders {
    /// When there is work for [`due`], if so many leases are out.
    #[inline]
    pub(super) fn next_look(&self, leases: usize) -> Option<UnixMs> {
        if self.starved_at.is_some_and(|full| leases < full) { Some(UnixMs(0)) } else { self.waiting.next_look() }
    }

    /// There may be room for leases again.
    pub(super) fn look_at_all(&mut self) {
        if self.starved_at.take().is_some() {
            self.waiting.look_at_all(None);
        }
    }

    /// This server is a replica now, which has sent those who waited away.
    pub fn drop_all(&mut self) {
        *self = Loaders::default();
    }
}

/// Puts a key of the selected database into the queue of a loader. Whether it is new there. If another job has to go for it, those
/// who wait for that are told.
pub(super) fn want<S: Server>(server: &mut S, loader: &[u8], key: &[u8], reason: Reason) -> bool {
    let db = server.db();
    let state = server.state();
    let max = usize::try_from(state.config.jobs_max).unwrap_or(usize::MAX);
    let Pushed { is_new, dropped } = state.cache.loaders.jobs.push(db, loader, key, reason, max);
    let counters = &mut state.cache.counters;
    counters.jobs_queued = counters.jobs_queued.saturating_add(u64::from(is_new));
    counters.jobs_dropped = counters.jobs_dropped.saturating_add(u64::from(dropped.is_some()));
    state.cache.loaders.waiting.look_at(db, loader);
    let Some(Job { loader: of, key: lost }) = dropped else { return is_new };
    waiters::answer_readers(server, of.db, &lost, &of.key);
    is_new && !(of.is(db, loader) && *lost == *key)
}

/// Queues those of the keys that are missing or stale, and that nobody loads. How many of them are new there.
///
/// # Errors
/// `WrongType` if one of them holds no string; then none is queued.
pub(super) fn warm<S: Server>(server: &mut S, loader: &[u8], keys: &[&[u8]]) -> Result<usize, Error> {
    let mut needed: Vec<&[u8]> = Vec::new();
    for &key in keys {
        let name = Arg::named(key);
        let needs = match look(server, name)? {
            Cached::Missing => !single_flight::is_negative(server, name),
            Cached::Stale(_) => true,
            Cached::Fresh(_) | Cached::Deleted | Cached::Pending => false,
        };
        if needs && single_flight::hold(server, name).is_none() {
            needed.push(key);
        }
    }
    Ok(needed.into_iter().filter(|key| want(server, loader, key, Reason::Warm)).count())
}

/// The jobs that a loader gets now.
pub(super) fn hand_out<S: Server>(server: &mut S, loader: &[u8], wish: &Wish) -> Vec<Handed> {
    let db = server.db();
    let (mut handed, mut passed, mut needless, mut after) = (Vec::new(), 0_usize, false, None);
    while handed.len() < wish.count && passed < PASSED_OVER {
        let Some((rank, key)) = server.state().cache.loaders.jobs.next(db, loader, after) else { break };
        after = Some(rank);
        passed = passed.saturating_add(1);
        if !server.user_permits(&wish.user, &key, Permission::Read) {
            continue;
        }
        match turn(server, loader, &key, rank, wish.lease_ms) {
            Turn::NoRoom => {
                let cache = &mut server.state().cache;
                cache.loaders.starved_at = Some(cache.leases.len());
                break;
            }
            Turn::Needless => {
                needless = true;
                server.state().cache.loaders.jobs.remove(rank);
                waiters::settle(server, Arg::named(&key));
            }
            Turn::Handed(job) => {
                server.state().cache.loaders.jobs.remove(rank);
                handed.push(job);
                passed = 0;
            }
        }
    }
    if needless && passed >= PASSED_OVER {
        // There may be more behind them.
        server.state().cache.loaders.waiting.look_at(db, loader);
    }
    handed
}

fn turn<S: Server>(server: &mut S, loader: &[u8], key: &Rc<[u8]>, (wanted, _): Rank, lease_ms: i64) -> Turn {
    let name = Arg::named(key);
    if single_flight::hold(server, name).is_some() || !server.serves(name) {
        return Turn::Needless;
    }
    let policy = if wanted == Reason::Ahead { governed::of_read(server, name) } else { None };
    let ahead = policy.and_then(|policy| ahead::due_in(server, name, &policy));
    let reason = match look(server, name) {
        Ok(Cached::Missing) if single_flight::is_negative(server, name) => return Turn::Needless,
        Ok(Cached::Missing) => Reason::Miss,
        Ok(Cached::Stale(_)) => Reason::Stale,
        Ok(Cached::Fresh(_)) if ahead.is_some() => Reason::Ahead,
        Ok(Cached::Fresh(_) | Cached::Deleted | Cached::Pending) | Err(_) => return Turn::Needless,
    };
    let has_value = reason != Reason::Miss;
    let left_ms = match (reason, ahead) {
        (Reason::Ahead, Some(left_ms)) => left_ms,
        (Reason::Miss, _) => 0,
        _ => left_ms(server, name),
    };
    let reason = if wanted == Reason::Warm { wanted } else { reason };
    let order = Order { loader: loader.into(), reason };
    match single_flight::begin(server, name, lease_ms, has_value, Some(order)) {
        Some(token) => Turn::Handed(Handed { key: Rc::clone(key), token, reason, left_ms }),
        None => Turn::NoRoom,
    }
}

/// How long the stale value can still be served.
fn left_ms<S: Server>(server: &mut S, key: Arg<'_>) -> i64 {
    match server.expiry(key) {
        Expiry::At(at) => at.since(server.now().to_ms()).max(0),
        Expiry::Never | Expiry::NoKey => 0,
    }
}

/// The reply of LOADS.
pub(super) fn reply(handed: &[Handed]) -> Reply<'static> {
    let one = |job: &Handed| {
        Reply::Array(vec![
            Reply::Shared(Rc::clone(&job.key)),
            Reply::OwnedBytes(job.token.to_bytes()),
            Reply::Word(job.reason.word()),
            Reply::Int(job.left_ms),
        ])
    };
    Reply::Array(handed.iter().map(one).collect())
}

/// Holds the loader until there is a job. `None`: he cannot wait.
///
/// # Errors
/// `TooManyWaiters` if there is no room for him.
pub(super) fn wait<S: Server>(
    server: &mut S,
    loader: &[u8],
    wish: Wish,
    block_ms: i64,
) -> Result<Option<Reply<'static>>, Error> {
    if !server.may_block() {
        return Ok(None);
    }
    let db = server.db();
    let state = server.state();
    let here = state.cache.loaders.waiting.len_of(db, loader);
    if !state.has_room_to_wait(here) {
        state.cache.counters.waits_refused = state.cache.counters.waits_refused.saturating_add(1);
        return Err(Error::TooManyWaiters);
    }
    let Some(waiter) = server.block(block_ms, Reply::Array(Vec::new())) else { return Ok(None) };
    let loaders = &mut server.state().cache.loaders;
    loaders.waiting.join(waiter, Request { db, loader: [loader.into()], wish });
    // What was passed over may be for him.
    if loaders.jobs.next(db, loader, None).is_some() {
        loaders.waiting.look_at(db, loader);
    }
    Ok(Some(Reply::Later))
}

/// Gives jobs to the loaders that wait for them, in the order of their arrival.
pub(super) fn serve<S: Server>(server: &mut S, loader: &[u8]) {
    if server.state().cache.loaders.waiting.is_empty() || server.is_replica() {
        return;
    }
    let db = server.db();
    serve_some(server, loader);
    server.state().cache.loaders.waiting.looked_at(db, loader, None);
}

fn serve_some<S: Server>(server: &mut S, loader: &[u8]) {
    let db = server.db();
    for _ in 0..MOST_AT_ONCE {
        let Some((waiter, request)) = server.state().cache.loaders.waiting.head(db, loader) else { return };
        if server.is_waiting(waiter) {
            let handed = hand_out(server, loader, &request.wish);
            if handed.is_empty() {
                return;
            }
            if !server.answer(waiter, reply(&handed)) {
                take_back(server, loader, handed);
            }
        }
        server.state().cache.loaders.waiting.leave(waiter);
    }
    server.state().cache.loaders.waiting.look_at(db, loader);
}

fn take_back<S: Server>(server: &mut S, loader: &[u8], handed: Vec<Handed>) {
    let db = server.db();
    for job in handed {
        server.state().cache.leases.take(db, &job.key, job.token);
        want(server, loader, &job.key, job.reason);
    }
}

/// Looks at one queue that loaders wait for. Whether there was any. For a timer.
pub(super) fn due<S: Server>(server: &mut S) -> bool {
    let now = server.now().to_ms();
    let cache = &mut server.state().cache;
    if cache.loaders.starved_at.is_some_and(|full| cache.leases.len() < full) {
        cache.loaders.look_at_all();
    }
    let Some(name) = server.state().cache.loaders.waiting.next_due(now) else { return false };
    server.select(name.db);
    serve(server, &name.key);
    server.state().cache.loaders.waiting.looked_at(name.db, &name.key, None);
    true
}
