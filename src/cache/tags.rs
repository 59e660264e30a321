//! The tags of one database: names, current cohorts, retired cohorts, and the history of tags that lost their members.
//!
//! What exists, and until when:
//! - a cohort exists while it has members (for the length of one change, an empty one about to be joined);
//! - a tag exists while it has a current cohort, or a retired one that is not drained yet, or is remembered in the history.

use std::collections::BTreeMap;
use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use smallvec::SmallVec;

use super::arena::Arena;
use super::cohort::Cohort;
use super::shards::ShardedTable;
use super::slab::Full;
use crate::clock::UnixMs;

/// How many remembered tags one change drops at most when there are more than allowed.
const TRIM_STEP: usize = 8;
/// A map node's share of one entry of 8 + 4 bytes, at the usual two thirds of its 11 places.
const MAP_ENTRY: usize = 20;

#[derive(Debug)]
pub(super) struct Tag {
    pub name: Box<[u8]>,
    /// The current cohort.
    pub cohort: Option<u32>,
    /// A retired cohort of this tag that takes further members (a retired key that is renamed or loaded).
    retired: Option<u32>,
    retired_cohorts: u32,
    invalidated: Option<Box<Invalidated>>,
}

/// Boxed: most tags are never invalidated.
#[derive(Debug, Default)]
struct Invalidated {
    stats: Invalidations,
    /// Its place in the history; 0: not there.
    remembered: u64,
}

/// How often a tag was invalidated, and when last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Invalidations {
    pub count: u64,
    pub last: UnixMs,
}

#[derive(Debug)]
pub(super) struct TagTable {
    hasher: DefaultHashBuilder,
    names: ShardedTable,
    tags: Arena<Tag>,
    cohorts: Arena<Cohort>,
    /// Retired cohorts by the number of their retirement: the oldest is reclaimed first.
    retired: BTreeMap<u64, u32>,
    /// The retired cohorts whose members are not to be removed but to become stale, and the moment since when.
    staled: BTreeMap<u32, UnixMs>,
    retired_members: usize,
    retirements: u64,
    /// Tags without any members that were invalidated once, the longest empty first.
    history: BTreeMap<u64, u32>,
    remembered: u64,
    history_max: usize,
    /// Bytes that names, statistics and lists of members hold.
    heap: usize,
}

impl TagTable {
    pub fn new(hasher: DefaultHashBuilder, history_max: usize) -> TagTable {
        TagTable {
            hasher,
            names: ShardedTable::default(),
            tags: Arena::default(),
            cohorts: Arena::default(),
            retired: BTreeMap::new(),
            staled: BTreeMap::new(),
            retired_members: 0,
            retirements: 0,
            history: BTreeMap::new(),
            remembered: 0,
            history_max,
            heap: 0,
        }
    }

    pub fn find(&self, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.names.find(hash, |id| self.tags.get(id).is_some_and(|tag| *tag.name == *name))
    }

    pub fn tag(&self, id: u32) -> Option<&Tag> {
        self.tags.get(id)
    }

    pub fn tags(&self) -> impl Iterator<Item = &Tag> {
        self.tags.iter().map(|(_, tag)| tag)
    }

    pub fn cohort(&self, id: u32) -> Option<&Cohort> {
        self.cohorts.get(id)
    }

    pub fn cohorts(&self) -> impl Iterator<Item = (u32, &Cohort)> {
        self.cohorts.iter()
    }

    /// Off its tag, be it for removal or to become stale.
    pub fn is_retired(&self, cohort: u32) -> bool {
        self.cohorts.get(cohort).is_some_and(|cohort| cohort.retirement != 0)
    }

    /// Off its tag, and its members are to be removed.
    pub fn is_dead(&self, cohort: u32) -> bool {
        self.is_retired(cohort) && self.stale_since(cohort).is_none()
    }

    /// Since when the members of a retired cohort are to be stale; `None` if they are not.
    pub fn stale_since(&self, cohort: u32) -> Option<UnixMs> {
        self.staled.get(&cohort).copied()
    }

    /// The number of the last retirement.
    pub fn retirements(&self) -> u64 {
        self.retirements
    }

    /// The name of the tag that a cohort belongs or belonged to.
    pub fn name_of(&self, cohort: u32) -> &[u8] {
        self.cohorts.get(cohort).and_then(|cohort| self.tags.get(cohort.tag)).map_or(&[], |tag| &tag.name)
    }

    /// Tags with at least one member that is not retired.
    pub fn current_cohorts(&self) -> usize {
        self.cohorts.len() - self.retired.len()
    }

    pub fn retired_members(&self) -> usize {
        self.retired_members
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    pub fn retired_id(&self, retirement: u64) -> Option<u32> {
        self.retired.get(&retirement).copied()
    }

    pub fn retired_cohort(&self, retirement: u64) -> Option<&Cohort> {
        self.cohorts.get(self.retired_id(retirement)?)
    }

    pub fn oldest_retirement(&self) -> Option<u64> {
        self.retired.first_key_value().map(|(&retirement, _)| retirement)
    }

    /// The current cohort of the tag called `name`; both are made if missing.
    ///
    /// A made cohort is empty until it is joined: the caller joins it or calls [`TagTable::drop_if_empty`].
    pub fn current_cohort_named(&mut self, name: &[u8]) -> Result<u32, Full> {
        let id = self.find_or_add(name)?;
        self.current_cohort(id)
    }

    /// The current cohort of the tag that `cohort` belongs to; made if missing.
    pub fn current_cohort_beside(&mut self, cohort: u32) -> Result<u32, Full> {
        let tag = self.cohorts.get(cohort).ok_or(Full)?.tag;
        self.current_cohort(tag)
    }

    /// A retired cohort of the tag called `name`; made if missing. This counts as no invalidation.
    pub fn retired_cohort_named(&mut self, name: &[u8]) -> Result<u32, Full> {
        let id = self.find_or_add(name)?;
        if let Some(cohort) = self.tags.get(id).and_then(|tag| tag.retired) {
            return Ok(cohort);
        }
        let made = self.cohorts.insert(Cohort::new(id, self.retirements + 1));
        match made {
            Ok(cohort) => {
                self.enqueue_retired(id, cohort, None);
            }
            Err(Full) => self.settle(id),
        }
        made
    }

    /// Adds a record to a cohort and returns its position there.
    pub fn join(&mut self, cohort: u32, record: u32) -> u32 {
        let Some(cohort) = self.cohorts.get_mut(cohort) else { return 0 };
        let before = cohort.heap();
        let position = cohort.push(record);
        self.heap += cohort.heap() - before;
        self.retired_members += usize::from(cohort.retirement != 0);
        position
    }

    /// Takes the member at `position` out. If another record moved there, it is returned and must be told.
    pub fn leave(&mut self, cohort: u32, position: u32) -> Option<u32> {
        let members = self.cohorts.get_mut(cohort)?;
        let before = members.heap();
        let moved = members.swap_remove(position);
        self.heap = self.heap + members.heap() - before;
        self.retired_members -= usize::from(members.retirement != 0);
        if members.is_empty() {
            self.drop_if_empty(cohort);
        }
        moved
    }

    /// A member's record has another id now.
    pub fn renumber(&mut self, cohort: u32, position: u32, record: u32) {
        if let Some(cohort) = self.cohorts.get_mut(cohort) {
            cohort.set(position, record);
        }
    }

    /// Ends a cohort without members, and its tag if nothing else needs it.
    pub fn drop_if_empty(&mut self, cohort: u32) {
        if !self.cohorts.get(cohort).is_some_and(Cohort::is_empty) {
            return;
        }
        let Some(Cohort { tag: id, retirement, .. }) = self.cohorts.remove(cohort) else { return };
        let Some(tag) = self.tags.get_mut(id) else { return };
        if retirement == 0 {
            tag.cohort = None;
        } else {
            self.retired.remove(&retirement);
            self.staled.remove(&cohort);
            tag.retired_cohorts -= 1;
            tag.retired.take_if(|retired| *retired == cohort);
        }
        self.settle(id);
        self.trim_history(TRIM_STEP);
    }

    /// Takes the current cohort off its tag, in O(log retired cohorts), and with it those cohorts of the tag that were still
    /// to become stale. The number and the members of each; none if the tag has no members.
    pub fn retire(&mut self, name: &[u8], now: UnixMs) -> SmallVec<[(u64, usize); 1]> {
        let Some(id) = self.find(name) else { return SmallVec::new() };
        let of_tag = |cohort: &u32| self.cohorts.get(*cohort).is_some_and(|cohort| cohort.tag == id);
        let staled: SmallVec<[u32; 1]> = self.staled.keys().copied().filter(of_tag).collect();
        let mut retired: SmallVec<_> = self.retire_current(id, now, None).into_iter().collect();
        for cohort in staled {
            self.staled.remove(&cohort);
            retired.extend(self.renumber_retired(id, cohort));
        }
        retired
    }

    /// As [`TagTable::retire`], but the members are to become stale as of `now`; those that are to already stay so.
    pub fn stale(&mut self, name: &[u8], now: UnixMs) -> Option<(u64, usize)> {
        let id = self.find(name)?;
        self.retire_current(id, now, Some(now))
    }

    fn retire_current(&mut self, id: u32, now: UnixMs, stale: Option<UnixMs>) -> Option<(u64, usize)> {
        let tag = self.tags.get_mut(id)?;
        let cohort = tag.cohort.take()?;
        let stats = &mut tag.invalidated_mut(&mut self.heap).stats;
        *stats = Invalidations { count: stats.count + 1, last: now };
        let members = self.cohorts.get_mut(cohort)?;
        members.retirement = self.retirements + 1;
        let len = members.len();
        self.retired_members += len;
        Some((self.enqueue_retired(id, cohort, stale), len))
    }

    /// Members that were to become stale are to be removed now. A load that began in between must notice, so the
    /// retirement gets a new number.
    fn renumber_retired(&mut self, id: u32, cohort: u32) -> Option<(u64, usize)> {
        let members = self.cohorts.get_mut(cohort)?;
        let (old, len) = (std::mem::replace(&mut members.retirement, self.retirements + 1), members.len());
        self.retired.remove(&old);
        if let Some(tag) = self.tags.get_mut(id) {
            tag.retired_cohorts -= 1;
        }
        Some((self.enqueue_retired(id, cohort, None), len))
    }

    pub fn set_history_max(&mut self, max: usize) {
        self.history_max = max;
        self.trim_history(TRIM_STEP);
    }

    /// Drops up to `steps` of the longest empty tags beyond the maximum.
    pub fn trim_history(&mut self, steps: usize) {
        for _ in 0..steps.min(self.history.len().saturating_sub(self.history_max)) {
            if let Some((_, id)) = self.history.pop_first() {
                self.remove_tag(id);
            }
        }
    }

    /// Restores what a dump says of a tag. Does not trim: the members of the tag may come later in the dump.
    pub fn load_history(&mut self, name: &[u8], stats: Invalidations) -> Result<(), Full> {
        let id = self.find_or_add(name)?;
        if let Some(tag) = self.tags.get_mut(id) {
            tag.invalidated_mut(&mut self.heap).stats = stats;
        }
        self.settle(id);
        Ok(())
    }

    /// The next retirement is the one after this.
    pub fn number_retirements_from(&mut self, last: u64) {
        self.retirements = last;
    }

    /// Remembers what another table does, whose tags have no members.
    pub fn inherit(&mut self, other: &TagTable) {
        self.history_max = other.history_max;
        for (tag, stats) in other.history() {
            // Without room, how often a tag was invalidated is forgotten, as it is beyond the maximum.
            if self.load_history(tag, stats).is_err() {
                return;
            }
        }
    }

    /// The tags that were ever invalidated. First those with members, then the others, the longest empty first: loaded in
    /// this order, the history is the same again.
    pub fn history(&self) -> impl Iterator<Item = (&[u8], Invalidations)> {
        let with_members = self.tags().filter(|tag| tag.invalidated.as_ref().is_some_and(|i| i.remembered == 0));
        let empty = self.history.values().filter_map(|&id| self.tags.get(id));
        with_members.chain(empty).map(|tag| (&*tag.name, tag.invalidations()))
    }

    /// How many tags without members are remembered.
    pub fn history_len(&self) -> usize {
        self.history.len()
    }

    /// Bytes of memory held, not counting this struct. O(shards of names).
    pub fn memory(&self) -> usize {
        let maps = (self.retired.len() + self.staled.len() + self.history.len()) * MAP_ENTRY;
        self.names.memory() + self.tags.memory() + self.cohorts.memory() + maps + self.heap
    }

    fn find_or_add(&mut self, name: &[u8]) -> Result<u32, Full> {
        if let Some(id) = self.find(name) {
            return Ok(id);
        }
        let tag = Tag { name: name.into(), cohort: None, retired: None, retired_cohorts: 0, invalidated: None };
        let id = self.tags.insert(tag)?;
        self.heap += name.len();
        let rehash = |id| self.tags.get(id).map_or(0, |tag| self.hasher.hash_one(&*tag.name));
        self.names.insert(self.hasher.hash_one(name), id, rehash);
        Ok(id)
    }

    fn current_cohort(&mut self, id: u32) -> Result<u32, Full> {
        let tag = self.tags.get_mut(id).ok_or(Full)?;
        if let Some(cohort) = tag.cohort {
            return Ok(cohort);
        }
        let made = self.cohorts.insert(Cohort::new(id, 0));
        tag.cohort = made.ok();
        self.settle(id);
        made
    }

    fn enqueue_retired(&mut self, id: u32, cohort: u32, stale: Option<UnixMs>) -> u64 {
        self.retirements += 1;
        self.retired.insert(self.retirements, cohort);
        if let Some(tag) = self.tags.get_mut(id) {
            if stale.is_none() {
                tag.retired = Some(cohort);
            }
            tag.retired_cohorts += 1;
        }
        if let Some(at) = stale {
            self.staled.insert(cohort, at);
        }
        self.settle(id);
        self.retirements
    }

    /// After a tag won or lost a cohort: takes it out of the history, puts it there, or removes it.
    fn settle(&mut self, id: u32) {
        let Some(tag) = self.tags.get_mut(id) else { return };
        let in_use = tag.cohort.is_some() || tag.retired_cohorts > 0;
        match &mut tag.invalidated {
            Some(invalidated) if in_use => {
                self.history.remove(&std::mem::take(&mut invalidated.remembered));
            }
            Some(invalidated) if invalidated.remembered == 0 => {
                self.remembered += 1;
                invalidated.remembered = self.remembered;
                self.history.insert(self.remembered, id);
            }
            None if !in_use => self.remove_tag(id),
            _ => {}
        }
    }

    fn remove_tag(&mut self, id: u32) {
        let Some(tag) = self.tags.get(id) else { return };
        let hash = self.hasher.hash_one(&*tag.name);
        let rehash = |id| self.tags.get(id).map_or(0, |tag| self.hasher.hash_one(&*tag.name));
        self.names.remove(hash, |found| found == id, rehash);
        if let Some(tag) = self.tags.remove(id) {
            self.heap -= tag.heap();
        }
    }
}

impl Tag {
    pub fn invalidations(&self) -> Invalidations {
        self.invalidated.as_ref().map_or_else(Invalidations::default, |invalidated| invalidated.stats)
    }

    /// Bytes of memory held beyond this struct.
    pub fn heap(&self) -> usize {
        self.name.len() + if self.invalidated.is_some() { size_of::<Invalidated>() } else { 0 }
    }

    fn invalidated_mut(&mut self, heap: &mut usize) -> &mut Invalidated {
        self.invalidated.get_or_insert_with(|| {
            *heap += size_of::<Invalidated>();
            Box::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(history_max: usize) -> TagTable {
        TagTable::new(DefaultHashBuilder::default(), history_max)
    }

    fn join(tags: &mut TagTable, name: &[u8], record: u32) -> (u32, u32) {
        let cohort = tags.current_cohort_named(name).unwrap();
        (cohort, tags.join(cohort, record))
    }

    #[test]
    fn a_tag_goes_with_its_last_member() {
        let mut tags = table(10);
        let (cohort, first) = join(&mut tags, b"a", 100);
        join(&mut tags, b"a", 101);
        assert_eq!((tags.name_of(cohort), tags.current_cohorts()), (&b"a"[..], 1));
        assert_eq!(tags.leave(cohort, first), Some(101));
        assert_eq!(tags.leave(cohort, first), None);
        assert_eq!((tags.find(b"a"), tags.current_cohorts(), tags.memory()), (None, 0, 0));
    }

    #[test]
    fn a_made_cohort_that_nobody_joins_leaves_nothing() {
        let mut tags = table(10);
        let cohort = tags.current_cohort_named(b"a").unwrap();
        tags.drop_if_empty(cohort);
        assert_eq!((tags.find(b"a"), tags.memory()), (None, 0));
    }

    #[test]
    fn an_invalidated_tag_is_remembered_until_the_history_is_full() {
        let mut tags = table(2);
        for (time, name) in [(1, b"a"), (2, b"b"), (3, b"c")] {
            let (cohort, position) = join(&mut tags, name, 9);
            assert_eq!(tags.retire(name, UnixMs(time))[..], [(time as u64, 1)]);
            assert!(tags.retire(name, UnixMs(time)).is_empty(), "no members");
            tags.leave(cohort, position);
        }
        assert_eq!(tags.find(b"a"), None);
        let names: Vec<_> = tags.history().map(|(name, stats)| (name.to_vec(), stats.count, stats.last)).collect();
        assert_eq!(names, [(b"b".to_vec(), 1, UnixMs(2)), (b"c".to_vec(), 1, UnixMs(3))]);
        let (cohort, position) = join(&mut tags, b"b", 9);
        tags.set_history_max(0);
        assert_eq!(tags.find(b"c"), None);
        let id = tags.find(b"b").unwrap();
        assert_eq!(tags.tag(id).unwrap().invalidations().count, 1, "a tag that is back has its history");
        tags.leave(cohort, position);
        assert_eq!(tags.memory(), 0);
    }

    #[test]
    fn retired_cohorts_are_reclaimed_oldest_first_and_keep_their_tag() {
        let mut tags = table(0);
        let (first, _) = join(&mut tags, b"a", 1);
        tags.retire(b"a", UnixMs(1));
        let (second, _) = join(&mut tags, b"a", 1);
        tags.retire(b"a", UnixMs(2));
        assert_eq!((tags.oldest_retirement(), tags.retired_members()), (Some(1), 2));
        assert_eq!(tags.retired_cohort_named(b"a"), Ok(second));
        tags.leave(first, 0);
        assert_eq!((tags.oldest_retirement(), tags.name_of(second)), (Some(2), &b"a"[..]));
        tags.leave(second, 0);
        assert!(!tags.has_retired() && tags.find(b"a").is_none());
    }
}
