//! The limiter family's counters; limits themselves live in the keyspace.

use crate::clock::UnixMs;
use crate::state::KeyEvent;

#[derive(Debug, Default)]
pub struct State {
    /// Requests that CHECK admitted.
    pub allowed: u64,
    /// Requests that CHECK denied.
    pub denied: u64,
    /// Keys that RESET removed.
    pub resets: u64,
    /// Limiters that memory pressure removed while something was counted in them: their next window starts afresh.
    pub evicted: u64,
    /// The limiter that left its name last; the key event that follows tells why.
    unlinked: Option<Unlinked>,
}

#[derive(Debug)]
struct Unlinked {
    db: usize,
    key: Box<[u8]>,
    full_at: UnixMs,
}

impl State {
    /// A limiter leaves its name; it is full again at `full_at`.
    pub fn unlinked(&mut self, db: usize, key: &[u8], full_at: UnixMs) {
        self.unlinked = Some(Unlinked { db, key: key.into(), full_at });
    }

    /// The key changed. An overwritten limiter gets no event, so the name is compared.
    pub fn key_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs) {
        if let Some(unlinked) = self.unlinked.take()
            && event == KeyEvent::Evicted
            && unlinked.db == db
            && *unlinked.key == *key
            && now < unlinked.full_at
        {
            self.evicted = self.evicted.saturating_add(1);
        }
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
