//! Moments and durations as types. Nothing here reads a clock: the host does, once per command, and passes it in.

/// A moment in milliseconds since the Unix epoch, the unit of Redis expiries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMs(pub i64);

/// A moment in microseconds since the Unix epoch, the unit of limiters and fencing tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixUs(pub i64);

impl UnixMs {
    /// The earlier one, of those that there are. Looked for after every command, and nearly always there is none: no iterator
    /// is as fast.
    #[inline]
    pub fn earliest(a: Option<UnixMs>, b: Option<UnixMs>) -> Option<UnixMs> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// `self + ms`, saturating at the ends of the range.
    pub fn plus(self, ms: i64) -> UnixMs {
        UnixMs(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to `self`; negative when `earlier` is later.
    pub fn since(self, earlier: UnixMs) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl UnixUs {
    /// `self` and so many milliseconds, saturating at the ends of the range.
    pub fn plus_ms(self, ms: i64) -> UnixUs {
        UnixUs(self.0.saturating_add(ms.saturating_mul(1000)))
    }

    /// The first millisecond that begins at this moment or after it.
    pub fn to_ms_up(self) -> UnixMs {
        UnixMs(self.0.div_euclid(1000).saturating_add(i64::from(self.0.rem_euclid(1000) > 0)))
    }

    /// The millisecond this moment lies in (rounded down).
    pub fn to_ms(self) -> UnixMs {
        UnixMs(self.0.div_euclid(1000))
    }
}
