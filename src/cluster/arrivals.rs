//! What two nodes say to each other about values that came to one of them with their slot: see `crate::cache::doubt`. No numbered
//! requests: a question or an answer that is lost is asked for again.

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::NodeId;

/// How many keys one message is about at most.
pub const MAX_KEYS: usize = 500;

/// A question about one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub db: usize,
    #[serde(with = "key")]
    pub key: Box<[u8]>,
    pub number: u64,
    /// For how long the value has been here.
    pub age_ms: i64,
}

/// What the node that a value came from knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It does not know any more.
    Forgotten,
    /// Nothing was known of the key.
    Plain,
    /// It had tags, a grace or a version: the value is to go.
    Known,
    /// Nothing is known but that it had come there from this node, so long ago: that one is to be asked.
    CameFrom {
        #[serde(with = "node")]
        source: NodeId,
        age_ms: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub db: usize,
    #[serde(with = "key")]
    pub key: Box<[u8]>,
    pub number: u64,
    pub verdict: Verdict,
    /// The greatest version that was seen of the key.
    pub floor: Option<u64>,
}

impl Question {
    pub(super) fn is_sound(&self) -> bool {
        self.age_ms >= 0
    }
}

impl Answer {
    pub(super) fn is_sound(&self) -> bool {
        let soon = matches!(self.verdict, Verdict::CameFrom { age_ms, .. } if age_ms < 0);
        !soon && self.floor.is_none_or(|floor| i64::try_from(floor).is_ok())
    }
}

mod node {
    use super::{Deserialize, Deserializer, NodeId, Serializer};
    use serde::de::Error;

    pub fn serialize<S: Serializer>(node: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(node.as_bytes())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
        NodeId::new(<&[u8]>::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("no name of a node"))
    }
}

/// A key is read as bytes that have come, so that its length is checked before any memory is taken.
mod key {
    use super::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(key: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(key)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<[u8]>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Box::from)
    }
}

/// A list of at most [`MAX_KEYS`]. How many it says to be counts for nothing: memory is taken for those that came.
pub(super) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(Vec<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_KEYS} keys")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Vec<T>, A::Error> {
            while let Some(item) = items.next_element()? {
                if self.0.len() >= MAX_KEYS {
                    return Err(A::Error::invalid_length(self.0.len(), &self));
                }
                self.0.push(item);
            }
            Ok(self.0)
        }
    }

    deserializer.deserialize_seq(List(Vec::new()))
}
