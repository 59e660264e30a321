//! What two nodes say to each other about values in doubt, as bytes on the cluster bus. They come from a network: everything is
//! checked, and what is no message is none.

use super::doubt::Question;

/// The longest name of a key that is taken in.
const KEY_MAX: usize = 512 << 20;

/// The first byte of both messages: another one is of a version that is not known here.
const VERSION: u8 = 1;

/// What the node that a value came from knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does not know any more.
    Forgotten,
    /// Nothing was known of the key.
    Plain,
    /// It had tags, a grace or a version: the value is to go.
    Known,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub db: usize,
    pub key: Box<[u8]>,
    pub number: u64,
    pub verdict: Verdict,
    /// The greatest version that was seen of the key.
    pub floor: Option<u64>,
}

/// Takes a message apart, piece by piece.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn key(&mut self) -> Option<Box<[u8]>> {
        let len = usize::try_from(self.u32()?).ok().filter(|len| *len <= KEY_MAX)?;
        self.take(len).map(Box::from)
    }
}

fn put_key(bytes: &mut Vec<u8>, db: usize, number: u64, key: &[u8]) {
    bytes.extend(u32::try_from(db).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend(u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(key);
}

/// `version, (db u32, number u64, length u32, key, age u64)*`, little-endian.
pub fn encode_questions(questions: &[Question]) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    for question in questions {
        put_key(&mut bytes, question.db, question.number, &question.key);
        bytes.extend(u64::try_from(question.age_ms).unwrap_or(0).to_le_bytes());
    }
    bytes
}

pub fn decode_questions(bytes: &[u8]) -> Option<Vec<Question>> {
    let mut reader = Reader(bytes);
    let mut questions = Vec::new();
    if reader.byte()? != VERSION {
        return None;
    }
    while !reader.0.is_empty() {
        let (db, number, key) = (usize::try_from(reader.u32()?).ok()?, reader.u64()?, reader.key()?);
        let age_ms = i64::try_from(reader.u64()?).ok()?;
        questions.push(Question { db, key, number, age_ms });
    }
    Some(questions)
}

/// `version, (db u32, number u64, length u32, key, verdict u8, floor + 1 u64, 0 for none)*`, little-endian.
pub fn encode_answers(answers: &[Answer]) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    for answer in answers {
        put_key(&mut bytes, answer.db, answer.number, &answer.key);
        bytes.push(match answer.verdict {
            Verdict::Forgotten => 0,
            Verdict::Plain => 1,
            Verdict::Known => 2,
        });
        bytes.extend(answer.floor.map_or(0, |floor| floor.saturating_add(1)).to_le_bytes());
    }
    bytes
}

pub fn decode_answers(bytes: &[u8]) -> Option<Vec<Answer>> {
    let mut reader = Reader(bytes);
    let mut answers = Vec::new();
    if reader.byte()? != VERSION {
        return None;
    }
    while !reader.0.is_empty() {
        let (db, number, key) = (usize::try_from(reader.u32()?).ok()?, reader.u64()?, reader.key()?);
        let verdict = match reader.byte()? {
            0 => Verdict::Forgotten,
            1 => Verdict::Plain,
            2 => Verdict::Known,
            _ => return None,
        };
        let floor = reader.u64()?.checked_sub(1).filter(|floor| i64::try_from(*floor).is_ok());
        answers.push(Answer { db, key, number, verdict, floor });
    }
    Some(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let questions = vec![
            Question { db: 0, key: b"a"[..].into(), number: 7, age_ms: 0 },
            Question { db: 15, key: b"\0\xff"[..].into(), number: u64::MAX, age_ms: i64::MAX },
        ];
        assert_eq!(decode_questions(&encode_questions(&questions)), Some(questions));
        let answers: Vec<Answer> = [Verdict::Forgotten, Verdict::Plain, Verdict::Known]
            .into_iter()
            .flat_map(|verdict| [None, Some(0), Some(i64::MAX as u64)].map(|floor| (verdict, floor)))
            .map(|(verdict, floor)| Answer { db: 1, key: b"k"[..].into(), number: 3, verdict, floor })
            .collect();
        assert_eq!(decode_answers(&encode_answers(&answers)), Some(answers));
    }

    #[test]
    fn what_is_cut_off_or_of_another_kind_is_no_message() {
        let questions = [Question { db: 0, key: b"abc"[..].into(), number: 7, age_ms: 1 }];
        let bytes = encode_questions(&questions);
        for len in (0..bytes.len()).filter(|len| *len != 1) {
            assert_eq!(decode_questions(&bytes[..len]), None, "{len}");
        }
        let answer = Answer { db: 0, key: b"abc"[..].into(), number: 7, verdict: Verdict::Known, floor: Some(3) };
        let bytes = encode_answers(&[answer]);
        for len in (0..bytes.len()).filter(|len| *len != 1) {
            assert_eq!(decode_answers(&bytes[..len]), None, "{len}");
        }
        for bytes in [&b"\x02"[..], b"", &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]] {
            assert!(decode_questions(bytes).is_none() && decode_answers(bytes).is_none());
        }
    }
}
