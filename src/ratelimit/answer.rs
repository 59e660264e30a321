//! What CHECK, PEEK and REFUND answer.

use smallvec::SmallVec;

use crate::clock::{UnixMs, UnixUs};
use crate::ratelimit::limit::Limit;
use crate::ratelimit::limiter::Limiter;
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

/// One of the limits of a call, as it stands.
#[derive(Clone, Debug)]
pub struct Standing<'a> {
    index: usize,
    limit: &'a Limit,
    reading: Reading<'a>,
}

/// A limit that denies a cost, and for how long: milliseconds, `None` for ever.
#[derive(Clone, Debug)]
pub struct Denial<'a> {
    pub standing: Standing<'a>,
    pub retry_after_ms: Option<i64>,
}

impl<'a> Standing<'a> {
    /// `None` if it admits this cost.
    #[inline(always)]
    fn denial(limiter: &'a Limiter, index: usize, limit: &'a Limit, cost: i64, now: UnixUs) -> Option<Denial<'a>> {
        let reading = limiter.reading(limit.meter, now);
        if reading.admits(*limit, cost) {
            return None;
        }
        let retry_after_ms = reading.retry_after_ms(*limit, cost);
        Some(Denial { standing: Standing { index, limit, reading }, retry_after_ms })
    }

    /// The answer that this limit gives.
    pub fn answer(&self) -> Answer {
        Answer::of(self.index, self.limit, &self.reading)
    }
}

/// Of the limits that deny this cost the one that does so for the longest time; `None` if all of them admit it.
pub fn denial<'a>(limiter: &'a Limiter, limits: &'a [Limit], cost: i64, now: UnixUs) -> Option<Denial<'a>> {
    if let [limit] = limits {
        return Standing::denial(limiter, 0, limit, cost, now);
    }
    let (mut longest, mut wait) = (None, 0);
    for (index, limit) in limits.iter().enumerate() {
        let Some(denial) = Standing::denial(limiter, index, limit, cost, now) else { continue };
        let this = denial.retry_after_ms.unwrap_or(i64::MAX);
        if this > wait {
            wait = this;
            longest = Some(denial);
        }
    }
    longest
}

/// Of several limits the one with the least left.
fn scarcest<'a>(limiter: &'a Limiter, limits: &'a [Limit], now: UnixUs) -> Option<Standing<'a>> {
    let (mut scarcest, mut least) = (None, i64::MAX);
    for (index, limit) in limits.iter().enumerate() {
        let reading = limiter.reading(limit.meter, now);
        let left = reading.left(*limit).max(0);
        if left < least {
            least = left;
            scarcest = Some(Standing { index, limit, reading });
        }
    }
    scarcest
}

impl Answer {
    /// Of no limit at all, which no call can ask for.
    const NONE: Answer =
        Answer { allowed: false, limit: 0, remaining: 0, retry_after_ms: -1, next_ms: 0, reset_ms: 0, index: 0 };

    /// Admitted: how the limit stands that has the least left.
    pub fn admitted(limiter: &Limiter, limits: &[Limit], now: UnixUs) -> Answer {
        match limits {
            [limit] => Answer::of(0, limit, &limiter.reading(limit.meter, now)),
            _ => scarcest(limiter, limits, now).map_or(Answer::NONE, |standing| standing.answer()),
        }
    }

    fn of(index: usize, limit: &Limit, reading: &Reading<'_>) -> Answer {
        let remaining = reading.left(*limit).max(0);
        let next_ms = if remaining == limit.capacity {
            0
        } else {
            reading.ms_until_used(limit.capacity.saturating_sub(remaining).saturating_sub(1))
        };
        Answer {
            allowed: true,
            limit: limit.capacity,
            remaining,
            retry_after_ms: 0,
            next_ms,
            reset_ms: reading.ms_until_used(0),
            index: i64::try_from(index).unwrap_or_default(),
        }
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
        Reply::Ints(SmallVec::from_buf([
            i64::from(self.allowed),
            self.limit,
            self.remaining,
            self.retry_after_ms,
            self.next_ms,
            self.reset_ms,
            self.index,
        ]))
    }
}
