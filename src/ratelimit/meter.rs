//! What a state measures by: the algorithm and the window, which name it. Counts are no part of the name, since they may change
//! from call to call.

use crate::args::{Arg, Args};
use crate::error::Error;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::window::Window;
use crate::server::Word;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Sliding,
    /// Refilled by so many units in each window, evenly.
    Gcra {
        rate: i64,
    },
    Fixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    pub algorithm: Algorithm,
    pub window: Window,
}

impl Algorithm {
    /// The algorithm of this name; the rate of GCRA is still to come.
    pub fn named(word: Arg<'_>) -> Option<Algorithm> {
        let all = [Algorithm::Sliding, Algorithm::Gcra { rate: 1 }, Algorithm::Fixed];
        all.into_iter().find(|algorithm| word.is(algorithm.word()))
    }

    /// As INFO tells it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sliding => "sliding",
            Algorithm::Gcra { .. } => "gcra",
            Algorithm::Fixed => "fixed",
        }
    }

    /// As a caller writes it.
    pub fn word(self) -> &'static str {
        match self {
            Algorithm::Sliding => "SLIDING",
            Algorithm::Gcra { .. } => "GCRA",
            Algorithm::Fixed => "FIXED",
        }
    }
}

impl Meter {
    pub fn sliding(window: Window) -> Meter {
        Meter { algorithm: Algorithm::Sliding, window }
    }

    /// Do both name the same state?
    pub fn is_alike(self, other: Meter) -> bool {
        std::mem::discriminant(&self.algorithm) == std::mem::discriminant(&other.algorithm)
            && self.window == other.window
    }

    /// As it stands in an effect: `SLIDING window_ms`, `GCRA window_ms rate`, `FIXED window_ms`.
    pub fn words(self) -> impl Iterator<Item = Word<'static>> {
        let rate = match self.algorithm {
            Algorithm::Gcra { rate } => Some(Word::Int(rate)),
            Algorithm::Sliding | Algorithm::Fixed => None,
        };
        [Word::Text(self.algorithm.word()), Word::Int(self.window.ms())].into_iter().chain(rate)
    }

    /// The same read again, behind the name of the algorithm.
    pub fn parse(algorithm: Algorithm, args: &mut Args<'_>) -> Result<Meter, Error> {
        let mut number = || args.take().ok_or(Error::BadEffect)?.int().map_err(|_| Error::BadEffect);
        let window = Window::from_ms(number()?).ok_or(Error::BadEffect)?;
        let algorithm = match algorithm {
            Algorithm::Gcra { .. } => {
                let rate = number()?;
                if !(1..=MAX_UNITS).contains(&rate) {
                    return Err(Error::BadEffect);
                }
                Algorithm::Gcra { rate }
            }
            other => other,
        };
        Ok(Meter { algorithm, window })
    }
}
