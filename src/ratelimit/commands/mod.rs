//! One file per command.

mod check;
mod info;
mod peek;
mod reset;

pub use check::Check;
pub use info::Info;
pub use peek::Peek;
pub use reset::Reset;
