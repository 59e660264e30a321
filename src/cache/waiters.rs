//! Those who wait for a load: how each of them is answered, exactly once, and who is elected in the place of one who gave up.
//!
//! [`answer_all`] is for a value that has come, [`settle`] for a load that has ended some other way; the second gives those who wait
//! what there is by now, or elects one of them.

use std::rc::Rc;

use super::flight::{Role, Seat};
use super::jobs::Reason;
use super::leases::Hold;
use super::loaders;
use super::read::{Cached, look};
use super::single_flight::{By, Wish, begin, busy, is_negative, reply};
use crate::args::Arg;
use crate::reply::Reply;
use crate::server::Server;

/// Answers everybody who waits for the key and came before `before` (`None`: everybody), in the order they came.
pub(super) fn answer_all<S: Server>(
    server: &mut S,
    key: &[u8],
    before: Option<u64>,
    status: &'static str,
    value: Option<&Rc<[u8]>>,
) {
    let told = || reply(status, value.map_or(Reply::Nil, |value| Reply::Shared(Rc::clone(value))), None);
    let answered = answer_some(server, key, before, |_| true, told);
    if status == "HIT" || status == "NONE" {
        server.state().cache.count(key, answered, |counters| &mut counters.stampedes_suppressed);
    }
}

/// How many were answered.
fn answer_some<S: Server>(
    server: &mut S,
    key: &[u8],
    before: Option<u64>,
    wanted: impl Fn(&Seat) -> bool,
    reply: impl Fn() -> Reply<'static>,
) -> u64 {
    let db = server.db();
    let mut answered: u64 = 0;
    for (waiter, _) in server.state().cache.leases.take_waiters(db, key, before, wanted) {
        answered = answered.saturating_add(u64::from(server.answer(waiter, reply())));
    }
    answered
}

/// Nobody loads the key for those of this database who left it to this loader.
pub(super) fn answer_readers<S: Server>(server: &mut S, db: usize, key: &[u8], loader: &[u8]) {
    let reads = |seat: &Seat| matches!(&seat.role, Role::Reader { loader: of } if **of == *loader);
    for (waiter, _) in server.state().cache.leases.take_waiters(db, key, None, reads) {
        server.answer(waiter, busy());
    }
}

/// A value was stored under the key by another way than FILL: everybody who waits has his answer, and no load matters. Unless
/// the key is being written in the database: then the value may be old, and they wait for the end of that.
pub(super) fn value_came<S: Server>(server: &mut S, key: Arg<'_>, value: Arg<'_>) {
    let db = server.db();
    let cache = &server.state().cache;
    if cache.leases.is_idle() || cache.intents.holds(db, key.bytes) {
        return;
    }
    if server.state().cache.leases.waiters_of(db, key.bytes) > 0 {
        answer_all(server, key.bytes, None, "HIT", Some(&Rc::from(value.bytes)));
    }
    server.state().cache.leases.forget(db, key.bytes);
}

/// If the key is not served here any more, since its slot has left or the key has gone ahead of it: ends its loads and tells those who
/// wait where to go. Whether it is so.
pub(super) fn send_away<S: Server>(server: &mut S, key: Arg<'_>) -> bool {
    if server.serves(key) {
        return false;
    }
    let (db, redirection) = (server.db(), server.redirection(key.bytes));
    server.state().cache.revoke(db, key.bytes, None);
    answer_some(server, key.bytes, None, |_| true, || Reply::Error(redirection.clone()));
    server.state().cache.leases.forget(db, key.bytes);
    true
}

/// A load has ended and brought nothing for those who (still) wait: they get what there is by now, or the oldest of them whose
/// connection lives is elected. While the key is being written in the database they go on waiting. In the selected database.
pub(super) fn settle<S: Server>(server: &mut S, key: Arg<'_>) {
    let (db, now) = (server.db(), server.now().to_ms());
    let cache = &server.state().cache;
    if cache.leases.waiters_of(db, key.bytes) == 0 || cache.intents.holds(db, key.bytes) {
        server.state().cache.leases.tidy(db, key.bytes);
        return;
    }
    let hold = server.state().cache.leases.hold(db, key.bytes, now);
    if hold == Some(Hold::Loading) || send_away(server, key) {
        return;
    }
    let failed = match hold {
        Some(Hold::Failed(message)) => Some(message),
        _ => None,
    };
    match look(server, key) {
        Err(error) => {
            answer_some(server, key.bytes, None, |_| true, || Reply::Error(error.clone()));
        }
        Ok(Cached::Fresh(value)) => {
            let value = Rc::from(server.bytes(value));
            answer_all(server, key.bytes, None, "HIT", Some(&value));
        }
        Ok(Cached::Stale(value)) => {
            let value: Rc<[u8]> = Rc::from(server.bytes(value));
            if failed.is_none() {
                elect(server, key, Some(&value));
            }
            let stale = || reply("STALE", Reply::Shared(Rc::clone(&value)), None);
            answer_some(server, key.bytes, None, |seat| seat.stale_ok, stale);
            answer_failed(server, key, failed);
        }
        // They go on waiting: what was recorded of the key is settled when the origin has it.
        Ok(Cached::Pending) => {}
        Ok(Cached::Deleted) => answer_all(server, key.bytes, None, "NONE", None),
        Ok(Cached::Missing) if is_negative(server, key) => answer_all(server, key.bytes, None, "NONE", None),
        Ok(Cached::Missing) if failed.is_some() => answer_failed(server, key, failed),
        Ok(Cached::Missing) => elect(server, key, None),
    }
    server.state().cache.leases.tidy(db, key.bytes);
}

fn answer_failed<S: Server>(server: &mut S, key: Arg<'_>, message: Option<Rc<[u8]>>) {
    if let Some(message) = message {
        answer_all(server, key.bytes, None, "ERROR", Some(&message));
    }
}

/// Elects who waits longest; one whose client has gone is passed over. If all of them leave loading to loaders, those are told.
/// `stale`: the value there is until then.
fn elect<S: Server>(server: &mut S, key: Arg<'_>, stale: Option<&Rc<[u8]>>) {
    let db = server.db();
    while let Some((waiter, lease_ms, stale_ok)) = server.state().cache.leases.take_caller(db, key.bytes) {
        let token = begin(server, key, lease_ms, stale.is_some(), None);
        let told = match (stale, token) {
            (Some(value), Some(_)) if stale_ok => reply("REFRESH", Reply::Shared(Rc::clone(value)), token),
            (Some(value), None) if stale_ok => reply("STALE", Reply::Shared(Rc::clone(value)), None),
            _ => reply("MISS", Reply::Nil, token),
        };
        if server.answer(waiter, told) {
            if token.is_none() {
                // Nobody loads for the others: the table of leases is full.
                answer_all(server, key.bytes, None, "BUSY", None);
            }
            return;
        }
        if let Some(token) = token {
            server.state().cache.leases.take(db, key.bytes, token);
        }
    }
    for loader in server.state().cache.leases.loaders(db, key.bytes) {
        loaders::want(server, &loader, key.bytes, Reason::Miss);
    }
}

/// Holds the caller until the load that is under way answers him. `None`: he cannot wait, or too many do.
pub(super) fn wait<S: Server>(server: &mut S, key: Arg<'_>, wish: Wish<'_>, wait_ms: i64) -> Option<Reply<'static>> {
    if !server.may_block() {
        return None;
    }
    let db = server.db();
    let state = server.state();
    if !state.has_room_to_wait(state.cache.leases.waiters_of(db, key.bytes)) {
        state.cache.count(key.bytes, 1, |counters| &mut counters.waits_refused);
        return None;
    }
    let waiter = server.block(wait_ms, busy())?;
    let role = match wish.by {
        By::Caller { lease_ms } => Role::Caller { lease_ms },
        By::Loader(loader) => Role::Reader { loader: loader.into() },
    };
    let cache = &mut server.state().cache;
    cache.count(key.bytes, 1, |counters| &mut counters.waits);
    let mark = cache.policies.find(key.bytes).map(|policy| policy.stats.wait_mark.clone());
    cache.leases.join(db, key.bytes, waiter, role, wish.stale_ok, mark);
    Some(Reply::Later)
}

/// The elected caller failed and says why: those who wait are told, and for `retry_ms` nobody is elected.
pub(super) fn failed<S: Server>(server: &mut S, key: Arg<'_>, message: &[u8], retry_ms: i64) {
    let (db, now) = (server.db(), server.now().to_ms());
    // Those who wait are told also where nobody else is kept from trying.
    server.state().cache.leases.fail(db, key.bytes, now.plus(retry_ms.max(1)), message);
    settle(server, key);
    if retry_ms == 0 {
        server.state().cache.leases.forget(db, key.bytes);
    }
}

/// The elected caller gives up without a word: the next one is elected, if anybody waits.
pub(super) fn given_up<S: Server>(server: &mut S, key: Arg<'_>, retry_ms: i64) {
    let (db, now) = (server.db(), server.now().to_ms());
    if retry_ms > 0 && server.state().cache.leases.waiters_of(db, key.bytes) == 0 {
        server.state().cache.leases.fail(db, key.bytes, now.plus(retry_ms), b"");
    }
    settle(server, key);
}
