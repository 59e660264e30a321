//! What a node remembers of keys that went while their slot moved, to answer who got them: see [`doubt`](super::doubt).

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::clock::UnixMs;
use crate::cluster::NodeId;
use crate::name::{Name, NameRef};

/// What was known of a key when it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Was {
    /// It had tags, a grace or a version.
    Known,
    /// That it had come from this node, and when. What that one knew it had not said yet.
    InDoubt(NodeId, UnixMs),
}

/// Keys of which something was known, and that went while their slot moved.
#[derive(Debug, Default)]
pub(super) struct Departed {
    /// When they went last.
    keys: HashMap<Name, (UnixMs, Was)>,
    /// In the order in which they went. A key that went twice is in it twice.
    order: VecDeque<(UnixMs, Name)>,
    /// Of what went before this, not everything is remembered.
    complete_since: UnixMs,
}

impl Departed {
    /// How many are remembered at most.
    const MAX: usize = 1_000_000;
    /// For how long.
    const MEMORY_MS: i64 = 600_000;

    /// This process begins to serve now: what went before, from another one, it does not know.
    pub fn begin(&mut self, now: UnixMs) {
        *self = Departed { complete_since: now, ..Departed::default() };
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// What was known once stays known: whoever got the key may not have asked yet.
    pub fn went(&mut self, db: usize, key: &[u8], was: Was, now: UnixMs) {
        let name = Name { db, key: key.into() };
        let was = self.was(db, key).filter(|before| *before == Was::Known).unwrap_or(was);
        self.keys.insert(name.clone(), (now, was));
        self.order.push_back((now, name));
        if self.order.len() > Departed::MAX {
            self.forget_first();
        }
    }

    /// What was known of the key; `None`: nothing, or it never went.
    pub fn was(&self, db: usize, key: &[u8]) -> Option<Was> {
        self.keys.get(&NameRef { db, key }).map(|(_, was)| *was)
    }

    /// Would it be known here if the key had gone so long ago?
    pub fn remembers(&self, age_ms: i64, now: UnixMs) -> bool {
        now.since(self.complete_since) > age_ms
    }

    /// Forgets up to `budget` of what went long ago.
    pub fn sweep(&mut self, now: UnixMs, budget: usize) {
        for _ in 0..budget {
            if self.order.front().is_none_or(|(at, _)| now.since(*at) < Departed::MEMORY_MS) {
                return;
            }
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((at, name)) = self.order.pop_front() {
            self.complete_since = self.complete_since.max(at);
            if self.keys.get(&name).is_some_and(|(last, _)| *last == at) {
                self.keys.remove(&name);
            }
            if self.order.is_empty() {
                (self.keys, self.order) = (HashMap::new(), VecDeque::new());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_is_remembered_for_a_while() {
        let mut departed = Departed::default();
        let in_doubt = Was::InDoubt(NodeId::new(&[b'a'; NodeId::LENGTH]).unwrap(), UnixMs(1900));
        departed.begin(UnixMs(1000));
        assert!(departed.remembers(99, UnixMs(1100)) && !departed.remembers(100, UnixMs(1100)));
        departed.went(0, b"a", Was::Known, UnixMs(1500));
        departed.went(0, b"a", in_doubt, UnixMs(2000));
        departed.sweep(UnixMs(2000 + Departed::MEMORY_MS - 1), 9);
        assert_eq!((departed.was(0, b"a"), departed.was(1, b"a")), (Some(Was::Known), None));
        departed.sweep(UnixMs(2000 + Departed::MEMORY_MS), 9);
        assert!(departed.was(0, b"a").is_none() && departed.len() == 0);
        assert!(!departed.remembers(500, UnixMs(2500)) && departed.remembers(499, UnixMs(2500)));
    }

    #[test]
    fn what_a_large_slot_took_is_given_back() {
        let mut departed = Departed::default();
        (0..1000_u32).for_each(|n| departed.went(0, &n.to_le_bytes(), Was::Known, UnixMs(0)));
        departed.sweep(UnixMs(Departed::MEMORY_MS), 1000);
        assert_eq!((departed.keys.capacity(), departed.order.capacity()), (0, 0));
    }
}
