//! The table: a line for each algorithm, a column for each load.

use crate::algorithms::{Algorithm, LIMIT, WINDOW_US, check, exact_log, two_counters};
use crate::requests;

/// An algorithm, and the requests of a client who knows it and wants as many as can be admitted in one true window.
struct Entry {
    name: &'static str,
    algorithm: fn() -> Algorithm,
    adversary: fn() -> Vec<i64>,
}

const ENTRIES: [Entry; 5] = [
    Entry { name: "exact log", algorithm: exact_log, adversary: requests::around_the_turn },
    Entry { name: "SLIDING", algorithm: || check("SLIDING"), adversary: requests::around_the_ticks },
    Entry { name: "GCRA", algorithm: || check("GCRA"), adversary: requests::as_it_flows_off },
    Entry { name: "FIXED", algorithm: || check("FIXED"), adversary: requests::around_the_turn },
    Entry { name: "two counters", algorithm: two_counters, adversary: requests::as_it_is_forgotten },
];

const TIMES: [f64; 3] = [1.0, 1.5, 5.0];

pub fn print() {
    let loads = TIMES.map(|times| format!("{times:.1} times the limit"));
    println!("| | {} | adversary |\n|---|---|---|---|---|", loads.join(" | "));
    for Entry { name, algorithm, adversary } in ENTRIES {
        let random = TIMES.map(|times| cell(algorithm(), &requests::at_random(times)));
        println!("| {name} | {} | {} |", random.join(" | "), cell(algorithm(), &adversary()));
    }
}

/// How much is admitted, of what an exact log admits of the same requests, and the worst true window.
fn cell(algorithm: Algorithm, requests: &[i64]) -> String {
    let (admitted, exact) = (admitted(algorithm, requests), admitted(exact_log(), requests));
    let share = 100.0 * admitted.len() as f64 / exact.len() as f64;
    format!("{share:.1} %, {:.2}x", worst_window(&admitted) as f64 / LIMIT as f64)
}

fn admitted(mut algorithm: Algorithm, requests: &[i64]) -> Vec<i64> {
    requests.iter().copied().filter(|&at| algorithm(at)).collect()
}

/// The most that were admitted within any time of the window's length, both ends included.
fn worst_window(admitted: &[i64]) -> usize {
    let mut first = 0;
    let mut within = |last: usize| {
        while admitted[first] < admitted[last] - WINDOW_US {
            first += 1;
        }
        last - first + 1
    };
    (0..admitted.len()).map(&mut within).max().unwrap_or(0)
}
