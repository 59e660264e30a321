//! Fixed facts about keys: key -> a small value of one size. Version floors, soft expiries and negative answers are kept
//! like this: some bytes beside the key's name in one slot of a [slab](super::slab), found by a table of ids.
//!
//! The hasher is seeded at random, so nobody can choose names that collide.

use std::hash::BuildHasher;
use std::marker::PhantomData;

use hashbrown::DefaultHashBuilder;

use super::shards::ShardedTable;
use super::slab::{Full, Slab};

/// A value of one size, stored as bytes.
pub(super) trait Fact: Copy {
    type Bytes: AsRef<[u8]> + for<'a> TryFrom<&'a [u8]>;
    const LEN: usize = size_of::<Self::Bytes>();

    fn to_bytes(self) -> Self::Bytes;
    fn from_bytes(bytes: Self::Bytes) -> Self;
}

/// See the [module](self). Every operation on one key costs one look-up.
#[derive(Debug)]
pub(super) struct KeyTable<V> {
    hasher: DefaultHashBuilder,
    ids: ShardedTable,
    records: Slab,
    of: PhantomData<V>,
}

/// The first byte of a record, which must not be 0.
const PRESENT: u8 = 1;
/// `PRESENT`, and the length of the key as u32, little-endian. The value and the key follow.
const HEADER: usize = 5;

impl<V> Default for KeyTable<V> {
    fn default() -> KeyTable<V> {
        KeyTable {
            hasher: DefaultHashBuilder::default(),
            ids: ShardedTable::default(),
            records: Slab::default(),
            of: PhantomData,
        }
    }
}

impl<V: Fact> KeyTable<V> {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, key: &[u8]) -> Option<(u32, V)> {
        if self.is_empty() {
            return None;
        }
        let mut value = None;
        let id = self.ids.find(self.hasher.hash_one(key), |id| {
            value = read(self.records.get(id)).filter(|(_, name)| *name == key).map(|(value, _)| value);
            value.is_some()
        })?;
        Some((id, value?))
    }

    /// The value of a record that is there.
    pub fn value(&self, id: u32) -> Option<V> {
        read(self.records.get(id)).map(|(value, _)| value)
    }

    /// The key of a record; empty for an id without one.
    pub fn key(&self, id: u32) -> &[u8] {
        read::<V>(self.records.get(id)).map_or(&[], |(_, key)| key)
    }

    /// Changes the value of a record that is there.
    pub fn set(&mut self, id: u32, value: V) {
        if let Some(place) = self.records.get_mut(id).get_mut(HEADER..HEADER + V::LEN) {
            place.copy_from_slice(value.to_bytes().as_ref());
        }
    }

    /// The key has this value now. Its id, which it keeps until it is removed.
    pub fn put(&mut self, key: &[u8], value: V) -> Result<u32, Full> {
        if let Some((id, _)) = self.get(key) {
            self.set(id, value);
            return Ok(id);
        }
        let length = u32::try_from(key.len()).map_err(|_| Full)?;
        let id = self.records.allocate(HEADER + V::LEN + key.len())?;
        let record = std::iter::once(PRESENT).chain(length.to_le_bytes());
        let name = key.iter().copied();
        let slot = self.records.get_mut(id).iter_mut();
        slot.zip(record.chain(value.to_bytes().as_ref().iter().copied()).chain(name)).for_each(|(to, byte)| *to = byte);
        let (hasher, records) = (&self.hasher, &self.records);
        self.ids.insert(hasher.hash_one(key), id, |id| hash_of::<V>(hasher, records, id));
        Ok(id)
    }

    pub fn remove(&mut self, key: &[u8]) -> Option<(u32, V)> {
        let (id, value) = self.get(key)?;
        self.remove_id(id);
        Some((id, value))
    }

    pub fn remove_id(&mut self, id: u32) {
        let (hasher, records) = (&self.hasher, &self.records);
        let hash = hash_of::<V>(hasher, records, id);
        if self.ids.remove(hash, |found| found == id, |id| hash_of::<V>(hasher, records, id)).is_some() {
            self.records.free(id);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], V)> {
        self.records.iter_from(0).filter_map(|(_, slot)| read(slot).map(|(value, key)| (key, value)))
    }

    /// Up to `count` keys and the cursor to go on with (0 to start, 0 at the end), for a slow walk that need not be exact.
    pub fn sample(&self, cursor: u64, count: usize) -> (u64, Vec<Box<[u8]>>) {
        let Ok(from) = u32::try_from(cursor) else { return (0, Vec::new()) };
        let mut records = self.records.iter_from(from);
        let keys = records.by_ref().take(count).filter_map(|(_, slot)| read::<V>(slot).map(|(_, key)| key.into()));
        let keys = keys.collect();
        (records.next().map_or(0, |(id, _)| id.into()), keys)
    }

    /// Bytes of memory held, not counting this struct. O(keys / 400).
    pub fn memory(&self) -> usize {
        self.ids.memory() + self.records.memory()
    }
}

fn hash_of<V: Fact>(hasher: &DefaultHashBuilder, records: &Slab, id: u32) -> u64 {
    read::<V>(records.get(id)).map_or(0, |(_, key)| hasher.hash_one(key))
}

#[inline]
fn read<V: Fact>(slot: &[u8]) -> Option<(V, &[u8])> {
    let ([_, length @ ..], rest) = slot.split_first_chunk::<HEADER>()?;
    let (value, rest) = rest.split_at_checked(V::LEN)?;
    let value = V::Bytes::try_from(value).ok()?;
    Some((V::from_bytes(value), rest.get(..u32::from_le_bytes(*length) as usize)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Fact for u64 {
        type Bytes = [u8; 8];
        fn to_bytes(self) -> [u8; 8] {
            self.to_le_bytes()
        }
        fn from_bytes(bytes: [u8; 8]) -> u64 {
            u64::from_le_bytes(bytes)
        }
    }

    #[test]
    fn a_key_keeps_its_id_and_leaves_nothing() {
        let mut table = KeyTable::<u64>::default();
        let long = vec![b'x'; 10_000];
        for round in 0..2 {
            for i in 0..3_000_u64 {
                table.put(&i.to_le_bytes(), i + round).unwrap();
            }
        }
        let id = table.put(&long, 7).unwrap();
        assert_eq!((table.put(&long, 8), table.put(b"", 9).map(|_| ())), (Ok(id), Ok(())));
        assert_eq!((table.len(), table.key(id) == long, table.value(id)), (3_002, true, Some(8)));
        assert_eq!(table.get(&5_u64.to_le_bytes()).map(|(_, value)| value), Some(6));
        assert_eq!(table.iter().count(), 3_002);
        for i in 0..3_000_u64 {
            assert_eq!(table.remove(&i.to_le_bytes()).map(|(_, value)| value), Some(i + 1));
        }
        table.remove_id(id);
        assert_eq!((table.remove(b"").map(|(_, value)| value), table.remove(b"")), (Some(9), None));
        assert!(table.is_empty() && table.memory() < 10_000, "{}", table.memory());
    }
}
