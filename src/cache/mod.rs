//! CACHE.*

mod arena;
pub mod behind;
mod cohort;
pub mod commands;
mod database;
mod dump;
mod early_refresh;
pub mod effects;
mod fence;
mod fill;
mod freshness;
mod invariants;
mod key_table;
mod lease;
mod leases;
mod loading;
mod negatives;
mod read;
mod reclaim;
mod record;
mod retirement;
mod scan;
mod shards;
mod single_flight;
mod slab;
mod staleness;
mod state;
pub mod tag_index;
mod tags;
pub mod version_floor;
mod write;
mod write_options;

pub use reclaim::{check_ghosts, reclaim};
pub use single_flight::due;
pub use state::{Counters, State};
pub use write_options::{Expires, WriteOptions};
