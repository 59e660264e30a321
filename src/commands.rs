//! What a command is, and the one list of all of them.

use crate::args::Args;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{CommandSpec, Container};

/// One command: argv -> `Request` -> reply. `parse` validates everything that can be validated without the server, so that
/// an error changes nothing.
pub trait Command {
    const SPEC: &'static CommandSpec;
    type Request<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Self::Request<'a>, Error>;

    fn run<'s, S: Server>(request: Self::Request<'_>, server: &'s mut S) -> Result<Reply<'s>, Error>;
}

/// Calls the macro `$visit` with every command. A command that is not here does not exist.
#[macro_export]
macro_rules! every_command {
    ($visit:ident) => {
        $visit! {
            $crate::cache::commands::set::Set,
            $crate::cache::commands::set_tagged::SetTagged,
            $crate::cache::commands::set_jitter::SetJitter,
            $crate::cache::commands::mset::MSet,
            $crate::cache::commands::get::Get,
            $crate::cache::commands::mget::MGet,
            $crate::cache::commands::ttl::Ttl,
            $crate::cache::commands::tag::Tag,
            $crate::cache::commands::untag::Untag,
            $crate::cache::commands::tags::Tags,
            $crate::cache::commands::tag_keys::TagKeys,
            $crate::cache::commands::tag_info::TagInfo,
            $crate::cache::commands::floor::Floor,
            $crate::cache::commands::invalidate::Invalidate,
            $crate::cache::commands::invalidate_tag::InvalidateTag,
            $crate::cache::commands::stale::Stale,
            $crate::cache::commands::stale_tag::StaleTag,
            $crate::cache::commands::fetch::Fetch,
            $crate::cache::commands::mfetch::MFetch,
            $crate::cache::commands::fill::Fill,
            $crate::cache::commands::fill_nil::FillNil,
            $crate::cache::commands::fail::Fail,
            $crate::cache::commands::renew::Renew,
            $crate::cache::commands::read::Read,
            $crate::cache::commands::loads::Loads,
            $crate::cache::commands::warm::Warm,
            $crate::cache::commands::hot::Hot,
            $crate::cache::commands::intent::Intent,
            $crate::cache::commands::commit::Commit,
            $crate::cache::commands::rollback::Rollback,
            $crate::cache::commands::policy::Set,
            $crate::cache::commands::policy::Get,
            $crate::cache::commands::policy::Delete,
            $crate::cache::commands::policy::List,
            $crate::cache::commands::policy::Match,
            $crate::cache::commands::rule::Set,
            $crate::cache::commands::rule::Get,
            $crate::cache::commands::rule::Delete,
            $crate::cache::commands::rule::List,
            $crate::cache::commands::emit::Emit,
            $crate::cache::commands::cluster::InvalidateTag,
            $crate::cache::commands::cluster::StaleTag,
            $crate::cache::commands::cluster::Emit,
            $crate::cache::commands::explain::Explain,
            $crate::cache::commands::stats::Stats,
            $crate::cache::commands::doctor::Doctor,
            $crate::lock::commands::Acquire,
            $crate::lock::commands::Release,
            $crate::lock::commands::Extend,
            $crate::lock::commands::Validate,
            $crate::lock::commands::Info,
            $crate::lock::commands::Force,
            $crate::lock::commands::AcquireMany,
            $crate::lock::commands::ReleaseMany,
            $crate::lock::commands::Exec,
            $crate::ratelimit::commands::Check,
            $crate::ratelimit::commands::Peek,
            $crate::ratelimit::commands::Refund,
            $crate::ratelimit::commands::Enter,
            $crate::ratelimit::commands::Leave,
            $crate::ratelimit::commands::Reset,
            $crate::ratelimit::commands::Ban,
            $crate::ratelimit::commands::Info,
            $crate::ratelimit::commands::Throttle,
            $crate::writebehind::commands::Set,
            $crate::writebehind::commands::Increment,
            $crate::writebehind::commands::Delete,
            $crate::writebehind::commands::Claim,
            $crate::writebehind::commands::Ack,
            $crate::writebehind::commands::Nack,
            $crate::writebehind::commands::Config,
            $crate::writebehind::commands::Info,
            $crate::writebehind::commands::Dead,
            $crate::writebehind::commands::Requeue,
            $crate::writebehind::commands::DropDead,
            $crate::apply::Apply,
        }
    };
}

/// Every command that has subcommands. They are in the list above.
pub static CONTAINERS: &[Container] = &[
    crate::cache::commands::policy::CONTAINER,
    crate::cache::commands::rule::CONTAINER,
    crate::cache::commands::cluster::CONTAINER,
];

/// The SPEC of every command, in the order of registration.
pub fn specs() -> Vec<&'static CommandSpec> {
    macro_rules! specs {
        ($($command:ty,)*) => { vec![$(<$command as Command>::SPEC),*] };
    }
    every_command!(specs)
}
