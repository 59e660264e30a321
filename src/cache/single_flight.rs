//! Single flight: of all who miss a key one is told to load it, the others wait and are answered by that load.
//!
//! Every event that concerns those who wait ends in [`answer_all`](super::waiters::answer_all) (the value has come) or in [`settle`] (a
//! load has ended some other way). Nobody polls; what no command brings about, a timer does: [`due`].

use std::rc::Rc;

use smallvec::{SmallVec, smallvec};

use super::jobs::Reason;
use super::lease::{Order, Terms, Token};
use super::leases::Hold;
use super::read::{Cached, count_read, look};
use super::waiters::settle;
use super::{early_refresh, loaders, write_through};
use crate::args::Arg;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::{Expiry, Server, StringValue, Word};

/// What a caller asks for besides the key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    /// Who loads?
    pub by: By<'a>,
    /// May a stale value be the answer?
    pub stale_ok: bool,
    /// Of [`early_refresh`]; 0 is off.
    pub beta: f64,
}

/// Who loads the key if somebody has to.
#[derive(Clone, Copy, Debug)]
pub(super) enum By<'a> {
    /// The caller, with a lease of so many milliseconds.
    Caller { lease_ms: i64 },
    /// A loader of this name.
    Loader(&'a [u8]),
}

/// What a caller is told.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Hit(StringValue),
    /// Elected, with a value to go on with.
    Refresh(StringValue, Token),
    Stale(StringValue),
    /// Elected. `None`: to load, but not to fill, since too many leases are out.
    Miss(Option<Token>),
    /// The origin is known to have nothing.
    Nothing,
    /// Somebody else loads.
    Busy,
    Failed(Rc<[u8]>),
}

/// The reply of FETCH: status, value, token.
pub(super) fn reply<'s>(status: &'static str, value: Reply<'s>, token: Option<Token>) -> Reply<'s> {
    let token = token.map_or(Reply::Nil, |token| Reply::OwnedBytes(token.to_bytes()));
    Reply::Array(vec![Reply::Word(status), value, token])
}

/// The reply to one who waited in vain.
pub(super) fn busy() -> Reply<'static> {
    reply("BUSY", Reply::Nil, None)
}

impl Outcome {
    /// Was the caller given a value that is not known to be stale? One that is stale and was to be refreshed is a `REFRESH` too.
    pub fn is_hit(&self) -> bool {
        matches!(self, Outcome::Hit(_) | Outcome::Refresh(..))
    }

    #[inline(always)]
    pub fn into_reply<S: Server>(self, server: &S) -> Reply<'_> {
        let bytes = |value| Reply::Bytes(server.bytes(value));
        match self {
            Outcome::Hit(value) => Reply::Hit(server.bytes(value)),
            Outcome::Refresh(value, token) => reply("REFRESH", bytes(value), Some(token)),
            Outcome::Stale(value) => reply("STALE", bytes(value), None),
            Outcome::Miss(token) => reply("MISS", Reply::Nil, token),
            Outcome::Nothing => reply("NONE", Reply::Nil, None),
            Outcome::Busy => busy(),
            Outcome::Failed(message) => reply("ERROR", Reply::Shared(message), None),
        }
    }
}

/// A key as a caller finds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    cached: Cached,
    /// Where an early refresh is asked for and could be due; else `Never`.
    expires: Expiry,
}

/// Looks a key up. `WrongType` if it holds no string.
#[inline(always)]
pub(super) fn find<S: Server>(server: &mut S, key: Arg<'_>, wish: Wish<'_>) -> Result<Found, Error> {
    // First the expiry: to ask for it opens the key anew.
    let expires = if wish.beta > 0.0 { hard_expiry(server, key) } else { Expiry::Never };
    Ok(Found { cached: look(server, key)?, expires })
}

/// Decides what one caller is told of the key that was found, and takes the lease if he is elected. Counts.
#[inline]
pub(super) fn decide<S: Server>(server: &mut S, key: Arg<'_>, found: Found, wish: Wish<'_>) -> Result<Outcome, Error> {
    match hit(server, key, found, wish) {
        Some(value) => Ok(Outcome::Hit(value)),
        None => decide_otherwise(server, key, found, wish),
    }
}

/// The value, where what was found can be nothing but a hit. The short way, which most reads go. Counts.
#[inline(always)]
pub(super) fn hit<S: Server>(server: &mut S, key: Arg<'_>, found: Found, wish: Wish<'_>) -> Option<StringValue> {
    let Cached::Fresh(value) = found.cached else { return None };
    if wish.beta > 0.0 {
        return None;
    }
    count_read(server, key);
    server.state().cache.count(key.bytes, 1, |counters| &mut counters.hits);
    Some(value)
}

/// The long way.
#[inline(never)]
fn decide_otherwise<S: Server>(server: &mut S, key: Arg<'_>, found: Found, wish: Wish<'_>) -> Result<Outcome, Error> {
    count_read(server, key);
    let Found { cached, expires } = found;
    let outcome = match cached {
        Cached::Fresh(value) if wish.beta > 0.0 && elected_early(server, key, expires, wish.beta) => {
            refresh_early(server, key, value, wish)
        }
        Cached::Fresh(value) => Outcome::Hit(value),
        Cached::Stale(value) if wish.stale_ok => stale(server, key, value, wish),
        Cached::Stale(_) => missing(server, key, wish, true)?,
        Cached::Deleted => Outcome::Nothing,
        Cached::Pending if server.is_replica() => return Err(Error::ReadOnly),
        Cached::Pending => Outcome::Busy,
        Cached::Missing if is_negative(server, key) => Outcome::Nothing,
        Cached::Missing => missing(server, key, wish, false)?,
    };
    server.state().cache.count(key.bytes, 1, |counters| match outcome {
        Outcome::Hit(_) => &mut counters.hits,
        Outcome::Refresh(..) if matches!(cached, Cached::Fresh(_)) => &mut counters.hits,
        Outcome::Refresh(..) | Outcome::Stale(_) => &mut counters.stale_hits,
        Outcome::Nothing => &mut counters.none_hits,
        Outcome::Miss(_) | Outcome::Busy | Outcome::Failed(_) => &mut counters.misses,
    });
    Ok(outcome)
}

pub(super) fn is_negative<S: Server>(server: &mut S, key: Arg<'_>) -> bool {
    let (db, now) = (server.db(), server.now().to_ms());
    if !server.state().cache.is_negative(db, key.bytes, now) {
        return false;
    }
    let visiting = server.notice_slot(key.bytes);
    let cache = &server.state().cache;
    visiting.is_none() && cache.is_negative(db, key.bytes, now) && !cache.intents.holds(db, key.bytes)
}

fn hard_expiry<S: Server>(server: &mut S, key: Arg<'_>) -> Expiry {
    let db = server.db();
    match server.state().cache.freshness(db, key.bytes) {
        Some(known) if known.load_us > 0 => server.expiry(key),
        _ => Expiry::Never,
    }
}

fn elected_early<S: Server>(server: &mut S, key: Arg<'_>, expires: Expiry, beta: f64) -> bool {
    let db = server.db();
    let Some(known) = server.state().cache.freshness(db, key.bytes).filter(|known| known.load_us > 0) else {
        return false;
    };
    if server.state().dirty(db, key.bytes).is_some() {
        // It is newer than what would be loaded.
        return false;
    }
    let end = match expires {
        Expiry::At(hard) => known.soft.min(hard),
        Expiry::Never | Expiry::NoKey => known.soft,
    };
    let (left_ms, draw) = (end.since(server.now().to_ms()), server.random(early_refresh::DRAW));
    early_refresh::elects(left_ms, beta, known.load_us, draw)
}

fn refresh_early<S: Server>(server: &mut S, key: Arg<'_>, value: StringValue, wish: Wish<'_>) -> Outcome {
    let held = server.is_replica() || hold(server, key).is_some();
    match if held { None } else { elect_caller(server, key, wish, Reason::Ahead) } {
        Some(token) => {
            server.state().cache.count(key.bytes, 1, |counters| &mut counters.early_refreshes);
            Outcome::Refresh(value, token)
        }
        None => Outcome::Hit(value),
    }
}

/// A stale value is served to all but one.
fn stale<S: Server>(server: &mut S, key: Arg<'_>, value: StringValue, wish: Wish<'_>) -> Outcome {
    let held = server.is_replica() || hold(server, key).is_some();
    match if held { None } else { elect_caller(server, key, wish, Reason::Stale) } {
        Some(token) => Outcome::Refresh(value, token),
        None => Outcome::Stale(value),
    }
}

fn missing<S: Server>(server: &mut S, key: Arg<'_>, wish: Wish<'_>, has_value: bool) -> Result<Outcome, Error> {
    if server.is_replica() {
        return Err(Error::ReadOnly);
    }
    Ok(match hold(server, key) {
        Some(Hold::Loading) => Outcome::Busy,
        Some(Hold::Failed(message)) => Outcome::Failed(message),
        None => match wish.by {
            By::Caller { lease_ms } => Outcome::Miss(begin(server, key, lease_ms, has_value, None)),
            By::Loader(loader) => {
                loaders::want(server, loader, key.bytes, Reason::Miss);
                Outcome::Busy
            }
        },
    })
}

/// Gives the load of a key that has a value to the caller, or to the loader he named: then he gets no token.
fn elect_caller<S: Server>(server: &mut S, key: Arg<'_>, wish: Wish<'_>, reason: Reason) -> Option<Token> {
    match wish.by {
        By::Caller { lease_ms } => begin(server, key, lease_ms, true, None),
        By::Loader(loader) => {
            loaders::want(server, loader, key.bytes, reason);
            None
        }
    }
}

/// What keeps callers from loading the key. First whatever has run out goes, and those who wait come before this one.
pub(super) fn hold<S: Server>(server: &mut S, key: Arg<'_>) -> Option<Hold> {
    let db = server.db();
    if server.state().cache.intents.holds(db, key.bytes) {
        return Some(Hold::Loading);
    }
    if server.state().cache.leases.is_idle() {
        return None;
    }
    end_what_ran_out(server, db, key.bytes);
    revoke_if_retired(server, db, key.bytes);
    let now = server.now().to_ms();
    let hold = server.state().cache.leases.hold(db, key.bytes, now)?;
    revoke_if_slot_was_away(server, db, key.bytes);
    Some(hold).filter(|_| server.state().cache.leases.hold(db, key.bytes, now).is_some())
}

/// A giant tag is invalidated without a look at its keys: whether that took this one is found here.
fn revoke_if_retired<S: Server>(server: &mut S, db: usize, key: &[u8]) {
    let cache = &mut server.state().cache;
    if let Some(retired) = cache.retired(db, key) {
        cache.leases.revoke(db, key, Some(retired.number));
    }
}

/// While the slot was away the key may have been changed: what is loaded since before must not answer those who come now.
pub(super) fn revoke_if_slot_was_away<S: Server>(server: &mut S, db: usize, key: &[u8]) {
    let visiting = server.notice_slot(key);
    server.state().cache.leases.revoke_unless(db, key, visiting);
}

/// Gives out a lease of a key that has none. `refresh`: it has a value. `order`: a loader gets it. `None`: too many are out.
pub(super) fn begin<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    lease_ms: i64,
    refresh: bool,
    order: Option<Order>,
) -> Option<Token> {
    let (db, now) = (server.db(), server.now());
    let visiting = server.notice_slot(key.bytes);
    let state = server.state();
    let max = usize::try_from(state.config.leases_max).unwrap_or(0);
    let cache = &mut state.cache;
    let mark = cache.policies.find(key.bytes).map(|policy| policy.stats.load_mark.clone());
    let terms = Terms { now, lease_ms, refresh, retirement: cache.retirements(db), visiting, order, mark };
    let token = cache.leases.begin(db, key.bytes, terms, max);
    cache.count(key.bytes, 1, |counters| match token {
        Some(_) => &mut counters.leases_granted,
        None => &mut counters.leases_full,
    });
    token
}

/// Ends the loads of the key whose time is over, and finds somebody else for those who wait.
pub(super) fn end_what_ran_out<S: Server>(server: &mut S, db: usize, key: &[u8]) {
    let now = server.now().to_ms();
    let cache = &mut server.state().cache;
    let ended = cache.leases.run_out(db, key, now);
    if ended.is_empty() {
        return;
    }
    cache.count(key, ended.len() as u64, |counters| &mut counters.lease_timeouts);
    for Order { loader, reason } in
        ended.into_iter().filter(|load| load.revoked.is_none()).filter_map(|load| load.order)
    {
        loaders::want(server, &loader, key, reason);
    }
    settle(server, Arg::named(key));
}

/// Deals with one key of which something has run out. Whether there may be more. Only for a primary that may write.
pub fn due<S: Server>(server: &mut S) -> bool {
    if write_through::due(server) || loaders::due(server) {
        return true;
    }
    let now = server.now().to_ms();
    let Some((db, key)) = server.state().cache.leases.next_due(now) else { return false };
    server.select(db);
    end_what_ran_out(server, db, &key);
    settle(server, Arg::named(&key));
    true
}

/// Keys were invalidated by name: their leases are over, also where there is no key, writes that are under way must not store,
/// and the origin may have something again.
pub(super) fn revoke<S: Server>(server: &mut S, keys: &[&[u8]]) {
    let db = server.db();
    let mut ended: SmallVec<[Word<'_>; 16]> = smallvec![Word::Text("NONEGATIVE")];
    let cache = &mut server.state().cache;
    for &key in keys {
        cache.revoke(db, key, None);
        if cache.end_negative(db, key) {
            ended.push(Word::Bytes(key));
        }
    }
    if ended.len() > 1 {
        server.replicate("KEYWARD.APPLY", &ended);
    }
}

/// Tags were invalidated: what is being loaded with any of them must not be stored.
pub(super) fn fence_tags<S: Server>(server: &mut S, tags: &[Arg<'_>]) {
    let db = server.db();
    let state = server.state();
    for tag in tags {
        state.cache.fence_tag(&state.config, db, tag.bytes);
    }
}
