//! Slots and their keys: giving one, renewing it, freeing it, and telling how they stand.

use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::ratelimit::concurrency::{Answer, Slots, Unbound, Verdict};
use crate::ratelimit::slot_effects;
use crate::ratelimit::waiting::{self, Wanted};
use crate::reply::Reply;
use crate::server::Server;

/// What a caller of ENTER wants.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub id: Arg<'a>,
    pub limit: i64,
    /// From the grant on.
    pub lease_ms: i64,
    /// The connection that the slot is to end with.
    pub session: Option<u64>,
}

/// Since the server started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// ENTERs that got a slot or renewed one, at once or after a wait.
    pub entered: u64,
    /// ENTERs that found none free, and maybe waited then.
    pub denied: u64,
    /// Slots freed because their connection closed.
    pub sessions_closed: u64,
}

/// Gives the caller a slot if there is one for him, and renews the one he has; while others wait he gets no other.
pub fn enter<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>) -> Result<Answer, Error> {
    waiting::serve(server, key);
    let db = server.db();
    let ahead = server.state().ratelimit.queues.len_of(db, key.bytes);
    let answer = decide(server, key, wish, ahead)?;
    match answer.verdict {
        Verdict::Renewed => {
            give(server, key, wish)?;
            // The lease may be shorter now than those who wait were to wait for.
            waiting::serve(server, key);
        }
        Verdict::Given if server.memory_full(key) => return Err(Error::OutOfMemory),
        Verdict::Given => give(server, key, wish)?,
        Verdict::Denied => {
            let denied = &mut server.state().ratelimit.slots.denied;
            *denied = denied.saturating_add(1);
        }
    }
    Ok(answer)
}

/// Holds the caller until he gets a slot. What he is told if he cannot wait, or in vain: `denial`.
pub fn wait<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    wish: &Wish<'_>,
    wait_ms: i64,
    denial: &Answer,
) -> Result<Reply<'static>, Error> {
    // Who waits already is not refused when his turn comes: as with the server's own blocking commands, this is the moment.
    if server.may_block() && server.memory_full(key) {
        return Err(Error::OutOfMemory);
    }
    let &Wish { id, limit, lease_ms, session } = wish;
    let wanted = Wanted::Enter { id: id.bytes.into(), limit, lease_ms, session };
    let reply = waiting::wait(server, key, wanted, wait_ms, denial.reply())?;
    Ok(reply.unwrap_or_else(|| denial.reply()))
}

/// The turn of one who waits has come: nobody is before him.
pub fn enter_in_turn<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>) -> Result<Answer, Error> {
    let answer = decide(server, key, wish, 0)?;
    if answer.verdict != Verdict::Denied {
        give(server, key, wish)?;
    }
    Ok(answer)
}

fn decide<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>, ahead: usize) -> Result<Answer, Error> {
    let now = server.now().to_ms();
    let decide = |slots: &Slots| slots.decide(wish.id.bytes, wish.limit, ahead, now);
    Ok(server.native::<Slots>(key)?.map_or_else(|| decide(&Slots::default()), |slots| decide(slots)))
}

/// Gives or renews, as was decided.
fn give<S: Server>(server: &mut S, key: Arg<'_>, wish: &Wish<'_>) -> Result<(), Error> {
    let entered = &mut server.state().ratelimit.slots.entered;
    *entered = entered.saturating_add(1);
    let now = server.now().to_ms();
    let deadline = now.plus(wish.lease_ms);
    put(server, key, wish.id, deadline, now)?;
    if let Some(session) = wish.session {
        bind(server, key, wish.id, session)?;
    }
    slot_effects::propagate_enter(server, key, wish.id, deadline, now);
    Ok(())
}

/// This id has a slot from `now` until `deadline`. The one way to it, on primary and replica.
pub fn put<S: Server>(server: &mut S, key: Arg<'_>, id: Arg<'_>, deadline: UnixMs, now: UnixMs) -> Result<(), Error> {
    let Some(slots) = server.native::<Slots>(key)? else {
        let mut slots = Slots::default();
        slots.enter(id.bytes, deadline, now);
        server.put_native(key, slots, Some(deadline));
        return Ok(());
    };
    let unbound = slots.enter(id.bytes, deadline, now);
    let expiry = slots.expiry();
    unbind(server, key, &unbound);
    server.set_expiry(key, Some(expiry));
    server.changed(key);
    Ok(())
}

fn bind<S: Server>(server: &mut S, key: Arg<'_>, id: Arg<'_>, session: u64) -> Result<(), Error> {
    let Some((id, before)) = server.native::<Slots>(key)?.and_then(|slots| slots.bind(id.bytes, session)) else {
        return Ok(());
    };
    let db = server.db();
    let sessions = &mut server.state().ratelimit.sessions;
    sessions.left(db, key.bytes, before, &id);
    sessions.arrived(db, key.bytes, Some(session), &id);
    Ok(())
}

fn unbind<S: Server>(server: &mut S, key: Arg<'_>, unbound: &Unbound) {
    let db = server.db();
    for (id, session) in unbound {
        server.state().ratelimit.sessions.left(db, key.bytes, Some(*session), id);
    }
}

/// Frees the slots of these ids, and removes the key with the last one. How many were held at `now`, or were there if no moment
/// is given.
pub fn leave<'a, S: Server>(
    server: &mut S,
    key: Arg<'_>,
    ids: impl Iterator<Item = &'a [u8]> + Clone,
    now: Option<UnixMs>,
) -> Result<usize, Error> {
    let Some(slots) = server.native::<Slots>(key)? else { return Ok(0) };
    let (freed, unbound) = slots.leave(ids, now);
    if freed == 0 {
        return Ok(0);
    }
    let left = (!slots.is_empty()).then(|| slots.expiry());
    unbind(server, key, &unbound);
    match left {
        Some(expiry) => {
            server.set_expiry(key, Some(expiry));
            server.changed(key);
        }
        None => {
            server.delete(key);
        }
    }
    Ok(freed)
}

/// Frees one of the slots that were to end with connections which have closed. False: there is none.
pub fn close_one<S: Server>(server: &mut S) -> bool {
    let Some((id, name)) = server.state().ratelimit.sessions.next_ended() else { return false };
    server.select(name.db);
    let key = Arg::named(&name.key);
    if leave(server, key, std::iter::once(&*id), None) == Ok(1) {
        slot_effects::propagate_left(server, key, &id);
        let closed = &mut server.state().ratelimit.slots.sessions_closed;
        *closed = closed.saturating_add(1);
        waiting::serve(server, key);
    }
    true
}

/// Is this a key of this type, so that RATELIMIT.INFO describes it so? Then: `in_use`, `slots`, `waiters`.
pub fn describe<S: Server>(server: &mut S, key: Arg<'_>) -> Option<Reply<'static>> {
    let now = server.now().to_ms();
    let slots = server.native::<Slots>(key).ok()??;
    let (in_use, running) = (slots.in_use(now), slots.running(now));
    let running = running.map(|(id, deadline, session)| {
        // 0: it does not end with a connection.
        let session = session.and_then(|session| i64::try_from(session).ok()).unwrap_or(0);
        Reply::Array(vec![Reply::OwnedBytes(id.to_vec()), Reply::Int(deadline.since(now)), Reply::Int(session)])
    });
    let running = running.collect();
    Some(Reply::Map(vec![
        ("in_use", Reply::count(in_use)),
        ("slots", Reply::Array(running)),
        ("waiters", waiting::describe(server, key)),
    ]))
}
