//! Which keys are being written in the database behind the cache. Pure memory; what is done with it is in
//! [`write_through`](super::write_through).
//!
//! Invariants:
//! - a key is hidden from CACHE reads until the last of its intents is over;
//! - intents that overlap are judged together. Once two were open at the same time, or the key was changed by somebody else, that
//!   holds for each of them, and for all that are opened before the last of them is over;
//! - a key whose intents were not given out here has no open one: they came from the primary, or with a file. On a replica the
//!   primary ends them. On a primary they have run out.
//!
//! Of all this it is only saved and replicated that a key has intents: no other server can end one.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use crate::clock::UnixMs;
use crate::name::{Name, NameRef};

#[derive(Debug, Default)]
pub(super) struct Intents {
    keys: HashMap<Name, Overlap>,
    /// When intents run out, by their numbers.
    deadlines: BTreeMap<(UnixMs, u64), Name>,
    /// Keys whose intents were given out elsewhere.
    foreign: BTreeSet<Name>,
}

/// The intents of a key that are open, and what happened since the first of them began.
#[derive(Debug, Default)]
struct Overlap {
    /// When each runs out, by its number.
    open: BTreeMap<u64, UnixMs>,
    began: Began,
    contested: bool,
    spoiled: bool,
    /// The version that one of them has stored.
    stored: Option<u64>,
}

/// When an overlap began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Began {
    /// The database and the place in its sequence from which on the [fence](super::fence) remembers; `None`: it does not.
    pub fence: Option<(usize, u64)>,
    /// The last retirement of any tag: later ones count.
    pub retirement: u64,
    /// When the value that is there expires.
    pub expires: Option<UnixMs>,
}

/// What an intent that ends may do to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was the only one, and nobody else touched the key.
    Alone,
    /// Others were open as well. `stored`: the version that one of them has stored.
    Contested { stored: Option<u64> },
    /// The key was changed by somebody else, or what became of another write is not known.
    Spoiled,
}

/// How CACHE reads see a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// No intent is open.
    Settled,
    /// The value there is may be old by now.
    Open,
    /// The key is to be removed, and counts as missing.
    RunOut,
}

impl Intents {
    /// No key has an intent: the fast way out for reads and for key events.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Intents that are open; of keys whose intents were given out elsewhere, each counts for one.
    pub fn len(&self) -> usize {
        self.deadlines.len().saturating_add(self.foreign.len())
    }

    /// Was any given out here and is open? Then plain writes have to be noticed.
    pub fn any_open(&self) -> bool {
        !self.deadlines.is_empty()
    }

    pub fn holds(&self, db: usize, key: &[u8]) -> bool {
        !self.is_empty() && self.keys.contains_key(&NameRef { db, key })
    }

    /// `now` is `None` on a replica, where nothing runs out.
    pub fn standing(&self, db: usize, key: &[u8], now: Option<UnixMs>) -> Standing {
        match self.keys.get(&NameRef { db, key }) {
            None => Standing::Settled,
            Some(overlap) if now.is_some_and(|now| self.has_run_out(overlap, now)) => Standing::RunOut,
            Some(_) => Standing::Open,
        }
    }

    fn has_run_out(&self, overlap: &Overlap, now: UnixMs) -> bool {
        let any = self.deadlines.first_key_value().is_some_and(|((at, _), _)| *at <= now);
        overlap.open.is_empty() || (any && overlap.open.values().any(|at| *at <= now))
    }

    /// Opens one more intent of the key. `began` is asked for only if it is the first.
    pub fn open(&mut self, db: usize, key: &[u8], number: u64, until: UnixMs, began: impl FnOnce() -> Began) {
        let name = Name { db, key: key.into() };
        self.deadlines.insert((until, number), name.clone());
        let overlap = self.keys.entry(name).or_insert_with(|| Overlap { began: began(), ..Overlap::default() });
        overlap.contested |= !overlap.open.is_empty();
        overlap.open.insert(number, until);
    }

    /// The key has intents that another server gave out.
    pub fn adopt(&mut self, db: usize, key: &[u8]) {
        let name = Name { db, key: key.into() };
        if !self.keys.contains_key(&name) {
            self.foreign.insert(name.clone());
            self.keys.insert(name, Overlap::default());
        }
    }

    /// The key was changed by somebody else, or its value must not be built upon: no open intent may store. With `retirement`,
    /// only if the intents began before it.
    pub fn spoil(&mut self, db: usize, key: &[u8], retirement: Option<u64>) {
        if let Some(overlap) = self.get_mut(db, key)
            && retirement.is_none_or(|number| overlap.began.retirement < number)
        {
            overlap.spoiled = true;
        }
    }

    /// Any of the keys may have been changed by somebody else.
    pub fn spoil_all(&mut self) {
        self.keys.values_mut().for_each(|overlap| overlap.spoiled = true);
    }

    /// The key has expired, as its value was to, or before: then somebody has given it another expiry, be it one in the past, by
    /// which some servers delete a key without calling it that.
    pub fn expired(&mut self, db: usize, key: &[u8], now: UnixMs) {
        if let Some(overlap) = self.get_mut(db, key)
            && overlap.began.expires.is_none_or(|at| at > now)
        {
            overlap.spoiled = true;
        }
    }

    /// An intent that may store has changed the key itself, which spoils nothing: there is a value of this version, or none.
    pub fn stored(&mut self, db: usize, key: &[u8], stored: Option<u64>, expires: Option<UnixMs>) {
        if let Some(overlap) = self.get_mut(db, key) {
            overlap.spoiled = false;
            overlap.stored = stored;
            overlap.began.expires = expires;
        }
    }

    /// Ends the intent of this number, if the key has it. To be followed by [`close`](Intents::close).
    pub fn take(&mut self, db: usize, key: &[u8], number: u64) -> Option<(Fate, Began)> {
        let overlap = self.get_mut(db, key)?;
        let until = overlap.open.remove(&number)?;
        let fate = match overlap {
            Overlap { spoiled: true, .. } => Fate::Spoiled,
            Overlap { contested: true, stored, .. } => Fate::Contested { stored: *stored },
            _ => Fate::Alone,
        };
        let began = overlap.began;
        self.deadlines.remove(&(until, number));
        Some((fate, began))
    }

    /// Ends those intents of the key whose time is over, and spoils the others. How many. To be followed by
    /// [`close`](Intents::close).
    pub fn run_out(&mut self, db: usize, key: &[u8], now: UnixMs) -> usize {
        let Some(overlap) = self.get_mut(db, key) else { return 0 };
        if overlap.open.is_empty() {
            return 1;
        }
        let all = std::mem::take(&mut overlap.open);
        let (over, open): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, until)| *until <= now);
        overlap.open = open.into_iter().collect();
        overlap.spoiled |= !over.is_empty();
        for (number, until) in &over {
            self.deadlines.remove(&(*until, *number));
        }
        over.len()
    }

    /// If no intent of the key is open any more the key is visible again: when they began.
    pub fn close(&mut self, db: usize, key: &[u8]) -> Option<Began> {
        let name = NameRef { db, key };
        if !self.keys.get(&name)?.open.is_empty() {
            return None;
        }
        let (name, overlap) = self.keys.remove_entry(&name)?;
        self.foreign.remove(&name);
        Some(overlap.began)
    }

    /// When the next one runs out, or work is due at once. Of a primary.
    #[inline]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        if self.foreign.is_empty() { self.deadlines.first_key_value().map(|((at, _), _)| *at) } else { Some(UnixMs(0)) }
    }

    /// A key of which an intent has run out. Of a primary.
    pub fn next_due(&self, now: UnixMs) -> Option<Name> {
        let timed = || self.deadlines.first_key_value().filter(|((at, _), _)| *at <= now);
        self.foreign.first().or_else(|| timed().map(|(_, name)| name)).cloned()
    }

    /// The keys of a database, or of all, are gone, and with them all intents. When they began. O(intents).
    pub fn flushed(&mut self, db: Option<usize>) -> Vec<Began> {
        let gone = |name: &Name| db.is_none_or(|db| db == name.db);
        self.deadlines.retain(|_, name| !gone(name));
        self.foreign.retain(|name| !gone(name));
        self.keys.extract_if(|name, _| gone(name)).map(|(_, overlap)| overlap.began).collect()
    }

    /// The keys of two databases change places. Whoever ends an intent ends it in the database where he began it, and does not
    /// find it; the one that went along runs out. O(intents).
    pub fn swapped(&mut self, a: usize, b: usize) {
        let touched = |name: &Name| name.db == a || name.db == b;
        let moved: Vec<_> = self.keys.extract_if(|name, _| touched(name)).collect();
        let moved = moved.into_iter().map(|(name, overlap)| (name.swapped(a, b), Overlap { spoiled: true, ..overlap }));
        self.keys.extend(moved);
        self.deadlines.values_mut().for_each(|name| name.swap(a, b));
        self.foreign = std::mem::take(&mut self.foreign).into_iter().map(|name| name.swapped(a, b)).collect();
    }

    /// This server is no primary any more: the new one ends all intents. O(intents).
    pub fn demoted(&mut self) {
        self.deadlines = BTreeMap::new();
        for (name, overlap) in &mut self.keys {
            *overlap = Overlap::default();
            self.foreign.insert(name.clone());
        }
    }

    /// Every key with an intent.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.keys.keys()
    }

    fn get_mut(&mut self, db: usize, key: &[u8]) -> Option<&mut Overlap> {
        self.keys.get_mut(&NameRef { db, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"k";

    fn open(intents: &mut Intents, number: u64, until: i64) {
        intents.open(0, KEY, number, UnixMs(until), || Began {
            fence: Some((0, number)),
            retirement: 7,
            expires: Some(UnixMs(30)),
        });
    }

    fn fate(intents: &mut Intents, number: u64) -> Option<Fate> {
        intents.take(0, KEY, number).map(|(fate, _)| fate)
    }

    #[test]
    fn one_alone_may_store_unless_somebody_changed_the_key() {
        let mut intents = Intents::default();
        open(&mut intents, 1, 50);
        intents.spoil(0, b"other", None);
        intents.spoil(0, KEY, Some(7));
        assert_eq!(
            (fate(&mut intents, 2), fate(&mut intents, 1), fate(&mut intents, 1)),
            (None, Some(Fate::Alone), None)
        );
        assert_eq!(intents.close(0, KEY).and_then(|began| began.fence), Some((0, 1)));
        for retirement in [None, Some(8)] {
            open(&mut intents, 3, 50);
            intents.spoil(0, KEY, retirement);
            assert_eq!(fate(&mut intents, 3), Some(Fate::Spoiled));
            intents.close(0, KEY);
        }
        assert_eq!((intents.is_empty(), intents.len(), intents.any_open()), (true, 0, false));
    }

    #[test]
    fn the_old_value_may_expire_but_in_its_time() {
        for (now, expected) in [(29, Fate::Spoiled), (30, Fate::Alone)] {
            let mut intents = Intents::default();
            open(&mut intents, 1, 50);
            intents.expired(0, KEY, UnixMs(now));
            assert_eq!(fate(&mut intents, 1), Some(expected), "{now}");
        }
    }

    #[test]
    fn who_overlaps_is_contested_until_all_are_over() {
        let mut intents = Intents::default();
        open(&mut intents, 1, 50);
        open(&mut intents, 2, 60);
        assert_eq!(fate(&mut intents, 1), Some(Fate::Contested { stored: None }));
        assert_eq!(intents.close(0, KEY), None);
        intents.spoil(0, KEY, None);
        intents.stored(0, KEY, Some(5), None);
        open(&mut intents, 3, 70);
        assert_eq!(fate(&mut intents, 2), Some(Fate::Contested { stored: Some(5) }));
        assert_eq!((intents.close(0, KEY), fate(&mut intents, 3)), (None, Some(Fate::Contested { stored: Some(5) })));
        assert!(intents.close(0, KEY).is_some());
        open(&mut intents, 4, 70);
        assert_eq!(fate(&mut intents, 4), Some(Fate::Alone));
    }

    #[test]
    fn one_that_runs_out_spoils_the_others_and_hides_the_key() {
        let mut intents = Intents::default();
        open(&mut intents, 1, 50);
        open(&mut intents, 2, 60);
        let standing = |intents: &Intents, now| intents.standing(0, KEY, now);
        assert_eq!(standing(&intents, Some(UnixMs(49))), Standing::Open);
        assert_eq!(standing(&intents, Some(UnixMs(50))), Standing::RunOut);
        assert_eq!(standing(&intents, None), Standing::Open, "on a replica");
        assert_eq!((intents.next_due(UnixMs(49)), intents.run_out(0, KEY, UnixMs(49))), (None, 0));
        assert_eq!(intents.next_due(UnixMs(50)).map(|name| name.key), Some(KEY.into()));
        assert_eq!((intents.run_out(0, KEY, UnixMs(50)), intents.close(0, KEY)), (1, None));
        assert_eq!(
            (standing(&intents, Some(UnixMs(50))), fate(&mut intents, 2)),
            (Standing::Open, Some(Fate::Spoiled))
        );
        intents.close(0, KEY);
        assert_eq!((standing(&intents, Some(UnixMs(90))), intents.next_deadline()), (Standing::Settled, None));
    }

    #[test]
    fn what_another_server_gave_out_cannot_be_ended_here_and_is_due_at_once() {
        let mut intents = Intents::default();
        intents.adopt(3, KEY);
        intents.adopt(3, KEY);
        assert_eq!((intents.len(), intents.any_open(), intents.next_deadline()), (1, false, Some(UnixMs(0))));
        assert_eq!(intents.standing(3, KEY, None), Standing::Open);
        assert_eq!(intents.standing(3, KEY, Some(UnixMs(0))), Standing::RunOut);
        assert_eq!((intents.take(3, KEY, 1), intents.run_out(3, KEY, UnixMs(0))), (None, 1));
        assert_eq!(intents.close(3, KEY), Some(Began::default()));
        assert_eq!((intents.is_empty(), intents.len()), (true, 0));

        open(&mut intents, 1, 50);
        intents.adopt(0, KEY);
        assert_eq!(intents.len(), 1, "its own is known better");
        intents.demoted();
        assert_eq!((fate(&mut intents, 1), intents.len(), intents.next_deadline()), (None, 1, Some(UnixMs(0))));
    }

    #[test]
    fn they_go_with_a_flush_and_along_with_a_swap() {
        let mut intents = Intents::default();
        open(&mut intents, 1, 50);
        intents.open(2, KEY, 2, UnixMs(40), Began::default);
        intents.adopt(5, KEY);
        intents.swapped(0, 2);
        assert_eq!((fate(&mut intents, 1), intents.next_due(UnixMs(60)).map(|name| name.db)), (None, Some(5)));
        assert_eq!(intents.take(2, KEY, 1).map(|(fate, _)| fate), Some(Fate::Spoiled));
        assert!(intents.close(2, KEY).is_some());
        assert_eq!(intents.flushed(Some(0)), [Began::default()]);
        assert_eq!((intents.len(), intents.flushed(None).len(), intents.is_empty()), (1, 1, true));
        assert_eq!((intents.next_deadline(), intents.any_open()), (None, false));
    }
}
