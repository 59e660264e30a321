//! Version floors of one database: the highest version seen of each key.
//!
//! A floor refuses late writers: a row read before an update must not be cached after it. It is *live* while its key
//! exists. When the key goes the floor *lingers* for a while, since the late writer may still be on its way, and then it
//! is dead: no look-up sees it, and [`VersionFloors::sweep`] takes it away.
//!
//! Live floors are bounded by the keys there are, lingering ones by a maximum of their own: beyond it the one that would
//! die first is dropped, and counted.

use std::collections::BTreeSet;
use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;

use super::shards::ShardedTable;
use super::slab::{Full, Slab};
use crate::clock::UnixMs;

/// How many floors one change drops at most when there are more than allowed.
const TRIM_STEP: usize = 8;
/// A tree node's share of one entry of 16 bytes, at the usual two thirds of its 11 places.
const TREE_ENTRY: usize = 25;

/// See the [module](self). Every operation on one key costs O(log lingering).
#[derive(Debug)]
pub struct VersionFloors {
    hasher: DefaultHashBuilder,
    keys: ShardedTable,
    records: Slab,
    /// The lingering ones by the end of their life.
    lingering: BTreeSet<(UnixMs, u32)>,
    lingering_max: usize,
    dropped_by_cap: u64,
}

/// A floor as it is stored: `state u8, version u64, until i64, key length u32, key`, little-endian. `until` is 0 if live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Floor {
    version: u64,
    /// `None`: live.
    until: Option<UnixMs>,
}

const HEADER: usize = 21;
const LIVE: u8 = 1;
const LINGERING: u8 = 2;

impl VersionFloors {
    /// No floors, of which at most `lingering_max` will linger.
    pub fn new(lingering_max: usize) -> VersionFloors {
        VersionFloors {
            hasher: DefaultHashBuilder::default(),
            keys: ShardedTable::default(),
            records: Slab::default(),
            lingering: BTreeSet::new(),
            lingering_max,
            dropped_by_cap: 0,
        }
    }

    /// The highest version seen of `key`, unless that was forgotten.
    pub fn get(&self, key: &[u8], now: UnixMs) -> Option<u64> {
        let (_, floor) = self.alive(key, now)?;
        Some(floor.version)
    }

    /// The key exists now and was written with `version`: its floor is live, and as high as that at least.
    pub fn raise(&mut self, key: &[u8], version: u64, now: UnixMs) -> Result<(), Full> {
        let seen = self.get(key, now).unwrap_or(0);
        self.store(key, Floor { version: version.max(seen), until: None })
    }

    /// Refuses versions up to `version` until `until`, whether or not the key exists; the caller removes it. Whether that
    /// is news: `false`, and nothing is changed, if the floor is that high already.
    pub fn floor(&mut self, key: &[u8], version: u64, until: UnixMs, now: UnixMs) -> Result<bool, Full> {
        let old = self.alive(key, now).map(|(_, floor)| floor);
        if old.is_some_and(|old| old.version >= version) {
            return Ok(false);
        }
        let until = old.and_then(|old| old.until).map_or(until, |old| old.max(until));
        self.store(key, Floor { version, until: Some(until) })?;
        self.trim(TRIM_STEP);
        Ok(true)
    }

    /// The key is gone: a live floor lingers for `linger_ms`. One that lingers already keeps its time.
    pub fn key_gone(&mut self, key: &[u8], now: UnixMs, linger_ms: i64) {
        let Some((id, floor)) = self.alive(key, now) else { return };
        if floor.until.is_none() {
            let until = now.plus(linger_ms);
            write(self.records.get_mut(id), Floor { until: Some(until), ..floor }, key);
            self.lingering.insert((until, id));
            self.trim(TRIM_STEP);
        }
    }

    /// The value moved from one name to another: the new name is as high as both were, the old one lingers.
    pub fn rename(&mut self, old: &[u8], new: &[u8], now: UnixMs, linger_ms: i64) -> Result<(), Full> {
        let Some(version) = self.get(old, now) else { return Ok(()) };
        self.key_gone(old, now, linger_ms);
        self.raise(new, version, now)
    }

    /// A floor of a dump. All floors are loaded as lingering, the live ones with the time they are to have if their key
    /// does not come. The maximum is kept only from the next change on: keys may still come.
    pub fn load(&mut self, key: &[u8], version: u64, until: UnixMs) -> Result<(), Full> {
        self.store(key, Floor { version, until: Some(until) })
    }

    /// The key was really loaded: if it has a floor, that is live.
    pub fn confirm(&mut self, key: &[u8]) {
        if let Some((id, floor)) = self.find(key)
            && let Some(until) = floor.until
        {
            self.lingering.remove(&(until, id));
            write(self.records.get_mut(id), Floor { until: None, ..floor }, key);
        }
    }

    /// Takes away up to `max_steps` dead floors and such beyond the maximum. How many; fewer than `max_steps`: it is done.
    pub fn sweep(&mut self, now: UnixMs, max_steps: usize) -> usize {
        let mut steps = self.trim(max_steps);
        while steps < max_steps && self.lingering.first().is_some_and(|&(until, _)| until <= now) {
            self.drop_first();
            steps += 1;
        }
        steps
    }

    /// Changes how many may linger. If there are far more, they go bit by bit.
    pub fn set_lingering_max(&mut self, max: usize) {
        self.lingering_max = max;
        self.trim(TRIM_STEP);
    }

    /// Every floor: key, version, and the end of its life if it lingers. Dead ones are included until they are swept.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64, Option<UnixMs>)> {
        self.records.iter_from(0).filter_map(|(_, slot)| {
            let (floor, key) = read(slot)?;
            Some((key, floor.version, floor.until))
        })
    }

    /// Floors of keys that exist.
    pub fn live(&self) -> usize {
        self.keys.len() - self.lingering.len()
    }

    /// Floors of keys that are gone, dead ones included until they are swept.
    pub fn lingering(&self) -> usize {
        self.lingering.len()
    }

    /// Floors that were dropped before their time because too many lingered.
    pub fn dropped_by_cap(&self) -> u64 {
        self.dropped_by_cap
    }

    /// Bytes of memory held, without the allocator's own overhead. O(floors / 400).
    pub fn memory(&self) -> usize {
        size_of::<VersionFloors>() + self.keys.memory() + self.records.memory() + self.lingering.len() * TREE_ENTRY
    }

    fn find(&self, key: &[u8]) -> Option<(u32, Floor)> {
        let eq = |id| read(self.records.get(id)).is_some_and(|(_, found)| found == key);
        let id = self.keys.find(self.hasher.hash_one(key), eq)?;
        let (floor, _) = read(self.records.get(id))?;
        Some((id, floor))
    }

    fn alive(&self, key: &[u8], now: UnixMs) -> Option<(u32, Floor)> {
        self.find(key).filter(|(_, floor)| floor.until.is_none_or(|until| until > now))
    }

    fn store(&mut self, key: &[u8], floor: Floor) -> Result<(), Full> {
        let id = match self.find(key) {
            Some((id, old)) => {
                if let Some(until) = old.until {
                    self.lingering.remove(&(until, id));
                }
                id
            }
            None => self.add(key)?,
        };
        if let Some(until) = floor.until {
            self.lingering.insert((until, id));
        }
        write(self.records.get_mut(id), floor, key);
        Ok(())
    }

    fn add(&mut self, key: &[u8]) -> Result<u32, Full> {
        u32::try_from(key.len()).map_err(|_| Full)?;
        let id = self.records.allocate(HEADER + key.len())?;
        self.keys.insert(self.hasher.hash_one(key), id, |id| hash_of(&self.hasher, &self.records, id));
        Ok(id)
    }

    fn trim(&mut self, steps: usize) -> usize {
        let steps = steps.min(self.lingering.len().saturating_sub(self.lingering_max));
        for _ in 0..steps {
            self.drop_first();
        }
        self.dropped_by_cap += steps as u64;
        steps
    }

    fn drop_first(&mut self) {
        let Some((_, id)) = self.lingering.pop_first() else { return };
        let hash = hash_of(&self.hasher, &self.records, id);
        self.keys.remove(hash, |found| found == id, |id| hash_of(&self.hasher, &self.records, id));
        self.records.free(id);
    }
}

fn hash_of(hasher: &DefaultHashBuilder, records: &Slab, id: u32) -> u64 {
    read(records.get(id)).map_or(0, |(_, key)| hasher.hash_one(key))
}

fn read(slot: &[u8]) -> Option<(Floor, &[u8])> {
    let ([state], rest) = slot.split_first_chunk()?;
    let (version, rest) = rest.split_first_chunk()?;
    let (until, rest) = rest.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let until = (*state == LINGERING).then(|| UnixMs(i64::from_le_bytes(*until)));
    let floor = Floor { version: u64::from_le_bytes(*version), until };
    Some((floor, rest.get(..u32::from_le_bytes(*len) as usize)?))
}

fn write(slot: &mut [u8], floor: Floor, key: &[u8]) {
    let (state, until) = floor.until.map_or((LIVE, UnixMs(0)), |until| (LINGERING, until));
    let mut header = [0; HEADER];
    let fields =
        [&[state][..], &floor.version.to_le_bytes(), &until.0.to_le_bytes(), &(key.len() as u32).to_le_bytes()];
    for (place, byte) in header.iter_mut().zip(fields.into_iter().flatten()) {
        *place = *byte;
    }
    if let Some((place, rest)) = slot.split_first_chunk_mut::<HEADER>()
        && let Some(name) = rest.get_mut(..key.len())
    {
        *place = header;
        name.copy_from_slice(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_000);

    #[test]
    fn a_live_floor_only_rises() {
        let mut floors = VersionFloors::new(10);
        floors.raise(b"k", 5, NOW).unwrap();
        floors.raise(b"k", 3, NOW).unwrap();
        assert_eq!(floors.get(b"k", UnixMs(i64::MAX)), Some(5));
        assert_eq!((floors.live(), floors.lingering(), floors.get(b"other", NOW)), (1, 0, None));
    }

    #[test]
    fn it_lingers_when_the_key_goes_and_dies_in_time() {
        let mut floors = VersionFloors::new(10);
        floors.raise(b"k", 5, NOW).unwrap();
        floors.key_gone(b"k", NOW, 60);
        floors.key_gone(b"k", UnixMs(1_050), 60);
        assert_eq!((floors.get(b"k", UnixMs(1_059)), floors.get(b"k", UnixMs(1_060))), (Some(5), None));
        assert_eq!(floors.sweep(UnixMs(1_059), 10), 0);
        floors.raise(b"k", 2, UnixMs(1_060)).unwrap();
        assert_eq!(floors.get(b"k", UnixMs(1_060)), Some(2), "a dead floor refuses nothing");
        floors.key_gone(b"k", UnixMs(1_060), 0);
        assert_eq!((floors.get(b"k", UnixMs(1_060)), floors.sweep(UnixMs(1_060), 10)), (None, 1));
        assert_eq!(floors.memory(), size_of::<VersionFloors>());
    }

    #[test]
    fn an_event_before_its_fill_sets_a_floor_and_never_lowers_one() {
        let mut floors = VersionFloors::new(10);
        assert_eq!(floors.floor(b"k", 7, UnixMs(1_100), NOW), Ok(true));
        assert_eq!(floors.floor(b"k", 7, UnixMs(9_999), NOW), Ok(false));
        assert_eq!(floors.floor(b"k", 9, UnixMs(1_050), NOW), Ok(true));
        assert_eq!(floors.get(b"k", UnixMs(1_099)), Some(9), "its life is not shortened");
        assert_eq!(floors.get(b"k", UnixMs(1_100)), None);
        floors.raise(b"k", 12, NOW).unwrap();
        assert_eq!(floors.floor(b"k", 20, UnixMs(1_100), NOW), Ok(true));
        assert_eq!((floors.live(), floors.get(b"k", UnixMs(1_100))), (0, None));
    }

    #[test]
    fn a_rename_carries_the_version_and_leaves_a_lingering_one() {
        let mut floors = VersionFloors::new(10);
        floors.raise(b"old", 5, NOW).unwrap();
        floors.raise(b"new", 3, NOW).unwrap();
        floors.rename(b"old", b"new", NOW, 60).unwrap();
        assert_eq!((floors.get(b"old", NOW), floors.get(b"old", UnixMs(1_060))), (Some(5), None));
        assert_eq!(floors.get(b"new", UnixMs(9_999)), Some(5));
        floors.rename(b"none", b"new", NOW, 60).unwrap();
        assert_eq!(floors.get(b"new", NOW), Some(5));
    }

    #[test]
    fn beyond_the_maximum_the_first_to_die_is_dropped() {
        let mut floors = VersionFloors::new(2);
        for (key, until) in [(b"a", 30), (b"b", 10), (b"c", 20)] {
            floors.floor(key, 1, NOW.plus(until), NOW).unwrap();
        }
        assert_eq!((floors.lingering(), floors.dropped_by_cap()), (2, 1));
        assert_eq!((floors.get(b"b", NOW), floors.get(b"c", NOW)), (None, Some(1)));
        floors.set_lingering_max(0);
        assert_eq!((floors.lingering(), floors.dropped_by_cap()), (0, 3));
    }

    #[test]
    fn a_dump_gives_back_the_same_floors() {
        let mut saved = VersionFloors::new(10);
        saved.raise(b"live", 1, NOW).unwrap();
        saved.raise(b"expired while the server was down", 2, NOW).unwrap();
        saved.floor(b"lingering", 3, UnixMs(1_100), NOW).unwrap();
        let mut loaded = VersionFloors::new(0);
        for (key, version, until) in saved.iter() {
            loaded.load(key, version, until.unwrap_or(UnixMs(1_060))).unwrap();
        }
        loaded.set_lingering_max(10);
        loaded.confirm(b"live");
        loaded.confirm(b"without a floor");
        assert_eq!((loaded.live(), loaded.lingering()), (1, 2));
        let at = |key: &[u8], now| loaded.get(key, UnixMs(now));
        assert_eq!((at(b"live", 9_999), at(b"lingering", 1_099), at(b"lingering", 1_100)), (Some(1), Some(3), None));
        assert_eq!(at(b"expired while the server was down", 1_060), None);
    }
}
