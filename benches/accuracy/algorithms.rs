//! Limits of [`LIMIT`] in [`WINDOW_US`], each a function that says at a moment whether one more is admitted.

use std::collections::VecDeque;

use keyward::clock::UnixUs;
use keyward::fake_server::FakeServer;
use keyward::ratelimit::commands::Check;
use keyward::reply::Reply;

pub const LIMIT: usize = 100;
pub const WINDOW_US: i64 = 60_000_000;

pub type Algorithm = Box<dyn FnMut(i64) -> bool>;

/// RATELIMIT.CHECK.
pub fn check(algorithm: &str) -> Algorithm {
    let mut server = FakeServer::new();
    let line = format!("RATELIMIT.CHECK k {algorithm} {LIMIT} PX {}", WINDOW_US / 1000);
    Box::new(move |now| {
        server.now = UnixUs(now);
        server.take_replicated();
        match server.call::<Check>(&line) {
            Ok(Reply::Ints(ints)) => ints[0] == 1,
            other => panic!("{other:?}"),
        }
    })
}

/// The moment of every admission. One that came just a window ago counts still.
pub fn exact_log() -> Algorithm {
    let mut log = VecDeque::new();
    Box::new(move |now| {
        while log.front().is_some_and(|&at| at < now - WINDOW_US) {
            log.pop_front();
        }
        let admitted = log.len() < LIMIT;
        if admitted {
            log.push_back(now);
        }
        admitted
    })
}

/// The usual approximation: a count for the window of now, and one for the window before, of which as large a part counts as
/// is still in sight.
pub fn two_counters() -> Algorithm {
    let (mut number, mut before, mut current) = (0, 0, 0);
    Box::new(move |now| {
        let (window, into) = (now / WINDOW_US, now % WINDOW_US);
        if window != number {
            before = if window == number + 1 { current } else { 0 };
            (number, current) = (window, 0);
        }
        let in_sight = before as f64 * (WINDOW_US - into) as f64 / WINDOW_US as f64;
        let admitted = in_sight + current as f64 + 1.0 <= LIMIT as f64;
        current += usize::from(admitted);
        admitted
    })
}
