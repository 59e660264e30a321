//! CACHE.*

mod arena;
mod cohort;
pub mod commands;
mod dump;
pub mod effects;
mod invariants;
mod loading;
mod reclaim;
mod record;
mod retirement;
mod scan;
mod shards;
mod slab;
mod state;
pub mod tag_index;
mod tags;
pub mod version_floor;
mod write;
mod write_options;

pub use reclaim::{check_ghosts, reclaim};
pub use state::{Counters, State};
