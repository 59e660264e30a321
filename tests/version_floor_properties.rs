//! Version floors against a brute-force model, under random operations and a running clock.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use keyward::cache::version_floor::VersionFloors;
use keyward::clock::UnixMs;
use proptest::collection::vec;
use proptest::prelude::*;

const KEYS: u8 = 12;
const LINGER: i64 = 50;

fn key(n: u8) -> Vec<u8> {
    let mut key = vec![b'k'; usize::from(n) * usize::from(n) * 70];
    key.push(n);
    key
}

#[derive(Clone, Debug)]
enum Op {
    Raise(u8, u64),
    Floor(u8, u64, i64),
    Gone(u8),
    Rename(u8, u8),
    Reload,
    Sweep(usize),
    Wait(i64),
}

fn op() -> impl Strategy<Value = Op> {
    let (key, version) = (|| 0..KEYS, || 0..20u64);
    prop_oneof![
        6 => (key(), version()).prop_map(|(k, v)| Op::Raise(k, v)),
        3 => (key(), version(), 1..100i64).prop_map(|(k, v, ms)| Op::Floor(k, v, ms)),
        5 => key().prop_map(Op::Gone),
        2 => (key(), key()).prop_map(|(old, new)| Op::Rename(old, new)),
        1 => Just(Op::Reload),
        2 => (0..4usize).prop_map(Op::Sweep),
        4 => (1..40i64).prop_map(Op::Wait),
    ]
}

/// key -> version, and the end of its life if it lingers.
type Model = BTreeMap<u8, (u64, Option<i64>)>;

fn gone(model: &mut Model, k: u8, until: i64) {
    if let Some((_, end @ None)) = model.get_mut(&k) {
        *end = Some(until);
    }
}

fn raise(model: &mut Model, k: u8, version: u64) {
    let seen = model.get(&k).map_or(0, |&(version, _)| version);
    model.insert(k, (version.max(seen), None));
}

proptest! {
    #[test]
    fn the_floors_equal_the_model(ops in vec(op(), 1..200)) {
        let mut floors = VersionFloors::new(1_000);
        let mut model = Model::new();
        let mut now = 0;
        for op in ops {
            model.retain(|_, (_, until)| until.is_none_or(|until| until > now));
            match op {
                Op::Raise(k, version) => {
                    floors.raise(&key(k), version, UnixMs(now)).unwrap();
                    raise(&mut model, k, version);
                }
                Op::Floor(k, version, ms) => {
                    let news = floors.floor(&key(k), version, UnixMs(now + ms), UnixMs(now)).unwrap();
                    let old = model.get(&k).copied();
                    prop_assert_eq!(news, old.is_none_or(|(old, _)| old < version));
                    if news {
                        let end = old.and_then(|(_, until)| until).unwrap_or(0);
                        model.insert(k, (version, Some(end.max(now + ms))));
                    }
                }
                Op::Gone(k) => {
                    floors.key_gone(&key(k), UnixMs(now), LINGER);
                    gone(&mut model, k, now + LINGER);
                }
                Op::Rename(old, new) => {
                    floors.rename(&key(old), &key(new), UnixMs(now), LINGER).unwrap();
                    if let Some(&(version, _)) = model.get(&old) {
                        gone(&mut model, old, now + LINGER);
                        raise(&mut model, new, version);
                    }
                }
                Op::Reload => {
                    let mut loaded = VersionFloors::new(1_000);
                    let saved: Vec<_> = floors.iter().map(|(k, v, until)| (k.to_vec(), v, until)).collect();
                    for (k, version, until) in &saved {
                        loaded.load(k, *version, until.unwrap_or(UnixMs(now + LINGER))).unwrap();
                    }
                    for (k, _, _) in saved.iter().filter(|(_, _, until)| until.is_none()) {
                        loaded.confirm(k);
                    }
                    floors = loaded;
                }
                Op::Sweep(steps) => prop_assert!(floors.sweep(UnixMs(now), steps) <= steps),
                Op::Wait(ms) => now += ms,
            }
            for k in 0..KEYS {
                let alive = model.get(&k).filter(|(_, until)| until.is_none_or(|until| until > now));
                prop_assert_eq!(floors.get(&key(k), UnixMs(now)), alive.map(|&(version, _)| version));
            }
            prop_assert_eq!(floors.live(), model.values().filter(|(_, until)| until.is_none()).count());
        }
        // Swept to the end, nothing dead is left and no memory with it.
        for k in 0..KEYS {
            floors.key_gone(&key(k), UnixMs(now), LINGER);
        }
        while floors.sweep(UnixMs(now + 1_000), 3) == 3 {}
        prop_assert_eq!((floors.live(), floors.lingering(), floors.dropped_by_cap()), (0, 0, 0));
        prop_assert_eq!(floors.memory(), VersionFloors::new(0).memory());
    }

    /// However many keys go, only so many floors linger, and those are the ones that live longest.
    #[test]
    fn the_maximum_is_kept(lives in vec(1..1_000_000i64, 1..300), max in 0..50usize) {
        let mut floors = VersionFloors::new(max);
        for (n, &ms) in (0u32..).zip(&lives) {
            floors.floor(&n.to_le_bytes(), 1, UnixMs(ms), UnixMs(0)).unwrap();
        }
        let dropped = lives.len().saturating_sub(max);
        prop_assert_eq!((floors.lingering(), floors.dropped_by_cap()), (lives.len() - dropped, dropped as u64));
        let mut kept: Vec<i64> = floors.iter().filter_map(|(_, _, until)| Some(until?.0)).collect();
        let mut longest = lives;
        longest.sort_unstable();
        kept.sort_unstable();
        prop_assert_eq!(kept, longest.split_off(dropped));
    }
}
