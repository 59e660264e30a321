//! A queue as bytes. Claims are not in them: who reads them cannot know whether the workers are still there. So the head of every
//! chain counts as claimed when it is read.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::queue::{Counters, Queue};
use super::record::{Dead, Entry, Op, Record};
use super::settings::Settings;
use crate::clock::UnixMs;
use crate::fencing::is_token;

/// The longest message of a NACK, in bytes.
pub const MAX_MESSAGE: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    born: i64,
    delay_ms: i64,
    max_delay_ms: i64,
    attempts: i64,
    max_dirty: i64,
    coalesced: u64,
    retries: u64,
    cleaned: u64,
    #[serde(borrow)]
    entries: Vec<StoredEntry<'a>>,
}

#[derive(Serialize, Deserialize)]
struct StoredEntry<'a> {
    key: &'a [u8],
    #[serde(borrow)]
    chain: Vec<StoredRecord<'a>>,
    #[serde(borrow)]
    dead: Vec<StoredRecord<'a>>,
    acked: i64,
    overruled: i64,
}

#[derive(Serialize, Deserialize)]
struct StoredRecord<'a> {
    version: i64,
    #[serde(borrow)]
    op: StoredOp<'a>,
    since: i64,
    due: i64,
    failures: u32,
    frozen: bool,
    message: Option<&'a [u8]>,
}

#[derive(Serialize, Deserialize)]
enum StoredOp<'a> {
    Set(&'a [u8]),
    IncrBy(i64, Option<i64>),
    Del,
}

impl<'a> StoredRecord<'a> {
    fn of(record: &'a Record, frozen: bool) -> StoredRecord<'a> {
        let Record { version, op, since, due, failures, message, .. } = record;
        let op = match op {
            Op::Set(value) => StoredOp::Set(value),
            Op::IncrBy { by, value } => StoredOp::IncrBy(*by, *value),
            Op::Del => StoredOp::Del,
        };
        let message = message.as_deref();
        StoredRecord { version: *version, op, since: since.0, due: due.0, failures: *failures, frozen, message }
    }

    fn record(&self) -> Option<Record> {
        let &StoredRecord { version, ref op, since, due, failures, frozen, message } = self;
        let op = match *op {
            StoredOp::Set(value) => Op::Set(value.into()),
            StoredOp::IncrBy(by, value) => Op::IncrBy { by, value },
            StoredOp::Del => Op::Del,
        };
        let sound =
            is_token(version) && since >= 0 && due >= 0 && message.is_none_or(|message| message.len() <= MAX_MESSAGE);
        let message = message.map(Box::from);
        sound.then_some(Record { version, op, since: UnixMs(since), due: UnixMs(due), failures, frozen, message })
    }
}

impl<'a> StoredEntry<'a> {
    fn of(entry: &'a Entry) -> StoredEntry<'a> {
        let chain = entry.chain.iter().enumerate();
        StoredEntry {
            key: &entry.key,
            chain: chain.map(|(at, record)| StoredRecord::of(record, at > 0 && record.frozen)).collect(),
            dead: entry.dead().iter().map(|record| StoredRecord::of(record, true)).collect(),
            acked: entry.dead.as_ref().map_or(0, |dead| dead.acked),
            overruled: entry.dead.as_ref().map_or(0, |dead| dead.overruled),
        }
    }

    fn entry(&self) -> Option<Entry> {
        let &StoredEntry { key, ref chain, ref dead, acked, overruled } = self;
        let mut chain: SmallVec<[Record; 1]> = chain.iter().map(StoredRecord::record).collect::<Option<_>>()?;
        if let Some(head) = chain.first_mut() {
            head.frozen = true;
        }
        let records: Vec<Record> = dead.iter().map(StoredRecord::record).collect::<Option<_>>()?;
        let ascending = |records: &[Record]| records.is_sorted_by(|a, b| a.version < b.version);
        let marks = [acked, overruled].into_iter().all(|version| version == 0 || is_token(version));
        // What was given up is older than what waits: what comes back leaves the list.
        let older = records.last().zip(chain.first()).is_none_or(|(dead, head)| dead.version < head.version);
        if !ascending(&chain) || !ascending(&records) || !marks || !older {
            return None;
        }
        let dead = (!records.is_empty()).then(|| Box::new(Dead { records, acked, overruled }));
        let entry = Entry { key: key.into(), chain, claim: None, dead };
        (!entry.is_over()).then_some(entry)
    }
}

impl Queue {
    pub fn encode(&self) -> Vec<u8> {
        let Settings { delay_ms, max_delay_ms, attempts, max_dirty } = self.settings;
        let Counters { coalesced, retries, cleaned } = self.counters;
        let entries = self.entries().map(|(_, entry)| StoredEntry::of(entry)).collect();
        let born = self.born;
        let stored = Stored { born, delay_ms, max_delay_ms, attempts, max_dirty, coalesced, retries, cleaned, entries };
        // Writing to a vector cannot fail; were it to, the dump would be empty, which decode refuses.
        postcard::to_extend(&stored, Vec::new()).unwrap_or_default()
    }

    /// Takes what `encode` can have written and nothing else. Allocates in proportion to the dump's own length.
    pub fn decode(bytes: &[u8]) -> Option<Queue> {
        let (stored, rest) = postcard::take_from_bytes::<Stored<'_>>(bytes).ok()?;
        let Stored { born, delay_ms, max_delay_ms, attempts, max_dirty, coalesced, retries, cleaned, entries } = stored;
        let mut queue = Queue::new(born);
        queue.settings = Settings { delay_ms, max_delay_ms, attempts, max_dirty }.checked().ok()?;
        queue.counters = Counters { coalesced, retries, cleaned };
        let mut keys = HashSet::with_capacity(entries.len());
        for entry in &entries {
            if !keys.insert(entry.key) {
                return None;
            }
            queue.insert(Box::new(entry.entry()?));
        }
        // Postcard accepts some numbers in a longer form than it writes.
        (is_token(born) && rest.is_empty() && queue.encode() == bytes).then_some(queue)
    }
}
