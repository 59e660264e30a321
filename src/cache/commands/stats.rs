//! CACHE.STATS

use crate::args::{Arg, Args};
use crate::cache::{Counters, State};
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub struct Stats;

impl Command for Stats {
    const SPEC: &'static CommandSpec = &CommandSpec {
        name: "cache.stats",
        family: Family::Cache,
        summary: "Returns how the cache does, in all or for the keys of one policy: hits, loads, invalidations.",
        complexity: "O(1)",
        since: "0.1.0",
        arity: -1,
        flags: &[Flag::ReadOnly, Flag::Fast],
        keys: Keys::None,
        access: Access::None,
        tips: &["nondeterministic_output", "request_policy:special", "response_policy:special"],
        args: &[ArgSpec::string("name").token("POLICY").optional()],
    };
    /// The name of a policy.
    type Request<'a> = Option<Arg<'a>>;

    fn parse<'a>(args: &mut Args<'a>) -> Result<Option<Arg<'a>>, Error> {
        let Some(word) = args.take() else { return Ok(None) };
        if !word.is("POLICY") {
            return Err(Error::Syntax);
        }
        let name = args.value()?;
        if args.left() > 0 { Err(Error::Syntax) } else { Ok(Some(name)) }
    }

    /// New fields come at the end.
    fn run<'s, S: Server>(policy: Option<Arg<'_>>, server: &'s mut S) -> Result<Reply<'s>, Error> {
        let cache = &server.state().cache;
        match policy {
            None => {
                let mut fields = of_keys(&cache.counters, cache.leases(), cache.waiters());
                fields.extend(of_all(cache));
                Ok(Reply::Map(fields))
            }
            Some(name) => {
                let stats = &cache.policies.get(name.bytes).ok_or(Error::NoSuchPolicy)?.stats;
                let counters = stats.counters();
                let mut fields = of_keys(&counters, stats.leases(), stats.waiters());
                fields.push(("policy_warnings", count(counters.policy_warnings)));
                fields.push(("policy_rejections", count(counters.policy_rejections)));
                Ok(Reply::Map(fields))
            }
        }
    }
}

type Fields<'s> = Vec<(&'static str, Reply<'s>)>;

/// What is known of some keys, be they all of the server or those of a policy.
fn of_keys<'s>(counters: &Counters, leases: usize, waiters: usize) -> Fields<'s> {
    vec![
        ("hits", count(counters.hits)),
        ("stale_hits", count(counters.stale_hits)),
        ("misses", count(counters.misses)),
        ("none_hits", count(counters.none_hits)),
        ("hit_ratio", Reply::Double(hit_ratio(counters))),
        ("leases", Reply::count(leases)),
        ("lease_timeouts", count(counters.lease_timeouts)),
        ("waiters", Reply::count(waiters)),
        ("stampedes_suppressed", count(counters.stampedes_suppressed)),
        ("fills", count(counters.fills)),
        ("fills_refused", count(counters.fills_refused)),
        ("invalidations", count(counters.invalidations)),
        ("sets", count(counters.sets)),
        ("leases_granted", count(counters.leases_granted)),
        ("leases_full", count(counters.leases_full)),
        ("early_refreshes", count(counters.early_refreshes)),
        ("load_failures", count(counters.load_failures)),
        ("waits", count(counters.waits)),
        ("waits_refused", count(counters.waits_refused)),
    ]
}

fn of_all<'s>(cache: &State) -> Fields<'s> {
    vec![
        ("invalidated_keys", count(cache.counters.invalidated_keys)),
        ("events", count(cache.counters.events)),
        ("negatives", Reply::count(cache.negatives())),
        ("tagged_keys", Reply::count(cache.tagged_keys())),
        ("tags", Reply::count(cache.tag_count())),
    ]
}

fn count<'s>(n: u64) -> Reply<'s> {
    Reply::Int(i64::try_from(n).unwrap_or(i64::MAX))
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
    use crate::cache::commands::invalidate_tag::InvalidateTag;
    use crate::cache::commands::mget::MGet;
    use crate::cache::commands::policy::Set as SetPolicy;
    use crate::cache::commands::set::Set;
    use crate::cache::single_flight;
    use crate::fake_server::FakeServer;

    fn told<'s>(server: &'s mut FakeServer, field: &str) -> Reply<'s> {
        told_by(server, "CACHE.STATS", field)
    }

    fn told_by<'s>(server: &'s mut FakeServer, call: &str, field: &str) -> Reply<'s> {
        let Ok(Reply::Map(fields)) = server.call::<Stats>(call) else { panic!() };
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
    }

    #[test]
    fn a_policy_is_told_of_its_keys_alone() {
        let mut server = FakeServer::new();
        for policy in ["users PREFIX user: EX 10", "sessions PREFIX user:s:"] {
            server.call::<SetPolicy>(&format!("CACHE.POLICY SET {policy}")).unwrap();
        }
        server.call::<Set>("CACHE.SET user:1 v TAGS 1 t").unwrap();
        server.call::<Set>("CACHE.SET user:s:1 v").unwrap();
        server.call::<MGet>("CACHE.MGET user:1 user:1 user:2 user:s:1 other").unwrap();
        server.call::<Fetch>("CACHE.FETCH user:2").unwrap();
        server.call::<InvalidateTag>("CACHE.INVALIDATETAG t").unwrap();
        server.call::<SetPolicy>("CACHE.POLICY SET users PREFIX user: EX 20").unwrap();
        let users =
            [("hits", 2), ("misses", 2), ("sets", 1), ("leases", 1), ("leases_granted", 1), ("invalidations", 1)];
        for (field, n) in users {
            assert_eq!(told_by(&mut server, "CACHE.STATS POLICY users", field), Reply::Int(n), "{field}");
        }
        for (field, n) in [("hits", 1), ("misses", 0), ("sets", 1), ("leases", 0), ("invalidations", 0)] {
            assert_eq!(told_by(&mut server, "CACHE.STATS POLICY sessions", field), Reply::Int(n), "{field}");
        }
        server.advance_ms(60_000);
        single_flight::due(&mut server);
        for (field, n) in [("leases", 0), ("lease_timeouts", 1)] {
            assert_eq!(told_by(&mut server, "CACHE.STATS POLICY users", field), Reply::Int(n), "{field}");
        }
    }

    #[test]
    fn only_a_policy_that_is_there_can_be_asked_for() {
        let mut server = FakeServer::new();
        assert_eq!(server.call::<Stats>("CACHE.STATS POLICY none"), Err(Error::NoSuchPolicy));
        for call in ["CACHE.STATS x", "CACHE.STATS POLICY", "CACHE.STATS POLICY a b"] {
            assert_eq!(server.call::<Stats>(call), Err(Error::Syntax), "{call}");
        }
    }
}
