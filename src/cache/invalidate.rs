//! Invalidation by key and by tag: of the commands that name them, and of events.

use smallvec::SmallVec;

use super::reclaim::BATCH;
use super::{reclaim, single_flight};
use crate::args::Arg;
use crate::server::{Server, Word};

type Names<'a> = SmallVec<[&'a [u8]; 16]>;

/// Removes keys and ends their leases. How many were there; keys that a tag invalidated before are removed too, but were counted
/// then.
pub(super) fn keys<S: Server>(server: &mut S, keys: &[&[u8]]) -> usize {
    let db = server.db();
    single_flight::revoke(server, keys);
    let cache = &server.state().cache;
    let (retired, live): (Names<'_>, Names<'_>) = if cache.has_retired() {
        keys.iter().copied().partition(|key| cache.is_retired(db, key))
    } else {
        (Names::new(), SmallVec::from_slice(keys))
    };
    for batch in retired.chunks(BATCH) {
        server.invalidate(batch);
    }
    let mut removed: usize = 0;
    for batch in live.chunks(BATCH) {
        removed = removed.saturating_add(server.invalidate(batch));
    }
    let counters = &mut server.state().cache.counters;
    counters.invalidations = counters.invalidations.saturating_add(removed as u64);
    counters.invalidated_keys = counters.invalidated_keys.saturating_add(removed as u64);
    removed
}

/// First all keys of all the tags are invalid, in O(tags). Then as many as the setting allows are removed, and what is left is
/// counted and left to the reclaimer.
pub(super) fn tags<S: Server>(server: &mut S, tags: &[Arg<'_>]) -> usize {
    let db = server.db();
    single_flight::fence_tags(server, tags);
    let retirements = retire(server, db, tags);
    let Some(&first) = retirements.first() else { return 0 };
    let mut budget = usize::try_from(server.state().config.invalidate_sync_keys).unwrap_or(0);
    let mut removed: usize = 0;
    for &retirement in &retirements {
        while budget > 0 {
            let keys = reclaim::listed(server, db, retirement, budget);
            if keys.is_empty() {
                break;
            }
            budget = budget.saturating_sub(keys.len());
            removed = removed.saturating_add(remove_live(server, db, keys, first));
        }
    }
    let later = retirements
        .iter()
        .fold(0_usize, |sum, &retirement| sum.saturating_add(reclaim::left_of(server, db, retirement)));
    let counters = &mut server.state().cache.counters;
    counters.invalidations = counters.invalidations.saturating_add(retirements.len() as u64);
    counters.invalidated_keys = counters.invalidated_keys.saturating_add(removed as u64);
    removed.saturating_add(later)
}

/// Removes keys, and the keys of tags, for an event, which is why they went.
pub(super) fn event<S: Server>(server: &mut S, event: &[u8], names: &[&[u8]], of_tags: &[Arg<'_>]) -> usize {
    server.state().cache.emitting = Some(event.into());
    let removed = keys(server, names).saturating_add(tags(server, of_tags));
    server.state().cache.emitting = None;
    removed
}

/// Invalidates the keys of each tag and replicates that. The numbers of the retirements, growing.
fn retire<S: Server>(server: &mut S, db: usize, tags: &[Arg<'_>]) -> SmallVec<[u64; 8]> {
    let now = server.now().to_ms();
    let cache = &mut server.state().cache;
    let mut retirements: SmallVec<[u64; 8]> = SmallVec::new();
    let mut words: SmallVec<[Word<'_>; 8]> = SmallVec::from_slice(&[Word::Text("RETIRE"), Word::Int(now.0)]);
    for &tag in tags {
        let (retired, any) = cache.retire(db, tag.bytes, now);
        retirements.extend(retired.iter().map(|retirement| retirement.number));
        words.extend(any.then_some(Word::Arg(tag)));
    }
    retirements.sort_unstable();
    if words.len() > 2 {
        server.replicate("KEYWARD.APPLY", &words);
    }
    retirements
}

/// Removes keys, and tells how many of them no earlier invalidation than `first` had taken.
fn remove_live<S: Server>(server: &mut S, db: usize, keys: Vec<Box<[u8]>>, first: u64) -> usize {
    let Some(database) = server.state().cache.databases.get(&db) else { return 0 };
    let (counted, live): (Vec<_>, Vec<_>) =
        keys.into_iter().partition(|key| database.tags.is_retired_before(key, first));
    let names = |keys| Vec::from_iter(<[Box<[u8]>]>::iter(keys).map(|key| &**key));
    reclaim::remove(server, db, &names(&counted));
    reclaim::remove(server, db, &names(&live))
}
