//! Write-through: a writer says that he begins to write a row, writes it to the database, and brings the cache the new value. In
//! between nobody is told that the old value is fresh, and nothing that was read from the database is stored.
//!
//! In doubt the key is removed, which is always right: when what became of a write is not known, and when the cache cannot know
//! which of two writes came last to the database.

use super::State;
use super::intent::{Began, Fate, Standing};
use super::lease::Token;
use super::single_flight::revoke;
use super::waiters::{settle, value_came};
use super::write::{self, condition_met, is_newer};
use super::write_options::{Expires, Lifetime, WriteOptions};
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::error::Error;
use crate::name::Name;
use crate::server::{Expiry, Server, Word};

/// The new value of a key.
#[derive(Debug)]
pub(super) struct NewValue<'a> {
    pub value: Arg<'a>,
    pub expires: Option<Expires>,
    pub options: WriteOptions<'a>,
}

/// A database write begins: hides the key until `until`, and ends the lease on it. The token of the intent.
pub(super) fn begin<S: Server>(server: &mut S, key: Arg<'_>, until: UnixMs) -> Result<Token, Error> {
    check_role(server)?;
    let ran_out = end_what_ran_out(server, key);
    let state = server.state();
    if usize::try_from(state.config.intents_max).is_ok_and(|max| state.cache.intents.len() >= max) {
        state.cache.counters.intents_full = state.cache.counters.intents_full.saturating_add(1);
        if ran_out {
            settle(server, key);
        }
        return Err(Error::TooManyIntents);
    }
    let expires = match server.expiry(key) {
        Expiry::At(at) => Some(at),
        Expiry::Never | Expiry::NoKey => None,
    };
    let db = server.db();
    let cache = &mut server.state().cache;
    let (first, retirement) = (!cache.intents.holds(db, key.bytes), cache.retirements(db));
    let leases = &mut cache.leases;
    leases.revoke(db, key.bytes, None);
    let token = leases.next_token();
    let began = || Began { fence: Some((db, leases.open_fence(db))), retirement, expires };
    cache.intents.open(db, key.bytes, token.number, until, began);
    if first {
        server.replicate("KEYWARD.APPLY", &[Word::Text("INTENT"), Word::Arg(key)]);
        reads_change(server, key);
    }
    Ok(token)
}

/// The write is in the database: stores the new value (`None`: there is none), or removes the key where that is not safe. Whether
/// it was safe.
pub(super) fn commit<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    token: Arg<'_>,
    new: Option<&NewValue<'_>>,
) -> Result<bool, Error> {
    check_role(server)?;
    end_what_ran_out(server, key);
    let done = match (take(server, key, token), new) {
        (Some((fate, began)), Some(new)) => store(server, key, new, fate, began),
        (taken, _) => {
            remove(server, key);
            Ok(taken.is_some_and(|(fate, _)| fate == Fate::Alone))
        }
    };
    let is_over = close(server, key);
    if let (true, Some(new), Ok(true) | Err(Error::OutOfMemory)) = (is_over, new, &done) {
        value_came(server, key, new.value);
    }
    settle(server, key);
    let counters = &mut server.state().cache.counters;
    let counter = if done == Ok(true) { &mut counters.commits } else { &mut counters.commits_refused };
    *counter = counter.saturating_add(1);
    done
}

/// The write came to nothing: the old value stands again. Whether the intent was open.
pub(super) fn roll_back<S: Server>(server: &mut S, key: Arg<'_>, token: Arg<'_>) -> Result<bool, Error> {
    check_role(server)?;
    end_what_ran_out(server, key);
    let taken = take(server, key, token).is_some();
    close(server, key);
    settle(server, key);
    Ok(taken)
}

/// Deals with one key of which an intent has run out. Whether there may be more.
pub(super) fn due<S: Server>(server: &mut S) -> bool {
    let now = server.now().to_ms();
    let Some(Name { db, key }) = server.state().cache.intents.next_due(now) else { return false };
    server.select(db);
    let key = Arg::named(&key);
    end_what_ran_out(server, key);
    settle(server, key);
    true
}

/// How CACHE reads see the key.
#[inline]
pub(super) fn standing<S: Server>(server: &mut S, key: Arg<'_>) -> Standing {
    if server.state().cache.intents.is_empty() {
        return Standing::Settled;
    }
    let (db, now) = (server.db(), server.now().to_ms());
    let now = (!server.is_replica()).then_some(now);
    server.state().cache.intents.standing(db, key.bytes, now)
}

/// No replica gives intents out, also one that may be written to: nothing runs out there.
fn check_role<S: Server>(server: &S) -> Result<(), Error> {
    if server.is_replica() { Err(Error::ReadOnly) } else { Ok(()) }
}

/// Removes the key if an intent of it has run out: what became of that write is not known. Whether one has. The caller settles
/// the queue.
fn end_what_ran_out<S: Server>(server: &mut S, key: Arg<'_>) -> bool {
    if server.state().cache.intents.is_empty() {
        return false;
    }
    let (db, now) = (server.db(), server.now().to_ms());
    let cache = &mut server.state().cache;
    let ended = cache.intents.run_out(db, key.bytes, now);
    if ended == 0 {
        return false;
    }
    cache.counters.intent_timeouts = cache.counters.intent_timeouts.saturating_add(ended as u64);
    remove(server, key);
    close(server, key);
    true
}

/// Takes the intent of this token out, if the key has it.
fn take<S: Server>(server: &mut S, key: Arg<'_>, token: Arg<'_>) -> Option<(Fate, Began)> {
    let db = server.db();
    if server.notice_slot(key.bytes).is_some() {
        // Whatever was begun here while the slot was here before.
        server.state().cache.intents.spoil(db, key.bytes, None);
    }
    let cache = &mut server.state().cache;
    let token = Token::parse(token.bytes).filter(|token| token.epoch == cache.leases.epoch)?;
    let (fate, began) = cache.intents.take(db, key.bytes, token.number)?;
    // A giant tag is invalidated without a look at its keys: whether that took this one is found here.
    let retired = cache.retired(db, key.bytes).is_some_and(|retired| retired.number > began.retirement);
    Some((if retired { Fate::Spoiled } else { fate }, began))
}

/// Stores the new value, or removes the key. Whether it was stored.
fn store<S: Server>(server: &mut S, key: Arg<'_>, new: &NewValue<'_>, fate: Fate, began: Began) -> Result<bool, Error> {
    let (db, options) = (server.db(), &new.options);
    let safe = match (fate, options.version) {
        (Fate::Contested { stored: Some(stored) }, Some(version)) if version <= stored => return Ok(false),
        (Fate::Alone, _) | (Fate::Contested { .. }, Some(_)) => !tag_was_invalidated(server, began, options),
        (Fate::Contested { .. }, None) | (Fate::Spoiled, _) => false,
    };
    if safe && !is_newer(server, key, options) {
        remove(server, key);
        // Another one that is open may bring what is newer still.
        server.state().cache.intents.stored(db, key.bytes, None, None);
        return Ok(false);
    }
    if !safe || !condition_met(server, key, options) {
        remove(server, key);
        return Ok(false);
    }
    if server.memory_full(key) {
        remove(server, key);
        return Err(Error::OutOfMemory);
    }
    let life = write::store(server, key, new.value, new.expires, options, 0)?;
    write::replicate(server, key, new.value, life, options);
    server.state().cache.intents.stored(db, key.bytes, options.version, life.map(Lifetime::hard));
    Ok(true)
}

/// Was any of the tags that the new value is to carry invalidated since the write began? It may have been made from what they
/// stand for.
fn tag_was_invalidated<S: Server>(server: &mut S, began: Began, options: &WriteOptions<'_>) -> bool {
    let tags = options.tags.iter().map(|tag| tag.bytes);
    began.fence.is_none_or(|(db, at)| server.state().cache.leases.tag_hit(db, at, tags).is_some())
}

/// Removes the key as an invalidation does: no load and no other intent that is under way may store.
fn remove<S: Server>(server: &mut S, key: Arg<'_>) {
    revoke(server, &[key.bytes]);
    server.invalidate(&[key.bytes]);
}

/// Makes the key visible again if its last intent is over. Whether it is visible.
fn close<S: Server>(server: &mut S, key: Arg<'_>) -> bool {
    let db = server.db();
    let cache = &mut server.state().cache;
    if !cache.end_intents(db, key.bytes) {
        return !cache.intents.holds(db, key.bytes);
    }
    server.replicate("KEYWARD.APPLY", &[Word::Text("NOINTENT"), Word::Arg(key)]);
    reads_change(server, key);
    true
}

/// Repeats what the primary says: the key is being written in the database, or no more.
pub(super) fn apply<S: Server>(server: &mut S, key: Arg<'_>, open: bool) {
    let db = server.db();
    let cache = &mut server.state().cache;
    if open {
        cache.intents.adopt(db, key.bytes);
    } else {
        cache.end_intents(db, key.bytes);
    }
    reads_change(server, key);
}

/// CACHE reads answer something else from now on: client-side caches must not keep what they answered before.
fn reads_change<S: Server>(server: &mut S, key: Arg<'_>) {
    if server.exists(key.bytes) {
        server.changed(key);
    }
}

impl State {
    /// Database writes that are under way; of those that the primary or a file told of, the keys.
    pub fn intents(&self) -> usize {
        self.intents.len()
    }

    /// Whether the last intent of the key is over, which it has none of from now on.
    fn end_intents(&mut self, db: usize, key: &[u8]) -> bool {
        let Some(began) = self.intents.close(db, key) else { return false };
        self.forget_beginning(began);
        true
    }

    /// No intent asks any more what came since then.
    pub(super) fn forget_beginning(&mut self, began: Began) {
        if let Some((db, at)) = began.fence {
            self.leases.close_fence(db, at);
        }
    }
}
