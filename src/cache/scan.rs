//! Walks over the index, and what is known of a tag.

use super::record::{Membership, Record};
use super::tag_index::TagIndex;
use super::tags::Invalidations;

/// What is known of a tag; all zero for one never heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TagInfo {
    /// Keys that carry it and were not invalidated by it.
    pub keys: usize,
    /// Memory held for it: its name, its list of keys, and their references to it.
    pub bytes: usize,
    pub invalidations: Invalidations,
}

/// What a look at many tags tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagSurvey {
    /// Tags that some key carries.
    pub looked_at: usize,
    pub never_invalidated: usize,
    /// The one that most keys carry, and how many.
    pub largest: Option<(Box<[u8]>, usize)>,
}

/// A key and its tags, for saving.
pub struct KeyTags<'a> {
    index: &'a TagIndex,
    record: Record<'a>,
}

impl<'a> KeyTags<'a> {
    pub fn key(&self) -> &'a [u8] {
        self.record.key
    }

    /// The tags in their order, and of each whether it is retired. `graceless`: a key that is to become stale has no grace, and
    /// so is invalid.
    pub fn tags(&self, graceless: bool) -> impl ExactSizeIterator<Item = (&'a [u8], bool)> {
        let tags = &self.index.tags;
        self.record.memberships().map(move |Membership { cohort, .. }| {
            let retired = tags.is_dead(cohort) || graceless && tags.is_retired(cohort);
            (tags.name_of(cohort), retired)
        })
    }
}

impl TagIndex {
    /// Up to `count` keys (at least 1) that carry `tag`, and the cursor to go on with. Start with 0; 0 is the end. O(count).
    ///
    /// As SCAN: a key that carries the tag from the first call to the last is returned at least once, whatever else comes
    /// and goes. The walk goes down the list of members; the cursor is the position above the next one, so what was not
    /// returned yet is below it. A member that leaves is replaced by the last one, which thereby moves down, never up: a
    /// member below the cursor stays below. New ones go to the end. One above the cursor may move below and be returned
    /// twice. An invalidation in between ends the list: those who carry the tag afterwards were not there throughout.
    pub fn tag_keys(&self, tag: &[u8], cursor: u64, count: usize) -> (u64, Vec<&[u8]>) {
        let cohort = self.tags.find(tag).and_then(|id| self.tags.cohort(self.tags.tag(id)?.cohort?));
        let Some(cohort) = cohort else { return (0, Vec::new()) };
        let end = match usize::try_from(cursor) {
            Ok(cursor) if cursor > 0 => cursor.min(cohort.len()),
            _ => cohort.len(),
        };
        let start = end.saturating_sub(count.max(1));
        let ids = (start..end).rev().filter_map(|position| cohort.get(position));
        (start as u64, ids.map(|id| Record::read(self.records.get(id)).key).collect())
    }

    pub fn tag_info(&self, tag: &[u8]) -> TagInfo {
        let Some(tag) = self.tags.find(tag).and_then(|id| self.tags.tag(id)) else { return TagInfo::default() };
        let (keys, list) = match tag.cohort.and_then(|id| self.tags.cohort(id)) {
            Some(cohort) => (cohort.len(), size_of_val(cohort) + cohort.heap()),
            None => (0, 0),
        };
        let bytes = size_of_val(tag) + tag.heap() + list + keys * size_of::<Membership>();
        TagInfo { keys, bytes, invalidations: tag.invalidations() }
    }

    /// Looks at the tags of this database too, until it has been `most` in all.
    pub fn survey(&self, survey: &mut TagSurvey, most: usize) {
        for tag in self.tags.tags().take(most) {
            if survey.looked_at >= most {
                return;
            }
            let Some(cohort) = tag.cohort.and_then(|id| self.tags.cohort(id)) else { continue };
            survey.looked_at = survey.looked_at.saturating_add(1);
            if tag.invalidations().count == 0 {
                survey.never_invalidated = survey.never_invalidated.saturating_add(1);
            }
            if survey.largest.as_ref().is_none_or(|(_, keys)| cohort.len() > *keys) {
                survey.largest = Some((tag.name.clone(), cohort.len()));
            }
        }
    }

    /// Every key with its tags, unconfirmed ones excepted.
    pub fn records(&self) -> impl Iterator<Item = KeyTags<'_>> {
        self.records.iter_from(0).map(|(_, slot)| KeyTags { index: self, record: Record::read(slot) })
    }

    pub(super) fn records_by_id(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.records.iter_from(0).map(|(id, slot)| (id, Record::read(slot).key))
    }

    /// Up to `count` keys and the cursor to go on with (0 to start, 0 at the end), for a slow walk over everything that
    /// need not be exact: a key that is written during the walk may be missed.
    pub fn sample(&self, cursor: u64, count: usize) -> (u64, Vec<&[u8]>) {
        let Ok(from) = u32::try_from(cursor) else { return (0, Vec::new()) };
        let mut records = self.records.iter_from(from);
        let keys = records.by_ref().take(count).map(|(_, slot)| Record::read(slot).key).collect();
        (records.next().map_or(0, |(id, _)| id.into()), keys)
    }
}
