//! What the key of a queue holds.

use super::index::QueueId;
use super::queue::Queue;
use crate::clock::UnixUs;
use crate::native::NativeValue;
use crate::state::State;

/// The value of a queue's key. The queue itself is in module memory, see [`super::state`]; only on its way from a file or a dump
/// to there it is in the value.
#[derive(Debug)]
pub enum Handle {
    Queue(QueueId),
    Loaded(Box<Queue>),
}

impl Handle {
    pub fn id(&self) -> Option<QueueId> {
        match self {
            Handle::Queue(id) => Some(*id),
            Handle::Loaded(_) => None,
        }
    }

    /// The queue that has still to be taken into module memory.
    pub fn take_loaded(&mut self) -> Option<Queue> {
        match self {
            Handle::Queue(_) => None,
            Handle::Loaded(queue) => Some(std::mem::take(queue)),
        }
    }

    fn queue<'a>(&'a self, state: &'a State) -> Option<&'a Queue> {
        match self {
            Handle::Queue(id) => state.writebehind.queue(*id),
            Handle::Loaded(queue) => Some(queue),
        }
    }
}

impl NativeValue for Handle {
    const TYPE_NAME: &'static str = "kw-queue1";

    fn encode(&self, state: &State) -> Vec<u8> {
        // A handle without its queue cannot be. Were it to, an empty queue makes a file that loads.
        self.queue(state).map_or_else(|| Queue::new(1).encode(), Queue::encode)
    }

    fn decode(bytes: &[u8]) -> Option<Handle> {
        Queue::decode(bytes).map(|queue| Handle::Loaded(Box::new(queue)))
    }

    fn memory(&self, state: &State) -> usize {
        size_of::<Self>().saturating_add(self.queue(state).map_or(0, Queue::bytes))
    }

    fn unlinked(&mut self, db: usize, key: &[u8], state: &mut State) {
        state.writebehind.unlinked(db, key, self);
    }

    fn linked(&mut self, db: usize, key: &[u8], state: &mut State, now: UnixUs) {
        state.writebehind.linked(db, key, self, &mut state.fencing, now);
    }
}
