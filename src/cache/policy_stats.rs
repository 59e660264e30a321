//! What is counted of the keys of one policy, for CACHE.STATS.

use std::cell::RefCell;
use std::rc::Rc;

use super::counters::Counters;

/// What is counted here is what [`Counters`] has of single keys. Loads and those who wait are not counted up and down: each holds
/// a mark, so that no way in which they end can be forgotten.
#[derive(Debug, Default)]
pub struct PolicyStats {
    counters: RefCell<Counters>,
    pub(super) load_mark: Mark,
    pub(super) wait_mark: Mark,
}

/// As many are out as there are clones of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark(Rc<()>);

impl Mark {
    fn out(&self) -> usize {
        Rc::strong_count(&self.0).saturating_sub(1)
    }
}

impl PolicyStats {
    /// As they are now.
    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    /// Loads of keys of this policy that are out.
    pub fn leases(&self) -> usize {
        self.load_mark.out()
    }

    /// Clients that wait for a load of such a key.
    pub fn waiters(&self) -> usize {
        self.wait_mark.out()
    }

    pub(super) fn count(&self, n: u64, which: impl FnOnce(&mut Counters) -> &mut u64) {
        // It is never borrowed for longer than this.
        if let Ok(mut counters) = self.counters.try_borrow_mut() {
            let counter = which(&mut counters);
            *counter = counter.saturating_add(n);
        }
    }
}
