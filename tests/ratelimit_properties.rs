//! What a sliding window promises, for any load: the commands run on the in-memory server, against an exact log of admissions.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod limiters;

use keyward::apply::Apply;
use keyward::clock::UnixUs;
use keyward::fake_server::{Entry, FakeServer};
use keyward::ratelimit::commands::{Check, Peek, Reset};
use keyward::ratelimit::window::Window;
use keyward::reply::Reply;
use limiters::{Admission, Answer, Pause, admitted, answer, bytes, pause, window_ms};
use proptest::prelude::*;

fn check(server: &mut FakeServer, key: &str, count: i64, ms: i64, cost: i64) -> Answer {
    answer(server.call::<Check>(&format!("RATELIMIT.CHECK {key} {count} PX {ms} COST {cost}")).unwrap())
}

fn peek(server: &mut FakeServer, key: &str, count: i64, ms: i64, cost: i64) -> Answer {
    answer(server.call::<Peek>(&format!("RATELIMIT.PEEK {key} {count} PX {ms} COST {cost}")).unwrap())
}

/// PEEK of the key `k`, as it would answer some milliseconds later.
fn peek_after(server: &mut FakeServer, after_ms: i64, count: i64, ms: i64, cost: i64) -> Answer {
    limiters::peek_after(server, after_ms, &format!("{count} PX {ms} COST {cost}"))
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
            let Answer { allowed, limit, remaining, retry_after_ms, next_ms, reset_ms, .. } =
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
