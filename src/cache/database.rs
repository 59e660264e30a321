//! What is known of the keys of one database.

use std::collections::HashSet;

use super::freshness::{Freshness, FreshnessTable};
use super::negatives::Negatives;
use super::tag_index::{IndexError, TagIndex};
use super::version_floor::VersionFloors;
use crate::clock::UnixMs;
use crate::config::Config;

#[derive(Debug)]
pub(super) struct Database {
    pub tags: TagIndex,
    pub floors: VersionFloors,
    pub freshness: FreshnessTable,
    pub negatives: Negatives,
    /// While loading: records whose key has still to come.
    pub unconfirmed: FreshnessTable,
    /// While loading: keys whose floors are live again when they come. A floor that lingered beside a key, since a plain
    /// write had brought the key back, goes on to linger.
    pub awaited: HashSet<Box<[u8]>>,
}

impl Database {
    pub fn new(config: &Config) -> Database {
        Database {
            tags: TagIndex::new(bound(config.tag_history_max)),
            floors: VersionFloors::new(bound(config.version_floors_max)),
            freshness: FreshnessTable::default(),
            negatives: Negatives::new(bound(config.negatives_max)),
            unconfirmed: FreshnessTable::default(),
            awaited: HashSet::new(),
        }
    }

    pub fn gone(&mut self, key: &[u8], now: UnixMs, linger_ms: i64) {
        self.tags.remove(key);
        // Most caches use no versions, and each deletion would look for one.
        if self.floors.live() > 0 {
            self.floors.key_gone(key, now, linger_ms);
        }
    }

    /// The end of loading: what waits for keys that did not come is dropped.
    pub fn drop_unconfirmed(&mut self) {
        self.tags.drop_unconfirmed();
        self.unconfirmed = FreshnessTable::default();
        self.awaited = HashSet::new();
    }

    pub fn limit(&mut self, config: &Config) {
        self.tags.set_history_max(bound(config.tag_history_max));
        self.floors.set_lingering_max(bound(config.version_floors_max));
        self.negatives.set_max(bound(config.negatives_max));
    }

    /// The value that was there is gone: its age, and that there was none, means nothing any more.
    pub fn forget_value(&mut self, key: &[u8]) {
        for table in [&mut self.freshness, &mut self.unconfirmed] {
            if !table.is_empty() {
                table.remove(key);
            }
        }
        if !self.negatives.is_empty() {
            self.negatives.remove(key);
        }
    }

    pub fn is_retired(&self, key: &[u8]) -> bool {
        let has_grace = || self.freshness.get(key).is_some_and(|(_, freshness)| freshness.grace_ms > 0);
        self.tags.retired(key).is_some_and(|retired| retired.stale_since.is_none() || !has_grace())
    }

    /// What is known of the value's age, with what a tag did to it that the reclaimer has not come to yet.
    pub fn effective_freshness(&self, key: &[u8]) -> Option<Freshness> {
        let (_, freshness) = self.freshness.get(key)?;
        let staled = self.tags.retired(key).and_then(|retired| retired.stale_since);
        Some(Freshness { soft: staled.map_or(freshness.soft, |at| freshness.soft.min(at)), ..freshness })
    }

    pub fn confirm_freshness(&mut self, key: &[u8]) -> Result<(), IndexError> {
        if let Some((_, freshness)) = self.unconfirmed.remove(key) {
            self.freshness.put(key, freshness)?;
        }
        Ok(())
    }

    /// Is anything known of the key that goes with it?
    pub fn knows(&self, key: &[u8]) -> bool {
        self.tags.knows(key) || self.freshness.get(key).is_some()
    }

    /// Whether anything was known.
    pub fn forget(&mut self, key: &[u8]) -> bool {
        let aged = self.freshness.remove(key).is_some();
        self.tags.remove(key) || aged
    }

    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
            && self.tags.loading.is_none()
            && self.tags.tag_history().next().is_none()
            && self.freshness.is_empty()
            && self.unconfirmed.is_empty()
            && self.negatives.is_empty()
            && self.floors.live() == 0
            && self.floors.lingering() == 0
    }
}

pub(super) fn bound(setting: i64) -> usize {
    usize::try_from(setting).unwrap_or(0)
}
