//! The value of a limiter's key: the states of all limits that were checked under this key and are not full.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::mem::size_of;

use crate::clock::{UnixMs, UnixUs};
use crate::error::Error;
use crate::native::NativeValue;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::sliding_window::{Entry, Reading, SlidingWindow, Window};
use crate::state::State;

/// The type `kw-limit1`. A state is named by its algorithm and its window; the count of a limit is no part of it.
///
/// A limiter in the keyspace has at least one state. States that are full again are dropped when another one is charged; when
/// all are full the key's expiry has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limiter {
    windows: SmallVec<[SlidingWindow; 1]>,
}

impl Limiter {
    /// States under one key: twice the limits that one call can name.
    pub const MAX_STATES: usize = 16;

    /// How the limit with this window stands; a state that is not there is full.
    pub fn reading(&self, window: Window, now: UnixUs) -> Reading<'_> {
        self.find(window).map_or(Reading::full(window), |state| state.reading(now))
    }

    /// The states, each named by its window.
    pub fn windows(&self) -> &[SlidingWindow] {
        &self.windows
    }

    /// Books `units` in this window, and drops the other states that are full. Deterministic in its arguments, which are
    /// checked as untrusted; an error changes nothing.
    pub fn charge(&mut self, window: Window, now: UnixUs, units: i64) -> Result<(), Error> {
        if !(1..=MAX_UNITS).contains(&units) {
            return Err(Error::BadEffect);
        }
        let tick = window.tick_at(now);
        let kept = |state: &SlidingWindow| state.window() == window || now < state.full_at();
        let kept_states = self.windows.iter().filter(|state| kept(state)).count();
        match self.find_mut(window) {
            Some(state) => state.charge(tick, units).then_some(()).ok_or(Error::BadEffect)?,
            None if kept_states >= Limiter::MAX_STATES => return Err(Error::TooManyLimits),
            None => self.windows.push(SlidingWindow::first(window, tick, units)),
        }
        if self.windows.len() > 1 {
            self.windows.retain(|state| kept(state));
        }
        Ok(())
    }

    /// Is the clock behind this window's state?
    pub fn is_ahead_of(&self, window: Window, now: UnixUs) -> bool {
        self.find(window).is_some_and(|state| state.is_ahead_of(window.tick_at(now)))
    }

    /// See [`SlidingWindow::set_back`].
    pub fn set_back(&mut self, window: Window, now: UnixUs) {
        if let Some(state) = self.find_mut(window) {
            state.set_back(window.tick_at(now));
        }
    }

    /// The moment from which every state is full: the key's expiry, rounded up. It changes with the newest tick only, so that
    /// the key is not given a new one at every call.
    pub fn expiry(&self) -> UnixMs {
        let full_at = self.windows.iter().map(SlidingWindow::full_at).max().unwrap_or_default();
        UnixMs((full_at.0 + 999) / 1000)
    }

    /// Is nothing counted any more? Then losing the limiter loses nothing.
    pub fn is_full(&self, now: UnixUs) -> bool {
        self.windows.iter().all(|state| state.full_at() <= now)
    }

    fn find(&self, window: Window) -> Option<&SlidingWindow> {
        self.windows.iter().find(|state| state.window() == window)
    }

    fn find_mut(&mut self, window: Window) -> Option<&mut SlidingWindow> {
        self.windows.iter_mut().find(|state| state.window() == window)
    }
}

/// A state in a dump. The order of the variants is part of the format.
#[derive(Serialize, Deserialize)]
enum Stored<'a> {
    Sliding { window_ms: u64, tick: u64, units: u64, older: &'a [u8] },
}

impl<'a> From<&'a SlidingWindow> for Stored<'a> {
    fn from(state: &'a SlidingWindow) -> Stored<'a> {
        let Entry { tick, units } = state.newest();
        Stored::Sliding {
            window_ms: state.window().ms().unsigned_abs(),
            tick: tick.unsigned_abs(),
            units: units.unsigned_abs(),
            older: state.older(),
        }
    }
}

impl Stored<'_> {
    fn state(&self) -> Option<SlidingWindow> {
        let Stored::Sliding { window_ms, tick, units, older } = *self;
        let window = Window::from_ms(i64::try_from(window_ms).ok()?)?;
        let newest = Entry { tick: i64::try_from(tick).ok()?, units: i64::try_from(units).ok()? };
        SlidingWindow::from_parts(window, newest, older)
    }
}

impl NativeValue for Limiter {
    const TYPE_NAME: &'static str = "kw-limit1";

    /// The number of states in one byte, then each as postcard writes it.
    fn encode(&self, _state: &State) -> Vec<u8> {
        let number = u8::try_from(self.windows.len()).unwrap_or_default();
        // Writing to a vector cannot fail; were it to, the dump would be empty, which decode refuses.
        self.windows
            .iter()
            .try_fold(vec![number], |bytes, state| postcard::to_extend(&Stored::from(state), bytes))
            .unwrap_or_default()
    }

    /// Takes what [`Limiter::encode`] can have written and nothing else. Allocates no more than the dump's own length.
    fn decode(bytes: &[u8]) -> Option<Limiter> {
        let (&number, mut rest) = bytes.split_first()?;
        let mut limiter = Limiter::default();
        if !(1..=Limiter::MAX_STATES).contains(&usize::from(number)) {
            return None;
        }
        for _ in 0..number {
            let (stored, after) = postcard::take_from_bytes::<Stored<'_>>(rest).ok()?;
            let state = stored.state()?;
            if limiter.find(state.window()).is_some() {
                return None;
            }
            limiter.windows.push(state);
            rest = after;
        }
        // Postcard accepts some numbers in a longer form than it writes.
        (rest.is_empty() && limiter.encode(&State::default()) == bytes).then_some(limiter)
    }

    fn memory(&self, _state: &State) -> usize {
        let spilled = if self.windows.spilled() { self.windows.capacity() * size_of::<SlidingWindow>() } else { 0 };
        size_of::<Self>() + spilled + self.windows.iter().map(SlidingWindow::heap_bytes).sum::<usize>()
    }

    fn unlinked(&mut self, db: usize, key: &[u8], state: &mut State) {
        state.ratelimit.unlinked(db, key, self.expiry());
    }

    fn copied(&self, _state: &State) -> Option<Limiter> {
        Some(self.clone())
    }
}
