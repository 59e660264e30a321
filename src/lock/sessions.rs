//! Locks that end with the connection they were acquired on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::limbo::Name;

/// By connection: the tokens it holds, and of which locks. It follows the keyspace: a holder is in it while its lock's key is
/// there.
#[derive(Debug, Default)]
pub struct Sessions {
    held: BTreeMap<u64, BTreeSet<(i64, Name)>>,
    /// Connections that have closed, and whose locks are still to be released.
    closed: VecDeque<u64>,
}

impl Sessions {
    /// How many locks end with a connection.
    pub fn len(&self) -> usize {
        self.held.values().map(BTreeSet::len).sum()
    }

    /// A hold that ends with `session`, if it has one, has come into the keyspace.
    pub fn arrived(&mut self, db: usize, key: &[u8], session: Option<u64>, token: i64) {
        if let Some(session) = session {
            self.held.entry(session).or_default().insert((token, Name { db, key: key.into() }));
        }
    }

    /// It has gone from there.
    pub fn left(&mut self, db: usize, key: &[u8], session: Option<u64>, token: i64) {
        let Some(session) = session else { return };
        if let Some(held) = self.held.get_mut(&session) {
            held.remove(&(token, Name { db, key: key.into() }));
            if held.is_empty() {
                self.held.remove(&session);
            }
        }
    }

    /// The connection is closed; `elsewhere`: it holds locks that are not in here.
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

    /// What it held.
    pub fn held_by(&self, session: u64) -> Vec<(i64, Name)> {
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
            *held = std::mem::take(held).into_iter().map(|(token, name)| (token, name.swapped(a, b))).collect();
        }
    }
}
