//! The one table of metrics. The INFO sections and docs/metrics.md follow it.

use crate::clock::UnixMs;
use crate::state::State;

/// A number in INFO, under `keyward_<name>`.
pub struct Metric {
    pub name: &'static str,
    pub summary: &'static str,
    pub kind: Kind,
    reading: Reading,
}

/// Where the number comes from.
enum Reading {
    Number(fn(&State) -> u64),
    /// The milliseconds since this moment, 0 without one.
    Age(fn(&State) -> Option<UnixMs>),
}

impl Metric {
    pub fn value(&self, state: &State, now: UnixMs) -> u64 {
        match self.reading {
            Reading::Number(of) => of(state),
            Reading::Age(since) => since(state).map_or(0, |since| u64::try_from(now.since(since)).unwrap_or(0)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows only, from the start of the process.
    Counter,
    /// As it stands now.
    Gauge,
}

/// A section of INFO, `# keyward_<name>`.
pub struct Section {
    pub name: &'static str,
    pub metrics: &'static [Metric],
}

const fn counter(name: &'static str, summary: &'static str, value: fn(&State) -> u64) -> Metric {
    Metric { name, summary, kind: Kind::Counter, reading: Reading::Number(value) }
}

const fn gauge(name: &'static str, summary: &'static str, value: fn(&State) -> u64) -> Metric {
    Metric { name, summary, kind: Kind::Gauge, reading: Reading::Number(value) }
}

const fn age(name: &'static str, summary: &'static str, since: fn(&State) -> Option<UnixMs>) -> Metric {
    Metric { name, summary, kind: Kind::Gauge, reading: Reading::Age(since) }
}

/// A size as INFO shows it.
fn size(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

pub static SECTIONS: &[Section] = &[
    Section {
        name: "cache",
        metrics: &[
            counter("cache_hits", "CACHE reads that found a fresh value.", |s| s.cache.counters.hits),
            counter("cache_stale_hits", "FETCHes that were served a stale value.", |s| s.cache.counters.stale_hits),
            counter("cache_none_hits", "FETCHes that were told that the origin has nothing.", |s| {
                s.cache.counters.none_hits
            }),
            counter("cache_misses", "CACHE reads that found no value, or none they may have.", |s| {
                s.cache.counters.misses
            }),
            gauge("cache_leases", "Loads under way, and failures that keep others from trying.", |s| {
                size(s.cache.leases())
            }),
            counter("cache_leases_granted", "Callers that were elected to load.", |s| s.cache.counters.leases_granted),
            counter("cache_leases_full", "Callers that had to load without a lease: leases-max.", |s| {
                s.cache.counters.leases_full
            }),
            counter("cache_lease_timeouts", "Leases that ran out: a loader died or was too slow.", |s| {
                s.cache.counters.lease_timeouts
            }),
            counter("cache_early_refreshes", "Callers that were elected before the value expired (BETA).", |s| {
                s.cache.counters.early_refreshes
            }),
            counter("cache_fills", "FILLs and FILLNILs that were stored.", |s| s.cache.counters.fills),
            counter(
                "cache_fills_refused",
                "FILLs and FILLNILs that were not: the lease was lost, or memory is full.",
                |s| s.cache.counters.fills_refused,
            ),
            counter("cache_load_failures", "Loads that were given up with FAIL.", |s| s.cache.counters.load_failures),
            gauge("cache_jobs", "Keys that are queued for loaders.", |s| size(s.cache.jobs())),
            counter("cache_jobs_queued", "Keys that were ever queued for loaders.", |s| s.cache.counters.jobs_queued),
            counter("cache_jobs_dropped", "Jobs dropped for more urgent or newer ones: jobs-max.", |s| {
                s.cache.counters.jobs_dropped
            }),
            gauge("cache_waiting_loaders", "Loaders that wait for jobs.", |s| size(s.cache.waiting_loaders())),
            gauge("cache_hot_keys", "Keys whose reads are counted for CACHE.HOT.", |s| size(s.cache.hot_keys())),
            gauge("cache_intents", "Database writes under way; on a replica, their keys.", |s| size(s.cache.intents())),
            counter("cache_intents_full", "INTENTs that were refused: intents-max.", |s| s.cache.counters.intents_full),
            counter("cache_intent_timeouts", "Intents that ran out: a writer died or was too slow.", |s| {
                s.cache.counters.intent_timeouts
            }),
            counter("cache_commits", "COMMITs that stored their value, or removed the key as they were to.", |s| {
                s.cache.counters.commits
            }),
            counter("cache_commits_refused", "COMMITs whose value was not stored: it was in doubt.", |s| {
                s.cache.counters.commits_refused
            }),
            gauge("cache_policies", "Policies.", |s| size(s.cache.policies.len())),
            counter("cache_policies_full", "Policies that were refused: policies-max.", |s| {
                s.cache.counters.policies_full
            }),
            counter(
                "cache_policy_warnings",
                "Writes of keys that do not match the pattern of their policy: ENFORCE warn.",
                |s| s.cache.counters.policy_warnings,
            ),
            counter(
                "cache_policy_rejections",
                "Writes refused since the key does not match the pattern: ENFORCE reject.",
                |s| s.cache.counters.policy_rejections,
            ),
            gauge("cache_rules", "Events that have a rule.", |s| size(s.cache.rules.len())),
            counter("cache_rules_full", "Rules that were refused: rules-max.", |s| s.cache.counters.rules_full),
            counter("cache_events", "Events that were emitted.", |s| s.cache.counters.events),
            counter("cache_events_without_rule", "Events that were emitted and have no rule.", |s| {
                s.cache.counters.events_without_rule
            }),
            gauge("cache_departures", "Keys of which it is remembered why they went: explain-history-max.", |s| {
                size(s.cache.departures().0)
            }),
            gauge("cache_departures_bytes", "Memory of that, part of used_memory.", |s| size(s.cache.departures().1)),
            counter("cache_slides", "Keys whose time to live a read set back to full.", |s| s.cache.counters.slides),
            gauge("cache_slides_pending", "Keys that were read and wait for that.", |s| size(s.cache.slides.len())),
            counter("cache_slides_dropped", "Reads that did not: slides-max.", |s| s.cache.counters.slides_dropped),
            gauge("cache_waiters", "Clients that wait for a load.", |s| size(s.cache.waiters())),
            counter("cache_waits", "Clients that ever waited for a load.", |s| s.cache.counters.waits),
            counter("cache_waits_refused", "Clients that could not wait: waiters-max or waiters-per-key-max.", |s| {
                s.cache.counters.waits_refused
            }),
            counter("cache_stampedes_suppressed", "Clients that were answered by a load they did not do.", |s| {
                s.cache.counters.stampedes_suppressed
            }),
            gauge("cache_negatives", "Keys of which the origin is known to have nothing.", |s| {
                size(s.cache.negatives())
            }),
            counter("cache_negatives_dropped", "Negative answers dropped early: more than negatives-max.", |s| {
                s.cache.negatives_dropped()
            }),
            gauge("cache_fence_tags", "Invalidated tags that are remembered for loads and writes under way.", |s| {
                size(s.cache.fence_tags())
            }),
            gauge("cache_soft_expiries", "Keys whose grace, or the time of whose load, is remembered.", |s| {
                size(s.cache.soft_expiries())
            }),
            counter("cache_sets", "Values stored by CACHE commands.", |s| s.cache.counters.sets),
            counter("cache_invalidations", "Keys and tags that were invalidated.", |s| s.cache.counters.invalidations),
            counter("cache_invalidated_keys", "Keys removed by invalidations.", |s| s.cache.counters.invalidated_keys),
            gauge("cache_tagged_keys", "Keys with tags, in all databases.", |s| size(s.cache.tagged_keys())),
            gauge("cache_tags", "Tags that some key carries.", |s| size(s.cache.tag_count())),
            gauge(
                "cache_tag_history",
                "Invalidated tags that no key carries and that are remembered: tag-history-max.",
                |s| size(s.cache.tag_history()),
            ),
            gauge("cache_reclaim_backlog", "Invalidated keys that are still to be unlinked.", |s| {
                size(s.cache.backlog())
            }),
            gauge("cache_version_floors_live", "Versions of keys that are there.", |s| size(s.cache.live_floors())),
            gauge("cache_version_floors_lingering", "Version floors of keys that are gone.", |s| {
                size(s.cache.lingering_floors())
            }),
            counter(
                "cache_version_floors_dropped",
                "Version floors dropped early: more than version-floors-max.",
                |s| s.cache.floors_dropped(),
            ),
            gauge(
                "cache_metadata_bytes",
                "Memory of tags, version floors, soft expiries and negative answers, part of used_memory.",
                |s| size(s.cache.memory()),
            ),
            gauge(
                "cache_doubts",
                "Values that came with their slot, and are not seen until it is known whether they had tags.",
                |s| size(s.cache.doubts()),
            ),
            counter("cache_doubts_ever", "Values that ever came with their slot.", |s| s.cache.counters.doubts),
            counter(
                "cache_doubts_removed",
                "Those of them that had tags, a grace or a version, and were removed.",
                |s| s.cache.counters.doubts_removed,
            ),
            gauge(
                "cache_departed",
                "Keys with tags, a grace or a version that went with their slot, remembered for ten minutes.",
                |s| size(s.cache.departed()),
            ),
            counter(
                "cache_ghosts",
                "Records found without their key. Anything but 0 is a bug: please report it.",
                |s| s.cache.counters.ghosts,
            ),
        ],
    },
    Section {
        name: "lock",
        metrics: &[
            gauge("lock_locks", "Locks that have a key.", |s| size(s.lock.locks())),
            gauge("lock_limbo", "Locks whose key was evicted and is still to be put back.", |s| {
                size(s.lock.limbo_len())
            }),
            gauge("lock_bytes", "Memory of locks, which eviction cannot free.", |s| size(s.lock.bytes())),
            gauge("lock_waiters", "Clients that wait for a lock.", |s| size(s.lock.queues.len())),
            gauge("lock_sessions", "Locks that end with a connection.", |s| size(s.lock.sessions.count())),
            counter("lock_grants", "Locks granted, at once or to a client that waited.", |s| s.lock.counters.grants),
            counter("lock_waits", "Clients that waited for a lock.", |s| s.lock.counters.waits),
            counter("lock_waits_refused", "Clients that were refused to wait, since too many did.", |s| {
                s.lock.counters.waits_refused
            }),
            counter("lock_sessions_closed", "Locks released because their connection closed.", |s| {
                s.lock.counters.sessions_closed
            }),
            counter("lock_evictions_undone", "Evicted locks whose key was put back.", |s| s.lock.put_backs()),
            counter("lock_deleted", "Locks that ended because their key was deleted or overwritten.", |s| {
                s.lock.forgotten()
            }),
        ],
    },
    Section {
        name: "ratelimit",
        metrics: &[
            counter("ratelimit_allowed", "Requests that RATELIMIT.CHECK and CL.THROTTLE admitted.", |s| {
                s.ratelimit.allowed
            }),
            counter("ratelimit_denied", "Requests that RATELIMIT.CHECK and CL.THROTTLE denied.", |s| {
                s.ratelimit.denied
            }),
            counter("ratelimit_resets", "Limiters removed by RATELIMIT.RESET.", |s| s.ratelimit.resets),
            counter(
                "ratelimit_evicted",
                "Limiters in use that memory pressure removed: their limit starts afresh.",
                |s| s.ratelimit.evicted,
            ),
            counter("ratelimit_slots_given", "ENTERs that got a slot or renewed one, at once or after a wait.", |s| {
                s.ratelimit.slots.entered
            }),
            counter("ratelimit_slots_denied", "ENTERs that found no slot free; some of them waited then.", |s| {
                s.ratelimit.slots.denied
            }),
            gauge("ratelimit_sessions", "Slots that end with a connection.", |s| size(s.ratelimit.sessions.count())),
            counter("ratelimit_sessions_closed", "Slots freed because their connection closed.", |s| {
                s.ratelimit.slots.sessions_closed
            }),
            gauge("ratelimit_waiters", "Clients that wait for a limit.", |s| size(s.ratelimit.queues.len())),
            counter("ratelimit_waits", "Clients that waited for a limit.", |s| s.ratelimit.waits),
            counter("ratelimit_waits_refused", "Clients that were refused to wait, since too many did.", |s| {
                s.ratelimit.waits_refused
            }),
        ],
    },
    Section {
        name: "writebehind",
        metrics: &[
            gauge("writebehind_queues", "Queues.", |s| size(s.writebehind.queues())),
            gauge("writebehind_dirty", "Records that the database does not have yet.", |s| {
                size(s.writebehind.tally().dirty)
            }),
            age("writebehind_oldest_ms", "How long ago the oldest of them was first written, in milliseconds.", |s| {
                s.writebehind.oldest()
            }),
            gauge("writebehind_in_flight", "Records that a worker has claimed.", |s| {
                size(s.writebehind.tally().in_flight)
            }),
            gauge("writebehind_dead", "Records that were given up, and wait for REQUEUE or DROP.", |s| {
                size(s.writebehind.tally().dead)
            }),
            gauge("writebehind_limbo", "Queues whose key was evicted and is still to be put back.", |s| {
                size(s.writebehind.limbo_len())
            }),
            gauge("writebehind_bytes", "Memory of queues, which eviction cannot free.", |s| {
                size(s.writebehind.bytes())
            }),
            gauge("writebehind_waiters", "Workers that wait for records.", |s| size(s.writebehind.waiting.len())),
            counter("writebehind_writes", "Writes that were queued.", |s| s.writebehind.counters.writes),
            counter("writebehind_coalesced", "Writes that became one with another.", |s| {
                s.writebehind.counters.coalesced
            }),
            counter("writebehind_refused", "Writes refused since the queue is full: MAXDIRTY.", |s| {
                s.writebehind.counters.refused
            }),
            counter("writebehind_claims", "Records handed out to workers.", |s| s.writebehind.counters.claims),
            counter("writebehind_acks", "Records that the database has.", |s| s.writebehind.counters.acks),
            counter("writebehind_nacks", "Records that workers gave back.", |s| s.writebehind.counters.nacks),
            counter("writebehind_lapses", "Claims that ran out: a worker died or was too slow.", |s| {
                s.writebehind.counters.lapses
            }),
            counter("writebehind_died", "Records that were given up after ATTEMPTS.", |s| s.writebehind.counters.died),
            counter("writebehind_waits", "Workers that waited for records.", |s| s.writebehind.counters.waits),
            counter("writebehind_waits_refused", "Workers that were refused to wait, since too many did.", |s| {
                s.writebehind.counters.waits_refused
            }),
            counter("writebehind_evictions_undone", "Evicted queues whose key was put back.", |s| {
                s.writebehind.counters.put_backs
            }),
            counter("writebehind_deleted", "Queues that ended because their key was deleted or overwritten.", |s| {
                s.writebehind.counters.forgotten
            }),
        ],
    },
    Section {
        name: "cluster",
        metrics: &[
            gauge("cluster_waiters", "Clients that wait for other shards: CACHE.CLUSTER.", |s| {
                size(s.cluster.fan_outs.len())
            }),
            counter("cluster_waits", "Clients that waited for other shards.", |s| s.cluster.counters.waits),
            counter("cluster_not_reached", "Clients that were told that some did not answer: cluster-wait-ms.", |s| {
                s.cluster.counters.not_reached
            }),
            gauge("cluster_unanswered", "Requests to other nodes that are not answered yet.", |s| {
                size(s.cluster.outbox.len())
            }),
            counter("cluster_asked_again", "Times that another node was asked what became of a request.", |s| {
                s.cluster.counters.asked
            }),
            gauge("cluster_requests_waiting", "Requests of other nodes that are still to be done here.", |s| {
                size(s.cluster.inbox.len())
            }),
            counter("cluster_requests", "Requests of other nodes that were done here.", |s| s.cluster.counters.done),
            counter("cluster_duplicates", "Requests of other nodes that came again, and were not done again.", |s| {
                s.cluster.counters.duplicates
            }),
            counter("cluster_messages_sent", "Messages sent over the cluster bus.", |s| s.cluster.counters.sent),
            counter("cluster_messages_received", "Messages that came over the cluster bus.", |s| {
                s.cluster.counters.received
            }),
            counter(
                "cluster_messages_refused",
                "Messages that this node could not or may not act on, or had no room for.",
                |s| s.cluster.counters.refused,
            ),
        ],
    },
    Section {
        name: "server",
        metrics: &[counter(
            "caught_panics",
            "Internal errors that were caught. Anything but 0 is a bug: please report it.",
            |s| s.panics,
        )],
    },
];
