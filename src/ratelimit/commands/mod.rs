//! One file per command.

mod ban;
mod check;
mod info;
mod peek;
mod refund;
mod reset;

pub use ban::Ban;
pub use check::Check;
pub use info::Info;
pub use peek::Peek;
pub use refund::Refund;
pub use reset::Reset;
