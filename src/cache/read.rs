//! What a CACHE read finds: the value, and whether it is fresh, stale or invalid.

use super::freshness::fingerprint;
use super::hot_keys::{SKIP_MOST, Weight};
use super::intent::Standing;
use super::write_through::standing;
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::server::{Server, StringValue};
use crate::state::Dirty;

/// A key as CACHE commands see it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cached {
    /// No key, or one that was invalidated.
    Missing,
    Fresh(StringValue),
    /// Past its soft expiry, within its grace; or it is being written in the database.
    Stale(StringValue),
    /// A write-behind queue has the deletion of the key.
    Deleted,
    /// A write-behind queue has a change of the key, and nobody knows its value until the origin does.
    Pending,
}

/// Looks a string key up. `WrongType` if it holds something else. What a write-behind queue has of the key is newer than what
/// the origin has, so it stands in for a value that is gone or stale; and while the key is deleted by it, or nobody knows the
/// value, there is none. Unless the key is being written in the database besides: then no value is fresh, and none is known to be
/// gone.
#[inline(always)]
pub(super) fn look<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Cached, Error> {
    if server.state().any_dirty() { look_at_queues(server, key) } else { look_cached(server, key) }
}

#[inline(never)]
fn look_at_queues<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Cached, Error> {
    let db = server.db();
    if server.state().hides(db, key.bytes) {
        let deleted = server.state().dirty(db, key.bytes) == Some(Dirty::Deleted);
        return Ok(match (deleted, standing(server, key)) {
            (true, Standing::Open) => Cached::Missing,
            (true, _) => Cached::Deleted,
            (false, _) => Cached::Pending,
        });
    }
    let cached = look_cached(server, key)?;
    if matches!(cached, Cached::Fresh(_)) {
        return Ok(cached);
    }
    let value = match server.state().dirty(db, key.bytes) {
        Some(Dirty::Value(value)) => value.into_owned(),
        _ => return Ok(cached),
    };
    let value = server.hold(value);
    Ok(if standing(server, key) == Standing::Open { Cached::Stale(value) } else { Cached::Fresh(value) })
}

/// The same without regard to the queues.
#[inline(always)]
pub(super) fn look_cached<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Cached, Error> {
    if server.state().cache.doubts_nothing() {
        return Ok(server.string(key)?.map_or(Cached::Missing, Cached::Fresh));
    }
    look_at_metadata(server, key)
}

#[inline(never)]
fn look_at_metadata<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Cached, Error> {
    let standing = standing(server, key);
    if standing == Standing::RunOut {
        return Ok(Cached::Missing);
    }
    Ok(match look_at_age(server, key)? {
        Cached::Fresh(value) if standing == Standing::Open => Cached::Stale(value),
        found => found,
    })
}

fn look_at_age<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Cached, Error> {
    let db = server.db();
    if server.state().cache.doubts.holds(db, key.bytes) {
        return Ok(Cached::Missing);
    }
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

/// A client reads the key: for [`hot_keys`](super::hot_keys).
#[inline]
pub(super) fn count_read<S: Server>(server: &mut S, key: Arg<'_>) {
    let weight = server.state().cache.hot_keys.weigh();
    if weight != Weight::Nothing {
        count_weighed(server, key, weight);
    }
}

#[inline(never)]
fn count_weighed<S: Server>(server: &mut S, key: Arg<'_>, weight: Weight) {
    let db = server.db();
    if weight == Weight::Many {
        let skipped = server.random(SKIP_MOST);
        server.state().cache.hot_keys.skip(skipped);
    }
    server.state().cache.hot_keys.count(db, key.bytes, weight.reads());
}

/// When the value became or becomes stale; `None` if it has no grace.
pub(super) fn soft_expiry<S: Server>(server: &mut S, key: Arg<'_>) -> Option<UnixMs> {
    let db = server.db();
    let database = server.state().cache.databases.get(&db)?;
    let known = database.effective_freshness(key.bytes).filter(|known| known.grace_ms > 0)?;
    let value = server.string(key).ok()??;
    (fingerprint(server.bytes(value)) == known.fingerprint).then_some(known.soft)
}
