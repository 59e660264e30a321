//! What FILL and FILLNIL have in common: is what was loaded still to be stored, and who is answered with it?

use std::rc::Rc;

use super::lease::{Load, Token};
use super::single_flight::{end_what_ran_out, revoke_if_slot_was_away};
use super::waiters::{answer_all, settle};
use crate::args::Arg;
use crate::error::Error;
use crate::server::Server;

/// What those who wait are told.
pub(super) struct Answer {
    pub status: &'static str,
    pub value: Option<Rc<[u8]>>,
}

/// Ends the lease of this token. The load, if what it brought is to be stored; else those who may have it have been answered,
/// and the others are cared for. `OutOfMemory`: everybody was answered, and nothing is to be stored.
pub(super) fn accept<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    token: Arg<'_>,
    tags: &[Arg<'_>],
    version: Option<u64>,
    answer: &Answer,
) -> Result<Option<Load>, Error> {
    let db = server.db();
    revoke_if_slot_was_away(server, db, key.bytes);
    end_what_ran_out(server, db, key.bytes);
    let token = Token::parse(token.bytes);
    let Some((token, load)) =
        token.and_then(|token| Some((token, server.state().cache.leases.find(db, key.bytes, token)?)))
    else {
        refused(server, key);
        return Ok(None);
    };
    let refusal = refusal(server, key, &load, tags, version);
    // To look at the key may have shown that it was written and has expired since: then the load is revoked by now, and gone if
    // nobody waits.
    let taken = server.state().cache.leases.take(db, key.bytes, token);
    let revoked = taken.map_or(Some(0), |load| load.revoked);
    if let Some(before) = refusal.into_iter().chain(revoked).min() {
        refused(server, key);
        answer_all(server, key.bytes, Some(before), answer.status, answer.value.as_ref());
        settle(server, key);
        return Ok(None);
    }
    if server.memory_full(key) {
        refused(server, key);
        answer_all(server, key.bytes, None, answer.status, answer.value.as_ref());
        server.state().cache.leases.forget(db, key.bytes);
        return Err(Error::OutOfMemory);
    }
    server.state().cache.count(key.bytes, 1, |counters| &mut counters.fills);
    Ok(Some(load))
}

/// What was loaded is stored: it answers everybody.
pub(super) fn done<S: Server>(server: &mut S, key: Arg<'_>, answer: &Answer) {
    let db = server.db();
    answer_all(server, key.bytes, None, answer.status, answer.value.as_ref());
    server.state().cache.leases.forget(db, key.bytes);
}

/// How long the load took, in microseconds; 0 is kept for "unknown".
pub(super) fn took_us<S: Server>(server: &S, load: &Load) -> u32 {
    let us = server.now().0.saturating_sub(load.began_at.0).max(1);
    u32::try_from(us).unwrap_or(u32::MAX)
}

fn refused<S: Server>(server: &mut S, key: Arg<'_>) {
    server.state().cache.count(key.bytes, 1, |counters| &mut counters.fills_refused);
}

/// Whether the value must not be stored. If so it may answer those who came before this place in the sequence: 0, nobody.
fn refusal<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    load: &Load,
    tags: &[Arg<'_>],
    version: Option<u64>,
) -> Option<u64> {
    let (db, now) = (server.db(), server.now().to_ms());
    let cache = &server.state().cache;
    let retired = cache.retired(db, key.bytes);
    let tag_hit = cache.leases.tag_hit(db, load.began, tags.iter().map(|tag| tag.bytes));
    // When the retirement was is not known; it was after the load began.
    let retired_since = retired.filter(|retired| retired.number > load.retirement).map(|_| load.began);
    let outdated =
        version.is_some_and(|version| cache.version_seen(db, key.bytes, now).is_some_and(|seen| version <= seen));
    // A key that was not there when the load began was written since. (A retired one was there, but is invalid, and so was one in doubt.)
    let invalid = retired.is_some() || cache.doubts.holds(db, key.bytes);
    let written = !load.refresh && load.revoked.is_none() && !invalid && server.exists(key.bytes);
    let nobody = (outdated || written).then_some(0);
    [load.revoked, tag_hit, retired_since, nobody].into_iter().flatten().min()
}
