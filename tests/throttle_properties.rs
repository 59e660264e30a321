//! What CL.THROTTLE promises, for any numbers and any load: its arithmetic against exact sums, and the command on the
//! in-memory server against that arithmetic.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use keyward::clock::UnixUs;
use keyward::fake_server::FakeServer;
use keyward::ratelimit::commands::Throttle;
use keyward::ratelimit::throttle_compat::{Call, Change, Decision};
use keyward::reply::Reply;
use proptest::prelude::*;

const SECOND: i64 = 1_000_000_000;
const NOW: i64 = 1_750_000_000 * SECOND;

/// max_burst, count, period.
type Rate = (i64, i64, i64);

fn call(rate: Rate, quantity: i64) -> Call {
    Call::new(rate.0, rate.1, rate.2, quantity).unwrap()
}

/// Nanoseconds between two units.
fn interval(rate: Rate) -> i64 {
    rate.2 * SECOND / rate.1
}

/// The state of one key, which outlives no expiry since it has none.
#[derive(Default)]
struct State {
    tat: Option<i64>,
    reach: i64,
}

impl State {
    fn decide(&mut self, call: Call, now: i64) -> Decision {
        self.reach = self.reach.max(call.drain());
        let decision = call.decide(self.tat, now, self.reach);
        match decision.change {
            Change::Nothing => {}
            Change::Store(tat) => self.tat = Some(tat),
            Change::Remove => self.tat = None,
        }
        decision
    }
}

/// Numbers of every size, and those at the ends.
fn any_number() -> impl Strategy<Value = i64> {
    prop_oneof![
        any::<i64>(),
        -3..100i64,
        (0..63u32).prop_map(|bits| 1i64 << bits),
        (0..63u32).prop_map(|bits| i64::MAX >> bits),
        Just(i64::MIN),
        Just(i64::MAX),
        (-5..5i64).prop_map(|seconds| NOW + seconds * SECOND),
    ]
}

fn rate() -> impl Strategy<Value = Rate> {
    prop_oneof![
        (0..6i64, 1..5i64, 1..5i64),
        (0..50i64, 1..5000i64, 1..100i64),
        Just((0, 1500, 1)),
        Just((0, 1_000_000_000, 1)),
        Just((1_000_000, 1_000_000_000, 3)),
        Just((0, 1, 1_000_000)),
    ]
}

/// A pause, in thousandths of the interval between two units, or in nanoseconds.
#[derive(Clone, Copy, Debug)]
enum Pause {
    Share(i64),
    Nanoseconds(i64),
}

impl Pause {
    fn ns(self, interval: i64) -> i64 {
        match self {
            Pause::Share(thousandths) => interval / 1000 * thousandths,
            Pause::Nanoseconds(ns) => ns,
        }
    }
}

fn pause() -> impl Strategy<Value = Pause> {
    prop_oneof![
        4 => Just(Pause::Nanoseconds(0)),
        2 => (0..3000i64).prop_map(Pause::Nanoseconds),
        4 => (0..1200i64).prop_map(Pause::Share),
        1 => (0..20_000i64).prop_map(Pause::Share),
    ]
}

proptest! {
    #[test]
    fn any_numbers_give_a_decision_or_an_error(
        numbers in (any_number(), any_number(), any_number(), any_number()),
        stored in proptest::option::of(any_number()),
        now in any_number(),
        reach in any_number(),
    ) {
        let (max_burst, count, period, quantity) = numbers;
        let made = Call::new(max_burst, count, period, quantity);
        if max_burst < 0 || count < 1 || period < 1 {
            prop_assert!(made.is_err());
        }
        let Ok(call) = made else { return Ok(()) };
        let told = call.decide(stored, now, reach);
        prop_assert_eq!(told.limit, max_burst + 1);
        prop_assert!((0..=told.limit).contains(&told.remaining));
        prop_assert!(told.reset_after >= 0);
        let [limited, _, _, retry_after, reset_after] = told.integers();
        prop_assert_eq!(limited == 1, told.limited);
        prop_assert!(retry_after == -1 || (told.limited && retry_after >= 1));
        prop_assert!(reset_after >= 0);
        match told.change {
            Change::Store(tat) => prop_assert!(tat >= now),
            Change::Remove => prop_assert!(stored.is_some() && quantity < 0 && told.remaining == told.limit),
            Change::Nothing => {}
        }
        if quantity == 0 {
            prop_assert_eq!(told.change, Change::Nothing);
        }
    }

    /// Also where callers with smaller bursts come in between: then for the greatest burst.
    #[test]
    fn in_any_time_no_more_is_admitted_than_the_burst_and_the_rate_allow(
        rate in rate(),
        calls in prop::collection::vec((pause(), 1..4i64, 0..3i64), 1..120),
    ) {
        let (most_burst, count, period) = rate;
        // All callers are known.
        let mut state = State { reach: call(rate, 0).drain(), ..State::default() };
        let mut now = NOW;
        let mut admitted: Vec<(i64, i64)> = Vec::new();
        for (pause, quantity, less) in calls {
            now += pause.ns(interval(rate));
            let told = state.decide(call(((most_burst - less).max(0), count, period), quantity), now);
            if !told.limited {
                admitted.push((now, quantity));
            }
        }
        for first in 0..admitted.len() {
            let mut units = 0;
            for (at, quantity) in &admitted[first..] {
                units += i128::from(*quantity);
                let allowed = i128::from(call(rate, 0).drain()) + i128::from(at - admitted[first].0);
                prop_assert!(units * i128::from(interval(rate)) <= allowed);
            }
        }
    }

    #[test]
    fn a_denial_lasts_exactly_as_long_as_it_says(
        rate in rate(),
        calls in prop::collection::vec((pause(), -3..8i64), 1..40),
        forged in proptest::option::of(0..i64::MAX),
    ) {
        let mut state = State { tat: forged, ..State::default() };
        let mut now = NOW;
        for (pause, quantity) in calls {
            now += pause.ns(interval(rate));
            let call = call(rate, quantity);
            let told = state.decide(call, now);
            match told.retry_after {
                Some(wait) => {
                    prop_assert!(told.limited && wait >= 1 && wait <= call.drain(), "{wait}");
                    prop_assert!(call.decide(state.tat, now + wait - 1, call.drain()).limited);
                    prop_assert!(!call.decide(state.tat, now + wait, call.drain()).limited);
                }
                None => prop_assert_eq!(told.limited, quantity > rate.0 + 1),
            }
            // A look stores nothing, so that a forged state is as far ahead at every look.
            if quantity != 0 {
                let look = self::call(rate, 0);
                let full = look.decide(state.tat, now + told.reset_after, look.drain());
                prop_assert_eq!((full.remaining, full.reset_after), (told.limit, 0));
                if told.reset_after > 0 {
                    let before = look.decide(state.tat, now + told.reset_after - 1, look.drain());
                    prop_assert!(before.reset_after == 1 && before.remaining < told.limit);
                }
            }
        }
    }

    /// The key's expiry makes no difference, and what is replicated is the state.
    #[test]
    fn the_command_follows_the_arithmetic(
        rate in rate(),
        calls in prop::collection::vec((pause(), -2..6i64), 1..60),
    ) {
        let mut server = FakeServer::new();
        server.now = UnixUs(NOW / 1000);
        let mut state = State::default();
        let (max_burst, count, period) = rate;
        for (pause, quantity) in calls {
            server.now = UnixUs(server.now.0 + pause.ns(interval(rate)) / 1000);
            let told = state.decide(call(rate, quantity), server.now.0 * 1000);
            let line = format!("CL.THROTTLE k {max_burst} {count} {period} {quantity}");
            let Ok(Reply::Ints(ints)) = server.call::<Throttle>(&line) else { panic!("{line}") };
            prop_assert_eq!(&ints[..], &told.integers()[..]);
            let sent = server.take_replicated();
            match told.change {
                Change::Nothing => prop_assert!(sent.is_empty()),
                // An expiry may have been quicker.
                Change::Remove => prop_assert!(sent.is_empty() || sent == ["UNLINK k"]),
                Change::Store(tat) => {
                    let ms = (tat + 999_999) / 1_000_000;
                    prop_assert_eq!(sent, [format!("SET k {tat} PXAT {ms}")]);
                }
            }
        }
    }
}
