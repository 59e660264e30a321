//! CACHE.*

mod arena;
mod cohort;
pub mod commands;
pub mod effects;
mod invariants;
mod loading;
mod record;
mod retirement;
mod scan;
mod shards;
mod slab;
mod state;
pub mod tag_index;
mod tags;
pub mod version_floor;

pub use state::State;
