//! What the nodes of a cluster tell each other over the cluster bus. Pure: time is passed in, messages are bytes, and `host/cluster_bus.rs`
//! carries them.
//!
//! - [`message`]: the frames, decoded as untrusted.
//! - [`outbox`]: numbered requests to one node each, asked about again until they are answered or forgotten. [`Outbox::send`] takes a
//!   node, a topic and any bytes; the number it gives comes back in [`Event::Done`] with what the other node answered, a count.
//! - [`inbox`]: requests from other nodes, each given out once. What was done is remembered as long as its sender may ask.
//! - [`nodes`]: who is in the cluster, read from CLUSTER NODES: primaries, their slots, which of them are moving.
//! - `topology`: who serves which slot.
//! - [`arrivals`]: questions and answers about values that came with their slot, which `crate::cache` asks and gives.
//! - [`fan_out`]: one request to every primary that has slots, until all have answered: CACHE.CLUSTER.
//!
//! A new kind of request is a new [`Topic`]: whoever gets one does it in `crate::state::deliver`, outside of any command and only while the
//! server may write, and its sender is told the count. A message that is lost, comes twice or out of order changes nothing of that. One
//! that needs no answer can be forgotten with [`Outbox::forget`] at a moment of its sender's choosing.

pub mod arrivals;
pub mod fan_out;
pub mod inbox;
pub mod message;
pub mod nodes;
pub mod outbox;
mod state;
mod topology;

pub use arrivals::{Answer, Question, Verdict};
pub use fan_out::FanOuts;
pub use inbox::{Inbox, Incoming};
pub use message::{Message, RequestId};
pub use nodes::{Node, NodeId, Nodes};
pub use outbox::{Event, Outbox};
pub use state::{Counters, Look, Outgoing, Received, State};

/// What a request is about. Numbers are never given a second meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic(pub u8);

impl Topic {
    /// CACHE.CLUSTER: an invalidation, see `crate::cache::fan_out`.
    pub const INVALIDATION: Topic = Topic(1);
}

/// The longest payload of a request, and the most that the keys of a question or an answer have together, in bytes. The bus takes 64 MiB in one message (measured on 7.0, 8.2, 8.1 and 9.1), but the heartbeats
/// of the cluster wait behind it.
pub const MAX_PAYLOAD: usize = 32 * 1024 * 1024;

/// How many requests of one node another one remembers, and so how many a node may have out to another.
pub const MAX_UNANSWERED: usize = 1024;
