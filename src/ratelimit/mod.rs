//! RATELIMIT.*

pub mod commands;
pub mod effects;
mod state;

pub use state::State;
