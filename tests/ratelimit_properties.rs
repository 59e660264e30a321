//! What a sliding window promises, for any load: the commands run on the in-memory server, against an exact log of admissions.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use keyward::apply::Apply;
use keyward::clock::{UnixMs, UnixUs};
use keyward::fake_server::{Entry, FakeServer, Value};
use keyward::native::NativeValue;
use keyward::ratelimit::MAX_UNITS;
use keyward::ratelimit::commands::{Check, Peek, Reset};
use keyward::ratelimit::limiter::{Limiter, Metered};
use keyward::ratelimit::meter::{Algorithm, Meter};
use keyward::ratelimit::sliding_window::SlidingWindow;
use keyward::ratelimit::window::Window;
use keyward::reply::Reply;
use keyward::state::State;
use proptest::prelude::*;

/// The seven integers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Answer {
    allowed: bool,
    limit: i64,
    remaining: i64,
    retry_after_ms: i64,
    next_ms: i64,
    reset_ms: i64,
}

fn answer(reply: Reply<'_>) -> Answer {
    let Reply::Ints(ints) = reply else { panic!("not an array of integers: {reply:?}") };
    let [allowed, limit, remaining, retry_after_ms, next_ms, reset_ms, 0] = ints[..] else {
        panic!("not seven integers with index 0: {ints:?}")
    };
    assert!((0..=1).contains(&allowed) && (0..=limit).contains(&remaining), "{ints:?}");
    Answer { allowed: allowed == 1, limit, remaining, retry_after_ms, next_ms, reset_ms }
}

fn check(server: &mut FakeServer, key: &str, count: i64, ms: i64, cost: i64) -> Answer {
    answer(server.call::<Check>(&format!("RATELIMIT.CHECK {key} {count} PX {ms} COST {cost}")).unwrap())
}

fn peek(server: &mut FakeServer, key: &str, count: i64, ms: i64, cost: i64) -> Answer {
    answer(server.call::<Peek>(&format!("RATELIMIT.PEEK {key} {count} PX {ms} COST {cost}")).unwrap())
}

/// PEEK as it would answer some milliseconds later; on a replica, where a key that is due is not yet removed.
fn peek_after(server: &mut FakeServer, after_ms: i64, count: i64, ms: i64, cost: i64) -> Answer {
    let now = server.now;
    server.advance_ms(after_ms);
    server.replayed = true;
    let answer = peek(server, "k", count, ms, cost);
    (server.now, server.replayed) = (now, false);
    answer
}

fn stored<'s>(server: &'s FakeServer, key: &str) -> Option<&'s Limiter> {
    match &server.keys.get(&(0, key.as_bytes().to_vec()))?.value {
        Value::Native(value) => value.downcast_ref(),
        _ => None,
    }
}

fn bytes(server: &FakeServer, key: &str) -> Option<(Vec<u8>, Option<UnixMs>)> {
    let limiter = stored(server, key)?;
    Some((limiter.encode(&State::default()), server.keys[&(0, key.as_bytes().to_vec())].expiry))
}

/// How much time passes before a request.
#[derive(Clone, Copy, Debug)]
enum Pause {
    None,
    Us(i64),
    /// So many thousandths of the window.
    Share(i64),
    /// To the beginning of a tick so many ticks ahead, and some microseconds on.
    Tick(i64, i64),
    /// The whole window, and some microseconds on.
    Window(i64),
    /// Just as long as the last denial said.
    Retry,
}

impl Pause {
    fn us(self, now: i64, window: Window, retry_ms: i64) -> i64 {
        let tick = window.tick_us();
        let us = match self {
            Pause::None => 0,
            Pause::Us(us) => us,
            Pause::Share(share) => window.ms() * share,
            Pause::Tick(ticks, us) => (now / tick + ticks) * tick - now + us,
            Pause::Window(us) => window.ms() * 1000 + us,
            Pause::Retry => retry_ms.max(0) * 1000,
        };
        us.max(0)
    }
}

fn pause() -> impl Strategy<Value = Pause> {
    prop_oneof![
        4 => Just(Pause::None),
        2 => (0..50i64).prop_map(Pause::Us),
        4 => (0..60i64).prop_map(Pause::Share),
        1 => (100..3000i64).prop_map(Pause::Share),
        3 => (0..4i64, -1..2i64).prop_map(|(ticks, us)| Pause::Tick(ticks, us)),
        1 => (250..260i64, -1..2i64).prop_map(|(ticks, us)| Pause::Tick(ticks, us)),
        1 => (-1..2i64).prop_map(Pause::Window),
        2 => Just(Pause::Retry),
    ]
}

fn window_ms() -> impl Strategy<Value = i64> {
    prop_oneof![Just(1), Just(2), Just(7), Just(100), Just(1000), Just(60_000), Just(Window::MAX_MS), 1..10_000i64]
}

#[derive(Clone, Copy, Debug)]
struct Request {
    pause: Pause,
    count: i64,
    cost: i64,
}

/// Requests for a limit that mostly stays what it is, and now and then is raised or lowered.
fn requests() -> impl Strategy<Value = (i64, Vec<Request>)> {
    let cost = prop_oneof![6 => Just(1i64), 2 => 2..6i64, 1 => 6..40i64];
    (1..30i64).prop_flat_map(move |usual| {
        let count = prop_oneof![9 => Just(usual), 1 => 1..30i64];
        let request = (pause(), count, cost.clone()).prop_map(|(pause, count, cost)| Request { pause, count, cost });
        (window_ms(), prop::collection::vec(request, 1..300))
    })
}

/// An admission on a clock that is never set back.
#[derive(Clone, Copy, Debug)]
struct Admission {
    us: i64,
    units: i64,
}

/// Units admitted in the last `us` microseconds, both ends included.
fn admitted(log: &[Admission], now: i64, us: i64) -> i64 {
    log.iter().rev().take_while(|a| a.us >= now - us).map(|a| a.units).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// No true window of the given length ever holds more than `count`; and no denial is owed to what is more than one tick
    /// (and the 256 us that a window may not divide by) out of the window.
    #[test]
    fn admits_never_too_much_and_hardly_too_little((ms, requests) in requests()) {
        let window = Window::from_ms(ms).unwrap();
        let mut server = FakeServer::new();
        let mut log: Vec<Admission> = Vec::new();
        let mut retry_ms = 0;
        for Request { pause, count, cost } in requests {
            server.now.0 += pause.us(server.now.0, window, retry_ms);
            let now = server.now.0;
            let answer = check(&mut server, "k", count, ms, cost);
            retry_ms = answer.retry_after_ms;
            if answer.allowed {
                log.push(Admission { us: now, units: cost });
                prop_assert!(admitted(&log, now, ms * 1000) <= count, "more than {count} in a window");
            } else {
                let counted = admitted(&log, now, ms * 1000 + window.tick_us() + 256);
                prop_assert!(counted + cost > count, "denied {cost} of {count} with only {counted} about");
            }
        }
    }

    /// What an answer promises comes true at the millisecond it names, and not one earlier, if nobody else comes.
    #[test]
    fn waits_are_exact((ms, requests) in requests()) {
        let window = Window::from_ms(ms).unwrap();
        let mut server = FakeServer::new();
        let mut retry_ms = 0;
        for Request { pause, count, cost } in requests {
            server.now.0 += pause.us(server.now.0, window, retry_ms);
            let Answer { allowed, limit, remaining, retry_after_ms, next_ms, reset_ms } =
                check(&mut server, "k", count, ms, cost);
            retry_ms = retry_after_ms;
            prop_assert_eq!(limit, count);
            prop_assert_eq!(remaining == limit, next_ms == 0);
            prop_assert!(0 <= next_ms && next_ms <= reset_ms);
            prop_assert!(retry_after_ms <= reset_ms);
            match retry_after_ms {
                0 => prop_assert!(allowed),
                -1 => prop_assert!(!allowed && cost > count),
                wait => {
                    prop_assert!(!allowed && wait >= 1 && cost <= count);
                    prop_assert!(!peek_after(&mut server, wait - 1, count, ms, cost).allowed);
                    prop_assert!(peek_after(&mut server, wait, count, ms, cost).allowed);
                }
            }
            if next_ms > 0 {
                prop_assert_eq!(peek_after(&mut server, next_ms - 1, count, ms, 1).remaining, remaining);
                prop_assert!(peek_after(&mut server, next_ms, count, ms, 1).remaining > remaining);
                let (before, full) =
                    (peek_after(&mut server, reset_ms - 1, count, ms, 1), peek_after(&mut server, reset_ms, count, ms, 1));
                prop_assert!(before.reset_ms == 1, "{before:?}");
                prop_assert_eq!((full.remaining, full.next_ms, full.reset_ms), (count, 0, 0));
            }
        }
    }

    /// PEEK tells what CHECK is about to do, and a peek or a denied check leaves no trace.
    #[test]
    fn peeks_and_denials_change_nothing((ms, requests) in requests()) {
        let window = Window::from_ms(ms).unwrap();
        let mut server = FakeServer::new();
        for Request { pause, count, cost } in requests {
            server.now.0 += pause.us(server.now.0, window, 0);
            let before = peek(&mut server, "k", count, ms, cost);
            let state = bytes(&server, "k");
            prop_assert!(server.take_replicated().is_empty());
            let answer = check(&mut server, "k", count, ms, cost);
            prop_assert_eq!(before.allowed, answer.allowed);
            if answer.allowed {
                prop_assert_eq!(server.take_replicated().len(), 1);
                prop_assert_eq!(answer.remaining, before.remaining - cost);
            } else {
                prop_assert_eq!(before, answer);
                prop_assert!(server.take_replicated().is_empty());
                prop_assert_eq!(state, bytes(&server, "k"));
            }
        }
    }

    /// However far the clock is set back, and however often denied callers come again meanwhile: nobody is denied for longer
    /// than one window and one tick, and on a clock that goes right nothing is admitted too early.
    #[test]
    fn a_clock_set_back_denies_for_one_window_at_most(
        (ms, requests) in requests(),
        jumps in prop::collection::vec((0..300usize, prop_oneof![0..5_000i64, 0..120_000_000i64, 0..500_000_000_000_000i64]), 1..4),
    ) {
        let window = Window::from_ms(ms).unwrap();
        let longest = ((window.span() + 1) * window.tick_us() + 999) / 1000;
        let mut server = FakeServer::new();
        let mut log: Vec<Admission> = Vec::new();
        // A clock that is right, and how far the server's is behind it.
        let (mut right, mut behind) = (server.now.0, 0);
        let mut retry_ms = 0;
        let mut denied_since = None;
        for (i, Request { pause, cost, .. }) in requests.into_iter().enumerate() {
            for jump in jumps.iter().filter(|jump| jump.0 == i) {
                behind += jump.1;
                denied_since = None;
            }
            right += pause.us(right - behind, window, retry_ms);
            server.now = UnixUs(right - behind);
            let count = 40;
            let answer = check(&mut server, "k", count, ms, cost);
            let Answer { allowed, retry_after_ms, reset_ms, .. } = answer;
            retry_ms = retry_after_ms;
            prop_assert!(retry_after_ms <= longest && reset_ms <= longest, "{retry_after_ms} {reset_ms} of {longest}");
            if allowed {
                denied_since = None;
                log.push(Admission { us: right, units: cost });
                prop_assert!(admitted(&log, right, ms * 1000) <= count);
            } else {
                let since = *denied_since.get_or_insert(right);
                prop_assert!(right - since <= longest * 1000, "denied for {} us", right - since);
                prop_assert_eq!(peek(&mut server, "k", count, ms, cost), answer);
                prop_assert!(peek_after(&mut server, retry_after_ms, count, ms, cost).allowed);
            }
        }
    }

    /// A replica with a clock of its own that applies the stream holds the same bytes and the same expiries after every command.
    #[test]
    fn a_replica_is_equal_after_every_command(
        steps in prop::collection::vec(
            (0..2usize, 0..4usize, pause(), 1..30i64, 1..12i64, prop_oneof![40 => Just(0i64), 1 => 1..3_000_000i64], 0..60u8),
            1..300,
        ),
    ) {
        let windows = [1, 50, 1000, 3600];
        let mut primary = FakeServer::new();
        let mut replica = FakeServer::new();
        (replica.replayed, replica.now) = (true, UnixUs(5));
        for (key, w, pause, count, cost, jump, reset) in steps {
            let (key, ms) = (["a", "b"][key], windows[w]);
            primary.now.0 += pause.us(primary.now.0, Window::from_ms(ms).unwrap(), 0) - jump;
            // The server itself tells its replicas of a key that has expired.
            let due = |entry: &Entry| entry.expiry.unwrap() <= primary.now.to_ms();
            primary.keys.retain(|_, entry| !due(entry));
            replica.keys.retain(|_, entry| !due(entry));
            if reset == 0 {
                primary.call::<Reset>(&format!("RATELIMIT.RESET {key}")).unwrap();
            } else {
                check(&mut primary, key, count, ms, cost);
            }
            for line in primary.take_replicated() {
                match line.strip_prefix("UNLINK ") {
                    Some(key) => prop_assert!(replica.keys.remove(&(0, key.into())).is_some()),
                    None => prop_assert_eq!(replica.call::<Apply>(&line), Ok(Reply::Ok)),
                }
            }
            for key in ["a", "b"] {
                prop_assert_eq!(bytes(&primary, key), bytes(&replica, key), "{}", key);
            }
        }
    }
}

/// A limiter with up to 16 windows that took any load.
fn limiter() -> impl Strategy<Value = Limiter> {
    let charge = (0..20usize, 0..40i64, prop_oneof![1..200i64, 1..=MAX_UNITS / 300, Just(1i64)]);
    (prop::collection::vec(window_ms(), 1..20), prop::collection::vec(charge, 1..400)).prop_map(|(windows, charges)| {
        let mut limiter = Limiter::default();
        let mut now = 1_750_000_000_000_000;
        for (which, steps, units) in charges {
            let window = Window::from_ms(windows[which % windows.len()]).unwrap();
            now += steps * window.tick_us() / 10;
            // Too many windows or units are refused, and that is as good a state as any.
            let _ = limiter.charge(&[meter(which, window)], UnixUs(now), units);
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
        let _ = limiter.ban(UnixMs(7));
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

/// The case where whole ticks are not enough: the older request came at the end of its tick, the newer one at the beginning of
/// its own, and the clock goes back to the end of a third. Moved by whole ticks, the older one would leave one tick early.
#[test]
fn a_clock_set_back_takes_no_part_of_a_tick_from_older_requests() {
    let ms = 256_000;
    let tick = Window::from_ms(ms).unwrap().tick_us();
    let mut server = FakeServer::new();
    for now in [11 * tick - 1, 20 * tick] {
        server.now = UnixUs(now);
        assert!(check(&mut server, "k", 2, ms, 1).allowed);
    }
    server.now = UnixUs(6 * tick - 1);
    let since_older_ms = (9 * tick + 1) / 1000;
    let wait = check(&mut server, "k", 2, ms, 1).retry_after_ms;
    assert!(since_older_ms + wait >= ms, "{wait}");
    assert!(since_older_ms + wait <= ms + tick / 1000, "{wait}");
}

/// A thousand a minute, evenly: what most limiters of that size look like when they are full.
#[test]
fn a_limiter_of_1000_per_minute_takes_less_than_400_bytes() {
    let mut server = FakeServer::new();
    for _ in 0..5_000 {
        server.advance_ms(60);
        assert!(check(&mut server, "k", 1000, 60_000, 1).remaining < 1000);
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
