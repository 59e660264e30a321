//! RATELIMIT.*

mod answer;
pub mod commands;
pub mod effects;
pub mod limit;
pub mod limiter;
pub mod sliding_window;
mod state;

pub use state::State;

/// The greatest count of a limit and the greatest cost of a request; both begin at 1.
pub const MAX_UNITS: i64 = 1_000_000_000_000;
