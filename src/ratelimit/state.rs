//! The limiter family's counters; limits themselves live in the keyspace.

/// What INFO tells, since the start of the server. PEEK counts nowhere.
#[derive(Debug, Default)]
pub struct State {
    /// Checks that were allowed.
    pub allowed: u64,
    /// Checks that were denied.
    pub denied: u64,
    /// Keys that RATELIMIT.RESET removed.
    pub resets: u64,
    /// Limiters that were evicted before they were full: what they had counted was forgotten.
    pub evicted: u64,
}

impl State {
    /// A limiter was evicted that was not full, see [`Limiter::is_full`](super::limiter::Limiter::is_full).
    pub fn evicted(&mut self) {
        self.evicted = self.evicted.saturating_add(1);
    }
}
