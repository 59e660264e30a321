//! The fence: may a value that was loaded under a lease still be stored? Not if one of its tags was invalidated since the
//! lease began, also a tag that the key did not carry at that time.
//!
//! Everything is ordered by one sequence, never by a clock. Invalidations are remembered only while a load that began before
//! them is out: with no load out, nothing is.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// How many memories one change drops at most.
const PRUNE_STEP: usize = 8;

/// One database's fence.
#[derive(Debug, Default)]
pub(super) struct Fence {
    /// When the loads that are out began. No two have the same number.
    open: BTreeSet<u64>,
    tags: BTreeMap<Rc<[u8]>, Invalidated>,
    /// The same tags by their last invalidation.
    ages: BTreeMap<u64, Rc<[u8]>>,
    /// Memories up to here were dropped because there were too many.
    forgotten: u64,
}

/// When a tag was invalidated, as far as it is remembered.
#[derive(Clone, Copy, Debug)]
struct Invalidated {
    first: u64,
    last: u64,
}

impl Fence {
    pub fn opened(&mut self, began: u64) {
        self.open.insert(began);
    }

    pub fn closed(&mut self, began: u64) {
        self.open.remove(&began);
        self.prune(PRUNE_STEP);
    }

    /// The tag was invalidated at `at`, later than anything before.
    pub fn invalidated(&mut self, tag: &[u8], at: u64, max: usize) {
        if self.open.is_empty() {
            return;
        }
        let name = match self.tags.get_mut(tag) {
            Some(times) => {
                let name = self.ages.remove(&times.last);
                times.last = at;
                name
            }
            None => {
                let name: Rc<[u8]> = tag.into();
                self.tags.insert(Rc::clone(&name), Invalidated { first: at, last: at });
                Some(name)
            }
        };
        self.ages.extend(name.map(|name| (at, name)));
        for _ in 0..self.ages.len().saturating_sub(max).min(PRUNE_STEP) {
            self.forget_oldest();
        }
    }

    /// The first invalidation of any of the tags since a load began, as far as that can be told; never later than it was.
    pub fn first_since<'t>(&self, began: u64, tags: impl IntoIterator<Item = &'t [u8]>) -> Option<u64> {
        tags.into_iter().filter_map(|tag| self.first_of(began, tag)).min()
    }

    fn first_of(&self, began: u64, tag: &[u8]) -> Option<u64> {
        if began < self.forgotten {
            return Some(began);
        }
        let times = self.tags.get(tag).filter(|times| times.last > began)?;
        // Of those between the first and the last nothing is known.
        Some(if times.first > began { times.first } else { began })
    }

    /// Drops up to `steps` memories that no load can ask for.
    pub fn prune(&mut self, steps: usize) {
        let oldest = self.open.first().copied().unwrap_or(u64::MAX);
        for _ in 0..steps {
            match self.ages.first_key_value() {
                Some((&last, _)) if last < oldest => self.drop_oldest(),
                _ => return,
            }
        }
    }

    /// How many tags are remembered.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.tags.is_empty()
    }

    fn forget_oldest(&mut self) {
        self.forgotten = self.ages.first_key_value().map_or(self.forgotten, |(&last, _)| last);
        self.drop_oldest();
    }

    fn drop_oldest(&mut self) {
        if let Some((_, tag)) = self.ages.pop_first() {
            self.tags.remove(&tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_after_the_load_began_counts() {
        let mut fence = Fence::default();
        fence.invalidated(b"t", 1, 10);
        assert!(fence.is_empty(), "nobody loads");
        fence.opened(2);
        fence.invalidated(b"t", 3, 10);
        fence.opened(4);
        fence.invalidated(b"u", 5, 10);
        assert_eq!(fence.first_since(2, [&b"u"[..], b"t"]), Some(3));
        assert_eq!(fence.first_since(4, [&b"t"[..]]), None);
        fence.invalidated(b"t", 6, 10);
        assert_eq!(fence.first_since(2, [&b"t"[..]]), Some(3));
        assert_eq!(fence.first_since(4, [&b"t"[..]]), Some(4), "5 or 6: it cannot be told, so it is taken for early");
        fence.closed(2);
        assert_eq!(fence.len(), 2, "both came after the other load began");
        fence.closed(4);
        assert!(fence.is_empty());
    }

    #[test]
    fn what_had_to_be_forgotten_counts_as_a_hit() {
        let mut fence = Fence::default();
        fence.opened(1);
        for at in 2..=5 {
            fence.invalidated(&[at as u8], at, 2);
        }
        fence.opened(6);
        assert_eq!(fence.len(), 2);
        assert_eq!(fence.first_since(1, [&b"any"[..]]), Some(1));
        assert_eq!(fence.first_since(1, []), None, "a value without tags is not in doubt");
        assert_eq!(fence.first_since(6, [&b"any"[..]]), None);
    }
}
