//! What CHECK, PEEK and REFUND answer.

use smallvec::smallvec;

use crate::clock::UnixMs;
use crate::ratelimit::limit::Limit;
use crate::ratelimit::reading::Reading;
use crate::reply::Reply;

/// The limit that decided, and how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub allowed: bool,
    pub limit: i64,
    /// `0..=limit`, also when the limit was lowered below what is consumed. What is reserved for others counts.
    pub remaining: i64,
    /// Until the same cost would be admitted if nobody else came; 0 when allowed, -1 when it can never fit.
    pub retry_after_ms: i64,
    /// Until `remaining` grows; 0 when full.
    pub next_ms: i64,
    /// Until full; 0 when full.
    pub reset_ms: i64,
    /// Which limit of the call it is; -1 for a ban.
    pub index: i64,
}

/// What the limits of a call make of its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    /// The limit of this index denies it for the longest time: milliseconds, `None` for ever.
    Denied {
        index: usize,
        retry_after_ms: Option<i64>,
    },
}

/// Would this cost be admitted under all limits? Of several that deny it, the one that does so for the longest time counts.
pub fn judge(limits: &[Limit], readings: &[Reading<'_>], cost: i64) -> Verdict {
    let mut verdict = Verdict::Admitted;
    let mut longest = 0;
    for (index, (limit, reading)) in limits.iter().zip(readings).enumerate() {
        if reading.admits(*limit, cost) {
            continue;
        }
        let retry_after_ms = reading.retry_after_ms(*limit, cost);
        let wait = retry_after_ms.unwrap_or(i64::MAX);
        if wait > longest {
            longest = wait;
            verdict = Verdict::Denied { index, retry_after_ms };
        }
    }
    verdict
}

/// Of several limits the one with the least left.
pub fn scarcest(limits: &[Limit], readings: &[Reading<'_>]) -> usize {
    let left = limits.iter().zip(readings).map(|(limit, reading)| reading.left(*limit).max(0));
    left.enumerate().min_by_key(|(_, left)| *left).map_or(0, |(index, _)| index)
}

impl Answer {
    /// Of no limit at all, which no call can ask for.
    pub const NONE: Answer =
        Answer { allowed: false, limit: 0, remaining: 0, retry_after_ms: -1, next_ms: 0, reset_ms: 0, index: 0 };

    /// The answer that the limit of this index gives.
    pub fn of(limits: &[Limit], readings: &[Reading<'_>], index: usize) -> Option<Answer> {
        let (limit, reading) = (*limits.get(index)?, readings.get(index)?);
        let remaining = reading.left(limit).max(0);
        let next_ms = if remaining == limit.capacity {
            0
        } else {
            reading.ms_until_used(limit.capacity.saturating_sub(remaining).saturating_sub(1))
        };
        Some(Answer {
            allowed: true,
            limit: limit.capacity,
            remaining,
            retry_after_ms: 0,
            next_ms,
            reset_ms: reading.ms_until_used(0),
            index: i64::try_from(index).unwrap_or_default(),
        })
    }

    pub fn denied(self, retry_after_ms: Option<i64>) -> Answer {
        Answer { allowed: false, retry_after_ms: retry_after_ms.unwrap_or(-1), ..self }
    }

    /// Banned until then, whatever the limits say.
    pub fn banned(self, until: UnixMs, now: UnixMs) -> Answer {
        let left_ms = until.since(now).max(1);
        Answer {
            allowed: false,
            remaining: 0,
            retry_after_ms: left_ms,
            next_ms: if self.remaining > 0 { left_ms } else { self.next_ms.max(left_ms) },
            reset_ms: self.reset_ms.max(left_ms),
            index: -1,
            ..self
        }
    }

    /// The seven integers.
    pub fn reply(&self) -> Reply<'static> {
        Reply::Ints(smallvec![
            i64::from(self.allowed),
            self.limit,
            self.remaining,
            self.retry_after_ms,
            self.next_ms,
            self.reset_ms,
            self.index,
        ])
    }
}
