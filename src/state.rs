//! All of the module's own memory, and what happens to it when the keyspace changes.

use crate::clock::UnixMs;
use crate::config::Config;
use crate::fencing::Fencing;
use crate::server::{Server, Waiter};

/// Module memory. One per server; the main thread owns it.
#[derive(Debug, Default)]
pub struct State {
    pub config: Config,
    pub fencing: Fencing,
    pub cache: crate::cache::State,
    pub lock: crate::lock::State,
    pub ratelimit: crate::ratelimit::State,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aftermath {
    Nothing,
    /// A lock is really gone: replicas, which cannot tell that from an eviction, must be told.
    Forget {
        token: i64,
    },
    /// A held lock was evicted: its key comes back from a timer.
    PutBackSoon,
}

/// A dump record of the lock family has this bit in its kind, one of the cache family has not.
const LOCK_RECORDS: u64 = 1 << 8;

/// The record of the fencing reserve.
const RESERVE: u64 = LOCK_RECORDS | 1;

impl State {
    /// The key changed under us. Called after the change, also for changes by our own commands. `replayed`: the change
    /// comes from the primary or the AOF, so that a DEL may be an eviction there.
    pub fn key_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs, replayed: bool) -> Aftermath {
        self.cache.key_event(&self.config, event, db, key, now);
        self.ratelimit.key_event(event, db, key, now);
        self.lock.key_event(event, db, key, now, replayed)
    }

    /// `old` became `new`; what `new` held before is gone.
    pub fn key_renamed(&mut self, db: usize, old: &[u8], new: &[u8], now: UnixMs) {
        self.cache.key_moved(&self.config, (db, old), (db, new), now);
        self.lock.key_moved((db, old), (db, new));
    }

    /// The key went to another database.
    pub fn key_moved(&mut self, from: usize, to: usize, key: &[u8], now: UnixMs) {
        self.cache.key_moved(&self.config, (from, key), (to, key), now);
        self.lock.key_moved((from, key), (to, key));
    }

    /// One database (`Some`) or all of them are empty now.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.cache.flushed(db);
        self.lock.flushed(db);
        self.ratelimit.flushed(db);
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        self.cache.swapped(a, b);
        self.lock.swapped(a, b);
        self.ratelimit.swapped(a, b);
    }

    /// A file, or a full sync, has been loaded to its end.
    pub fn loaded(&mut self) {
        self.cache.loaded();
        self.fencing.resume();
    }

    /// This server is the primary now, or no longer.
    pub fn role_changed(&mut self, primary: bool) {
        if primary {
            self.fencing.resume();
        } else {
            self.cache.demoted();
            self.lock.demoted();
            self.ratelimit.demoted();
        }
    }

    /// A waiter has gone: his wait ran out, or his connection did.
    pub fn waiter_left(&mut self, waiter: Waiter) {
        self.cache.waiter_left(waiter);
        self.lock.waiter_left(waiter);
        self.ratelimit.waiter_left(waiter);
    }

    /// A connection has closed.
    pub fn connection_closed(&mut self, session: u64) {
        self.lock.connection_closed(session);
        self.ratelimit.connection_closed(session);
    }

    /// When there is work for [`due`].
    pub fn next_deadline(&self) -> Option<UnixMs> {
        self.lock.next_deadline().into_iter().chain(self.ratelimit.next_deadline()).min()
    }

    /// How many clients wait, for whatever it is.
    pub fn waiters(&self) -> usize {
        let queued = self.lock.queues.len().saturating_add(self.ratelimit.queues.len());
        self.cache.waiters().saturating_add(queued)
    }

    /// Settings have new values; caps that became smaller take effect.
    pub fn config_changed(&mut self) {
        self.cache.config_changed(&self.config);
    }

    /// Bounded upkeep, some times a second: drops what has run out.
    pub fn sweep(&mut self, now: UnixMs, budget: usize) {
        self.cache.sweep(&self.config, now, budget);
    }

    /// What an RDB file carries besides keys: records of a kind and bytes.
    pub fn save(&self, emit: &mut dyn FnMut(u64, &[u8])) {
        self.cache.save(&mut |kind, bytes| emit(kind, bytes));
        if self.fencing.saved() > 0 {
            emit(RESERVE, &self.fencing.saved().to_le_bytes());
        }
        self.lock.save(&mut |kind, bytes| emit(kind | LOCK_RECORDS, bytes));
    }

    /// Takes in one record. `None`: the bytes are no such record. Kinds that nobody knows are skipped.
    pub fn load(&mut self, kind: u64, bytes: &[u8], now: UnixMs) -> Option<()> {
        if kind == RESERVE {
            self.fencing.load(bytes)
        } else if kind & LOCK_RECORDS != 0 {
            self.lock.load(kind & !LOCK_RECORDS, bytes)
        } else {
            self.cache.load(&self.config, kind, bytes, now)
        }
    }
}

/// Does a piece of the work that no command does for each family that has some: looks at a queue, or frees what a closed
/// connection held. Whether there was any. For a timer, and only while the server may write.
pub fn due<S: Server>(server: &mut S) -> bool {
    let locks = crate::lock::due(server);
    let limiters = crate::ratelimit::due(server);
    locks || limiters
}
