//! A flight: all that goes on with one key that is being loaded, and the places of those who wait for it.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::lease::Load;
use super::policy_stats::Mark;
use crate::clock::UnixMs;
use crate::server::Waiter;

/// What is going on with one key.
#[derive(Debug, Default)]
pub(super) struct Flight {
    pub live: Option<Load>,
    /// Loads that lost their lease while somebody waited.
    pub revoked: Vec<Load>,
    pub failure: Option<Failure>,
    pub queue: BTreeMap<Waiter, Seat>,
}

/// The last load failed, and until then nobody is to try again.
#[derive(Debug)]
pub(super) struct Failure {
    pub number: u64,
    pub until: UnixMs,
    pub message: Rc<[u8]>,
}

/// A place in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    /// When he came, in the sequence.
    pub came: u64,
    pub role: Role,
    pub stale_ok: bool,
    /// Of the policy of the key.
    pub mark: Option<Mark>,
}

/// What is to be done with one who waits when nobody loads the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// He may be elected, and his lease is to last so many milliseconds.
    Caller { lease_ms: i64 },
    /// He is never elected: this loader loads for him.
    Reader { loader: Rc<[u8]> },
}

impl Flight {
    pub fn is_over(&self) -> bool {
        self.live.is_none() && self.revoked.is_empty() && self.failure.is_none() && self.queue.is_empty()
    }

    pub fn take_loads(&mut self) -> Vec<Load> {
        self.live.take().into_iter().chain(std::mem::take(&mut self.revoked)).collect()
    }

    /// Where the failure is among the deadlines.
    pub fn end_failure(&mut self) -> Option<(UnixMs, u64)> {
        self.failure.take().map(|failure| (failure.until, failure.number))
    }
}
