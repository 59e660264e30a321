//! RATELIMIT.*, and CL.THROTTLE
//!
//! A limit is written in the call (`limit`); under its key is what was consumed, by algorithm and window (`meter`, `limiter`).
//! `sliding_window`, `gcra` and `fixed_window` are the algorithms, free of everything else.

mod admission;
mod answer;
pub mod commands;
pub mod concurrency;
mod deadlines;
mod decision;
pub mod effects;
pub mod fixed_window;
mod forecast;
pub mod gcra;
pub mod limit;
pub mod limiter;
pub mod meter;
mod packed;
pub mod reading;
pub mod sliding_window;
pub mod slot_effects;
mod slots;
mod state;
mod stored;
pub mod throttle_compat;
mod waiting;
pub mod window;

pub use state::State;
pub use waiting::due;

/// The greatest count of a limit and the greatest cost of a request; both begin at 1.
pub const MAX_UNITS: i64 = 1_000_000_000_000;
