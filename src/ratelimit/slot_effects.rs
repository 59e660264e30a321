//! What of slots is replicated by KEYWARD.APPLY:
//!
//! - `ENTER key id deadline_ms now_ms`: the id has a slot, given or renewed at that moment
//! - `LEFT key id`: the connection with which it was to end has closed
//!
//! LEAVE is replicated as it came. Which of the slots whose lease is over are dropped follows from the moment of an ENTER, and
//! the key's expiry from the slots.

use crate::args::{Arg, Args};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::ratelimit::concurrency;
use crate::ratelimit::slots;
use crate::server::{Server, Word};

const APPLY: &str = "KEYWARD.APPLY";

pub fn propagate_enter<S: Server>(server: &mut S, key: Arg<'_>, id: Arg<'_>, deadline: UnixMs, now: UnixMs) {
    let words = [Word::Text("ENTER"), Word::Arg(key), Word::Arg(id), Word::Int(deadline.0), Word::Int(now.0)];
    server.replicate(APPLY, &words);
}

pub fn propagate_left<S: Server>(server: &mut S, key: Arg<'_>, id: &[u8]) {
    server.replicate(APPLY, &[Word::Text("LEFT"), Word::Arg(key), Word::Bytes(id)]);
}

/// Applies `effect` if it is one of these; `None` if it is not.
pub fn apply<S: Server>(effect: Arg<'_>, args: &mut Args<'_>, server: &mut S) -> Option<Result<(), Error>> {
    if effect.is("ENTER") {
        Some(enter(args, server))
    } else if effect.is("LEFT") {
        Some(left(args, server))
    } else {
        None
    }
}

fn enter<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, id) = (word(args)?, id(args)?);
    let (deadline, now) = (moment(args)?, moment(args)?);
    args.end().map_err(|_| Error::BadEffect)?;
    if deadline <= now {
        return Err(Error::BadEffect);
    }
    slots::put(server, key, id, deadline, now)?;
    look_at_queue(server, key);
    Ok(())
}

/// Of an id that is not there nothing is to be done.
fn left<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, id) = (word(args)?, id(args)?);
    args.end().map_err(|_| Error::BadEffect)?;
    slots::leave(server, key, std::iter::once(id.bytes), None)?;
    look_at_queue(server, key);
    Ok(())
}

/// An operator's effect concerns those who wait; where it is replayed nobody does.
fn look_at_queue<S: Server>(server: &mut S, key: Arg<'_>) {
    let db = server.db();
    server.state().ratelimit.queues.look_at(db, key.bytes);
}

fn word<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
    args.take().ok_or(Error::BadEffect)
}

fn id<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
    concurrency::id(word(args)?).map_err(|_| Error::BadEffect)
}

fn moment(args: &mut Args<'_>) -> Result<UnixMs, Error> {
    let ms = word(args)?.int().map_err(|_| Error::BadEffect)?;
    if ms >= 0 { Ok(UnixMs(ms)) } else { Err(Error::BadEffect) }
}

#[cfg(test)]
mod tests {
    use crate::apply::Apply;
    use crate::error::Error;
    use crate::fake_server::FakeServer;
    use crate::ratelimit::commands::Enter;
    use crate::reply::Reply;

    #[test]
    fn malformed_effects_are_refused_and_change_nothing() {
        let mut server = FakeServer::new();
        server.put_string("s", "v");
        let long = format!("ENTER k {} 2 1", "x".repeat(513));
        for effect in [
            "ENTER",
            "ENTER k",
            "ENTER k a",
            "ENTER k a 2",
            "ENTER k a 2 1 0",
            "ENTER k a 2 2",
            "ENTER k a 2 -1",
            "ENTER k a x 1",
            "ENTER k a 9223372036854775808 1",
            "ENTER k  2 1",
            &long,
            "LEFT",
            "LEFT k",
            "LEFT k ",
            "LEFT k a b",
        ] {
            assert_eq!(server.call::<Apply>(&format!("KEYWARD.APPLY {effect}")), Err(Error::BadEffect), "{effect:.40}");
        }
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY ENTER s a 2 1"), Err(Error::WrongType));
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY LEFT s a"), Err(Error::WrongType));
        assert_eq!(server.keys.len(), 1);
        assert!(server.take_replicated().is_empty());
    }

    #[test]
    fn what_an_operator_frees_goes_to_who_waits() {
        let mut server = FakeServer::new();
        server.call::<Enter>("e k a LIMIT 1 EX 60").unwrap();
        assert_eq!(server.call::<Enter>("e k b LIMIT 1 EX 60 WAIT 0"), Ok(Reply::Later));
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY LEFT k a"), Ok(Reply::Ok));
        while crate::state::due(&mut server) {}
        assert_eq!(server.answers.len(), 1);
    }

    #[test]
    fn a_slot_that_is_not_there_is_left_already() {
        let mut server = FakeServer::new();
        server.replayed = true;
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY LEFT k a"), Ok(Reply::Ok));
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY ENTER k a 2 1"), Ok(Reply::Ok));
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY LEFT k b"), Ok(Reply::Ok));
        assert!(server.holds("k"));
        assert_eq!(server.call::<Apply>("KEYWARD.APPLY LEFT k a"), Ok(Reply::Ok));
        assert!(!server.holds("k"));
    }
}
