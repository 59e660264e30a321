//! The frames of the bus. A byte with the version, then the message in postcard's format. What is malformed, or of a version or kind that
//! is unknown here, is no message: messages come from a network, and nodes of a cluster are upgraded one after the other.

use serde::{Deserialize, Serialize, Serializer};

use super::MAX_PAYLOAD;

const VERSION: u8 = 1;

/// A request by the life of its sender's process, drawn at random when that begins, and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    pub epoch: u64,
    pub number: u64,
}

/// New kinds are appended: the order is the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message<'a> {
    /// Do this, and answer. `floor`: the least number that the sender still waits for.
    Request {
        id: RequestId,
        floor: u64,
        topic: u8,
        #[serde(serialize_with = "in_one_go")]
        payload: &'a [u8],
    },
    /// What became of it? The payload is not repeated, so that what is waiting for a node that is slow does not grow.
    Ask { id: RequestId, floor: u64 },
    /// It is done.
    Done { id: RequestId, count: i64 },
    /// It never came, or was given up: send it again.
    Unknown { id: RequestId },
}

/// Serde takes a slice for a list, and writes it byte by byte. In postcard's format both are the same.
fn in_one_go<S: Serializer>(bytes: &&[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

impl<'a> Message<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let room = match self {
            Message::Request { payload, .. } => payload.len(),
            _ => 0,
        };
        let mut bytes = Vec::with_capacity(room.saturating_add(64));
        bytes.push(VERSION);
        // Writing to a vector does not fail.
        postcard::to_extend(self, bytes).unwrap_or_default()
    }

    pub fn decode(bytes: &'a [u8]) -> Option<Message<'a>> {
        let (&version, rest) = bytes.split_first()?;
        if version != VERSION {
            return None;
        }
        let (message, left) = postcard::take_from_bytes::<Message<'a>>(rest).ok()?;
        let fits = !matches!(message, Message::Request { payload, .. } if payload.len() > MAX_PAYLOAD);
        (left.is_empty() && fits).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let id = RequestId { epoch: u64::MAX, number: 7 };
        for message in [
            Message::Request { id, floor: 3, topic: 1, payload: b"abc" },
            Message::Request { id, floor: 3, topic: 255, payload: b"" },
            Message::Ask { id, floor: 7 },
            Message::Done { id, count: i64::MIN },
            Message::Unknown { id },
        ] {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Some(message));
            for end in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..end]), None, "cut off");
            }
            let longer = [&bytes[..], b"x"].concat();
            assert_eq!(Message::decode(&longer), None, "something is left");
        }
    }

    #[test]
    fn other_versions_and_kinds_are_no_messages() {
        let bytes = Message::Unknown { id: RequestId { epoch: 1, number: 1 } }.encode();
        assert_eq!(bytes, [1, 3, 1, 1]);
        assert_eq!(Message::decode(&[2, 3, 1, 1]), None);
        assert_eq!(Message::decode(&[1, 4, 1, 1]), None);
    }
}
