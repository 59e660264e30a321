//! One file per command.

mod ack;
mod claim;
mod config;
mod dead;
mod delete;
mod drop_dead;
mod increment;
mod info;
mod nack;
mod requeue;
mod set;

pub use ack::Ack;
pub use claim::Claim;
pub use config::Config;
pub use dead::Dead;
pub use delete::Delete;
pub use drop_dead::DropDead;
pub use increment::Increment;
pub use info::Info;
pub use nack::Nack;
pub use requeue::Requeue;
pub use set::Set;

use crate::args::Arg;
use crate::error::Error;
use crate::spec::ArgSpec;

const QUEUE: ArgSpec = ArgSpec::new("queue", crate::spec::Kind::Key);

/// The longest name of a worker, in bytes.
const MAX_WORKER: usize = 1024;

fn worker(arg: Arg<'_>) -> Result<Arg<'_>, Error> {
    if (1..=MAX_WORKER).contains(&arg.bytes.len()) { Ok(arg) } else { Err(Error::WorkerLength) }
}
