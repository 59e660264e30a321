//! One file per command.

mod acquire;
mod extend;
mod force;
mod info;
mod release;
mod validate;

pub use acquire::Acquire;
pub use extend::Extend;
pub use force::Force;
pub use info::Info;
pub use release::Release;
pub use validate::Validate;
