//! CACHE.STALE

use super::invalidate::{Names, parse_names};
use crate::args::Args;
use crate::cache::{single_flight, staleness};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Stale;

impl Command for Stale {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.stale",
        family: Family::Cache,
        summary: "Makes values stale now: their grace begins. Those without a grace are removed.",
        complexity: "O(N) where N is the number of keys.",
        since: "0.1.0",
        arity: -2,
        flags: &[Flag::Write],
        keys: Keys::All,
        access: Access::Delete,
        tips: &["request_policy:multi_shard", "response_policy:agg_sum"],
        args: &[ArgSpec::key().multiple()],
    };
    type Request<'a> = Names<'a>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Names<'a>, Error> {
        parse_names(args)
    }

    fn run<'s, S: Server>(keys: Names<'_>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let now = server.now().to_ms();
        single_flight::revoke(server, &keys);
        let staled = staleness::make_stale(server, &keys, now);
        let counters = &mut server.state().cache.counters;
        counters.invalidations = counters.invalidations.saturating_add(staled as u64);
        Ok(Reply::count(staled))
    }
}
