//! The frames of the bus. A byte with the version, then the message in postcard's format. What is malformed, or of a version or kind that
//! is unknown here, is no message: messages come from a network, and nodes of a cluster are upgraded one after the other.

use serde::{Deserialize, Serialize, Serializer};

use super::MAX_PAYLOAD;
use super::arrivals::{self, Answer, Question};

const VERSION: u8 = 1;

/// A request by the life of its sender's process, drawn at random when that begins, and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    pub epoch: u64,
    pub number: u64,
}

/// New kinds are appended: the order is the format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Was anything known of these keys, which came from you with their slot?
    Questions(#[serde(deserialize_with = "arrivals::list")] Vec<Question>),
    /// This was known of them.
    Answers(#[serde(deserialize_with = "arrivals::list")] Vec<Answer>),
}

/// Serde takes a slice for a list, and writes it byte by byte. In postcard's format both are the same.
fn in_one_go<S: Serializer>(bytes: &&[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

impl<'a> Message<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.payload().saturating_add(64));
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
        let fits = message.payload() <= MAX_PAYLOAD;
        (left.is_empty() && fits && message.is_sound()).then_some(message)
    }

    /// How many bytes of it a user has a say in.
    fn payload(&self) -> usize {
        match self {
            Message::Request { payload, .. } => payload.len(),
            Message::Questions(questions) => questions.iter().map(|question| question.key.len()).sum(),
            Message::Answers(answers) => answers.iter().map(|answer| answer.key.len()).sum(),
            Message::Ask { .. } | Message::Done { .. } | Message::Unknown { .. } => 0,
        }
    }

    fn is_sound(&self) -> bool {
        match self {
            Message::Questions(questions) => questions.iter().all(Question::is_sound),
            Message::Answers(answers) => answers.iter().all(Answer::is_sound),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::NodeId;
    use super::super::arrivals::{MAX_KEYS, Verdict};
    use super::*;

    fn question(key: &[u8]) -> Question {
        Question { db: 15, key: key.into(), number: u64::MAX, age_ms: i64::MAX }
    }

    fn answers() -> Vec<Answer> {
        let source = NodeId::new(&[b'a'; NodeId::LENGTH]).unwrap();
        let came = [0, i64::MAX].map(|age_ms| Verdict::CameFrom { source, age_ms });
        let verdicts = [Verdict::Forgotten, Verdict::Plain, Verdict::Known].into_iter().chain(came);
        let floors = [None, Some(0), Some(i64::MAX as u64)];
        let all = verdicts.flat_map(|verdict| floors.map(|floor| (verdict, floor)));
        all.map(|(verdict, floor)| Answer { db: 1, key: b"k"[..].into(), number: 3, verdict, floor }).collect()
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let id = RequestId { epoch: u64::MAX, number: 7 };
        for message in [
            Message::Request { id, floor: 3, topic: 1, payload: b"abc" },
            Message::Request { id, floor: 3, topic: 255, payload: b"" },
            Message::Ask { id, floor: 7 },
            Message::Done { id, count: i64::MIN },
            Message::Unknown { id },
            Message::Questions(vec![question(b"a"), question(b"\0\xff"), question(b"")]),
            Message::Questions(vec![]),
            Message::Answers(answers()),
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
        assert_eq!(Message::decode(&[1, 6, 1, 1]), None);
    }

    #[test]
    fn a_message_is_about_so_many_keys_and_bytes_at_most() {
        let decoded = |questions: Vec<Question>| Message::decode(&Message::Questions(questions).encode()).is_some();
        assert!(decoded(vec![question(b"k"); MAX_KEYS]) && !decoded(vec![question(b"k"); MAX_KEYS + 1]));
        let half = question(&vec![b'k'; MAX_PAYLOAD / 2]);
        assert!(!decoded(vec![half.clone(), half, question(b"k")]));
    }

    #[test]
    fn what_no_node_would_say_is_no_message() {
        let early = Question { age_ms: -1, ..question(b"k") };
        assert_eq!(Message::decode(&Message::Questions(vec![early]).encode()), None);
        let mut answers = answers();
        answers[0].floor = Some(i64::MAX as u64 + 1);
        assert_eq!(Message::decode(&Message::Answers(answers.clone()).encode()), None);
        let source = NodeId::new(&[b'a'; NodeId::LENGTH]).unwrap();
        answers[0] = Answer { floor: None, verdict: Verdict::CameFrom { source, age_ms: -1 }, ..answers[0].clone() };
        assert_eq!(Message::decode(&Message::Answers(answers[..1].to_vec()).encode()), None);
        // Lists and keys that say to be longer than what has come.
        for kind in [4, 5] {
            assert_eq!(Message::decode(&[1, kind, 0xff, 0xff, 0xff, 0xff, 0x0f]), None);
            assert_eq!(Message::decode(&[1, kind, 1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, b'k']), None);
        }
    }
}
