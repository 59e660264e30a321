//! Loading from a dump. The metadata comes before the keys, and not every key comes: expired ones are dropped.
//!
//! So records wait in an index of their own, which no read sees, until their key is confirmed. Any change of a key that
//! was not confirmed is about another key of that name, and discards what waits for it.
//!
//! To take each record out of one index and put it into another would double the time of a restart. But a server that starts
//! confirms its keys before anything else happens. So while the index itself has no keys, a record that is confirmed is only
//! marked, and stays where it is. With the next change of another kind, or at the end, the index that waited becomes the index
//! ([`TagIndex::settle`]). Until then reads see none of this: whoever may read while a dump is loaded settles it first.

use super::tag_index::{IndexError, TagIndex};
use super::tags::Invalidations;

/// What was read from a dump and is not yet part of the index.
#[derive(Debug)]
pub(super) struct Loading {
    index: TagIndex,
    /// Which of its records are confirmed: one bit by the record's id.
    confirmed: Vec<u64>,
    /// How many those are. None, unless the index itself has no keys.
    count: usize,
    /// The last retirement of the index itself: those in here have greater numbers.
    retirements: u64,
}

impl Loading {
    fn new(retirements: u64) -> Loading {
        let mut index = TagIndex::new(usize::MAX);
        index.tags.number_retirements_from(retirements);
        Loading { index, confirmed: Vec::new(), count: 0, retirements }
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        self.index.find(self.index.hash(key), key)
    }

    fn is_confirmed(&self, id: u32) -> bool {
        let (word, bit) = place(id);
        self.confirmed.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Whether it waited until now.
    fn confirm(&mut self, key: &[u8]) -> bool {
        let Some(id) = self.find(key).filter(|id| !self.is_confirmed(*id)) else { return false };
        let (word, bit) = place(id);
        if self.confirmed.len() <= word {
            self.confirmed.resize(word + 1, 0);
        }
        if let Some(word) = self.confirmed.get_mut(word) {
            *word |= bit;
        }
        self.count += 1;
        true
    }

    fn waiting(&self) -> usize {
        self.index.len() - self.count
    }

    /// Names of the keys that have not come.
    fn waiting_keys(&self) -> Vec<Box<[u8]>> {
        if self.waiting() == 0 {
            return Vec::new();
        }
        self.index.records_by_id().filter(|(id, _)| !self.is_confirmed(*id)).map(|(_, key)| key.into()).collect()
    }

    pub fn memory(&self) -> usize {
        size_of::<Loading>() - size_of::<TagIndex>()
            + self.index.memory()
            + self.confirmed.capacity() * size_of::<u64>()
    }
}

fn place(id: u32) -> (usize, u64) {
    (id as usize / 64, 1 << (id % 64))
}

impl TagIndex {
    /// A record of a dump: the tags of a key, and of each whether it is retired.
    pub fn load_record<'t>(
        &mut self,
        key: &[u8],
        tags: impl IntoIterator<Item = (&'t [u8], bool)>,
    ) -> Result<(), IndexError> {
        // A dump that names a key twice.
        let is_confirmed = |loading: &Loading| loading.find(key).is_some_and(|id| loading.is_confirmed(id));
        if self.loading.as_ref().is_some_and(|loading| loading.count > 0 && is_confirmed(loading)) {
            self.settle();
        }
        let retirements = self.tags.retirements();
        self.loading.get_or_insert_with(|| Box::new(Loading::new(retirements))).index.attach_tags(key, tags)
    }

    /// The key was really loaded: what waits for it counts from now on. Whether there was something. On an error the key
    /// has to be deleted: no tag would reach it.
    pub fn confirm(&mut self, key: &[u8]) -> Result<bool, IndexError> {
        let has_keys = !self.is_empty_itself();
        let Some(loading) = &mut self.loading else { return Ok(false) };
        if !has_keys && self.tags.retirements() == loading.retirements {
            return Ok(loading.confirm(key));
        }
        match loading.index.take(key, false) {
            Some(detached) => self.attach(key, &detached).map(|()| true),
            None => Ok(false),
        }
    }

    /// From now on reads see what was confirmed.
    pub fn settle(&mut self) {
        let Some(mut loading) = self.loading.take_if(|loading| loading.count > 0) else { return };
        let mut rest = Loading::new(loading.index.retirements());
        for key in loading.waiting_keys() {
            if let Some(detached) = loading.index.take(&key, false) {
                // There was room for it in an index with more in it.
                let _ = rest.index.attach(&key, &detached);
            }
        }
        self.become_index(loading.index);
        self.loading = (!rest.index.is_empty()).then(|| Box::new(rest));
    }

    /// The end of loading: drops what was not confirmed, and returns how many keys that were.
    pub fn drop_unconfirmed(&mut self) -> usize {
        let dropped = self.loading.take().map_or(0, |mut loading| {
            let waiting = loading.waiting();
            if loading.count > 0 {
                for key in loading.waiting_keys() {
                    loading.index.remove(&key);
                }
                self.become_index(loading.index);
            }
            waiting
        });
        self.tags.trim_history(usize::MAX);
        dropped
    }

    /// Takes over all keys of another index, and has none itself.
    fn become_index(&mut self, mut other: TagIndex) {
        other.tags.inherit(&self.tags);
        *self = other;
    }

    /// Whether a key is retired that is confirmed, or that may yet be.
    pub fn may_have_retired(&self) -> bool {
        self.has_retired() || self.loading.as_ref().is_some_and(|loading| loading.index.has_retired())
    }

    /// How many keys are confirmed and not yet seen by reads.
    pub(super) fn unsettled(&self) -> usize {
        self.loading.as_ref().map_or(0, |loading| loading.count)
    }

    /// Tags that were ever invalidated, for saving: see [`TagIndex::load_tag_history`].
    pub fn tag_history(&self) -> impl Iterator<Item = (&[u8], Invalidations)> {
        self.tags.history()
    }

    /// A line of a dump's tag history, to be loaded in the order of [`TagIndex::tag_history`]. The maximum is kept only
    /// from [`TagIndex::drop_unconfirmed`] on, because members of the tags may still come.
    pub fn load_tag_history(&mut self, tag: &[u8], invalidations: Invalidations) -> Result<(), IndexError> {
        Ok(self.tags.load_history(tag, invalidations)?)
    }

    /// Changes how many invalidated tags without members are remembered. If there are far more, they go bit by bit.
    pub fn set_history_max(&mut self, max: usize) {
        self.tags.set_history_max(max);
    }

    /// To be called before any change of a key.
    #[inline]
    pub(super) fn discard_unconfirmed(&mut self, key: &[u8]) {
        if self.loading.is_some() {
            self.settle();
            if let Some(loading) = &mut self.loading {
                loading.index.remove(key);
            }
        }
    }
}
