//! What a worker waits for.

use std::sync::Arc;

use crate::wait_queue;

#[derive(Debug)]
pub struct Request {
    pub db: usize,
    /// The queue's key, alone.
    pub key: [Box<[u8]>; 1],
    pub worker: Arc<[u8]>,
    /// How many records he takes at most.
    pub count: usize,
    /// From the claim on, in milliseconds.
    pub lease_ms: i64,
}

impl wait_queue::Request for Request {
    fn db(&self) -> usize {
        self.db
    }

    fn keys(&self) -> &[Box<[u8]>] {
        &self.key
    }
}
