//! The lock family's memory: the records that are without a key, and counters. A lock whose key is there
//! is not in it (see [`Lock`]).
//!
//! How a record leaves its key. The value tells first (`unlinked`), then, before anything else is unlinked, an event tells why
//! (`key_event` for DEL, expiry and eviction, `linked` for RENAME and MOVE). When no event comes the value was overwritten, and
//! the record goes with the next thing that happens. Primary and replica see these in the same order, so they agree. One
//! thing they cannot tell: a lock overwritten by a plain write whose key is then evicted as the very next event looks like
//! an evicted lock, and lives to the end of its lease.
//!
//! A replica sees one DEL for a deletion, an expiry and an eviction. It keeps the record until the primary puts the key back
//! or says FORGET. The primary says so whenever it drops a record after a removal, so a replica drops none by a clock of its
//! own.

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;
use crate::lock::holders::Holder;
use crate::lock::limbo::Limbo;
use crate::lock::record::Record;
use crate::lock::request::Request;
use crate::lock::value::Lock;
use crate::name::Name;
use crate::server::Waiter;
use crate::sessions::Sessions;
use crate::state::{Aftermath, KeyEvent};
use crate::wait_queue::WaitQueues;

#[derive(Debug, Default)]
pub struct State {
    pub queues: WaitQueues<Request>,
    /// Holds that end with a connection, by their token.
    pub sessions: Sessions<i64>,
    limbo: Limbo,
    /// The value that left its name last, while it is open why.
    unlinked: Option<Unlinked>,
    tickets: u64,
    /// By database: what is in the keyspace.
    tallies: HashMap<usize, Tally>,
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

#[derive(Debug)]
struct Unlinked {
    ticket: u64,
    name: Name,
    record: Record,
    /// Its queue is to be looked at for this alone.
    looked_at: bool,
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

/// Is the key gone after this event?
fn removes(event: KeyEvent) -> bool {
    matches!(event, KeyEvent::Deleted | KeyEvent::Expired | KeyEvent::Evicted)
}

/// The kind of record in an RDB file.
const LIMBO: u64 = 2;

impl State {
    /// A value leaves its name; its record is kept until it is known why. Values whose record was taken out before, by our
    /// own commands, are of no interest, but what left before them left for good: its event would have come by now.
    pub fn unlinked(&mut self, db: usize, key: &[u8], lock: &mut Lock) {
        self.unlinked = None;
        let looked_at = self.queues.look_at(db, key);
        let ticket = self.tickets.wrapping_add(1);
        if let Some(record) = lock.unlink(ticket) {
            self.tickets = ticket;
            self.left(db, key, &record);
            self.unlinked = Some(Unlinked { ticket, name: Name { db, key: key.into() }, record, looked_at });
        }
    }

    /// A value has come to this name: by RENAME, MOVE, COPY, RESTORE, or from an RDB file.
    pub fn linked(&mut self, db: usize, key: &[u8], lock: &mut Lock) {
        self.take_from_limbo(db, key);
        self.queues.look_at(db, key);
        if let Some(unlinked) = self.unlinked.take()
            && *lock == (Lock::Unlinked { ticket: unlinked.ticket })
        {
            *lock = Lock::Held(unlinked.record);
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
    pub fn key_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs, replayed: bool) -> Aftermath {
        if self.unlinked.is_none() && self.limbo.is_empty() {
            return Aftermath::Nothing;
        }
        // Plain writes are not reported everywhere. Only the primary looks at them, and it tells what it makes of them.
        let written = event == KeyEvent::Written;
        if written && replayed {
            return Aftermath::Nothing;
        }
        match self.unlinked.take_if(|unlinked| unlinked.name.is(db, key)) {
            Some(unlinked) => self.removed(event, unlinked, now, replayed),
            None => {
                self.unlinked.take_if(|_| !written);
                self.shadowed(event, db, key, replayed)
            }
        }
    }

    /// The value that was unlinked last is gone from its name, by `event`.
    fn removed(&mut self, event: KeyEvent, unlinked: Unlinked, now: UnixMs, replayed: bool) -> Aftermath {
        let Unlinked { name, record, looked_at, .. } = unlinked;
        if removes(event) && replayed {
            self.put_into_limbo(name, record);
            Aftermath::Nothing
        } else if event == KeyEvent::Evicted && record.held(Some(now)) {
            if looked_at {
                // It is held as before. A queue that was looked at would bring the key back at once, see `put_back`.
                self.queues.never_mind(name.db, &name.key);
            }
            self.put_into_limbo(name, record);
            Aftermath::PutBackSoon
        } else {
            self.dropped(event, &record)
        }
    }

    /// Something happened to a key that is not a lock's. If a lock in limbo has that name, it was overwritten meanwhile.
    fn shadowed(&mut self, event: KeyEvent, db: usize, key: &[u8], replayed: bool) -> Aftermath {
        if removes(event) && replayed {
            // The primary says FORGET if it means this lock.
            return Aftermath::Nothing;
        }
        match self.take_from_limbo(db, key) {
            Some(record) => {
                self.queues.look_at(db, key);
                self.dropped(event, &record)
            }
            None => Aftermath::Nothing,
        }
    }

    /// Replicas see for themselves when COPY or RESTORE put another value in place of the lock; the rest they are told.
    fn dropped(&mut self, event: KeyEvent, record: &Record) -> Aftermath {
        if matches!(event, KeyEvent::Replaced | KeyEvent::Loaded) {
            return Aftermath::Nothing;
        }
        if matches!(event, KeyEvent::Deleted | KeyEvent::Written) {
            self.count_forgotten();
        }
        Aftermath::Forget { token: record.token() }
    }

    /// The lock of this name that is held although its key is gone.
    pub fn in_limbo(&self, db: usize, key: &[u8]) -> Option<&Record> {
        self.limbo.get(db, key)
    }

    pub fn take_from_limbo(&mut self, db: usize, key: &[u8]) -> Option<Record> {
        let record = self.limbo.take(db, key)?;
        for holder in record.holders().iter() {
            self.sessions.left(db, key, holder.session, &holder.token());
        }
        Some(record)
    }

    fn put_into_limbo(&mut self, name: Name, record: Record) {
        self.take_from_limbo(name.db, &name.key);
        for holder in record.holders().iter() {
            self.sessions.arrived(name.db, &name.key, holder.session, &holder.token());
        }
        self.limbo.insert(name, record);
    }

    /// Drops the record of this name and token, if it is without a key.
    pub fn drop_keyless(&mut self, db: usize, key: &[u8], token: i64) {
        self.unlinked.take_if(|lost| lost.name.is(db, key) && lost.record.token() == token);
        if self.limbo.get(db, key).is_some_and(|record| record.token() == token) {
            self.take_from_limbo(db, key);
            self.queues.look_at(db, key);
        }
    }

    pub fn names_in_limbo(&self, max: usize) -> Vec<Name> {
        self.limbo.names(max)
    }

    /// One database (`Some`) or all of them are empty now. Tokens go on growing.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.queues.look_at_all(db);
        self.sessions.flushed(db);
        let Some(db) = db else {
            self.unlinked = None;
            self.limbo = Limbo::default();
            self.tallies.clear();
            return;
        };
        self.unlinked.take_if(|unlinked| unlinked.name.db == db);
        self.limbo.flush(db);
        self.tallies.remove(&db);
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        if let Some(unlinked) = &mut self.unlinked {
            unlinked.name.swap(a, b);
        }
        self.limbo.swap(a, b);
        self.sessions.swapped(a, b);
        self.queues.look_at_all(Some(a));
        self.queues.look_at_all(Some(b));
        let (from_a, from_b) = (self.tallies.remove(&a), self.tallies.remove(&b));
        self.tallies.extend(from_a.map(|tally| (b, tally)));
        self.tallies.extend(from_b.map(|tally| (a, tally)));
    }

    /// What an RDB file carries: what is in limbo.
    pub fn save(&self, emit: &mut dyn FnMut(u64, &[u8])) {
        for (name, record) in self.limbo.iter() {
            let saved = SavedLimbo { db: name.db, key: &name.key, record: &record.encode(Vec::new()) };
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
            // Its token is below the reserve.
            self.put_into_limbo(Name { db: saved.db, key: saved.key.into() }, record);
        }
        Some(())
    }

    /// A record has come into the keyspace.
    pub fn arrived(&mut self, db: usize, key: &[u8], record: &Record) {
        let tally = self.tallies.entry(db).or_default();
        tally.locks = tally.locks.saturating_add(1);
        tally.heap_bytes = tally.heap_bytes.saturating_add(record.heap_bytes());
        for holder in record.holders().iter() {
            self.sessions.arrived(db, key, holder.session, &holder.token());
        }
    }

    /// A record has gone from the keyspace.
    pub fn left(&mut self, db: usize, key: &[u8], record: &Record) {
        let tally = self.tallies.entry(db).or_default();
        tally.locks = tally.locks.saturating_sub(1);
        tally.heap_bytes = tally.heap_bytes.saturating_sub(record.heap_bytes());
        for holder in record.holders().iter() {
            self.sessions.left(db, key, holder.session, &holder.token());
        }
    }

    /// Holders have left a record in the keyspace, which others hold still. It had `before` heap bytes, and has `after`.
    pub fn holders_left(&mut self, db: usize, key: &[u8], holders: &[Holder], (before, after): (usize, usize)) {
        self.resized(db, before, after);
        for holder in holders {
            self.sessions.left(db, key, holder.session, &holder.token());
        }
    }

    pub fn resized(&mut self, db: usize, before: usize, after: usize) {
        let tally = self.tallies.entry(db).or_default();
        tally.heap_bytes = tally.heap_bytes.saturating_sub(before).saturating_add(after);
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
        self.tallies.values().map(|tally| tally.locks).sum::<usize>().saturating_add(self.limbo.len())
    }

    /// Locks that are held although their key was evicted, and wait to be put back.
    pub fn limbo_len(&self) -> usize {
        self.limbo.len()
    }

    /// Bytes of all records with their owners' names, without the server's own part of the keys.
    pub fn bytes(&self) -> usize {
        let in_keys = self.tallies.values().map(|tally| {
            let values = tally.locks.saturating_mul(size_of::<Lock>());
            values.saturating_add(tally.heap_bytes)
        });
        in_keys.sum::<usize>().saturating_add(self.limbo.bytes())
    }
}
