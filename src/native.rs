//! Values of our own types. The host turns each into a module data type (RDB, AOF rewrite, COPY, MEMORY USAGE).

use crate::clock::UnixUs;
use crate::state::State;

/// A value that a key of ours holds.
pub trait NativeValue: Sized + 'static {
    /// Exactly nine characters, as the RDB format wants.
    const TYPE_NAME: &'static str;

    /// The value for a dump.
    fn encode(&self, state: &State) -> Vec<u8>;

    /// A value from a dump, `None` when the bytes are not such a value: they may come from anybody (RESTORE).
    /// Must not depend on or change module memory: it also runs for keys that are dropped at once.
    fn decode(bytes: &[u8]) -> Option<Self>;

    /// Bytes of memory, for MEMORY USAGE.
    fn memory(&self, state: &State) -> usize;

    /// The value leaves the name it had: by deletion, overwriting, expiry, eviction, RENAME, MOVE or RESTORE REPLACE (not by
    /// FLUSH or SWAPDB). Comes before the key event that tells why; an overwritten value gets no event at all.
    fn unlinked(&mut self, _db: usize, _key: &[u8], _state: &mut State) {}

    /// The value has come to this name: by RENAME, MOVE, COPY, RESTORE, or from an RDB file.
    fn linked(&mut self, _db: usize, _key: &[u8], _state: &mut State, _now: UnixUs) {}

    /// How many pieces of memory it takes to free it, roughly: the server frees what has many of them in the background.
    fn pieces(&self) -> usize {
        1
    }

    /// A copy for COPY.
    fn copied(&self, state: &State) -> Option<Self> {
        Self::decode(&self.encode(state))
    }
}
