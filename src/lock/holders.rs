//! Those who hold one lock. Found by owner and by token, with the first and the last of their leases at hand, in O(log n):
//! readers and permits may be many.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use smallvec::SmallVec;

use crate::clock::UnixMs;
use crate::fencing::is_token;

/// The longest owner name in bytes.
pub const MAX_OWNER: usize = 1024;

/// Most permits of a semaphore, and most keys of one MACQUIRE.
pub const MAX_PERMITS: u32 = 1_000_000;

/// One who holds the lock: until his deadline and not a moment longer, whatever the key's own expiry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// A name as long as a UUID needs no memory of its own.
    owner: SmallVec<[u8; 36]>,
    pub standing: Standing,
    /// The connection with which it ends. Neither saved nor replicated: a restart ends all connections.
    pub session: Option<u64>,
}

/// What of a holder changes while he keeps the lock, and what is replicated of him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub token: i64,
    /// How many RELEASEs it takes; at least 1.
    pub holds: i64,
    pub deadline: UnixMs,
    /// How many keys were granted together with this one, itself included.
    pub keys: u32,
}

/// Never empty; no two have the same owner or the same token. In the order of their tokens, which is that of their grants.
#[derive(Clone, PartialEq, Eq)]
pub struct Holders(Crowd);

/// Nearly all locks have one holder: for him alone there are no tables.
#[derive(Clone, PartialEq, Eq)]
enum Crowd {
    One(Holder),
    Many(Box<Tables>),
}

#[derive(Clone, Default)]
struct Tables {
    by_token: BTreeMap<i64, Holder>,
    /// Hash of the owner, token.
    by_owner: BTreeSet<(u64, i64)>,
    by_deadline: BTreeSet<(UnixMs, i64)>,
    hasher: DefaultHashBuilder,
    /// Bytes of the owners' names that are not in the holders themselves.
    names: usize,
}

impl Holder {
    /// `None` if a part is out of its range: the parts may come from anybody.
    pub fn new(owner: &[u8], standing: Standing) -> Option<Holder> {
        let Standing { token, holds, deadline, keys } = standing;
        let sound = (1..=MAX_OWNER).contains(&owner.len())
            && is_token(token)
            && holds >= 1
            && deadline.0 >= 1
            && (1..=MAX_PERMITS).contains(&keys);
        sound.then(|| Holder { owner: SmallVec::from_slice(owner), standing, session: None })
    }

    pub fn owner(&self) -> &[u8] {
        &self.owner
    }

    pub fn token(&self) -> i64 {
        self.standing.token
    }

    fn heap_bytes(&self) -> usize {
        if self.owner.spilled() { self.owner.len() } else { 0 }
    }

    /// Is the lease running? Without a moment it is: where an effect is applied the clock has no say.
    pub fn held(&self, now: Option<UnixMs>) -> bool {
        now.is_none_or(|now| now < self.standing.deadline)
    }
}

impl Holders {
    pub fn one(holder: Holder) -> Holders {
        Holders(Crowd::One(holder))
    }

    pub fn len(&self) -> usize {
        match &self.0 {
            Crowd::One(_) => 1,
            Crowd::Many(many) => many.by_token.len(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Holder> {
        let (one, many) = match &self.0 {
            Crowd::One(holder) => (Some(holder), None),
            Crowd::Many(many) => (None, Some(many.by_token.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub fn of_owner(&self, owner: &[u8]) -> Option<&Holder> {
        match &self.0 {
            Crowd::One(holder) => Some(holder).filter(|holder| *holder.owner == *owner),
            Crowd::Many(many) => many.of_owner(owner),
        }
    }

    pub fn of_token(&self, token: i64) -> Option<&Holder> {
        match &self.0 {
            Crowd::One(holder) => Some(holder).filter(|holder| holder.token() == token),
            Crowd::Many(many) => many.by_token.get(&token),
        }
    }

    pub fn last_token(&self) -> i64 {
        match &self.0 {
            Crowd::One(holder) => holder.token(),
            Crowd::Many(many) => many.by_token.last_key_value().map_or(0, |(token, _)| *token),
        }
    }

    /// When the next of the leases ends that are running `now`.
    pub fn next_deadline(&self, now: UnixMs) -> Option<UnixMs> {
        match &self.0 {
            Crowd::One(holder) => Some(holder.standing.deadline).filter(|at| now < *at),
            Crowd::Many(many) => many.by_deadline.range((now.plus(1), i64::MIN)..).next().map(|(at, _)| *at),
        }
    }

    /// When the last of the leases ends.
    pub fn last_deadline(&self) -> UnixMs {
        match &self.0 {
            Crowd::One(holder) => holder.standing.deadline,
            Crowd::Many(many) => many.last_deadline(),
        }
    }

    /// Adds a holder, or puts him in the place of the one of the same owner, who is given back. Nobody else has his token.
    pub fn put(&mut self, holder: Holder) -> Option<Holder> {
        let old = match &mut self.0 {
            Crowd::One(old) if old.owner == holder.owner => return Some(std::mem::replace(old, holder)),
            Crowd::One(first) => {
                let mut tables = Box::new(Tables::default());
                tables.insert(first.clone());
                self.0 = Crowd::Many(tables);
                None
            }
            Crowd::Many(many) => many.of_owner(&holder.owner).map(Holder::token).and_then(|token| many.remove(token)),
        };
        if let Crowd::Many(many) = &mut self.0 {
            many.insert(holder);
        }
        old
    }

    /// Changes the holder of this token, but not his token.
    pub fn change<T>(&mut self, token: i64, change: impl FnOnce(&mut Holder) -> T) -> Option<T> {
        match &mut self.0 {
            Crowd::One(holder) => Some(holder).filter(|holder| holder.token() == token).map(change),
            Crowd::Many(many) => {
                let holder = many.by_token.get_mut(&token)?;
                let before = holder.standing.deadline;
                let changed = change(holder);
                let after = holder.standing.deadline;
                if before != after {
                    many.by_deadline.remove(&(before, token));
                    many.by_deadline.insert((after, token));
                }
                Some(changed)
            }
        }
    }

    /// Takes a holder out, unless he is the last.
    pub fn remove(&mut self, token: i64) -> Option<Holder> {
        let Crowd::Many(many) = &mut self.0 else { return None };
        let removed = many.remove(token)?;
        self.settle();
        Some(removed)
    }

    /// Takes those out whose lease is over, unless all are.
    pub fn expire(&mut self, now: UnixMs) -> Vec<Holder> {
        let mut over = Vec::new();
        let Crowd::Many(many) = &mut self.0 else { return over };
        while many.first_deadline() <= now && now < many.last_deadline() {
            over.extend(many.by_deadline.first().copied().and_then(|(_, token)| many.remove(token)));
        }
        self.settle();
        over
    }

    /// Bytes of the owners' names, and of the tables.
    pub fn heap_bytes(&self) -> usize {
        // What a node of a B-tree takes for an entry, when it is two thirds full.
        const ENTRY: usize = size_of::<(i64, Holder, (u64, i64), (UnixMs, i64))>().saturating_mul(3).div_euclid(2);
        match &self.0 {
            Crowd::One(holder) => holder.heap_bytes(),
            Crowd::Many(many) => many.names.saturating_add(many.by_token.len().saturating_mul(ENTRY)),
        }
    }

    fn settle(&mut self) {
        if let Crowd::Many(many) = &mut self.0
            && many.by_token.len() == 1
            && let Some((_, holder)) = many.by_token.pop_first()
        {
            self.0 = Crowd::One(holder);
        }
    }
}

impl Tables {
    fn first_deadline(&self) -> UnixMs {
        self.by_deadline.first().map_or(UnixMs::default(), |(at, _)| *at)
    }

    fn last_deadline(&self) -> UnixMs {
        self.by_deadline.last().map_or(UnixMs::default(), |(at, _)| *at)
    }

    fn hash(&self, owner: &[u8]) -> u64 {
        self.hasher.hash_one(owner)
    }

    fn of_owner(&self, owner: &[u8]) -> Option<&Holder> {
        let hash = self.hash(owner);
        let alike = self.by_owner.range((hash, i64::MIN)..=(hash, i64::MAX));
        alike.filter_map(|(_, token)| self.by_token.get(token)).find(|holder| *holder.owner == *owner)
    }

    fn insert(&mut self, holder: Holder) {
        let token = holder.token();
        self.names = self.names.saturating_add(holder.heap_bytes());
        self.by_owner.insert((self.hash(&holder.owner), token));
        self.by_deadline.insert((holder.standing.deadline, token));
        self.by_token.insert(token, holder);
    }

    fn remove(&mut self, token: i64) -> Option<Holder> {
        let holder = self.by_token.remove(&token)?;
        self.names = self.names.saturating_sub(holder.owner.len());
        self.by_owner.remove(&(self.hash(&holder.owner), token));
        self.by_deadline.remove(&(holder.standing.deadline, token));
        Some(holder)
    }
}

impl fmt::Debug for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Tables {
    fn eq(&self, other: &Tables) -> bool {
        self.by_token == other.by_token
    }
}

impl Eq for Tables {}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(owner: &str, token: i64, deadline: i64) -> Holder {
        let standing = Standing { token, holds: 1, deadline: UnixMs(deadline), keys: 1 };
        Holder::new(owner.as_bytes(), standing).unwrap()
    }

    fn owners(holders: &Holders) -> Vec<&str> {
        holders.iter().map(|holder| str::from_utf8(holder.owner()).unwrap()).collect()
    }

    #[test]
    fn holders_are_found_by_owner_and_token_in_the_order_of_their_grants() {
        let mut holders = Holders::one(holder("ann", 1, 30));
        for (owner, token, deadline) in [("bob", 2, 10), ("cy", 3, 20)] {
            assert_eq!(holders.put(holder(owner, token, deadline)), None);
        }
        assert_eq!((owners(&holders), holders.len(), holders.last_token()), (vec!["ann", "bob", "cy"], 3, 3));
        assert_eq!((holders.next_deadline(UnixMs(10)), holders.last_deadline()), (Some(UnixMs(20)), UnixMs(30)));
        assert_eq!(holders.of_owner(b"bob"), holders.of_token(2));
        assert_eq!((holders.of_owner(b"dan"), holders.of_token(4)), (None, None));
        assert_eq!(holders.put(holder("ann", 4, 5)).map(|old| old.token()), Some(1));
        assert_eq!((owners(&holders), holders.next_deadline(UnixMs(0))), (vec!["bob", "cy", "ann"], Some(UnixMs(5))));
    }

    #[test]
    fn a_change_of_the_deadline_is_seen() {
        let mut holders = Holders::one(holder("ann", 1, 30));
        assert_eq!(holders.change(2, |_| ()), None);
        holders.put(holder("bob", 2, 10));
        holders.change(2, |holder| holder.standing.deadline = UnixMs(40));
        assert_eq!((holders.next_deadline(UnixMs(0)), holders.last_deadline()), (Some(UnixMs(30)), UnixMs(40)));
    }

    #[test]
    fn the_last_one_stays() {
        let mut holders = Holders::one(holder("ann", 1, 30));
        assert_eq!(holders.remove(1), None);
        holders.put(holder("bob", 2, 10));
        holders.put(holder("cy", 3, 10));
        assert_eq!(holders.expire(UnixMs(9)), []);
        assert_eq!(holders.expire(UnixMs(10)).len(), 2);
        assert_eq!(holders, Holders::one(holder("ann", 1, 30)));
        assert_eq!(holders.expire(UnixMs(100)), []);
        holders.put(holder("bob", 2, 10));
        assert_eq!(holders.expire(UnixMs(100)), [], "all of them are over");
        assert_eq!(holders.remove(1).map(|gone| gone.token()), Some(1));
        assert_eq!(owners(&holders), ["bob"]);
    }

    #[test]
    fn only_long_names_take_memory_of_their_own() {
        for (length, bytes) in [(36, 0), (37, 37)] {
            let mut holders = Holders::one(holder(&"x".repeat(length), 1, 30));
            assert_eq!(holders.heap_bytes(), bytes);
            let alone = holders.heap_bytes();
            holders.put(holder("bob", 2, 10));
            holders.remove(2);
            assert_eq!(holders.heap_bytes(), alone);
        }
    }
}
