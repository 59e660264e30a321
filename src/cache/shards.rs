//! A hash table of 32-bit ids that never stalls: linear hashing (W. Litwin, "Linear hashing: a new tool for file and
//! table addressing", VLDB 1980) over small tables.
//!
//! One big table rehashes everything when it doubles: 0.7 s at 3.7 million entries. Here the number of shards grows one
//! at a time, and one step moves the entries of one shard, at most some 900. A fixed number of shards was rejected: 4096 of them
//! cost 130 KB for the first key of each database, and stall again at hundreds of millions.
//!
//! The table holds ids only. The hash is not kept (4 bytes an entry); a move asks the caller to hash the entry again.

use hashbrown::HashTable;

/// Entries per shard on average; a shard about to be split has up to twice as many. 1024 buckets take 896: three standard
/// deviations more than that.
const LOAD: usize = 400;

#[derive(Debug, Default)]
pub(super) struct ShardedTable {
    shards: Vec<HashTable<u32>>,
    len: usize,
}

impl ShardedTable {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn find(&self, hash: u64, mut eq: impl FnMut(u32) -> bool) -> Option<u32> {
        self.shards.get(self.shard_of(hash))?.find(hash, |&id| eq(id)).copied()
    }

    /// Adds an id that is not in the table yet.
    pub fn insert(&mut self, hash: u64, id: u32, rehash: impl Fn(u32) -> u64) {
        if self.len >= self.shards.len() * LOAD {
            self.split(&rehash);
        }
        let shard = self.shard_of(hash);
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.insert_unique(hash, id, |&id| rehash(id));
            self.len += 1;
        }
    }

    /// Puts `new` in the place of `old`, for an entry whose hash stays.
    pub fn replace(&mut self, hash: u64, old: u32, new: u32) {
        let shard = self.shard_of(hash);
        if let Some(place) = self.shards.get_mut(shard).and_then(|shard| shard.find_mut(hash, |&id| id == old)) {
            *place = new;
        }
    }

    pub fn remove(&mut self, hash: u64, eq: impl Fn(u32) -> bool, rehash: impl Fn(u32) -> u64) -> Option<u32> {
        let shard = self.shard_of(hash);
        let shard = self.shards.get_mut(shard)?;
        let (id, _) = shard.find_entry(hash, |&id| eq(id)).ok()?.remove();
        self.len -= 1;
        if self.len == 0 {
            self.shards = Vec::new();
            return Some(id);
        }
        if shard.len() * 8 < shard.capacity() {
            shard.shrink_to(shard.len() * 2, |&id| rehash(id));
        }
        if self.len < (self.shards.len() - 1) * (LOAD / 2) {
            self.merge(&rehash);
        }
        Some(id)
    }

    /// Bytes of memory held, not counting this struct. O(shards).
    pub fn memory(&self) -> usize {
        let tables: usize = self.shards.iter().map(HashTable::allocation_size).sum();
        tables + self.shards.capacity() * size_of::<HashTable<u32>>()
    }

    /// The shards below `len - 2^k` (2^k the greatest power of two up to `len`) have been split in this round, and one
    /// more bit of the hash tells their halves apart.
    fn shard_of(&self, hash: u64) -> usize {
        // hashbrown takes the low bits for the bucket and the top seven for its tags: these are between.
        let bits = (hash >> 32) as usize;
        let round = self.shards.len().next_power_of_two();
        let shard = bits & (round - 1);
        if shard < self.shards.len() { shard } else { shard - round / 2 }
    }

    fn split(&mut self, rehash: &impl Fn(u32) -> u64) {
        let new = self.shards.len();
        self.shards.push(HashTable::new());
        let Some(parent) = parent_of(new).and_then(|parent| self.shards.get_mut(parent)) else { return };
        let entries = std::mem::take(parent);
        // Each half has room until it is split itself, so that no entry is hashed more than once while the table doubles.
        let mut halves = [HashTable::with_capacity(entries.len()), HashTable::with_capacity(entries.len())];
        for id in entries {
            let hash = rehash(id);
            let [stay, go] = &mut halves;
            let half = if self.shard_of(hash) == new { go } else { stay };
            half.insert_unique(hash, id, |&id| rehash(id));
        }
        let [stay, go] = halves;
        self.set(parent_of(new).unwrap_or(0), stay);
        self.set(new, go);
    }

    fn merge(&mut self, rehash: &impl Fn(u32) -> u64) {
        let Some(entries) = self.shards.pop() else { return };
        let Some(parent) = parent_of(self.shards.len()).and_then(|parent| self.shards.get_mut(parent)) else { return };
        parent.reserve(entries.len(), |&id| rehash(id));
        for id in entries {
            parent.insert_unique(rehash(id), id, |&id| rehash(id));
        }
        if self.shards.len() * 4 < self.shards.capacity() {
            self.shards.shrink_to(self.shards.len() * 2);
        }
    }

    fn set(&mut self, shard: usize, table: HashTable<u32>) {
        if let Some(place) = self.shards.get_mut(shard) {
            *place = table;
        }
    }
}

/// The shard that `shard` was split from: `shard` without its highest bit.
fn parent_of(shard: usize) -> Option<usize> {
    Some(shard ^ 1 << shard.checked_ilog2()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(id: u32) -> u64 {
        u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    fn has(table: &ShardedTable, id: u32) -> bool {
        table.find(hash(id), |found| found == id) == Some(id)
    }

    #[test]
    fn everything_is_found_while_it_grows_and_shrinks() {
        let mut table = ShardedTable::default();
        for id in 0..50_000 {
            table.insert(hash(id), id, hash);
        }
        assert!(table.shards.len() > 100 && (0..50_000).all(|id| has(&table, id)));
        let full = table.memory();
        for id in 0..49_000 {
            assert_eq!(table.remove(hash(id), |found| found == id, hash), Some(id));
            assert_eq!(table.remove(hash(id), |found| found == id, hash), None);
        }
        assert!((49_000..50_000).all(|id| has(&table, id)) && !has(&table, 7));
        assert!(table.memory() < full / 20, "{} of {full}", table.memory());
        for id in 49_000..50_000 {
            table.remove(hash(id), |found| found == id, hash);
        }
        assert_eq!((table.memory(), table.len()), (0, 0));
    }

    #[test]
    fn shards_are_evenly_filled() {
        let mut table = ShardedTable::default();
        for id in 0..100_000 {
            table.insert(hash(id), id, hash);
        }
        assert!(table.shards.iter().all(|shard| (100..1_000).contains(&shard.len())));
    }

    #[test]
    fn an_entry_can_change_its_id() {
        let mut table = ShardedTable::default();
        table.insert(hash(1), 1, hash);
        table.replace(hash(1), 1, 77);
        assert_eq!(table.find(hash(1), |id| id == 77), Some(77));
    }
}
