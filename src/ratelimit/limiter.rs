//! The value of a limiter's key: the states of all limits that were checked under this key and are not full.

use std::mem::size_of;

use crate::clock::{UnixMs, UnixUs};
use crate::error::Error;
use crate::native::NativeValue;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::fixed_window::FixedWindow;
use crate::ratelimit::gcra::Gcra;
use crate::ratelimit::meter::{Algorithm, Meter};
use crate::ratelimit::reading::Reading;
use crate::ratelimit::sliding_window::SlidingWindow;
use crate::ratelimit::stored::Stored;
use crate::state::State;

/// The type `kw-limit1`. A state is named by its algorithm and its window; the count of a limit is no part of it.
///
/// A limiter in the keyspace has at least one state. States that are full again are dropped when another one is charged; when
/// all are full the key's expiry has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limiter {
    meters: Meters,
}

// Two steps of the allocator; a third would be a tenth more for every limiter with its key.
const _: () = assert!(size_of::<Limiter>() <= 32);

/// Most limiters have one state, which needs no list. No two are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Meters {
    #[default]
    None,
    One(Metered),
    Several(Vec<Metered>),
}

/// The state of one limit, or a ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metered {
    /// The largest by far, so that it does not make the others as large.
    Sliding(Box<SlidingWindow>),
    Gcra(Gcra),
    Fixed(FixedWindow),
    Ban(UnixMs),
}

impl Metered {
    /// `units` have just been admitted.
    fn first(meter: Meter, now: UnixUs, units: i64) -> Metered {
        let window = meter.window;
        match meter.algorithm {
            Algorithm::Sliding => Metered::Sliding(Box::new(SlidingWindow::first(window, window.tick_at(now), units))),
            Algorithm::Gcra { rate } => Metered::Gcra(Gcra::first(window, rate, now, units)),
            Algorithm::Fixed => Metered::Fixed(FixedWindow::first(window, now, units)),
        }
    }

    /// What it measures by; a ban measures nothing.
    pub fn meter(&self) -> Option<Meter> {
        match self {
            Metered::Sliding(state) => Some(Meter { algorithm: Algorithm::Sliding, window: state.window() }),
            Metered::Gcra(state) => {
                Some(Meter { algorithm: Algorithm::Gcra { rate: state.rate() }, window: state.window() })
            }
            Metered::Fixed(state) => Some(Meter { algorithm: Algorithm::Fixed, window: state.window() }),
            Metered::Ban(_) => None,
        }
    }

    fn is_of(&self, meter: Meter) -> bool {
        self.meter().is_some_and(|own| own.is_alike(meter))
    }

    /// For one who asks by this meter, which is alike.
    #[inline]
    pub fn reading(&self, meter: Meter, now: UnixUs) -> Reading<'_> {
        match (self, meter.algorithm) {
            (Metered::Sliding(state), _) => Reading::Sliding(state.reading(now)),
            (Metered::Gcra(state), Algorithm::Gcra { rate }) => Reading::Gcra(state.reading(rate, now)),
            (Metered::Fixed(state), _) => Reading::Fixed(state.reading(now)),
            (Metered::Gcra(_) | Metered::Ban(_), _) => Reading::full(meter),
        }
    }

    /// False, and nothing changes, if that were more than any limit allows.
    fn charge(&mut self, meter: Meter, now: UnixUs, units: i64) -> bool {
        match (self, meter.algorithm) {
            (Metered::Sliding(state), _) => state.charge(meter.window.tick_at(now), units),
            (Metered::Gcra(state), Algorithm::Gcra { rate }) => state.charge(rate, now, units),
            (Metered::Fixed(state), _) => state.charge(now, units),
            (Metered::Gcra(_) | Metered::Ban(_), _) => false,
        }
    }

    /// False if nothing is left in it.
    fn refund(&mut self, meter: Meter, now: UnixUs, units: i64) -> bool {
        match (self, meter.algorithm) {
            (Metered::Sliding(state), _) => state.refund(meter.window.tick_at(now), units),
            (Metered::Gcra(state), Algorithm::Gcra { rate }) => state.refund(rate, now, units),
            (Metered::Fixed(state), _) => state.refund(now, units),
            (Metered::Gcra(_) | Metered::Ban(_), _) => true,
        }
    }

    fn is_ahead_of(&self, now: UnixUs) -> bool {
        match self {
            Metered::Sliding(state) => state.is_ahead_of(state.window().tick_at(now)),
            Metered::Gcra(state) => state.is_ahead_of(now),
            Metered::Fixed(state) => state.is_ahead_of(now),
            Metered::Ban(_) => false,
        }
    }

    fn set_back(&mut self, now: UnixUs) {
        match self {
            Metered::Sliding(state) => state.set_back(state.window().tick_at(now)),
            Metered::Gcra(state) => state.set_back(now),
            Metered::Fixed(state) => state.set_back(now),
            Metered::Ban(_) => {}
        }
    }

    /// The moment from which nothing is counted any more, if nothing is added.
    fn full_at(&self) -> UnixUs {
        match self {
            Metered::Sliding(state) => state.full_at(),
            Metered::Gcra(state) => state.full_at(),
            Metered::Fixed(state) => state.full_at(),
            Metered::Ban(until) => UnixUs(until.0.saturating_mul(1000)),
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Metered::Sliding(state) => size_of::<SlidingWindow>() + state.heap_bytes(),
            Metered::Gcra(_) | Metered::Fixed(_) | Metered::Ban(_) => 0,
        }
    }
}

impl Meters {
    fn as_slice(&self) -> &[Metered] {
        match self {
            Meters::None => &[],
            Meters::One(state) => std::slice::from_ref(state),
            Meters::Several(states) => states,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Metered] {
        match self {
            Meters::None => &mut [],
            Meters::One(state) => std::slice::from_mut(state),
            Meters::Several(states) => states,
        }
    }

    fn into_vec(self) -> Vec<Metered> {
        match self {
            Meters::None => Vec::new(),
            Meters::One(state) => vec![state],
            Meters::Several(states) => states,
        }
    }

    fn push(&mut self, state: Metered) {
        *self = match std::mem::take(self) {
            Meters::None => Meters::One(state),
            Meters::One(first) => Meters::Several(vec![first, state]),
            Meters::Several(mut states) => {
                states.push(state);
                Meters::Several(states)
            }
        };
    }

    fn retain(&mut self, mut keep: impl FnMut(&mut Metered) -> bool) {
        for mut state in std::mem::take(self).into_vec() {
            if keep(&mut state) {
                self.push(state);
            }
        }
    }
}

impl Limiter {
    /// States of limits under one key: twice as many as one call can name. A ban has a place of its own.
    pub const MAX_STATES: usize = 16;

    /// How the limit with this meter stands; a state that is not there is full.
    #[inline(always)]
    pub fn reading(&self, meter: Meter, now: UnixUs) -> Reading<'_> {
        self.find(meter).map_or_else(|| Reading::full(meter), |state| state.reading(meter, now))
    }

    pub fn states(&self) -> &[Metered] {
        self.meters.as_slice()
    }

    /// The states but a ban.
    fn limits(&self) -> impl Iterator<Item = &Metered> {
        self.states().iter().filter(|state| state.meter().is_some())
    }

    /// Until when everything is denied, if that is still to come.
    pub fn banned_until(&self, now: UnixMs) -> Option<UnixMs> {
        let ban = self.states().iter().find_map(|state| match state {
            Metered::Ban(until) => Some(*until),
            _ => None,
        });
        ban.filter(|until| now < *until)
    }

    /// Books `units` with each of these meters, no two of which are alike, and drops the other states that are full.
    /// Deterministic in its arguments, which are checked as untrusted; an error changes nothing.
    #[inline]
    pub fn charge(&mut self, meters: &[Meter], now: UnixUs, units: i64) -> Result<(), Error> {
        if !(1..=MAX_UNITS).contains(&units) {
            return Err(Error::BadEffect);
        }
        // The usual case, which needs no look at what else there is.
        if let ([meter], Meters::One(state)) = (meters, &mut self.meters)
            && state.is_of(*meter)
        {
            return if state.charge(*meter, now, units) { Ok(()) } else { Err(Error::BadEffect) };
        }
        self.charge_several(meters, now, units)
    }

    fn charge_several(&mut self, meters: &[Meter], now: UnixUs, units: i64) -> Result<(), Error> {
        let fits = |meter: &Meter| self.reading(*meter, now).used() <= MAX_UNITS - units;
        if !meters.iter().all(fits) {
            return Err(Error::BadEffect);
        }
        let named = |state: &Metered| meters.iter().any(|meter| state.is_of(*meter));
        let kept = |state: &Metered| named(state) || now < state.full_at();
        let others = self.limits().filter(|state| kept(state) && !named(state)).count();
        if others + meters.len() > Limiter::MAX_STATES {
            return Err(Error::TooManyLimits);
        }
        for meter in meters {
            match self.find_mut(*meter) {
                // That it fits was looked at above.
                Some(state) => drop(state.charge(*meter, now, units)),
                None => self.meters.push(Metered::first(*meter, now, units)),
            }
        }
        if !self.states().iter().all(kept) {
            self.meters.retain(|state| kept(state));
        }
        Ok(())
    }

    /// Takes the newest `units` back, as far as there are any, and drops the other states that are full.
    pub fn refund(&mut self, meters: &[Meter], now: UnixUs, units: i64) {
        self.meters.retain(|state| match meters.iter().find(|meter| state.is_of(**meter)) {
            Some(meter) => state.refund(*meter, now, units),
            None => now < state.full_at(),
        });
    }

    /// Denies everything until then; instead of an earlier ban, if there is one.
    pub fn ban(&mut self, until: UnixMs) {
        match self.meters.as_mut_slice().iter_mut().find(|state| matches!(state, Metered::Ban(_))) {
            Some(ban) => *ban = Metered::Ban(until),
            None => self.meters.push(Metered::Ban(until)),
        }
    }

    /// Is the clock behind the state of this meter?
    pub fn is_ahead_of(&self, meter: Meter, now: UnixUs) -> bool {
        self.find(meter).is_some_and(|state| state.is_ahead_of(now))
    }

    /// The clock was set back to before the last charge: these states follow it, see [`SlidingWindow::set_back`].
    pub fn set_back(&mut self, meters: &[Meter], now: UnixUs) {
        for meter in meters {
            if let Some(state) = self.find_mut(*meter) {
                state.set_back(now);
            }
        }
    }

    /// The moment from which every state is full.
    pub fn full_at(&self) -> UnixUs {
        self.states().iter().map(Metered::full_at).max().unwrap_or_default()
    }

    /// The key's expiry: the same, rounded up.
    pub fn expiry(&self) -> UnixMs {
        self.full_at().to_ms_up()
    }

    pub fn is_empty(&self) -> bool {
        self.states().is_empty()
    }

    fn find(&self, meter: Meter) -> Option<&Metered> {
        self.states().iter().find(|state| state.is_of(meter))
    }

    fn find_mut(&mut self, meter: Meter) -> Option<&mut Metered> {
        self.meters.as_mut_slice().iter_mut().find(|state| state.is_of(meter))
    }
}

impl NativeValue for Limiter {
    const TYPE_NAME: &'static str = "kw-limit1";

    /// The number of states in one byte, then each as postcard writes it.
    fn encode(&self, _state: &State) -> Vec<u8> {
        let number = u8::try_from(self.states().len()).unwrap_or_default();
        // Writing to a vector cannot fail; were it to, the dump would be empty, which decode refuses.
        self.states()
            .iter()
            .try_fold(vec![number], |bytes, state| postcard::to_extend(&Stored::from(state), bytes))
            .unwrap_or_default()
    }

    /// Takes what [`Limiter::encode`] can have written and nothing else. Allocates no more than the dump's own length.
    fn decode(bytes: &[u8]) -> Option<Limiter> {
        let (&number, mut rest) = bytes.split_first()?;
        let mut limiter = Limiter::default();
        if !(1..=Limiter::MAX_STATES + 1).contains(&usize::from(number)) {
            return None;
        }
        for _ in 0..number {
            let (stored, after) = postcard::take_from_bytes::<Stored<'_>>(rest).ok()?;
            let state = stored.state()?;
            let is_double = match state.meter() {
                Some(meter) => limiter.find(meter).is_some(),
                None => limiter.states().iter().any(|other| matches!(other, Metered::Ban(_))),
            };
            if is_double {
                return None;
            }
            limiter.meters.push(state);
            rest = after;
        }
        // Postcard accepts some numbers in a longer form than it writes.
        let is_ours = rest.is_empty() && limiter.encode(&State::default()) == bytes;
        (is_ours && limiter.limits().count() <= Limiter::MAX_STATES).then_some(limiter)
    }

    fn memory(&self, _state: &State) -> usize {
        let list = match &self.meters {
            Meters::Several(states) => states.capacity() * size_of::<Metered>(),
            Meters::None | Meters::One(_) => 0,
        };
        size_of::<Self>() + list + self.states().iter().map(Metered::heap_bytes).sum::<usize>()
    }

    fn unlinked(&mut self, db: usize, key: &[u8], state: &mut State) {
        state.ratelimit.unlinked(db, key, self.expiry());
    }

    fn linked(&mut self, db: usize, key: &[u8], state: &mut State, _now: UnixUs) {
        state.ratelimit.linked(db, key);
    }

    fn copied(&self, _state: &State) -> Option<Limiter> {
        Some(self.clone())
    }
}
