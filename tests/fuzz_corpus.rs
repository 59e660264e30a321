//! Replays the corpus of the fuzz targets (see fuzz/README.md), and then some tens of thousands of its mutations, the same
//! ones in every run. It finds nothing that long fuzzing has not found; it keeps what was found from coming back.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../fuzz/driver.rs"]
mod driver;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const MUTATIONS: usize = 20_000;

/// Words that get further than random bytes.
const WORDS: [&[u8]; 30] = [
    b"0",
    b"-1",
    b"1",
    b"2",
    b"64",
    b"65",
    b"1000000000000",
    b"9007199254740991",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"+1",
    b"01",
    b"",
    b"EX",
    b"PX",
    b"EXAT",
    b"PXAT",
    b"TAGS",
    b"JITTER",
    b"100%",
    b"VERSION",
    b"TOKEN",
    b"GCRA",
    b"FIXED",
    b"BURST",
    b"RESERVE",
    b"COST",
    b"BAN",
    b"\xff\0",
];

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutate(input: &mut Vec<u8>, other: &[u8], draw: &mut StdRng) {
    let at = draw.random_range(0..=input.len());
    let end = (at + draw.random_range(0..8)).min(input.len());
    match draw.random_range(0..7) {
        0 if at < input.len() => input[at] ^= 1 << draw.random_range(0..8),
        1 if at < input.len() => input[at] = draw.random(),
        2 => drop(input.drain(at..end)),
        3 => input.truncate(at),
        4 => drop(input.splice(at..at, WORDS[draw.random_range(0..WORDS.len())].iter().copied())),
        5 => {
            // One line becomes another word.
            let start = input[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |line| line + 1);
            let end = input[at..].iter().position(|byte| *byte == b'\n').map_or(input.len(), |line| at + line);
            input.splice(start..end, WORDS[draw.random_range(0..WORDS.len())].iter().copied());
        }
        _ => drop(input.splice(at..end, other[draw.random_range(0..=other.len())..].iter().copied().take(200))),
    }
}

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = corpus(target);
    let run = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| run(input))).is_err() {
            panic!("{target} fails on {:?}: put it into fuzz/corpus/{target}", String::from_utf8_lossy(input));
        }
    };
    corpus.iter().for_each(|input| run(input));
    let mut draw = StdRng::seed_from_u64(0);
    for _ in 0..MUTATIONS {
        let mut input = corpus[draw.random_range(0..corpus.len())].clone();
        for _ in 0..draw.random_range(1..5) {
            mutate(&mut input, &corpus[draw.random_range(0..corpus.len())], &mut draw);
        }
        run(&input);
    }
}

#[test]
fn no_script_of_commands_breaks_a_promise() {
    replay("scripts", driver::run_script);
}

#[test]
fn no_message_breaks_a_promise() {
    replay("bus", driver::receive);
}

#[test]
fn no_dump_breaks_a_promise() {
    replay("dumps", driver::load_dump);
}

#[test]
fn no_pattern_and_no_template_breaks_a_promise() {
    replay("names", driver::match_names);
}
