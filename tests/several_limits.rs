//! Several limits under one key, refunds, reserves and bans, for any load: the commands run on the in-memory server.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod limiters;

use keyward::apply::Apply;
use keyward::clock::UnixUs;
use keyward::error::Error;
use keyward::fake_server::{Entry, FakeServer};
use keyward::native::NativeValue;
use keyward::ratelimit::commands::{Ban, Check, Refund, Reset};
use keyward::ratelimit::limiter::Limiter;
use keyward::ratelimit::window::Window;
use keyward::reply::Reply;
use limiters::{Answer, Kind, Limit, ask, bytes, check, pause, peek, peek_after, words};
use proptest::prelude::*;

const KINDS: [Kind; 3] = [Kind::Sliding, Kind::Gcra, Kind::Fixed];

fn limit(windows: &'static [i64], reserves: std::ops::Range<i64>) -> impl Strategy<Value = Limit> {
    (0..KINDS.len(), prop::sample::select(windows), 1..12i64, prop::option::of(1..12i64), reserves).prop_map(
        |(kind, ms, count, burst, reserve)| {
            let kind = KINDS[kind];
            Limit { kind, ms, count, burst: burst.filter(|_| kind == Kind::Gcra), reserve }
        },
    )
}

/// The limits of one call: no two alike.
fn limits(windows: &'static [i64], reserves: std::ops::Range<i64>) -> impl Strategy<Value = Vec<Limit>> {
    prop::collection::vec(limit(windows, reserves), 1..8).prop_map(|mut limits| {
        let mut kept: Vec<Limit> = Vec::new();
        limits.retain(|limit| {
            let is_new = !kept.iter().any(|other| other.is_alike(limit));
            kept.push(*limit);
            is_new
        });
        limits
    })
}

/// Each limit asked alone.
fn each(server: &mut FakeServer, limits: &[Limit], cost: i64) -> Vec<Answer> {
    limits.iter().map(|limit| peek(server, &words(&[*limit], cost))).collect()
}

/// What a wait counts for: -1 is the longest.
fn length(retry_after_ms: i64) -> i64 {
    if retry_after_ms < 0 { i64::MAX } else { retry_after_ms }
}

/// The first of the greatest.
fn first_max(values: impl Iterator<Item = i64>) -> usize {
    values.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best }).unwrap().0
}

const WINDOWS: &[i64] = &[20, 50, 1000];

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// All allow it, and all are charged; or the answer names the one that denies it for longest, and nothing changes here or
    /// elsewhere. Counts, bursts, reserves and the choice of limits are others in each call.
    #[test]
    fn all_or_none_is_charged_and_the_binding_limit_is_named(
        calls in prop::collection::vec((pause(), limits(WINDOWS, 0..4), 1..6i64), 1..80),
    ) {
        let mut server = FakeServer::new();
        let mut retry_ms = 0;
        for (pause, limits, cost) in calls {
            let window = Window::from_ms(limits[0].ms).unwrap();
            server.now.0 += pause.us(server.now.0, window, retry_ms);
            let all = words(&limits, cost);
            let before = each(&mut server, &limits, cost);
            let asked = peek(&mut server, &all);
            let stored = bytes(&server, "k");
            prop_assert!(server.take_replicated().is_empty());
            let answer = check(&mut server, &all);
            retry_ms = answer.retry_after_ms;
            prop_assert_eq!(answer.allowed, before.iter().all(|one| one.allowed));
            prop_assert_eq!(answer.allowed, asked.allowed);
            for (limit, one) in limits.iter().zip(&before) {
                prop_assert_eq!(one.allowed, one.remaining - limit.reserve >= cost);
            }
            let after = each(&mut server, &limits, cost);
            if answer.allowed {
                prop_assert_eq!(server.take_replicated().len(), 1);
                for (one, then) in before.iter().zip(&after) {
                    prop_assert_eq!(then.remaining, one.remaining - cost);
                }
                let index = first_max(after.iter().map(|one| -one.remaining));
                let expected = Answer { allowed: true, retry_after_ms: 0, index: index as i64, ..after[index] };
                prop_assert_eq!(answer, expected);
            } else {
                prop_assert!(server.take_replicated().is_empty());
                prop_assert_eq!(stored, bytes(&server, "k"));
                let index = first_max(before.iter().map(|one| length(one.retry_after_ms)));
                prop_assert_eq!(answer, Answer { index: index as i64, ..before[index] });
                prop_assert_eq!(asked, answer);
                if retry_ms > 0 {
                    prop_assert!(!peek_after(&mut server, retry_ms - 1, &all).allowed);
                    prop_assert!(peek_after(&mut server, retry_ms, &all).allowed);
                }
            }
        }
    }

    /// At the same moment a refund undoes a charge: everything that PEEK tells is as before. Later it gives back the newest units,
    /// no more than are counted, and nothing of limits that it does not name. Also when the clock was set back.
    #[test]
    fn refunds_give_back_the_newest_units_and_never_more(
        plan in limits(WINDOWS, 0..1),
        calls in prop::collection::vec(
            (pause(), prop_oneof![9 => Just(0i64), 1 => -2_000_000..0i64], 1..6i64, 1..8i64, 0..3u8, any::<prop::sample::Index>()), 1..80),
    ) {
        let mut server = FakeServer::new();
        for (pause, jump, cost, back, what, first) in calls {
            let window = Window::from_ms(plan[0].ms).unwrap();
            server.now.0 += pause.us(server.now.0, window, 0) + jump;
            let named = &plan[first.index(plan.len())..];
            let before = each(&mut server, &plan, 1);
            let allowed = what > 0 && check(&mut server, &words(named, cost)).allowed;
            server.take_replicated();
            if what == 1 && allowed {
                let answer = ask::<Refund>(&mut server, &words(named, cost)).unwrap();
                prop_assert_eq!(each(&mut server, &plan, 1), before);
                prop_assert_eq!(server.take_replicated().len(), 1);
                prop_assert_eq!(answer, peek(&mut server, &words(named, cost)));
                continue;
            }
            let before = each(&mut server, &plan, 1);
            let answer = ask::<Refund>(&mut server, &words(named, back)).unwrap();
            prop_assert_eq!(answer, peek(&mut server, &words(named, back)));
            let consumed = before[plan.len() - named.len()..].iter().any(|one| one.remaining < one.limit);
            prop_assert_eq!(server.take_replicated().len(), usize::from(consumed));
            let after = each(&mut server, &plan, 1);
            for (i, (one, then)) in before.iter().zip(&after).enumerate() {
                if !named.contains(&plan[i]) {
                    prop_assert_eq!(one, then);
                    continue;
                }
                prop_assert_eq!(then.remaining, (one.remaining + back).min(one.limit));
                if then.remaining < then.limit && plan[i].kind != Kind::Gcra {
                    prop_assert_eq!(then.next_ms, one.next_ms, "the oldest are still there");
                }
                prop_assert!(then.reset_ms <= one.reset_ms);
            }
        }
    }

    /// Sixteen states, and no more, in which something is counted. A call that finds no room is an error and changes nothing.
    /// A ban always finds room.
    #[test]
    fn a_key_holds_sixteen_states_that_are_not_full(
        calls in prop::collection::vec((pause(), limits(&[1, 2, 3, 5, 20, 50, 100, 1000], 0..1), 0..20u8), 1..60),
    ) {
        let mut server = FakeServer::new();
        let mut seen: Vec<Limit> = Vec::new();
        for (pause, limits, ban) in calls {
            server.now.0 += pause.us(server.now.0, Window::from_ms(20).unwrap(), 0);
            if ban == 0 {
                prop_assert_eq!(server.call::<Ban>("RATELIMIT.BAN k PX 1"), Ok(Reply::Ok));
                server.advance_ms(1);
            }
            let others: Vec<Limit> =
                seen.iter().filter(|known| !limits.iter().any(|limit| limit.is_alike(known))).copied().collect();
            let live = each(&mut server, &others, 1).iter().filter(|one| one.remaining < one.limit).count();
            let admitted = peek(&mut server, &words(&limits, 1)).allowed;
            let stored = bytes(&server, "k");
            server.take_replicated();
            let answer = ask::<Check>(&mut server, &words(&limits, 1));
            if admitted && live + limits.len() > Limiter::MAX_STATES {
                prop_assert_eq!(answer, Err(Error::TooManyLimits));
                prop_assert!(server.take_replicated().is_empty());
                prop_assert_eq!(stored, bytes(&server, "k"));
            } else {
                prop_assert_eq!(answer.map(|answer| answer.allowed), Ok(admitted));
                // The last plan counts: GCRA is forgotten at the rate of the last charge.
                if admitted {
                    seen = others;
                    seen.extend(limits);
                }
            }
        }
    }

    /// Nothing passes before the end of a ban, and everything is after it as if there had been none.
    #[test]
    fn a_ban_denies_until_its_end_and_charges_nothing(
        limits in limits(WINDOWS, 0..3), cost in 1..4i64, charges in 0..6usize, ban_ms in 1..3000i64, into_us in 0..1000i64,
    ) {
        let (mut server, mut free) = (FakeServer::new(), FakeServer::new());
        for server in [&mut server, &mut free] {
            server.now.0 += into_us;
            for _ in 0..charges {
                check(server, &words(&limits, 1));
            }
        }
        let line = words(&limits, cost);
        server.call::<Ban>(&format!("RATELIMIT.BAN k PX {ban_ms}")).unwrap();
        server.take_replicated();
        let banned = check(&mut server, &line);
        prop_assert_eq!((banned.allowed, banned.remaining, banned.index), (false, 0, -1));
        prop_assert_eq!(banned.retry_after_ms, ban_ms);
        prop_assert!(banned.next_ms >= ban_ms && banned.reset_ms >= ban_ms);
        prop_assert!(server.take_replicated().is_empty());
        prop_assert_eq!(peek_after(&mut server, ban_ms - 1, &line).index, -1);
        prop_assert_eq!(peek_after(&mut server, ban_ms, &line), peek_after(&mut free, ban_ms, &line));
        for limit in &limits {
            let one = words(&[*limit], cost);
            let grown = peek(&mut server, &one).next_ms;
            prop_assert!(peek_after(&mut server, grown, &one).remaining > 0, "it said that remaining grows by then");
        }
        server.advance_ms(ban_ms);
        free.advance_ms(ban_ms);
        prop_assert_eq!(check(&mut server, &line), check(&mut free, &line));
    }
}

/// The longest that a limit may deny a cost that fits: one window, a sliding one a tick more, and GCRA one emptying.
fn longest_ms(limit: &Limit) -> i64 {
    let window = Window::from_ms(limit.ms).unwrap();
    let us = match limit.kind {
        Kind::Sliding => (window.span() + 1) * window.tick_us(),
        Kind::Fixed => window.us(),
        Kind::Gcra => (limit.capacity() * window.us() + limit.count - 1) / limit.count,
    };
    (us + 999) / 1000
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// However far and however often the clock jumps: nobody is told to wait longer than a full limit takes, what he is told
    /// comes true while the clock goes right, and a denial is repeated alike.
    #[test]
    fn a_clock_that_jumps_denies_for_one_window_at_most(
        plan in limits(&[7, 50, 1000, 60_000], 0..2),
        calls in prop::collection::vec((pause(), 1..5i64, any::<prop::sample::Index>()), 1..150),
        jumps in prop::collection::vec(
            (0..150usize, prop_oneof![
                -5_000..5_000i64, -120_000_000..120_000_000i64, -500_000_000_000_000..500_000_000_000_000i64,
            ]), 1..6),
    ) {
        let mut server = FakeServer::new();
        let mut retry_ms = 0;
        for (i, (pause, cost, first)) in calls.into_iter().enumerate() {
            let jump: i64 = jumps.iter().filter(|jump| jump.0 == i).map(|jump| jump.1).sum();
            let limits = &plan[first.index(plan.len())..];
            let window = Window::from_ms(limits[0].ms).unwrap();
            server.now.0 += pause.us(server.now.0, window, retry_ms) + jump;
            let line = words(limits, cost);
            let longest = limits.iter().map(longest_ms).max().unwrap();
            let answer = check(&mut server, &line);
            retry_ms = answer.retry_after_ms;
            prop_assert!(retry_ms <= longest && answer.reset_ms <= longest, "{answer:?} of {longest}");
            prop_assert!(bytes(&server, "k").is_none_or(|(_, expiry)| expiry.unwrap() > server.now.to_ms()));
            if !answer.allowed {
                server.take_replicated();
                prop_assert_eq!(check(&mut server, &line), answer);
                prop_assert!(server.take_replicated().is_empty(), "one denial told of the clock");
                if retry_ms > 0 {
                    prop_assert!(!peek_after(&mut server, retry_ms - 1, &line).allowed);
                    prop_assert!(peek_after(&mut server, retry_ms, &line).allowed);
                }
            }
        }
    }

    /// No moment is too early or too late.
    #[test]
    fn any_clock_is_answered(
        calls in prop::collection::vec((
            prop_oneof![Just(i64::MIN), Just(0i64), Just(-1i64), Just(i64::MAX), Just(i64::MAX / 2), any::<i64>()],
            limits(&[1, 1000, Window::MAX_MS], 0..2), 1..5i64, 0..4u8,
        ), 1..40),
    ) {
        let mut server = FakeServer::new();
        for (now, limits, cost, what) in calls {
            server.now = UnixUs(now);
            let line = words(&limits, cost);
            match what {
                0 => drop(server.call::<Ban>("RATELIMIT.BAN k EX 9000000000000")),
                1 => drop(ask::<Refund>(&mut server, &line)),
                _ => drop(ask::<Check>(&mut server, &line)),
            }
            peek(&mut server, &line);
        }
    }
}

#[derive(Clone, Debug)]
enum Call {
    Check(Vec<Limit>, i64),
    Refund(Vec<Limit>, i64),
    Ban(i64),
    Reset,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        12 => (limits(WINDOWS, 0..2), 1..5i64).prop_map(|(limits, cost)| Call::Check(limits, cost)),
        4 => (limits(WINDOWS, 0..2), 1..5i64).prop_map(|(limits, cost)| Call::Refund(limits, cost)),
        1 => (1..300i64).prop_map(Call::Ban),
        1 => Just(Call::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// A replica with a clock of its own that applies the stream holds the same bytes and the same expiries after every command,
    /// and so does who loads a dump.
    #[test]
    fn a_replica_is_equal_after_every_command(
        steps in prop::collection::vec(
            (pause(), call(), prop_oneof![30 => Just(0i64), 1 => -3_000_000..3_000_000i64]), 1..200),
    ) {
        let mut primary = FakeServer::new();
        let mut replica = FakeServer::new();
        (replica.replayed, replica.now) = (true, UnixUs(5));
        for (pause, call, jump) in steps {
            primary.now.0 += pause.us(primary.now.0, Window::from_ms(50).unwrap(), 0) + jump;
            // The server itself tells its replicas of a key that has expired.
            let due = |entry: &Entry| entry.expiry.unwrap() <= primary.now.to_ms();
            primary.keys.retain(|_, entry| !due(entry));
            replica.keys.retain(|_, entry| !due(entry));
            let before = bytes(&primary, "k");
            match call {
                Call::Check(limits, cost) => drop(check(&mut primary, &words(&limits, cost))),
                Call::Refund(limits, cost) => drop(ask::<Refund>(&mut primary, &words(&limits, cost)).unwrap()),
                Call::Ban(ms) => drop(primary.call::<Ban>(&format!("RATELIMIT.BAN k PX {ms}")).unwrap()),
                Call::Reset => drop(primary.call::<Reset>("RATELIMIT.RESET k").unwrap()),
            }
            let stream = primary.take_replicated();
            prop_assert_eq!(stream.is_empty(), before == bytes(&primary, "k"), "what changes is told, and nothing else");
            for line in stream {
                match line.strip_prefix("UNLINK ") {
                    Some(key) => prop_assert!(replica.keys.remove(&(0, key.into())).is_some()),
                    None => prop_assert_eq!(replica.call::<Apply>(&line), Ok(Reply::Ok)),
                }
            }
            let stored = bytes(&primary, "k");
            prop_assert_eq!(&stored, &bytes(&replica, "k"));
            if let Some((dump, expiry)) = stored {
                prop_assert!(expiry.unwrap() > primary.now.to_ms(), "what is over is gone");
                let loaded = Limiter::decode(&dump).unwrap();
                prop_assert_eq!(Some(&loaded), limiters::stored(&primary, "k"));
                prop_assert!(loaded.memory(&primary.state) < 16 * 1024);
            }
        }
    }
}

#[test]
fn two_limits_that_stand_alike_are_told_by_the_first() {
    let mut server = FakeServer::new();
    assert_eq!(check(&mut server, "FIXED 5 PX 1000 FIXED 5 PX 2000 COST 2").index, 0);
    assert_eq!(check(&mut server, "FIXED 5 PX 2000 FIXED 5 PX 1000 COST 9").index, 0);
    assert_eq!(check(&mut server, "FIXED 9 PX 2000 FIXED 5 PX 1000").index, 1);
}

/// The newest entry tells how far the older ones move. If it is given back they must have moved before.
#[test]
fn a_refund_after_the_clock_was_set_back_leaves_the_older_units_where_they_were() {
    let mut server = FakeServer::new();
    check(&mut server, "10 PX 256000 COST 2");
    server.advance_ms(100_000);
    check(&mut server, "10 PX 256000 COST 3");
    server.advance_ms(-3_600_000);
    let before = peek(&mut server, "10 PX 256000");
    let after = ask::<Refund>(&mut server, "10 PX 256000 COST 3").unwrap();
    assert_eq!((before.remaining, after.remaining), (5, 8));
    assert_eq!((after.next_ms, after.reset_ms), (before.next_ms, before.next_ms));
}
