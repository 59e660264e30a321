//! What is to be written to the origin for one key: the records that wait, in the order of their versions, and those that were
//! given up. No server, no clock: the moment is passed in.
//!
//! A record that nobody has claimed takes later writes of its key in (it *joins* with them). One that was claimed is frozen:
//! it keeps its version and its payload, and the next write begins a record behind it. Only the head of the chain is ever
//! claimed, so a key is with one worker at a time, and in order.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::args::parse_int;
use crate::clock::UnixMs;

/// What a worker has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Set(Box<[u8]>),
    /// `value`: what the key's value is by now, where that is known.
    IncrBy {
        by: i64,
        value: Option<i64>,
    },
    Del,
}

/// One write, or several that have become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub version: i64,
    pub op: Op,
    /// When its first write came.
    pub since: UnixMs,
    /// Not to be claimed before.
    pub due: UnixMs,
    /// Claims that ended without an ACK.
    pub failures: u32,
    /// It was claimed, or may have been: see the head of this file.
    pub frozen: bool,
    /// What the last NACK said.
    pub message: Option<Box<[u8]>>,
}

/// Who has the head of the chain, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub worker: Arc<[u8]>,
    pub until: UnixMs,
}

/// Records that were given up after too many failures, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dead {
    pub records: Vec<Record>,
    /// The greatest version of the key that was acked since. The origin has refused what is older.
    pub acked: i64,
    /// Records below this version have nothing to say any more: a SET or DEL of it came after them.
    pub overruled: i64,
}

/// All there is of one key in one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Box<[u8]>,
    /// Not yet acked, oldest first.
    pub chain: SmallVec<[Record; 1]>,
    pub claim: Option<Claim>,
    pub dead: Option<Box<Dead>>,
}

/// The key's value as far as the queue knows it. It is newer than what the origin has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View<'a> {
    Value(Cow<'a, [u8]>),
    Deleted,
    /// Only by how much it was changed is known.
    Unknown,
}

/// A write as it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Set(Box<[u8]>),
    IncrBy { by: i64, value: Option<i64> },
    Del,
}

/// When a write came, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub version: i64,
    pub now: UnixMs,
    pub due: UnixMs,
    /// It becomes one with the last record.
    pub joins: bool,
}

/// How records that were given up can come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    AsTheyWere,
    AsTheirSum,
    /// As their sum, which is none.
    OutOfRange,
}

/// What a REQUEUE makes of the records that were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revival {
    /// They come back as they were, before anything newer.
    Kept { due: UnixMs },
    /// Increments that something newer has overtaken. The origin would refuse their versions, so their sum gets a new one.
    Merged(Mark),
}

impl Op {
    /// Does it say what the value is, whatever was there before?
    pub fn is_absolute(&self) -> bool {
        !matches!(self, Op::IncrBy { .. })
    }

    pub fn word(&self) -> &'static str {
        match self {
            Op::Set(_) => "SET",
            Op::IncrBy { .. } => "INCRBY",
            Op::Del => "DEL",
        }
    }

    /// What the worker gets with it; nothing with DEL.
    pub fn payload(&self) -> Option<Cow<'_, [u8]>> {
        match self {
            Op::Set(value) => Some(Cow::Borrowed(value)),
            Op::IncrBy { by, .. } => Some(Cow::Owned(by.to_string().into_bytes())),
            Op::Del => None,
        }
    }

    fn view(&self) -> View<'_> {
        match self {
            Op::Set(value) => View::Value(Cow::Borrowed(value)),
            Op::IncrBy { value: Some(value), .. } => View::Value(Cow::Owned(value.to_string().into_bytes())),
            Op::IncrBy { value: None, .. } => View::Unknown,
            Op::Del => View::Deleted,
        }
    }
}

impl View<'_> {
    /// Neither the cached key nor the origin may be asked.
    pub fn hides(&self) -> bool {
        !matches!(self, View::Value(_))
    }
}

fn set_to(value: i64) -> Op {
    Op::Set(value.to_string().into_bytes().into_boxed_slice())
}

impl Record {
    pub fn heap_bytes(&self) -> usize {
        let payload = if let Op::Set(value) = &self.op { value.len() } else { 0 };
        payload.saturating_add(self.message.as_ref().map_or(0, |message| message.len()))
    }
}

impl Entry {
    pub fn new(key: &[u8]) -> Entry {
        Entry { key: key.into(), chain: SmallVec::new(), claim: None, dead: None }
    }

    /// The records that were given up.
    pub fn dead(&self) -> &[Record] {
        self.dead.as_ref().map_or(&[], |dead| &dead.records)
    }

    /// Those of them that still have something to say.
    fn open_dead(&self) -> &[Record] {
        let overruled = self.dead.as_ref().map_or(0, |dead| dead.overruled);
        let dead = self.dead();
        let from = dead.partition_point(|record| record.version < overruled);
        dead.get(from..).unwrap_or_default()
    }

    /// The key's value by its last record. `None`: the queue knows nothing of it.
    pub fn view(&self) -> Option<View<'_>> {
        self.chain.last().or_else(|| self.open_dead().last()).map(|record| record.op.view())
    }

    /// The greatest version that the entry knows of.
    pub fn last_version(&self) -> i64 {
        let dead = self.dead.as_ref().map_or(0, |dead| dead.acked.max(dead.overruled));
        let records = self.chain.iter().chain(self.dead()).map(|record| record.version);
        records.fold(dead, i64::max)
    }

    /// The record that the next write joins with. Records up to the version `frozen_to` were written before this server became
    /// the primary, and the head of a chain may have been claimed from whoever was it.
    pub fn joins(&self, frozen_to: i64) -> Option<&Record> {
        let last = self.chain.last()?;
        let may_be_claimed = self.chain.len() == 1 && last.version <= frozen_to;
        (!last.frozen && !may_be_claimed).then_some(last)
    }

    /// Adds a write. `None`, and nothing changes: it cannot have come like this, or a sum is out of range.
    pub fn put(&mut self, write: Write, mark: Mark) -> Option<()> {
        let Mark { version, now, due, joins } = mark;
        if version <= self.last_version() {
            return None;
        }
        let op = match write {
            Write::Set(value) => Op::Set(value),
            Write::Del => Op::Del,
            Write::IncrBy { by, value } => self.incremented(by, value, joins)?,
        };
        let absolute = op.is_absolute();
        if joins {
            let last = self.chain.last_mut()?;
            last.version = version;
            last.op = op;
            last.due = due;
        } else {
            self.chain.push(Record { version, op, since: now, due, failures: 0, frozen: false, message: None });
        }
        if let Some(dead) = self.dead.as_mut().filter(|_| absolute) {
            dead.overruled = version;
        }
        Some(())
    }

    /// What becomes of an increment. SET and DEL take it in: then the value is known.
    fn incremented(&self, by: i64, value: Option<i64>, joins: bool) -> Option<Op> {
        let onto =
            if joins { Some(self.chain.last()?) } else { self.open_dead().last().filter(|_| self.chain.is_empty()) };
        match onto.map(|record| &record.op) {
            Some(Op::Set(_) | Op::Del) => value.map(set_to),
            Some(Op::IncrBy { by: before, .. }) if joins => Some(Op::IncrBy { by: before.checked_add(by)?, value }),
            _ => Some(Op::IncrBy { by, value }),
        }
    }

    /// The head, if it has this version.
    fn head_mut(&mut self, version: i64) -> Option<&mut Record> {
        self.chain.first_mut().filter(|head| head.version == version)
    }

    /// Gives the head to a worker.
    pub fn claim(&mut self, claim: Claim) {
        if let Some(head) = self.chain.first_mut() {
            head.frozen = true;
            self.claim = Some(claim);
        }
    }

    /// The claim of the head ended without an ACK, the `failures`th that did.
    pub fn fail(&mut self, version: i64, failures: u32, due: UnixMs, message: Option<&[u8]>) -> Option<()> {
        let head = self.head_mut(version)?;
        (head.failures, head.due, head.frozen) = (failures, due, true);
        if let Some(message) = message {
            head.message = Some(message.into());
        }
        self.claim = None;
        Some(())
    }

    /// The head is given up. What stands behind it must not rest on it: an increment of a value that the origin never got
    /// becomes a SET of the sum.
    pub fn die(&mut self, version: i64, failures: u32, message: Option<&[u8]>) -> Option<()> {
        self.fail(version, failures, UnixMs(0), message)?;
        let record = self.chain.remove(0);
        let absolute = record.op.is_absolute();
        if let Some(next) = self.chain.first_mut().filter(|_| absolute)
            && let Op::IncrBy { value: Some(value), .. } = next.op
        {
            next.op = set_to(value);
        }
        let later = self.chain.iter().rfind(|later| later.op.is_absolute()).map(|later| later.version);
        let dead = self.dead.get_or_insert_default();
        if absolute {
            dead.records.clear();
        }
        dead.overruled = dead.overruled.max(later.unwrap_or(0));
        let at = dead.records.partition_point(|other| other.version < record.version);
        dead.records.insert(at, record);
        Some(())
    }

    /// The origin has this version: of the head, or of a record that was given up.
    pub fn ack(&mut self, version: i64) -> Option<()> {
        let record = if self.head_mut(version).is_some() {
            self.claim = None;
            self.chain.remove(0)
        } else {
            let dead = self.dead.as_mut()?;
            let at = dead.records.iter().position(|record| record.version == version)?;
            dead.records.remove(at)
        };
        if let Some(dead) = &mut self.dead {
            dead.acked = dead.acked.max(version);
            // The increments that were given up are still to come, on top of this one.
            if let (Op::IncrBy { value: by_now, .. }, Some(Record { op: Op::IncrBy { value, .. }, version: older, .. })) =
                (record.op, dead.records.last_mut())
                && *older < version
            {
                *value = by_now;
            }
        }
        self.dead.take_if(|dead| dead.records.is_empty());
        Some(())
    }

    /// How the records that were given up are to come back. `None`: there are none.
    pub fn plan_revival(&self, frozen_to: i64) -> Option<Return> {
        let dead = self.dead.as_ref()?;
        let claimed = self.chain.first().is_some_and(|head| head.frozen || head.version <= frozen_to);
        let is_overtaken = |record: &Record| claimed || record.version < dead.acked;
        let open = self.open_dead();
        if open.iter().any(|record| record.op.is_absolute()) || !open.iter().any(is_overtaken) {
            return Some(Return::AsTheyWere);
        }
        Some(if self.open_sum().is_some() { Return::AsTheirSum } else { Return::OutOfRange })
    }

    /// The sum of the increments that were given up. `None`: there is more than increments, or it is out of range.
    fn open_sum(&self) -> Option<i64> {
        self.open_dead().iter().try_fold(0_i64, |sum, record| match record.op {
            Op::IncrBy { by, .. } => sum.checked_add(by),
            Op::Set(_) | Op::Del => None,
        })
    }

    /// Takes the records that were given up in again; those that were overruled go. `None`, and nothing changes: there are none,
    /// or they cannot come back like this.
    pub fn revive(&mut self, revival: Revival) -> Option<()> {
        let dead = self.dead.as_ref()?;
        let open: Vec<Record> = self.open_dead().to_vec();
        match revival {
            Revival::Kept { due } => {
                if self.claim.is_some() {
                    return None;
                }
                let (acked, first) = (dead.acked, self.chain.first().map(|head| head.version));
                if open.iter().any(|record| record.version < acked || first.is_some_and(|first| first < record.version))
                {
                    return None;
                }
                for record in open.into_iter().rev() {
                    self.chain.insert(0, Record { due, failures: 0, frozen: true, message: None, ..record });
                }
            }
            Revival::Merged(mark) => {
                let by = self.open_sum()?;
                let value = match self.view()? {
                    View::Value(value) => parse_int(&value),
                    View::Deleted | View::Unknown => None,
                };
                self.put(Write::IncrBy { by, value }, mark)?;
            }
        }
        self.dead = None;
        Some(())
    }

    /// Forgets the records that were given up. Whether there were any.
    pub fn drop_dead(&mut self) -> bool {
        self.dead.take().is_some()
    }

    /// Nothing is left of it.
    pub fn is_over(&self) -> bool {
        self.chain.is_empty() && self.dead.is_none()
    }

    pub fn heap_bytes(&self) -> usize {
        let records = self.chain.iter().chain(self.dead());
        let spilled = if self.chain.spilled() { self.chain.len() } else { 0 };
        let stored = spilled.saturating_add(self.dead().len()).saturating_mul(size_of::<Record>());
        let heap: usize = records.map(Record::heap_bytes).sum();
        self.key.len().saturating_add(heap).saturating_add(stored)
    }
}
