//! WRITEBEHIND.*: the cache is written at once, the origin later, by workers.
//!
//! `record` is what waits for one key, `queue` the orders in which records are found, both pure. `state` holds all queues and
//! the index of dirty keys, `keyspace` brings a queue and its key together, `write` is the way of a write and `deliver` the way to
//! the workers.

pub mod commands;
mod deliver;
mod dump;
pub mod effects;
mod index;
mod keyspace;
mod queue;
mod record;
mod request;
mod settings;
mod state;
mod value;
mod write;

pub use deliver::due;
pub use keyspace::put_back;
pub use queue::{Queue, Tally};
pub use record::View;
pub use state::State;
pub use value::Handle;
