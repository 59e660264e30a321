//! What the tag index costs: bytes per entry and the longest insert. Figures, not checks:
//! `cargo test --release --no-default-features --test tag_index_footprint -- --ignored --nocapture`
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::time::Instant;

use keyward::cache::tag_index::TagIndex;
use keyward::clock::UnixMs;

const BYTES: usize = 25;

/// Resident memory of this process in bytes, with what the allocator adds.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

fn key(n: u32) -> [u8; BYTES] {
    let mut key = *b"product:0000000000:detail";
    for (place, digit) in key[8..18].iter_mut().rev().zip(0..) {
        *place = b'0' + (n / 10u32.pow(digit) % 10) as u8;
    }
    key
}

fn tags(n: u32, entries: u32, members: u32) -> [String; 2] {
    let tags = (entries / members).max(1);
    [format!("category:{}", n % tags), format!("supplier:{}", n / 7 % tags)]
}

fn insert(index: &mut TagIndex, n: u32, entries: u32, members: u32) -> u32 {
    let [a, b] = tags(n, entries, members);
    let key = key(n);
    let start = Instant::now();
    index.set_tags(&key, &[a.as_bytes(), b.as_bytes()]).unwrap();
    start.elapsed().as_nanos() as u32
}

/// The same operation is slow in every pass; what is slow only once was the machine.
fn longest_of(passes: &[Vec<u32>]) -> Vec<(f64, usize)> {
    let least = |n: usize| passes.iter().map(|pass| pass[n]).min().unwrap();
    let mut longest: Vec<(u32, usize)> = (0..passes[0].len()).map(|n| (least(n), n)).collect();
    longest.sort_unstable();
    longest.iter().rev().take(3).map(|(ns, n)| (f64::from(*ns) / 1e6, *n)).collect()
}

#[test]
#[ignore = "prints figures"]
fn bytes_per_entry() {
    for (entries, members) in
        [(1_000_000, 100), (1_000, 100), (200_000, 1), (200_000, 10), (200_000, 100), (200_000, 1_000)]
    {
        let before = resident();
        let mut index = TagIndex::new(1_000);
        for n in 0..entries {
            insert(&mut index, n, entries, members);
        }
        let per_entry = |bytes: usize| bytes as f64 / f64::from(entries);
        let counted = per_entry(index.memory());
        println!("{entries} entries, 2 tags, {members} a tag: {counted:.1} bytes an entry");
        if entries == 1_000_000 {
            // Only the first one says something: the others get back what it freed.
            println!("the same with what the allocator adds: {:.1}", per_entry(resident() - before));
        }
    }
}

#[test]
#[ignore = "prints figures"]
fn longest_insert_among_five_million() {
    const ENTRIES: u32 = 5_000_000;
    for members in [1, 100, ENTRIES] {
        let pass = |_| {
            let mut index = TagIndex::new(1_000);
            (0..ENTRIES).map(|n| insert(&mut index, n, ENTRIES, members)).collect()
        };
        let longest = longest_of(&(0..3).map(pass).collect::<Vec<_>>());
        println!("{ENTRIES} entries, 2 tags, {members} a tag: longest inserts (ms, which) {longest:.3?}");
    }
}

#[test]
#[ignore = "prints figures"]
fn draining_a_giant_tag() {
    const ENTRIES: u32 = 1_000_000;
    let pass = |_| {
        let mut index = TagIndex::new(1_000);
        for n in 0..ENTRIES {
            insert(&mut index, n, ENTRIES, ENTRIES);
        }
        let start = Instant::now();
        let retirement = index.retire(b"category:0", UnixMs(1))[0];
        println!("retire {} keys: {:.3} ms", retirement.keys, start.elapsed().as_secs_f64() * 1e3);
        let (mut keys, mut nanos) = (Vec::new(), Vec::new());
        while index.retired_keys(retirement.number, 512, &mut keys) > 0 {
            for key in keys.drain(..) {
                let start = Instant::now();
                index.remove(&key);
                nanos.push(start.elapsed().as_nanos() as u32);
            }
        }
        println!("{} bytes left", index.memory());
        nanos
    };
    let longest = longest_of(&(0..3).map(pass).collect::<Vec<_>>());
    println!("longest removals (ms, which) {longest:.3?}");
}
