//! An invalidation as it goes to the other shards of a cluster. Tags and keys, also of an event: the node that a client asks makes them by
//! its own rule and checks them against the rights of its user. The others just remove what they have of them, and no rule or user of
//! theirs has a say.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::rules::MAX_EVENT_LENGTH;
use super::write_options::checked_tag;
use super::{invalidate, staleness};
use crate::args::Arg;
use crate::cluster::MAX_PAYLOAD;
use crate::error::Error;
use crate::server::Server;

/// New ones are appended: the order is the format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task<'a> {
    InvalidateTags(#[serde(borrow)] Vec<&'a [u8]>),
    StaleTags(Vec<&'a [u8]>),
    Event { event: &'a [u8], keys: Vec<&'a [u8]>, tags: Vec<&'a [u8]> },
}

/// A task and its database: some servers have more than one in a cluster.
#[derive(Serialize, Deserialize)]
struct Order<'a> {
    db: u32,
    #[serde(borrow)]
    task: Task<'a>,
}

impl Task<'_> {
    /// Does it here, in the selected database. How many keys it concerned.
    pub fn run<S: Server>(&self, server: &mut S) -> usize {
        match self {
            Task::InvalidateTags(tags) => invalidate::tags(server, &arguments(tags)),
            Task::StaleTags(tags) => staleness::tags(server, &arguments(tags)),
            Task::Event { event, keys, tags } => invalidate::event(server, event, keys, &arguments(tags)),
        }
    }

    /// For the other shards.
    pub fn encode(self, db: usize) -> Result<Rc<[u8]>, Error> {
        let db = u32::try_from(db).map_err(|_| Error::Internal)?;
        let bytes = postcard::to_extend(&Order { db, task: self }, Vec::new()).map_err(|_| Error::Internal)?;
        if bytes.len() > MAX_PAYLOAD { Err(Error::FanOutLength) } else { Ok(bytes.into()) }
    }

    fn is_sound(&self) -> bool {
        let sound = |tags: &[&[u8]]| tags.iter().all(|tag| checked_tag(Arg::named(tag)).is_ok());
        match self {
            Task::InvalidateTags(tags) | Task::StaleTags(tags) => sound(tags),
            Task::Event { event, tags, .. } => (1..=MAX_EVENT_LENGTH).contains(&event.len()) && sound(tags),
        }
    }
}

fn arguments<'a>(tags: &[&'a [u8]]) -> SmallVec<[Arg<'a>; 8]> {
    tags.iter().map(|tag| Arg::named(tag)).collect()
}

/// Does what another node asks for. `None`: that is no such request.
pub fn deliver<S: Server>(server: &mut S, payload: &[u8]) -> Option<i64> {
    let (order, left) = postcard::take_from_bytes::<Order<'_>>(payload).ok()?;
    if !left.is_empty() || !order.task.is_sound() {
        return None;
    }
    let db = usize::try_from(order.db).ok()?;
    server.select(db);
    // A database that is not here has no keys.
    let count = if server.db() == db { order.task.run(server) } else { 0 };
    i64::try_from(count).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;

    fn server() -> FakeServer {
        let mut server = FakeServer::new();
        for line in ["a v TAGS 1 t", "b v TAGS 2 t u", "c v EX 100 GRACE 100 TAGS 1 t", "d v"] {
            server.call::<Set>(&format!("CACHE.SET {line}")).unwrap();
        }
        server.take_replicated();
        server
    }

    #[test]
    fn what_is_sent_is_done_in_its_database() {
        let tags = || vec![&b"u"[..], b"none"];
        for (task, count) in [
            (Task::InvalidateTags(tags()), 1),
            (Task::StaleTags(vec![b"t"]), 3),
            (Task::Event { event: b"e", keys: vec![b"d", b"x"], tags: tags() }, 2),
        ] {
            let payload = task.clone().encode(0).unwrap();
            let mut server = server();
            server.db = 5;
            assert_eq!(deliver(&mut server, &payload), Some(count), "{task:?}");
            assert_eq!(deliver(&mut server, &task.encode(3).unwrap()), Some(0), "another database");
        }
    }

    #[test]
    fn what_is_no_request_does_nothing() {
        let mut server = server();
        let long = [b't'; 513];
        for task in [
            Task::InvalidateTags(vec![b"t", b""]),
            Task::StaleTags(vec![b"t", &long]),
            Task::Event { event: b"", keys: vec![b"d"], tags: vec![b"t"] },
            Task::Event { event: &long, keys: vec![b"d"], tags: vec![b"t"] },
        ] {
            assert_eq!(deliver(&mut server, &task.encode(0).unwrap()), None);
        }
        let good = Task::Event { event: b"e", keys: vec![b"d"], tags: vec![b"t"] }.encode(0).unwrap();
        for end in 0..good.len() {
            assert_eq!(deliver(&mut server, &good[..end]), None);
        }
        assert_eq!(deliver(&mut server, &[&good[..], b"x"].concat()), None);
        assert!(server.keys.len() == 4 && server.take_replicated().is_empty());
        let huge = vec![b'x'; MAX_PAYLOAD];
        assert_eq!(Task::InvalidateTags(vec![&huge]).encode(0), Err(Error::FanOutLength));
    }
}
