//! What the write-behind family needs of the cache: writing, changing and removing a cached value beside a dirty record, and
//! answering those who wait for it.

use smallvec::{SmallVec, smallvec};

use super::freshness::{Freshness, fingerprint};
use super::read::{Cached, look_cached};
use super::state::Known;
use super::write_options::{EXPIRY_SPEC, Expires, GRACE_SPEC, JITTER_SPEC, Lifetime, TAGS_SPEC, WriteOptions};
use super::{governed, single_flight, waiters, write};
use crate::args::{Arg, Args};
use crate::error::Error;
use crate::server::{Expiry, Server, Word};
use crate::spec::ArgSpec;

/// The options in COMMAND DOCS.
pub const OPTION_SPECS: [ArgSpec; 4] =
    [EXPIRY_SPEC.optional(), JITTER_SPEC.optional(), GRACE_SPEC, TAGS_SPEC.optional()];

/// Reads all that is left of the arguments as the options of CACHE.SET for expiry and tags.
pub fn options<'a>(args: &mut Args<'a>) -> Result<WriteOptions<'a>, Error> {
    let options = WriteOptions::parse(args)?;
    if options.condition.is_some() || options.version.is_some() || options.policy.is_some() {
        return Err(Error::Syntax);
    }
    Ok(options)
}

/// When a value that is to be stored expires: what the options leave out comes from the policy of its key.
pub fn expires<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    options: &WriteOptions<'_>,
    command: &'static str,
) -> Result<Option<Expires>, Error> {
    governed::expires(server, key, options, command).map(|(expires, _)| expires)
}

/// Stores a value as CACHE.SET does; the expiry that was drawn. The caller replicates it.
pub fn store<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    value: Arg<'_>,
    expires: Option<Expires>,
    options: &WriteOptions<'_>,
) -> Result<Option<Lifetime>, Error> {
    write::store(server, key, value, expires, options, 0)
}

/// What CACHE.GET would answer if no queue knew of the key.
pub fn peek<S: Server>(server: &mut S, key: Arg<'_>) -> Result<Option<Vec<u8>>, Error> {
    Ok(match look_cached(server, key)? {
        Cached::Fresh(value) => Some(server.bytes(value).to_vec()),
        _ => None,
    })
}

/// Changes a value as INCRBY does: what the options do not name, expiry or tags, stays. The expiry that was drawn.
pub fn rewrite<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    value: Arg<'_>,
    expires: Option<Expires>,
    options: &WriteOptions<'_>,
) -> Result<Option<Lifetime>, Error> {
    let db = server.db();
    // First the expiry: an old value may be found to be over, and takes with it what is known of it.
    let kept_expiry = match server.expiry(key) {
        Expiry::At(at) => Some(at),
        Expiry::Never | Expiry::NoKey => None,
    };
    let cache = &server.state().cache;
    let invalid = cache.is_retired(db, key.bytes);
    let kept_tags: Vec<Box<[u8]>> = if options.tags.is_empty() && !invalid {
        cache.tags(db, key.bytes).map(Box::from).collect()
    } else {
        Vec::new()
    };
    let known = cache.freshness(db, key.bytes).filter(|_| !invalid);
    let life = expires.map(|expires| expires.draw(|most| server.random(most)));
    let (hard, freshness) = match life {
        Some(life @ Lifetime { soft, grace_ms }) => {
            let aged = Freshness { soft, grace_ms, fingerprint: fingerprint(value.bytes), load_us: 0 };
            (Some(life.hard()), (grace_ms > 0).then_some(aged))
        }
        None => {
            let kept = known.map(|known| Freshness { fingerprint: fingerprint(value.bytes), ..known });
            (kept_expiry.filter(|_| !invalid), kept)
        }
    };
    server.set_string(key, value, hard);
    let tags: SmallVec<[&[u8]; 8]> =
        options.tags.iter().map(|tag| tag.bytes).chain(kept_tags.iter().map(|tag| &**tag)).collect();
    let state = server.state();
    let known = Known { tags: &tags, version: None, now: None, freshness };
    if let Err(error) = state.cache.stored(&state.config, (db, key.bytes), known) {
        server.unlink(&[key.bytes]);
        return Err(error);
    }
    Ok(life)
}

/// What of the options is replicated, in absolute terms.
pub fn words<'a>(life: Option<Lifetime>, options: &WriteOptions<'a>) -> SmallVec<[Word<'a>; 12]> {
    let mut words = smallvec![];
    write::push_options(&mut words, life, options);
    words
}

/// Removes the cached value, whatever is loaded meanwhile.
pub fn remove<S: Server>(server: &mut S, key: Arg<'_>) {
    single_flight::revoke(server, &[key.bytes]);
    server.unlink(&[key.bytes]);
}

/// The value was stored: it answers those who wait, and no load matters.
pub fn value_came<S: Server>(server: &mut S, key: Arg<'_>, value: Arg<'_>) {
    waiters::value_came(server, key, value);
}

/// There is no value any more: those who wait are told, and no load matters. Unless the key is being written in the database: then
/// they wait for the end of that.
pub fn value_gone<S: Server>(server: &mut S, key: Arg<'_>) {
    let db = server.db();
    if !server.state().cache.intents.holds(db, key.bytes) {
        waiters::answer_all(server, key.bytes, None, "NONE", None);
        server.state().cache.leases.forget(db, key.bytes);
    }
}

/// Nobody knows the value until the origin has the change: what is loaded now must not be stored.
pub fn value_unknown<S: Server>(server: &mut S, key: Arg<'_>) {
    single_flight::revoke(server, &[key.bytes]);
}

/// The queues know nothing of the key any more: if somebody waits for it, it can be loaded.
pub fn clean<S: Server>(server: &mut S, key: Arg<'_>) {
    if !server.state().cache.leases.is_idle() {
        waiters::settle(server, key);
    }
}
