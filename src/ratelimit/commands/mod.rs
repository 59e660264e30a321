//! One file per command.

mod ban;
mod check;
mod enter;
mod info;
mod leave;
mod peek;
mod refund;
mod reset;
mod throttle;

pub use ban::Ban;
pub use check::Check;
pub use enter::Enter;
pub use info::Info;
pub use leave::Leave;
pub use peek::Peek;
pub use refund::Refund;
pub use reset::Reset;
pub use throttle::Throttle;
