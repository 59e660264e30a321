//! What a client waits for.
//!
//! Invariant of the queues: who waits for several locks holds none of them.

use smallvec::SmallVec;

use super::record::Mode;
use crate::clock::UnixMs;
use crate::wait_queue;

#[derive(Debug)]
pub struct Request {
    pub db: usize,
    /// One, or all those of a MACQUIRE.
    pub keys: SmallVec<[Box<[u8]>; 1]>,
    pub owner: Box<[u8]>,
    /// From the grant on, in milliseconds.
    pub lease_ms: i64,
    pub mode: Mode,
    pub reentrant: bool,
    pub session: Option<u64>,
    /// Since when he waits.
    pub since: UnixMs,
}

impl wait_queue::Request for Request {
    fn db(&self) -> usize {
        self.db
    }

    fn keys(&self) -> &[Box<[u8]>] {
        &self.keys
    }
}
