//! The tag index against a brute-force model, under random operations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use keyward::cache::tag_index::{IndexError, MAX_TAGS, TagIndex, TagInfo};
use keyward::clock::UnixMs;
use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const DATABASES: usize = 2;
const KEYS: u8 = 24;
const TAGS: u8 = 6;

fn key(n: u8) -> Vec<u8> {
    // Of many lengths, one beyond the shared pages, one empty.
    let len = [0, 3, 9, 25, 60, 200, 700, 9_000][usize::from(n) % 8];
    let mut key = vec![b'k'; len];
    if n >= 8 || len > 0 {
        key.extend_from_slice(&[b'0' + n]);
    }
    key
}

fn tag(n: u8) -> Vec<u8> {
    vec![b'a' + n; 1 + usize::from(n) * 30]
}

#[derive(Clone, Debug)]
enum Op {
    Set(usize, u8, Vec<u8>),
    /// With the tags it had, as a cache does.
    SetAgain(usize, u8),
    Add(usize, u8, Vec<u8>),
    RemoveTags(usize, u8, Option<Vec<u8>>),
    Remove(usize, u8),
    Rename(usize, u8, usize, u8),
    Retire(usize, u8),
    Reclaim(usize, usize),
    Spare(usize, u8),
    Load(usize, u8, Vec<(u8, bool)>),
    Confirm(usize, u8),
    DropUnconfirmed(usize),
    StartScan(usize, u8),
    Scan(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (db, key, tag) = (|| 0..DATABASES, || 0..KEYS, || 0..TAGS);
    let tags = move || vec(tag(), 0..5);
    prop_oneof![
        12 => (db(), key(), tags()).prop_map(|(d, k, t)| Op::Set(d, k, t)),
        6 => (db(), key()).prop_map(|(d, k)| Op::SetAgain(d, k)),
        5 => (db(), key(), tags()).prop_map(|(d, k, t)| Op::Add(d, k, t)),
        3 => (db(), key(), proptest::option::of(tags())).prop_map(|(d, k, t)| Op::RemoveTags(d, k, t)),
        6 => (db(), key()).prop_map(|(d, k)| Op::Remove(d, k)),
        4 => (db(), key(), db(), key()).prop_map(|(d, k, e, l)| Op::Rename(d, k, e, l)),
        3 => (db(), tag()).prop_map(|(d, t)| Op::Retire(d, t)),
        3 => (db(), 0..6usize).prop_map(|(d, n)| Op::Reclaim(d, n)),
        3 => (db(), key()).prop_map(|(d, k)| Op::Spare(d, k)),
        3 => (db(), key(), vec((tag(), any::<bool>()), 0..4)).prop_map(|(d, k, t)| Op::Load(d, k, t)),
        3 => (db(), key()).prop_map(|(d, k)| Op::Confirm(d, k)),
        1 => db().prop_map(Op::DropUnconfirmed),
        1 => (db(), tag()).prop_map(|(d, t)| Op::StartScan(d, t)),
        5 => (1..4usize).prop_map(Op::Scan),
    ]
}

/// A server that starts: what a dump says, and the keys that come. With some of what else can happen meanwhile.
fn start() -> impl Strategy<Value = Vec<Op>> {
    let load = (0..DATABASES, 0..KEYS, vec((0..TAGS, any::<bool>()), 0..4)).prop_map(|(d, k, t)| Op::Load(d, k, t));
    let confirm = (0..DATABASES, 0..KEYS).prop_map(|(d, k)| Op::Confirm(d, k));
    (vec(load.clone(), 0..60), vec(prop_oneof![20 => confirm, 1 => load, 1 => op()], 0..60))
        .prop_map(|(loads, keys)| [loads, keys].concat())
}

/// Of each key: its tags in order, each live (`false`) or retired (`true`).
type Records = BTreeMap<u8, Vec<(u8, bool)>>;

#[derive(Default)]
struct Model {
    records: Records,
    unconfirmed: Records,
    /// tag -> invalidations, time of the last
    invalidations: BTreeMap<u8, (u64, i64)>,
}

impl Model {
    fn put(records: &mut Records, key: u8, tags: impl IntoIterator<Item = (u8, bool)>) {
        let mut distinct: Vec<(u8, bool)> = Vec::new();
        for tag in tags {
            if !distinct.contains(&tag) {
                distinct.push(tag);
            }
        }
        records.remove(&key);
        if !distinct.is_empty() {
            records.insert(key, distinct);
        }
    }

    /// As `set`, for a key that may be in two retired cohorts of one tag.
    fn set_all(&mut self, key: u8, tags: Vec<(u8, bool)>) {
        self.set(key, []);
        if !tags.is_empty() {
            self.records.insert(key, tags);
        }
    }

    fn set(&mut self, key: u8, tags: impl IntoIterator<Item = (u8, bool)>) {
        self.unconfirmed.remove(&key);
        Model::put(&mut self.records, key, tags);
    }

    fn tags(&self, key: u8) -> Vec<(u8, bool)> {
        self.records.get(&key).cloned().unwrap_or_default()
    }

    fn is_retired(&self, key: u8) -> bool {
        self.tags(key).iter().any(|&(_, retired)| retired)
    }

    fn members(&self, tag: u8) -> BTreeSet<u8> {
        self.records.iter().filter(|(_, tags)| tags.contains(&(tag, false))).map(|(&key, _)| key).collect()
    }
}

/// A scan under way: what it must return at least, and what it has returned.
struct Scan {
    db: usize,
    tag: u8,
    cursor: u64,
    throughout: BTreeSet<u8>,
    seen: BTreeSet<u8>,
}

struct World {
    indexes: Vec<TagIndex>,
    models: Vec<Model>,
    scan: Option<Scan>,
    now: i64,
}

fn key_number(name: &[u8]) -> u8 {
    // The last byte of a name is its number's digit; only key 0 is empty.
    let n = name.last().map_or(0, |digit| digit - b'0');
    assert_eq!(name, key(n), "a key that was never given");
    n
}

fn names(tags: &[u8]) -> Vec<Vec<u8>> {
    tags.iter().map(|&n| tag(n)).collect()
}

fn slices(names: &[Vec<u8>]) -> Vec<&[u8]> {
    names.iter().map(Vec::as_slice).collect()
}

impl World {
    fn new() -> World {
        World {
            indexes: (0..DATABASES).map(|_| TagIndex::new(1_000)).collect(),
            models: (0..DATABASES).map(|_| Model::default()).collect(),
            scan: None,
            now: 0,
        }
    }

    fn run(&mut self, op: &Op) {
        self.now += 1;
        if matches!(op, Op::SetAgain(..) | Op::Reclaim(..) | Op::StartScan(..) | Op::Scan(_)) {
            // What reads, before it changes anything.
            self.indexes.iter_mut().for_each(TagIndex::settle);
        }
        match op {
            Op::Set(db, k, tags) => {
                self.indexes[*db].set_tags(&key(*k), &slices(&names(tags))).unwrap();
                self.models[*db].set(*k, tags.iter().map(|&tag| (tag, false)));
            }
            Op::SetAgain(db, k) => {
                let tags = self.models[*db].tags(*k).iter().map(|&(tag, _)| tag).collect();
                self.run(&Op::Set(*db, *k, tags));
            }
            Op::Add(db, k, tags) => {
                let added = self.indexes[*db].add_tags(&key(*k), &slices(&names(tags))).unwrap();
                let model = &mut self.models[*db];
                let old = model.tags(*k);
                let mut all = old.clone();
                for tag in tags {
                    if !all.contains(&(*tag, false)) {
                        all.push((*tag, false));
                    }
                }
                assert_eq!(added, all.len() - old.len());
                model.set_all(*k, all);
            }
            Op::RemoveTags(db, k, tags) => {
                let given = tags.as_ref().map(|tags| names(tags));
                let removed = self.indexes[*db].remove_tags(&key(*k), given.as_ref().map(|t| slices(t)).as_deref());
                let model = &mut self.models[*db];
                let old = model.tags(*k);
                let named = |tag: &u8| tags.as_ref().is_none_or(|tags| tags.contains(tag));
                let kept: Vec<_> = old.iter().copied().filter(|(tag, retired)| *retired || !named(tag)).collect();
                assert_eq!(removed, old.len() - kept.len());
                model.set_all(*k, kept);
            }
            Op::Remove(db, k) => {
                let removed = self.indexes[*db].remove(&key(*k));
                assert_eq!(removed, self.models[*db].records.contains_key(k));
                self.models[*db].set(*k, []);
            }
            Op::Rename(from_db, from, to_db, to) => self.rename((*from_db, *from), (*to_db, *to)),
            Op::Retire(db, t) => self.retire(*db, *t),
            Op::Reclaim(db, max) => {
                self.reclaim(*db, *max);
            }
            Op::Spare(db, k) => {
                let spared = self.indexes[*db].spare(&key(*k)).unwrap();
                let model = &mut self.models[*db];
                assert_eq!(spared, model.is_retired(*k));
                let tags = model.tags(*k);
                model.set(*k, tags.into_iter().map(|(tag, _)| (tag, false)));
            }
            Op::Load(db, k, tags) => {
                let given: Vec<_> = tags.iter().map(|&(n, retired)| (tag(n), retired)).collect();
                let given = given.iter().map(|(tag, retired)| (tag.as_slice(), *retired));
                self.indexes[*db].load_record(&key(*k), given).unwrap();
                Model::put(&mut self.models[*db].unconfirmed, *k, tags.iter().copied());
            }
            Op::Confirm(db, k) => {
                let known = self.indexes[*db].confirm(&key(*k)).unwrap();
                let waiting = self.models[*db].unconfirmed.remove(k);
                assert_eq!(known, waiting.is_some());
                if let Some(tags) = waiting {
                    self.models[*db].set(*k, tags);
                }
            }
            Op::DropUnconfirmed(db) => {
                let dropped = self.indexes[*db].drop_unconfirmed();
                assert_eq!(dropped, std::mem::take(&mut self.models[*db].unconfirmed).len());
            }
            Op::StartScan(db, t) => {
                let throughout = self.models[*db].members(*t);
                self.scan = Some(Scan { db: *db, tag: *t, cursor: 0, throughout, seen: BTreeSet::new() });
                self.scan_step(2);
            }
            Op::Scan(count) => self.scan_step(*count),
        }
        if let Some(scan) = &mut self.scan {
            let members = self.models[scan.db].members(scan.tag);
            scan.throughout.retain(|key| members.contains(key));
        }
    }

    fn rename(&mut self, (from_db, from): (usize, u8), (to_db, to): (usize, u8)) {
        if (from_db, from) == (to_db, to) {
            return;
        }
        let detached = self.indexes[from_db].take(&key(from), false);
        let tags = self.models[from_db].tags(from);
        self.models[from_db].set(from, []);
        assert_eq!(detached.is_some(), !tags.is_empty());
        match detached {
            Some(detached) => self.indexes[to_db].attach(&key(to), &detached).unwrap(),
            None => {
                self.indexes[to_db].remove(&key(to));
            }
        }
        self.models[to_db].set(to, tags);
    }

    fn retire(&mut self, db: usize, t: u8) {
        let model = &mut self.models[db];
        let members = model.members(t);
        let retirement = self.indexes[db].retire(&tag(t), UnixMs(self.now)).first().copied();
        assert_eq!(retirement.map_or(0, |r| r.keys), members.len());
        if members.is_empty() {
            return;
        }
        for tags in model.records.values_mut() {
            tags.iter_mut().filter(|(tag, _)| *tag == t).for_each(|(_, retired)| *retired = true);
        }
        let (count, last) = model.invalidations.entry(t).or_default();
        (*count, *last) = (*count + 1, self.now);
    }

    fn reclaim(&mut self, db: usize, max: usize) -> usize {
        let Some(oldest) = self.indexes[db].oldest_retirement() else {
            assert!(!self.models[db].records.keys().any(|&key| self.models[db].is_retired(key)));
            return 0;
        };
        let mut keys = Vec::new();
        let listed = self.indexes[db].retired_keys(oldest, max, &mut keys);
        assert!(listed == keys.len() && listed <= max && (listed > 0 || max == 0));
        for name in keys {
            let k = key_number(&name);
            assert!(self.models[db].is_retired(k));
            assert!(self.indexes[db].remove(&name));
            self.models[db].set(k, []);
        }
        listed
    }

    fn scan_step(&mut self, count: usize) {
        let Some(scan) = &mut self.scan else { return };
        let name = tag(scan.tag);
        let (next, keys) = self.indexes[scan.db].tag_keys(&name, scan.cursor, count);
        assert!(keys.len() <= count);
        let members = self.models[scan.db].members(scan.tag);
        for name in keys {
            let k = key_number(name);
            assert!(members.contains(&k));
            scan.seen.insert(k);
        }
        scan.cursor = next;
        if next == 0 {
            let missed: Vec<_> = scan.throughout.difference(&scan.seen).collect();
            assert!(missed.is_empty(), "{missed:?} were there throughout");
            self.scan = None;
        }
    }

    /// Reads see what was loaded once it is settled, and how many keys that is before.
    fn check(&mut self) {
        for (index, model) in self.indexes.iter_mut().zip(&self.models) {
            assert_eq!(index.len(), model.records.len());
            index.settle();
            index.check_invariants().unwrap();
            assert_eq!(index.len(), model.records.len());
            for k in 0..KEYS {
                let live = model.tags(k).into_iter().filter(|(_, retired)| !retired).map(|(t, _)| tag(t));
                assert!(index.tags(&key(k)).eq(live), "tags of {k}");
                assert_eq!(index.is_retired(&key(k)), model.is_retired(k));
            }
            let retired = model.records.values().flatten().filter(|(_, retired)| *retired).count();
            assert_eq!((index.retired_len(), index.has_retired()), (retired, retired > 0));
            let tags = (0..TAGS).filter(|&t| !model.members(t).is_empty()).count();
            assert_eq!(index.tag_count(), tags);
            for t in 0..TAGS {
                let info = index.tag_info(&tag(t));
                let (count, last) = model.invalidations.get(&t).copied().unwrap_or_default();
                assert_eq!((info.invalidations.count, info.invalidations.last), (count, UnixMs(last)));
                let (end, keys) = index.tag_keys(&tag(t), 0, usize::MAX);
                let found: BTreeSet<u8> = keys.iter().map(|name| key_number(name)).collect();
                assert_eq!((end, &found, keys.len()), (0, &model.members(t), info.keys));
            }
            let saved: Records = index
                .records()
                .map(|record| {
                    let tags = record
                        .tags(false)
                        .map(|(name, retired)| ((0..TAGS).find(|&t| tag(t) == name).unwrap(), retired));
                    (key_number(record.key()), tags.collect())
                })
                .collect();
            assert_eq!(saved, model.records);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_index_equals_the_model(start in start(), ops in vec(op(), 1..200)) {
        let mut world = World::new();
        start.iter().for_each(|op| world.run(op));
        for op in &ops {
            world.run(op);
            world.check();
        }
        // What is retired is found to the last key by reclaiming, and nothing else is.
        for db in 0..DATABASES {
            while world.reclaim(db, 3) > 0 {}
        }
        world.check();
        for (index, model) in world.indexes.iter_mut().zip(&world.models) {
            for &k in model.records.keys() {
                index.remove(&key(k));
            }
            index.set_history_max(0);
            index.drop_unconfirmed();
            prop_assert_eq!(index.memory(), TagIndex::new(0).memory());
        }
    }

    #[test]
    fn a_dump_gives_back_the_same_index(ops in vec(op(), 1..100)) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.run(op));
        for index in &mut world.indexes {
            index.settle();
            let mut loaded = TagIndex::new(1_000);
            for (tag, invalidations) in index.tag_history() {
                loaded.load_tag_history(tag, invalidations).unwrap();
            }
            for record in index.records() {
                loaded.load_record(record.key(), record.tags(false)).unwrap();
            }
            prop_assert!(loaded.is_empty() && loaded.tag_count() == 0 && !loaded.has_retired());
            prop_assert_eq!(loaded.may_have_retired(), index.has_retired());
            for record in index.records() {
                loaded.confirm(record.key()).unwrap();
            }
            prop_assert_eq!(loaded.drop_unconfirmed(), 0);
            *index = loaded;
        }
        // A key in two retired cohorts of one tag comes back in one.
        for model in &mut world.models {
            for (k, tags) in std::mem::take(&mut model.records) {
                Model::put(&mut model.records, k, tags);
            }
        }
        world.check();
    }
}

#[test]
fn more_tags_than_allowed_change_nothing() {
    let mut index = TagIndex::new(10);
    let names: Vec<Vec<u8>> = (0..200).map(|n| format!("tag-{n}").into_bytes()).collect();
    let names = slices(&names);
    assert_eq!(index.set_tags(b"k", &names[..MAX_TAGS + 1]), Err(IndexError::TooManyTags));
    assert_eq!((index.len(), index.memory()), (0, TagIndex::new(10).memory()));
    let twice = [&names[..MAX_TAGS], &names[..MAX_TAGS]].concat();
    assert_eq!(index.set_tags(b"k", &twice), Ok(()), "a tag named twice counts once");
    assert_eq!(index.add_tags(b"k", &names[60..70]), Err(IndexError::TooManyTags));
    assert_eq!(index.add_tags(b"k", &names[..10]), Ok(0));
    assert!(index.tags(b"k").eq(names[..MAX_TAGS].iter().copied()));
    assert_eq!((index.tag_count(), index.tag_info(names[65])), (MAX_TAGS, TagInfo::default()));
    index.check_invariants().unwrap();
}

#[test]
fn retired_memberships_do_not_use_up_the_tags_of_a_key() {
    let mut index = TagIndex::new(10);
    let names: Vec<Vec<u8>> = (0..255).map(|n| format!("tag-{n}").into_bytes()).collect();
    let names = slices(&names);
    for tags in names.chunks(60).take(4) {
        assert_eq!(index.add_tags(b"k", tags), Ok(60));
        for tag in tags {
            assert_eq!(index.retire(tag, UnixMs(1)).len(), 1);
        }
    }
    assert_eq!(index.add_tags(b"k", &names[..16]), Err(IndexError::TooManyTags));
    assert_eq!(index.add_tags(b"k", &names[..15]), Ok(15));
    assert_eq!(index.spare(b"k"), Err(IndexError::TooManyTags));
    index.check_invariants().unwrap();
    assert!(index.is_retired(b"k"));
    assert_eq!(index.set_tags(b"k", &names[..1]), Ok(()));
    assert!(!index.is_retired(b"k") && !index.has_retired());
}

#[test]
fn a_retired_key_that_is_written_with_the_same_tags_is_not_removed() {
    let mut index = TagIndex::new(10);
    index.set_tags(b"k", &[b"a", b"b"]).unwrap();
    let retirement = index.retire(b"a", UnixMs(1))[0];
    assert!(index.is_retired(b"k") && index.tags(b"k").eq([b"b"]));
    index.set_tags(b"k", &[b"a", b"b"]).unwrap();
    assert!(!index.is_retired(b"k") && index.tags(b"k").eq([b"a", b"b"]));
    assert_eq!(index.retired_keys(retirement.number, 10, &mut Vec::new()), 0);
    assert_eq!((index.tag_info(b"a").keys, index.tag_info(b"b").keys), (1, 1));
}

#[test]
fn an_index_can_be_dropped_by_another_thread() {
    fn sendable<T: Send>() {}
    sendable::<TagIndex>();
}

/// Many keys, tags of all sizes, one on nearly every key: chunks, shards and pages come and go.
#[test]
fn a_big_index_stays_right_under_churn() {
    let mut random = SmallRng::seed_from_u64(7);
    let mut index = TagIndex::new(0);
    let key = |n: u32| format!("product:{n}:{}", "x".repeat(n as usize % 40)).into_bytes();
    let mut live = BTreeSet::new();
    let mut peak = 0;
    for round in 0..6 {
        for _ in 0..30_000 {
            let n = random.random_range(0..20_000);
            if random.random_ratio(2, 5) {
                assert_eq!(index.remove(&key(n)), live.remove(&n));
                continue;
            }
            let mut tags = vec![b"all".to_vec()];
            for _ in 0..random.random_range(0..3) {
                let size = 1 << random.random_range(0..14);
                tags.push(format!("tag-{size}-{}", random.random_range(0..size)).into_bytes());
            }
            index.set_tags(&key(n), &slices(&tags)).unwrap();
            live.insert(n);
        }
        peak = peak.max(index.memory());
        index.check_invariants().unwrap();
        assert_eq!(index.len(), live.len());
        assert_eq!(index.tag_info(b"all").keys, live.len());
        if round == 3 {
            // A giant invalidation, drained in slices while some keys are written again.
            let retirement = index.retire(b"all", UnixMs(1))[0];
            assert_eq!(retirement.keys, live.len());
            let mut written = BTreeSet::new();
            let mut slice = Vec::new();
            while index.retired_keys(retirement.number, 512, &mut slice) > 0 {
                for name in slice.drain(..) {
                    assert!(index.remove(&name));
                }
                let n = random.random_range(0..20_000);
                index.set_tags(&key(n), &[b"all"]).unwrap();
                written.insert(n);
            }
            assert!(!index.has_retired());
            assert_eq!(index.len(), written.len());
            live = written;
        }
    }
    for n in live {
        index.remove(&key(n));
    }
    assert!(peak > 1_000_000);
    assert_eq!(index.memory(), TagIndex::new(0).memory());
}
