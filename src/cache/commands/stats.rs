//! CACHE.STATS

use crate::args::Args;
use crate::cache::Counters;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, CommandSpec, Family, Flag, Keys};

pub struct Stats;

impl Command for Stats {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.stats",
        family: Family::Cache,
        summary: "Returns how the cache does: hits, loads, invalidations.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: 1,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::None,
        access: Access::None,
        tips: &["nondeterministic_output", "request_policy:special", "response_policy:special"],
        args: &[],
    };
    type Request<'a> = ();

    fn parse(args: &mut Args<'_>) -> Result<(), Error> {
        if args.left() > 0 { Err(Error::WrongArity(args.command())) } else { Ok(()) }
    }

    /// New fields come at the end.
    fn run<'s, S: Server>((): (), server: &'s mut S) -> Result<Reply<'s>, Error> {
        let cache = &server.state().cache;
        let counters = &cache.counters;
        let count = |n: u64| Reply::Int(i64::try_from(n).unwrap_or(i64::MAX));
        Ok(Reply::Map(vec![
            ("hits", count(counters.hits)),
            ("stale_hits", count(counters.stale_hits)),
            ("misses", count(counters.misses)),
            ("none_hits", count(counters.none_hits)),
            ("hit_ratio", Reply::Double(hit_ratio(counters))),
            ("leases", Reply::count(cache.leases())),
            ("lease_timeouts", count(counters.lease_timeouts)),
            ("waiters", Reply::count(cache.waiters())),
            ("stampedes_suppressed", count(counters.stampedes_suppressed)),
            ("fills", count(counters.fills)),
            ("fills_refused", count(counters.fills_refused)),
            ("invalidations", count(counters.invalidations)),
            ("invalidated_keys", count(counters.invalidated_keys)),
            ("sets", count(counters.sets)),
            ("leases_granted", count(counters.leases_granted)),
            ("leases_full", count(counters.leases_full)),
            ("early_refreshes", count(counters.early_refreshes)),
            ("load_failures", count(counters.load_failures)),
            ("waits", count(counters.waits)),
            ("waits_refused", count(counters.waits_refused)),
            ("events", count(counters.events)),
            ("negatives", Reply::count(cache.negatives())),
            ("tagged_keys", Reply::count(cache.tagged_keys())),
            ("tags", Reply::count(cache.tag_count())),
        ]))
    }
}

/// Of all reads, those that the cache had an answer for: 0 to 1, and 0 before the first.
pub(super) fn hit_ratio(counters: &Counters) -> f64 {
    let answered = counters.hits.saturating_add(counters.stale_hits).saturating_add(counters.none_hits);
    let reads = answered.saturating_add(counters.misses);
    if reads == 0 { 0.0 } else { answered as f64 / reads as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::get::Get;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    fn told<'s>(server: &'s mut FakeServer, field: &str) -> Reply<'s> {
        let Ok(Reply::Map(fields)) = server.call::<Stats>("CACHE.STATS") else { panic!() };
        fields.into_iter().find(|(name, _)| *name == field).unwrap().1
    }

    #[test]
    fn what_the_cache_did_is_told() {
        let mut server = FakeServer::new();
        assert_eq!(told(&mut server, "hit_ratio"), Reply::Double(0.0));
        server.call::<Set>("CACHE.SET k v TAGS 1 t").unwrap();
        for key in ["k", "k", "k", "none"] {
            server.call::<Get>(&format!("CACHE.GET {key}")).unwrap();
        }
        assert_eq!(told(&mut server, "hit_ratio"), Reply::Double(0.75));
        server.call::<Fetch>("CACHE.FETCH none").unwrap();
        for (field, n) in [("hits", 3), ("misses", 2), ("sets", 1), ("leases", 1), ("leases_granted", 1), ("tags", 1)] {
            assert_eq!(told(&mut server, field), Reply::Int(n), "{field}");
        }
        assert_eq!(server.call::<Stats>("CACHE.STATS x"), Err(Error::WrongArity("cache.stats")));
    }
}
