//! Who holds a slot of a concurrency limit, and until when. No server, no clock: the moment is passed in.

use std::collections::BTreeMap;
use std::mem::size_of;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::args::Arg;
use crate::clock::{UnixMs, UnixUs};
use crate::error::Error;
use crate::native::NativeValue;
use crate::ratelimit::deadlines::Deadlines;
use crate::reply::Reply;
use crate::state::State;

/// The greatest limit; the least is 1.
pub const MAX_LIMIT: i64 = 1_000_000;

/// The longest id in bytes.
const MAX_ID: usize = 512;

/// How many slots whose lease is over one ENTER drops at most. More than it adds, so that they grow fewer, and few enough for
/// a million that end together not to hold the server.
const DROPPED_AT_ONCE: usize = 32;

/// What a slot is held under. Atomic, since the server may free a value on another thread.
pub type Id = Arc<[u8]>;

/// Checks an id: 1 to 512 bytes.
pub fn id(arg: Arg<'_>) -> Result<Arg<'_>, Error> {
    if (1..=MAX_ID).contains(&arg.bytes.len()) { Ok(arg) } else { Err(Error::IdLength) }
}

/// The type `kw-slots1`: slots, each with a lease. How many there may be is no part of it: the limit is in the call.
///
/// A slot whose lease is over is held by nobody, but goes only with a change that replicas make as well. So nothing that
/// merely looks changes anything.
///
/// A value in the keyspace has at least one slot. Its key expires when the last lease ends.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    by_id: BTreeMap<Id, UnixMs>,
    order: Deadlines,
    /// Those that end with a connection. Neither saved nor replicated: a restart ends all connections.
    sessions: BTreeMap<Id, u64>,
    id_bytes: usize,
}

/// What becomes of an ENTER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The id holds a slot, and holds it longer.
    Renewed,
    Given,
    Denied,
}

/// What ENTER answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub verdict: Verdict,
    /// Slots in use, the caller's included.
    pub in_use: usize,
    pub limit: i64,
    /// 0, or 1 or more when denied: until so many leases have ended that there is room for this caller and for all who wait
    /// before him.
    pub retry_after_ms: i64,
}

/// Slots that ended with a connection, and ended before it.
pub type Unbound = SmallVec<[(Id, u64); 1]>;

impl Answer {
    /// The four integers.
    pub fn reply(&self) -> Reply<'static> {
        let allowed = i64::from(self.verdict != Verdict::Denied);
        let in_use = i64::try_from(self.in_use).unwrap_or(i64::MAX);
        Reply::Ints(smallvec![allowed, in_use, self.limit, self.retry_after_ms])
    }
}

impl Slots {
    /// How many leases are running.
    pub fn in_use(&self, now: UnixMs) -> usize {
        self.by_id.len().saturating_sub(self.order.over(now))
    }

    /// Does this id hold a slot?
    pub fn holds(&self, id: &[u8], now: UnixMs) -> bool {
        self.by_id.get(id).is_some_and(|deadline| now < *deadline)
    }

    /// What becomes of an ENTER while `ahead` others wait. Who holds a slot keeps it, also above the limit; nobody else overtakes
    /// a waiter. Changes nothing: what was allowed is to be followed by [`enter`](Slots::enter).
    pub fn decide(&self, id: &[u8], limit: i64, ahead: usize, now: UnixMs) -> Answer {
        let in_use = self.in_use(now);
        if self.holds(id, now) {
            return Answer { verdict: Verdict::Renewed, in_use, limit, retry_after_ms: 0 };
        }
        let room = usize::try_from(limit).unwrap_or(0);
        if ahead == 0 && in_use < room {
            return Answer { verdict: Verdict::Given, in_use: in_use.saturating_add(1), limit, retry_after_ms: 0 };
        }
        // So many leases must end; more than there are end at no moment that is known.
        let ends = in_use.saturating_add(ahead).saturating_add(1).saturating_sub(room).clamp(1, in_use.max(1));
        let over = self.by_id.len().saturating_sub(in_use);
        let free_at = self.order.nth(over.saturating_add(ends).saturating_sub(1));
        let retry_after_ms = free_at.map_or(1, |at| at.since(now).max(1));
        Answer { verdict: Verdict::Denied, in_use, limit, retry_after_ms }
    }

    /// Gives this id a slot until `deadline`, or renews the one it has, and drops some of those that were over at `now`; returns
    /// which of those were to end with a connection. Deterministic in its arguments and the slots themselves.
    pub fn enter(&mut self, id: &[u8], deadline: UnixMs, now: UnixMs) -> Unbound {
        let mut unbound = Unbound::new();
        for (_, id) in self.order.take_over(now, DROPPED_AT_ONCE) {
            unbound.extend(self.forget(&id));
        }
        if !self.holds(id, now) {
            unbound.extend(self.remove(id));
        }
        let (id, renewed) = match self.by_id.get_key_value(id) {
            Some((id, old)) => (Id::clone(id), Some(*old)),
            None => (Id::from(id), None),
        };
        match renewed {
            Some(old) => self.order.remove(old, &id),
            None => self.id_bytes = self.id_bytes.saturating_add(id.len()),
        }
        self.by_id.insert(Id::clone(&id), deadline);
        self.order.insert(deadline, id);
        unbound
    }

    /// Frees the slots of these ids. How many were held at `now` (`None`: where an effect is applied the clock has no say), and
    /// which were to end with a connection. If none was held nothing changes.
    pub fn leave<'a>(&mut self, ids: impl Iterator<Item = &'a [u8]> + Clone, now: Option<UnixMs>) -> (usize, Unbound) {
        let held = |slots: &Slots, id: &[u8]| match now {
            Some(now) => slots.holds(id, now),
            None => slots.by_id.contains_key(id),
        };
        let (mut freed, mut unbound) = (0_usize, Unbound::new());
        if ids.clone().any(|id| held(self, id)) {
            for id in ids {
                freed = freed.saturating_add(usize::from(held(self, id)));
                unbound.extend(self.remove(id));
            }
        }
        (freed, unbound)
    }

    /// Takes a slot out, whether its lease is over or not. The connection it was to end with.
    fn remove(&mut self, id: &[u8]) -> Option<(Id, u64)> {
        let (id, deadline) = self.by_id.get_key_value(id)?;
        let id = Id::clone(id);
        self.order.remove(*deadline, &id);
        self.forget(&id)
    }

    /// Takes a slot out that is in the order no more.
    fn forget(&mut self, id: &Id) -> Option<(Id, u64)> {
        if self.by_id.remove(id).is_some() {
            self.id_bytes = self.id_bytes.saturating_sub(id.len());
        }
        self.sessions.remove_entry(id)
    }

    /// Lets a slot end with a connection. The id as it is kept, and the connection that it was to end with before; `None` if
    /// there is no such slot.
    pub fn bind(&mut self, id: &[u8], session: u64) -> Option<(Id, Option<u64>)> {
        let (id, _) = self.by_id.get_key_value(id)?;
        let id = Id::clone(id);
        let before = self.sessions.insert(Id::clone(&id), session);
        Some((id, before))
    }

    /// The slots that end with a connection.
    pub fn bound(&self) -> impl Iterator<Item = (&Id, u64)> {
        self.sessions.iter().map(|(id, session)| (id, *session))
    }

    /// Those whose lease is running, in the order in which they end: id, deadline, connection.
    pub fn running(&self, now: UnixMs) -> impl Iterator<Item = (&Id, UnixMs, Option<u64>)> {
        let running = self.order.iter().skip_while(move |(deadline, _)| *deadline <= now);
        running.map(|(deadline, id)| (id, *deadline, self.sessions.get(id).copied()))
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// When the last lease ends.
    pub fn expiry(&self) -> UnixMs {
        self.order.last().unwrap_or_default()
    }
}

impl NativeValue for Slots {
    const TYPE_NAME: &'static str = "kw-slots1";

    /// Ids and deadlines as postcard writes them, in the order of the ids.
    fn encode(&self, _state: &State) -> Vec<u8> {
        let stored: Vec<(&[u8], i64)> = self.by_id.iter().map(|(id, deadline)| (&**id, deadline.0)).collect();
        // Writing to a vector cannot fail; were it to, the dump would be empty, which decode refuses.
        postcard::to_extend(&stored, Vec::new()).unwrap_or_default()
    }

    /// Takes what [`Slots::encode`] can have written and nothing else. Allocates in proportion to the dump's own length.
    fn decode(bytes: &[u8]) -> Option<Slots> {
        let (stored, rest) = postcard::take_from_bytes::<Vec<(&[u8], i64)>>(bytes).ok()?;
        let sound = |(id, deadline): &(&[u8], i64)| (1..=MAX_ID).contains(&id.len()) && *deadline >= 1;
        let in_order = stored.is_sorted_by(|(a, _), (b, _)| a < b);
        if stored.is_empty() || !rest.is_empty() || !in_order || !stored.iter().all(sound) {
            return None;
        }
        let id_bytes = stored.iter().map(|(id, _)| id.len()).sum();
        let by_id: BTreeMap<Id, UnixMs> =
            stored.iter().map(|(id, deadline)| (Id::from(*id), UnixMs(*deadline))).collect();
        let order = Deadlines::of(by_id.iter().map(|(id, deadline)| (*deadline, Id::clone(id))).collect());
        let slots = Slots { by_id, order, sessions: BTreeMap::new(), id_bytes };
        // Postcard accepts some numbers in a longer form than it writes.
        (slots.encode(&State::default()) == bytes).then_some(slots)
    }

    /// Without what the trees keep free.
    fn memory(&self, _state: &State) -> usize {
        /// The counters of an `Arc`.
        const COUNTERS: usize = 2 * size_of::<usize>();
        let slot = size_of::<(Id, UnixMs)>().saturating_add(COUNTERS);
        let session = size_of::<(Id, u64)>().saturating_mul(self.sessions.len());
        let slots = slot.saturating_mul(self.by_id.len()).saturating_add(self.id_bytes);
        size_of::<Self>().saturating_add(slots).saturating_add(session).saturating_add(self.order.heap_bytes())
    }

    fn unlinked(&mut self, db: usize, key: &[u8], state: &mut State) {
        state.ratelimit.unlinked(db, key, self.expiry());
        for (id, session) in self.bound() {
            state.ratelimit.sessions.left(db, key, Some(session), id);
        }
    }

    fn linked(&mut self, db: usize, key: &[u8], state: &mut State, _now: UnixUs) {
        state.ratelimit.linked(db, key);
        for (id, session) in self.bound() {
            state.ratelimit.sessions.arrived(db, key, Some(session), id);
        }
    }

    fn pieces(&self) -> usize {
        self.by_id.len().saturating_add(1)
    }

    /// Whose connection ends has nothing to do with the copy.
    fn copied(&self, _state: &State) -> Option<Slots> {
        Some(Slots { sessions: BTreeMap::new(), ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> [u8; 8] {
        n.to_be_bytes()
    }

    /// Slots of `held` ids whose leases of 100 ms began at 0.
    fn slots(held: usize) -> Slots {
        let mut slots = Slots::default();
        (0..held).for_each(|n| drop(slots.enter(&bytes(n), UnixMs(100), UnixMs(0))));
        slots
    }

    #[test]
    fn a_crowd_that_ends_together_is_out_of_use_at_once_and_dropped_little_by_little() {
        let mut slots = slots(100_000);
        assert_eq!(slots.in_use(UnixMs(99)), 100_000);
        assert_eq!(slots.in_use(UnixMs(100)), 0);
        assert_eq!(slots.decide(b"new", 1, 0, UnixMs(100)).verdict, Verdict::Given);
        let mut entered = 0;
        while slots.by_id.len() > entered {
            let before = slots.by_id.len();
            slots.enter(&bytes(1_000_000 + entered), UnixMs(1000), UnixMs(100));
            entered += 1;
            assert!(slots.by_id.len() > before - DROPPED_AT_ONCE);
            assert_eq!(slots.in_use(UnixMs(100)), entered);
        }
        assert!(entered < 2 * 100_000 / DROPPED_AT_ONCE, "{entered}");
    }

    #[test]
    fn who_wants_a_slot_is_told_when_enough_leases_have_ended() {
        let mut slots = Slots::default();
        (1..=5).for_each(|n| drop(slots.enter(&bytes(n), UnixMs(n as i64 * 100), UnixMs(0))));
        let retry = |limit, ahead| slots.decide(b"new", limit, ahead, UnixMs(150)).retry_after_ms;
        assert_eq!(slots.in_use(UnixMs(150)), 4);
        assert_eq!(retry(4, 0), 50);
        assert_eq!(retry(4, 1), 150);
        assert_eq!(retry(2, 0), 250);
        assert_eq!(retry(1, 0), 350);
        assert_eq!(retry(1, 9), 350, "what comes after the last lease is not known");
    }

    #[test]
    fn sessions_end_with_their_slot_and_are_no_part_of_a_dump_or_a_copy() {
        let state = State::default();
        let mut slots = slots(3);
        assert_eq!(slots.bind(&bytes(0), 7), Some((Id::from(bytes(0)), None)));
        assert_eq!(slots.bind(&bytes(0), 8), Some((Id::from(bytes(0)), Some(7))));
        assert_eq!(slots.bind(b"none", 8), None);
        slots.bind(&bytes(1), 8);
        assert_eq!(slots.copied(&state).unwrap().bound().count(), 0);
        assert_eq!(Slots::decode(&slots.encode(&state)).unwrap().bound().count(), 0);
        let (freed, unbound) = slots.leave([&bytes(0)[..]].into_iter(), None);
        assert_eq!((freed, unbound.as_slice()), (1, &[(Id::from(bytes(0)), 8)][..]));
        // Its lease is over: this is another slot.
        let unbound = slots.enter(&bytes(1), UnixMs(900), UnixMs(100));
        assert_eq!(unbound.as_slice(), [(Id::from(bytes(1)), 8)]);
        assert_eq!(slots.bound().count(), 0);
    }

    #[test]
    fn only_what_encode_writes_is_decoded() {
        let state = State::default();
        let mut slots = Slots::default();
        slots.enter(b"a", UnixMs(1), UnixMs(0));
        slots.enter(b"bc", UnixMs(300), UnixMs(0));
        let dump = slots.encode(&state);
        assert_eq!(dump, b"\x02\x01a\x02\x02bc\xd8\x04");
        assert_eq!(Slots::decode(&dump).unwrap().encode(&state), dump);
        for bad in [
            &b""[..],
            b"\x00",
            b"\x01",
            b"\x01\x00\x02",
            b"\x01\x01a\x00",
            b"\x01\x01a\x01",
            b"\x01\x01a\x82\x00",
            b"\x01\x01a\x02\x00",
            b"\x02\x01a\x02\x01a\x02",
            b"\x02\x01b\x02\x01a\x02",
            b"\xff\xff\xff\xff\x0f\x01a\x02",
        ] {
            assert!(Slots::decode(bad).is_none(), "{bad:?}");
        }
        let long = Slots { by_id: BTreeMap::from([(Id::from([0; 513]), UnixMs(1))]), ..Slots::default() };
        assert!(Slots::decode(&long.encode(&state)).is_none());
    }
}
