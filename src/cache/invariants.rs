//! What must hold after every change of a [`TagIndex`], for the property tests.

use std::collections::HashSet;

use super::tag_index::TagIndex;

impl TagIndex {
    /// Checks every reference of the index; the first contradiction as text. O(everything).
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut memberships = 0;
        let mut keys = 0;
        for record in self.records() {
            keys += 1;
            memberships += self.check_key(record.key())?;
        }
        ensure(keys == self.len(), || format!("{keys} records, {} keys", self.len()))?;
        self.check_cohorts(memberships)?;
        self.check_tags()
    }

    fn check_key(&self, key: &[u8]) -> Result<usize, String> {
        let id = self.find(self.hash(key), key).ok_or_else(|| format!("{key:?} is not found"))?;
        let mut cohorts = HashSet::new();
        for membership in self.memberships(id) {
            let there = self.tags.cohort(membership.cohort).and_then(|c| c.get(membership.position as usize));
            ensure(there == Some(id), || format!("{key:?}: {membership:?} names {there:?}, not {id}"))?;
            ensure(cohorts.insert(membership.cohort), || format!("{key:?} is twice in {membership:?}"))?;
        }
        ensure(!cohorts.is_empty(), || format!("{key:?} has no tags"))?;
        Ok(cohorts.len())
    }

    fn check_cohorts(&self, memberships: usize) -> Result<(), String> {
        let (mut members, mut retired, mut retired_cohorts) = (0, 0, 0);
        for (id, cohort) in self.tags.cohorts() {
            ensure(!cohort.is_empty(), || format!("cohort {id} is empty"))?;
            members += cohort.len();
            if cohort.retirement == 0 {
                let tag = self.tags.tag(cohort.tag).and_then(|tag| tag.cohort);
                ensure(tag == Some(id), || format!("cohort {id} is current, its tag has {tag:?}"))?;
            } else {
                retired += cohort.len();
                retired_cohorts += 1;
                let listed = self.tags.retired_cohort(cohort.retirement).is_some();
                ensure(listed, || format!("retired cohort {id} is not queued"))?;
            }
        }
        ensure(members == memberships, || format!("{members} members, {memberships} memberships"))?;
        ensure(retired == self.retired_len(), || format!("{retired} retired, counted {}", self.retired_len()))?;
        ensure((retired_cohorts > 0) == self.has_retired(), || "has_retired is wrong".to_owned())
    }

    fn check_tags(&self) -> Result<(), String> {
        let mut current = 0;
        for tag in self.tags.tags() {
            let found = self.tags.find(&tag.name).and_then(|id| self.tags.tag(id));
            ensure(found.is_some_and(|found| std::ptr::eq(found, tag)), || format!("{:?} is not found", tag.name))?;
            current += usize::from(tag.cohort.is_some());
        }
        ensure(current == self.tag_count(), || format!("{current} tags, counted {}", self.tag_count()))
    }
}

fn ensure(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(complaint()) }
}
