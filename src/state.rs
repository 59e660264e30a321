//! All of the module's own memory, and what happens to it when the keyspace changes.

use crate::clock::UnixMs;
use crate::cluster::Topic;
use crate::config::Config;
use crate::fencing::Fencing;
use crate::server::{Server, Waiter};
pub use crate::writebehind::View as Dirty;

/// Module memory. One per server; the main thread owns it.
#[derive(Debug, Default)]
pub struct State {
    pub config: Config,
    pub fencing: Fencing,
    pub cache: crate::cache::State,
    pub lock: crate::lock::State,
    pub ratelimit: crate::ratelimit::State,
    pub writebehind: crate::writebehind::State,
    pub cluster: crate::cluster::State,
    /// Panics that were caught; anything but 0 is a bug.
    pub panics: u64,
}

/// What the keyspace notifications tell, in the terms of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEvent {
    /// `del`: by a command, or (on a replica) whatever removed it on the primary.
    Deleted,
    Expired,
    Evicted,
    /// `copy_to` or `restore`: another value has come, from outside.
    Replaced,
    /// A write by a command of another kind; only reported while somebody needs it.
    Written,
    /// The key came with the RDB file.
    Loaded,
}

/// What the host has to do after a key event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aftermath {
    /// A lock is really gone, by its token: replicas, which cannot tell that from an eviction, must be told.
    pub forget_lock: Option<i64>,
    /// The same of a queue.
    pub forget_queue: Option<i64>,
    /// A held lock, or a queue, was evicted: its key comes back from a timer.
    pub put_back_soon: bool,
}

/// A dump record of the lock family has this bit in its kind, one of the write-behind family the next; one of the cache family has
/// neither.
const LOCK_RECORDS: u64 = 1 << 8;
const QUEUE_RECORDS: u64 = 1 << 9;

/// The record of the fencing reserve.
const RESERVE: u64 = LOCK_RECORDS | 1;

impl State {
    /// The key changed under us. Called after the change, also for changes by our own commands. `replayed`: the change
    /// comes from the primary or the AOF, so that a DEL may be an eviction there.
    pub fn key_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs, replayed: bool) -> Aftermath {
        self.cache.departs(&self.config, event, db, key, now);
        self.followed(event, db, key, now, replayed)
    }

    /// A key of our own was deleted by a command of ours, a released lock say, and nobody will ask why.
    pub fn own_key_deleted(&mut self, db: usize, key: &[u8], now: UnixMs, replayed: bool) {
        self.followed(KeyEvent::Deleted, db, key, now, replayed);
    }

    fn followed(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs, replayed: bool) -> Aftermath {
        self.cache.key_event(&self.config, event, db, key, now);
        self.ratelimit.key_event(event, db, key, now);
        let lock = self.lock.key_event(event, db, key, now, replayed);
        let queue = self.writebehind.key_event(event, db, key, now, replayed);
        Aftermath {
            forget_lock: lock.forget,
            forget_queue: queue.forget,
            put_back_soon: lock.put_back_soon || queue.put_back_soon,
        }
    }

    /// Is any key dirty? If not, reads pay nothing for that.
    #[inline]
    pub fn any_dirty(&self) -> bool {
        !self.writebehind.is_clean()
    }

    /// What a write-behind queue knows of the key's value.
    pub fn dirty(&self, db: usize, key: &[u8]) -> Option<Dirty<'_>> {
        self.writebehind.view(db, key)
    }

    /// Is the key deleted by a write-behind queue, or its value unknown?
    #[inline]
    pub fn hides(&self, db: usize, key: &[u8]) -> bool {
        self.writebehind.hides(db, key)
    }

    /// `old` became `new`; what `new` held before is gone.
    pub fn key_renamed(&mut self, db: usize, old: &[u8], new: &[u8], now: UnixMs) {
        self.cache.key_moved(&self.config, (db, old), (db, new), now);
        self.lock.key_moved((db, old), (db, new));
        self.writebehind.key_moved((db, old), (db, new));
    }

    /// The key went to another database.
    pub fn key_moved(&mut self, from: usize, to: usize, key: &[u8], now: UnixMs) {
        self.cache.key_moved(&self.config, (from, key), (to, key), now);
        self.lock.key_moved((from, key), (to, key));
        self.writebehind.key_moved((from, key), (to, key));
    }

    /// One database (`Some`) or all of them are empty now.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.cache.flushed(db);
        self.lock.flushed(db);
        self.ratelimit.flushed(db);
        self.writebehind.flushed(db);
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        self.cache.swapped(a, b);
        self.lock.swapped(a, b);
        self.ratelimit.swapped(a, b);
        self.writebehind.swapped(a, b);
    }

    /// A file, or a full sync, is about to be loaded, or its load has failed.
    pub fn loading(&mut self) {
        self.cache.loading();
    }

    /// A file, or a full sync, has been loaded to its end.
    pub fn loaded(&mut self) {
        self.cache.loaded();
        self.fencing.resume();
        self.writebehind.freeze(self.fencing.saved());
    }

    /// This server is the primary now, or no longer.
    pub fn role_changed(&mut self, primary: bool) {
        if primary {
            self.fencing.resume();
        } else {
            self.cache.demoted();
            self.lock.demoted();
            self.ratelimit.demoted();
            self.writebehind.demoted();
            self.cluster.demoted();
        }
        self.writebehind.freeze(self.fencing.saved());
    }

    /// Slots have come, with all that changes their keys but without what is not replicated: loads, and what workers have claimed.
    pub fn slots_came(&mut self) {
        self.cache.slots_came();
        self.writebehind.freeze(self.fencing.saved());
    }

    /// A waiter has gone: his wait ran out, or his connection did.
    pub fn waiter_left(&mut self, waiter: Waiter) {
        self.cache.waiter_left(waiter);
        self.lock.waiter_left(waiter);
        self.ratelimit.waiter_left(waiter);
        self.writebehind.waiter_left(waiter);
        self.cluster.waiter_left(waiter);
    }

    /// A connection has closed.
    pub fn connection_closed(&mut self, session: u64) {
        self.lock.connection_closed(session);
        self.ratelimit.connection_closed(session);
    }

    /// When there is work for [`due`].
    #[inline]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        let clients = UnixMs::earliest(self.lock.next_deadline(), self.ratelimit.next_deadline());
        UnixMs::earliest(clients, self.writebehind.next_deadline())
    }

    /// Slots of the cluster are on their way: somebody has to look whether the keys are still here that others wait for.
    pub fn look_at_all_queues(&mut self) {
        self.lock.queues.look_at_all(None);
        self.ratelimit.queues.look_at_all(None);
        self.writebehind.waiting.look_at_all(None);
    }

    /// How many clients wait, for whatever it is.
    pub fn waiters(&self) -> usize {
        let queued = self.lock.queues.len().saturating_add(self.ratelimit.queues.len());
        let workers = self.cache.waiting_loaders().saturating_add(self.writebehind.waiting.len());
        let fan_outs = self.cluster.fan_outs.len();
        self.cache.waiters().saturating_add(queued).saturating_add(workers).saturating_add(fan_outs)
    }

    /// May one more client wait where so many do already?
    pub fn has_room_to_wait(&self, here: usize) -> bool {
        let below = |waiting: usize, max: i64| usize::try_from(max).is_ok_and(|max| waiting < max);
        below(self.waiters(), self.config.waiters_max) && below(here, self.config.waiters_per_key_max)
    }

    /// Settings have new values; caps that became smaller take effect.
    pub fn config_changed(&mut self) {
        self.cache.config_changed(&self.config);
    }

    /// Bounded upkeep, some times a second: drops what has run out.
    pub fn sweep(&mut self, now: UnixMs, budget: usize) {
        self.cache.sweep(&self.config, now, budget);
        self.clear_away(budget);
    }

    /// Gives memory of queues that are gone back, bit by bit.
    pub fn clear_away(&mut self, budget: usize) {
        let cache = &mut self.cache;
        self.writebehind.clear_away(budget, |db, key| cache.look_at(db, key));
    }

    /// What an RDB file carries besides keys: records of a kind and bytes.
    pub fn save(&self, emit: &mut dyn FnMut(u64, &[u8])) {
        self.cache.save(&mut |kind, bytes| emit(kind, bytes));
        if self.fencing.saved() > 0 {
            emit(RESERVE, &self.fencing.saved().to_le_bytes());
        }
        self.lock.save(&mut |kind, bytes| emit(kind | LOCK_RECORDS, bytes));
        self.writebehind.save(&mut |kind, bytes| emit(kind | QUEUE_RECORDS, bytes));
    }

    /// Takes in one record. `None`: the bytes are no such record. Kinds that nobody knows are skipped.
    pub fn load(&mut self, kind: u64, bytes: &[u8], now: UnixMs) -> Option<()> {
        if kind == RESERVE {
            self.fencing.load(bytes)
        } else if kind & LOCK_RECORDS != 0 {
            self.lock.load(kind & !LOCK_RECORDS, bytes)
        } else if kind & QUEUE_RECORDS != 0 {
            self.writebehind.load(kind & !QUEUE_RECORDS, bytes)
        } else {
            self.cache.load(&self.config, kind, bytes, now)
        }
    }
}

/// Does a piece of the work that no command does for each family that has some: looks at a queue, ends claims, or frees what a
/// closed connection held. Whether there was any. For a timer, and only while the server may write.
pub fn due<S: Server>(server: &mut S) -> bool {
    let locks = crate::lock::due(server);
    let limiters = crate::ratelimit::due(server);
    let workers = crate::writebehind::due(server);
    locks || limiters || workers
}

/// Does what another node of the cluster asks for: the count that it is told. `None`: that is nothing this server could do. For a timer,
/// and only while the server may write.
pub fn deliver<S: Server>(server: &mut S, topic: Topic, payload: &[u8]) -> Option<i64> {
    match topic {
        Topic::INVALIDATION => crate::cache::fan_out::deliver(server, payload),
        _ => None,
    }
}
