//! The arithmetic of redis-cell's `CL.THROTTLE`, so that one state serves both: a virtual schedule (GCRA) in integer
//! nanoseconds.
//!
//! Stored is one moment, the theoretical arrival time (`tat`): when what was admitted will have drained, at one unit an
//! interval. How far it lies ahead of now is what is consumed. A call is admitted if that, with its own units, is no more than
//! the limit takes to drain. So in any time `w` no more than the limit and `w / interval` units are admitted.
//!
//! The state does not tell under which rate and burst it was written, and these may differ from call to call: a stricter caller
//! has to find what a more generous one has consumed, and must not cut it down to what its own limit could hold. Only what
//! lies further ahead than any limit asked for could have put it (`reach`) comes from a clock that was set back, or was
//! written by hand. It counts as one full drain of the limit at hand, and a denial stores that: denials would otherwise last
//! until the old time is reached again.

use crate::clock::UnixMs;
use crate::error::Error;

const NS_PER_SECOND: i128 = 1_000_000_000;
const NS_PER_MS: i64 = 1_000_000;

/// The longest time that a limit may take to drain, or the units of one call: 4,611,686,018 seconds. Added to a moment before
/// the year 2116 it stays within `i64`.
const LONGEST_NS: i64 = i64::MAX / 2;
const LONGEST_TEXT: &str = "at most 4611686018 seconds to drain";

/// The four numbers of one call, in nanoseconds and units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Between two units at an even pace; 1 or more.
    interval: i64,
    /// Units that fit at once; 1 or more.
    limit: i64,
    /// What a full limit takes to drain: `interval * limit`.
    drain: i64,
    /// What this call adds: `interval * quantity`.
    increment: i64,
}

/// What a call is told, and what becomes of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub limited: bool,
    pub limit: i64,
    /// `0..=limit`.
    pub remaining: i64,
    /// Nanoseconds until the same call would be admitted if nobody else came. `None` if it was, or if it never fits.
    pub retry_after: Option<i64>,
    /// Nanoseconds until nothing is consumed.
    pub reset_after: i64,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Nothing,
    /// This moment is stored.
    Store(i64),
    /// All was given back: a state that is full is no state.
    Remove,
}

impl Call {
    pub fn new(max_burst: i64, count: i64, period: i64, quantity: i64) -> Result<Call, Error> {
        if count == 0 || period == 0 {
            return Err(Error::ZeroRate);
        }
        for (what, value, least) in [("max_burst", max_burst, 0), ("count", count, 1), ("period", period, 1)] {
            if value < least {
                return Err(Error::OutOfRange(what, if least == 0 { "0 or more" } else { "1 or more" }));
            }
        }
        let nanoseconds = i128::from(period).saturating_mul(NS_PER_SECOND);
        let interval = nanoseconds.checked_div(i128::from(count)).unwrap_or(0);
        if interval == 0 {
            return Err(Error::OutOfRange("count", "at most 1000000000 a second"));
        }
        let limit = i128::from(max_burst).saturating_add(1);
        let (Some(interval), Some(drain)) = (within_longest(interval), within_longest(interval.saturating_mul(limit)))
        else {
            return Err(Error::OutOfRange("max_burst, count and period", LONGEST_TEXT));
        };
        let increment = within_longest(i128::from(interval).saturating_mul(i128::from(quantity)))
            .ok_or(Error::OutOfRange("quantity", LONGEST_TEXT))?;
        Ok(Call { interval, limit: max_burst.saturating_add(1), drain, increment })
    }

    /// Nanoseconds that a full limit takes to drain.
    pub fn drain(self) -> i64 {
        self.drain
    }

    /// Does the call take units, rather than look or give some back?
    pub fn takes(self) -> bool {
        self.increment > 0
    }

    /// Decides over the stored moment. `reach` is the longest drain of all calls so far, this one included.
    pub fn decide(self, stored: Option<i64>, now: i64, reach: i64) -> Decision {
        let distance = stored.map_or(0, |tat| tat.saturating_sub(now).max(0));
        let consumed = if distance > reach.max(self.drain) { self.drain } else { distance };
        // What is given back beyond full is not kept for later.
        let wanted = consumed.saturating_add(self.increment).max(0);
        let excess = wanted.saturating_sub(self.drain);
        let limited = excess > 0;
        let (reset_after, change) = if limited {
            let moved = consumed != distance;
            (consumed, if moved { Change::Store(now.saturating_add(consumed)) } else { Change::Nothing })
        } else if wanted == consumed {
            (consumed, Change::Nothing)
        } else if wanted == 0 {
            (0, Change::Remove)
        } else {
            (wanted, Change::Store(now.saturating_add(wanted)))
        };
        let free = self.drain.saturating_sub(reset_after).max(0);
        Decision {
            limited,
            limit: self.limit,
            remaining: free.checked_div(self.interval).unwrap_or(0),
            retry_after: (limited && self.increment <= self.drain).then_some(excess),
            reset_after,
            change,
        }
    }
}

fn within_longest(ns: i128) -> Option<i64> {
    i64::try_from(ns).ok().filter(|ns| (-LONGEST_NS..=LONGEST_NS).contains(ns))
}

impl Decision {
    /// The five integers, times in seconds.
    pub fn integers(&self) -> [i64; 5] {
        // Told 0, a caller would come back at once, and be denied again.
        let retry_after = self.retry_after.map_or(-1, |ns| seconds(ns).max(1));
        [i64::from(self.limited), self.limit, self.remaining, retry_after, seconds(self.reset_after)]
    }
}

/// Seconds as redis-cell rounds them: up, but what is below a millisecond is dropped before.
fn seconds(ns: i64) -> i64 {
    let ms = ns / NS_PER_MS;
    ms.saturating_add(999) / 1000
}

/// When a state has drained and its key may go: rounded up, or a part of it would be forgotten early.
pub fn expiry(tat: i64) -> UnixMs {
    UnixMs(tat.saturating_add(NS_PER_MS - 1).div_euclid(NS_PER_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = NS_PER_MS;
    const NOW: i64 = 1_750_000_000_000 * MS;

    /// A limiter on its own, under one rate.
    struct Limiter {
        rate: (i64, i64, i64),
        tat: Option<i64>,
    }

    impl Limiter {
        fn new(max_burst: i64, count: i64, period: i64) -> Limiter {
            Limiter { rate: (max_burst, count, period), tat: None }
        }

        fn call(&mut self, now: i64, quantity: i64) -> Decision {
            let (max_burst, count, period) = self.rate;
            let call = Call::new(max_burst, count, period, quantity).unwrap();
            let decision = call.decide(self.tat, now, call.drain());
            match decision.change {
                Change::Nothing => {}
                Change::Store(tat) => self.tat = Some(tat),
                Change::Remove => self.tat = None,
            }
            decision
        }
    }

    /// redis-cell's own table: max_burst 4, 1 per second.
    #[test]
    fn the_table_of_redis_cell() {
        let mut limiter = Limiter::new(4, 1, 1);
        // Milliseconds, quantity; limited, remaining, reset and retry in milliseconds.
        for (at, quantity, limited, remaining, reset, retry) in [
            (0, 6, true, 5, 0, None),
            (0, 1, false, 4, 1000, None),
            (0, 1, false, 3, 2000, None),
            (0, 1, false, 2, 3000, None),
            (0, 1, false, 1, 4000, None),
            (0, 1, false, 0, 5000, None),
            (0, 1, true, 0, 5000, Some(1000)),
            (3000, 1, false, 2, 3000, None),
            (3100, 1, false, 1, 3900, None),
            (4000, 1, false, 1, 4000, None),
            (8000, 1, false, 4, 1000, None),
            (9500, 1, false, 4, 1000, None),
            (9500, 0, false, 4, 1000, None),
            (9500, 2, false, 2, 3000, None),
            (9500, 5, true, 2, 3000, Some(3000)),
        ] {
            let told = limiter.call(NOW + at * MS, quantity);
            assert_eq!(
                (told.limited, told.limit, told.remaining, told.reset_after, told.retry_after),
                (limited, 5, remaining, reset * MS, retry.map(|ms| ms * MS)),
                "{at} ms, quantity {quantity}"
            );
        }
    }

    /// What redis-cell 0.5.0 answered on a server, fresh keys.
    #[test]
    fn measured_rows() {
        // max_burst, count and period; quantities and what each is told.
        type Rows = ((i64, i64, i64), &'static [(i64, [i64; 5])]);
        let rows: [Rows; 6] = [
            ((15, 30, 60), &[(1, [0, 16, 15, -1, 2]), (0, [0, 16, 15, -1, 2])]),
            ((15, 30, 60), &[(0, [0, 16, 16, -1, 0])]),
            ((0, 1, 10), &[(1, [0, 1, 0, -1, 10]), (1, [1, 1, 0, 10, 10]), (2, [1, 1, 0, -1, 10])]),
            ((5, 1, 10), &[(3, [0, 6, 3, -1, 30]), (-1, [0, 6, 4, -1, 20])]),
            ((0, 3, 1), &[(1, [0, 1, 0, -1, 1]), (1, [1, 1, 0, 1, 1])]),
            ((10, 2000, 1), &[(1, [0, 11, 10, -1, 0])]),
        ];
        for ((max_burst, count, period), calls) in rows {
            let mut limiter = Limiter::new(max_burst, count, period);
            for (quantity, told) in calls {
                assert_eq!(limiter.call(NOW, *quantity).integers(), *told, "{max_burst} {count} {period} {quantity}");
            }
        }
    }

    #[test]
    fn what_changes_nothing_stores_nothing() {
        let mut limiter = Limiter::new(0, 1, 10);
        assert_eq!(limiter.call(NOW, 0).change, Change::Nothing);
        assert_eq!(limiter.call(NOW, -1).change, Change::Nothing);
        assert_eq!(limiter.call(NOW, 1).change, Change::Store(NOW + 10_000 * MS));
        for quantity in [0, 1, 2] {
            assert_eq!(limiter.call(NOW, quantity).change, Change::Nothing);
        }
    }

    #[test]
    fn a_refund_is_at_most_full_and_then_no_state_is_left() {
        let mut limiter = Limiter::new(5, 1, 1);
        limiter.call(NOW, 3);
        assert_eq!(limiter.call(NOW, -2).integers(), [0, 6, 5, -1, 1]);
        let full = limiter.call(NOW, -7);
        assert_eq!((full.integers(), full.change), ([0, 6, 6, -1, 0], Change::Remove));
        assert_eq!(limiter.call(NOW, -7).integers(), [0, 6, 6, -1, 0]);
        assert_eq!(limiter.call(NOW, 7).integers(), [1, 6, 6, -1, 0], "nothing was saved up");
    }

    #[test]
    fn a_state_in_the_past_is_full() {
        let mut limiter = Limiter { rate: (5, 1, 1), tat: Some(7) };
        assert_eq!(limiter.call(NOW, 7).integers(), [1, 6, 6, -1, 0]);
        assert_eq!(limiter.call(NOW, 0).integers(), [0, 6, 6, -1, 0]);
        assert_eq!(limiter.call(NOW, 1).integers(), [0, 6, 5, -1, 1]);
    }

    #[test]
    fn a_denial_is_told_to_wait_for_a_second_at_least() {
        let mut limiter = Limiter::new(0, 2000, 1);
        limiter.call(NOW, 1);
        let told = limiter.call(NOW, 1);
        assert_eq!((told.retry_after, told.integers()), (Some(500_000), [1, 1, 0, 1, 0]));
    }

    /// Expiries that are rounded down let 1.27 times this rate through.
    #[test]
    fn a_state_is_kept_until_it_has_drained() {
        assert_eq!(expiry(5 * MS), UnixMs(5));
        assert_eq!(expiry(5 * MS + 1), UnixMs(6));
        assert_eq!(expiry(6 * MS - 1), UnixMs(6));
        assert_eq!(expiry(i64::MAX), UnixMs(i64::MAX / MS));
    }

    #[test]
    fn a_stricter_caller_finds_what_a_generous_one_consumed_and_leaves_it() {
        let generous = Call::new(99, 1, 1, 1).unwrap();
        let strict = Call::new(0, 1, 1, 1).unwrap();
        let tat = NOW + generous.drain();
        let told = strict.decide(Some(tat), NOW, generous.drain());
        assert_eq!((told.integers(), told.change), ([1, 1, 0, 100, 100], Change::Nothing));
        assert!(generous.decide(Some(tat), NOW, generous.drain()).limited);
    }

    #[test]
    fn a_clock_that_was_set_back_denies_for_one_drain() {
        let mut limiter = Limiter::new(4, 1, 1);
        limiter.call(NOW, 5);
        let back = NOW - 3_600_000 * MS;
        let peek = limiter.call(back, 0);
        assert_eq!((peek.integers(), peek.change), ([0, 5, 0, -1, 5], Change::Nothing));
        let told = limiter.call(back, 1);
        assert_eq!((told.integers(), told.change), ([1, 5, 0, 1, 5], Change::Store(back + 5000 * MS)));
        assert!(limiter.call(back + 1000 * MS - 1, 1).limited);
        assert!(!limiter.call(back + 1000 * MS, 1).limited);
    }

    #[test]
    fn a_forged_state_counts_as_one_drain() {
        for tat in [i64::MAX, NOW + 5001 * MS] {
            let mut limiter = Limiter { rate: (4, 1, 1), tat: Some(tat) };
            assert_eq!(limiter.call(NOW, 1).integers(), [1, 5, 0, 1, 5]);
            assert_eq!(limiter.call(NOW, -2).integers(), [0, 5, 2, -1, 3]);
        }
    }

    #[test]
    fn what_redis_cell_computes_garbage_from_is_refused() {
        let max = i64::MAX;
        for (numbers, error) in [
            ((0, 0, 1, 1), "ERR zero rates are not supported: count and period must be 1 or more"),
            ((0, 1, 0, 1), "ERR zero rates are not supported: count and period must be 1 or more"),
            ((-1, 1, 1, 1), "ERR max_burst out of range (0 or more)"),
            ((0, -1, 1, 1), "ERR count out of range (1 or more)"),
            ((0, 1, i64::MIN, 1), "ERR period out of range (1 or more)"),
            ((0, 1_000_000_001, 1, 1), "ERR count out of range (at most 1000000000 a second)"),
            ((max, 1, 1, 1), "ERR max_burst, count and period out of range (at most 4611686018 seconds to drain)"),
            ((0, 1, max, 1), "ERR max_burst, count and period out of range (at most 4611686018 seconds to drain)"),
            ((0, 1, 1, max), "ERR quantity out of range (at most 4611686018 seconds to drain)"),
            ((0, 1, 1, i64::MIN), "ERR quantity out of range (at most 4611686018 seconds to drain)"),
        ] {
            let (max_burst, count, period, quantity) = numbers;
            let refused = Call::new(max_burst, count, period, quantity).map_err(|error| error.to_string());
            assert_eq!(refused, Err(error.to_owned()), "{numbers:?}");
        }
        for numbers in [(4_611_686_017, 1, 1, 1), (0, 1_000_000_000, 1, 1), (0, 1, 4_611_686_018, -1), (0, max, max, 1)]
        {
            let (max_burst, count, period, quantity) = numbers;
            assert!(Call::new(max_burst, count, period, quantity).is_ok(), "{numbers:?}");
        }
    }
}
