//! What ends with the connection it was acquired on: locks by their token, slots by their id.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::Name;

/// By connection: what it holds, and under which key. It follows the keyspace: a hold is in it while its key is there, and that
/// of an evicted lock, too.
#[derive(Debug)]
pub struct Sessions<H> {
    held: BTreeMap<u64, BTreeSet<(H, Name)>>,
    /// Connections that have closed, and some of whose holds are still to be released.
    closed: BTreeSet<u64>,
}

impl<H> Default for Sessions<H> {
    fn default() -> Sessions<H> {
        Sessions { held: BTreeMap::new(), closed: BTreeSet::new() }
    }
}

impl<H: Clone + Ord> Sessions<H> {
    /// How many holds end with a connection.
    pub fn count(&self) -> usize {
        self.held.values().map(BTreeSet::len).sum()
    }

    /// A hold that ends with `session`, if it has one, has come.
    pub fn arrived(&mut self, db: usize, key: &[u8], session: Option<u64>, hold: &H) {
        if let Some(session) = session {
            self.held.entry(session).or_default().insert((hold.clone(), Name { db, key: key.into() }));
        }
    }

    /// It has gone.
    pub fn left(&mut self, db: usize, key: &[u8], session: Option<u64>, hold: &H) {
        let Some(session) = session else { return };
        if let Some(held) = self.held.get_mut(&session) {
            held.remove(&(hold.clone(), Name { db, key: key.into() }));
            self.forget_if_empty(session);
        }
    }

    fn forget_if_empty(&mut self, session: u64) {
        if self.held.get(&session).is_some_and(BTreeSet::is_empty) {
            self.held.remove(&session);
            self.closed.remove(&session);
        }
    }

    /// The connection is closed.
    pub fn closed(&mut self, session: u64) {
        if self.held.contains_key(&session) {
            self.closed.insert(session);
        }
    }

    /// Does this hold end with this connection? A server that was a replica meanwhile has forgotten all of them.
    pub fn ends(&self, session: u64, hold: &H, db: usize, key: &[u8]) -> bool {
        self.held.get(&session).is_some_and(|held| held.contains(&(hold.clone(), Name { db, key: key.into() })))
    }

    pub fn any_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// One hold of a connection that has closed: it is to be released. One at a time, since a connection may hold any number.
    pub fn next_ended(&mut self) -> Option<(H, Name)> {
        let session = *self.closed.first()?;
        let ended = self.held.get_mut(&session)?.pop_first();
        self.forget_if_empty(session);
        ended
    }

    /// Databases are empty now (`None`: all).
    pub fn flushed(&mut self, db: Option<usize>) {
        self.held.retain(|_, held| {
            held.retain(|(_, name)| db.is_some_and(|db| db != name.db));
            !held.is_empty()
        });
        self.closed.retain(|session| self.held.contains_key(session));
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        for held in self.held.values_mut() {
            *held = std::mem::take(held).into_iter().map(|(hold, name)| (hold, name.swapped(a, b))).collect();
        }
    }
}
