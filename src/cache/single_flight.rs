//! Single flight: of all who miss a key one is told to load it, the others wait and are answered by that load.
//!
//! Every event that concerns those who wait ends in [`answer_all`] (the value has come) or [`settle`] (a load has ended some
//! other way). Nobody polls; what no command brings about, a timer does: [`due`].

use std::rc::Rc;

use smallvec::{SmallVec, smallvec};

use super::jobs::Reason;
use super::lease::{Order, Token};
use super::leases::{Hold, Role, Seat, Terms};
use super::read::{Cached, count_read, look};
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
            Outcome::Hit(value) => Reply::Found("HIT", server.bytes(value)),
            Outcome::Refresh(value, token) => reply("REFRESH", bytes(value), Some(token)),
            Outcome::Stale(value) => Reply::Found("STALE", server.bytes(value)),
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
