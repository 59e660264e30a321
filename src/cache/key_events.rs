//! What becomes of the metadata of a key, and of what is under way with it, when the key goes, changes or moves: whatever the server
//! reports of the keyspace is told here at once.

use super::database::bound;
use super::key_history::Why;
use super::state::State;
use crate::clock::UnixMs;
use crate::config::Config;
use crate::state::KeyEvent;

impl State {
    /// What a key event means to loads and writes of the key that are under way.
    fn revoking_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs) {
        if self.leases.is_idle() && self.intents.is_empty() {
            return;
        }
        let retirement = self.retired(db, key).map(|retired| retired.number);
        if event == KeyEvent::Expired {
            self.intents.expired(db, key, now);
        }
        match event {
            KeyEvent::Loaded => {}
            // Nobody has seen it, and what is loaded meanwhile is to stand in its place.
            KeyEvent::Deleted if self.reclaiming && self.doubts.holds(db, key) => {}
            // The old value may go by itself. But where there was none, one was written and has expired since.
            KeyEvent::Expired | KeyEvent::Evicted if self.leases.value_gone(db, key) => {}
            KeyEvent::Expired | KeyEvent::Evicted => self.leases.revoke(db, key, retirement),
            KeyEvent::Deleted if self.reclaiming => self.revoke(db, key, retirement),
            KeyEvent::Deleted | KeyEvent::Replaced | KeyEvent::Written => self.revoke(db, key, None),
        }
    }

    /// For CACHE.EXPLAIN. A key that an invalidation of a tag took before goes by that, whatever removes it in the end.
    #[inline]
    pub fn departs(&mut self, config: &Config, event: KeyEvent, db: usize, key: &[u8], now: UnixMs) {
        let why = match event {
            KeyEvent::Expired => Why::Expired,
            KeyEvent::Evicted => Why::Evicted,
            KeyEvent::Deleted => match &self.emitting {
                Some(event) => Why::Event(event),
                None if self.maybe_retired => {
                    let tag = self.databases.get(&db).and_then(|database| database.tags.retired_by(key));
                    tag.map_or(Why::Deleted, Why::Tag)
                }
                None => Why::Deleted,
            },
            KeyEvent::Replaced | KeyEvent::Written | KeyEvent::Loaded => return,
        };
        self.key_history.note(bound(config.explain_history_max), db, key, why, now);
    }

    pub fn key_event(&mut self, config: &Config, event: KeyEvent, db: usize, key: &[u8], now: UnixMs) {
        self.revoking_event(event, db, key, now);
        match event {
            KeyEvent::Written | KeyEvent::Loaded => {}
            KeyEvent::Replaced => self.doubts.replaced(db, key),
            KeyEvent::Deleted | KeyEvent::Expired | KeyEvent::Evicted => {
                self.doubts.settle(db, key);
            }
        }
        let Some(database) = self.databases.get_mut(&db) else { return };
        if event != KeyEvent::Loaded {
            database.forget_value(key);
        }
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
                self.maybe_aging |= !database.unconfirmed.is_empty();
                if database.awaited.remove(key) {
                    database.floors.confirm(key);
                }
                database.confirm_freshness(key).and_then(|()| database.tags.confirm(key).map(|_| ()))
            }
        };
        if room.is_err() {
            self.maybe_retired = true;
            self.doomed.push((db, key.into()));
        }
    }

    /// A rename or a move: the metadata goes along; what the new name had is gone.
    pub fn key_moved(&mut self, config: &Config, from: (usize, &[u8]), to: (usize, &[u8]), now: UnixMs) {
        self.revoke(from.0, from.1, None);
        self.revoke(to.0, to.1, None);
        self.doubts.moved(from, to);
        let (mut tags, mut version, mut freshness) = (None, None, None);
        if let Some(database) = self.databases.get_mut(&from.0) {
            freshness = database.effective_freshness(from.1);
            let graceless = freshness.is_none_or(|freshness| freshness.grace_ms == 0);
            tags = database.tags.take(from.1, graceless);
            version = database.floors.get(from.1, now);
            database.forget_value(from.1);
            database.floors.key_gone(from.1, now, config.version_floor_ms);
        }
        if let Some(database) = self.databases.get_mut(&to.0) {
            database.tags.remove(to.1);
            database.forget_value(to.1);
        }
        if tags.is_none() && version.is_none() && freshness.is_none() {
            return;
        }
        self.maybe_aging |= freshness.is_some_and(|freshness| freshness.ages());
        let database = self.database(config, to.0);
        let attached = tags.is_none_or(|tags| database.tags.attach(to.1, &tags).is_ok())
            && version.is_none_or(|version| database.floors.raise(to.1, version, now).is_ok())
            && freshness.is_none_or(|freshness| database.freshness.put(to.1, freshness).is_ok());
        self.maybe_retired = true;
        if !attached {
            self.doomed.push((to.0, to.1.into()));
        }
    }

    /// One database (`Some`) or all of them are empty now. Policies and rules are no data, and stay.
    pub fn flushed(&mut self, db: Option<usize>) {
        for db in db.map_or_else(|| self.leases.in_databases(), |db| vec![db]) {
            self.leases.void(db);
        }
        self.loaders.jobs.flushed(db);
        self.hot_keys.flushed(db);
        for began in self.intents.flushed(db) {
            self.forget_beginning(began);
        }
        self.slides.flushed(db);
        self.doubts.flushed(db);
        self.key_history.flushed(db);
        let other = |of: usize| db.is_some_and(|db| db != of);
        self.keep_databases(|of, _| other(of));
        self.doomed.retain(|(of, _)| other(*of));
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        self.leases.void(a);
        self.leases.void(b);
        self.hot_keys.swapped(a, b);
        self.intents.swapped(a, b);
        self.slides.swapped(a, b);
        self.doubts.swapped(a, b);
        self.key_history.swapped(a, b);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::state::Known;

    const NOW: UnixMs = UnixMs(1_000);
    const T5: Known<'_> = Known { tags: &[b"t"], version: Some(5), now: Some(NOW), freshness: None };

    fn tags(state: &State, db: usize, key: &[u8]) -> usize {
        state.tags(db, key).count()
    }

    #[test]
    fn whatever_takes_the_key_takes_its_tags_and_leaves_its_floor_for_a_while() {
        let config = Config::default();
        for event in [KeyEvent::Deleted, KeyEvent::Expired, KeyEvent::Evicted] {
            let mut state = State::default();
            state.stored(&config, (0, b"k"), T5).unwrap();
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
        state.stored(&config, (0, b"k"), T5).unwrap();
        state.key_event(&config, KeyEvent::Replaced, 0, b"k", NOW);
        assert_eq!((tags(&state, 0, b"k"), state.version_seen(0, b"k", NOW)), (0, Some(5)));
    }

    #[test]
    fn a_new_name_or_database_has_the_metadata_and_nothing_of_what_was_there() {
        let (mut state, config) = (State::default(), Config::default());
        state.stored(&config, (0, b"old"), Known { tags: &[b"a", b"b"], ..T5 }).unwrap();
        state.stored(&config, (0, b"new"), Known { tags: &[b"c"], ..Known::default() }).unwrap();
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
        state.stored(&config, (0, b"k"), Known { version: Some(1), ..T5 }).unwrap();
        state.swapped(0, 7);
        assert_eq!((tags(&state, 0, b"k"), tags(&state, 7, b"k")), (0, 1));
        state.stored(&config, (0, b"k"), Known { version: None, now: None, ..T5 }).unwrap();
        state.flushed(Some(7));
        assert_eq!((tags(&state, 0, b"k"), state.version_seen(7, b"k", NOW)), (1, None));
        state.flushed(None);
        assert_eq!(state.memory(), 0);
    }
}
