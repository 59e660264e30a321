//! When one who queues for a limiter will be admitted: all who came before him are admitted first, in thought. No server, no
//! clock: the moment is passed in.

use crate::clock::UnixUs;
use crate::ratelimit::answer::denial;
use crate::ratelimit::decision::meters;
use crate::ratelimit::limit::Limit;
use crate::ratelimit::limiter::Limiter;

/// The limiter as it will be when everybody who waits has been admitted, and when that is. One who arrives is added to it, so that
/// he costs no look at the whole queue.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// The limiter as it was when the forecast was made, or when the last one was admitted.
    pub base: Limiter,
    limiter: Limiter,
    at: UnixUs,
}

impl Forecast {
    /// Nobody waits, and this is how the limiter stands now.
    pub fn new(limiter: Limiter, now: UnixUs) -> Forecast {
        Forecast { base: limiter.clone(), limiter, at: now }
    }

    /// When this cost will be admitted behind all others; `None` if never.
    pub fn admission(&self, limits: &[Limit], cost: i64, now: UnixUs) -> Option<UnixUs> {
        let at = self.at.max(now);
        let at = self.limiter.banned_until(at.to_ms()).map_or(at, |until| UnixUs(until.0.saturating_mul(1000)));
        match denial(&self.limiter, limits, cost, at) {
            None => Some(at),
            // What a limit is waited for the others have by then: nobody else is admitted meanwhile.
            Some(denial) => denial.retry_after_ms.map(|ms| at.plus_ms(ms)),
        }
    }

    /// He waits, too, and will be admitted then.
    pub fn add(&mut self, limits: &[Limit], cost: i64, at: UnixUs) {
        // A limiter without room for another state refuses him when his turn comes, and is as it was for those behind him.
        let _ = self.limiter.charge(&meters(limits), at, cost);
        self.at = self.at.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use crate::clock::UnixMs;
    use crate::ratelimit::limit::{Limits, Question, Tail};

    fn limits(line: &str) -> Limits {
        let words: Vec<&[u8]> = ["c", "k"].into_iter().chain(line.split(' ')).map(str::as_bytes).collect();
        Question::parse(&mut Args::new(&words, "ratelimit.check"), Tail::Cost).unwrap().limits
    }

    #[test]
    fn everybody_is_admitted_behind_those_who_came_before() {
        let limits = limits("GCRA 1 PX 1000");
        let mut forecast = Forecast::new(Limiter::default(), UnixUs(0));
        let seconds: Vec<i64> = (0..4)
            .map(|_| {
                let at = forecast.admission(&limits, 1, UnixUs(0)).unwrap();
                forecast.add(&limits, 1, at);
                at.0 / 1_000_000
            })
            .collect();
        assert_eq!(seconds, [0, 1, 2, 3]);
        assert_eq!(forecast.admission(&limits, 2, UnixUs(0)), None, "never");
        assert_eq!(forecast.admission(&limits, 1, UnixUs(9_000_000)), Some(UnixUs(9_000_000)));
    }

    #[test]
    fn a_small_cost_waits_behind_a_large_one_and_both_for_the_end_of_a_ban() {
        let limits = limits("10 PX 1000 GCRA 100 PX 60000");
        let mut limiter = Limiter::default();
        limiter.charge(&meters(&limits), UnixUs(0), 5).unwrap();
        let mut forecast = Forecast::new(limiter.clone(), UnixUs(0));
        let large = forecast.admission(&limits, 10, UnixUs(0)).unwrap();
        assert!((1_000_000..1_010_000).contains(&large.0), "{large:?}");
        forecast.add(&limits, 10, large);
        let small = forecast.admission(&limits, 1, UnixUs(0)).unwrap();
        assert!((2_000_000..2_020_000).contains(&small.0), "{small:?}");
        limiter.ban(UnixMs(5000));
        assert_eq!(Forecast::new(limiter, UnixUs(0)).admission(&limits, 1, UnixUs(0)), Some(UnixUs(5_000_000)));
    }
}
