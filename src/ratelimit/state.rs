//! The limiter family's memory: who waits, what ends with a connection, and counters. Limits themselves live in the keyspace.

use hashbrown::HashMap;

use crate::clock::UnixMs;
use crate::name::Name;
use crate::ratelimit::concurrency::Id;
use crate::ratelimit::forecast::Forecast;
use crate::ratelimit::slots;
use crate::ratelimit::waiting::Request;
use crate::server::Waiter;
use crate::sessions::Sessions;
use crate::state::KeyEvent;
use crate::wait_queue::WaitQueues;

#[derive(Debug, Default)]
pub struct State {
    pub queues: WaitQueues<Request>,
    /// When those who queue for a limiter will be admitted, for limiters of which somebody asked.
    pub forecasts: HashMap<Name, Forecast>,
    /// Slots that end with a connection, by their id.
    pub sessions: Sessions<Id>,
    pub slots: slots::Counters,
    /// Clients that waited, and that were refused to.
    pub waits: u64,
    pub waits_refused: u64,
    /// Requests that CHECK and CL.THROTTLE admitted.
    pub allowed: u64,
    /// Requests that CHECK and CL.THROTTLE denied.
    pub denied: u64,
    /// Keys that RESET removed.
    pub resets: u64,
    /// Limiters that memory pressure removed while something was counted in them, or somebody held a slot: they start afresh.
    pub evicted: u64,
    /// Nanoseconds: the longest that a limit takes to drain of those that CL.THROTTLE was called with.
    pub longest_drain: i64,
    /// The limiter or slots that left their name last; the key event that follows tells why.
    unlinked: Option<Unlinked>,
}

#[derive(Debug)]
struct Unlinked {
    db: usize,
    key: Box<[u8]>,
    unused_at: UnixMs,
}

impl State {
    /// A limiter or slots leave their name; from `unused_at` on nothing is counted in it.
    pub fn unlinked(&mut self, db: usize, key: &[u8], unused_at: UnixMs) {
        self.queues.look_at(db, key);
        self.unlinked = Some(Unlinked { db, key: key.into(), unused_at });
    }

    /// A limiter or slots have come to this name.
    pub fn linked(&mut self, db: usize, key: &[u8]) {
        self.queues.look_at(db, key);
    }

    /// The key changed. An overwritten limiter gets no event, so the name is compared.
    pub fn key_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs) {
        if let Some(unlinked) = self.unlinked.take()
            && event == KeyEvent::Evicted
            && unlinked.db == db
            && *unlinked.key == *key
            && now < unlinked.unused_at
        {
            self.evicted = self.evicted.saturating_add(1);
        }
    }

    /// One database (`Some`) or all of them are empty now.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.queues.look_at_all(db);
        self.sessions.flushed(db);
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        self.queues.look_at_all(Some(a));
        self.queues.look_at_all(Some(b));
        self.sessions.swapped(a, b);
    }

    /// A waiter has gone: his wait ran out, or his connection did.
    pub fn waiter_left(&mut self, waiter: Waiter) {
        if let Some(request) = self.queues.leave(waiter) {
            self.forecasts.remove(&request.name());
        }
    }

    /// A connection has closed.
    pub fn connection_closed(&mut self, session: u64) {
        self.sessions.closed(session);
    }

    /// When there is work for [`due`](super::due).
    #[inline]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        if self.sessions.any_closed() { Some(UnixMs(0)) } else { self.queues.next_look() }
    }

    /// This server is no primary any more: it lets nobody in, and the server has answered those who waited.
    pub fn demoted(&mut self) {
        self.queues = WaitQueues::default();
        self.sessions = Sessions::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evicted_after(event: KeyEvent, key: &[u8], now: i64) -> u64 {
        let mut state = State::default();
        state.unlinked(0, b"k", UnixMs(100));
        state.key_event(event, 0, key, UnixMs(now));
        state.key_event(KeyEvent::Evicted, 0, b"k", UnixMs(now));
        state.evicted
    }

    #[test]
    fn only_the_eviction_of_a_limiter_in_use_is_counted() {
        assert_eq!(evicted_after(KeyEvent::Evicted, b"k", 99), 1);
        assert_eq!(evicted_after(KeyEvent::Evicted, b"k", 100), 0, "full again");
        assert_eq!(evicted_after(KeyEvent::Evicted, b"other", 99), 0, "overwritten, then another key was evicted");
        assert_eq!(evicted_after(KeyEvent::Deleted, b"k", 99), 0);
        assert_eq!(evicted_after(KeyEvent::Expired, b"k", 99), 0);
    }
}
