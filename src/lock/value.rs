//! What the key of a lock holds.

use crate::clock::UnixUs;
use crate::lock::record::Record;
use crate::native::NativeValue;
use crate::state::State;

/// The value of a lock's key: the record itself.
///
/// When the value leaves its name the record is taken out of it into module memory, since only the key event that follows
/// tells whether the lock is gone, renamed, or evicted and so still held. The value keeps a ticket: after RENAME or MOVE the
/// same value turns up under another name and gets the record with its ticket back. Rejected: records in a table of
/// generations with the key as a handle. It costs a lookup and an allocation for each grant, and FLUSHALL and SWAPDB
/// would have to walk through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    Held(Record),
    Unlinked { ticket: u64 },
}

impl Lock {
    pub fn record(&self) -> Option<&Record> {
        match self {
            Lock::Held(record) => Some(record),
            Lock::Unlinked { .. } => None,
        }
    }

    pub fn record_mut(&mut self) -> Option<&mut Record> {
        match self {
            Lock::Held(record) => Some(record),
            Lock::Unlinked { .. } => None,
        }
    }

    /// Puts a record in; what was there before.
    pub fn replace(&mut self, record: Record) -> Option<Record> {
        std::mem::replace(self, Lock::Held(record)).into_record()
    }

    /// Takes the record out for good.
    pub fn take(&mut self) -> Option<Record> {
        self.unlink(0)
    }

    /// Takes the record out; whoever knows the ticket can put it back.
    pub fn unlink(&mut self, ticket: u64) -> Option<Record> {
        self.record()?;
        std::mem::replace(self, Lock::Unlinked { ticket }).into_record()
    }

    fn into_record(self) -> Option<Record> {
        match self {
            Lock::Held(record) => Some(record),
            Lock::Unlinked { .. } => None,
        }
    }
}

impl NativeValue for Lock {
    const TYPE_NAME: &'static str = "kw-lock-1";

    /// A byte that says whether a record follows, and the record. A value in the keyspace always has one; the other form is
    /// there so that no mishap can make a file that does not load.
    fn encode(&self, _state: &State) -> Vec<u8> {
        match self {
            Lock::Held(record) => record.encode(vec![1]),
            Lock::Unlinked { .. } => vec![0],
        }
    }

    fn decode(bytes: &[u8]) -> Option<Lock> {
        match bytes.split_first()? {
            (1, record) => Some(Lock::Held(Record::decode(record)?)),
            (0, []) => Some(Lock::Unlinked { ticket: 0 }),
            _ => None,
        }
    }

    fn memory(&self, _state: &State) -> usize {
        size_of::<Self>().saturating_add(self.record().map_or(0, Record::heap_bytes))
    }

    fn unlinked(&mut self, db: usize, key: &[u8], state: &mut State) {
        state.lock.unlinked(db, key, self);
    }

    fn linked(&mut self, db: usize, key: &[u8], state: &mut State, now: UnixUs) {
        state.lock.linked(db, key, self);
        if let Some(record) = self.record() {
            state.fencing.saw_in_value(record.token(), now);
        }
    }

    fn copied(&self, _state: &State) -> Option<Lock> {
        Some(self.record().map_or(Lock::Unlinked { ticket: 0 }, |record| Lock::Held(record.copied())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;
    use crate::lock::holders::{Holder, Standing};
    use crate::lock::record::Mode;

    #[test]
    fn a_dump_comes_back() {
        let state = State::default();
        let standing = Standing { token: 7, holds: 2, deadline: UnixMs(100), keys: 1 };
        let lock = Lock::Held(Record::new(Mode::Shared, Holder::new(b"ann", standing).unwrap()).unwrap());
        assert_eq!(Lock::decode(&lock.encode(&state)), Some(lock.clone()));
        assert_eq!(lock.copied(&state), Some(lock));
        let empty = Lock::Unlinked { ticket: 3 };
        assert_eq!(Lock::decode(&empty.encode(&state)), Some(Lock::Unlinked { ticket: 0 }));
    }

    #[test]
    fn other_bytes_are_refused() {
        for bytes in [&[][..], &[1], &[2], &[0, 0], &[1, 0], &[1, 255, 255, 255, 255, 15]] {
            assert_eq!(Lock::decode(bytes), None, "{bytes:?}");
        }
    }
}
