//! Who loads what, and who waits for it: the leases and queues of all keys. Pure memory; what is done with it is in
//! [`single_flight`](super::single_flight) and [`waiters`](super::waiters).
//!
//! Invariants:
//! - a key has at most one live lease;
//! - everybody who waits for a key has a load that is out and may answer him: the live one, or one that was revoked after he
//!   came. When a load ends otherwise, the queue is settled. (While the key is being written in the database, its
//!   [intents](super::intent) take the place of a load: there is none then, and the queue is settled when they are over. And who
//!   leaves loading to a [loader](super::loaders) may have a job in its queue instead.)
//! - one sequence orders leases, invalidations and arrivals.
//!
//! Nothing of this is saved or replicated. It is all keyed by the number of the database, since that is what clients wait in:
//! SWAPDB ends the leases and moves nobody.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use super::fence::Fence;
use super::flight::{Failure, Flight, Role, Seat};
use super::lease::{Load, Terms, Token};
use super::policy_stats::Mark;
use crate::clock::UnixMs;
use crate::server::Waiter;

#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Changed by the host when the server starts and when it is promoted.
    pub epoch: u64,
    databases: BTreeMap<usize, Database>,
    /// When something runs out: a load, or the time after a failure in which nobody loads.
    deadlines: BTreeMap<(UnixMs, u64), Place>,
    waiting: BTreeMap<Waiter, Place>,
    /// Queues to be settled from a timer.
    unsettled: VecDeque<Place>,
    sequence: u64,
    numbers: u64,
    refreshing: usize,
}

pub(super) type Place = (usize, Rc<[u8]>);

#[derive(Debug, Default)]
struct Database {
    flights: BTreeMap<Rc<[u8]>, Flight>,
    fence: Fence,
}

/// Why nobody is elected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Somebody loads, or writes.
    Loading,
    /// The last load failed, with this message.
    Failed(Rc<[u8]>),
}

impl Leases {
    /// Nothing is going on anywhere: the fast way out for writes.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.databases.is_empty()
    }

    /// Loads that are out, revoked ones and times after failures included.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    pub fn waiters(&self) -> usize {
        self.waiting.len()
    }

    pub fn waiters_of(&self, db: usize, key: &[u8]) -> usize {
        self.flight(db, key).map_or(0, |flight| flight.queue.len())
    }

    pub fn remembered_tags(&self) -> usize {
        self.databases.values().map(|database| database.fence.len()).sum()
    }

    /// Is a load out that would replace a value? Then plain writes have to be noticed.
    pub fn is_refreshing(&self) -> bool {
        self.refreshing > 0
    }

    /// Does anything keep callers from loading the key?
    pub fn hold(&self, db: usize, key: &[u8], now: UnixMs) -> Option<Hold> {
        let flight = self.flight(db, key)?;
        if flight.live.is_some() {
            return Some(Hold::Loading);
        }
        let failure = flight.failure.as_ref().filter(|failure| failure.until > now)?;
        Some(Hold::Failed(Rc::clone(&failure.message)))
    }

    /// When the live lease of the key runs out.
    pub fn deadline(&self, db: usize, key: &[u8]) -> Option<UnixMs> {
        Some(self.flight(db, key)?.live.as_ref()?.deadline)
    }

    /// Gives out a lease of a key that has none; `None` if `max` are out.
    pub fn begin(&mut self, db: usize, key: &[u8], terms: Terms, max: usize) -> Option<Token> {
        if self.len() >= max {
            return None;
        }
        let (began, number) = (self.next(), self.next_number());
        let Terms { now, lease_ms, refresh, retirement, visiting, order, mark } = terms;
        let deadline = now.to_ms().plus(lease_ms);
        let began_at = now;
        let load =
            Load { number, began, began_at, deadline, retirement, refresh, visiting, revoked: None, order, mark };
        let database = self.databases.entry(db).or_default();
        database.fence.opened(began);
        let name = name_of(&database.flights, key);
        let flight = database.flights.entry(Rc::clone(&name)).or_default();
        let ended = [flight.live.replace(load).map(|load| (load.deadline, load.number)), flight.end_failure()];
        self.refreshing = self.refreshing.saturating_add(usize::from(refresh));
        for ended in ended.into_iter().flatten() {
            self.deadlines.remove(&ended);
        }
        self.deadlines.insert((deadline, number), (db, name));
        Some(Token { epoch: self.epoch, number })
    }

    /// The load of this token, be it live or revoked. While it is out the fence remembers what it has to.
    pub fn find(&self, db: usize, key: &[u8], token: Token) -> Option<Load> {
        let flight = self.flight(db, key).filter(|_| token.epoch == self.epoch)?;
        flight.live.iter().chain(&flight.revoked).find(|load| load.number == token.number).cloned()
    }

    /// Takes the load of this token out, be it live or revoked. The caller settles the queue.
    pub fn take(&mut self, db: usize, key: &[u8], token: Token) -> Option<Load> {
        if token.epoch != self.epoch {
            return None;
        }
        let flight = self.flight_mut(db, key)?;
        let load = match flight.live.take_if(|load| load.number == token.number) {
            Some(load) => load,
            None => {
                let at = flight.revoked.iter().position(|load| load.number == token.number)?;
                flight.revoked.remove(at)
            }
        };
        self.ended(db, &load);
        Some(load)
    }

    /// Gives the live load of this token time until `deadline`. Whether there is one.
    pub fn renew(&mut self, db: usize, key: &[u8], token: Token, deadline: UnixMs) -> bool {
        let is_of = |load: &&mut Load| load.number == token.number && token.epoch == self.epoch;
        let flight = self.databases.get_mut(&db).and_then(|database| database.flights.get_mut(key));
        let Some(load) = flight.and_then(|flight| flight.live.as_mut()).filter(is_of) else { return false };
        let old = std::mem::replace(&mut load.deadline, deadline);
        if let Some(place) = self.deadlines.remove(&(old, token.number)) {
            self.deadlines.insert((deadline, token.number), place);
        }
        true
    }

    /// The value that the key has, or that a load under way will bring, is not to be stored: the lease is over. Those who wait
    /// are still answered by that load, those who come from now on are not. With `retirement`, only a lease that began before it
    /// is revoked.
    pub fn revoke(&mut self, db: usize, key: &[u8], retirement: Option<u64>) {
        self.revoke_if(db, key, |load| retirement.is_none_or(|number| load.retirement < number));
    }

    /// As [`Leases::revoke`], unless the lease was given out while the slot was coming as it is now (`visiting`), or was here as it is now.
    /// A slot that comes from a node of another epoch may have been here and gone meanwhile.
    pub fn revoke_unless(&mut self, db: usize, key: &[u8], visiting: Option<u64>) {
        self.revoke_if(db, key, |load| load.visiting != visiting);
    }

    fn revoke_if(&mut self, db: usize, key: &[u8], which: impl Fn(&Load) -> bool) {
        let taken = self.flight_mut(db, key).and_then(|flight| flight.live.take_if(|load| which(load)));
        let Some(load) = taken else { return };
        self.refreshing = self.refreshing.saturating_sub(usize::from(load.refresh));
        let at = self.next();
        let Some(flight) = self.flight_mut(db, key) else { return };
        let load = Load { revoked: Some(at), refresh: false, ..load };
        if flight.queue.is_empty() {
            self.ended(db, &load);
            self.tidy(db, key);
        } else {
            flight.revoked.push(load);
        }
    }

    /// The old value that the live load is to replace has gone by itself. `false`: the load knew of none.
    pub fn value_gone(&mut self, db: usize, key: &[u8]) -> bool {
        let Some(load) = self.flight_mut(db, key).and_then(|flight| flight.live.as_mut()) else { return true };
        let refreshed = std::mem::take(&mut load.refresh);
        self.refreshing = self.refreshing.saturating_sub(usize::from(refreshed));
        refreshed
    }

    /// The tag was invalidated; at most `max` such memories are kept in a database.
    pub fn tag_invalidated(&mut self, db: usize, tag: &[u8], max: usize) {
        let at = self.next();
        if let Some(database) = self.databases.get_mut(&db) {
            database.fence.invalidated(tag, at, max);
        }
    }

    /// A number that no lease has, and that stands for something else than a load.
    pub fn next_token(&mut self) -> Token {
        Token { epoch: self.epoch, number: self.next_number() }
    }

    /// From now on the fence of the database remembers invalidated tags, as if a load were out that began at this place in the
    /// sequence. To be followed by [`close_fence`](Leases::close_fence).
    pub fn open_fence(&mut self, db: usize) -> u64 {
        let began = self.next();
        self.databases.entry(db).or_default().fence.opened(began);
        began
    }

    pub fn close_fence(&mut self, db: usize, began: u64) {
        let Some(database) = self.databases.get_mut(&db) else { return };
        database.fence.closed(began);
        if database.is_empty() {
            self.databases.remove(&db);
        }
    }

    /// See [`Fence::first_since`].
    pub fn tag_hit<'t>(&self, db: usize, began: u64, tags: impl IntoIterator<Item = &'t [u8]>) -> Option<u64> {
        self.databases.get(&db)?.fence.first_since(began, tags)
    }

    /// Seats a waiter at the end of the key's queue.
    pub fn join(&mut self, db: usize, key: &[u8], waiter: Waiter, role: Role, stale_ok: bool, mark: Option<Mark>) {
        let database = self.databases.entry(db).or_default();
        let name = name_of(&database.flights, key);
        let seat = Seat { came: self.sequence, role, stale_ok, mark };
        database.flights.entry(Rc::clone(&name)).or_default().queue.insert(waiter, seat);
        self.waiting.insert(waiter, (db, name));
    }

    /// A waiter has gone: his wait ran out, or his connection did.
    pub fn waiter_left(&mut self, waiter: Waiter) {
        let Some((db, key)) = self.waiting.remove(&waiter) else { return };
        if let Some(flight) = self.flight_mut(db, &key) {
            flight.queue.remove(&waiter);
        }
        self.tidy(db, &key);
    }

    /// Takes out those who came before `before` (`None`: all) and whom `wanted` names, in the order of arrival.
    pub fn take_waiters(
        &mut self,
        db: usize,
        key: &[u8],
        before: Option<u64>,
        wanted: impl Fn(&Seat) -> bool,
    ) -> Vec<(Waiter, Seat)> {
        let Some(flight) = self.flight_mut(db, key) else { return Vec::new() };
        let is_taken = |seat: &Seat| before.is_none_or(|before| seat.came < before) && wanted(seat);
        let (taken, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut flight.queue).into_iter().partition(|(_, seat)| is_taken(seat));
        flight.queue = left.into_iter().collect();
        for (waiter, _) in &taken {
            self.waiting.remove(waiter);
        }
        self.tidy(db, key);
        taken
    }

    /// Takes out who waits longest of those that may be elected: how long his lease is to be, and whether a stale value would do.
    pub fn take_caller(&mut self, db: usize, key: &[u8]) -> Option<(Waiter, i64, bool)> {
        let flight = self.flight_mut(db, key)?;
        let (waiter, lease_ms, stale_ok) = flight.queue.iter().find_map(|(waiter, seat)| match seat.role {
            Role::Caller { lease_ms } => Some((*waiter, lease_ms, seat.stale_ok)),
            Role::Reader { .. } => None,
        })?;
        flight.queue.remove(&waiter);
        self.waiting.remove(&waiter);
        Some((waiter, lease_ms, stale_ok))
    }

    /// The loaders that load for those who wait, each once, in the order of arrival.
    pub fn loaders(&self, db: usize, key: &[u8]) -> Vec<Rc<[u8]>> {
        let mut loaders: Vec<Rc<[u8]>> = Vec::new();
        for seat in self.flight(db, key).into_iter().flat_map(|flight| flight.queue.values()) {
            if let Role::Reader { loader } = &seat.role
                && !loaders.contains(loader)
            {
                loaders.push(Rc::clone(loader));
            }
        }
        loaders
    }

    /// Nobody is to load the key until `until`.
    pub fn fail(&mut self, db: usize, key: &[u8], until: UnixMs, message: &[u8]) {
        let number = self.next_number();
        let database = self.databases.entry(db).or_default();
        let name = name_of(&database.flights, key);
        let flight = database.flights.entry(Rc::clone(&name)).or_default();
        let ended = flight.end_failure();
        flight.failure = Some(Failure { number, until, message: message.into() });
        self.deadlines.extend([((until, number), (db, name))]);
        if let Some(ended) = ended {
            self.deadlines.remove(&ended);
        }
    }

    /// The key has a value from elsewhere: no load matters any more. The caller has answered those who wait.
    pub fn forget(&mut self, db: usize, key: &[u8]) {
        let Some(flight) = self.flight_mut(db, key) else { return };
        let (loads, failure) = (flight.take_loads(), flight.end_failure());
        for load in loads {
            self.ended(db, &load);
        }
        if let Some(ended) = failure {
            self.deadlines.remove(&ended);
        }
        self.tidy(db, key);
    }

    /// When the next load or failure runs out.
    #[inline]
    pub fn next_deadline(&self) -> Option<UnixMs> {
        if !self.unsettled.is_empty() {
            return Some(UnixMs(0));
        }
        self.deadlines.first_key_value().map(|((at, _), _)| *at)
    }

    /// A key of which something has run out, or whose queue is to be settled.
    pub fn next_due(&mut self, now: UnixMs) -> Option<Place> {
        self.unsettled.pop_front().or_else(|| {
            let ((at, _), place) = self.deadlines.first_key_value()?;
            (*at <= now).then(|| place.clone())
        })
    }

    /// Takes out what has run out of the key's loads and failures. These are the loads: the caller settles the queue.
    pub fn run_out(&mut self, db: usize, key: &[u8], now: UnixMs) -> Vec<Load> {
        let Some(flight) = self.flight_mut(db, key) else { return Vec::new() };
        let over = |load: &mut Load| load.deadline <= now;
        let mut ended: Vec<Load> = flight.live.take_if(over).into_iter().collect();
        ended.extend(flight.revoked.extract_if(.., over));
        let failure = flight.failure.as_ref().is_some_and(|failure| failure.until <= now);
        if let Some(ended) = if failure { flight.end_failure() } else { None } {
            self.deadlines.remove(&ended);
        }
        for load in &ended {
            self.ended(db, load);
        }
        self.tidy(db, key);
        ended
    }

    /// The keys of a database are gone, or others: no lease holds any more, and each queue is settled from a timer. O(leases).
    pub fn void(&mut self, db: usize) {
        let Some(database) = self.databases.get(&db) else { return };
        let keys: Vec<Rc<[u8]>> = database.flights.keys().cloned().collect();
        for key in keys {
            self.revoke(db, &key, None);
            if self.waiters_of(db, &key) > 0 {
                self.unsettled.push_back((db, key));
            } else {
                self.forget(db, &key);
            }
        }
    }

    /// The key's queue is to be settled from a timer, if somebody waits.
    pub fn look_at(&mut self, db: usize, key: &[u8]) {
        let flights = self.databases.get(&db).map(|database| &database.flights);
        let Some((name, flight)) = flights.and_then(|flights| flights.get_key_value(key)) else { return };
        if !flight.queue.is_empty() {
            self.unsettled.push_back((db, Rc::clone(name)));
        }
    }

    /// Up to `max` keys of which a load is under way, or somebody waits for one: those behind this one in their order.
    pub fn places_after(&self, last: Option<&Place>, max: usize) -> Vec<Place> {
        let from = last.map_or(0, |(db, _)| *db);
        let of = |(&db, database): (&usize, &'_ Database)| -> Vec<Place> {
            let start = match last {
                Some((of, key)) if *of == db => Bound::Excluded(&key[..]),
                _ => Bound::Unbounded,
            };
            let flights = database.flights.range::<[u8], _>((start, Bound::Unbounded));
            flights.take(max).map(|(key, _)| (db, Rc::clone(key))).collect()
        };
        self.databases.range(from..).flat_map(of).take(max).collect()
    }

    /// The databases where something is going on.
    pub fn in_databases(&self) -> Vec<usize> {
        self.databases.keys().copied().collect()
    }

    /// This server is no primary any more, which has answered those who waited.
    pub fn drop_all(&mut self) {
        *self = Leases { epoch: self.epoch, sequence: self.sequence, numbers: self.numbers, ..Leases::default() };
    }

    /// Drops memories that nobody can ask for.
    pub fn prune(&mut self, budget: usize) {
        self.databases.retain(|_, database| {
            database.fence.prune(budget);
            !database.is_empty()
        });
    }

    fn flight(&self, db: usize, key: &[u8]) -> Option<&Flight> {
        self.databases.get(&db)?.flights.get(key)
    }

    fn flight_mut(&mut self, db: usize, key: &[u8]) -> Option<&mut Flight> {
        self.databases.get_mut(&db)?.flights.get_mut(key)
    }

    fn next(&mut self) -> u64 {
        self.sequence = self.sequence.saturating_add(1);
        self.sequence
    }

    fn next_number(&mut self) -> u64 {
        self.numbers = self.numbers.saturating_add(1);
        self.numbers
    }

    /// A load was taken out of its flight.
    fn ended(&mut self, db: usize, load: &Load) {
        self.deadlines.remove(&(load.deadline, load.number));
        self.refreshing = self.refreshing.saturating_sub(usize::from(load.refresh));
        if let Some(database) = self.databases.get_mut(&db) {
            database.fence.closed(load.began);
        }
    }

    /// To be called when a load was taken and the queue settled. Revoked loads matter only to those who wait; a flight with
    /// nothing in it is none.
    pub fn tidy(&mut self, db: usize, key: &[u8]) {
        let Some(flight) = self.flight_mut(db, key) else { return };
        if flight.queue.is_empty() {
            for load in std::mem::take(&mut flight.revoked) {
                self.ended(db, &load);
            }
        }
        let Some(database) = self.databases.get_mut(&db) else { return };
        if database.flights.get(key).is_some_and(Flight::is_over) {
            database.flights.remove(key);
        }
        if database.is_empty() {
            self.databases.remove(&db);
        }
    }
}

impl Database {
    fn is_empty(&self) -> bool {
        self.flights.is_empty() && self.fence.is_empty()
    }
}

/// The key as the flights have it, or a new copy.
fn name_of(flights: &BTreeMap<Rc<[u8]>, Flight>, key: &[u8]) -> Rc<[u8]> {
    flights.get_key_value(key).map_or_else(|| key.into(), |(name, _)| Rc::clone(name))
}
