//! Keys that loaders are to load: one queue for each loader, in the order of need. Pure memory; what is done with it is in
//! [`loaders`](super::loaders).
//!
//! Invariants:
//! - a key stands in the queue of a loader once, at the greatest need that anybody had of it;
//! - there are never more jobs than the caller allows: the least needed go first, of those the oldest.
//!
//! Nothing of this is saved or replicated.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::rc::Rc;

use hashbrown::HashMap;

use crate::name::{Name, NameRef};

/// Why a key is to be loaded, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// Somebody asked for it, and there is no value.
    Miss,
    /// A stale value is being served.
    Stale,
    /// The value will soon be stale or gone.
    Ahead,
    /// It was named to WARM.
    Warm,
}

impl Reason {
    /// As LOADS has it.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Miss => "MISS",
            Reason::Stale => "STALE",
            Reason::Ahead => "AHEAD",
            Reason::Warm => "WARM",
        }
    }
}

/// Where a job stands: by its need, then by the order of arrival.
pub(super) type Rank = (Reason, u64);

/// A job, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub loader: Rc<Name>,
    pub key: Rc<[u8]>,
}

#[derive(Debug, Default)]
pub(super) struct Jobs {
    queues: HashMap<Rc<Name>, Queue>,
    all: BTreeMap<Rank, Job>,
    arrivals: u64,
}

#[derive(Debug, Default)]
struct Queue {
    order: BTreeMap<Rank, Rc<[u8]>>,
    ranks: HashMap<Rc<[u8]>, Rank>,
}

/// What came of a new job.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pushed {
    /// It was not in the queue.
    pub is_new: bool,
    /// The one that had to go for it, which may be the new one.
    pub dropped: Option<Job>,
}

impl Jobs {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Puts a key into the queue of a loader, or moves it to the front if the need is greater now. `max` are kept in all.
    pub fn push(&mut self, db: usize, loader: &[u8], key: &[u8], reason: Reason, max: usize) -> Pushed {
        let loader = match self.queues.get_key_value(&NameRef { db, key: loader }) {
            Some((loader, _)) => Rc::clone(loader),
            None => Rc::new(Name { db, key: loader.into() }),
        };
        let queue = self.queues.entry(Rc::clone(&loader)).or_default();
        let known = queue.ranks.get_key_value(key).map(|(key, rank)| (Rc::clone(key), *rank));
        if known.as_ref().is_some_and(|(_, (before, _))| *before <= reason) {
            return Pushed { is_new: false, dropped: None };
        }
        self.arrivals = self.arrivals.saturating_add(1);
        let rank = (reason, self.arrivals);
        let is_new = known.is_none();
        let key = match known {
            Some((key, old)) => {
                queue.order.remove(&old);
                self.all.remove(&old);
                key
            }
            None => Rc::from(key),
        };
        queue.order.insert(rank, Rc::clone(&key));
        queue.ranks.insert(Rc::clone(&key), rank);
        self.all.insert(rank, Job { loader, key });
        let dropped = if self.len() > max { self.drop_least_needed() } else { None };
        Pushed { is_new, dropped }
    }

    /// The job of this loader that comes after `after` (`None`: the first), and where it stands.
    pub fn next(&self, db: usize, loader: &[u8], after: Option<Rank>) -> Option<(Rank, Rc<[u8]>)> {
        let queue = self.queues.get(&NameRef { db, key: loader })?;
        let mut rest = queue.order.range((after.map_or(Unbounded, Excluded), Unbounded));
        rest.next().map(|(rank, key)| (*rank, Rc::clone(key)))
    }

    /// Takes out the job that stands there.
    pub fn remove(&mut self, rank: Rank) -> Option<Job> {
        let job = self.all.remove(&rank)?;
        if let Some(queue) = self.queues.get_mut(&job.loader) {
            queue.order.remove(&rank);
            queue.ranks.remove(&job.key);
            if queue.order.is_empty() {
                self.queues.remove(&job.loader);
            }
        }
        Some(job)
    }

    /// One database (`Some`) or all of them are empty now. O(jobs).
    pub fn flushed(&mut self, db: Option<usize>) {
        let other = |loader: &Name| db.is_some_and(|db| db != loader.db);
        self.queues.retain(|loader, _| other(loader));
        self.all.retain(|_, job| other(&job.loader));
    }

    fn drop_least_needed(&mut self) -> Option<Job> {
        let ((reason, _), _) = self.all.last_key_value()?;
        let rank = *self.all.range((*reason, 0)..).next()?.0;
        self.remove(rank)
    }
}

impl hashbrown::Equivalent<Rc<Name>> for NameRef<'_> {
    fn equivalent(&self, name: &Rc<Name>) -> bool {
        name.is(self.db, self.key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(jobs: &Jobs, loader: &str) -> Vec<String> {
        let (mut after, mut keys) = (None, Vec::new());
        while let Some((rank, key)) = jobs.next(0, loader.as_bytes(), after) {
            keys.push(format!("{} {}", rank.0.word(), String::from_utf8_lossy(&key)));
            after = Some(rank);
        }
        keys
    }

    fn push(jobs: &mut Jobs, key: &str, reason: Reason) -> Pushed {
        jobs.push(0, b"l", key.as_bytes(), reason, 3)
    }

    #[test]
    fn the_greatest_need_comes_first_and_each_key_once() {
        let mut jobs = Jobs::default();
        for (key, reason) in [("a", Reason::Warm), ("b", Reason::Stale), ("c", Reason::Warm), ("c", Reason::Miss)] {
            push(&mut jobs, key, reason);
        }
        assert_eq!(push(&mut jobs, "c", Reason::Stale), Pushed { is_new: false, dropped: None });
        assert_eq!(keys(&jobs, "l"), ["MISS c", "STALE b", "WARM a"]);
        assert_eq!(keys(&jobs, "other"), [""; 0]);
    }

    #[test]
    fn the_least_needed_and_oldest_goes_when_there_is_no_room() {
        let mut jobs = Jobs::default();
        for (key, reason) in [("a", Reason::Stale), ("b", Reason::Warm), ("c", Reason::Warm)] {
            push(&mut jobs, key, reason);
        }
        let dropped = |pushed: Pushed| String::from_utf8(pushed.dropped.unwrap().key.to_vec()).unwrap();
        assert_eq!(dropped(push(&mut jobs, "d", Reason::Miss)), "b");
        assert_eq!(dropped(push(&mut jobs, "e", Reason::Miss)), "c");
        assert_eq!(dropped(push(&mut jobs, "f", Reason::Warm)), "f", "nobody needs less");
        assert_eq!(keys(&jobs, "l"), ["MISS d", "MISS e", "STALE a"]);
    }

    #[test]
    fn a_flush_takes_the_jobs_of_its_database() {
        let mut jobs = Jobs::default();
        push(&mut jobs, "a", Reason::Warm);
        jobs.push(1, b"l", b"b", Reason::Warm, 3);
        jobs.flushed(Some(0));
        assert_eq!((keys(&jobs, "l"), jobs.len(), jobs.next(1, b"l", None).is_some()), (vec![], 1, true));
    }

    #[test]
    fn nothing_is_left_of_a_loader_without_jobs() {
        let mut jobs = Jobs::default();
        push(&mut jobs, "a", Reason::Warm);
        let (rank, _) = jobs.next(0, b"l", None).unwrap();
        assert!(jobs.remove(rank).is_some() && jobs.remove(rank).is_none());
        assert!(jobs.queues.is_empty() && jobs.all.is_empty());
    }

    proptest! {
        #[test]
        fn agrees_with_a_list(steps in prop::collection::vec((0..3_u8, 0..6_u8, 0..4_usize, any::<bool>()), 0..200)) {
            const REASONS: [Reason; 4] = [Reason::Miss, Reason::Stale, Reason::Ahead, Reason::Warm];
            let mut jobs = Jobs::default();
            // Reason, number of arrival, loader, key.
            let mut list: Vec<(Reason, usize, u8, u8)> = Vec::new();
            for (number, (loader, key, reason, pop)) in steps.into_iter().enumerate() {
                let reason = REASONS[reason];
                if pop {
                    let first = list.iter().filter(|job| job.2 == loader).min().copied();
                    let next = jobs.next(0, &[loader], None);
                    prop_assert_eq!(next.as_ref().map(|((reason, _), key)| (*reason, key[0])), first.map(|job| (job.0, job.3)));
                    if let Some((rank, _)) = next {
                        jobs.remove(rank);
                    }
                    list.retain(|job| Some(*job) != first);
                    continue;
                }
                jobs.push(0, &[loader], &[key], reason, 8);
                let known = list.iter().position(|job| (job.2, job.3) == (loader, key));
                if known.is_none_or(|at| list[at].0 > reason) {
                    known.map(|at| list.remove(at));
                    list.push((reason, number, loader, key));
                }
                if list.len() > 8 {
                    let least = list.iter().map(|job| job.0).max().unwrap();
                    let oldest = *list.iter().filter(|job| job.0 == least).min().unwrap();
                    list.retain(|job| *job != oldest);
                }
                prop_assert_eq!(jobs.len(), list.len());
            }
        }
    }
}
