//! The cache family's memory: one index of tags and one of version floors for each database, and what is counted.
//!
//! It mirrors the keyspace: whatever removes, renames or moves a key is told here at once.

use std::collections::{BTreeMap, HashSet};

use super::reclaim::GhostWalk;
use super::retirement::Retirement;
use super::scan::TagInfo;
use super::tag_index::{IndexError, TagIndex};
use super::version_floor::VersionFloors;
use crate::clock::UnixMs;
use crate::config::Config;
use crate::error::Error;
use crate::state::KeyEvent;

#[derive(Debug, Default)]
pub struct State {
    /// Made when something is to be remembered, dropped by the sweep when nothing is.
    pub(super) databases: BTreeMap<usize, Database>,
    pub counters: Counters,
    /// Keys whose tags found no room when they were renamed or loaded. No tag would reach them, so they are removed.
    pub(super) doomed: Vec<(usize, Box<[u8]>)>,
    /// False only while nothing is left for the reclaimer: every read asks, and looking at each database would cost it more
    /// than all else here. Set by whatever may retire, cleared by the sweep.
    maybe_retired: bool,
    pub(super) ghost_walk: GhostWalk,
}

#[derive(Debug)]
pub(super) struct Database {
    pub tags: TagIndex,
    pub floors: VersionFloors,
    /// While loading: keys whose floors are live again when they come. A floor that lingered beside a key, since a plain
    /// write had brought the key back, goes on to linger.
    pub awaited: HashSet<Box<[u8]>>,
}

/// Since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Keys that CACHE.GET and CACHE.MGET found, and did not find.
    pub hits: u64,
    pub misses: u64,
    /// Values stored by CACHE writes.
    pub sets: u64,
    /// Keys and tags that INVALIDATE, INVALIDATETAG and FLOOR named, as far as there was something to invalidate.
    pub invalidations: u64,
    /// Keys that were removed for that, at once or by the reclaimer.
    pub invalidated_keys: u64,
    /// Floors that went before their time, in databases that are not held any more.
    floors_dropped: u64,
    /// Keys that were known here but not in the keyspace. Anything but 0 means an event that was missed.
    pub ghosts: u64,
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
        self.databases.values().any(|database| database.tags.has_retired()) || !self.doomed.is_empty()
    }

    /// Was the key invalidated, and not written since? For CACHE commands it is missing then.
    #[inline]
    pub fn is_retired(&self, db: usize, key: &[u8]) -> bool {
        self.databases.get(&db).is_some_and(|database| database.tags.is_retired(key))
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

    /// Bytes held for tags and floors. O(keys / 800).
    pub fn memory(&self) -> usize {
        self.databases.values().map(|database| database.tags.memory().saturating_add(database.floors.memory())).sum()
    }

    /// The key was written by a CACHE command: it has these tags, and this version has been seen.
    pub(super) fn stored(
        &mut self,
        config: &Config,
        (db, key): (usize, &[u8]),
        tags: &[&[u8]],
        version: Option<u64>,
        now: Option<UnixMs>,
    ) -> Result<(), Error> {
        self.counters.sets = self.counters.sets.saturating_add(1);
        if tags.is_empty() && version.is_none() {
            if let Some(database) = self.databases.get_mut(&db) {
                database.tags.remove(key);
            }
            return Ok(());
        }
        let database = self.database(config, db);
        database.tags.set_tags(key, tags).map_err(index_error)?;
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
        let Some(Database { tags, .. }) = self.databases.get(&db) else { return (0, Vec::new()) };
        let (cursor, keys) = tags.tag_keys(tag, cursor, count);
        (cursor, keys.into_iter().filter(|key| !tags.is_retired(key)).map(Box::from).collect())
    }

    pub(super) fn tag_info(&self, db: usize, tag: &[u8]) -> TagInfo {
        self.databases.get(&db).map_or_else(TagInfo::default, |database| database.tags.tag_info(tag))
    }

    /// Invalidates, in O(1), all keys that carry the tag; `None` if there are none.
    pub(super) fn retire(&mut self, db: usize, tag: &[u8], now: UnixMs) -> Option<Retirement> {
        self.maybe_retired = true;
        self.databases.get_mut(&db)?.tags.retire(tag, now)
    }

    pub fn key_event(&mut self, config: &Config, event: KeyEvent, db: usize, key: &[u8], now: UnixMs) {
        let Some(database) = self.databases.get_mut(&db) else { return };
        let room = match event {
            KeyEvent::Deleted | KeyEvent::Expired | KeyEvent::Evicted => {
                database.gone(key, now, config.version_floor_ms);
                Ok(())
            }
            // Another value, which was never tagged. What was seen of the key's versions still holds.
            KeyEvent::Replaced => {
                database.tags.remove(key);
                Ok(())
            }
            // Without room it stays retired and is removed, which is always right.
            KeyEvent::Written => {
                let _ = database.tags.spare(key);
                Ok(())
            }
            KeyEvent::Loaded => {
                self.maybe_retired = true;
                if database.awaited.remove(key) {
                    database.floors.confirm(key);
                }
                database.tags.confirm(key).map(|_| ())
            }
        };
        if room.is_err() {
            self.maybe_retired = true;
            self.doomed.push((db, key.into()));
        }
    }

    /// A rename or a move: the metadata goes along; what the new name had is gone.
    pub fn key_moved(&mut self, config: &Config, from: (usize, &[u8]), to: (usize, &[u8]), now: UnixMs) {
        let (mut tags, mut version) = (None, None);
        if let Some(database) = self.databases.get_mut(&from.0) {
            tags = database.tags.take(from.1);
            version = database.floors.get(from.1, now);
            database.floors.key_gone(from.1, now, config.version_floor_ms);
        }
        if tags.is_none() && version.is_none() {
            if let Some(database) = self.databases.get_mut(&to.0) {
                database.tags.remove(to.1);
            }
            return;
        }
        let database = self.database(config, to.0);
        let attached = match &tags {
            Some(tags) => database.tags.attach(to.1, tags),
            None => {
                database.tags.remove(to.1);
                Ok(())
            }
        };
        let raised = version.is_none_or(|version| database.floors.raise(to.1, version, now).is_ok());
        self.maybe_retired = true;
        if attached.is_err() || !raised {
            self.doomed.push((to.0, to.1.into()));
        }
    }

    /// One database (`Some`) or all of them are empty now.
    pub fn flushed(&mut self, db: Option<usize>) {
        let other = |of: usize| db.is_some_and(|db| db != of);
        self.keep_databases(|of, _| other(of));
        self.doomed.retain(|(of, _)| other(*of));
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        let (at_a, at_b) = (self.databases.remove(&a), self.databases.remove(&b));
        self.databases.extend(at_a.map(|database| (b, database)));
        self.databases.extend(at_b.map(|database| (a, database)));
        for (db, _) in &mut self.doomed {
            *db = if *db == a {
                b
            } else if *db == b {
                a
            } else {
                *db
            };
        }
    }

    /// Loading is over: metadata of keys that did not come is dropped.
    pub fn loaded(&mut self) {
        for database in self.databases.values_mut() {
            database.tags.drop_unconfirmed();
            database.awaited = HashSet::new();
        }
    }

    /// Caps that became smaller take effect, bit by bit where far more is held.
    pub fn config_changed(&mut self, config: &Config) {
        for database in self.databases.values_mut() {
            database.limit(config);
        }
    }

    /// To be called now and then: drops floors whose time is over, what is beyond the caps, and databases with nothing to
    /// remember. `budget` bounds the floors that go in one call, in each database.
    pub fn sweep(&mut self, config: &Config, now: UnixMs, budget: usize) {
        self.keep_databases(|_, database| {
            database.limit(config);
            database.floors.sweep(now, budget);
            !database.is_empty()
        });
        self.maybe_retired = self.finds_retired();
    }

    fn keep_databases(&mut self, mut keep: impl FnMut(usize, &mut Database) -> bool) {
        let dropped = &mut self.counters.floors_dropped;
        self.databases.retain(|&db, database| {
            let kept = keep(db, database);
            if !kept {
                *dropped = dropped.saturating_add(database.floors.dropped_by_cap());
            }
            kept
        });
    }

    pub(super) fn database(&mut self, config: &Config, db: usize) -> &mut Database {
        self.databases.entry(db).or_insert_with(|| Database {
            tags: TagIndex::new(bound(config.tag_history_max)),
            floors: VersionFloors::new(bound(config.version_floors_max)),
            awaited: HashSet::new(),
        })
    }
}

impl Database {
    fn gone(&mut self, key: &[u8], now: UnixMs, linger_ms: i64) {
        self.tags.remove(key);
        // Most caches use no versions, and each deletion would look for one.
        if self.floors.live() > 0 {
            self.floors.key_gone(key, now, linger_ms);
        }
    }

    fn limit(&mut self, config: &Config) {
        self.tags.set_history_max(bound(config.tag_history_max));
        self.floors.set_lingering_max(bound(config.version_floors_max));
    }

    fn is_empty(&self) -> bool {
        self.tags.is_empty()
            && self.tags.unconfirmed.is_none()
            && self.tags.tag_history().next().is_none()
            && self.floors.live() == 0
            && self.floors.lingering() == 0
    }
}

fn bound(setting: i64) -> usize {
    usize::try_from(setting).unwrap_or(0)
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

    fn tags(state: &State, db: usize, key: &[u8]) -> usize {
        state.tags(db, key).count()
    }

    #[test]
    fn whatever_takes_the_key_takes_its_tags_and_leaves_its_floor_for_a_while() {
        let config = Config::default();
        for event in [KeyEvent::Deleted, KeyEvent::Expired, KeyEvent::Evicted] {
            let mut state = State::default();
            state.stored(&config, (0, b"k"), &[b"t"], Some(5), Some(NOW)).unwrap();
            state.key_event(&config, event, 0, b"k", NOW);
            assert_eq!((state.tagged_keys(), state.live_floors(), state.lingering_floors()), (0, 0, 1), "{event:?}");
            assert_eq!(state.version_seen(0, b"k", NOW.plus(config.version_floor_ms - 1)), Some(5));
            state.sweep(&config, NOW.plus(config.version_floor_ms), 10);
            assert_eq!(state.memory(), 0, "{event:?}");
        }
    }

    #[test]
    fn a_value_from_outside_has_no_tags() {
        let (mut state, config) = (State::default(), Config::default());
        state.stored(&config, (0, b"k"), &[b"t"], Some(5), Some(NOW)).unwrap();
        state.key_event(&config, KeyEvent::Replaced, 0, b"k", NOW);
        assert_eq!((tags(&state, 0, b"k"), state.version_seen(0, b"k", NOW)), (0, Some(5)));
    }

    #[test]
    fn a_new_name_or_database_has_the_metadata_and_nothing_of_what_was_there() {
        let (mut state, config) = (State::default(), Config::default());
        state.stored(&config, (0, b"old"), &[b"a", b"b"], Some(5), Some(NOW)).unwrap();
        state.stored(&config, (0, b"new"), &[b"c"], None, None).unwrap();
        state.key_moved(&config, (0, b"old"), (0, b"new"), NOW);
        assert_eq!(state.tags(0, b"new").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!((tags(&state, 0, b"old"), state.version_seen(0, b"new", UnixMs(i64::MAX))), (0, Some(5)));
        assert_eq!(state.version_seen(0, b"old", NOW), Some(5), "a late writer may still use the old name");
        state.key_moved(&config, (0, b"new"), (3, b"new"), NOW);
        assert_eq!((tags(&state, 0, b"new"), tags(&state, 3, b"new")), (0, 2));
        state.key_moved(&config, (3, b"untagged"), (3, b"new"), NOW);
        assert_eq!(tags(&state, 3, b"new"), 0);
    }

    #[test]
    fn databases_are_swapped_and_flushed_with_all_they_remember() {
        let (mut state, config) = (State::default(), Config::default());
        state.stored(&config, (0, b"k"), &[b"t"], Some(1), Some(NOW)).unwrap();
        state.swapped(0, 7);
        assert_eq!((tags(&state, 0, b"k"), tags(&state, 7, b"k")), (0, 1));
        state.stored(&config, (0, b"k"), &[b"t"], None, None).unwrap();
        state.flushed(Some(7));
        assert_eq!((tags(&state, 0, b"k"), state.version_seen(7, b"k", NOW)), (1, None));
        state.flushed(None);
        assert_eq!(state.memory(), 0);
    }

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
