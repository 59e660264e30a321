//! Negative answers of one database: keys of which the origin has nothing. They are no keys of the server.
//!
//! Their number is bounded, the oldest go first, so that a scan of ids that do not exist fills nothing. Their tags are in an
//! index of their own: a tag's negatives are ended in O(1), as its keys are.

use std::collections::{BTreeMap, BTreeSet};

use super::key_table::{Fact, KeyTable};
use super::tag_index::{IndexError, TagIndex};
use crate::clock::UnixMs;

/// How many one change drops at most when there are more than allowed.
const TRIM_STEP: usize = 8;
/// A tree node's share of one entry of 16 bytes, in each of two trees.
const TREE_ENTRIES: usize = 50;

/// See the [module](self). Every operation on one key costs O(log negatives).
#[derive(Debug)]
pub struct Negatives {
    table: KeyTable<Negative>,
    /// By age: the order in which they came.
    ages: BTreeMap<u64, u32>,
    ends: BTreeSet<(UnixMs, u32)>,
    tags: TagIndex,
    came: u64,
    max: usize,
    dropped_by_cap: u64,
}

#[derive(Clone, Copy, Debug)]
struct Negative {
    until: UnixMs,
    age: u64,
}

impl Fact for Negative {
    type Bytes = [u8; 16];

    fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.age) << 64 | u128::from(self.until.0 as u64)).to_le_bytes()
    }

    fn from_bytes(bytes: [u8; 16]) -> Negative {
        let both = u128::from_le_bytes(bytes);
        Negative { until: UnixMs(both as u64 as i64), age: (both >> 64) as u64 }
    }
}

impl Negatives {
    pub fn new(max: usize) -> Negatives {
        Negatives {
            table: KeyTable::default(),
            ages: BTreeMap::new(),
            ends: BTreeSet::new(),
            tags: TagIndex::new(0),
            came: 0,
            max,
            dropped_by_cap: 0,
        }
    }

    /// Remembers until `until` that the origin has nothing for the key.
    pub fn put(&mut self, key: &[u8], until: UnixMs, tags: &[&[u8]]) -> Result<(), IndexError> {
        self.remove(key);
        if self.max == 0 {
            return Ok(());
        }
        self.tags.set_tags(key, tags)?;
        self.came += 1;
        let id = match self.table.put(key, Negative { until, age: self.came }) {
            Ok(id) => id,
            Err(full) => {
                self.tags.remove(key);
                return Err(full.into());
            }
        };
        self.ages.insert(self.came, id);
        self.ends.insert((until, id));
        self.trim(TRIM_STEP);
        Ok(())
    }

    /// Is the origin known to have nothing for the key?
    pub fn holds(&self, key: &[u8], now: UnixMs) -> bool {
        self.table.get(key).is_some_and(|(_, negative)| negative.until > now) && !self.tags.is_retired(key)
    }

    /// Whether there was one.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let Some((id, negative)) = self.table.get(key) else { return false };
        self.drop_record(id, negative);
        true
    }

    /// Ends those that carry the tag, in O(1). Whether any did.
    pub fn retire(&mut self, tag: &[u8], now: UnixMs) -> bool {
        !self.tags.retire(tag, now).is_empty()
    }

    pub fn set_max(&mut self, max: usize) {
        self.max = max;
        self.trim(TRIM_STEP);
    }

    /// Takes away up to `max_steps` that have run out, were ended by a tag, or are too many.
    pub fn sweep(&mut self, now: UnixMs, max_steps: usize) {
        let mut steps = self.trim(max_steps);
        while let Some(&(_, id)) = self.ends.first().filter(|(until, _)| *until <= now && steps < max_steps) {
            self.drop_id(id);
            steps += 1;
        }
        while let Some(retirement) = self.tags.oldest_retirement().filter(|_| steps < max_steps) {
            let mut keys = Vec::new();
            steps += self.tags.retired_keys(retirement, max_steps - steps, &mut keys);
            keys.iter().for_each(|key| {
                self.remove(key);
            });
        }
    }

    pub fn clear(&mut self) {
        let (max, dropped) = (self.max, self.dropped_by_cap);
        *self = Negatives { dropped_by_cap: dropped, ..Negatives::new(max) };
    }

    /// Key, end and tags of each, the oldest first; without those that a tag ended.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], UnixMs, Vec<&[u8]>)> {
        self.ages.values().filter_map(|&id| {
            let key = self.table.key(id);
            let live = !self.tags.is_retired(key);
            live.then_some((key, self.table.value(id)?.until, self.tags.tags(key).collect()))
        })
    }

    /// Those that have run out included, until they are swept.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many went before their time because too many were there.
    pub fn dropped_by_cap(&self) -> u64 {
        self.dropped_by_cap
    }

    /// Bytes of memory held. O(negatives / 400).
    pub fn memory(&self) -> usize {
        let tags = if self.tags.is_empty() { 0 } else { self.tags.memory() };
        self.table.memory() + self.len() * TREE_ENTRIES + tags
    }

    fn trim(&mut self, steps: usize) -> usize {
        let steps = steps.min(self.len().saturating_sub(self.max));
        for _ in 0..steps {
            if let Some((_, &id)) = self.ages.first_key_value() {
                self.drop_id(id);
            }
        }
        self.dropped_by_cap += steps as u64;
        steps
    }

    fn drop_id(&mut self, id: u32) {
        if let Some(negative) = self.table.value(id) {
            self.drop_record(id, negative);
        }
    }

    fn drop_record(&mut self, id: u32, Negative { until, age }: Negative) {
        self.tags.remove(self.table.key(id));
        self.table.remove_id(id);
        self.ages.remove(&age);
        self.ends.remove(&(until, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_000);

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let mut negatives = Negatives::new(2);
        for key in [b"a", b"b", b"a", b"c"] {
            negatives.put(key, NOW.plus(10), &[b"t"]).unwrap();
        }
        let held = |negatives: &Negatives| [b"a", b"b", b"c"].map(|key| negatives.holds(key, NOW));
        assert_eq!((held(&negatives), negatives.dropped_by_cap()), ([true, false, true], 1));
        negatives.set_max(1);
        assert_eq!(held(&negatives), [false, false, true]);
        negatives.set_max(0);
        negatives.put(b"d", NOW.plus(10), &[]).unwrap();
        assert!(negatives.is_empty() && negatives.memory() == 0, "{}", negatives.memory());
    }

    #[test]
    fn each_ends_in_its_time_and_with_any_of_its_tags() {
        let mut negatives = Negatives::new(100);
        negatives.put(b"a", NOW.plus(10), &[b"t", b"u"]).unwrap();
        negatives.put(b"b", NOW.plus(20), &[b"u"]).unwrap();
        negatives.put(b"c", NOW.plus(30), &[]).unwrap();
        assert!(negatives.holds(b"a", NOW.plus(9)) && !negatives.holds(b"a", NOW.plus(10)));
        assert!(negatives.retire(b"u", NOW) && !negatives.retire(b"u", NOW));
        let live: Vec<_> = negatives.iter().map(|(key, until, _)| (key.to_vec(), until)).collect();
        assert_eq!(live, [(b"c".to_vec(), NOW.plus(30))]);
        negatives.put(b"b", NOW.plus(40), &[]).unwrap();
        assert!(negatives.holds(b"b", NOW), "a new one is not the old one");
        negatives.sweep(NOW.plus(35), 10);
        assert_eq!(negatives.len(), 1);
        assert!(negatives.remove(b"b") && !negatives.remove(b"b"));
        assert_eq!(negatives.memory(), 0);
    }

    #[test]
    fn a_sweep_keeps_to_its_budget() {
        let mut negatives = Negatives::new(100);
        for key in 0..20_u8 {
            negatives.put(&[key], NOW, &[b"t"]).unwrap();
        }
        negatives.sweep(NOW, 5);
        assert_eq!(negatives.len(), 15);
        negatives.retire(b"t", NOW);
        negatives.sweep(UnixMs(0), 5);
        assert_eq!(negatives.len(), 10);
    }
}
