//! One file per command.

mod acquire;
mod acquire_many;
mod exec;
mod extend;
mod force;
mod info;
mod release;
mod release_many;
mod validate;

pub use acquire::Acquire;
pub use acquire_many::AcquireMany;
pub use exec::Exec;
pub use extend::Extend;
pub use force::Force;
pub use info::Info;
pub use release::Release;
pub use release_many::ReleaseMany;
pub use validate::Validate;
