//! What the tests of limiters share: limits as callers write them, the seven integers of an answer, and how time passes.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::fmt;

use keyward::clock::UnixMs;
use keyward::commands::Command;
use keyward::error::Error;
use keyward::fake_server::{FakeServer, Value};
use keyward::native::NativeValue;
use keyward::ratelimit::commands::{Check, Peek};
use keyward::ratelimit::limiter::Limiter;
use keyward::ratelimit::window::Window;
use keyward::reply::Reply;
use keyward::state::State;
use proptest::prelude::*;

/// The seven integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    pub allowed: bool,
    pub limit: i64,
    pub remaining: i64,
    pub retry_after_ms: i64,
    pub next_ms: i64,
    pub reset_ms: i64,
    pub index: i64,
}

pub fn answer(reply: Reply<'_>) -> Answer {
    let Reply::Ints(ints) = reply else { panic!("not an array of integers: {reply:?}") };
    let [allowed, limit, remaining, retry_after_ms, next_ms, reset_ms, index] = ints[..] else {
        panic!("not seven integers: {ints:?}")
    };
    assert!((0..=1).contains(&allowed) && (0..=limit).contains(&remaining), "{ints:?}");
    assert!(next_ms >= 0 && reset_ms >= next_ms, "{ints:?}");
    assert_eq!(allowed == 1, retry_after_ms == 0, "{ints:?}");
    Answer { allowed: allowed == 1, limit, remaining, retry_after_ms, next_ms, reset_ms, index }
}

/// `words` are what follows the command and the key `k`.
pub fn ask<C: Command>(server: &mut FakeServer, words: &str) -> Result<Answer, Error> {
    server.call::<C>(&format!("{} k {words}", C::SPEC.name)).map(answer)
}

pub fn check(server: &mut FakeServer, words: &str) -> Answer {
    ask::<Check>(server, words).unwrap()
}

pub fn peek(server: &mut FakeServer, words: &str) -> Answer {
    ask::<Peek>(server, words).unwrap()
}

/// PEEK as it would answer some milliseconds later; on a replica, where a key that is due is not yet removed.
pub fn peek_after(server: &mut FakeServer, after_ms: i64, words: &str) -> Answer {
    let now = server.now;
    server.advance_ms(after_ms);
    server.replayed = true;
    let answer = peek(server, words);
    (server.now, server.replayed) = (now, false);
    answer
}

pub fn stored<'s>(server: &'s FakeServer, key: &str) -> Option<&'s Limiter> {
    match &server.keys.get(&(0, key.as_bytes().to_vec()))?.value {
        Value::Native(value) => value.downcast_ref(),
        _ => None,
    }
}

/// All that is stored under a key: its dump and its expiry.
pub fn bytes(server: &FakeServer, key: &str) -> Option<(Vec<u8>, Option<UnixMs>)> {
    let limiter = stored(server, key)?;
    Some((limiter.encode(&State::default()), server.keys[&(0, key.as_bytes().to_vec())].expiry))
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Sliding,
    Gcra,
    Fixed,
}

/// A limit as a caller writes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    pub kind: Kind,
    pub ms: i64,
    pub count: i64,
    pub burst: Option<i64>,
    pub reserve: i64,
}

impl Limit {
    pub fn window_us(&self) -> i64 {
        self.ms * 1000
    }

    /// What there is when nothing was consumed.
    pub fn capacity(&self) -> i64 {
        self.burst.unwrap_or(self.count)
    }

    pub fn is_alike(&self, other: &Limit) -> bool {
        (self.kind, self.ms) == (other.kind, other.ms)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            Kind::Sliding => "SLIDING",
            Kind::Gcra => "GCRA",
            Kind::Fixed => "FIXED",
        };
        write!(f, "{name} {} PX {}", self.count, self.ms)?;
        if let Some(burst) = self.burst {
            write!(f, " BURST {burst}")?;
        }
        write!(f, " RESERVE {}", self.reserve)
    }
}

/// Limits and a cost, as they stand in a call.
pub fn words(limits: &[Limit], cost: i64) -> String {
    limits.iter().map(|limit| format!("{limit} ")).collect::<String>() + &format!("COST {cost}")
}

/// How much time passes before a request.
#[derive(Clone, Copy, Debug)]
pub enum Pause {
    None,
    Us(i64),
    /// So many thousandths of the window.
    Share(i64),
    /// To the beginning of a tick so many ticks ahead, and some microseconds on.
    Tick(i64, i64),
    /// To the turn of a window that is aligned to 1970, and some microseconds on.
    Turn(i64),
    /// The whole window, and some microseconds on.
    Window(i64),
    /// Just as long as the last denial said, and some microseconds on.
    Retry(i64),
}

impl Pause {
    pub fn us(self, now: i64, window: Window, retry_ms: i64) -> i64 {
        let tick = window.tick_us();
        let us = match self {
            Pause::None => 0,
            Pause::Us(us) => us,
            Pause::Share(share) => window.ms() * share,
            Pause::Tick(ticks, us) => (now / tick + ticks) * tick - now + us,
            Pause::Turn(us) => (now / window.us() + 1) * window.us() - now + us,
            Pause::Window(us) => window.us() + us,
            Pause::Retry(us) => retry_ms.max(0) * 1000 + us,
        };
        us.max(0)
    }
}

pub fn pause() -> impl Strategy<Value = Pause> {
    prop_oneof![
        4 => Just(Pause::None),
        2 => (0..50i64).prop_map(Pause::Us),
        4 => (0..60i64).prop_map(Pause::Share),
        1 => (100..3000i64).prop_map(Pause::Share),
        3 => (0..4i64, -1..2i64).prop_map(|(ticks, us)| Pause::Tick(ticks, us)),
        1 => (250..260i64, -1..2i64).prop_map(|(ticks, us)| Pause::Tick(ticks, us)),
        1 => (-1..2i64).prop_map(Pause::Turn),
        1 => (-1..2i64).prop_map(Pause::Window),
        2 => (-1..2i64).prop_map(Pause::Retry),
    ]
}

pub fn window_ms() -> impl Strategy<Value = i64> {
    prop_oneof![Just(1), Just(2), Just(7), Just(100), Just(1000), Just(60_000), Just(Window::MAX_MS), 1..10_000i64]
}

/// Something that was admitted.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    pub us: i64,
    pub units: i64,
}

/// Units admitted in the last `us` microseconds, both ends included.
pub fn admitted(log: &[Admission], now: i64, us: i64) -> i64 {
    log.iter().rev().take_while(|a| a.us >= now - us).map(|a| a.units).sum()
}
