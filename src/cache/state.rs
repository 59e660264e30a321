//! The cache family's memory: for each database what is known of its keys (tags, version floors, ages, negative answers), the
//! leases, and what is counted.
//!
//! It mirrors the keyspace: whatever removes, renames or moves a key is told here at once.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::counters::Counters;
use super::database::{Database, bound};
use super::departed::Departed;
use super::doubt::Doubts;
use super::freshness::Freshness;
use super::hot_keys::HotKeys;
use super::intent::Intents;
use super::key_history::KeyHistory;
use super::leases::Leases;
use super::loaders::Loaders;
use super::migration::LeaseWalk;
use super::policies::Policies;
use super::reclaim::GhostWalk;
use super::retirement::{Retired, Retirement};
use super::rules::Rules;
use super::scan::TagInfo;
use super::slab::Full;
use super::sliding::Slides;
use super::tag_index::IndexError;
use crate::clock::UnixMs;
use crate::config::Config;
use crate::error::Error;
use crate::server::Waiter;

#[derive(Debug, Default)]
pub struct State {
    /// Made when something is to be remembered, dropped by the sweep when nothing is.
    pub(super) databases: BTreeMap<usize, Database>,
    pub(super) leases: Leases,
    pub(super) intents: Intents,
    pub(super) doubts: Doubts,
    pub(super) departed: Departed,
    /// This node's epoch in the cluster, once it is known.
    pub(super) epoch: Option<u64>,
    pub(super) loaders: Loaders,
    pub(super) hot_keys: HotKeys,
    pub policies: Policies,
    pub rules: Rules,
    pub(super) key_history: KeyHistory,
    /// The event that removes keys just now.
    pub(super) emitting: Option<Box<[u8]>>,
    pub slides: Slides,
    pub counters: Counters,
    /// Keys whose tags found no room when they were renamed or loaded. No tag would reach them, so they are removed.
    pub(super) doomed: Vec<(usize, Box<[u8]>)>,
    /// False only while nothing is left for the reclaimer: every read asks, and looking at each database would cost it more
    /// than all else here. Set by whatever may retire, cleared by the sweep.
    pub(super) maybe_retired: bool,
    /// False only while no value is known to become stale by itself, for the same reason: of most that were filled it is known only how
    /// long their load took. Set by whatever may record such a value, cleared by the sweep when nothing is known of any.
    pub(super) maybe_aging: bool,
    /// The deletions that are reported now are of keys that were invalidated before.
    pub(super) reclaiming: bool,
    pub(super) ghost_walk: GhostWalk,
    pub(super) lease_walk: LeaseWalk,
}

/// What a CACHE write says of its key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known<'a> {
    pub tags: &'a [&'a [u8]],
    pub version: Option<u64>,
    /// `None`: a decision of the primary is repeated.
    pub now: Option<UnixMs>,
    pub freshness: Option<Freshness>,
}

/// The moment at which a decision of the primary is repeated: no lingering floor of this server has a say then.
const REPLAYED: UnixMs = UnixMs(i64::MAX);

impl State {
    /// Is anything left for [`reclaim`](super::reclaim), and do plain writes matter? O(1) when not, else O(databases).
    #[inline]
    pub fn has_retired(&self) -> bool {
        self.maybe_retired && self.finds_retired()
    }

    fn finds_retired(&self) -> bool {
        self.databases.values().any(|database| database.tags.may_have_retired()) || !self.doomed.is_empty()
    }

    fn knows_ages(&self) -> bool {
        self.databases.values().any(|database| !database.freshness.is_empty())
    }

    /// No value of any key is known to be stale, invalid or in doubt, now or later: the fast way for reads.
    #[inline]
    pub fn doubts_nothing(&self) -> bool {
        let known = || self.databases.values().flat_map(|database| database.freshness.iter());
        debug_assert!(self.maybe_aging || !known().any(|(_, freshness)| freshness.ages()));
        !self.maybe_retired && !self.maybe_aging && self.intents.is_empty() && self.doubts.is_empty()
    }

    /// Was the key invalidated, and not written since? Or is its value in doubt? For CACHE commands it is missing then.
    #[inline]
    pub fn is_retired(&self, db: usize, key: &[u8]) -> bool {
        self.databases.get(&db).is_some_and(|database| database.is_retired(key)) || self.doubts.holds(db, key)
    }

    /// What invalidations of tags, hard and soft, made of the key; `None` if nothing.
    #[inline]
    pub(super) fn retired(&self, db: usize, key: &[u8]) -> Option<Retired> {
        if self.maybe_retired { self.databases.get(&db)?.tags.retired(key) } else { None }
    }

    /// The last invalidation of any tag of the database.
    pub(super) fn retirements(&self, db: usize) -> u64 {
        self.databases.get(&db).map_or(0, |database| database.tags.retirements())
    }

    /// What is known of the age of the key's value.
    #[inline]
    pub fn freshness(&self, db: usize, key: &[u8]) -> Option<Freshness> {
        self.databases.get(&db)?.freshness.get(key).map(|(_, freshness)| freshness)
    }

    pub(super) fn set_freshness(
        &mut self,
        config: &Config,
        db: usize,
        key: &[u8],
        freshness: Freshness,
    ) -> Result<(), Error> {
        self.maybe_aging |= freshness.ages();
        self.database(config, db).freshness.put(key, freshness).map(|_| ()).map_err(|Full| Error::IndexFull)
    }

    /// Is the origin known to have nothing for the key?
    pub fn is_negative(&self, db: usize, key: &[u8], now: UnixMs) -> bool {
        self.databases.get(&db).is_some_and(|database| database.negatives.holds(key, now))
    }

    pub(super) fn set_negative(
        &mut self,
        config: &Config,
        db: usize,
        key: &[u8],
        until: UnixMs,
        tags: &[&[u8]],
    ) -> Result<(), Error> {
        self.database(config, db).negatives.put(key, until, tags).map_err(index_error)
    }

    /// Whether there was a negative answer.
    pub(super) fn end_negative(&mut self, db: usize, key: &[u8]) -> bool {
        self.databases.get_mut(&db).is_some_and(|database| database.negatives.remove(key))
    }

    /// Whether plain writes have to be noticed: of a retired key, of one that is being refreshed, and of one that is being
    /// written in the database.
    pub fn needs_write_events(&self) -> bool {
        self.has_retired() || self.leases.is_refreshing() || self.intents.any_open()
    }

    /// A client waits no more; whoever he waited for need not answer him.
    pub fn waiter_left(&mut self, waiter: Waiter) {
        self.leases.waiter_left(waiter);
        self.loaders.waiting.leave(waiter);
    }

    /// Something that kept the key from being loaded is over: who waits for it is cared for from a timer.
    pub fn look_at(&mut self, db: usize, key: &[u8]) {
        self.leases.look_at(db, key);
    }

    /// When the next lease or intent runs out, or work is due at once. Of a primary.
    #[inline]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        let loads = UnixMs::earliest(self.leases.next_deadline(), self.intents.next_deadline());
        UnixMs::earliest(loads, self.loaders.next_look(self.leases.len()))
    }

    /// A number that no server had before: tokens begin with it.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.leases.epoch = epoch;
        self.doubts.begin(epoch);
    }

    /// This server is a replica now. It gives out no leases, and has sent those who waited away. What is being written in the
    /// database stays hidden until the new primary says otherwise.
    pub fn demoted(&mut self) {
        self.leases.drop_all();
        self.loaders.drop_all();
        self.intents.demoted();
        self.slides.demoted();
    }

    /// The key was written by a CACHE command: this is what is known of it now.
    pub(super) fn stored(&mut self, config: &Config, (db, key): (usize, &[u8]), known: Known<'_>) -> Result<(), Error> {
        self.count(key, 1, |counters| &mut counters.sets);
        self.doubts.settle(db, key);
        let Known { tags, version, now, freshness } = known;
        if tags.is_empty() && version.is_none() && freshness.is_none() {
            if let Some(database) = self.databases.get_mut(&db) {
                database.tags.remove(key);
                database.forget_value(key);
            }
            return Ok(());
        }
        self.maybe_aging |= freshness.is_some_and(|freshness| freshness.ages());
        let database = self.database(config, db);
        database.forget_value(key);
        database.tags.set_tags(key, tags).map_err(index_error)?;
        if let Some(freshness) = freshness {
            database.freshness.put(key, freshness).map_err(|Full| Error::IndexFull)?;
        }
        match version {
            Some(version) => database.floors.raise(key, version, now.unwrap_or(REPLAYED)).map_err(|_| Error::IndexFull),
            None => Ok(()),
        }
    }

    /// The greatest version seen of the key.
    pub fn version_seen(&self, db: usize, key: &[u8], now: UnixMs) -> Option<u64> {
        self.databases.get(&db)?.floors.get(key, now)
    }

    /// Refuses versions of the key up to `version` until `until`. `now` is `None` where a decision is only repeated.
    pub(super) fn set_floor(
        &mut self,
        config: &Config,
        (db, key): (usize, &[u8]),
        version: u64,
        until: UnixMs,
        now: Option<UnixMs>,
    ) -> Result<bool, Error> {
        let floors = &mut self.database(config, db).floors;
        floors.floor(key, version, until, now.unwrap_or(REPLAYED)).map_err(|_| Error::IndexFull)
    }

    pub(super) fn add_tags(&mut self, config: &Config, db: usize, key: &[u8], tags: &[&[u8]]) -> Result<usize, Error> {
        self.database(config, db).tags.add_tags(key, tags).map_err(index_error)
    }

    /// `None`: all.
    pub(super) fn remove_tags(&mut self, db: usize, key: &[u8], tags: Option<&[&[u8]]>) -> usize {
        self.databases.get_mut(&db).map_or(0, |database| database.tags.remove_tags(key, tags))
    }

    /// The key's tags in the order they were given.
    pub fn tags(&self, db: usize, key: &[u8]) -> impl Iterator<Item = &[u8]> {
        self.databases.get(&db).into_iter().flat_map(move |database| database.tags.tags(key))
    }

    /// The next keys that carry the tag and were not invalidated, and the cursor to go on with; 0 is the end.
    pub(super) fn tag_keys(&self, db: usize, tag: &[u8], cursor: u64, count: usize) -> (u64, Vec<Box<[u8]>>) {
        let Some(database) = self.databases.get(&db) else { return (0, Vec::new()) };
        let (cursor, keys) = database.tags.tag_keys(tag, cursor, count);
        (cursor, keys.into_iter().filter(|key| !database.is_retired(key)).map(Box::from).collect())
    }

    pub(super) fn tag_info(&self, db: usize, tag: &[u8]) -> TagInfo {
        self.databases.get(&db).map_or_else(TagInfo::default, |database| database.tags.tag_info(tag))
    }

    /// Invalidates, in O(1), all keys and negatives that carry the tag. The retirements of keys, and whether anything carried it.
    pub(super) fn retire(&mut self, db: usize, tag: &[u8], now: UnixMs) -> (SmallVec<[Retirement; 1]>, bool) {
        self.maybe_retired = true;
        let Some(database) = self.databases.get_mut(&db) else { return Default::default() };
        let (retired, negatives) = (database.tags.retire(tag, now), database.negatives.retire(tag, now));
        let any = negatives || !retired.is_empty();
        (retired, any)
    }

    /// As [`State::retire`], but keys with a grace become stale.
    pub(super) fn stale(&mut self, db: usize, tag: &[u8], now: UnixMs) -> (Option<Retirement>, bool) {
        self.maybe_retired = true;
        let Some(database) = self.databases.get_mut(&db) else { return (None, false) };
        let (staled, negatives) = (database.tags.stale(tag, now), database.negatives.retire(tag, now));
        (staled, negatives || staled.is_some())
    }

    /// A load of a value with this tag that is under way now must not be stored.
    pub(super) fn fence_tag(&mut self, config: &Config, db: usize, tag: &[u8]) {
        self.leases.tag_invalidated(db, tag, bound(config.fence_tags_max));
    }

    /// The key was changed, or its value invalidated: nothing may be stored that was begun before, be it a load or a write. With
    /// `retirement`, before that one.
    pub(super) fn revoke(&mut self, db: usize, key: &[u8], retirement: Option<u64>) {
        self.leases.revoke(db, key, retirement);
        self.intents.spoil(db, key, retirement);
    }

    /// A file or a full sync is about to be loaded, or has failed: policies and rules are what it says, and nothing else.
    pub fn loading(&mut self) {
        self.policies.clear();
        self.rules.clear();
    }

    /// What was loaded so far is seen from now on: something else happens than keys that are loaded.
    pub fn settle(&mut self) {
        for database in self.databases.values_mut() {
            database.tags.settle();
        }
    }

    /// Loading is over: metadata of keys that did not come is dropped.
    pub fn loaded(&mut self) {
        for database in self.databases.values_mut() {
            database.drop_unconfirmed();
        }
    }

    /// Caps that became smaller take effect, bit by bit where far more is held.
    pub fn config_changed(&mut self, config: &Config) {
        self.key_history.limit(bound(config.explain_history_max));
        self.loaders.look_at_all();
        for database in self.databases.values_mut() {
            database.limit(config);
        }
    }

    /// To be called now and then: drops floors and negatives whose time is over, what is beyond the caps, and databases with
    /// nothing to remember. `budget` bounds what goes of each in one call, in each database.
    pub fn sweep(&mut self, config: &Config, now: UnixMs, budget: usize) {
        self.keep_databases(|_, database| {
            database.limit(config);
            database.floors.sweep(now, budget);
            database.negatives.sweep(now, budget);
            !database.is_empty()
        });
        self.leases.prune(budget);
        self.departed.sweep(now, budget);
        self.hot_keys.tick(now);
        self.maybe_retired = self.finds_retired();
        self.maybe_aging &= self.knows_ages();
    }

    pub(super) fn keep_databases(&mut self, mut keep: impl FnMut(usize, &mut Database) -> bool) {
        let counters = &mut self.counters;
        self.databases.retain(|&db, database| {
            let kept = keep(db, database);
            if !kept {
                let (floors, negatives) = (database.floors.dropped_by_cap(), database.negatives.dropped_by_cap());
                counters.floors_dropped = counters.floors_dropped.saturating_add(floors);
                counters.negatives_dropped = counters.negatives_dropped.saturating_add(negatives);
            }
            kept
        });
    }

    pub(super) fn database(&mut self, config: &Config, db: usize) -> &mut Database {
        self.databases.entry(db).or_insert_with(|| Database::new(config))
    }
}

fn index_error(error: IndexError) -> Error {
    match error {
        IndexError::TooManyTags => Error::TooManyTags,
        IndexError::Full => Error::IndexFull,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_000);

    #[test]
    fn dropped_floors_stay_counted_when_their_database_goes() {
        let (mut state, config) = (State::default(), Config { version_floors_max: 1, ..Config::default() });
        for key in [b"a", b"b", b"c"] {
            state.set_floor(&config, (0, key), 1, NOW.plus(10), Some(NOW)).unwrap();
        }
        assert_eq!((state.lingering_floors(), state.floors_dropped()), (1, 2));
        state.sweep(&config, NOW.plus(10), 10);
        assert_eq!((state.memory(), state.floors_dropped()), (0, 2));
    }
}
