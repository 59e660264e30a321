//! The write-behind family's memory: the queues themselves, which key is dirty in which of them, and who waits for work.
//!
//! A queue's key holds a handle, the number of the queue. So a read of a dirty key finds its value without opening the queue's key,
//! and a queue of a million records goes from name to name, or into limbo, without being touched.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::index::{KeyIndex, QueueId};
use super::queue::{EntryId, Queue, Tally, bytes};
use super::record::{Entry, Mark, View, Write};
use super::request::Request;
use super::value::Handle;
use crate::clock::{UnixMs, UnixUs};
use crate::departures::{Departures, Fate, FollowUp};
use crate::fencing::Fencing;
use crate::limbo::Keyless;
use crate::name::Name;
use crate::server::Waiter;
use crate::state::KeyEvent;
use crate::wait_queue::WaitQueues;

#[derive(Debug, Default)]
pub struct State {
    pub waiting: WaitQueues<Request>,
    pub counters: Counters,
    queues: BTreeMap<QueueId, Housed>,
    index: KeyIndex,
    departures: Departures<Queued>,
    /// When the next claim of each queue ends.
    lapses: BTreeSet<(UnixMs, QueueId)>,
    /// Queues that are gone, and whose memory is given back bit by bit.
    gone: Vec<(QueueId, usize, Queue)>,
    /// Over all queues.
    tally: Tally,
    last_queue: QueueId,
    /// See [`Entry::joins`].
    frozen_to: i64,
}

/// Since the server started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub writes: u64,
    pub coalesced: u64,
    /// Writes refused because of MAXDIRTY.
    pub refused: u64,
    pub claims: u64,
    pub acks: u64,
    /// Claims that ended by a NACK, and by the end of their time.
    pub nacks: u64,
    pub lapses: u64,
    pub died: u64,
    /// Workers that waited, and that were refused to.
    pub waits: u64,
    pub waits_refused: u64,
    /// Queues whose evicted key was put back, and that were deleted or overwritten.
    pub put_backs: u64,
    pub forgotten: u64,
}

/// A queue and where it is.
#[derive(Debug)]
struct Housed {
    queue: Queue,
    name: Name,
    /// Its value has left its name, and it is open why: nothing may be read from it.
    adrift: bool,
}

/// A queue as the handle in its key stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    pub id: QueueId,
    pub born: i64,
    in_use: bool,
}

impl Keyless for Queued {
    fn heap_bytes(&self) -> usize {
        0
    }

    fn token(&self) -> i64 {
        self.born
    }

    /// Nobody who writes behind a cache means to lose writes: only DEL, FLUSH and overwriting end a queue.
    fn outlives(&self, event: KeyEvent, _now: UnixMs) -> bool {
        self.in_use && matches!(event, KeyEvent::Evicted | KeyEvent::Expired)
    }
}

/// A queue in limbo, in an RDB file.
#[derive(Serialize, Deserialize)]
struct SavedLimbo<'a> {
    db: usize,
    key: &'a [u8],
    queue: &'a [u8],
}

/// The kind of record in an RDB file.
const LIMBO: u64 = 1;

impl State {
    /// No key is dirty: the fast way for reads.
    #[inline]
    pub fn is_clean(&self) -> bool {
        self.tally.entries == 0
    }

    /// What the queues know of a key's value: by the newest record, if several queues have one.
    pub fn view(&self, db: usize, key: &[u8]) -> Option<View<'_>> {
        self.newest(db, key)?.view()
    }

    /// Must neither the cached key nor the origin be asked?
    #[inline]
    pub fn hides(&self, db: usize, key: &[u8]) -> bool {
        self.tally.hiding > 0 && self.view(db, key).is_some_and(|view| view.hides())
    }

    fn newest(&self, db: usize, key: &[u8]) -> Option<&Entry> {
        if self.is_clean() {
            return None;
        }
        let entries = self.index.candidates(key).filter_map(|place| {
            let housed = self.queues.get(&place.queue).filter(|housed| housed.name.db == db && !housed.adrift)?;
            housed.queue.entry(place.entry).filter(|entry| *entry.key == *key && entry.view().is_some())
        });
        entries.max_by_key(|entry| entry.last_version())
    }

    /// When the first write came that the origin does not have yet. Of many queues a thousand are asked.
    pub fn oldest(&self) -> Option<UnixMs> {
        self.queues.values().take(1000).filter_map(|housed| housed.queue.oldest()).min()
    }

    pub fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.queues.get(&id).map(|housed| &housed.queue)
    }

    /// The name of its key.
    pub fn name(&self, id: QueueId) -> Option<&Name> {
        self.queues.get(&id).map(|housed| &housed.name)
    }

    /// The key's entry in this queue.
    pub fn entry_of(&self, id: QueueId, key: &[u8]) -> Option<EntryId> {
        let queue = self.queue(id)?;
        let mut places = self.index.candidates(key).filter(|place| place.queue == id);
        let is_of = |entry: EntryId| queue.entry(entry).is_some_and(|entry| *entry.key == *key);
        places.find(|place| is_of(place.entry)).map(|place| place.entry)
    }

    pub fn entry(&self, id: QueueId, entry: EntryId) -> Option<&Entry> {
        self.queue(id)?.entry(entry)
    }

    /// Up to which version records may have been claimed from another primary.
    pub fn frozen_to(&self) -> i64 {
        self.frozen_to
    }

    /// Lets `act` change a queue, and keeps the books.
    pub fn change<T>(&mut self, id: QueueId, act: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        let queue = &mut self.queues.get_mut(&id)?.queue;
        let (tally, lapse) = (queue.tally(), queue.next_lapse());
        let acted = act(queue);
        self.tally = self.tally.replacing(tally, queue.tally());
        let next = queue.next_lapse();
        if next != lapse {
            if let Some(lapse) = lapse {
                self.lapses.remove(&(lapse, id));
            }
            self.lapses.extend(next.map(|next| (next, id)));
        }
        Some(acted)
    }

    /// Adds a write of a key to a queue. `None`, and nothing changes: it cannot have come like this.
    pub fn put(&mut self, id: QueueId, key: &[u8], write: Write, mark: Mark) -> Option<()> {
        if let Some(entry) = self.entry_of(id, key) {
            self.change(id, |queue| queue.put(entry, write, mark))??;
        } else {
            let mut entry = Box::new(Entry::new(key));
            entry.put(write, mark)?;
            let entry = self.change(id, |queue| queue.insert(entry))?;
            self.index.insert(key, id, entry);
        }
        Some(())
    }

    /// Lets `act` change an entry, which goes if nothing is left of it.
    pub fn change_entry<T>(
        &mut self,
        id: QueueId,
        entry: EntryId,
        act: impl FnOnce(&mut Queue) -> Option<T>,
    ) -> Option<T> {
        let acted = self.change(id, act)??;
        if self.entry(id, entry).is_some_and(Entry::is_over)
            && let Some(over) = self.change(id, |queue| queue.remove(entry)).flatten()
        {
            self.index.remove(&over.key, id, entry);
        }
        Some(acted)
    }

    /// Takes a queue in; its number.
    pub fn insert(&mut self, db: usize, key: &[u8], queue: Queue) -> QueueId {
        self.last_queue = self.last_queue.saturating_add(1);
        let id = self.last_queue;
        for (entry, of) in queue.entries() {
            self.index.insert(&of.key, id, entry);
        }
        self.tally = self.tally.replacing(Tally::default(), queue.tally());
        self.lapses.extend(queue.next_lapse().map(|lapse| (lapse, id)));
        self.queues.insert(id, Housed { queue, name: Name { db, key: key.into() }, adrift: false });
        id
    }

    /// A queue is gone. Its records are found no more; their memory is given back bit by bit.
    fn bury(&mut self, id: QueueId) {
        let Some(Housed { queue, name, .. }) = self.queues.remove(&id) else { return };
        self.tally = self.tally.replacing(queue.tally(), Tally::default());
        self.lapses.retain(|(_, of)| *of != id);
        self.gone.push((id, name.db, queue));
    }

    fn bury_all(&mut self, gone: impl IntoIterator<Item = Queued>) {
        gone.into_iter().for_each(|queued| self.bury(queued.id));
    }

    /// Gives memory of queues that are gone back, at most of `budget` entries. Calls back for keys whose value nobody knew: they
    /// can be loaded now.
    pub fn clear_away(&mut self, budget: usize, mut freed: impl FnMut(usize, &[u8])) {
        for _ in 0..budget {
            let Some((id, db, queue)) = self.gone.last_mut() else { return };
            match queue.take_apart() {
                Some((number, entry)) => {
                    self.index.remove(&entry.key, *id, number);
                    if entry.view() == Some(View::Unknown) {
                        freed(*db, &entry.key);
                    }
                }
                None => drop(self.gone.pop()),
            }
        }
    }

    fn queued(&self, id: QueueId) -> Option<Queued> {
        let queue = self.queue(id)?;
        Some(Queued { id, born: queue.born, in_use: queue.in_use() })
    }

    fn set_adrift(&mut self, id: QueueId, adrift: bool) {
        if let Some(housed) = self.queues.get_mut(&id) {
            housed.adrift = adrift;
        }
    }

    /// A queue's value leaves its name.
    pub fn unlinked(&mut self, db: usize, key: &[u8], handle: &Handle) {
        let queued = handle.id().and_then(|id| self.queued(id));
        if let Some(queued) = queued {
            self.set_adrift(queued.id, true);
        }
        let overwritten = self.departures.left(db, key, queued);
        self.bury_all(overwritten);
    }

    /// A queue's value has come to this name: by RENAME, MOVE, COPY, RESTORE, or from an RDB file.
    pub fn linked(&mut self, db: usize, key: &[u8], handle: &mut Handle, fencing: &mut Fencing, now: UnixUs) {
        let id = handle.id();
        let (back, gone) = self.departures.arrived(db, key, |queued| id == Some(queued.id));
        self.bury_all(gone);
        if let Some(queue) = handle.take_loaded() {
            fencing.saw_in_value(queue.last_version(), now);
            *handle = Handle::Queue(self.insert(db, key, queue));
        } else if let Some(Queued { id, .. }) = back
            && let Some(housed) = self.queues.get_mut(&id)
        {
            housed.adrift = false;
            housed.name = Name { db, key: key.into() };
        }
        self.waiting.look_at(db, key);
    }

    pub fn key_moved(&mut self, from: (usize, &[u8]), to: (usize, &[u8])) {
        let gone = self.departures.key_moved(from, to);
        self.bury_all(gone);
    }

    pub fn key_event(&mut self, event: KeyEvent, db: usize, key: &[u8], now: UnixMs, replayed: bool) -> FollowUp {
        if self.departures.is_empty() {
            return FollowUp::default();
        }
        let (fate, overwritten) = self.departures.key_event(event, db, key, now, replayed);
        self.bury_all(overwritten);
        match fate {
            Fate::Nothing => FollowUp::default(),
            Fate::Kept => {
                if let Some(Queued { id, .. }) = self.departures.limbo.get(db, key).copied() {
                    self.set_adrift(id, false);
                }
                FollowUp { forget: None, put_back_soon: !replayed }
            }
            Fate::Gone { record, told } => {
                self.bury(record.id);
                if matches!(event, KeyEvent::Deleted | KeyEvent::Written) {
                    self.counters.forgotten = self.counters.forgotten.saturating_add(1);
                }
                FollowUp { forget: told.then_some(record.born), put_back_soon: false }
            }
        }
    }

    /// The queue of this name whose key was evicted and is still to be put back.
    pub fn in_limbo(&self, db: usize, key: &[u8]) -> Option<Queued> {
        self.departures.limbo.get(db, key).copied()
    }

    pub fn take_from_limbo(&mut self, db: usize, key: &[u8]) -> Option<Queued> {
        self.departures.limbo.take(db, key)
    }

    pub fn names_in_limbo(&self, max: usize) -> Vec<Name> {
        self.departures.limbo.names(max)
    }

    pub fn limbo_len(&self) -> usize {
        self.departures.limbo.len()
    }

    /// Drops the queue, wherever it is. The caller sees to its key.
    pub fn forget(&mut self, id: QueueId) {
        self.bury(id);
        let forgotten = &mut self.counters.forgotten;
        *forgotten = forgotten.saturating_add(1);
    }

    /// Drops the queue of this name and token that is without a key.
    pub fn drop_keyless(&mut self, db: usize, key: &[u8], token: i64) {
        let gone = self.departures.take(db, key, token);
        self.bury_all(gone);
    }

    /// One database (`Some`) or all of them are empty now.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.departures.flushed(db);
        let is_flushed = |housed: &Housed| db.is_none_or(|db| db == housed.name.db);
        let ids: Vec<QueueId> =
            self.queues.iter().filter(|(_, housed)| is_flushed(housed)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.bury(id));
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        self.departures.swapped(a, b);
        self.queues.values_mut().for_each(|housed| housed.name.swap(a, b));
        self.waiting.look_at_all(Some(a));
        self.waiting.look_at_all(Some(b));
    }

    /// Whoever was the primary until now may have given out what has a version up to this one.
    pub fn freeze(&mut self, version: i64) {
        self.frozen_to = self.frozen_to.max(version);
    }

    /// This server is no primary any more: nobody acks to it, and the server has answered those who waited.
    pub fn demoted(&mut self) {
        self.waiting = WaitQueues::default();
        let ids: Vec<QueueId> = self.lapses.iter().map(|(_, id)| *id).collect();
        for id in ids {
            self.change(id, Queue::unclaim_all);
        }
    }

    /// A waiter has gone: his wait ran out, or his connection did.
    pub fn waiter_left(&mut self, waiter: Waiter) {
        self.waiting.leave(waiter);
    }

    /// A queue of which a claim has run out.
    pub fn next_lapsed(&self, now: UnixMs) -> Option<QueueId> {
        self.lapses.first().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }

    /// Is memory of queues that are gone still to be given back?
    pub fn has_gone(&self) -> bool {
        !self.gone.is_empty()
    }

    /// When somebody has to look at a queue next.
    #[inline]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        if self.has_gone() {
            return Some(UnixMs(0));
        }
        let lapse = self.lapses.first().map(|(at, _)| *at);
        UnixMs::earliest(lapse, self.waiting.next_look())
    }

    /// What an RDB file carries: the queues in limbo.
    pub fn save(&self, emit: &mut dyn FnMut(u64, &[u8])) {
        for (name, queued) in self.departures.limbo.iter() {
            let Some(queue) = self.queue(queued.id) else { continue };
            let saved = SavedLimbo { db: name.db, key: &name.key, queue: &queue.encode() };
            if let Ok(bytes) = postcard::to_extend(&saved, Vec::new()) {
                emit(LIMBO, &bytes);
            }
        }
    }

    /// Takes in one record of a file. `None`: the bytes are no such record. Unknown kinds are skipped.
    pub fn load(&mut self, kind: u64, bytes: &[u8]) -> Option<()> {
        if kind == LIMBO {
            let (saved, rest) = postcard::take_from_bytes::<SavedLimbo<'_>>(bytes).ok()?;
            let queue = Queue::decode(saved.queue)?;
            if !rest.is_empty() {
                return None;
            }
            let (db, key) = (saved.db, saved.key);
            let id = self.insert(db, key, queue);
            let queued = self.queued(id)?;
            let before = self.departures.limbo.insert(Name { db, key: key.into() }, queued);
            self.bury_all(before);
        }
        Some(())
    }

    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Bytes of all queues with their payloads, which eviction cannot free.
    pub fn bytes(&self) -> usize {
        let gone: usize = self.gone.iter().map(|(_, _, queue)| queue.bytes()).sum();
        bytes(self.tally).saturating_add(gone).saturating_add(self.index.bytes())
    }
}
