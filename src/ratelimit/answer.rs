//! What CHECK and PEEK answer.

use smallvec::smallvec;

use crate::ratelimit::limit::Limit;
use crate::ratelimit::sliding_window::Reading;
use crate::reply::Reply;

/// How a limit stands towards a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub allowed: bool,
    pub limit: i64,
    /// `0..=limit`, also when the limit was lowered below what is consumed.
    pub remaining: i64,
    /// Until the same cost would be admitted if nobody else came; 0 when allowed, -1 when it exceeds the limit.
    pub retry_after_ms: i64,
    /// Until `remaining` grows; 0 when full.
    pub next_ms: i64,
    /// Until full; 0 when full.
    pub reset_ms: i64,
}

impl Answer {
    /// Cost 0 asks how the limit stands after a charge.
    pub fn of(reading: &Reading<'_>, limit: Limit, cost: i64) -> Answer {
        let used = reading.used();
        let allowed = limit.admits(used, cost);
        let retry_after_ms = if allowed {
            0
        } else if cost > limit.count {
            -1
        } else {
            reading.ms_until_free(used.saturating_add(cost).saturating_sub(limit.count))
        };
        let missing = used.saturating_sub(limit.count);
        Answer {
            allowed,
            limit: limit.count,
            remaining: missing.saturating_neg().max(0),
            retry_after_ms,
            next_ms: reading.ms_until_free(missing.max(0).saturating_add(1)),
            reset_ms: reading.ms_until_full(),
        }
    }

    /// The seven integers; the last is the index of the limit that decided.
    pub fn reply(&self) -> Reply<'static> {
        Reply::Ints(smallvec![
            i64::from(self.allowed),
            self.limit,
            self.remaining,
            self.retry_after_ms,
            self.next_ms,
            self.reset_ms,
            0,
        ])
    }
}
