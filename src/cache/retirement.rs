//! Invalidation: a tag's cohort is retired at once, in O(1), and its keys are removed later.
//!
//! The index never forgets a retired key by itself: reclaiming lists keys, the caller deletes them from the keyspace, and
//! the deletion comes back as [`TagIndex::remove`], like any other. So a deletion that could not be done is listed again,
//! and a key that was deleted meanwhile is not listed. A key that is listed but does not exist any more (which the
//! notifications make impossible) has to be removed by the caller, or it would be listed for ever.

use smallvec::SmallVec;

use super::record::Record;
use super::tag_index::TagIndex;
use crate::clock::UnixMs;

/// A retired cohort: what to ask [`TagIndex::retired_keys`] for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retirement {
    /// Number of the retirement, growing, unique within the index.
    pub number: u64,
    /// Its keys at that moment, those included that another retirement had already.
    pub keys: usize,
}

/// What the retirements of its tags make of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retired {
    /// The last retirement that took it.
    pub number: u64,
    /// `None`: it is invalid. Else it is stale since then, if it has a grace, and invalid if it has none.
    pub stale_since: Option<UnixMs>,
}

impl TagIndex {
    /// Retires all keys that carry `tag`: they are invalid. Nothing is changed or counted if none does. Keys that an earlier
    /// [`TagIndex::stale`] took and that were not dealt with yet are a retirement of their own.
    pub fn retire(&mut self, tag: &[u8], now: UnixMs) -> SmallVec<[Retirement; 1]> {
        self.settle();
        self.tags.retire(tag, now).into_iter().map(|(number, keys)| Retirement { number, keys }).collect()
    }

    /// Retires all keys that carry `tag`: they are stale as of `now`, or invalid if they have no grace, which the caller
    /// knows. `None`, and nothing is changed or counted, if no key carries it.
    pub fn stale(&mut self, tag: &[u8], now: UnixMs) -> Option<Retirement> {
        self.settle();
        self.tags.stale(tag, now).map(|(number, keys)| Retirement { number, keys })
    }

    /// What became of the key, `None` if nothing did. O(tags of the key); O(1) while nothing is retired.
    #[inline]
    pub fn retired(&self, key: &[u8]) -> Option<Retired> {
        if self.has_retired() { self.look_up_retired(key) } else { None }
    }

    /// A tag whose invalidation took the key.
    pub(super) fn retired_by(&self, key: &[u8]) -> Option<&[u8]> {
        if !self.has_retired() {
            return None;
        }
        let id = self.find(self.hash(key), key)?;
        let cohort = self.memberships(id).map(|of| of.cohort).find(|&cohort| self.tags.is_retired(cohort))?;
        Some(self.tags.name_of(cohort))
    }

    /// The number of the last retirement of any tag.
    pub fn retirements(&self) -> u64 {
        self.tags.retirements()
    }

    /// The moment since when the keys of a retirement are stale; `None` if they are invalid.
    pub fn stale_since(&self, retirement: u64) -> Option<UnixMs> {
        self.tags.stale_since(self.tags.retired_id(retirement)?)
    }

    /// Whether any key is retired. O(1).
    #[inline]
    pub fn has_retired(&self) -> bool {
        self.tags.has_retired()
    }

    /// Whether a retirement took the key, of either kind, and it was neither written nor removed since. O(1) while nothing is
    /// retired.
    #[inline]
    pub fn is_retired(&self, key: &[u8]) -> bool {
        self.has_retired() && self.is_in_retired_cohort(key)
    }

    /// Keys waiting to be removed; one that several retirements took counts for each.
    pub fn retired_len(&self) -> usize {
        self.tags.retired_members()
    }

    /// The retirement whose keys are to be removed next.
    pub fn oldest_retirement(&self) -> Option<u64> {
        self.tags.oldest_retirement()
    }

    /// Adds copies of up to `max` keys of a retirement to `keys`, and returns how many. None: it is done. They stay
    /// retired until they are [removed](TagIndex::remove), [spared](TagIndex::spare) or [written](TagIndex::set_tags).
    pub fn retired_keys(&self, retirement: u64, max: usize, keys: &mut Vec<Box<[u8]>>) -> usize {
        let Some(cohort) = self.tags.retired_cohort(retirement) else { return 0 };
        let before = keys.len();
        // From the end: removing the last member moves nobody.
        let first = cohort.len().saturating_sub(max);
        let ids = (first..cohort.len()).rev().filter_map(|position| cohort.get(position));
        keys.extend(ids.map(|id| Record::read(self.records.get(id)).key.into()));
        keys.len() - before
    }

    fn look_up_retired(&self, key: &[u8]) -> Option<Retired> {
        let id = self.find(self.hash(key), key)?;
        let mut all: Option<Retired> = None;
        for membership in self.memberships(id) {
            let Some(cohort) = self.tags.cohort(membership.cohort).filter(|cohort| cohort.retirement != 0) else {
                continue;
            };
            let one = Retired { number: cohort.retirement, stale_since: self.tags.stale_since(membership.cohort) };
            all = Some(all.map_or(one, |all| Retired {
                number: all.number.max(one.number),
                stale_since: all.stale_since.zip(one.stale_since).map(|(a, b)| a.min(b)),
            }));
        }
        all
    }

    fn is_in_retired_cohort(&self, key: &[u8]) -> bool {
        let id = self.find(self.hash(key), key);
        id.is_some_and(|id| self.memberships(id).any(|membership| self.tags.is_retired(membership.cohort)))
    }
}
