//! What ends with the connection it was acquired on: locks by their token, slots by their id.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::name::Name;

/// By connection: what it holds, and under which key. It follows the keyspace: a hold is in it while its key is there.
#[derive(Debug)]
pub struct Sessions<H> {
    held: BTreeMap<u64, BTreeSet<(H, Name)>>,
    /// Connections that have closed, and whose holds are still to be released.
    closed: VecDeque<u64>,
}

impl<H> Default for Sessions<H> {
    fn default() -> Sessions<H> {
        Sessions { held: BTreeMap::new(), closed: VecDeque::new() }
    }
}

impl<H: Clone + Ord> Sessions<H> {
    /// How many holds end with a connection.
    pub fn count(&self) -> usize {
        self.held.values().map(BTreeSet::len).sum()
    }

    /// A hold that ends with `session`, if it has one, has come into the keyspace.
    pub fn arrived(&mut self, db: usize, key: &[u8], session: Option<u64>, hold: &H) {
        if let Some(session) = session {
            self.held.entry(session).or_default().insert((hold.clone(), Name { db, key: key.into() }));
        }
    }

    /// It has gone from there.
    pub fn left(&mut self, db: usize, key: &[u8], session: Option<u64>, hold: &H) {
        let Some(session) = session else { return };
        if let Some(held) = self.held.get_mut(&session) {
            held.remove(&(hold.clone(), Name { db, key: key.into() }));
            if held.is_empty() {
                self.held.remove(&session);
            }
        }
    }

    /// The connection is closed; `elsewhere`: it holds something that is not in here.
    pub fn closed(&mut self, session: u64, elsewhere: bool) {
        if elsewhere || self.held.contains_key(&session) {
            self.closed.push_back(session);
        }
    }

    pub fn any_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// A connection that has closed.
    pub fn next_closed(&mut self) -> Option<u64> {
        self.closed.pop_front()
    }

    /// Takes out one of the holds of connections that have closed.
    pub fn take_closed(&mut self) -> Option<(H, Name)> {
        while let Some(session) = self.closed.front() {
            let mut held = self.held.get_mut(session);
            if let Some(hold) = held.as_mut().and_then(|held| held.pop_first()) {
                return Some(hold);
            }
            self.held.remove(session);
            self.closed.pop_front();
        }
        None
    }

    /// What it held.
    pub fn held_by(&self, session: u64) -> Vec<(H, Name)> {
        self.held.get(&session).map_or_else(Vec::new, |held| held.iter().cloned().collect())
    }

    /// Databases are empty now (`None`: all).
    pub fn flushed(&mut self, db: Option<usize>) {
        self.held.retain(|_, held| {
            held.retain(|(_, name)| db.is_some_and(|db| db != name.db));
            !held.is_empty()
        });
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        for held in self.held.values_mut() {
            *held = std::mem::take(held).into_iter().map(|(hold, name)| (hold, name.swapped(a, b))).collect();
        }
    }
}
