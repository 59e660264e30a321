//! Which entries a key has, over all queues: found by the key alone, so that SWAPDB, RENAME and MOVE of a queue change nothing here.
//!
//! Shards, since one large table that grows would hold the server up; the hash is kept beside each place, so that growing looks at
//! nothing else.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::queue::EntryId;

/// The number of a queue in this process; none is used twice.
pub type QueueId = u64;

const SHARDS: usize = 256;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    hash: u64,
    pub queue: QueueId,
    pub entry: EntryId,
}

#[derive(Debug, Default)]
pub struct KeyIndex {
    /// None, or all of them.
    shards: Vec<HashTable<Place>>,
    hasher: DefaultHashBuilder,
    len: usize,
}

fn shard_of(hash: u64) -> usize {
    // The upper bits: the tables use the lower ones.
    usize::try_from(hash >> 56).unwrap_or(0)
}

impl KeyIndex {
    fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Places of keys that may be this one: the caller looks.
    pub fn candidates(&self, key: &[u8]) -> impl Iterator<Item = Place> {
        let hash = self.hash(key);
        let shard = self.shards.get(shard_of(hash));
        let places = shard.into_iter().flat_map(move |shard| shard.iter_hash(hash));
        places.copied().filter(move |place| place.hash == hash)
    }

    pub fn insert(&mut self, key: &[u8], queue: QueueId, entry: EntryId) {
        let hash = self.hash(key);
        if self.shards.is_empty() {
            self.shards.resize_with(SHARDS, HashTable::default);
        }
        if let Some(shard) = self.shards.get_mut(shard_of(hash)) {
            shard.insert_unique(hash, Place { hash, queue, entry }, |place| place.hash);
            self.len = self.len.saturating_add(1);
        }
    }

    pub fn remove(&mut self, key: &[u8], queue: QueueId, entry: EntryId) {
        let hash = self.hash(key);
        let Some(shard) = self.shards.get_mut(shard_of(hash)) else { return };
        if let Ok(place) = shard.find_entry(hash, |place| (place.queue, place.entry) == (queue, entry)) {
            place.remove();
            self.len = self.len.saturating_sub(1);
        }
        if self.len == 0 {
            // A backlog that is worked off leaves no tables behind.
            self.shards = Vec::new();
        }
    }

    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        // The tables are between half and seven eighths full.
        self.len.saturating_mul(size_of::<Place>().saturating_add(1)).saturating_mul(3) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_a_place_for_each_queue_until_it_is_removed_there() {
        let mut index = KeyIndex::default();
        let places = |index: &KeyIndex, key: &[u8]| {
            let mut places: Vec<_> = index.candidates(key).map(|place| (place.queue, place.entry)).collect();
            places.sort_unstable();
            places
        };
        for number in 0..10_000_u64 {
            index.insert(&number.to_le_bytes(), number % 3, number);
        }
        index.insert(&7_u64.to_le_bytes(), 9, 1);
        assert_eq!(places(&index, &7_u64.to_le_bytes()), [(1, 7), (9, 1)]);
        index.remove(&7_u64.to_le_bytes(), 1, 7);
        index.remove(&7_u64.to_le_bytes(), 1, 7);
        assert_eq!((places(&index, &7_u64.to_le_bytes()), index.len), (vec![(9, 1)], 10_000));
        index.remove(&7_u64.to_le_bytes(), 9, 1);
        for number in 0..10_000_u64 {
            index.remove(&number.to_le_bytes(), number % 3, number);
        }
        assert_eq!((index.len, index.shards.len()), (0, 0));
    }
}
