//! What a command answers, free of RESP. The host writes it for the protocol version the client speaks.

use std::rc::Rc;

use smallvec::SmallVec;

use crate::error::Error;

/// A reply. Borrowed bytes live as long as the command's hold on the server, so a value goes from the
/// keyspace to the client without a copy.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<'a> {
    /// `+OK`.
    Ok,
    /// Null in RESP3, the null bulk string in RESP2.
    Nil,
    Int(i64),
    /// A double in RESP3, its text in RESP2.
    Double(f64),
    /// A fixed-position array of integers; inline, since the limiter answers seven on every call.
    Ints(SmallVec<[i64; 7]>),
    Bytes(&'a [u8]),
    /// What FETCH answers to most: the status `HIT`, a value, nil. An array of three, without the allocation of one.
    Hit(&'a [u8]),
    OwnedBytes(Vec<u8>),
    /// One value for many clients.
    Shared(Rc<[u8]>),
    /// An ASCII word that a table in the source names.
    Word(&'static str),
    Array(Vec<Reply<'a>>),
    /// A set in RESP3, an array in RESP2.
    Set(Vec<Reply<'a>>),
    /// A map in RESP3, a flat array in RESP2; the order is the order of the fields.
    Map(Vec<(&'static str, Reply<'a>)>),
    /// For one who waited: whoever still runs his command returns an error.
    Error(Error),
    /// The client waits, and is answered by another event.
    Later,
    /// What the command replied that [`Server::execute`](crate::server::Server::execute) ran.
    Relayed,
}

impl Reply<'_> {
    /// Yes or no: the integers 1 and 0 in both protocols.
    pub fn yes_no(yes: bool) -> Reply<'static> {
        Reply::Int(i64::from(yes))
    }

    /// A count; counts beyond `i64::MAX` cannot occur in memory.
    pub fn count(n: usize) -> Reply<'static> {
        Reply::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}
