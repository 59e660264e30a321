//! What a CACHE read finds: the value, and whether it is fresh, stale or invalid.

use super::freshness::fingerprint;
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::server::{Server, StringValue};

/// A key as CACHE commands see it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cached {
    /// No key, or one that was invalidated.
    Missing,
    Fresh(StringValue),
    /// Past its soft expiry, within its grace.
    Stale(StringValue),
}

/// Looks a string key up. `WrongType` if it holds something else.
pub(super) fn look<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Cached, Error> {
    if server.state().cache.remembers_nothing() {
        return Ok(server.string(key)?.map_or(Cached::Missing, Cached::Fresh));
    }
    let db = server.db();
    let retired = server.state().cache.retired(db, key.bytes);
    if retired.is_some_and(|retired| retired.stale_since.is_none()) {
        return Ok(Cached::Missing);
    }
    let Some(value) = server.string(key)? else { return Ok(Cached::Missing) };
    let staled = retired.and_then(|retired| retired.stale_since);
    let Some(known) = server.state().cache.freshness(db, key.bytes) else {
        return Ok(if staled.is_some() { Cached::Missing } else { Cached::Fresh(value) });
    };
    let soft = staled.map_or(known.soft, |at| known.soft.min(at));
    if server.now().to_ms() < soft {
        return Ok(Cached::Fresh(value));
    }
    // Hashed only here, where a record would make the value stale.
    let has_grace = known.grace_ms > 0 && fingerprint(server.bytes(value)) == known.fingerprint;
    Ok(match staled {
        _ if has_grace => Cached::Stale(value),
        Some(_) => Cached::Missing,
        None => Cached::Fresh(value),
    })
}

/// When the value became or becomes stale; `None` if it has no grace.
pub(super) fn soft_expiry<S: Server>(server: &mut S, key: Arg<'_>) -> Option<UnixMs> {
    let db = server.db();
    let database = server.state().cache.databases.get(&db)?;
    let known = database.effective_freshness(key.bytes).filter(|known| known.grace_ms > 0)?;
    let value = server.string(key).ok()??;
    (fingerprint(server.bytes(value)) == known.fingerprint).then_some(known.soft)
}
