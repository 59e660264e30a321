//! Why keys went: the last departures of all keys, for CACHE.EXPLAIN. Every deletion and every expiry comes by here, so a departure is a
//! hash and a place in a ring, and looking one up goes through all of it.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::rc::Rc;

use hashbrown::DefaultHashBuilder;

use crate::clock::UnixMs;

/// What took a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why<'a> {
    Expired,
    Evicted,
    /// By name.
    Deleted,
    /// An invalidation of this tag.
    Tag(&'a [u8]),
    /// CACHE.EMIT of this event.
    Event(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Expired,
    Evicted,
    Deleted,
    Tag,
    Event,
}

#[derive(Debug)]
struct Departure {
    /// A hash of its name: two keys that share one are told apart by nothing, and do not meet.
    key: u64,
    db: u32,
    kind: Kind,
    /// Of a tag or an event; departures for the same reason in a row share it.
    name: Option<Rc<[u8]>>,
    at: UnixMs,
}

#[derive(Debug, Default)]
pub(super) struct KeyHistory {
    /// The oldest first.
    ring: VecDeque<Departure>,
    hasher: DefaultHashBuilder,
}

impl KeyHistory {
    /// The key went. At most `max` departures are remembered.
    pub fn note(&mut self, max: usize, db: usize, key: &[u8], why: Why<'_>, at: UnixMs) {
        while self.ring.len() >= max {
            if self.ring.pop_front().is_none() {
                return;
            }
        }
        let (kind, name) = match why {
            Why::Expired => (Kind::Expired, None),
            Why::Evicted => (Kind::Evicted, None),
            Why::Deleted => (Kind::Deleted, None),
            Why::Tag(tag) => (Kind::Tag, Some(tag)),
            Why::Event(event) => (Kind::Event, Some(event)),
        };
        let name = name.map(|name| self.shared(name));
        let (db, key) = (number(db), self.hasher.hash_one(key));
        self.ring.push_back(Departure { key, db, kind, name, at });
    }

    fn shared(&self, name: &[u8]) -> Rc<[u8]> {
        let last = self.ring.back().and_then(|departure| departure.name.as_ref());
        last.filter(|last| ***last == *name).map_or_else(|| Rc::from(name), Rc::clone)
    }

    /// Why and when the key went last, as far as is remembered.
    pub fn last(&self, db: usize, key: &[u8]) -> Option<(Why<'_>, UnixMs)> {
        let (db, key) = (number(db), self.hasher.hash_one(key));
        let departure = self.ring.iter().rev().find(|departure| departure.key == key && departure.db == db)?;
        let name = departure.name.as_deref().unwrap_or_default();
        let why = match departure.kind {
            Kind::Expired => Why::Expired,
            Kind::Evicted => Why::Evicted,
            Kind::Deleted => Why::Deleted,
            Kind::Tag => Why::Tag(name),
            Kind::Event => Why::Event(name),
        };
        Some((why, departure.at))
    }

    /// Of one database (`Some`) or of all, nothing is known any more.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.ring.retain(|departure| db.is_some_and(|db| departure.db != number(db)));
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        let (a, b) = (number(a), number(b));
        for departure in &mut self.ring {
            if departure.db == a {
                departure.db = b;
            } else if departure.db == b {
                departure.db = a;
            }
        }
    }

    /// Forgets the oldest beyond `max`.
    pub fn limit(&mut self, max: usize) {
        let beyond = self.ring.len().saturating_sub(max);
        self.ring.drain(..beyond);
        self.ring.shrink_to(max);
    }

    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Bytes held, but for the names.
    pub fn memory(&self) -> usize {
        self.ring.capacity().saturating_mul(size_of::<Departure>())
    }
}

/// The server numbers databases with an int.
fn number(db: usize) -> u32 {
    u32::try_from(db).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_departure_of_a_key_is_told_while_it_is_remembered() {
        let mut gone = KeyHistory::default();
        let note = |gone: &mut KeyHistory, key: &[u8], why| gone.note(3, 0, key, why, UnixMs(gone.len() as i64));
        note(&mut gone, b"a", Why::Expired);
        note(&mut gone, b"b", Why::Tag(b"t"));
        note(&mut gone, b"a", Why::Event(b"e"));
        assert_eq!(gone.last(0, b"a"), Some((Why::Event(b"e"), UnixMs(2))));
        assert_eq!(gone.last(0, b"b"), Some((Why::Tag(b"t"), UnixMs(1))));
        assert_eq!((gone.last(1, b"a"), gone.last(0, b"c")), (None, None));
        note(&mut gone, b"c", Why::Deleted);
        note(&mut gone, b"d", Why::Evicted);
        assert_eq!((gone.len(), gone.last(0, b"b")), (3, None));
        gone.limit(1);
        assert_eq!((gone.last(0, b"c"), gone.last(0, b"d").map(|(why, _)| why)), (None, Some(Why::Evicted)));
        gone.note(0, 0, b"e", Why::Deleted, UnixMs(0));
        assert_eq!((gone.len(), gone.last(0, b"e")), (0, None), "0 is off");
    }

    #[test]
    fn many_for_the_same_reason_share_its_name() {
        let mut gone = KeyHistory::default();
        for key in [b"a", b"b"] {
            gone.note(9, 0, key, Why::Tag(b"t"), UnixMs(0));
        }
        assert!(Rc::ptr_eq(gone.ring[0].name.as_ref().unwrap(), gone.ring[1].name.as_ref().unwrap()));
    }

    #[test]
    fn databases_are_flushed_and_swapped() {
        let mut gone = KeyHistory::default();
        for db in [0, 1] {
            gone.note(9, db, b"k", if db == 0 { Why::Expired } else { Why::Evicted }, UnixMs(0));
        }
        gone.swapped(0, 1);
        assert_eq!(gone.last(0, b"k").map(|(why, _)| why), Some(Why::Evicted));
        gone.flushed(Some(0));
        assert!(gone.last(0, b"k").is_none() && gone.last(1, b"k").is_some());
        gone.flushed(None);
        assert_eq!(gone.len(), 0);
    }
}
