//! The tags of one database's keys: key -> tags and tag -> keys.
//!
//! A key with tags has a [record](super::record): its name and, for each tag, the cohort it is in and its position there.
//! `keys` finds the record by name, a cohort lists the ids of its records. Every position in a record and every id in a
//! cohort name each other ([`TagIndex::check_invariants`]).
//!
//! All changes go through [`TagIndex::replace`]. It keeps the place of a membership that stays: a scan of the tag
//! ([`TagIndex::tag_keys`]) relies on it.
//!
//! The hasher is seeded at random, so nobody can choose names that collide.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;

pub use super::retirement::{Retired, Retirement};
pub use super::scan::{KeyTags, TagInfo};
pub use super::slab::Full;
pub use super::tags::Invalidations;

use super::loading::Loading;
use super::record::{self, MAX_MEMBERSHIPS, Membership, Memberships, Record};
use super::shards::ShardedTable;
use super::slab::Slab;
use super::tags::TagTable;

/// Tags that a key may carry.
pub const MAX_TAGS: usize = 64;

/// The position of a membership that is planned but not made.
const PENDING: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexError {
    /// The key would carry more than [`MAX_TAGS`] tags, or be in more than 255 cohorts, retired ones included.
    TooManyTags,
    /// No room for another record, tag or cohort: 2^32 of each, less what records of many sizes leave unused.
    Full,
}

impl From<Full> for IndexError {
    fn from(_: Full) -> IndexError {
        IndexError::Full
    }
}

/// See the [module](self). Unless a method says otherwise, a key costs one look-up and a tag O(1).
#[derive(Debug)]
pub struct TagIndex {
    hasher: DefaultHashBuilder,
    keys: ShardedTable,
    pub(super) records: Slab,
    pub(super) tags: TagTable,
    pub(super) loading: Option<Box<Loading>>,
}

/// The tags of a key on their way to another name or database, with what is retired of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    tags: Vec<(Box<[u8]>, bool)>,
}

impl TagIndex {
    /// An empty index that remembers up to `history_max` invalidated tags without members.
    pub fn new(history_max: usize) -> TagIndex {
        let hasher = DefaultHashBuilder::default();
        TagIndex {
            keys: ShardedTable::default(),
            records: Slab::default(),
            tags: TagTable::new(hasher.clone(), history_max),
            loading: None,
            hasher,
        }
    }

    /// Keys with at least one tag, retired keys included.
    pub fn len(&self) -> usize {
        self.keys.len() + self.unsettled()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn is_empty_itself(&self) -> bool {
        self.keys.len() == 0
    }

    /// Tags that some key carries.
    pub fn tag_count(&self) -> usize {
        self.tags.current_cohorts()
    }

    /// Tags that no key carries, and that are remembered for their invalidations.
    pub fn history_len(&self) -> usize {
        self.tags.history_len()
    }

    /// Bytes of memory held, without the allocator's own overhead. O(keys / 400).
    pub fn memory(&self) -> usize {
        let loading = self.loading.as_ref().map_or(0, |loading| loading.memory());
        size_of::<TagIndex>() + self.keys.memory() + self.records.memory() + self.tags.memory() + loading
    }

    /// The tags of a key in the order given, without those it was invalidated by.
    pub fn tags(&self, key: &[u8]) -> impl Iterator<Item = &[u8]> {
        let id = self.find(self.hash(key), key);
        id.into_iter().flat_map(|id| self.memberships(id)).filter_map(|membership| {
            let live = !self.tags.is_dead(membership.cohort);
            live.then(|| self.tags.name_of(membership.cohort))
        })
    }

    /// Gives a key exactly these tags; a retired key is retired no more. Tags named twice count once; none: as
    /// [`TagIndex::remove`].
    pub fn set_tags(&mut self, key: &[u8], tags: &[&[u8]]) -> Result<(), IndexError> {
        self.discard_unconfirmed(key);
        let hash = self.hash(key);
        let id = self.find(hash, key);
        if id.is_some_and(|id| self.carries_exactly(id, tags)) {
            return Ok(());
        }
        let old = self.memberships_of(id);
        self.plan_and_replace(key, hash, id, &old, |index, plan| {
            tags.iter().try_for_each(|tag| index.plan_current(plan, &old, tag).map(|_| ()))
        })
    }

    /// Adds tags to those the key has, and returns how many are new. What is retired of the key stays retired.
    pub fn add_tags(&mut self, key: &[u8], tags: &[&[u8]]) -> Result<usize, IndexError> {
        self.discard_unconfirmed(key);
        let hash = self.hash(key);
        let id = self.find(hash, key);
        let old = self.memberships_of(id);
        let mut added = 0;
        self.plan_and_replace(key, hash, id, &old, |index, plan| {
            plan.extend_from_slice(&old);
            for tag in tags {
                added += usize::from(index.plan_current(plan, &old, tag)?);
            }
            Ok(())
        })?;
        Ok(added)
    }

    /// Takes tags from a key (`None`: all it has) and returns how many it had. What is retired of the key stays retired:
    /// its value is invalidated already.
    pub fn remove_tags(&mut self, key: &[u8], tags: Option<&[&[u8]]>) -> usize {
        self.discard_unconfirmed(key);
        let hash = self.hash(key);
        let Some(id) = self.find(hash, key) else { return 0 };
        let old = self.memberships_of(Some(id));
        let mut kept = old.clone();
        kept.retain(|membership| {
            let named = tags.is_none_or(|tags| tags.contains(&self.tags.name_of(membership.cohort)));
            !named || self.tags.is_retired(membership.cohort)
        });
        let removed = old.len() - kept.len();
        if removed > 0 && self.replace(key, hash, Some(id), &old, &mut kept).is_err() {
            // The shorter record needs a slot of another size and there is none. A key that forgets its tags would
            // never be invalidated again, so it keeps them.
            return 0;
        }
        removed
    }

    /// Forgets a key: it is gone. Whether it was known.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        self.discard_unconfirmed(key);
        self.remove_record(key, self.hash(key))
    }

    /// Forgets a key and hands out its tags, for [`TagIndex::attach`] under the new name or in another index. `graceless`: if the
    /// key is to become stale, it is invalid instead.
    pub fn take(&mut self, key: &[u8], graceless: bool) -> Option<Detached> {
        self.discard_unconfirmed(key);
        let hash = self.hash(key);
        let id = self.find(hash, key)?;
        let tags = self.memberships(id).map(|Membership { cohort, .. }| {
            let retired = self.tags.is_dead(cohort) || graceless && self.tags.is_retired(cohort);
            (self.tags.name_of(cohort).into(), retired)
        });
        let tags = tags.collect();
        self.remove_record(key, hash);
        Some(Detached { tags })
    }

    /// Gives a key the tags that were taken from another, instead of what it had. On an error the key has to be deleted:
    /// no tag would reach it.
    pub fn attach(&mut self, key: &[u8], detached: &Detached) -> Result<(), IndexError> {
        self.attach_tags(key, detached.tags())
    }

    pub(super) fn attach_tags<'t>(
        &mut self,
        key: &[u8],
        tags: impl IntoIterator<Item = (&'t [u8], bool)>,
    ) -> Result<(), IndexError> {
        self.discard_unconfirmed(key);
        let hash = self.hash(key);
        let id = self.find(hash, key);
        let old = self.memberships_of(id);
        self.plan_and_replace(key, hash, id, &old, |index, plan| {
            for (tag, retired) in tags {
                if retired {
                    let cohort = index.tags.retired_cohort_named(tag)?;
                    index.plan_cohort(plan, &old, cohort)?;
                } else {
                    index.plan_current(plan, &old, tag)?;
                }
            }
            Ok(())
        })
    }

    /// A plain write hit an invalidated key, so its value is new: what was retired of it goes back to the tags' current
    /// cohorts. Whether there was something to do.
    ///
    /// On an error the key stays retired and will be removed: a miss is always right.
    pub fn spare(&mut self, key: &[u8]) -> Result<bool, IndexError> {
        self.discard_unconfirmed(key);
        if !self.is_retired(key) {
            return Ok(false);
        }
        let hash = self.hash(key);
        let id = self.find(hash, key);
        let old = self.memberships_of(id);
        self.plan_and_replace(key, hash, id, &old, |index, plan| {
            for membership in &old {
                let cohort = index.tags.current_cohort_beside(membership.cohort)?;
                index.plan_cohort(plan, &old, cohort)?;
            }
            Ok(())
        })?;
        Ok(true)
    }

    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        self.keys.find(hash, |id| Record::read(self.records.get(id)).key == key)
    }

    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    pub(super) fn memberships(&self, id: u32) -> impl ExactSizeIterator<Item = Membership> {
        Record::read(self.records.get(id)).memberships()
    }

    fn memberships_of(&self, id: Option<u32>) -> Memberships {
        id.map_or_else(Memberships::new, |id| self.memberships(id).collect())
    }

    /// The fast path of a cache: the same key written again with the same tags.
    fn carries_exactly(&self, id: u32, tags: &[&[u8]]) -> bool {
        let memberships = self.memberships(id);
        memberships.len() == tags.len()
            && memberships.zip(tags).all(|(membership, tag)| {
                self.tags.name_of(membership.cohort) == *tag && !self.tags.is_retired(membership.cohort)
            })
    }

    /// Plans the membership of the current cohort of `tag`; whether it is not in the plan yet.
    fn plan_current(&mut self, plan: &mut Memberships, old: &[Membership], tag: &[u8]) -> Result<bool, IndexError> {
        let cohort = self.tags.current_cohort_named(tag)?;
        self.plan_cohort(plan, old, cohort)
    }

    fn plan_cohort(&self, plan: &mut Memberships, old: &[Membership], cohort: u32) -> Result<bool, IndexError> {
        let same = |membership: &&Membership| membership.cohort == cohort;
        if plan.iter().any(|membership| same(&membership)) {
            return Ok(false);
        }
        plan.push(old.iter().find(same).copied().unwrap_or(Membership { cohort, position: PENDING }));
        let within = plan.len() <= MAX_TAGS
            || plan.len() <= MAX_MEMBERSHIPS
                && plan.iter().filter(|membership| !self.tags.is_retired(membership.cohort)).count() <= MAX_TAGS;
        if within { Ok(true) } else { Err(IndexError::TooManyTags) }
    }

    /// Carries out what `make_plan` plans. If that fails, nothing is changed.
    fn plan_and_replace(
        &mut self,
        key: &[u8],
        hash: u64,
        id: Option<u32>,
        old: &[Membership],
        make_plan: impl FnOnce(&mut TagIndex, &mut Memberships) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let mut plan = Memberships::new();
        let done = make_plan(self, &mut plan).and_then(|()| self.replace(key, hash, id, old, &mut plan));
        if done.is_err() {
            for membership in plan.iter().filter(|membership| membership.position == PENDING) {
                self.tags.drop_if_empty(membership.cohort);
            }
        }
        done
    }

    /// Gives the key, known as record `id` with the memberships `old` or new, the planned ones.
    fn replace(
        &mut self,
        key: &[u8],
        hash: u64,
        id: Option<u32>,
        old: &[Membership],
        plan: &mut Memberships,
    ) -> Result<(), IndexError> {
        if plan.is_empty() {
            self.remove_record(key, hash);
            return Ok(());
        }
        let len = record::len(key, plan.len())?;
        let new_id = match id {
            Some(id) if self.records.fits(id, len) => id,
            _ => self.records.allocate(len)?,
        };
        // From here on nothing fails.
        for membership in old {
            if !plan.contains(membership) {
                self.leave(*membership);
            }
        }
        for membership in plan.iter_mut() {
            if membership.position == PENDING {
                membership.position = self.tags.join(membership.cohort, new_id);
            } else if id != Some(new_id) {
                self.tags.renumber(membership.cohort, membership.position, new_id);
            }
        }
        record::write(self.records.get_mut(new_id), plan, key);
        match id {
            Some(id) if id == new_id => {}
            Some(id) => {
                self.records.free(id);
                self.keys.replace(hash, id, new_id);
            }
            None => {
                let rehash = |id| self.hasher.hash_one(Record::read(self.records.get(id)).key);
                self.keys.insert(hash, new_id, rehash);
            }
        }
        Ok(())
    }

    fn remove_record(&mut self, key: &[u8], hash: u64) -> bool {
        let records = &self.records;
        let eq = |id| Record::read(records.get(id)).key == key;
        let rehash = |id| self.hasher.hash_one(Record::read(records.get(id)).key);
        let Some(id) = self.keys.remove(hash, eq, rehash) else { return false };
        let count = self.memberships(id).len();
        for which in 0..count {
            let membership = self.memberships(id).nth(which);
            if let Some(membership) = membership {
                self.leave(membership);
            }
        }
        self.records.free(id);
        true
    }

    fn leave(&mut self, membership: Membership) {
        if let Some(moved) = self.tags.leave(membership.cohort, membership.position) {
            record::set_position(self.records.get_mut(moved), membership.cohort, membership.position);
        }
    }
}

impl Detached {
    /// The tags, and of each whether it is retired.
    pub fn tags(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.tags.iter().map(|(tag, retired)| (&**tag, *retired))
    }
}
