//! How a limit stands at one moment, whatever its algorithm.

use crate::ratelimit::limit::Limit;
use crate::ratelimit::meter::{Algorithm, Meter};
use crate::ratelimit::{fixed_window, gcra, sliding_window};

#[derive(Clone, Debug)]
pub enum Reading<'a> {
    Sliding(sliding_window::Reading<'a>),
    Gcra(gcra::Reading),
    Fixed(fixed_window::Reading),
}

impl Reading<'_> {
    /// Of a limit in which nothing is counted.
    pub fn full(meter: Meter) -> Reading<'static> {
        match meter.algorithm {
            Algorithm::Sliding => Reading::Sliding(sliding_window::Reading::full(meter.window)),
            Algorithm::Gcra { rate } => Reading::Gcra(gcra::Reading::empty(meter.window, rate)),
            Algorithm::Fixed => Reading::Fixed(fixed_window::Reading::empty()),
        }
    }

    /// The units that are counted; begun ones of GCRA count whole.
    pub fn used(&self) -> i64 {
        match self {
            Reading::Sliding(reading) => reading.used(),
            Reading::Gcra(reading) => reading.used(),
            Reading::Fixed(reading) => reading.used(),
        }
    }

    /// Milliseconds, rounded up, until no more than `units` are counted; 0 if that is so now.
    #[inline]
    pub fn ms_until_used(&self, units: i64) -> i64 {
        let over = self.used().saturating_sub(units.max(0));
        if over <= 0 {
            return 0;
        }
        match self {
            Reading::Sliding(reading) => reading.ms_until_free(over),
            Reading::Gcra(reading) => reading.ms_until_used(units.max(0)),
            Reading::Fixed(reading) => reading.ms_until_full(),
        }
    }

    /// Units that are left; below 0 if the limit was lowered to less than what is consumed.
    pub fn left(&self, limit: Limit) -> i64 {
        limit.capacity.saturating_sub(self.used())
    }

    /// Would this cost be admitted?
    pub fn admits(&self, limit: Limit, cost: i64) -> bool {
        limit.admits(self.left(limit), cost)
    }

    /// Milliseconds until this cost will be admitted, if nobody else comes: 1 or more, and `None` if never. For a cost that is
    /// not admitted now.
    pub fn retry_after_ms(&self, limit: Limit, cost: i64) -> Option<i64> {
        let taken = limit.reserve.saturating_add(cost);
        limit.can_fit(cost).then(|| self.ms_until_used(limit.capacity.saturating_sub(taken)).max(1))
    }
}
