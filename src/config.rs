//! The one table of settings. `CONFIG GET keyward.*`, loadmodule arguments, redis.conf.example and docs/configuration.md follow it.

/// The values in force.
#[derive(Clone, Debug)]
pub struct Config {
    pub invalidate_sync_keys: i64,
    pub version_floor_ms: i64,
    pub version_floors_max: i64,
    pub tag_history_max: i64,
    pub lease_max_ms: i64,
    pub leases_max: i64,
    pub waiters_max: i64,
    pub waiters_per_key_max: i64,
    pub negatives_max: i64,
    pub jobs_max: i64,
    pub fence_tags_max: i64,
    pub intents_max: i64,
    pub policies_max: i64,
    pub rules_max: i64,
    pub emit_max_keys: i64,
    pub cluster_wait_ms: i64,
    pub explain_history_max: i64,
    pub slides_max: i64,
    pub save_metadata: bool,
    pub cl_throttle: &'static str,
}

/// A setting as operators see it, under `keyward.<name>`.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    pub summary: &'static str,
    pub kind: Kind,
    /// May change while the server runs.
    pub mutable: bool,
}

#[derive(Debug)]
pub enum Kind {
    Int {
        default: i64,
        min: i64,
        max: i64,
        field: fn(&mut Config) -> &mut i64,
    },
    Bool {
        default: bool,
        field: fn(&mut Config) -> &mut bool,
    },
    /// One of these words; the first is the default.
    Word {
        words: &'static [&'static str],
        field: fn(&mut Config) -> &mut &'static str,
    },
}

pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "invalidate-sync-keys",
        summary: "How many keys an invalidation unlinks inside the command; the rest of a larger tag is retired at once for \
                  CACHE reads and unlinked in slices of at most 1 ms.",
        kind: Kind::Int { default: 5000, min: 1, max: 1_000_000, field: |c| &mut c.invalidate_sync_keys },
        mutable: true,
    },
    Setting {
        name: "version-floor-ms",
        summary: "How long the version floor of a key outlives the key, in milliseconds.",
        kind: Kind::Int { default: 60_000, min: 0, max: 86_400_000, field: |c| &mut c.version_floor_ms },
        mutable: true,
    },
    Setting {
        name: "version-floors-max",
        summary: "How many version floors of keys that are gone are remembered in each database; the oldest go first.",
        kind: Kind::Int { default: 1_000_000, min: 0, max: 100_000_000, field: |c| &mut c.version_floors_max },
        mutable: true,
    },
    Setting {
        name: "tag-history-max",
        summary: "How many tags without keys are remembered in each database for CACHE.TAGINFO after they were invalidated; \
                  the oldest go first.",
        kind: Kind::Int { default: 1000, min: 0, max: 10_000_000, field: |c| &mut c.tag_history_max },
        mutable: true,
    },
    Setting {
        name: "lease-max-ms",
        summary: "The longest LEASE that a loader may ask for, in milliseconds.",
        kind: Kind::Int { default: 60_000, min: 1, max: 86_400_000, field: |c| &mut c.lease_max_ms },
        mutable: true,
    },
    Setting {
        name: "leases-max",
        summary: "How many loads may be under way at once. Beyond it a miss gets no token: the caller loads, and does not fill.",
        kind: Kind::Int { default: 100_000, min: 0, max: 10_000_000, field: |c| &mut c.leases_max },
        mutable: true,
    },
    Setting {
        name: "waiters-max",
        summary: "How many clients may wait at once, for loads, locks, limiters and work together. Beyond it FETCH answers BUSY, other \
                  commands an error.",
        kind: Kind::Int { default: 100_000, min: 0, max: 10_000_000, field: |c| &mut c.waiters_max },
        mutable: true,
    },
    Setting {
        name: "waiters-per-key-max",
        summary: "How many clients may wait for one key. Beyond it FETCH answers BUSY, other commands an error.",
        kind: Kind::Int { default: 50_000, min: 0, max: 10_000_000, field: |c| &mut c.waiters_per_key_max },
        mutable: true,
    },
    Setting {
        name: "jobs-max",
        summary: "How many keys may be queued for loaders (CACHE.READ, CACHE.WARM, AHEAD); the least needed go first, of those the \
                  oldest.",
        kind: Kind::Int { default: 100_000, min: 1, max: 10_000_000, field: |c| &mut c.jobs_max },
        mutable: true,
    },
    Setting {
        name: "negatives-max",
        summary: "How many negative answers (FILLNIL) are remembered in each database; the oldest go first.",
        kind: Kind::Int { default: 100_000, min: 0, max: 10_000_000, field: |c| &mut c.negatives_max },
        mutable: true,
    },
    Setting {
        name: "fence-tags-max",
        summary: "How many invalidated tags are remembered in each database while loads or database writes are under way. Beyond \
                  it a FILL or COMMIT in doubt is refused.",
        kind: Kind::Int { default: 100_000, min: 0, max: 10_000_000, field: |c| &mut c.fence_tags_max },
        mutable: true,
    },
    Setting {
        name: "intents-max",
        summary: "How many database writes (CACHE.INTENT) may be under way at once. Beyond it INTENT is refused.",
        kind: Kind::Int { default: 100_000, min: 0, max: 10_000_000, field: |c| &mut c.intents_max },
        mutable: true,
    },
    Setting {
        name: "policies-max",
        summary: "How many policies there may be. Beyond it CACHE.POLICY SET of another one is refused.",
        kind: Kind::Int { default: 10_000, min: 0, max: 1_000_000, field: |c| &mut c.policies_max },
        mutable: true,
    },
    Setting {
        name: "rules-max",
        summary: "How many events may have a rule. Beyond it CACHE.RULE SET of another one is refused.",
        kind: Kind::Int { default: 1000, min: 0, max: 1_000_000, field: |c| &mut c.rules_max },
        mutable: true,
    },
    Setting {
        name: "emit-max-keys",
        summary: "How many keys and tags one event (CACHE.EMIT) may name. One that names more is refused.",
        kind: Kind::Int { default: 1000, min: 1, max: 1_000_000, field: |c| &mut c.emit_max_keys },
        mutable: true,
    },
    Setting {
        name: "cluster-wait-ms",
        summary: "How long CACHE.CLUSTER waits for the other shards, in milliseconds. Those that have not answered by then are named in \
                  the error that it replies.",
        kind: Kind::Int { default: 5000, min: 1, max: 600_000, field: |c| &mut c.cluster_wait_ms },
        mutable: true,
    },
    Setting {
        name: "explain-history-max",
        summary: "Of how many keys that went it is remembered why, for CACHE.EXPLAIN; the oldest go first. Each takes 48 bytes.",
        kind: Kind::Int { default: 10_000, min: 0, max: 100_000, field: |c| &mut c.explain_history_max },
        mutable: true,
    },
    Setting {
        name: "slides-max",
        summary: "How many keys that were read may wait for their full time to live (SLIDING), as they do while the server may not write. \
                  Beyond it the time to live of a key that is read stays as it is.",
        kind: Kind::Int { default: 100_000, min: 0, max: 10_000_000, field: |c| &mut c.slides_max },
        mutable: true,
    },
    Setting {
        name: "save-metadata",
        summary: "Whether RDB files carry policies, rules, tags, version floors, soft expiries, negative answers, intents, doubts and the fencing reserve. With no, they are gone after a restart \
                  and missing on replicas; see docs/removing.md.",
        kind: Kind::Bool { default: true, field: |c| &mut c.save_metadata },
        mutable: false,
    },
    Setting {
        name: "cl-throttle",
        summary: "Whether the module has CL.THROTTLE, the command of redis-cell. auto: unless the server has a command of that \
                  name when the module is loaded. yes: the load fails if it has. no: never.",
        kind: Kind::Word { words: &["auto", "yes", "no"], field: |c| &mut c.cl_throttle },
        mutable: false,
    },
];

impl Default for Config {
    fn default() -> Config {
        let mut config = Config {
            invalidate_sync_keys: 0,
            version_floor_ms: 0,
            version_floors_max: 0,
            tag_history_max: 0,
            lease_max_ms: 0,
            leases_max: 0,
            waiters_max: 0,
            waiters_per_key_max: 0,
            negatives_max: 0,
            jobs_max: 0,
            fence_tags_max: 0,
            intents_max: 0,
            policies_max: 0,
            rules_max: 0,
            emit_max_keys: 0,
            cluster_wait_ms: 0,
            explain_history_max: 0,
            slides_max: 0,
            save_metadata: false,
            cl_throttle: "",
        };
        for setting in SETTINGS {
            match setting.kind {
                Kind::Int { default, field, .. } => *field(&mut config) = default,
                Kind::Bool { default, field } => *field(&mut config) = default,
                Kind::Word { words, field } => *field(&mut config) = words.first().copied().unwrap_or_default(),
            }
        }
        config
    }
}
