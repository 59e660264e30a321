//! Invalidation: a tag's cohort is retired at once, in O(1), and its keys are removed later.
//!
//! The index never forgets a retired key by itself: reclaiming lists keys, the caller deletes them from the keyspace, and
//! the deletion comes back as [`TagIndex::remove`], like any other. So a deletion that could not be done is listed again,
//! and a key that was deleted meanwhile is not listed. A key that is listed but does not exist any more (which the
//! notifications make impossible) has to be removed by the caller, or it would be listed for ever.

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

impl TagIndex {
    /// Retires all keys that carry `tag`. `None`, and nothing is changed or counted, if none does.
    pub fn retire(&mut self, tag: &[u8], now: UnixMs) -> Option<Retirement> {
        self.tags.retire(tag, now).map(|(number, keys)| Retirement { number, keys })
    }

    /// Whether any key is retired. O(1).
    #[inline]
    pub fn has_retired(&self) -> bool {
        self.tags.has_retired()
    }

    /// Whether the key was invalidated and neither written nor removed since. O(1) while nothing is retired.
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

    fn is_in_retired_cohort(&self, key: &[u8]) -> bool {
        let id = self.find(self.hash(key), key);
        id.is_some_and(|id| self.memberships(id).any(|membership| self.tags.is_retired(membership.cohort)))
    }
}
