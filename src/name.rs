//! Keys by database and name: what module memory is keyed by.

use hashbrown::Equivalent;

/// A key by database and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub db: usize,
    pub key: Box<[u8]>,
}

/// The same, borrowed. Derives the same hash, since a boxed slice hashes as a slice.
#[derive(Hash)]
pub struct NameRef<'a> {
    pub db: usize,
    pub key: &'a [u8],
}

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        self.db == name.db && *self.key == *name.key
    }
}

impl Name {
    pub fn is(&self, db: usize, key: &[u8]) -> bool {
        NameRef { db, key }.equivalent(self)
    }

    pub fn swap(&mut self, a: usize, b: usize) {
        self.db = match self.db {
            db if db == a => b,
            db if db == b => a,
            db => db,
        };
    }

    pub fn swapped(mut self, a: usize, b: usize) -> Name {
        self.swap(a, b);
        self
    }
}
