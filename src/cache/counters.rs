//! What INFO and CACHE.STATS tell of the cache: what was counted, and how much there is just now.

use super::database::Database;
use super::policies::InForce;
use super::scan::TagSurvey;
use super::state::State;

/// Since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads that found a fresh value, a stale one, the answer that there is none, or nothing.
    pub hits: u64,
    pub stale_hits: u64,
    pub none_hits: u64,
    pub misses: u64,
    /// Values stored by CACHE writes.
    pub sets: u64,
    /// Keys and tags that INVALIDATE, INVALIDATETAG and FLOOR named, as far as there was something to invalidate.
    pub invalidations: u64,
    /// Keys that were removed for that, at once or by the reclaimer.
    pub invalidated_keys: u64,
    /// Leases given out, refused because too many were out, and run out.
    pub leases_granted: u64,
    pub leases_full: u64,
    pub lease_timeouts: u64,
    /// Leases given out on fresh values.
    pub early_refreshes: u64,
    /// FILL and FILLNIL that stored, and that were refused.
    pub fills: u64,
    pub fills_refused: u64,
    pub load_failures: u64,
    /// COMMITs that stored or removed their key as they were to, and those after which the key had to go (or a newer value
    /// stayed). INTENTs that were refused because too many were open, and that ran out.
    pub commits: u64,
    pub commits_refused: u64,
    pub intents_full: u64,
    pub intent_timeouts: u64,
    /// Writes under a name that does not fit the pattern of its policy, those among them that were refused, and policies that
    /// were refused since there are too many.
    pub policy_warnings: u64,
    pub policy_rejections: u64,
    pub policies_full: u64,
    /// Events that were emitted, those among them that had no rule, and rules that were refused since there are too many.
    pub events: u64,
    pub events_without_rule: u64,
    pub rules_full: u64,
    /// Keys whose time to live a read set back to full, and those for which there was no room to note it.
    pub slides: u64,
    pub slides_dropped: u64,
    /// Callers that waited, that were refused to, and that were answered by a load they did not do.
    pub waits: u64,
    pub waits_refused: u64,
    pub stampedes_suppressed: u64,
    /// Keys that were put into the queue of a loader, and those that had to go for others.
    pub jobs_queued: u64,
    pub jobs_dropped: u64,
    /// Floors and negatives that went before their time, in databases that are not held any more.
    pub(super) floors_dropped: u64,
    pub(super) negatives_dropped: u64,
    /// Keys that were known here but not in the keyspace. Anything but 0 means an event that was missed.
    pub ghosts: u64,
    /// Values that came from another node and were in doubt, and those of them that were removed.
    pub doubts: u64,
    pub doubts_removed: u64,
}

impl State {
    /// Counts what concerns a key: in all, and for its policy.
    #[inline]
    pub(super) fn count(&mut self, key: &[u8], n: u64, which: impl Fn(&mut Counters) -> &mut u64) {
        let counter = which(&mut self.counters);
        *counter = counter.saturating_add(n);
        self.count_by_policy(key, n, which);
    }

    /// For the policy of the key alone: in all it was counted at once for many.
    #[inline]
    pub(super) fn count_by_policy(&self, key: &[u8], n: u64, which: impl Fn(&mut Counters) -> &mut u64) {
        if !self.policies.is_empty()
            && let Some(policy) = self.policies.find(key)
        {
            policy.stats.count(n, which);
        }
    }

    /// For the policy that a write goes by, which need not be that of its key.
    pub(super) fn count_for(&mut self, policy: &InForce, which: impl Fn(&mut Counters) -> &mut u64) {
        let counter = which(&mut self.counters);
        *counter = counter.saturating_add(1);
        policy.stats.count(1, which);
    }

    /// A key was removed since it, or a tag of it, was invalidated.
    #[inline]
    pub fn was_invalidated(&self, key: &[u8]) {
        self.count_by_policy(key, 1, |counters| &mut counters.invalidations);
    }
}

/// How much there is. O(databases) where nothing else is said.
impl State {
    /// Loads that are out.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Clients that wait for a load.
    pub fn waiters(&self) -> usize {
        self.leases.waiters()
    }

    /// Keys that are queued for loaders.
    pub fn jobs(&self) -> usize {
        self.loaders.jobs.len()
    }

    /// Loaders that wait for jobs.
    pub fn waiting_loaders(&self) -> usize {
        self.loaders.waiting.len()
    }

    /// Keys whose reads are counted.
    pub fn hot_keys(&self) -> usize {
        self.hot_keys.len()
    }

    /// Tags that no key carries, and that are remembered for CACHE.TAGINFO.
    pub fn tag_history(&self) -> usize {
        self.databases.values().map(|database| database.tags.history_len()).sum()
    }

    /// Invalidations of tags that are remembered for the sake of loads under way.
    pub fn fence_tags(&self) -> usize {
        self.leases.remembered_tags()
    }

    /// Keys of which it is remembered why they went, and the bytes held for that.
    pub fn departures(&self) -> (usize, usize) {
        (self.key_history.len(), self.key_history.memory())
    }

    pub fn negatives(&self) -> usize {
        self.databases.values().map(|database| database.negatives.len()).sum()
    }

    /// Negatives that went before their time, because `negatives-max` were there.
    pub fn negatives_dropped(&self) -> u64 {
        let held = self.databases.values().map(|database| database.negatives.dropped_by_cap());
        held.fold(self.counters.negatives_dropped, u64::saturating_add)
    }

    /// Keys whose age is known.
    pub fn soft_expiries(&self) -> usize {
        self.databases.values().map(|database| database.freshness.len()).sum()
    }

    /// Keys waiting for the reclaimer; one under several invalidated tags counts for each.
    pub fn backlog(&self) -> usize {
        let retired: usize = self.databases.values().map(|database| database.tags.retired_len()).sum();
        retired.saturating_add(self.doomed.len())
    }

    /// Keys with tags.
    pub fn tagged_keys(&self) -> usize {
        self.databases.values().map(|database| database.tags.len()).sum()
    }

    /// Looks at tags, `most` of them at most.
    pub fn survey_tags(&self, most: usize) -> TagSurvey {
        let mut survey = TagSurvey::default();
        for database in self.databases.values() {
            database.tags.survey(&mut survey, most);
        }
        survey
    }

    /// Tags that some key carries.
    pub fn tag_count(&self) -> usize {
        self.databases.values().map(|database| database.tags.tag_count()).sum()
    }

    /// Version floors of keys that are there.
    pub fn live_floors(&self) -> usize {
        self.databases.values().map(|database| database.floors.live()).sum()
    }

    /// Version floors that outlive their keys.
    pub fn lingering_floors(&self) -> usize {
        self.databases.values().map(|database| database.floors.lingering()).sum()
    }

    /// Floors that went before their time, because `version-floors-max` were there.
    pub fn floors_dropped(&self) -> u64 {
        let held = self.databases.values().map(|database| database.floors.dropped_by_cap());
        held.fold(self.counters.floors_dropped, u64::saturating_add)
    }

    /// Bytes held for tags, floors, ages and negatives. O(keys / 800).
    pub fn memory(&self) -> usize {
        let of = |database: &Database| {
            let tables = [&database.freshness, &database.unconfirmed].map(|table| table.memory());
            let rest = [database.tags.memory(), database.floors.memory(), database.negatives.memory()];
            tables.into_iter().chain(rest).sum::<usize>()
        };
        self.databases.values().map(of).sum()
    }
}
