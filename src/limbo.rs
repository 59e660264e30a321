//! Records that live on although their key is gone: it was evicted, and is to be put back.

use hashbrown::HashMap;

use crate::clock::UnixMs;
use crate::name::{Name, NameRef};
use crate::state::KeyEvent;

/// What can be without its key.
pub trait Keyless {
    /// Bytes that it takes besides its own size.
    fn heap_bytes(&self) -> usize;

    /// Tells it from a later one of the same name.
    fn token(&self) -> i64;

    /// Does it live on when its key is taken away like this?
    fn outlives(&self, event: KeyEvent, now: UnixMs) -> bool;
}

#[derive(Debug)]
pub struct Limbo<R> {
    records: HashMap<Name, R>,
    bytes: usize,
}

impl<R> Default for Limbo<R> {
    fn default() -> Limbo<R> {
        Limbo { records: HashMap::new(), bytes: 0 }
    }
}

/// Bytes of an entry, without the free slots of the table.
fn entry_bytes<R: Keyless>(name: &Name, record: &R) -> usize {
    let fixed = size_of::<Name>().saturating_add(size_of::<R>());
    fixed.saturating_add(name.key.len()).saturating_add(record.heap_bytes())
}

impl<R: Keyless> Limbo<R> {
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn get(&self, db: usize, key: &[u8]) -> Option<&R> {
        self.records.get(&NameRef { db, key })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What had the name before.
    pub fn insert(&mut self, name: Name, record: R) -> Option<R> {
        let before = self.take(name.db, &name.key);
        self.bytes = self.bytes.saturating_add(entry_bytes(&name, &record));
        self.records.insert(name, record);
        before
    }

    pub fn take(&mut self, db: usize, key: &[u8]) -> Option<R> {
        if self.records.is_empty() {
            return None;
        }
        let (name, record) = self.records.remove_entry(&NameRef { db, key })?;
        self.bytes = self.bytes.saturating_sub(entry_bytes(&name, &record));
        if self.records.is_empty() {
            // A storm of evictions must not leave its memory behind.
            *self = Limbo::default();
        }
        Some(record)
    }

    /// Some of the names, at most `max`.
    pub fn names(&self, max: usize) -> Vec<Name> {
        self.records.keys().take(max).cloned().collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Name, &R)> {
        self.records.iter()
    }

    pub fn flush(&mut self, db: usize) {
        self.records.retain(|name, _| name.db != db);
        self.bytes = self.records.iter().map(|(name, record)| entry_bytes(name, record)).sum();
    }

    pub fn swap(&mut self, a: usize, b: usize) {
        let records = std::mem::take(&mut self.records).into_iter();
        self.records = records.map(|(name, record)| (name.swapped(a, b), record)).collect();
    }
}
