//! The write itself: decide, store, remember, replicate. All CACHE writes end here.

use smallvec::{SmallVec, smallvec};

use super::freshness::{Freshness, fingerprint};
use super::state::Known;
use super::write_options::{Condition, Expires, Lifetime, WriteOptions};
use super::{governed, waiters};
use crate::args::Arg;
use crate::error::Error;
use crate::server::{Server, Word};
use crate::state::Dirty;

/// Writes one key if NX, XX, VERSION and its policy allow. Whether it did. An error changes nothing.
pub(super) fn set<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    value: Arg<'_>,
    options: &WriteOptions<'_>,
    command: &'static str,
) -> Result<bool, Error> {
    let (expires, by_policy) = governed::expires(server, key, options, command)?;
    // What comes from the primary or the AOF was decided there.
    let allowed = server.replayed() || (condition_met(server, key, options) && is_newer(server, key, options));
    if !allowed {
        return Ok(false);
    }
    let life = store(server, key, value, expires, options, 0)?;
    waiters::value_came(server, key, value);
    if options.is_absolute() && !by_policy {
        server.replicate_verbatim();
    } else {
        replicate(server, key, value, life, options);
    }
    Ok(true)
}

/// Stores the value and what the options say of it, and answers the expiry that was drawn. The caller replicates it. `load_us`: how long it took to load the value, if it was loaded.
///
/// `IndexFull` (4 billion tagged keys) is found only here, after the value was stored, since to ask beforehand would cost
/// every write. The key is removed then: no tag could reach it, and a miss is always right.
pub(super) fn store<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    value: Arg<'_>,
    expires: Option<Expires>,
    options: &WriteOptions<'_>,
    load_us: u32,
) -> Result<Option<Lifetime>, Error> {
    let life = expires.map(|expires| expires.draw(|most| server.random(most)));
    // First the value: it is here that an old value is found to have expired, which takes its tags with it.
    server.set_string(key, value, life.map(Lifetime::hard));
    let now = match options.version {
        Some(_) if !server.replayed() => Some(server.now().to_ms()),
        _ => None,
    };
    let tags: SmallVec<[&[u8]; 8]> = options.tags.iter().map(|tag| tag.bytes).collect();
    let freshness = life.and_then(|life| freshness(value.bytes, life, load_us));
    let db = server.db();
    let state = server.state();
    let known = Known { tags: &tags, version: options.version, now, freshness };
    if let Err(error) = state.cache.stored(&state.config, (db, key.bytes), known) {
        server.unlink(&[key.bytes]);
        return Err(error);
    }
    server.announce(c"cache.set", key);
    Ok(life)
}

/// What there is to remember of the age of a value that expires; nothing for one without a grace that was not loaded.
fn freshness(value: &[u8], life: Lifetime, load_us: u32) -> Option<Freshness> {
    let Lifetime { soft, grace_ms } = life;
    if grace_ms > 0 {
        Some(Freshness { soft, grace_ms, fingerprint: fingerprint(value), load_us })
    } else if load_us > 0 {
        Some(Freshness { soft: Freshness::NEVER, grace_ms: 0, fingerprint: 0, load_us })
    } else {
        None
    }
}

/// The effect as one absolute CACHE.SET.
pub(super) fn replicate<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    value: Arg<'_>,
    life: Option<Lifetime>,
    options: &WriteOptions<'_>,
) {
    if !server.has_audience() {
        return server.replicate_verbatim();
    }
    let mut words: SmallVec<[Word<'_>; 12]> = smallvec![Word::Arg(key), Word::Arg(value)];
    push_options(&mut words, life, options);
    server.replicate("CACHE.SET", &words);
}

/// The options in absolute terms.
pub(super) fn push_options<'a, 'b: 'a>(
    words: &mut SmallVec<[Word<'a>; 12]>,
    life: Option<Lifetime>,
    options: &WriteOptions<'b>,
) {
    if let Some(Lifetime { soft, grace_ms }) = life {
        words.extend([Word::Text("PXAT"), Word::Int(soft.0)]);
        if grace_ms > 0 {
            words.extend([Word::Text("GRACE"), Word::Int(grace_ms)]);
        }
    }
    if !options.tags.is_empty() {
        words.extend([Word::Text("TAGS"), Word::Int(i64::try_from(options.tags.len()).unwrap_or(i64::MAX))]);
        words.extend(options.tags.iter().copied().map(Word::Arg));
    }
    if let Some(version) = options.version {
        words.extend([Word::Text("VERSION"), Word::Int(i64::try_from(version).unwrap_or(i64::MAX))]);
    }
}

/// Are NX and XX met?
pub(super) fn condition_met<S: Server>(server: &mut S, key: Arg<'_>, options: &WriteOptions<'_>) -> bool {
    let Some(condition) = options.condition else { return true };
    let db = server.db();
    let cached = server.exists(key.bytes) && !server.state().cache.is_retired(db, key.bytes);
    let present = match server.state().dirty(db, key.bytes) {
        Some(Dirty::Value(_)) => true,
        Some(Dirty::Deleted | Dirty::Unknown) | None => cached,
    };
    present == (condition == Condition::Present)
}

/// Is VERSION met?
pub(super) fn is_newer<S: Server>(server: &mut S, key: Arg<'_>, options: &WriteOptions<'_>) -> bool {
    let Some(version) = options.version else { return true };
    let (db, now) = (server.db(), server.now().to_ms());
    server.state().cache.version_seen(db, key.bytes, now).is_none_or(|seen| version > seen)
}
