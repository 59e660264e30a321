//! A lease: the right, and the duty, of one caller to load a key; and the token that stands for it.

use std::rc::Rc;

use super::jobs::Reason;
use super::policy_stats::Mark;
use crate::args::parse_int;
use crate::clock::{UnixMs, UnixUs};

/// Names a lease for ever: no other lease of any server has the same, since the epoch is drawn at random when the server
/// starts and when it is promoted, and the number is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub(super) epoch: u64,
    pub(super) number: u64,
}

const EPOCH_DIGITS: usize = 16;
const SEPARATOR: u8 = b'-';

impl Token {
    /// At most 36 bytes.
    pub fn to_bytes(self) -> Vec<u8> {
        format!("{:016x}{}{}", self.epoch, char::from(SEPARATOR), self.number).into_bytes()
    }

    /// The token of these bytes, if they are any.
    pub fn parse(bytes: &[u8]) -> Option<Token> {
        let (epoch, rest) = bytes.split_at_checked(EPOCH_DIGITS)?;
        let [SEPARATOR, digits @ ..] = rest else { return None };
        if !epoch.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let epoch = u64::from_str_radix(str::from_utf8(epoch).ok()?, 16).ok()?;
        Some(Token { epoch, number: u64::try_from(parse_int(digits)?).ok()? })
    }
}

/// A load that was given to a loader: if nothing comes of it, it goes to the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub loader: Rc<[u8]>,
    pub reason: Reason,
}

/// What a new lease is to be.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub now: UnixUs,
    pub lease_ms: i64,
    pub refresh: bool,
    pub retirement: u64,
    pub visiting: Option<u64>,
    pub order: Option<Order>,
    pub mark: Option<Mark>,
}

/// A load of a key that somebody was told to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Load {
    /// Of its token.
    pub number: u64,
    /// Its place in the [sequence](super::leases) of all leases and invalidations.
    pub began: u64,
    pub began_at: UnixUs,
    pub deadline: UnixMs,
    /// The last retirement of any tag when the load began: later ones revoke it.
    pub retirement: u64,
    /// The key has a value, which the load is to replace.
    pub refresh: bool,
    /// It was given out for a key whose slot was still coming from another node, which had this epoch.
    pub visiting: Option<u64>,
    /// When it was revoked, if it was: its value may still answer those who waited before.
    pub revoked: Option<u64>,
    /// `None`: a caller was elected.
    pub order: Option<Order>,
    /// Of the policy of the key.
    pub mark: Option<Mark>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_it_was_written_and_nothing_else_does() {
        for token in [Token { epoch: 0, number: 0 }, Token { epoch: u64::MAX, number: i64::MAX as u64 }] {
            let bytes = token.to_bytes();
            assert!(bytes.len() <= 40);
            assert_eq!(Token::parse(&bytes), Some(token));
        }
        for bytes in [
            &b""[..],
            b"-1",
            b"000000000000000a",
            b"000000000000000a-",
            b"000000000000000A-1",
            b"000000000000000a-01",
            b"000000000000000a--1",
            b"+00000000000000a-1",
            b"000000000000000a-99999999999999999999",
            b"000000000000000a 1",
            b"\xff\xff0000000000000a-1",
        ] {
            assert_eq!(Token::parse(bytes), None, "{bytes:?}");
        }
    }
}
