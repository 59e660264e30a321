//! A true sliding window in about a kilobyte: a log of admissions, merged into ticks.
//!
//! Source: the "sliding window log" of the field (one timestamp a request, counted exactly), with what was admitted within one
//! tick, 1/256 of the window, kept as one entry. The two-counter approximation was rejected: it admits up to 1.99x.
//!
//! Why it never over-admits. An admission at time `s` is booked in tick `t`, `s < (t + 1) * width`, and the entry is counted
//! until tick `t + 1 + span` begins, where `span * width >= window`. So it is counted at every moment up to `s + window`, and
//! beyond it by no more than one tick and 256 microseconds. Whatever is admitted at a time `e` has the sum of all entries counted
//! at `e` kept at `count` or below; these contain every admission in `[e - window, e]`. Any window of that length has a last
//! admission `e` in it, and lies, up to there, within `[e - window, e]`.
//!
//! Everything that changes the state is arithmetic on the tick and the cost of an admission. A replica that is told both
//! therefore reaches the same state, byte for byte.

use std::mem::size_of;

use crate::clock::UnixUs;
use crate::ratelimit::MAX_UNITS;
use crate::ratelimit::window::{LAST_MOMENT_US, Window};

/// What was admitted in one tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub tick: i64,
    pub units: i64,
}

/// The state of one sliding limit. It knows its window but not its limit, which may differ from call to call.
///
/// Invariants: ticks grow from entry to entry and lie within `span` of the newest one, so there are 257 entries at most;
/// each has at least one unit; `total` is the sum of all and at most [`MAX_UNITS`].
///
/// Entries that have left are dropped by the next charge, by nothing else: a denial leaves no trace in the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlidingWindow {
    window: Window,
    newest: Entry,
    total: i64,
    /// The tick of the first entry in `older`, or of `newest` when that is empty.
    oldest_tick: i64,
    /// The entries before the newest, in the order of time, each a postcard varint or two: `2 * units + far`, and if `far`
    /// is 1, `gap - 2`, where `gap` is the distance in ticks to the following entry. A full ring has no room for gaps, so an
    /// entry takes one byte up to 63 units and two up to 8191. That is at most 270 bytes for a limit of 1000, 1 KiB for 10^9,
    /// and never more than [`SlidingWindow::MAX_OLDER_BYTES`]; 1070 are the least that could tell all states of 10^12 units.
    older: Vec<u8>,
}

impl SlidingWindow {
    /// 256 entries of 5 bytes take 2^27 units each; a sixth byte takes 2^34, which [`MAX_UNITS`] then allows 56 times.
    pub const MAX_OLDER_BYTES: usize = 256 * 5 + 56;

    /// A window in which `units` (1 to [`MAX_UNITS`]) have just been admitted.
    pub fn first(window: Window, tick: i64, units: i64) -> SlidingWindow {
        SlidingWindow { window, newest: Entry { tick, units }, total: units, oldest_tick: tick, older: Vec::new() }
    }

    /// A state from its parts, which may come from anybody; `None` if any invariant is broken. O(entries).
    pub fn from_parts(window: Window, newest: Entry, older: &[u8]) -> Option<SlidingWindow> {
        let units = 1..=MAX_UNITS;
        if older.len() > SlidingWindow::MAX_OLDER_BYTES
            || !window.has_tick(newest.tick)
            || !units.contains(&newest.units)
        {
            return None;
        }
        let mut total = newest.units;
        let mut distance: i64 = 0;
        let mut rest = older;
        while !rest.is_empty() {
            let (entry, gap, after) = read_entry(rest)?;
            total = total.checked_add(entry)?;
            distance = distance.checked_add(gap)?;
            let canonical = rest.strip_suffix(after) == Some(write_entry(entry, gap, &mut [0; 2 * MAX_VARINT]));
            if entry < 1 || total > MAX_UNITS || distance > window.span() || !canonical {
                return None;
            }
            rest = after;
        }
        let oldest_tick = newest.tick - distance;
        Some(SlidingWindow { window, newest, total, oldest_tick, older: older.to_vec() })
    }

    pub fn window(&self) -> Window {
        self.window
    }

    pub fn newest(&self) -> Entry {
        self.newest
    }

    /// The encoded entries before the newest, for [`SlidingWindow::from_parts`].
    pub fn older(&self) -> &[u8] {
        &self.older
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.older.capacity() * size_of::<u8>()
    }

    /// The moment from which nothing is counted any more, if nothing is added.
    pub fn full_at(&self) -> UnixUs {
        self.window.leaves_at(self.newest.tick)
    }

    /// How the window stands at a moment. O(entries that have left since the last charge), usually 0.
    ///
    /// If the clock was set back to before the newest entry, this is how it stands after [`SlidingWindow::set_back`].
    pub fn reading(&self, now: UnixUs) -> Reading<'_> {
        let tick = self.window.tick_at(now);
        let (used, counted) = self.counted_at(tick);
        let into_tick = now.0.clamp(0, LAST_MOMENT_US) - tick * self.window.tick_us();
        let now = UnixUs(self.window.begins_at(tick.max(self.newest.tick)).0 + into_tick);
        Reading { used, now, window: self.window, newest_tick: self.newest.tick, lag: self.lag(tick), counted }
    }

    /// Is the clock behind the newest entry?
    pub fn is_ahead_of(&self, tick: i64) -> bool {
        self.newest.tick > tick
    }

    /// The clock was set back: all entries move so that the newest lies in `tick`. O(entries).
    ///
    /// Without it, denials would last until the old time is reached again; with it, for one window and one tick at most. It
    /// admits nothing too early either: an entry older than the newest comes to lie one tick nearer to it than it was, since
    /// ticks do not tell how far into its tick each of the two admissions was.
    pub fn set_back(&mut self, tick: i64) {
        if self.is_ahead_of(tick) {
            *self = self.moved_to(tick);
        }
    }

    fn moved_to(&self, tick: i64) -> SlidingWindow {
        let by = self.newest.tick - tick - 1;
        let mut state = SlidingWindow { older: Vec::new(), total: 0, ..*self };
        for entry in self.entries() {
            state.append(Entry { tick: (entry.tick - by).min(tick), ..entry });
        }
        state
    }

    /// Books `units` (1 or more) in `tick`, and drops what has left by then. False, and nothing changed, if more than
    /// [`MAX_UNITS`] would be counted, which no limit allows.
    ///
    /// Amortised O(1), and a move of what is left of the log at most once a tick.
    pub fn charge(&mut self, tick: i64, units: i64) -> bool {
        let (used, counted) = self.counted_at(tick);
        if used > MAX_UNITS - units {
            return false;
        }
        let (left, oldest_tick) = (counted.older.len(), counted.next_tick);
        if left < self.older.len() {
            self.older.drain(..self.older.len() - left);
        }
        self.oldest_tick = oldest_tick;
        self.total = used;
        self.set_back(tick);
        self.append(Entry { tick, units });
        true
    }

    /// Takes the newest `units` back, as far as they are counted in `tick`. False if nothing is left. O(entries).
    pub fn refund(&mut self, tick: i64, units: i64) -> bool {
        // First, since it is the newest entry that tells by how much.
        self.set_back(tick);
        let (used, counted) = self.counted_at(tick);
        let left = used.saturating_sub(units);
        if left <= 0 {
            return false;
        }
        let mut state = SlidingWindow { older: Vec::new(), total: 0, ..*self };
        for entry in counted {
            let units = entry.units.min(left - state.total);
            if units > 0 {
                state.append(Entry { units, ..entry });
            }
        }
        *self = state;
        true
    }

    /// Adds an entry that is not before the newest one; that one and `oldest_tick` count for nothing when `total` is 0.
    fn append(&mut self, entry: Entry) {
        if self.total == 0 {
            self.oldest_tick = entry.tick;
            self.newest = entry;
        } else if self.newest.tick == entry.tick {
            self.newest.units += entry.units;
        } else {
            self.push_older(self.newest.units, entry.tick - self.newest.tick);
            self.newest = entry;
        }
        self.total += entry.units;
    }

    /// By how many ticks [`SlidingWindow::set_back`] would bring older entries nearer to the newest.
    fn lag(&self, tick: i64) -> i64 {
        i64::from(self.is_ahead_of(tick))
    }

    /// The sum of the entries counted in `tick`, and these.
    fn counted_at(&self, tick: i64) -> (i64, Entries<'_>) {
        let first = tick.max(self.newest.tick) - self.window.span() - self.lag(tick);
        let mut used = self.total;
        let mut entries = self.entries();
        while entries.next_tick < first {
            match entries.next() {
                Some(departed) => used -= departed.units,
                None => break,
            }
        }
        (used, entries)
    }

    fn push_older(&mut self, units: i64, gap: i64) {
        let mut buffer = [0; 2 * MAX_VARINT];
        let encoded = write_entry(units, gap, &mut buffer);
        if self.older.capacity() - self.older.len() < encoded.len() {
            // Doubling would leave half of the largest part of a limiter unused.
            self.older.reserve_exact(encoded.len().max(16).max(self.older.len() / 8));
        }
        self.older.extend_from_slice(encoded);
    }

    /// All entries, oldest first.
    pub fn entries(&self) -> Entries<'_> {
        Entries { older: &self.older, next_tick: self.oldest_tick, newest: Some(self.newest) }
    }
}

/// A window as it stands at one moment.
#[derive(Clone, Debug)]
pub struct Reading<'a> {
    used: i64,
    now: UnixUs,
    window: Window,
    newest_tick: i64,
    lag: i64,
    counted: Entries<'a>,
}

impl Reading<'_> {
    /// A window in which nothing is counted.
    pub fn full(window: Window) -> Reading<'static> {
        Reading { used: 0, now: UnixUs(0), window, newest_tick: 0, lag: 0, counted: Entries::default() }
    }

    /// The units that are counted.
    pub fn used(&self) -> i64 {
        self.used
    }

    /// Milliseconds, rounded up, until `units` (1 or more) of what is counted now will have left; 0 if nothing is counted, and
    /// at most until all of it has. O(entries) at worst, O(1) for few units.
    pub fn ms_until_free(&self, units: i64) -> i64 {
        if units >= self.used {
            return self.ms_until_full();
        }
        let mut freed = 0;
        for entry in self.counted.clone() {
            freed += entry.units;
            if freed >= units {
                return self.ms_until_gone(entry.tick);
            }
        }
        self.ms_until_full()
    }

    /// Milliseconds, rounded up, until nothing is counted; 0 if that is so now. O(1).
    pub fn ms_until_full(&self) -> i64 {
        if self.used == 0 { 0 } else { self.ms_until_gone(self.newest_tick) }
    }

    fn ms_until_gone(&self, tick: i64) -> i64 {
        let tick = (tick + self.lag).min(self.newest_tick);
        let us = self.window.leaves_at(tick).0 - self.now.0;
        (us + 999) / 1000
    }
}

/// Entries from a window, oldest first.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    older: &'a [u8],
    /// The tick of the entry that comes next; beyond all ticks when there is none.
    next_tick: i64,
    newest: Option<Entry>,
}

impl Default for Entries<'_> {
    fn default() -> Self {
        Entries { older: &[], next_tick: i64::MAX, newest: None }
    }
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        match read_entry(self.older) {
            Some((units, gap, rest)) => {
                let entry = Entry { tick: self.next_tick, units };
                self.older = rest;
                self.next_tick += gap;
                Some(entry)
            }
            None => {
                self.next_tick = i64::MAX;
                self.newest.take()
            }
        }
    }
}

/// The longest postcard varint of 64 bits.
const MAX_VARINT: usize = 10;

/// Units, the gap to the following entry, and the bytes behind the entry; `None` at the end and for what is no entry.
fn read_entry(bytes: &[u8]) -> Option<(i64, i64, &[u8])> {
    let (word, rest) = match bytes {
        // The usual case, in a quarter of the time.
        [word @ ..0x80, rest @ ..] => (u64::from(*word), rest),
        _ => postcard::take_from_bytes::<u64>(bytes).ok()?,
    };
    let units = i64::try_from(word >> 1).ok()?;
    if word & 1 == 0 {
        return Some((units, 1, rest));
    }
    let (gap, rest) = postcard::take_from_bytes::<u64>(rest).ok()?;
    Some((units, i64::try_from(gap).ok()?.checked_add(2)?, rest))
}

/// The entry's bytes; both numbers are 1 or more.
fn write_entry(units: i64, gap: i64, buffer: &mut [u8; 2 * MAX_VARINT]) -> &[u8] {
    let far = gap > 1;
    let word = units.unsigned_abs() << 1 | u64::from(far);
    let encoded = if far {
        postcard::to_slice(&(word, gap.unsigned_abs() - 2), buffer)
    } else {
        postcard::to_slice(&word, buffer)
    };
    // The buffer holds any two varints, so that it cannot be too short.
    encoded.map(|bytes| &*bytes).unwrap_or_default()
}
