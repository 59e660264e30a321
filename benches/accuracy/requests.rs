//! The moments at which requests come.

use keyward::ratelimit::window::Window;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::algorithms::{LIMIT, WINDOW_US};

/// The beginning of a minute in 2025.
const START_US: i64 = 1_750_000_020_000_000;
const WINDOWS: i64 = 1000;
/// How often an adversary tries, each time for some windows.
const ATTACKS: i64 = 20;

/// Independent of each other, so many times the limit on average.
pub fn at_random(times: f64) -> Vec<i64> {
    let mut random = StdRng::seed_from_u64(1);
    let mean_gap = WINDOW_US as f64 / (LIMIT as f64 * times);
    let (mut at, end) = (START_US as f64, (START_US + WINDOWS * WINDOW_US) as f64);
    let mut requests = Vec::new();
    while at < end {
        requests.push(at as i64);
        at -= mean_gap * (1.0 - random.random::<f64>()).ln();
    }
    requests
}

fn attacks(spread_over: i64, attack: impl Fn(i64, &mut Vec<i64>)) -> Vec<i64> {
    let mut requests = Vec::new();
    for turn in 0..ATTACKS {
        attack(START_US + turn * spread_over * WINDOW_US, &mut requests);
    }
    requests
}

fn burst(at: i64, requests: &mut Vec<i64>) {
    requests.extend(std::iter::repeat_n(at, LIMIT));
}

/// All that is allowed in the last microsecond of a window, and again in the first of the next.
pub fn around_the_turn() -> Vec<i64> {
    attacks(3, |begin, requests| {
        burst(begin + WINDOW_US - 1, requests);
        burst(begin + WINDOW_US, requests);
    })
}

/// All that is allowed in the last microsecond of a window after one without any, and in the next one as much as is forgotten of
/// that, at once.
pub fn as_it_is_forgotten() -> Vec<i64> {
    attacks(4, |begin, requests| {
        let turn = begin + 2 * WINDOW_US;
        burst(turn - 1, requests);
        requests.extend((0..WINDOW_US).step_by(1000).map(|us| turn + us));
    })
}

/// All that is allowed in the last and in the first microsecond of every tick.
pub fn around_the_ticks() -> Vec<i64> {
    let window = Window::from_ms(WINDOW_US / 1000).unwrap();
    attacks(3, |begin, requests| {
        for tick in 1..=2 * window.span() {
            let at = begin + tick * window.tick_us();
            burst(at - 1, requests);
            burst(at, requests);
        }
    })
}

/// All that is allowed at once, and then as much as flows off, evenly.
pub fn as_it_flows_off() -> Vec<i64> {
    attacks(3, |begin, requests| {
        burst(begin, requests);
        let each = WINDOW_US / LIMIT as i64;
        requests.extend((1..=LIMIT as i64).map(|n| begin + n * each));
    })
}
