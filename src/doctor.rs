//! The caching checklist against this server, for CACHE.DOCTOR: pure, over what the server says of itself, a sample of its keys, and
//! the module's memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::clock::UnixMs;
use crate::server::Expiry;
use crate::state::State;

/// How many keys of the selected database are drawn, and how many tags are looked at.
pub const SAMPLE: usize = 500;
pub const TAGS: usize = 10_000;

/// Below these there is too little to judge.
const FEW_READS: u64 = 1000;
const FEW_KEYS: usize = 50;
const FEW_TAGS: usize = 100;
const FEW_LEASES: u64 = 100;
const SMALL_MEMORY: u64 = 64 * 1024 * 1024;
const DAY_S: u64 = 86_400;

/// A key that was drawn.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub name: Box<[u8]>,
    pub expiry: Expiry,
    /// Of the key and its value.
    pub bytes: u64,
}

/// Of few keys most are drawn more than once, and a key that is there twice shares its expiry with itself.
pub fn each_once(mut drawn: Vec<Drawn>) -> Vec<Drawn> {
    drawn.sort_by(|a, b| a.name.cmp(&b.name));
    drawn.dedup_by(|a, b| a.name == b.name);
    drawn
}

/// What the server says.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// INFO.
    pub info: String,
    /// `aof-use-rdb-preamble`.
    pub preamble: bool,
    pub drawn: Vec<Drawn>,
}

impl Facts {
    fn text(&self, field: &str) -> Option<&str> {
        let lines = self.info.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(name, _)| *name == field).map(|(_, value)| value.trim())
    }

    fn number(&self, field: &str) -> u64 {
        self.text(field).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// All keys, and those with an expiry, of all databases.
    fn keys(&self) -> (u64, u64) {
        let databases = self.info.lines().filter_map(|line| line.strip_prefix("db")?.split_once(':'));
        let of = |fields: &str, name: &str| {
            let mut pairs = fields.split(',').filter_map(|field| field.split_once('='));
            pairs.find(|(field, _)| *field == name).and_then(|(_, n)| n.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        databases.fold((0, 0), |(keys, expires), (_, fields)| {
            (keys.saturating_add(of(fields, "keys")), expires.saturating_add(of(fields, "expires")))
        })
    }
}

/// One line of the checklist.
enum Verdict {
    Fine(String),
    /// Too little to tell.
    Open(String),
    /// What is wrong, and what to do.
    Wrong(String, &'static str),
}

use Verdict::{Fine, Open, Wrong};

/// The whole checklist, a line each; first how many findings there are.
pub fn report(facts: &Facts, state: &State, now: UnixMs) -> String {
    let checks: [(&str, Verdict); 14] = [
        ("memory limit", memory_limit(facts)),
        ("eviction policy", eviction_policy(facts)),
        ("hit ratio", hit_ratio(facts, state)),
        ("fragmentation", fragmentation(facts)),
        ("keys without expiry", without_expiry(facts)),
        ("jitter", jitter(facts)),
        ("biggest prefixes", prefixes(facts)),
        ("unused tags", unused_tags(facts, state)),
        ("giant tags", giant_tags(state)),
        ("evictions undone", evictions(state)),
        ("persistence", persistence(facts)),
        ("write-behind", write_behind(state, now)),
        ("lease timeouts", lease_timeouts(state)),
        ("connections", connections(facts)),
    ];
    let findings = checks.iter().filter(|(_, verdict)| matches!(verdict, Wrong(..))).count();
    let mut text = match findings {
        0 => format!("{} checks, nothing to complain about.\n", checks.len()),
        n => format!("{} checks, {n} to look at.\n", checks.len()),
    };
    for (name, verdict) in checks {
        let (mark, seen, todo) = match verdict {
            Fine(seen) => ("ok", seen, ""),
            Open(seen) => ("--", seen, ""),
            Wrong(seen, todo) => ("!!", seen, todo),
        };
        let _ = write!(text, "\n{mark} {name}: {seen}");
        if !todo.is_empty() {
            let _ = write!(text, "\n   To do: {todo}");
        }
    }
    text.push('\n');
    text
}

fn memory_limit(facts: &Facts) -> Verdict {
    match facts.number("maxmemory") {
        0 => Wrong(
            "maxmemory is 0: the cache grows until the machine has no memory left.".to_owned(),
            "set maxmemory to about three quarters of what the machine can give.",
        ),
        limit => Fine(format!("{} of {} used.", mebibytes(facts.number("used_memory")), mebibytes(limit))),
    }
}

fn eviction_policy(facts: &Facts) -> Verdict {
    let policy = facts.text("maxmemory_policy").unwrap_or("unknown");
    let (keys, expires) = facts.keys();
    if policy == "noeviction" {
        return Wrong(
            "noeviction: when memory is full, writes fail.".to_owned(),
            "set maxmemory-policy allkeys-lru or allkeys-lfu, unless this server is for locks and limits alone.",
        );
    }
    if policy.starts_with("volatile") && exceeds(keys.saturating_sub(expires), keys, 10) {
        return Wrong(
            format!("{policy}: keys without an expiry are never evicted, and they are more than a tenth."),
            "set maxmemory-policy allkeys-lru, or give every key an expiry.",
        );
    }
    Fine(format!("{policy}."))
}

/// Of the CACHE reads; where they are few, of all reads that the server counts.
fn hit_ratio(facts: &Facts, state: &State) -> Verdict {
    let counters = &state.cache.counters;
    let answered = counters.hits.saturating_add(counters.stale_hits).saturating_add(counters.none_hits);
    let (hits, misses, what) = if answered.saturating_add(counters.misses) >= FEW_READS {
        (answered, counters.misses, "CACHE reads")
    } else {
        (facts.number("keyspace_hits"), facts.number("keyspace_misses"), "all reads")
    };
    let reads = hits.saturating_add(misses);
    if reads < FEW_READS {
        return Open(format!("{reads} reads are too few to tell."));
    }
    let seen = format!("{:.1} % of {reads}, {what}.", percent(hits, reads));
    if exceeds(misses, reads, 5) {
        return Wrong(
            format!("{seen} The target is above 95 %."),
            "compare evicted_keys (too little memory), keyward_cache_invalidated_keys (tags that take too much) and the \
             times to live; ask CACHE.EXPLAIN of a key that should be there.",
        );
    }
    Fine(seen)
}

fn fragmentation(facts: &Facts) -> Verdict {
    let ratio = facts.text("mem_fragmentation_ratio").and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    if facts.number("used_memory") < SMALL_MEMORY {
        return Open(format!("{ratio:.2}; with so little memory in use that means nothing."));
    }
    let seen = format!("{ratio:.2}, where 1.0 to 1.5 is good.");
    if ratio > 1.5 {
        Wrong(seen, "set activedefrag yes where the server has it, or restart it or fail over in a quiet hour.")
    } else if ratio < 1.0 {
        Wrong(seen, "the system swaps: lower maxmemory, or give the machine more memory.")
    } else {
        Fine(seen)
    }
}

fn without_expiry(facts: &Facts) -> Verdict {
    let (keys, expires) = facts.keys();
    if keys < FEW_KEYS as u64 {
        return Open(format!("{keys} keys are too few to tell."));
    }
    let without = keys.saturating_sub(expires);
    let seen = format!("{without} of {keys} keys.");
    if exceeds(without, keys, 10) {
        return Wrong(seen, "give what is cached an expiry: EX on each write, or CACHE.POLICY SET ... PREFIX ... EX.");
    }
    Fine(seen)
}

/// Keys that were written together and expire together are loaded together.
fn jitter(facts: &Facts) -> Verdict {
    let mut seconds: BTreeMap<i64, u64> = BTreeMap::new();
    for drawn in &facts.drawn {
        if let Expiry::At(at) = drawn.expiry {
            let count = seconds.entry(at.0 / 1000).or_default();
            *count = count.saturating_add(1);
        }
    }
    let expiring = seconds.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
    if expiring < FEW_KEYS as u64 {
        return Open(format!("{expiring} keys with an expiry among {} drawn are too few to tell.", facts.drawn.len()));
    }
    let most = seconds.values().copied().max().unwrap_or(0);
    let seen = format!("{most} of {expiring} drawn keys expire in the same second.");
    if exceeds(most, expiring, 10) {
        return Wrong(seen, "spread expiries: JITTER 10% on the writes, or in a policy.");
    }
    Fine(seen)
}

/// By the first part of the name, up to `:`.
fn prefixes(facts: &Facts) -> Verdict {
    let mut sizes: BTreeMap<&[u8], u64> = BTreeMap::new();
    for drawn in &facts.drawn {
        let end = drawn.name.iter().position(|&byte| byte == b':').unwrap_or(drawn.name.len());
        let size = sizes.entry(drawn.name.get(..end).unwrap_or_default()).or_default();
        *size = size.saturating_add(drawn.bytes);
    }
    let all = sizes.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let shares = sizes.iter().take(5).map(|(name, size)| format!("{} {:.0} %", short(name), percent(*size, all)));
    let shares = shares.collect::<Vec<_>>().join(", ");
    if shares.is_empty() {
        return Open("no keys in this database.".to_owned());
    }
    Fine(format!("{shares}; of the memory of {} drawn keys.", facts.drawn.len()))
}

fn unused_tags(facts: &Facts, state: &State) -> Verdict {
    let survey = state.cache.survey_tags(TAGS);
    let seen = format!("{} of {} tags were never invalidated.", survey.never_invalidated, survey.looked_at);
    if survey.looked_at < FEW_TAGS || facts.number("uptime_in_seconds") < DAY_S {
        return Open(format!("{seen} It takes {FEW_TAGS} tags and a day to tell."));
    }
    if exceeds(survey.never_invalidated as u64, survey.looked_at as u64, 90) {
        return Wrong(seen, "leave out tags that nobody invalidates; each costs memory for every key that carries it.");
    }
    Fine(seen)
}

fn giant_tags(state: &State) -> Verdict {
    let survey = state.cache.survey_tags(TAGS);
    let at_once = usize::try_from(state.config.invalidate_sync_keys).unwrap_or(usize::MAX);
    match survey.largest {
        Some((name, keys)) if keys > at_once => Wrong(
            format!("'{}' is on {keys} keys, more than an invalidation removes at once.", short(&name)),
            "CACHE reads are right at once all the same; where plain reads matter, use narrower tags.",
        ),
        Some((name, keys)) => Fine(format!("the largest, '{}', is on {keys} keys.", short(&name))),
        None => Fine("no tags.".to_owned()),
    }
}

fn evictions(state: &State) -> Verdict {
    let locks = state.lock.put_backs();
    let queues = state.writebehind.counters.put_backs;
    let limiters = state.ratelimit.evicted;
    let seen = format!("{locks} locks and {queues} queues were put back, {limiters} limiters were lost.");
    if locks > 0 || queues > 0 || limiters > 0 {
        return Wrong(seen, "raise maxmemory, or give locks and limits a server of their own with noeviction.");
    }
    Fine(seen)
}

fn persistence(facts: &Facts) -> Verdict {
    match (facts.number("aof_enabled") > 0, facts.preamble) {
        (true, false) => Wrong(
            "aof-use-rdb-preamble is no: a rewrite of the AOF loses tags, versions, policies and rules.".to_owned(),
            "CONFIG SET aof-use-rdb-preamble yes, then BGREWRITEAOF.",
        ),
        (true, true) => Fine("the AOF begins with an RDB preamble, which has tags, policies and rules.".to_owned()),
        (false, _) => Fine("no AOF.".to_owned()),
    }
}

/// How old a record may be before the database is taken for behind, in milliseconds.
const BEHIND_MS: i64 = 60_000;

fn write_behind(state: &State, now: UnixMs) -> Verdict {
    let tally = state.writebehind.tally();
    let age = state.writebehind.oldest().map_or(0, |since| now.since(since).max(0));
    let seen = format!("{} records wait, the oldest for {} s; {} were given up.", tally.dirty, age / 1000, tally.dead);
    if tally.dead > 0 {
        return Wrong(seen, "look at them with WRITEBEHIND.DEAD, then WRITEBEHIND.REQUEUE or WRITEBEHIND.DROP.");
    }
    if age > BEHIND_MS {
        return Wrong(seen, "start more workers, or find out why those there are do not write: WRITEBEHIND.INFO.");
    }
    Fine(seen)
}

fn lease_timeouts(state: &State) -> Verdict {
    let counters = &state.cache.counters;
    let seen = format!("{} of {} leases.", counters.lease_timeouts, counters.leases_granted);
    if counters.leases_granted < FEW_LEASES {
        return Open(format!("{seen} Too few to tell."));
    }
    if exceeds(counters.lease_timeouts, counters.leases_granted, 1) {
        return Wrong(
            seen,
            "loaders die, or are slower than their LEASE: make it longer, or use CACHE.RENEW and CACHE.FAIL.",
        );
    }
    Fine(seen)
}

fn connections(facts: &Facts) -> Verdict {
    let (now, most) = (facts.number("connected_clients"), facts.number("maxclients"));
    let seen = format!("{now} of {most}.");
    if most > 0 && exceeds(now, most, 80) {
        return Wrong(
            seen,
            "raise maxclients and the file limit of the server, or use smaller pools; waiters count too.",
        );
    }
    Fine(seen)
}

/// Is `part` more than `limit` percent of `whole`?
fn exceeds(part: u64, whole: u64, limit: u64) -> bool {
    u128::from(part).saturating_mul(100) > u128::from(whole).saturating_mul(limit.into())
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes / (1024 * 1024))
}

/// A name of a user's, in one line and not too long.
fn short(name: &[u8]) -> String {
    name.get(..60).unwrap_or(name).escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    const INFO: &str = "# Memory\r\nused_memory:1073741824\r\nmaxmemory:2147483648\r\nmaxmemory_policy:allkeys-lru\r\n\
                        mem_fragmentation_ratio:1.20\r\nuptime_in_seconds:100000\r\nkeyspace_hits:9900\r\nkeyspace_misses:100\r\n\
                        aof_enabled:1\r\nconnected_clients:10\r\nmaxclients:10000\r\ndb0:keys=900,expires=900,avg_ttl=0\r\n\
                        db1:keys=100,expires=100,avg_ttl=0\r\n";

    fn healthy() -> Facts {
        let drawn = |n: i64| Drawn {
            name: format!("user:{n}").into_bytes().into(),
            expiry: Expiry::At(UnixMs(n * 1000)),
            bytes: 100,
        };
        Facts { info: INFO.to_owned(), preamble: true, drawn: (0..100).map(drawn).collect() }
    }

    #[test]
    fn few_keys_say_nothing_of_jitter_however_often_they_are_drawn() {
        let facts = healthy();
        let often: Vec<Drawn> = facts.drawn.iter().take(6).cycle().take(SAMPLE).cloned().collect();
        let facts = Facts { drawn: each_once(often), ..facts };
        assert_eq!(facts.drawn.len(), 6);
        assert!(matches!(jitter(&facts), Open(_)));
    }

    /// The lines that complain, and what to do.
    fn findings(facts: &Facts, server: &FakeServer) -> Vec<String> {
        let text = report(facts, &server.state, server.now.to_ms());
        let wrong = text.lines().filter_map(|line| line.strip_prefix("!! ").map(str::to_owned));
        let wrong: Vec<String> = wrong.collect();
        assert_eq!(text.matches("To do: ").count(), wrong.len(), "each with what to do: {text}");
        assert!(text.is_ascii() && text.starts_with("14 checks, "), "{text}");
        wrong
    }

    fn with(facts: &mut Facts, field: &str, value: &str) {
        let old = facts.text(field).unwrap().to_owned();
        facts.info = facts.info.replace(&format!("{field}:{old}"), &format!("{field}:{value}"));
    }

    #[test]
    fn a_healthy_server_has_no_findings() {
        let text = report(&healthy(), &FakeServer::new().state, UnixMs(0));
        assert!(text.starts_with("14 checks, nothing to complain about.\n"), "{text}");
        assert!(text.contains("\nok biggest prefixes: user 100 %; of the memory of 100 drawn keys.\n"), "{text}");
        assert!(text.contains("\nok memory limit: 1024 MiB of 2048 MiB used.\n"), "{text}");
        assert!(text.contains("\n-- unused tags: 0 of 0 tags were never invalidated."), "{text}");
    }

    #[test]
    fn what_the_server_says_is_judged() {
        for (field, value, finding) in [
            ("maxmemory", "0", "memory limit: maxmemory is 0"),
            ("maxmemory_policy", "noeviction", "eviction policy: noeviction"),
            ("keyspace_misses", "600", "hit ratio: 94.3 % of 10500"),
            ("mem_fragmentation_ratio", "1.51", "fragmentation: 1.51"),
            ("mem_fragmentation_ratio", "0.99", "fragmentation: 0.99"),
            ("db0", "keys=900,expires=700", "keys without expiry: 200 of 1000"),
            ("connected_clients", "8001", "connections: 8001 of 10000"),
        ] {
            let mut facts = healthy();
            with(&mut facts, field, value);
            let found = findings(&facts, &FakeServer::new());
            assert!(found.len() == 1 && found[0].starts_with(finding), "{field}={value}: {found:?}");
        }
        let mut facts = healthy();
        with(&mut facts, "maxmemory_policy", "volatile-lru");
        assert!(findings(&facts, &FakeServer::new()).is_empty());
        with(&mut facts, "db0", "keys=900,expires=700");
        assert_eq!(findings(&facts, &FakeServer::new()).len(), 2);
        let facts = Facts { preamble: false, ..healthy() };
        assert!(findings(&facts, &FakeServer::new())[0].starts_with("persistence: aof-use-rdb-preamble"));
    }

    #[test]
    fn too_little_is_not_judged() {
        let server = FakeServer::new();
        assert!(
            findings(&Facts { preamble: true, info: "maxmemory:1\r\n".to_owned(), drawn: Vec::new() }, &server)
                .is_empty()
        );
        let mut facts = healthy();
        with(&mut facts, "mem_fragmentation_ratio", "9.00");
        with(&mut facts, "used_memory", "1000000");
        with(&mut facts, "keyspace_hits", "0");
        assert!(findings(&facts, &server).is_empty());
    }

    #[test]
    fn keys_that_expire_together_are_found() {
        let mut facts = healthy();
        for drawn in facts.drawn.iter_mut().take(11) {
            drawn.expiry = Expiry::At(UnixMs(5_000));
        }
        let found = findings(&facts, &FakeServer::new());
        assert!(found[0].starts_with("jitter: 11 of 100 drawn keys"), "{found:?}");
    }

    #[test]
    fn the_state_of_the_module_is_judged() {
        let mut server = FakeServer::new();
        server.state.config.invalidate_sync_keys = 2;
        for n in 0..150 {
            server.call::<Set>(&format!("CACHE.SET k{n} v TAGS 2 all\n t{n}")).unwrap();
        }
        let counters = &mut server.state.cache.counters;
        (counters.hits, counters.misses, counters.leases_granted, counters.lease_timeouts) = (900, 100, 100, 2);
        server.state.ratelimit.evicted = 1;
        let found = findings(&healthy(), &server);
        let expected = [
            "hit ratio: 90.0 % of 1000, CACHE",
            "unused tags: 151 of 151",
            "giant tags: 'all\\n' is on 150",
            "evictions undone: 0 locks and 0 queues were put back, 1",
            "lease timeouts: 2 of 100",
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn a_database_that_is_behind_is_found() {
        use crate::writebehind::commands::{Claim, Config, Set};
        let mut server = FakeServer::new();
        server.call::<Config>("WRITEBEHIND.CONFIG q ATTEMPTS 1").unwrap();
        server.call::<Set>("WRITEBEHIND.SET q k v").unwrap();
        assert!(findings(&healthy(), &server).is_empty());
        server.advance_ms(61_000);
        let found = findings(&healthy(), &server);
        assert!(found[0].starts_with("write-behind: 1 records wait, the oldest for 61 s"), "{found:?}");
        server.call::<Claim>("WRITEBEHIND.CLAIM q ann").unwrap();
        server.advance_ms(30_000);
        crate::state::due(&mut server);
        let found = findings(&healthy(), &server);
        assert!(found[0].ends_with("1 were given up."), "{found:?}");
    }
}
