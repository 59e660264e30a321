//! Early refresh: a value that is about to expire is loaded again by one reader before it does, at a random moment that comes
//! the nearer the expiry the cheaper the load is.
//!
//! XFetch of A. Vattani, F. Chierichetti, K. Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", PVLDB 8(8), 2015:
//! a reader refreshes when `delta * beta * -ln(u) >= time left`, `u` uniform in (0, 1], `delta` how long a load takes. That
//! is with probability `exp(-(time left) / (beta * delta))`.

/// The greatest beta.
pub(super) const BETA_MAX: f64 = 1000.0;

/// The greatest `most` to draw from: as many values as a double can tell apart in (0, 1].
pub(super) const DRAW: u64 = (1 << 53) - 1;

/// Is this reader to refresh? `left_ms` until the expiry; `load_us` is how long the last load took; `draw` is uniform in
/// `0..=DRAW`.
pub(super) fn elects(left_ms: i64, beta: f64, load_us: u32, draw: u64) -> bool {
    let u = (draw.min(DRAW) as f64 + 1.0) / (DRAW as f64 + 1.0);
    -u.ln() * beta * f64::from(load_us) >= left_ms.max(0) as f64 * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_the_expiry_and_the_dearer_the_load_the_likelier() {
        assert!(elects(0, 1.0, 1, DRAW) && elects(-5, 1.0, 1, DRAW), "at the expiry always");
        assert!(!elects(1, 1.0, 1_000_000, DRAW), "u = 1");
        let draw_of = |u: f64| (u * (DRAW as f64 + 1.0)) as u64 - 1;
        let at_probability = (-(500.0_f64) / (2.0 * 250.0)).exp();
        assert!(elects(500, 2.0, 250_000, draw_of(at_probability * 0.999)));
        assert!(!elects(500, 2.0, 250_000, draw_of(at_probability * 1.001)));
    }

    #[test]
    fn the_frequency_is_the_probability_of_the_paper() {
        const DRAWS: u64 = 100_000;
        for (left_ms, beta, load_us) in [(100, 1.0, 50_000), (30, 0.5, 200_000), (1_000, 4.0, 150_000)] {
            // Evenly spread instead of random: the share is then exact to 1 in DRAWS.
            let elected =
                (0..DRAWS).filter(|i| elects(left_ms, beta, load_us, i * (DRAW / DRAWS))).count() as f64 / DRAWS as f64;
            let expected = (-(left_ms as f64) * 1000.0 / (beta * f64::from(load_us))).exp();
            assert!((elected - expected).abs() < 1e-4, "{elected} {expected}");
        }
    }
}
