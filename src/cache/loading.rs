//! Loading from a dump. The metadata comes before the keys, and not every key comes: expired ones are dropped.
//!
//! So records wait in an index of their own, which no read sees, until their key is confirmed. Any change of a key that
//! was not confirmed is about another key of that name, and discards what waits for it.

use super::tag_index::{IndexError, TagIndex};
use super::tags::Invalidations;

impl TagIndex {
    /// A record of a dump: the tags of a key, and of each whether it is retired.
    pub fn load_record<'t>(
        &mut self,
        key: &[u8],
        tags: impl IntoIterator<Item = (&'t [u8], bool)>,
    ) -> Result<(), IndexError> {
        self.unconfirmed.get_or_insert_with(|| Box::new(TagIndex::new(0))).attach_tags(key, tags)
    }

    /// The key was really loaded: what waits for it counts from now on. Whether there was something. On an error the key
    /// has to be deleted: no tag would reach it.
    pub fn confirm(&mut self, key: &[u8]) -> Result<bool, IndexError> {
        match self.unconfirmed.as_mut().and_then(|loading| loading.take(key, false)) {
            Some(detached) => self.attach(key, &detached).map(|()| true),
            None => Ok(false),
        }
    }

    /// The end of loading: drops what was not confirmed, and returns how many keys that were.
    pub fn drop_unconfirmed(&mut self) -> usize {
        self.tags.trim_history(usize::MAX);
        self.unconfirmed.take().map_or(0, |loading| loading.len())
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

    #[inline]
    pub(super) fn discard_unconfirmed(&mut self, key: &[u8]) {
        if let Some(loading) = &mut self.unconfirmed {
            loading.remove(key);
        }
    }
}
