//! What WRITEBEHIND.CONFIG sets of a queue.

use crate::clock::UnixMs;
use crate::error::Error;

/// The longest DELAY, MAXDELAY and LEASE, in milliseconds: a day.
pub const LONGEST_MS: i64 = 86_400_000;
const MOST_ATTEMPTS: i64 = 1_000_000;
const MOST_DIRTY: i64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a record rests after each write that joins it.
    pub delay_ms: i64,
    /// How long it rests at most after its first write; 0: no bound.
    pub max_delay_ms: i64,
    /// How many claims may end without an ACK before it is given up.
    pub attempts: i64,
    /// How many records there may be; 0: no bound.
    pub max_dirty: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { delay_ms: 0, max_delay_ms: 0, attempts: 10, max_dirty: 0 }
    }
}

impl Settings {
    /// The settings, if each is in its range.
    ///
    /// # Errors
    /// `CountRange` with the first that is not.
    pub fn checked(self) -> Result<Settings, Error> {
        let ranges = [
            ("DELAY", self.delay_ms, 0, LONGEST_MS),
            ("MAXDELAY", self.max_delay_ms, 0, LONGEST_MS),
            ("ATTEMPTS", self.attempts, 1, MOST_ATTEMPTS),
            ("MAXDIRTY", self.max_dirty, 0, MOST_DIRTY),
        ];
        match ranges.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
            Some((name, _, low, high)) => Err(Error::CountRange(name, low, high)),
            None => Ok(self),
        }
    }

    /// When a record is due that was written `now`, and first at `since`.
    pub fn due(&self, now: UnixMs, since: UnixMs) -> UnixMs {
        let rested = now.plus(self.delay_ms);
        if self.max_delay_ms == 0 { rested } else { rested.min(since.plus(self.max_delay_ms)) }
    }

    /// Is a record given up after so many failures?
    pub fn gives_up(&self, failures: u32) -> bool {
        i64::from(failures) >= self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_write_starts_the_delay_again_and_the_first_one_ends_it() {
        let settings = Settings { delay_ms: 100, max_delay_ms: 250, ..Settings::default() };
        let due = |now| settings.due(UnixMs(now), UnixMs(1000)).0;
        assert_eq!([due(1000), due(1100), due(1149), due(1200), due(9000)], [1100, 1200, 1249, 1250, 1250]);
        let unbounded = Settings { max_delay_ms: 0, ..settings };
        assert_eq!(unbounded.due(UnixMs(9000), UnixMs(1000)), UnixMs(9100));
    }

    #[test]
    fn settings_have_ranges() {
        let good = Settings::default();
        assert_eq!(good.checked(), Ok(good));
        for (bad, error) in [
            (Settings { delay_ms: -1, ..good }, Error::CountRange("DELAY", 0, LONGEST_MS)),
            (Settings { max_delay_ms: LONGEST_MS + 1, ..good }, Error::CountRange("MAXDELAY", 0, LONGEST_MS)),
            (Settings { attempts: 0, ..good }, Error::CountRange("ATTEMPTS", 1, MOST_ATTEMPTS)),
            (Settings { max_dirty: -1, ..good }, Error::CountRange("MAXDIRTY", 0, MOST_DIRTY)),
        ] {
            assert_eq!(bad.checked(), Err(error), "{bad:?}");
        }
    }
}
