//! GCRA, the generic cell rate algorithm, as the leaky bucket it is: what was admitted flows off evenly.
//!
//! Source: ITU-T I.371, annex A, "virtual scheduling" and "continuous-state leaky bucket", which are equal. Implementations mostly
//! keep the first one's "theoretical arrival time", in nanoseconds. Rejected: a unit is then worth a whole number of
//! nanoseconds, which is 14 % off at a rate of 7 in 12 ns and nothing at all above one in a nanosecond; and the time that was
//! consumed stays when the limit changes, not the units.
//!
//! Here the level of the bucket is kept exactly, as a fraction with the window in microseconds below the line: a unit adds
//! `window` to what stands above it, a microsecond takes `rate` away. All are integers, so nothing is ever rounded, and a level
//! is wrong by nothing after any number of steps.
//!
//! In any time `w` at most `capacity + w * rate / window` units are admitted: the level was 0 or more before, is at most
//! `capacity` after, and that much flowed off between.

use crate::clock::UnixUs;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::packed::Packed;
use crate::ratelimit::window::{LAST_MOMENT_US, Window};

/// The state of one bucket. The level is in parts, of which `window` in microseconds make a unit.
///
/// Invariants: `at` is no moment before 1970; `1..=MAX_UNITS` for the rate; the level is above 0 and at most [`MAX_UNITS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gcra {
    window: Packed<5>,
    rate: Packed<5>,
    at: Packed<8>,
    /// Up to 10^27.
    level: Packed<12>,
}

/// The parts of a state, as a dump has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    pub window: Window,
    pub rate: i64,
    pub at: UnixUs,
    pub units: i64,
    pub fraction: i64,
}

/// A bucket as it stands at one moment, and flows off at the rate of whoever looks.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    level: i128,
    /// How much stands for one unit.
    unit: i64,
    rate: i64,
    used: i64,
    /// Microseconds until the state is forgotten, see [`Gcra::full_at`].
    forgotten_us: i64,
}

fn product(a: i64, b: i64) -> i128 {
    i128::from(a) * i128::from(b)
}

impl Gcra {
    /// A bucket in which `units` (1 to [`MAX_UNITS`]) have just been admitted.
    pub fn first(window: Window, rate: i64, now: UnixUs, units: i64) -> Gcra {
        Gcra::new(window, rate, moment(now), product(units, window.us()))
    }

    fn new(window: Window, rate: i64, at: UnixUs, level: i128) -> Gcra {
        Gcra { window: window.packed(), rate: Packed::new(rate), at: Packed::new(at.0), level: Packed::new(level) }
    }

    /// A state from its parts, which may come from anybody; `None` if any invariant is broken.
    pub fn from_parts(parts: Parts) -> Option<Gcra> {
        let Parts { window, rate, at, units, fraction } = parts;
        let unit = window.us();
        let level = product(units, unit) + i128::from(fraction);
        let sound = (1..=MAX_UNITS).contains(&rate)
            && moment(at) == at
            && (0..=MAX_UNITS).contains(&units)
            && (0..unit).contains(&fraction)
            && (1..=product(MAX_UNITS, unit)).contains(&level);
        sound.then(|| Gcra::new(window, rate, at, level))
    }

    pub fn parts(&self) -> Parts {
        let (level, unit) = (self.level.wide(), i128::from(self.window().us()));
        let (units, fraction) = (narrow(level / unit), narrow(level % unit));
        Parts { window: self.window(), rate: self.rate(), at: self.at(), units, fraction }
    }

    pub fn window(&self) -> Window {
        Window::unpacked(self.window)
    }

    /// The rate of the last charge.
    pub fn rate(&self) -> i64 {
        self.rate.get()
    }

    fn at(&self) -> UnixUs {
        UnixUs(self.at.get())
    }

    /// How the bucket stands for one who has it flow off at `rate`. If the clock was set back to before the last charge, nothing
    /// has flowed off.
    ///
    /// At a lower rate than that of the last charge it would hold something for longer than the state is kept, so it is empty
    /// when the state is full at its own rate: who is told to wait longer would be told what does not come true.
    #[inline]
    pub fn reading(&self, rate: i64, now: UnixUs) -> Reading {
        let (level, unit) = (self.level(rate, now), self.window().us());
        Reading { level, unit, rate, used: div_up(level, unit), forgotten_us: self.forgotten_us(rate, now) }
    }

    fn level(&self, rate: i64, now: UnixUs) -> i128 {
        if self.forgotten_us(rate, now) <= 0 {
            return 0;
        }
        (self.level.wide() - product(self.elapsed_us(now), rate)).max(0)
    }

    fn elapsed_us(&self, now: UnixUs) -> i64 {
        (moment(now).0 - self.at().0).max(0)
    }

    fn forgotten_us(&self, rate: i64, now: UnixUs) -> i64 {
        if rate < self.rate() { self.us_until_empty() - self.elapsed_us(now) } else { i64::MAX }
    }

    /// Adds `units` (1 or more). False, and nothing changes, if that were more than [`MAX_UNITS`], which no limit allows.
    pub fn charge(&mut self, rate: i64, now: UnixUs, units: i64) -> bool {
        let unit = self.window().us();
        let level = self.level(rate, now) + product(units, unit);
        let fits = level <= product(MAX_UNITS, unit);
        if fits {
            *self = Gcra::new(self.window(), rate, moment(now), level);
        }
        fits
    }

    /// Takes `units` out again, as far as there are any. False if nothing is left.
    pub fn refund(&mut self, rate: i64, now: UnixUs, units: i64) -> bool {
        let level = self.level(rate, now) - product(units, self.window().us());
        if level > 0 {
            *self = Gcra::new(self.window(), rate, moment(now), level);
        }
        level > 0
    }

    /// Is the clock behind the last charge?
    pub fn is_ahead_of(&self, now: UnixUs) -> bool {
        self.at() > moment(now)
    }

    /// The clock was set back: flows off from now on. Without it, denials would last until the old time is reached again; with
    /// it, for as long as the level takes to flow off.
    pub fn set_back(&mut self, now: UnixUs) {
        self.at = Packed::new(self.at().min(moment(now)).0);
    }

    /// When the bucket will be empty, at the rate of the last charge.
    pub fn full_at(&self) -> UnixUs {
        UnixUs(self.at().0.saturating_add(self.us_until_empty()).min(LAST_MOMENT_US))
    }

    /// From `at` on, at the rate of the last charge.
    fn us_until_empty(&self) -> i64 {
        div_up(self.level.wide(), self.rate())
    }
}

/// Moments before 1970 and beyond the year 100 000 count as those.
fn moment(now: UnixUs) -> UnixUs {
    UnixUs(now.0.clamp(0, LAST_MOMENT_US))
}

impl Reading {
    /// A bucket in which nothing is.
    pub fn empty(window: Window, rate: i64) -> Reading {
        Reading { level: 0, unit: window.us(), rate, used: 0, forgotten_us: i64::MAX }
    }

    /// Units in the bucket, rounded up.
    pub fn used(&self) -> i64 {
        self.used
    }

    /// Milliseconds, rounded up, until the bucket holds no more than `units`; 0 if that is so now.
    #[inline]
    pub fn ms_until_used(&self, units: i64) -> i64 {
        let over = (self.level - product(units, self.unit)).max(0);
        let us = div_up(over, self.rate).min(self.forgotten_us);
        us / 1000 + i64::from(us % 1000 > 0)
    }
}

/// Rounded up, and `i64::MAX` if it is more than that. Neither number is below 0.
fn div_up(a: i128, b: i64) -> i64 {
    match i64::try_from(a) {
        // The usual case, in a tenth of the time.
        Ok(a) => a / b + i64::from(a % b > 0),
        Err(_) => div_up_wide(a, i128::from(b)),
    }
}

/// Apart, for the registers that it takes.
#[cold]
#[inline(never)]
fn div_up_wide(a: i128, b: i128) -> i64 {
    narrow(a / b).saturating_add(i64::from(a % b > 0))
}

fn narrow(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn window(ms: i64) -> Window {
        Window::from_ms(ms).unwrap()
    }

    #[test]
    fn flows_off_evenly_and_to_the_last_drop() {
        let bucket = Gcra::first(window(1000), 3, UnixUs(0), 2);
        assert_eq!(bucket.full_at(), UnixUs(666_667));
        for (us, used, next, empty) in
            [(0, 2, 334, 667), (333_333, 2, 1, 334), (333_334, 1, 334, 334), (666_667, 0, 0, 0)]
        {
            let reading = bucket.reading(3, UnixUs(us));
            let next_ms = if used == 0 { 0 } else { reading.ms_until_used(used - 1) };
            assert_eq!((reading.used(), next_ms, reading.ms_until_used(0)), (used, next, empty), "{us}");
        }
    }

    #[test]
    fn nothing_drifts_over_ten_million_steps() {
        // 7 in 12 ms is no whole number of nanoseconds a unit.
        let (rate, window) = (7, window(12));
        let mut bucket = Gcra::first(window, rate, UnixUs(0), 1);
        let (mut now, mut admitted) = (0, 1_i128);
        for step in 0..10_000_000_i64 {
            now += 1 + step % 5;
            if bucket.reading(rate, UnixUs(now)).used() <= 99 {
                assert!(bucket.charge(rate, UnixUs(now), 1));
                admitted += 1;
            }
        }
        // It was never empty, so that just the capacity and what has flowed off was admitted, up to the unit that is due.
        let exact = 100 * 12_000 + i128::from(now) * 7;
        assert!((exact - 12_000 - 5 * 7..=exact).contains(&(admitted * 12_000)), "{admitted}");
    }

    #[test]
    fn the_greatest_numbers_fit() {
        let (longest, end) = (window(Window::MAX_MS), UnixUs(i64::MAX));
        let mut bucket = Gcra::first(longest, 1, UnixUs(i64::MIN), MAX_UNITS);
        assert!(!bucket.charge(1, UnixUs(0), 1));
        assert_eq!(bucket.full_at(), UnixUs(LAST_MOMENT_US));
        assert_eq!(bucket.reading(1, UnixUs(0)).ms_until_used(0), i64::MAX / 1000 + 1);
        assert_eq!(bucket.reading(MAX_UNITS, end).used(), 0);
        let quick = Gcra::first(window(1), MAX_UNITS, UnixUs(0), MAX_UNITS);
        assert_eq!(quick.reading(MAX_UNITS, UnixUs(999)).used(), MAX_UNITS / 1000);
        assert_eq!(quick.full_at(), UnixUs(1000));
    }

    #[test]
    fn a_lower_rate_sees_nothing_of_what_is_forgotten() {
        // 20 of 20 a second, looked at with 1 a second: after a second the key is gone.
        let bucket = Gcra::first(window(1000), 20, UnixUs(0), 20);
        for (us, used, below_20, empty) in
            [(0, 20, 1000, 1000), (SECOND / 2, 20, 500, 500), (SECOND - 1, 20, 1, 1), (SECOND, 0, 0, 0)]
        {
            let reading = bucket.reading(1, UnixUs(us));
            let waits = (reading.ms_until_used(19), reading.ms_until_used(0));
            assert_eq!((reading.used(), waits), (used, (below_20, empty)), "{us}");
        }
        assert_eq!(bucket.reading(1, UnixUs(2 * SECOND)).used(), 0);
        assert_eq!(bucket.reading(40, UnixUs(SECOND / 2)).used(), 0, "and a higher rate has it flow off sooner");
    }

    #[test]
    fn a_refund_takes_out_what_is_there_and_no_more() {
        let mut bucket = Gcra::first(window(1000), 10, UnixUs(0), 5);
        assert!(bucket.refund(10, UnixUs(0), 2));
        assert_eq!(bucket.reading(10, UnixUs(0)).used(), 3);
        assert!(!bucket.refund(10, UnixUs(0), 3));
    }

    #[test]
    fn a_clock_set_back_costs_one_emptying_at_most() {
        let mut bucket = Gcra::first(window(1000), 10, UnixUs(100 * SECOND), 10);
        let before = bucket.reading(10, UnixUs(0));
        assert!(bucket.is_ahead_of(UnixUs(0)));
        assert_eq!((before.used(), before.ms_until_used(0)), (10, 1000));
        bucket.set_back(UnixUs(0));
        assert_eq!(bucket.reading(10, UnixUs(SECOND / 2)).used(), 5);
    }

    #[test]
    fn parts_from_outside_are_checked() {
        let good = Gcra::first(window(1000), 10, UnixUs(7), 5).parts();
        assert!(Gcra::from_parts(good).is_some());
        for bad in [
            Parts { rate: 0, ..good },
            Parts { rate: MAX_UNITS + 1, ..good },
            Parts { at: UnixUs(-1), ..good },
            Parts { at: UnixUs(i64::MAX), ..good },
            Parts { units: -1, ..good },
            Parts { units: 0, fraction: 0, ..good },
            Parts { units: MAX_UNITS, fraction: 1, ..good },
            Parts { fraction: -1, ..good },
            Parts { fraction: SECOND, ..good },
        ] {
            assert_eq!(Gcra::from_parts(bad), None, "{bad:?}");
        }
    }
}
