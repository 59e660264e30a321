//! All of the module's own memory, and what happens to it when the keyspace changes.

use crate::clock::UnixMs;
use crate::config::Config;

/// Module memory. One per server; the main thread owns it.
#[derive(Debug, Default)]
pub struct State {
    pub config: Config,
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

impl State {
    /// The key changed under us. Called after the change, also for changes by our own commands.
    pub fn key_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs) {
        self.cache.key_event(&self.config, event, db, key, now);
    }

    /// `old` became `new`; what `new` held before is gone.
    pub fn key_renamed(&mut self, db: usize, old: &[u8], new: &[u8], now: UnixMs) {
        self.cache.key_moved(&self.config, (db, old), (db, new), now);
    }

    /// The key went to another database.
    pub fn key_moved(&mut self, from: usize, to: usize, key: &[u8], now: UnixMs) {
        self.cache.key_moved(&self.config, (from, key), (to, key), now);
    }

    /// One database (`Some`) or all of them are empty now.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.cache.flushed(db);
        self.lock.flushed(db);
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        self.cache.swapped(a, b);
        self.lock.swapped(a, b);
    }
}
