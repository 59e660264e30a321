//! The states of a limiter as they stand in dumps, RDB files and effects that carry a whole value.

use serde::{Deserialize, Serialize};

use crate::clock::{UnixMs, UnixUs};
use crate::ratelimit::fixed_window::FixedWindow;
use crate::ratelimit::gcra::{Gcra, Parts};
use crate::ratelimit::limiter::Metered;
use crate::ratelimit::sliding_window::{Entry, SlidingWindow};
use crate::ratelimit::window::Window;

/// A state in a dump. The order of the variants is part of the format.
#[derive(Serialize, Deserialize)]
pub enum Stored<'a> {
    Sliding { window_ms: u64, tick: u64, units: u64, older: &'a [u8] },
    Gcra { window_ms: u64, rate: u64, at: u64, units: u64, fraction: u64 },
    Fixed { window_ms: u64, number: u64, used: u64 },
    Ban { until: u64 },
}

impl<'a> From<&'a Metered> for Stored<'a> {
    fn from(state: &'a Metered) -> Stored<'a> {
        match state {
            Metered::Sliding(state) => {
                let (Entry { tick, units }, window) = (state.newest(), state.window());
                Stored::Sliding {
                    window_ms: window.ms().unsigned_abs(),
                    tick: tick.unsigned_abs(),
                    units: units.unsigned_abs(),
                    older: state.older(),
                }
            }
            Metered::Gcra(state) => {
                let Parts { window, rate, at, units, fraction } = state.parts();
                let [window_ms, rate, at, units, fraction] =
                    [window.ms(), rate, at.0, units, fraction].map(i64::unsigned_abs);
                Stored::Gcra { window_ms, rate, at, units, fraction }
            }
            Metered::Fixed(state) => {
                let (number, used) = state.parts();
                let [window_ms, number, used] = [state.window().ms(), number, used].map(i64::unsigned_abs);
                Stored::Fixed { window_ms, number, used }
            }
            Metered::Ban(until) => Stored::Ban { until: until.0.unsigned_abs() },
        }
    }
}

impl Stored<'_> {
    /// `None` if it is of no limiter.
    pub fn state(&self) -> Option<Metered> {
        let number = |number: u64| i64::try_from(number).ok();
        let window = |ms: u64| number(ms).and_then(Window::from_ms);
        Some(match *self {
            Stored::Sliding { window_ms, tick, units, older } => {
                let newest = Entry { tick: number(tick)?, units: number(units)? };
                Metered::Sliding(Box::new(SlidingWindow::from_parts(window(window_ms)?, newest, older)?))
            }
            Stored::Gcra { window_ms, rate, at, units, fraction } => Metered::Gcra(Gcra::from_parts(Parts {
                window: window(window_ms)?,
                rate: number(rate)?,
                at: UnixUs(number(at)?),
                units: number(units)?,
                fraction: number(fraction)?,
            })?),
            Stored::Fixed { window_ms, number: which, used } => {
                Metered::Fixed(FixedWindow::from_parts(window(window_ms)?, number(which)?, number(used)?)?)
            }
            Stored::Ban { until } => Metered::Ban(UnixMs(number(until)?)),
        })
    }
}
