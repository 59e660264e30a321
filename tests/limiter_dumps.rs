//! What a limiter is worth as bytes: dumps that are sound, cut, or made up; and the memory it takes.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod limiters;

use keyward::clock::{UnixMs, UnixUs};
use keyward::fake_server::FakeServer;
use keyward::native::NativeValue;
use keyward::ratelimit::MAX_UNITS;
use keyward::ratelimit::limiter::{Limiter, Metered};
use keyward::ratelimit::meter::{Algorithm, Meter};
use keyward::ratelimit::sliding_window::SlidingWindow;
use keyward::ratelimit::window::Window;
use keyward::state::State;
use limiters::{check, stored, window_ms};
use proptest::prelude::*;

/// A limiter with up to 16 states that took any load, and was banned or not.
fn limiter() -> impl Strategy<Value = Limiter> {
    let charge = (0..20usize, 0..40i64, prop_oneof![1..200i64, 1..=MAX_UNITS / 300, Just(1i64)]);
    let windows = prop::collection::vec(window_ms(), 1..20);
    let ban = prop::option::of(1..=i64::MAX);
    (windows, prop::collection::vec(charge, 1..400), ban).prop_map(|(windows, charges, ban)| {
        let mut limiter = Limiter::default();
        let mut now = 1_750_000_000_000_000;
        for (which, steps, units) in charges {
            let window = Window::from_ms(windows[which % windows.len()]).unwrap();
            now += steps * window.tick_us() / 10;
            // Too many windows or units are refused, and that is as good a state as any.
            let _ = limiter.charge(&[meter(which, window)], UnixUs(now), units);
        }
        if let Some(until) = ban {
            limiter.ban(UnixMs(until));
        }
        limiter
    })
}

fn meter(which: usize, window: Window) -> Meter {
    let algorithm = match which % 3 {
        0 => Algorithm::Sliding,
        1 => Algorithm::Gcra { rate: 1 + which as i64 },
        _ => Algorithm::Fixed,
    };
    Meter { algorithm, window }
}

/// Nothing that a limiter can be asked may panic, whatever dump it came from.
fn use_it(mut limiter: Limiter) {
    let moments = [i64::MIN, 0, 1_750_000_000_000_000, i64::MAX / 2, i64::MAX];
    let meters: Vec<Meter> = limiter.states().iter().filter_map(Metered::meter).collect();
    for now in moments.map(UnixUs) {
        assert!(limiter.expiry().0 >= 0);
        for meter in &meters {
            let reading = limiter.reading(*meter, now);
            let used = reading.used();
            assert!((0..=MAX_UNITS).contains(&used));
            assert!(reading.ms_until_used(used - 1) <= reading.ms_until_used(0));
            assert_eq!(reading.ms_until_used(used), 0);
            let _ = limiter.charge(&[*meter], now, 1);
            limiter.set_back(&[*meter], UnixUs(7));
            limiter.refund(&[*meter], now, 1);
        }
        limiter.ban(UnixMs(7));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn a_dump_brings_back_the_same_limiter(limiter in limiter()) {
        let state = State::default();
        let dump = limiter.encode(&state);
        prop_assert_eq!(Limiter::decode(&dump), Some(limiter.clone()));
        prop_assert_eq!(limiter.copied(&state), Some(limiter));
    }

    #[test]
    fn a_dump_that_was_cut_or_lengthened_is_refused(limiter in limiter(), cut in any::<prop::sample::Index>(), more in any::<u8>()) {
        let mut dump = limiter.encode(&State::default());
        prop_assert_eq!(Limiter::decode(&dump[..cut.index(dump.len())]), None);
        dump.push(more);
        prop_assert_eq!(Limiter::decode(&dump), None);
    }

    /// What a changed dump is taken for is a limiter like any other, and has this one dump.
    #[test]
    fn a_dump_that_was_tampered_with_is_refused_or_harmless(
        limiter in limiter(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
    ) {
        let mut dump = limiter.encode(&State::default());
        for (at, bits) in flips {
            let at = at.index(dump.len());
            dump[at] ^= bits;
        }
        if let Some(limiter) = Limiter::decode(&dump) {
            prop_assert_eq!(limiter.encode(&State::default()), dump);
            use_it(limiter);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_harmless(dump in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(limiter) = Limiter::decode(&dump) {
            prop_assert_eq!(limiter.encode(&State::default()), dump);
            use_it(limiter);
        }
    }

    /// As the contract says, whatever the limit; and what MEMORY USAGE reports covers the log.
    #[test]
    fn a_state_stays_about_a_kilobyte(
        ms in window_ms(),
        budget in prop_oneof![Just(1_000i64), Just(1_000_000_000), Just(MAX_UNITS)],
        load in prop::collection::vec((prop_oneof![9 => Just(1i64), 1 => 1..6i64], 0..64u32), 1..600),
    ) {
        let window = Window::from_ms(ms).unwrap();
        let mut limiter = Limiter::default();
        let mut tick = 1;
        for (ticks, shift) in load {
            tick += ticks;
            let now = UnixUs(tick * window.tick_us());
            let left = budget - limiter.reading(Meter::sliding(window), now).used();
            // Costs of every size, as large as fit.
            let cost = (budget >> shift.min(40)).max(1);
            if cost <= left {
                limiter.charge(&[Meter::sliding(window)], now, cost).unwrap();
            }
            let longest = match budget { 1_000 => 270, 1_000_000_000 => 1033, _ => SlidingWindow::MAX_OLDER_BYTES };
            if let [Metered::Sliding(state)] = limiter.states() {
                prop_assert!(state.older().len() <= longest);
                prop_assert!(state.entries().count() <= 257);
                let memory = limiter.memory(&State::default());
                let fixed = size_of::<Limiter>() + size_of::<SlidingWindow>();
                prop_assert!(memory >= fixed + state.older().len());
                prop_assert!(memory <= fixed + longest * 9 / 8 + 20);
            }
        }
    }
}

/// A thousand a minute, evenly: what most limiters of that size look like when they are full.
#[test]
fn a_limiter_of_1000_per_minute_takes_less_than_400_bytes() {
    let mut server = FakeServer::new();
    for _ in 0..5_000 {
        server.advance_ms(60);
        assert!(check(&mut server, "1000 EX 60").remaining < 1000);
    }
    let memory = stored(&server, "k").unwrap().memory(&State::default());
    assert!(memory < 400, "{memory}");
}

/// The densest log there can be: 257 entries that share the greatest count as evenly as possible.
#[test]
fn the_largest_state_survives_a_dump() {
    let window = Window::from_ms(256).unwrap();
    let mut limiter = Limiter::default();
    for tick in 0..257 {
        let units = if tick < 56 { 1 << 34 } else { 1 << 27 };
        limiter.charge(&[Meter::sliding(window)], UnixUs(tick * window.tick_us()), units).unwrap();
    }
    let dump = limiter.encode(&State::default());
    let [Metered::Sliding(state)] = limiter.states() else { panic!() };
    assert_eq!(state.older().len(), SlidingWindow::MAX_OLDER_BYTES);
    assert_eq!(Limiter::decode(&dump), Some(limiter));
}

#[test]
fn a_dump_holds_sixteen_states_and_a_ban() {
    let mut limiter = Limiter::default();
    let fixed = |ms| Meter { algorithm: Algorithm::Fixed, window: Window::from_ms(ms).unwrap() };
    for ms in 1..=16 {
        limiter.charge(&[fixed(ms)], UnixUs(0), 1).unwrap();
    }
    let sixteen = limiter.encode(&State::default());
    limiter.ban(UnixMs(5));
    assert_eq!(Limiter::decode(&limiter.encode(&State::default())), Some(limiter));
    let mut seventeen = Limiter::default();
    seventeen.charge(&[fixed(17)], UnixUs(0), 1).unwrap();
    let one = seventeen.encode(&State::default());
    assert_eq!(Limiter::decode(&[&[17], &sixteen[1..], &one[1..]].concat()), None);
    assert!(Limiter::decode(&[&[16], &sixteen[1..]].concat()).is_some());
}
