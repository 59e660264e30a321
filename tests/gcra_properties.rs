//! What GCRA and fixed windows promise, for any load: the commands run on the in-memory server, against an exact log of
//! admissions, in integers.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod limiters;

use keyward::fake_server::FakeServer;
use keyward::ratelimit::MAX_UNITS;
use keyward::ratelimit::window::Window;
use limiters::{Admission, Kind, Limit, Pause, bytes, check, pause, peek, peek_after, window_ms, words};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Request {
    pause: Pause,
    cost: i64,
    reserve: i64,
}

/// Counts of every size.
fn units() -> impl Strategy<Value = i64> {
    prop_oneof![6 => 1..30i64, 1 => Just(1000i64), 1 => 1..=MAX_UNITS, 1 => Just(MAX_UNITS)]
}

/// Of this capacity: mostly a little, now and then all of it, or more.
fn requests(capacity: i64) -> impl Strategy<Value = Vec<Request>> {
    let share = move |share: i64| (i128::from(capacity) * i128::from(share) / 1000) as i64;
    let cost = prop_oneof![4 => Just(1i64), 2 => 2..6i64, 3 => (1..1002i64).prop_map(share)];
    let reserve = prop_oneof![4 => Just(0i64), 1 => 1..4i64, 1 => (1..1002i64).prop_map(share)];
    let request = (pause(), cost, reserve).prop_map(|(pause, cost, reserve)| Request {
        pause,
        cost: cost.clamp(1, MAX_UNITS),
        reserve: reserve.min(MAX_UNITS),
    });
    prop::collection::vec(request, 1..150)
}

/// The same limit all the time but for its reserve, and requests under it.
fn load(kind: Kind) -> impl Strategy<Value = (Limit, Vec<Request>)> {
    (window_ms(), units(), units(), any::<bool>()).prop_flat_map(move |(ms, count, burst, bursts)| {
        let burst = (kind == Kind::Gcra && bursts).then_some(burst);
        let limit = Limit { kind, ms, count, burst, reserve: 0 };
        (Just(limit), requests(limit.capacity()))
    })
}

/// For every moment that something was admitted at, and those between it and now: what GCRA has counted beyond what has flowed
/// off since. The greatest of these is the level of the bucket, here in units times the window in microseconds.
fn exact_level(log: &[Admission], limit: &Limit, now: i64) -> i128 {
    let mut admitted = 0;
    let levels = log.iter().rev().map(|admission| {
        admitted += i128::from(admission.units);
        admitted * i128::from(limit.window_us()) - i128::from(now - admission.us) * i128::from(limit.count)
    });
    levels.max().unwrap_or(0).max(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// In any time `w` no more than `burst + w * rate` is admitted; a reserve is never touched; and what both allow is admitted.
    #[test]
    fn gcra_admits_what_the_log_allows_and_nothing_else((limit, requests) in load(Kind::Gcra)) {
        let mut server = FakeServer::new();
        let mut log: Vec<Admission> = Vec::new();
        let mut retry_ms = 0;
        let unit = i128::from(limit.window_us());
        let capacity = limit.capacity();
        for Request { pause, cost, reserve } in requests {
            server.now.0 += pause.us(server.now.0, Window::from_ms(limit.ms).unwrap(), retry_ms);
            let now = server.now.0;
            let level = exact_level(&log, &limit, now);
            let fits = level + i128::from(cost) * unit <= (i128::from(capacity) - i128::from(reserve)) * unit;
            let answer = check(&mut server, &words(&[Limit { reserve, ..limit }], cost));
            retry_ms = answer.retry_after_ms.min(1_000_000_000);
            prop_assert_eq!(answer.allowed, fits, "{:?} at a level of {}", answer, level);
            if answer.allowed {
                log.push(Admission { us: now, units: cost });
            }
            let level = exact_level(&log, &limit, now);
            let used = i64::try_from(level / unit + i128::from(level % unit > 0)).unwrap();
            prop_assert!(used <= capacity);
            prop_assert_eq!((answer.limit, answer.remaining), (capacity, capacity - used));
            prop_assert!(!answer.allowed || answer.remaining >= reserve);
        }
    }

    /// In each window that is aligned to 1970 no more than `count` is admitted, and what the window has left is.
    #[test]
    fn fixed_admits_the_count_in_each_aligned_window((limit, requests) in load(Kind::Fixed)) {
        let mut server = FakeServer::new();
        let (mut current, mut used) = (0, 0);
        let mut retry_ms = 0;
        for Request { pause, cost, reserve } in requests {
            server.now.0 += pause.us(server.now.0, Window::from_ms(limit.ms).unwrap(), retry_ms);
            let (number, into) = (server.now.0 / limit.window_us(), server.now.0 % limit.window_us());
            if number != current {
                (current, used) = (number, 0);
            }
            let fits = used + cost + reserve <= limit.count;
            let answer = check(&mut server, &words(&[Limit { reserve, ..limit }], cost));
            retry_ms = answer.retry_after_ms;
            prop_assert_eq!(answer.allowed, fits);
            used += if fits { cost } else { 0 };
            let turn_ms = if used == 0 { 0 } else { (limit.window_us() - into + 999) / 1000 };
            prop_assert_eq!((answer.limit, answer.remaining), (limit.count, limit.count - used));
            prop_assert_eq!((answer.next_ms, answer.reset_ms), (turn_ms, turn_ms));
        }
    }

    /// What an answer promises comes true at the millisecond it names, and not one earlier, if nobody else comes: also when
    /// counts, bursts and reserves are others in each call.
    #[test]
    fn waits_are_exact(
        kind in prop_oneof![3 => Just(Kind::Gcra), 1 => Just(Kind::Sliding), 1 => Just(Kind::Fixed)],
        ms in window_ms(),
        large in any::<bool>(),
        calls in prop::collection::vec((pause(), 1..30i64, prop::option::of(1..30i64), 1..12i64, 0..6i64), 1..100),
    ) {
        let window = Window::from_ms(ms).unwrap();
        let size = if large { MAX_UNITS / 30 } else { 1 };
        let mut server = FakeServer::new();
        let mut retry_ms = 0;
        for (pause, count, burst, cost, reserve) in calls {
            let burst = burst.filter(|_| kind == Kind::Gcra).map(|burst| burst * size);
            let limit = Limit { kind, ms, count: count * size, burst, reserve: reserve * size };
            let line = words(&[limit], cost * size);
            server.now.0 += pause.us(server.now.0, window, retry_ms);
            let answer = check(&mut server, &line);
            retry_ms = answer.retry_after_ms;
            prop_assert_eq!(answer.remaining == answer.limit, answer.next_ms == 0);
            prop_assert!(retry_ms <= answer.reset_ms);
            if retry_ms == -1 {
                prop_assert!(cost * size > limit.capacity() - limit.reserve);
            } else if !answer.allowed {
                prop_assert!(cost * size <= limit.capacity() - limit.reserve);
                prop_assert!(!peek_after(&mut server, retry_ms - 1, &line).allowed);
                prop_assert!(peek_after(&mut server, retry_ms, &line).allowed);
            }
            let (next_ms, reset_ms) = (answer.next_ms, answer.reset_ms);
            if next_ms > 0 {
                prop_assert_eq!(peek_after(&mut server, next_ms - 1, &line).remaining, answer.remaining);
                prop_assert!(peek_after(&mut server, next_ms, &line).remaining > answer.remaining);
                prop_assert_eq!(peek_after(&mut server, reset_ms - 1, &line).reset_ms, 1);
                let full = peek_after(&mut server, reset_ms, &line);
                prop_assert_eq!((full.remaining, full.next_ms, full.reset_ms), (limit.capacity(), 0, 0));
            }
            // What is not full is there for as long. Rounded from now and from 1970, that may differ by one.
            if let Some((_, expiry)) = bytes(&server, "k") {
                prop_assert!(reset_ms <= expiry.unwrap().since(server.now.to_ms()) + 1);
            }
        }
    }

    /// The count, the burst and the reserve are no part of what is stored: what was consumed stays.
    #[test]
    fn what_was_consumed_stays_when_the_counts_change((limit, requests) in load(Kind::Gcra), count in units(), burst in units()) {
        let mut server = FakeServer::new();
        for Request { pause, cost, reserve } in requests {
            server.now.0 += pause.us(server.now.0, Window::from_ms(limit.ms).unwrap(), 0);
            let limit = Limit { reserve, ..limit };
            let answer = check(&mut server, &words(&[limit], cost));
            let used = answer.limit - answer.remaining;
            let other = Limit { burst: Some(burst), reserve: 0, ..limit };
            prop_assert_eq!(peek(&mut server, &words(&[other], 1)).remaining, (burst - used).max(0));
            if answer.allowed {
                // At the moment of a charge nothing flows off at any rate.
                let other = Limit { count, burst: Some(burst), ..limit };
                prop_assert_eq!(peek(&mut server, &words(&[other], 1)).remaining, (burst - used).max(0));
            }
        }
    }
}

/// A count of 10^12 in a millisecond, taken by one at a time and by all at once: exact to the unit.
#[test]
fn the_greatest_rate_is_exact_to_the_microsecond() {
    let mut server = FakeServer::new();
    let limit = |burst| format!("GCRA {MAX_UNITS} PX 1 BURST {burst}");
    assert_eq!(check(&mut server, &format!("{} COST {MAX_UNITS}", limit(MAX_UNITS))).remaining, 0);
    for step in 1..1000 {
        server.now.0 += 1;
        assert_eq!(peek(&mut server, &limit(MAX_UNITS)).remaining, MAX_UNITS / 1000 * step);
        assert_eq!(peek(&mut server, &limit(1)).retry_after_ms, 1);
    }
    server.now.0 += 1;
    assert_eq!(peek(&mut server, &limit(MAX_UNITS)).remaining, MAX_UNITS);
}
