//! The lock family's memory: the records that are without a key, and counters. A lock whose key is there
//! is not in it (see [`Lock`]).
//! How a record leaves its key is told in [`crate::departures`]. A lock that was overwritten by a plain write and whose key is then evicted as
//! the very next event looks like an evicted lock, and lives to the end of its lease.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;
use crate::departures::{Departures, Fate, FollowUp};
use crate::limbo::Keyless;
use crate::lock::holders::Holder;
use crate::lock::record::Record;
use crate::lock::request::Request;
use crate::lock::value::Lock;
use crate::name::Name;
use crate::server::Waiter;
use crate::sessions::Sessions;
use crate::state::KeyEvent;
use crate::wait_queue::WaitQueues;

#[derive(Debug, Default)]
pub struct State {
    pub queues: WaitQueues<Request>,
    /// Holds that end with a connection, by their token.
    pub sessions: Sessions<i64>,
    departures: Departures<Parted>,
    tickets: u64,
    /// What is in the keyspace, by the number of the database.
    tallies: Vec<Tally>,
    put_backs: u64,
    forgotten: u64,
    pub counters: Counters,
}

/// Since the server started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Locks granted, also to those who waited.
    pub grants: u64,
    /// Callers that waited, and that were refused to.
    pub waits: u64,
    pub waits_refused: u64,
    /// Locks released because their connection closed.
    pub sessions_closed: u64,
}

/// A record whose key's value has left its name.
#[derive(Debug)]
struct Parted {
    ticket: u64,
    record: Record,
    /// Its queue is to be looked at for this alone.
    looked_at: bool,
}

impl Keyless for Parted {
    fn heap_bytes(&self) -> usize {
        self.record.heap_bytes()
    }

    fn token(&self) -> i64 {
        self.record.token()
    }

    fn outlives(&self, event: KeyEvent, now: UnixMs) -> bool {
        event == KeyEvent::Evicted && self.record.held(Some(now))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    locks: usize,
    heap_bytes: usize,
}

/// A record in limbo, in an RDB file.
#[derive(Serialize, Deserialize)]
struct SavedLimbo<'a> {
    db: usize,
    key: &'a [u8],
    record: &'a [u8],
}

/// The kind of record in an RDB file.
const LIMBO: u64 = 2;

impl State {
    /// A value leaves its name; its record is kept until it is known why. Values whose record was taken out before, by our
    /// own commands, are of no interest.
    pub fn unlinked(&mut self, db: usize, key: &[u8], lock: &mut Lock) {
        let looked_at = self.queues.look_at(db, key);
        let ticket = self.tickets.wrapping_add(1);
        let parted = lock.unlink(ticket).map(|record| Parted { ticket, record, looked_at });
        if let Some(Parted { record, .. }) = &parted {
            self.tickets = ticket;
            self.left(db, key, record);
        }
        self.departures.left(db, key, parted);
    }

    /// A value has come to this name: by RENAME, MOVE, COPY, RESTORE, or from an RDB file.
    pub fn linked(&mut self, db: usize, key: &[u8], lock: &mut Lock) {
        let is_its = |parted: &Parted| *lock == (Lock::Unlinked { ticket: parted.ticket });
        let (back, gone) = self.departures.arrived(db, key, is_its);
        gone.iter().for_each(|parted| self.sessions_left(db, key, &parted.record));
        self.queues.look_at(db, key);
        if let Some(parted) = back {
            *lock = Lock::Held(parted.record);
        }
        if let Some(record) = lock.record() {
            self.arrived(db, key, record);
        }
    }

    /// Whatever had one name has another now. A lock in limbo under either of them was overwritten meanwhile.
    pub fn key_moved(&mut self, from: (usize, &[u8]), to: (usize, &[u8])) {
        for (db, key) in [from, to] {
            self.take_from_limbo(db, key);
            self.queues.look_at(db, key);
        }
    }

    /// The key changed. `replayed`: by the primary or the AOF, so that a deletion may be an eviction there.
    pub fn key_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs, replayed: bool) -> FollowUp {
        if self.departures.is_empty() {
            return FollowUp::default();
        }
        match self.departures.key_event(event, db, key, now, replayed) {
            (Fate::Nothing, _) => FollowUp::default(),
            (Fate::Kept, overwritten) => {
                if let Some(parted) = overwritten {
                    self.sessions_left(db, key, &parted.record);
                }
                self.kept(db, key, replayed);
                FollowUp { put_back_soon: !replayed, ..FollowUp::default() }
            }
            (Fate::Gone { record: parted, told }, _) => {
                self.sessions_left(db, key, &parted.record);
                self.queues.look_at(db, key);
                if matches!(event, KeyEvent::Deleted | KeyEvent::Written) {
                    self.count_forgotten();
                }
                FollowUp { forget: told.then_some(parted.record.token()), ..FollowUp::default() }
            }
        }
    }

    /// A record went into limbo.
    fn kept(&mut self, db: usize, key: &[u8], replayed: bool) {
        let Some(Parted { record, looked_at, .. }) = self.departures.limbo.get(db, key) else { return };
        if *looked_at && !replayed {
            // It is held as before. A queue that was looked at would bring the key back at once, see `put_back`.
            self.queues.never_mind(db, key);
        }
        for holder in record.holders().iter() {
            self.sessions.arrived(db, key, holder.session, &holder.token());
        }
    }

    /// The lock of this name that is held although its key is gone.
    pub fn in_limbo(&self, db: usize, key: &[u8]) -> Option<&Record> {
        self.departures.limbo.get(db, key).map(|parted| &parted.record)
    }

    pub fn take_from_limbo(&mut self, db: usize, key: &[u8]) -> Option<Record> {
        let parted = self.departures.limbo.take(db, key)?;
        self.sessions_left(db, key, &parted.record);
        Some(parted.record)
    }

    fn sessions_left(&mut self, db: usize, key: &[u8], record: &Record) {
        record.holders().iter().for_each(|holder| self.sessions.left(db, key, holder.session, &holder.token()));
    }

    /// Drops the record of this name and token, if it is without a key.
    pub fn drop_keyless(&mut self, db: usize, key: &[u8], token: i64) {
        if let Some(parted) = self.departures.take(db, key, token) {
            self.sessions_left(db, key, &parted.record);
            self.queues.look_at(db, key);
        }
    }

    pub fn names_in_limbo(&self, max: usize) -> Vec<Name> {
        self.departures.limbo.names(max)
    }

    /// One database (`Some`) or all of them are empty now. Tokens go on growing.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.queues.look_at_all(db);
        self.sessions.flushed(db);
        self.departures.flushed(db);
        match db {
            None => self.tallies.clear(),
            Some(db) => self.count(db, |tally| *tally = Tally::default()),
        }
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        self.departures.swapped(a, b);
        self.sessions.swapped(a, b);
        self.queues.look_at_all(Some(a));
        self.queues.look_at_all(Some(b));
        self.make_tallies(a.max(b));
        self.tallies.swap(a, b);
    }

    /// What an RDB file carries: what is in limbo.
    pub fn save(&self, emit: &mut dyn FnMut(u64, &[u8])) {
        for (name, parted) in self.departures.limbo.iter() {
            let saved = SavedLimbo { db: name.db, key: &name.key, record: &parted.record.encode(Vec::new()) };
            if let Ok(bytes) = postcard::to_extend(&saved, Vec::new()) {
                emit(LIMBO, &bytes);
            }
        }
    }

    /// Takes in one record of a file. `None`: the bytes are no such record. Unknown kinds are skipped.
    pub fn load(&mut self, kind: u64, bytes: &[u8]) -> Option<()> {
        if kind == LIMBO {
            let (saved, rest) = postcard::take_from_bytes::<SavedLimbo<'_>>(bytes).ok()?;
            let record = Record::decode(saved.record)?;
            if !rest.is_empty() {
                return None;
            }
            // Its token is below the reserve, and no connection is saved.
            let name = Name { db: saved.db, key: saved.key.into() };
            self.departures.limbo.insert(name, Parted { ticket: 0, record, looked_at: false });
        }
        Some(())
    }

    fn count(&mut self, db: usize, change: impl FnOnce(&mut Tally)) {
        self.make_tallies(db);
        if let Some(tally) = self.tallies.get_mut(db) {
            change(tally);
        }
    }

    fn make_tallies(&mut self, last: usize) {
        if last >= self.tallies.len() {
            self.tallies.resize(last.saturating_add(1), Tally::default());
        }
    }

    /// A record has come into the keyspace.
    pub fn arrived(&mut self, db: usize, key: &[u8], record: &Record) {
        self.count(db, |tally| {
            tally.locks = tally.locks.saturating_add(1);
            tally.heap_bytes = tally.heap_bytes.saturating_add(record.heap_bytes());
        });
        record.holders().iter().for_each(|holder| self.sessions.arrived(db, key, holder.session, &holder.token()));
    }

    /// A record has gone from the keyspace.
    pub fn left(&mut self, db: usize, key: &[u8], record: &Record) {
        self.count(db, |tally| {
            tally.locks = tally.locks.saturating_sub(1);
            tally.heap_bytes = tally.heap_bytes.saturating_sub(record.heap_bytes());
        });
        self.sessions_left(db, key, record);
    }

    /// Holders have left a record in the keyspace, which others hold still. It had `before` heap bytes, and has `after`.
    pub fn holders_left(&mut self, db: usize, key: &[u8], holders: &[Holder], (before, after): (usize, usize)) {
        self.resized(db, before, after);
        for holder in holders {
            self.sessions.left(db, key, holder.session, &holder.token());
        }
    }

    pub fn resized(&mut self, db: usize, before: usize, after: usize) {
        self.count(db, |tally| tally.heap_bytes = tally.heap_bytes.saturating_sub(before).saturating_add(after));
    }

    /// A waiter has gone: his wait ran out, or his connection did.
    pub fn waiter_left(&mut self, waiter: Waiter) {
        self.queues.leave(waiter);
    }

    /// A connection has closed.
    pub fn connection_closed(&mut self, session: u64) {
        self.sessions.closed(session);
    }

    /// When the next queue is to be looked at, or the next lock to be released because its connection closed.
    #[inline]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        if self.sessions.any_closed() { Some(UnixMs(0)) } else { self.queues.next_look() }
    }

    /// This server is no primary any more: it grants nothing, and the server has answered those who waited.
    pub fn demoted(&mut self) {
        self.queues = WaitQueues::default();
        self.sessions = Sessions::default();
    }

    pub fn count_put_back(&mut self) {
        self.put_backs = self.put_backs.saturating_add(1);
    }

    pub fn count_forgotten(&mut self) {
        self.forgotten = self.forgotten.saturating_add(1);
    }

    /// Evicted locks whose key was put back.
    pub fn put_backs(&self) -> u64 {
        self.put_backs
    }

    /// Locks dropped on the primary because their key was deleted, expired or overwritten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Locks in the keyspace and in limbo; expired ones count until their key goes.
    pub fn locks(&self) -> usize {
        self.tallies.iter().map(|tally| tally.locks).sum::<usize>().saturating_add(self.departures.limbo.len())
    }

    /// Locks that are held although their key was evicted, and wait to be put back.
    pub fn limbo_len(&self) -> usize {
        self.departures.limbo.len()
    }

    /// Bytes of all records with their owners' names, without the server's own part of the keys.
    pub fn bytes(&self) -> usize {
        let in_keys = self.tallies.iter().map(|tally| {
            let values = tally.locks.saturating_mul(size_of::<Lock>());
            values.saturating_add(tally.heap_bytes)
        });
        in_keys.sum::<usize>().saturating_add(self.departures.limbo.bytes())
    }
}
