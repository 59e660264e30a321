//! What is known of a value's age: until when it is fresh, how long it may be served stale after that, and how long its load
//! took. The key's own expiry in the keyspace is the end of the grace.
//!
//! A plain command may overwrite a value without telling. So the record has a fingerprint of the value it is about: where a
//! record would make a value stale, another fingerprint means that the value is new and the record void.

use twox_hash::XxHash3_64;

use super::key_table::{Fact, KeyTable};
use crate::clock::UnixMs;

/// By key. Kept in step with the keyspace like the tags.
pub(super) type FreshnessTable = KeyTable<Freshness>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// From then on the value is stale; `UnixMs(i64::MAX)`: never, the record is about the load alone.
    pub soft: UnixMs,
    /// How long the value may be served stale, in milliseconds.
    pub grace_ms: i64,
    /// [`fingerprint`] of the value.
    pub fingerprint: u64,
    /// How long the load of the value took, in microseconds; 0 is unknown.
    pub load_us: u32,
}

impl Freshness {
    /// No soft expiry.
    pub const NEVER: UnixMs = UnixMs(i64::MAX);

    /// Does the value become stale by itself?
    pub fn ages(&self) -> bool {
        self.soft != Freshness::NEVER
    }
}

/// XXH3 of the value. It is saved in RDB files, so it has to be the same in every process and version.
pub fn fingerprint(value: &[u8]) -> u64 {
    XxHash3_64::oneshot(value)
}

impl Fact for Freshness {
    type Bytes = [u8; 28];

    fn to_bytes(self) -> [u8; 28] {
        let mut bytes = [0; 28];
        let fields = [self.soft.0.to_le_bytes(), self.grace_ms.to_le_bytes(), self.fingerprint.to_le_bytes()];
        let all = fields.as_flattened().iter().copied().chain(self.load_us.to_le_bytes());
        bytes.iter_mut().zip(all).for_each(|(to, byte)| *to = byte);
        bytes
    }

    fn from_bytes(bytes: [u8; 28]) -> Freshness {
        let (words, load_us) = bytes.as_chunks::<8>();
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        Freshness {
            soft: UnixMs(i64::from_le_bytes(word(0))),
            grace_ms: i64::from_le_bytes(word(1)),
            fingerprint: u64::from_le_bytes(word(2)),
            load_us: load_us.try_into().map_or(0, u32::from_le_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_stored() {
        let mut table = FreshnessTable::default();
        let record = Freshness { soft: UnixMs(-5), grace_ms: 1 << 40, fingerprint: u64::MAX - 2, load_us: 77 };
        table.put(b"k", record).unwrap();
        assert_eq!(table.get(b"k").map(|(_, found)| found), Some(record));
    }

    #[test]
    fn the_fingerprint_is_that_of_the_published_algorithm() {
        assert_eq!(fingerprint(b""), 0x2d06_8005_38d3_94c2);
        assert_ne!(fingerprint(b"a"), fingerprint(b"b"));
    }
}
