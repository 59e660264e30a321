//! How long a limit looks back.

use crate::clock::UnixUs;
use crate::ratelimit::packed::Packed;

/// Ticks that a window is divided into, rounding the width of a tick up.
const TICKS: i64 = 256;

/// The greatest moment that is told apart from later ones; far enough from the end of `i64` to add a window.
pub const LAST_MOMENT_US: i64 = i64::MAX / 2;

/// The length of a window: 1 ms to 10^12 ms (31 years).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    ms: i64,
}

impl Window {
    pub const MAX_MS: i64 = 1_000_000_000_000;

    /// `None` if it is out of range.
    pub fn from_ms(ms: i64) -> Option<Window> {
        (1..=Window::MAX_MS).contains(&ms).then_some(Window { ms })
    }

    /// For a state in which each byte counts.
    pub fn packed(self) -> Packed<5> {
        Packed::new(self.ms)
    }

    /// The same again.
    pub fn unpacked(packed: Packed<5>) -> Window {
        Window { ms: packed.get() }
    }

    pub fn ms(self) -> i64 {
        self.ms
    }

    pub fn us(self) -> i64 {
        self.ms() * 1000
    }

    /// Microseconds of one tick, 4 or more: 1/256 of the window, rounded up.
    pub fn tick_us(self) -> i64 {
        (self.us() + (TICKS - 1)) / TICKS
    }

    /// Ticks that cover the window, 250 to 256.
    pub fn span(self) -> i64 {
        let tick_us = self.tick_us();
        (self.us() + (tick_us - 1)) / tick_us
    }

    /// The tick that a moment lies in. Moments before 1970 and beyond the year 100 000 count as those.
    pub fn tick_at(self, moment: UnixUs) -> i64 {
        moment.0.clamp(0, LAST_MOMENT_US) / self.tick_us()
    }

    /// Is this a tick that a moment can lie in?
    pub fn has_tick(self, tick: i64) -> bool {
        (0..=LAST_MOMENT_US / self.tick_us()).contains(&tick)
    }

    /// The moment a tick begins.
    pub fn begins_at(self, tick: i64) -> UnixUs {
        UnixUs(tick * self.tick_us())
    }

    /// When what was booked in `tick` is counted no more.
    pub fn leaves_at(self, tick: i64) -> UnixUs {
        UnixUs((tick + 1 + self.span()) * self.tick_us())
    }
}
