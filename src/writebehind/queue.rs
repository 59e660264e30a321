//! One queue: the entries of its keys, and the orders in which they are looked for. No server, no clock.
//!
//! Which key has which entry is known to the index of all queues ([`super::index`]), so entries go by number here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::record::{Claim, Entry, Mark, Record, Return, Revival, Write};
use super::settings::Settings;
use crate::clock::UnixMs;

/// The number of an entry; none is used twice within a queue.
pub type EntryId = u64;

#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// Tells this queue from another one of the same name: the first version it gave out, or a token.
    pub born: i64,
    pub settings: Settings,
    pub counters: Counters,
    /// Boxed, since the tree's nodes are not full.
    entries: BTreeMap<EntryId, Box<Entry>>,
    last_id: EntryId,
    /// Heads that nobody has, by when they are due; then by version.
    ready: BTreeSet<(UnixMs, i64, EntryId)>,
    /// Heads that somebody has, by when his claim ends.
    claimed: BTreeSet<(UnixMs, i64, EntryId)>,
    /// Heads by the time of their first write.
    ages: BTreeSet<(UnixMs, EntryId)>,
    /// Entries with records that were given up, by the version of the oldest one.
    dead: BTreeSet<(i64, EntryId)>,
    tally: Tally,
}

/// Since the queue was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes that became one with another.
    pub coalesced: u64,
    /// Claims that ended without an ACK.
    pub retries: u64,
    /// Records that were acked.
    pub cleaned: u64,
}

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub entries: usize,
    /// Records not yet acked, without those that were given up.
    pub dirty: usize,
    pub in_flight: usize,
    pub dead: usize,
    /// Entries whose key is deleted or unknown by them.
    pub hiding: usize,
    /// Of keys, payloads and messages, and of what does not fit into the entries.
    pub heap_bytes: usize,
}

/// A claim whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lapsed {
    pub id: EntryId,
    pub version: i64,
    /// With this one.
    pub failures: u32,
    pub until: UnixMs,
}

/// Where an entry stands in the orders.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    ready: Option<(UnixMs, i64)>,
    claimed: Option<(UnixMs, i64)>,
    since: Option<UnixMs>,
    dead: Option<i64>,
}

impl Place {
    fn of(entry: &Entry) -> Place {
        let head = entry.chain.first();
        let claimed = entry.claim.as_ref().zip(head).map(|(claim, head)| (claim.until, head.version));
        Place {
            ready: head.filter(|_| claimed.is_none()).map(|head| (head.due, head.version)),
            claimed,
            since: head.map(|head| head.since),
            dead: entry.dead().first().map(|record| record.version),
        }
    }
}

impl Tally {
    fn of(entry: &Entry) -> Tally {
        Tally {
            entries: 1,
            dirty: entry.chain.len(),
            in_flight: usize::from(entry.claim.is_some()),
            dead: entry.dead().len(),
            hiding: usize::from(entry.view().is_some_and(|view| view.hides())),
            heap_bytes: entry.heap_bytes(),
        }
    }

    /// `self` with `old` taken out and `new` added.
    pub fn replacing(self, old: Tally, new: Tally) -> Tally {
        let change = |of: fn(&Tally) -> usize| of(&self).saturating_sub(of(&old)).saturating_add(of(&new));
        Tally {
            entries: change(|tally| tally.entries),
            dirty: change(|tally| tally.dirty),
            in_flight: change(|tally| tally.in_flight),
            dead: change(|tally| tally.dead),
            hiding: change(|tally| tally.hiding),
            heap_bytes: change(|tally| tally.heap_bytes),
        }
    }
}

/// Puts a number into its new place in an order.
fn move_in<T: Ord>(order: &mut BTreeSet<T>, old: Option<T>, new: Option<T>) {
    if old != new {
        if let Some(old) = old {
            order.remove(&old);
        }
        order.extend(new);
    }
}

impl Queue {
    pub fn new(born: i64) -> Queue {
        Queue { born, ..Queue::default() }
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    pub fn entry(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(&id).map(Box::as_ref)
    }

    /// In the order in which their keys became dirty.
    pub fn entries(&self) -> impl Iterator<Item = (EntryId, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, &**entry))
    }

    /// Is there anything that must not be lost?
    pub fn in_use(&self) -> bool {
        self.tally.entries > 0 || self.settings != Settings::default()
    }

    /// No further record has room.
    pub fn is_full(&self) -> bool {
        let records = self.tally.dirty.saturating_add(self.tally.dead);
        let most = usize::try_from(self.settings.max_dirty).unwrap_or(usize::MAX);
        most > 0 && records >= most
    }

    /// Takes an entry in.
    pub fn insert(&mut self, entry: Box<Entry>) -> EntryId {
        self.last_id = self.last_id.saturating_add(1);
        let id = self.last_id;
        self.tally = self.tally.replacing(Tally::default(), Tally::of(&entry));
        self.put_in_order(id, Place::default(), Place::of(&entry));
        self.entries.insert(id, entry);
        id
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: EntryId) -> Option<Box<Entry>> {
        let entry = self.entries.remove(&id)?;
        self.tally = self.tally.replacing(Tally::of(&entry), Tally::default());
        self.put_in_order(id, Place::of(&entry), Place::default());
        Some(entry)
    }

    /// Takes an entry out of a queue that nobody looks into any more: the orders lose any one.
    pub fn take_apart(&mut self) -> Option<(EntryId, Box<Entry>)> {
        self.ready.pop_first();
        self.claimed.pop_first();
        self.ages.pop_first();
        self.dead.pop_first();
        let (id, entry) = self.entries.pop_first()?;
        self.tally = self.tally.replacing(Tally::of(&entry), Tally::default());
        Some((id, entry))
    }

    /// Lets `act` change an entry, and puts it into its places again.
    fn change<T>(&mut self, id: EntryId, act: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let entry = self.entries.get_mut(&id)?;
        let (place, tally) = (Place::of(entry), Tally::of(entry));
        let acted = act(entry);
        let (new_place, new_tally) = (Place::of(entry), Tally::of(entry));
        self.tally = self.tally.replacing(tally, new_tally);
        self.put_in_order(id, place, new_place);
        Some(acted)
    }

    fn put_in_order(&mut self, id: EntryId, old: Place, new: Place) {
        let head = |place: Option<(UnixMs, i64)>| place.map(|(at, version)| (at, version, id));
        move_in(&mut self.ready, head(old.ready), head(new.ready));
        move_in(&mut self.claimed, head(old.claimed), head(new.claimed));
        move_in(&mut self.ages, old.since.map(|since| (since, id)), new.since.map(|since| (since, id)));
        move_in(&mut self.dead, old.dead.map(|version| (version, id)), new.dead.map(|version| (version, id)));
    }

    /// See [`Entry::put`].
    pub fn put(&mut self, id: EntryId, write: Write, mark: Mark) -> Option<()> {
        self.change(id, |entry| entry.put(write, mark))??;
        if mark.joins {
            self.counters.coalesced = self.counters.coalesced.saturating_add(1);
        }
        Some(())
    }

    /// Gives the record that is due longest to a worker. A claim that has lapsed is to be ended first, see [`Queue::lapsed`].
    pub fn claim(&mut self, worker: &Arc<[u8]>, now: UnixMs, until: UnixMs) -> Option<EntryId> {
        let &(due, version, id) = self.ready.first()?;
        if due > now {
            return None;
        }
        // Not by `change`: a worker may ask for thousands at once, and only two orders change.
        self.ready.pop_first();
        let entry = self.entries.get_mut(&id)?;
        entry.claim(Claim { worker: Arc::clone(worker), until });
        self.claimed.insert((until, version, id));
        self.tally.in_flight = self.tally.in_flight.saturating_add(1);
        Some(id)
    }

    /// Takes a claim back that never reached its worker.
    pub fn unclaim(&mut self, id: EntryId) {
        self.change(id, |entry| entry.claim = None);
    }

    /// Takes every claim back: nobody is heard any more. What was claimed stays frozen.
    pub fn unclaim_all(&mut self) {
        let ids: Vec<EntryId> = self.claimed.iter().map(|(_, _, id)| *id).collect();
        for id in ids {
            self.unclaim(id);
        }
    }

    /// A claim whose time is over.
    pub fn lapsed(&self, now: UnixMs) -> Option<Lapsed> {
        let &(until, version, id) = self.claimed.first()?;
        let failures = self.entry(id)?.chain.first()?.failures.saturating_add(1);
        (until <= now).then_some(Lapsed { id, version, failures, until })
    }

    /// Does this worker hold this version? With how many failures, should he fail now.
    pub fn held_by(&self, id: EntryId, worker: &[u8], version: i64) -> Option<u32> {
        let entry = self.entry(id)?;
        let head = entry.chain.first().filter(|head| head.version == version)?;
        let claim = entry.claim.as_ref()?;
        (*claim.worker == *worker).then(|| head.failures.saturating_add(1))
    }

    /// See [`Entry::fail`].
    pub fn fail(
        &mut self,
        id: EntryId,
        version: i64,
        failures: u32,
        due: UnixMs,
        message: Option<&[u8]>,
    ) -> Option<()> {
        self.change(id, |entry| entry.fail(version, failures, due, message))??;
        self.counters.retries = self.counters.retries.saturating_add(1);
        Some(())
    }

    /// See [`Entry::die`].
    pub fn die(&mut self, id: EntryId, version: i64, failures: u32, message: Option<&[u8]>) -> Option<()> {
        self.change(id, |entry| entry.die(version, failures, message))?
    }

    /// See [`Entry::ack`].
    pub fn ack(&mut self, id: EntryId, version: i64) -> Option<()> {
        self.change(id, |entry| entry.ack(version))??;
        self.counters.cleaned = self.counters.cleaned.saturating_add(1);
        Some(())
    }

    /// See [`Entry::plan_revival`].
    pub fn plan_revival(&self, id: EntryId, frozen_to: i64) -> Option<Return> {
        self.entry(id)?.plan_revival(frozen_to)
    }

    /// See [`Entry::revive`].
    pub fn revive(&mut self, id: EntryId, revival: Revival) -> Option<()> {
        self.change(id, |entry| entry.revive(revival))?
    }

    /// See [`Entry::drop_dead`].
    pub fn drop_dead(&mut self, id: EntryId) -> bool {
        self.change(id, Entry::drop_dead).unwrap_or(false)
    }

    /// The records that were given up, with their keys, oldest first of each key.
    pub fn dead(&self) -> impl Iterator<Item = (&[u8], &Record)> {
        let entries = self.dead.iter().filter_map(|(_, id)| self.entry(*id));
        entries.flat_map(|entry| entry.dead().iter().map(|record| (&*entry.key, record)))
    }

    /// When the next record that nobody has is due.
    pub fn next_due(&self) -> Option<UnixMs> {
        self.ready.first().map(|(due, _, _)| *due)
    }

    /// When the next claim ends.
    pub fn next_lapse(&self) -> Option<UnixMs> {
        self.claimed.first().map(|(until, _, _)| *until)
    }

    /// When the first write came that the origin does not have yet.
    pub fn oldest(&self) -> Option<UnixMs> {
        self.ages.first().map(|(since, _)| *since)
    }

    /// The greatest version in it.
    pub fn last_version(&self) -> i64 {
        self.entries.values().map(|entry| entry.last_version()).fold(self.born, i64::max)
    }

    /// Bytes of memory, about: of the entries, and of their places in the orders.
    pub fn bytes(&self) -> usize {
        bytes(self.tally)
    }
}

/// Bytes of memory of this much. Trees are little more than half full, and each entry has two pieces of memory with what the
/// allocator adds.
pub fn bytes(tally: Tally) -> usize {
    const PLACES: usize = size_of::<(UnixMs, i64, EntryId)>() + size_of::<(UnixMs, EntryId)>();
    const ENTRY: usize = size_of::<Entry>() + 2 * (PLACES + size_of::<(EntryId, Box<Entry>)>()) + 32;
    tally.entries.saturating_mul(ENTRY).saturating_add(tally.heap_bytes)
}
