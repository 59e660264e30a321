//! How a record leaves its key, for a family whose records outlive an eviction.
//!
//! The value tells first ([`Departures::left`]), then, before anything else is unlinked, an event tells why: DEL, expiry or eviction
//! ([`Departures::key_event`]), RENAME or MOVE ([`Departures::arrived`]). When no event comes the value was overwritten, and the
//! record goes with the next thing that happens. Primary and replica see these in the same order, so they agree. One thing
//! they cannot tell: a record overwritten by a plain write whose key is then evicted as the very next event looks like an evicted
//! one.
//!
//! A replica sees one DEL for a deletion, an expiry and an eviction. It keeps the record until the primary puts the key back
//! or says that it is gone. The primary says so whenever it drops a record after a removal.

use smallvec::SmallVec;

use crate::clock::UnixMs;
use crate::limbo::{Keyless, Limbo};
use crate::name::Name;
use crate::state::KeyEvent;

/// What a key event meant to a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate<R> {
    /// Nothing to any.
    Nothing,
    /// It is in limbo. The primary puts its key back soon.
    Kept,
    /// It is gone. `told`: replicas cannot see that for themselves.
    Gone { record: R, told: bool },
}

/// What the host has to do about that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowUp {
    /// Replicas must be told that this one is gone, by its token.
    pub forget: Option<i64>,
    /// The key is to be put back.
    pub put_back_soon: bool,
}

/// Records that are without a key. No record is dropped here: each comes back to the caller.
#[derive(Debug)]
pub struct Departures<R> {
    pub limbo: Limbo<R>,
    /// What left its name last, while it is open why.
    last: Option<(Name, R)>,
}

impl<R> Default for Departures<R> {
    fn default() -> Departures<R> {
        Departures { limbo: Limbo::default(), last: None }
    }
}

/// Is the key gone after this event?
fn removes(event: KeyEvent) -> bool {
    matches!(event, KeyEvent::Deleted | KeyEvent::Expired | KeyEvent::Evicted)
}

impl<R: Keyless> Departures<R> {
    /// A value of ours leaves its name; `record` is what was in it. What left before it is gone for good: its event would have
    /// come by now.
    pub fn left(&mut self, db: usize, key: &[u8], record: Option<R>) -> Option<R> {
        let last = record.map(|record| (Name { db, key: key.into() }, record));
        let before = std::mem::replace(&mut self.last, last);
        before.map(|(_, record)| record)
    }

    /// A value of ours has come to this name: by RENAME, MOVE, COPY, RESTORE, or from an RDB file. The record that left last, if
    /// `is_its` says that it belongs to the value, and what is gone by that.
    pub fn arrived(&mut self, db: usize, key: &[u8], is_its: impl FnOnce(&R) -> bool) -> (Option<R>, SmallVec<[R; 2]>) {
        let mut gone: SmallVec<[R; 2]> = self.limbo.take(db, key).into_iter().collect();
        match self.last.take() {
            Some((_, record)) if is_its(&record) => (Some(record), gone),
            other => {
                gone.extend(other.map(|(_, record)| record));
                (None, gone)
            }
        }
    }

    /// Whatever had one name has another now. What is in limbo under either of them was overwritten meanwhile.
    pub fn key_moved(&mut self, from: (usize, &[u8]), to: (usize, &[u8])) -> SmallVec<[R; 2]> {
        [from, to].into_iter().filter_map(|(db, key)| self.limbo.take(db, key)).collect()
    }

    /// No record is without a key, so that no key event means anything.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.last.is_none() && self.limbo.is_empty()
    }

    /// The key changed. `replayed`: by the primary or the AOF, so that a deletion may be an eviction there. Besides the fate of the
    /// record of this name, what is gone since its value was overwritten before.
    pub fn key_event(
        &mut self,
        event: KeyEvent,
        db: usize,
        key: &[u8],
        now: UnixMs,
        replayed: bool,
    ) -> (Fate<R>, Option<R>) {
        // Plain writes are not reported everywhere. Only the primary looks at them, and it tells what it makes of them.
        let written = event == KeyEvent::Written;
        if written && replayed {
            return (Fate::Nothing, None);
        }
        match self.last.take_if(|(name, _)| name.is(db, key)) {
            Some((name, record)) => self.removed(event, name, record, now, replayed),
            None => {
                let overwritten = self.last.take_if(|_| !written).map(|(_, record)| record);
                (self.shadowed(event, db, key, replayed), overwritten)
            }
        }
    }

    fn removed(&mut self, event: KeyEvent, name: Name, record: R, now: UnixMs, replayed: bool) -> (Fate<R>, Option<R>) {
        if (removes(event) && replayed) || record.outlives(event, now) {
            return (Fate::Kept, self.limbo.insert(name, record));
        }
        (gone(event, record), None)
    }

    /// Something happened to a key that has no record of ours. If one in limbo has that name, it was overwritten meanwhile.
    fn shadowed(&mut self, event: KeyEvent, db: usize, key: &[u8], replayed: bool) -> Fate<R> {
        if removes(event) && replayed {
            // The primary says so if it means this one.
            return Fate::Nothing;
        }
        self.limbo.take(db, key).map_or(Fate::Nothing, |record| gone(event, record))
    }

    /// Takes out the record of this name and token that is without a key.
    pub fn take(&mut self, db: usize, key: &[u8], token: i64) -> Option<R> {
        let last = self.last.take_if(|(name, record)| name.is(db, key) && record.token() == token);
        if let Some((_, record)) = last {
            return Some(record);
        }
        self.limbo.get(db, key).filter(|record| record.token() == token)?;
        self.limbo.take(db, key)
    }

    /// Databases are empty now (`None`: all); their records are the caller's to drop.
    pub fn flushed(&mut self, db: Option<usize>) {
        match db {
            None => *self = Departures::default(),
            Some(db) => {
                self.last.take_if(|(name, _)| name.db == db);
                self.limbo.flush(db);
            }
        }
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        if let Some((name, _)) = &mut self.last {
            name.swap(a, b);
        }
        self.limbo.swap(a, b);
    }
}

/// Replicas see for themselves when COPY or RESTORE put another value in its place; the rest they are told.
fn gone<R>(event: KeyEvent, record: R) -> Fate<R> {
    Fate::Gone { record, told: !matches!(event, KeyEvent::Replaced | KeyEvent::Loaded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(5);

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Token(i64);

    impl Keyless for Token {
        fn heap_bytes(&self) -> usize {
            0
        }

        fn token(&self) -> i64 {
            self.0
        }

        fn outlives(&self, event: KeyEvent, _now: UnixMs) -> bool {
            event == KeyEvent::Evicted
        }
    }

    fn with_one_gone() -> Departures<Token> {
        let mut departures = Departures::default();
        assert_eq!(departures.left(0, b"k", Some(Token(1))), None);
        departures
    }

    fn event(departures: &mut Departures<Token>, event: KeyEvent, key: &[u8], replayed: bool) -> Fate<Token> {
        departures.key_event(event, 0, key, NOW, replayed).0
    }

    #[test]
    fn an_eviction_keeps_the_record_and_a_deletion_does_not() {
        let mut departures = with_one_gone();
        assert_eq!(event(&mut departures, KeyEvent::Evicted, b"k", false), Fate::Kept);
        assert_eq!(departures.limbo.get(0, b"k"), Some(&Token(1)));
        let gone = Fate::Gone { record: Token(1), told: true };
        assert_eq!(event(&mut departures, KeyEvent::Deleted, b"k", false), gone, "something else had its name");
        assert_eq!(event(&mut with_one_gone(), KeyEvent::Deleted, b"k", false), gone);
    }

    #[test]
    fn a_replica_keeps_it_until_it_is_told() {
        let mut departures = with_one_gone();
        assert_eq!(event(&mut departures, KeyEvent::Deleted, b"k", true), Fate::Kept);
        assert_eq!(event(&mut departures, KeyEvent::Deleted, b"k", true), Fate::Nothing);
        assert_eq!(departures.take(0, b"k", 2), None);
        assert_eq!(departures.take(0, b"k", 1), Some(Token(1)));
        assert!(departures.limbo.is_empty());
    }

    #[test]
    fn one_that_was_overwritten_goes_with_the_next_thing_that_happens() {
        let overwritten = |event| with_one_gone().key_event(event, 0, b"other", NOW, false);
        assert_eq!(overwritten(KeyEvent::Deleted), (Fate::Nothing, Some(Token(1))));
        assert_eq!(with_one_gone().left(0, b"other", None), Some(Token(1)));
        assert_eq!(overwritten(KeyEvent::Written), (Fate::Nothing, None), "its own event may still come");
    }

    #[test]
    fn a_renamed_value_gets_its_record_back() {
        let mut departures = with_one_gone();
        departures.limbo.insert(Name { db: 0, key: (*b"new").into() }, Token(7));
        assert!(departures.key_moved((0, b"k"), (0, b"new")).contains(&Token(7)));
        let (back, gone) = departures.arrived(0, b"new", |record| record.0 == 1);
        assert_eq!((back, gone.len()), (Some(Token(1)), 0));
        let (back, gone) = with_one_gone().arrived(0, b"k", |record| record.0 == 2);
        assert_eq!((back, gone.len()), (None, 1), "RESTORE REPLACE brought another value");
    }
}
