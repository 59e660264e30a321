//! A fixed window: a count that starts anew when the next window begins. Windows are aligned to the Unix epoch, so that all
//! limits of one length turn over together.
//!
//! Cheap and easy to explain ("1000 a day, from midnight UTC"), and the one algorithm here that does not hold in every true
//! window: around the turn twice the count passes.

use crate::clock::UnixUs;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::window::{LAST_MOMENT_US, Window};

/// The state of one fixed window. Invariants: `used` is `1..=MAX_UNITS`, and `number` one of [`FixedWindow::has_number`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedWindow {
    window: Window,
    /// Which window since 1970.
    number: i64,
    used: i64,
}

#[derive(Clone, Copy, Debug)]
pub struct Reading {
    used: i64,
    ms_left: i64,
}

fn number(window: Window, now: UnixUs) -> i64 {
    now.0.clamp(0, LAST_MOMENT_US) / window.us()
}

impl FixedWindow {
    /// A window in which `units` (1 to [`MAX_UNITS`]) have just been admitted.
    pub fn first(window: Window, now: UnixUs, units: i64) -> FixedWindow {
        FixedWindow { window, number: number(window, now), used: units }
    }

    /// A state from its parts, which may come from anybody; `None` if any invariant is broken.
    pub fn from_parts(window: Window, number: i64, used: i64) -> Option<FixedWindow> {
        let last = LAST_MOMENT_US / window.us();
        let sound = (0..=last).contains(&number) && (1..=MAX_UNITS).contains(&used);
        sound.then_some(FixedWindow { window, number, used })
    }

    pub fn window(&self) -> Window {
        self.window
    }

    /// Which window since 1970 it is, and what was admitted in it.
    pub fn parts(&self) -> (i64, i64) {
        (self.number, self.used)
    }

    /// How it stands at a moment. If the clock was set back to before this window, this is how it stands after
    /// [`FixedWindow::set_back`].
    pub fn reading(&self, now: UnixUs) -> Reading {
        let current = number(self.window, now);
        if current > self.number {
            return Reading::empty();
        }
        let left_us = (current + 1) * self.window.us() - now.0.clamp(0, LAST_MOMENT_US);
        Reading { used: self.used, ms_left: (left_us + 999) / 1000 }
    }

    /// Books `units` (1 or more). False, and nothing changes, if that were more than [`MAX_UNITS`], which no limit allows.
    pub fn charge(&mut self, now: UnixUs, units: i64) -> bool {
        let used = self.reading(now).used + units;
        let fits = used <= MAX_UNITS;
        if fits {
            (self.number, self.used) = (number(self.window, now), used);
        }
        fits
    }

    /// Takes `units` back, as far as there are any. False if nothing is left.
    pub fn refund(&mut self, now: UnixUs, units: i64) -> bool {
        let used = self.reading(now).used - units;
        if used > 0 {
            (self.number, self.used) = (number(self.window, now), used);
        }
        used > 0
    }

    pub fn is_ahead_of(&self, now: UnixUs) -> bool {
        self.number > number(self.window, now)
    }

    /// The clock was set back: what was admitted counts for the window of now.
    pub fn set_back(&mut self, now: UnixUs) {
        self.number = self.number.min(number(self.window, now));
    }

    /// When the window is over.
    pub fn full_at(&self) -> UnixUs {
        UnixUs((self.number + 1) * self.window.us())
    }
}

impl Reading {
    pub fn empty() -> Reading {
        Reading { used: 0, ms_left: 0 }
    }

    pub fn used(&self) -> i64 {
        self.used
    }

    /// Milliseconds, rounded up, until nothing is counted; 0 if that is so now.
    pub fn ms_until_full(&self) -> i64 {
        self.ms_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_anew_at_the_turn_of_the_window() {
        let minute = Window::from_ms(60_000).unwrap();
        let mut state = FixedWindow::first(minute, UnixUs(61_000_000), 3);
        assert_eq!(state.parts(), (1, 3));
        let at = |us| (state.reading(UnixUs(us)).used(), state.reading(UnixUs(us)).ms_until_full());
        assert_eq!([at(61_000_000), at(119_999_999), at(120_000_000)], [(3, 59_000), (3, 1), (0, 0)]);
        assert_eq!(state.full_at(), UnixUs(120_000_000));
        assert!(state.charge(UnixUs(119_999_999), 2) && state.parts() == (1, 5));
        assert!(state.charge(UnixUs(120_000_000), 2) && state.parts() == (2, 2));
        assert!(!state.charge(UnixUs(120_000_000), MAX_UNITS));
        assert!(state.refund(UnixUs(120_000_001), 1) && !state.refund(UnixUs(120_000_001), 1));
    }

    #[test]
    fn a_clock_set_back_keeps_the_count_for_the_window_of_now() {
        let minute = Window::from_ms(60_000).unwrap();
        let mut state = FixedWindow::first(minute, UnixUs(3_600_000_000), 3);
        assert!(state.is_ahead_of(UnixUs(0)));
        assert_eq!(state.reading(UnixUs(1)).ms_until_full(), 60_000);
        state.set_back(UnixUs(1));
        assert_eq!(state.parts(), (0, 3));
        assert_eq!(state.reading(UnixUs(60_000_000)).used(), 0);
    }

    #[test]
    fn moments_and_parts_from_outside_are_checked() {
        let longest = Window::from_ms(Window::MAX_MS).unwrap();
        let state = FixedWindow::first(longest, UnixUs(i64::MAX), 1);
        assert!(state.full_at().0 > 0 && state.reading(UnixUs(i64::MIN)).used() == 1);
        let (number, _) = state.parts();
        assert_eq!(FixedWindow::from_parts(longest, number, 1), Some(state));
        for (number, used) in [(number + 1, 1), (-1, 1), (0, 0), (0, MAX_UNITS + 1)] {
            assert_eq!(FixedWindow::from_parts(longest, number, used), None);
        }
    }
}
