//! The most read keys, in memory that does not grow with the number of keys.
//!
//! Source: "A High-Performance Algorithm for Identifying Frequent Items in Data Streams" (Anderson et al., 2017): as many counters
//! as fit; when they are full the median count is taken off all of them, and those that come to nothing make room. What was
//! taken off is remembered, so that an estimate is never too low, and too high by at most that: a 1024th of all reads, since each
//! time half of the counters lose as much. A read costs one lookup, and making room is O(1) amortized. Rejected: a count-min
//! sketch, which knows counts but no keys; Space-Saving with its sorted list, which costs more at each read.
//!
//! The first reads of a tick are all counted, fewer of them after a busy one; then one in 16 is, in the mean, and counts for 16, so that a
//! busy server pays little. Counts are halved as time goes on, so that what was hot yesterday is not hot today.

use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;
use smallvec::SmallVec;

use crate::clock::UnixMs;

/// How many keys are counted in one database.
const COUNTERS: usize = 2048;
/// Longer keys are not counted.
const KEY_MAX: usize = 512;
/// How many reads are all counted between two [ticks](HotKeys::tick).
const ALL_COUNTED: u32 = 128;
/// The same after a tick with more reads than that.
const COUNTED_WHEN_BUSY: u32 = 16;
/// Beyond those one in so many, in the mean.
const ONE_IN: u64 = 16;
/// After so many milliseconds a read counts half.
const HALF_LIFE_MS: i64 = 300_000;

/// 0 to 30 are skipped, so that one in 16 is counted, and no rhythm of the callers decides which.
pub(super) const SKIP_MOST: u64 = 2 * (ONE_IN - 1);

/// What a read counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    Nothing,
    One,
    /// For itself and those that are skipped.
    Many,
}

impl Weight {
    pub fn reads(self) -> u64 {
        match self {
            Weight::Nothing => 0,
            Weight::One => 1,
            Weight::Many => ONE_IN,
        }
    }
}

#[derive(Debug)]
pub(super) struct HotKeys {
    databases: HashMap<usize, Counters>,
    /// Reads that are still all counted before this tick is over.
    left: u32,
    /// What `left` was when the tick began.
    all: u32,
    /// Of those after them in this tick, how many were counted.
    sampled: u64,
    /// Reads that are skipped before the next one is counted.
    skip: u64,
    halved_at: Option<UnixMs>,
}

#[derive(Debug, Default)]
struct Counters {
    /// Keys come and go all the time. Those of usual length need no memory of their own.
    counts: HashMap<SmallVec<[u8; 31]>, u64>,
    /// How much was taken off all counts.
    taken_off: u64,
}

impl Default for HotKeys {
    fn default() -> HotKeys {
        HotKeys { databases: HashMap::new(), left: ALL_COUNTED, all: ALL_COUNTED, sampled: 0, skip: 0, halved_at: None }
    }
}

impl HotKeys {
    /// A key is read: for how many reads does this one count?
    #[inline]
    pub fn weigh(&mut self) -> Weight {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            Weight::One
        } else if let Some(skip) = self.skip.checked_sub(1) {
            self.skip = skip;
            Weight::Nothing
        } else {
            Weight::Many
        }
    }

    /// After a read of [`Weight::Many`]: so many are not counted now, a random number from 0 to [`SKIP_MOST`].
    pub fn skip(&mut self, reads: u64) {
        self.sampled = self.sampled.saturating_add(1);
        self.skip = reads;
    }

    pub fn count(&mut self, db: usize, key: &[u8], weight: u64) {
        if key.len() <= KEY_MAX {
            self.databases.entry(db).or_default().count(key, weight);
        }
    }

    /// To be called now and then: counts all of the next few reads again, and halves what is old.
    pub fn tick(&mut self, now: UnixMs) {
        let reads = u64::from(self.all.saturating_sub(self.left)).saturating_add(self.sampled.saturating_mul(ONE_IN));
        self.all = if reads > u64::from(ALL_COUNTED) { COUNTED_WHEN_BUSY } else { ALL_COUNTED };
        (self.left, self.sampled) = (self.all, 0);
        let since = *self.halved_at.get_or_insert(now);
        if now.since(since) >= HALF_LIFE_MS || now < since {
            self.halved_at = Some(now);
            for counters in self.databases.values_mut() {
                counters.halve();
            }
            self.databases.retain(|_, counters| !counters.counts.is_empty());
        }
    }

    /// The keys of a database that begin with `prefix`, the most read first, with how often that was. O(counters).
    pub fn most_read(&self, db: usize, prefix: &[u8]) -> Vec<(&[u8], u64)> {
        let Some(counters) = self.databases.get(&db) else { return Vec::new() };
        let reads = |count: &u64| count.saturating_add(counters.taken_off);
        let all = counters.counts.iter().filter(|(key, _)| key.starts_with(prefix));
        let mut keys: Vec<(&[u8], u64)> = all.map(|(key, count)| (&**key, reads(count))).collect();
        keys.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        keys
    }

    /// One database (`Some`) or all of them are empty now.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.databases.retain(|of, _| db.is_some_and(|db| db != *of));
    }

    /// What was counted of two databases changes places.
    pub fn swapped(&mut self, a: usize, b: usize) {
        let (at_a, at_b) = (self.databases.remove(&a), self.databases.remove(&b));
        self.databases.extend(at_a.map(|counters| (b, counters)));
        self.databases.extend(at_b.map(|counters| (a, counters)));
    }

    /// Keys that are counted.
    pub fn len(&self) -> usize {
        self.databases.values().map(|counters| counters.counts.len()).sum()
    }
}

impl Counters {
    fn count(&mut self, key: &[u8], weight: u64) {
        let is_full = self.counts.len() >= COUNTERS;
        match self.counts.entry_ref(key) {
            EntryRef::Occupied(mut count) => *count.get_mut() = count.get().saturating_add(weight),
            EntryRef::Vacant(place) if !is_full => {
                place.insert_with_key(SmallVec::from_slice(key), weight);
            }
            EntryRef::Vacant(_) => {
                self.make_room();
                self.counts.insert(SmallVec::from_slice(key), weight);
            }
        }
    }

    fn make_room(&mut self) {
        let mut counts: Vec<u64> = self.counts.values().copied().collect();
        let middle = counts.len() / 2;
        let (_, median, _) = counts.select_nth_unstable(middle);
        let median = *median;
        self.taken_off = self.taken_off.saturating_add(median);
        self.counts.retain(|_, count| {
            *count = count.saturating_sub(median);
            *count > 0
        });
    }

    fn halve(&mut self) {
        self.taken_off /= 2;
        self.counts.retain(|_, count| {
            *count /= 2;
            *count > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a server does it.
    fn read(hot: &mut HotKeys, db: usize, key: &[u8], draw: &mut u64) {
        let weight = hot.weigh();
        if weight == Weight::Many {
            *draw = (*draw + 7) % (SKIP_MOST + 1);
            hot.skip(*draw);
        }
        if weight != Weight::Nothing {
            hot.count(db, key, weight.reads());
        }
    }

    /// Counts every read.
    fn count(hot: &mut HotKeys, key: &str, reads: u64) {
        hot.count(0, key.as_bytes(), reads);
    }

    fn reads(hot: &HotKeys, key: &str) -> u64 {
        hot.most_read(0, key.as_bytes()).first().map_or(0, |(_, reads)| *reads)
    }

    #[test]
    fn a_few_keys_are_counted_exactly() {
        let mut hot = HotKeys::default();
        hot.tick(UnixMs(0));
        for _ in 0..20 {
            read(&mut hot, 0, b"a", &mut 0);
        }
        read(&mut hot, 0, b"b", &mut 0);
        read(&mut hot, 1, b"other database", &mut 0);
        assert_eq!(hot.most_read(0, b""), [(&b"a"[..], 20), (b"b", 1)]);
        assert_eq!(hot.most_read(0, b"b"), [(&b"b"[..], 1)]);
        hot.swapped(0, 1);
        assert_eq!(hot.most_read(0, b""), [(&b"other database"[..], 1)]);
    }

    #[test]
    fn the_heavy_ones_are_found_among_many_within_the_stated_error() {
        let mut hot = HotKeys::default();
        let mut all = 0;
        for round in 0..200_u64 {
            for i in 0..500_u64 {
                count(&mut hot, &format!("once:{round}:{i}"), 1);
                all += 1;
            }
            for i in 0..10_u64 {
                count(&mut hot, &format!("hot:{i}:"), 100 + 10 * i);
                all += 100 + 10 * i;
            }
        }
        let found = hot.most_read(0, b"");
        assert!(found.len() <= COUNTERS);
        assert!(found.iter().take(10).all(|(key, _)| key.starts_with(b"hot:")));
        for i in 0..10_u64 {
            let (true_reads, estimate) = (200 * (100 + 10 * i), reads(&hot, &format!("hot:{i}:")));
            assert!((true_reads..=true_reads + all / 1024).contains(&estimate), "{i}: {estimate} of {true_reads}");
        }
    }

    #[test]
    fn beyond_the_first_of_a_tick_one_in_sixteen_counts_for_all() {
        let mut hot = HotKeys::default();
        let mut draw = 0;
        for _ in 0..160_000 {
            read(&mut hot, 0, b"k", &mut draw);
        }
        let estimate = reads(&hot, "k");
        assert!((158_000..162_000).contains(&estimate), "{estimate}");
    }

    #[test]
    fn after_a_busy_tick_the_sample_begins_earlier_until_one_is_calm() {
        let counted = |hot: &mut HotKeys| (0..1000).take_while(|_| hot.weigh() == Weight::One).count();
        let (mut hot, mut draw) = (HotKeys::default(), 0);
        for (reads, counted_then) in [(1000, 16), (1000, 16), (100, 128), (128, 128), (0, 128)] {
            hot.tick(UnixMs(0));
            (0..reads).for_each(|_| read(&mut hot, 0, b"k", &mut draw));
            hot.tick(UnixMs(0));
            assert_eq!(counted(&mut hot), counted_then, "after {reads} reads");
        }
    }

    #[test]
    fn old_reads_count_less_and_are_forgotten() {
        let mut hot = HotKeys::default();
        hot.tick(UnixMs(0));
        count(&mut hot, "k", 4);
        hot.tick(UnixMs(HALF_LIFE_MS - 1));
        assert_eq!(reads(&hot, "k"), 4);
        for halvings in 1..=3 {
            hot.tick(UnixMs(HALF_LIFE_MS * halvings));
        }
        assert_eq!((reads(&hot, "k"), hot.databases.len()), (0, 0));
    }

    #[test]
    fn long_keys_are_not_counted() {
        let mut hot = HotKeys::default();
        hot.count(0, &[b'k'; KEY_MAX], 1);
        hot.count(0, &[b'k'; KEY_MAX + 1], 1);
        assert_eq!(hot.len(), 1);
    }
}
