//! Soft invalidation: a value becomes stale now, and what grace it has begins. A value without a grace is removed.

use smallvec::{SmallVec, smallvec};

use super::freshness::{Freshness, fingerprint};
use super::{reclaim, single_flight};
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::server::{Expiry, Server, Word};

/// What STALE makes of a key.
enum Verdict {
    /// There is no such key.
    Missing,
    /// It was stale already.
    Unchanged,
    /// It was invalidated before.
    Dead,
    /// It has no grace.
    Removed,
    Stale(Freshness, UnixMs),
}

/// Makes values stale as of `at`, in the selected database, and replicates that. How many became stale or, having no grace,
/// were removed.
pub(super) fn make_stale<S: Server>(server: &mut S, keys: &[&[u8]], at: UnixMs) -> usize {
    let db = server.db();
    let mut words: SmallVec<[Word<'_>; 16]> = smallvec![Word::Text("STALE"), Word::Int(at.0)];
    let (mut removed, mut dead, mut count) = (Vec::new(), Vec::new(), 0_usize);
    for &key in keys {
        match judge(server, db, key, at) {
            Verdict::Missing => reclaim::forget_if_gone(server, db, key),
            Verdict::Unchanged => spare(server, db, key),
            Verdict::Dead => dead.push(key),
            Verdict::Removed => removed.push(key),
            Verdict::Stale(fresh, hard) => {
                apply(server, db, key, fresh, Some(hard));
                server.announce(c"cache.stale", Arg::named(key));
                words.extend([Word::Bytes(key), Word::Int(hard.0)]);
                count = count.saturating_add(1);
            }
        }
    }
    if count > 0 {
        server.replicate("KEYWARD.APPLY", &words);
    }
    reclaim::remove(server, db, &dead);
    count.saturating_add(reclaim::remove(server, db, &removed))
}

/// As for CACHE.INVALIDATETAG: first all keys of all the tags are stale, in O(tags); then as many as the setting allows are
/// marked so one by one, and the rest is left to the reclaimer. How many they are.
pub(super) fn tags<S: Server>(server: &mut S, tags: &[Arg<'_>]) -> usize {
    let (db, now) = (server.db(), server.now().to_ms());
    single_flight::fence_tags(server, tags);
    let mut retirements: SmallVec<[u64; 8]> = SmallVec::new();
    let mut words: SmallVec<[Word<'_>; 8]> = SmallVec::from_slice(&[Word::Text("STALETAG"), Word::Int(now.0)]);
    for &tag in tags {
        let (retirement, any) = server.state().cache.stale(db, tag.bytes, now);
        retirements.extend(retirement.map(|retirement| retirement.number));
        words.extend(any.then_some(Word::Arg(tag)));
    }
    if words.len() > 2 {
        server.replicate("KEYWARD.APPLY", &words);
    }
    let mut budget = usize::try_from(server.state().config.invalidate_sync_keys).unwrap_or(0);
    let mut staled: usize = 0;
    for &retirement in &retirements {
        while budget > 0 {
            let keys = reclaim::listed(server, db, retirement, budget);
            let before = reclaim::left_of(server, db, retirement);
            budget = budget.saturating_sub(keys.len());
            let names: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
            staled = staled.saturating_add(reclaim::make_stale_later(server, db, retirement, &names, now));
            if reclaim::left_of(server, db, retirement) >= before {
                break;
            }
        }
    }
    let left = |server: &mut S, retirement| reclaim::left_of(server, db, retirement);
    let later = retirements.iter().fold(0_usize, |sum, &number| sum.saturating_add(left(server, number)));
    let counters = &mut server.state().cache.counters;
    counters.invalidations = counters.invalidations.saturating_add(retirements.len() as u64);
    staled.saturating_add(later)
}

/// Takes the key out of the retirement that brought it here, if one did. Without room it stays there, and is looked at again.
fn spare<S: Server>(server: &mut S, db: usize, key: &[u8]) {
    let database = server.state().cache.databases.get_mut(&db);
    if let Some(database) = database.filter(|d| d.tags.retired(key).is_some_and(|r| r.stale_since.is_some())) {
        let _ = database.tags.spare(key);
    }
}

/// The value of the key is stale from `fresh.soft` on and goes at `hard`.
pub(super) fn apply<S: Server>(server: &mut S, db: usize, key: &[u8], fresh: Freshness, hard: Option<UnixMs>) {
    let state = server.state();
    // Without room for the record the key goes: it must not be taken for fresh.
    if state.cache.set_freshness(&state.config, db, key, fresh).is_err() {
        server.unlink(&[key]);
        return;
    }
    spare(server, db, key);
    server.set_expiry(Arg::named(key), hard);
    server.changed(Arg::named(key));
}

fn judge<S: Server>(server: &mut S, db: usize, key: &[u8], at: UnixMs) -> Verdict {
    let retired = server.state().cache.retired(db, key);
    if retired.is_some_and(|retired| retired.stale_since.is_none()) {
        return Verdict::Dead;
    }
    let expiry = server.expiry(Arg::named(key));
    if expiry == Expiry::NoKey {
        return Verdict::Missing;
    }
    let Some(known) = server.state().cache.freshness(db, key).filter(|known| known.grace_ms > 0) else {
        return Verdict::Removed;
    };
    match server.string(Arg::named(key)) {
        Ok(Some(value)) if fingerprint(server.bytes(value)) == known.fingerprint => {}
        _ => return Verdict::Removed,
    }
    let at = retired.and_then(|retired| retired.stale_since).map_or(at, |since| since.min(at));
    if known.soft <= at {
        return Verdict::Unchanged;
    }
    let graced = at.plus(known.grace_ms);
    let hard = match expiry {
        Expiry::At(hard) => hard.min(graced),
        Expiry::Never | Expiry::NoKey => graced,
    };
    Verdict::Stale(Freshness { soft: at, ..known }, hard)
}
