//! Who waits for which key: one first-in-first-out queue for each, and when somebody has to look at it again. Pure memory of one
//! family; what is done with it is the family's business.
//!
//! Invariants:
//! - waiters are numbered in the order of arrival, over all keys. Who waits for several stands in all their queues under one
//!   number, so whoever came first of all heads all of his queues, and no two can wait for each other.
//!
//! Nothing of this is saved or replicated, and it is keyed by the number of the database, since that is what clients wait in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use hashbrown::HashMap;

use crate::clock::UnixMs;
use crate::name::{Name, NameRef};
use crate::server::Waiter;

/// What one waiter wants.
pub trait Request {
    fn db(&self) -> usize;

    /// The keys he waits for: one or several.
    fn keys(&self) -> &[Box<[u8]>];
}

#[derive(Debug)]
pub struct WaitQueues<R> {
    requests: BTreeMap<Waiter, Rc<R>>,
    queues: HashMap<Name, Queue>,
    /// When the queues are to be looked at next, by the clock.
    wakes: BTreeSet<(UnixMs, Name)>,
    /// Queues to be looked at now.
    due: VecDeque<Name>,
}

#[derive(Debug, Default)]
struct Queue {
    waiters: BTreeSet<Waiter>,
    wake: Option<UnixMs>,
    due: bool,
}

impl<R> Default for WaitQueues<R> {
    fn default() -> WaitQueues<R> {
        WaitQueues { requests: BTreeMap::new(), queues: HashMap::new(), wakes: BTreeSet::new(), due: VecDeque::new() }
    }
}

impl<R: Request> WaitQueues<R> {
    /// Nobody waits anywhere: the fast way out.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn len_of(&self, db: usize, key: &[u8]) -> usize {
        self.queue(db, key).map_or(0, |queue| queue.waiters.len())
    }

    /// Who waits for this key, in the order of arrival.
    pub fn waiters(&self, db: usize, key: &[u8]) -> impl Iterator<Item = &R> {
        let waiters = self.queue(db, key).into_iter().flat_map(|queue| &queue.waiters);
        waiters.filter_map(|waiter| self.requests.get(waiter).map(Rc::as_ref))
    }

    /// A waiter takes his place at the end.
    pub fn join(&mut self, waiter: Waiter, request: R) {
        for key in request.keys() {
            let name = Name { db: request.db(), key: key.clone() };
            self.queues.entry(name).or_default().waiters.insert(waiter);
        }
        self.requests.insert(waiter, Rc::new(request));
    }

    /// Who came first.
    pub fn head(&self, db: usize, key: &[u8]) -> Option<(Waiter, Rc<R>)> {
        let waiter = *self.queue(db, key)?.waiters.first()?;
        Some((waiter, Rc::clone(self.requests.get(&waiter)?)))
    }

    /// Does he come first wherever he waits?
    pub fn heads_all(&self, waiter: Waiter) -> bool {
        self.requests.get(&waiter).is_some_and(|request| {
            let first = |key: &[u8]| self.queue(request.db(), key).and_then(|queue| queue.waiters.first().copied());
            request.keys().iter().all(|key| first(key) == Some(waiter))
        })
    }

    /// Is it time to look at this queue?
    pub fn is_due(&self, db: usize, key: &[u8], now: UnixMs) -> bool {
        self.queue(db, key).is_some_and(|queue| queue.due || queue.wake.is_some_and(|at| at <= now))
    }

    /// Takes a waiter out of all his queues, at which somebody has to look then.
    pub fn leave(&mut self, waiter: Waiter) -> Option<Rc<R>> {
        let request = self.requests.remove(&waiter)?;
        for key in request.keys() {
            if let Some(queue) = self.queue_mut(request.db(), key) {
                queue.waiters.remove(&waiter);
            }
            self.look_at(request.db(), key);
        }
        Some(request)
    }

    /// Something has happened to the key: its queue, if there is one, is to be looked at. False: it was to be anyway.
    #[inline]
    pub fn look_at(&mut self, db: usize, key: &[u8]) -> bool {
        !self.queues.is_empty() && self.mark(db, key)
    }

    fn mark(&mut self, db: usize, key: &[u8]) -> bool {
        let is_new = self.queue_mut(db, key).is_some_and(|queue| !std::mem::replace(&mut queue.due, true));
        if is_new {
            self.due.push_back(Name { db, key: key.into() });
        }
        is_new
    }

    /// Takes the last [`look_at`](WaitQueues::look_at) back.
    pub fn never_mind(&mut self, db: usize, key: &[u8]) {
        if self.due.back().is_some_and(|name| name.is(db, key)) {
            self.due.pop_back();
            if let Some(queue) = self.queue_mut(db, key) {
                queue.due = false;
            }
        }
    }

    /// The same for all keys of a database, or of all databases. O(queues).
    pub fn look_at_all(&mut self, db: Option<usize>) {
        for (name, queue) in &mut self.queues {
            if db.is_none_or(|db| db == name.db) && !std::mem::replace(&mut queue.due, true) {
                self.due.push_back(name.clone());
            }
        }
    }

    /// The queue has been looked at; `wake`: when by the clock it is to be looked at again. A queue without waiters goes.
    pub fn looked_at(&mut self, db: usize, key: &[u8], wake: Option<UnixMs>) {
        let Some((name, queue)) = self.queues.get_key_value(&NameRef { db, key }) else { return };
        let wake = wake.filter(|_| !queue.waiters.is_empty());
        if queue.wake != wake {
            let (name, old) = (name.clone(), queue.wake);
            if let Some(old) = old {
                self.wakes.remove(&(old, name.clone()));
            }
            if let Some(queue) = self.queues.get_mut(&name) {
                queue.wake = wake;
            }
            self.wakes.extend(wake.map(|at| (at, name)));
        }
        if self.queue(db, key).is_some_and(|queue| queue.waiters.is_empty() && !queue.due) {
            self.queues.remove(&NameRef { db, key });
        }
    }

    /// When the next queue is to be looked at.
    #[inline]
    pub fn next_look(&self) -> Option<UnixMs> {
        if self.due.is_empty() { self.wakes.first().map(|(at, _)| *at) } else { Some(UnixMs(0)) }
    }

    /// A queue to be looked at. To be followed by [`looked_at`](WaitQueues::looked_at).
    pub fn next_due(&mut self, now: UnixMs) -> Option<Name> {
        if let Some(name) = self.due.pop_front() {
            if let Some(queue) = self.queue_mut(name.db, &name.key) {
                queue.due = false;
            }
            return Some(name);
        }
        self.wakes.first().filter(|(at, _)| *at <= now).map(|(_, name)| name.clone())
    }

    fn queue(&self, db: usize, key: &[u8]) -> Option<&Queue> {
        self.queues.get(&NameRef { db, key })
    }

    fn queue_mut(&mut self, db: usize, key: &[u8]) -> Option<&mut Queue> {
        self.queues.get_mut(&NameRef { db, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Keys(Vec<Box<[u8]>>);

    impl Request for Keys {
        fn db(&self) -> usize {
            0
        }

        fn keys(&self) -> &[Box<[u8]>] {
            &self.0
        }
    }

    fn request(keys: &[&str]) -> Keys {
        Keys(keys.iter().map(|key| key.as_bytes().into()).collect())
    }

    fn due(queues: &mut WaitQueues<Keys>, now: i64) -> Option<String> {
        let name = queues.next_due(UnixMs(now))?;
        queues.looked_at(name.db, &name.key, None);
        Some(String::from_utf8(name.key.into()).unwrap())
    }

    #[test]
    fn who_waits_for_several_heads_all_of_them_or_not() {
        let mut queues = WaitQueues::default();
        queues.join(Waiter(1), request(&["a"]));
        queues.join(Waiter(2), request(&["a", "b"]));
        queues.join(Waiter(3), request(&["b"]));
        assert_eq!(queues.head(0, b"b").map(|(waiter, _)| waiter), Some(Waiter(2)));
        assert!(!queues.heads_all(Waiter(2)));
        queues.leave(Waiter(1));
        assert!(queues.heads_all(Waiter(2)));
        queues.leave(Waiter(2));
        assert_eq!(queues.head(0, b"b").map(|(waiter, _)| waiter), Some(Waiter(3)));
        assert_eq!((queues.len(), queues.len_of(0, b"a"), queues.len_of(0, b"b")), (1, 0, 1));
    }

    #[test]
    fn a_queue_is_looked_at_once_when_somebody_left_and_when_a_lease_ends() {
        let mut queues = WaitQueues::default();
        queues.join(Waiter(1), request(&["a"]));
        queues.join(Waiter(2), request(&["a"]));
        assert_eq!(queues.next_look(), None);
        queues.looked_at(0, b"a", Some(UnixMs(50)));
        assert_eq!(queues.next_look(), Some(UnixMs(50)));
        assert_eq!(due(&mut queues, 49), None);
        queues.leave(Waiter(1));
        queues.look_at(0, b"a");
        assert_eq!(queues.next_look(), Some(UnixMs(0)));
        assert_eq!(due(&mut queues, 0).as_deref(), Some("a"));
        assert_eq!(queues.next_look(), None);
        queues.looked_at(0, b"a", Some(UnixMs(50)));
        assert_eq!(due(&mut queues, 50).as_deref(), Some("a"));
    }

    #[test]
    fn nothing_is_left_of_a_queue_that_everybody_left() {
        let mut queues = WaitQueues::default();
        queues.join(Waiter(1), request(&["a", "b"]));
        queues.looked_at(0, b"a", Some(UnixMs(50)));
        queues.leave(Waiter(1));
        while due(&mut queues, 0).is_some() {}
        assert!(queues.queues.is_empty() && queues.wakes.is_empty() && queues.due.is_empty());
    }
}
