//! Removing what was invalidated: within a command up to `invalidate-sync-keys`, the rest later, slice by slice. And the
//! slow check that nothing is known here that the keyspace does not have.

use super::staleness;
use super::tag_index::TagIndex;
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::server::Server;

/// How many keys one UNLINK takes.
pub(super) const BATCH: usize = 512;

/// Where the check for ghosts goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct GhostWalk {
    db: usize,
    /// Cursors of the keys with tags and of those with a soft expiry; `None`: they are through.
    tagged: Option<u64>,
    aging: Option<u64>,
}

impl Default for GhostWalk {
    fn default() -> GhostWalk {
        GhostWalk { db: 0, tagged: Some(0), aging: Some(0) }
    }
}

/// Deals with up to `max_keys` retired keys, in the database that has some, which is selected: removes them, or makes them
/// stale. Whether it is worth to go on: `false` if nothing is left, or if nothing could be done. Only for a primary that may
/// write.
pub fn reclaim<S: Server>(server: &mut S, max_keys: usize) -> bool {
    if let Some((db, key)) = server.state().cache.doomed.pop() {
        server.select(db);
        server.unlink(&[&key]);
        return server.state().cache.has_retired();
    }
    let oldest = |(&db, database): (&usize, &super::database::Database)| Some((db, database.tags.oldest_retirement()?));
    let Some((db, retirement)) = server.state().cache.databases.iter().find_map(oldest) else { return false };
    server.select(db);
    let mut done: usize = 0;
    while done < max_keys {
        let keys = listed(server, db, retirement, max_keys.saturating_sub(done));
        let before = left_of(server, db, retirement);
        let names: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
        let removed = match stale_since(server, db, retirement) {
            Some(at) => make_stale_later(server, db, retirement, &names, at),
            None => remove(server, db, &names),
        };
        let counters = &mut server.state().cache.counters;
        counters.invalidated_keys = counters.invalidated_keys.saturating_add(removed as u64);
        if left_of(server, db, retirement) >= before {
            break;
        }
        done = done.saturating_add(keys.len());
    }
    done > 0 && server.state().cache.has_retired()
}

/// How many keys of a retirement are still to be removed.
pub(super) fn left_of<S: Server>(server: &mut S, db: usize, retirement: u64) -> usize {
    server.state().cache.databases.get(&db).map_or(0, |database| database.tags.left_of(retirement))
}

/// Names of keys that a retirement took, one batch or `max`.
pub(super) fn listed<S: Server>(server: &mut S, db: usize, retirement: u64, max: usize) -> Vec<Box<[u8]>> {
    let mut keys = Vec::new();
    if let Some(database) = server.state().cache.databases.get(&db) {
        database.tags.retired_keys(retirement, max.min(BATCH), &mut keys);
    }
    keys
}

fn stale_since<S: Server>(server: &mut S, db: usize, retirement: u64) -> Option<UnixMs> {
    server.state().cache.databases.get(&db)?.tags.stale_since(retirement)
}

/// A lease that is younger than the retirement is about the value as it is since then.
pub(super) fn make_stale_later<S: Server>(
    server: &mut S,
    db: usize,
    retirement: u64,
    keys: &[&[u8]],
    at: UnixMs,
) -> usize {
    for key in keys {
        server.state().cache.revoke(db, key, Some(retirement));
    }
    staleness::make_stale(server, keys, at)
}

/// Unlinks keys that were invalidated before, batch by batch, and sees to it that they are forgotten. How many were there.
pub(super) fn remove<S: Server>(server: &mut S, db: usize, keys: &[&[u8]]) -> usize {
    let mut removed: usize = 0;
    for batch in keys.chunks(BATCH) {
        server.state().cache.reclaiming = true;
        removed = removed.saturating_add(server.invalidate(batch));
        server.state().cache.reclaiming = false;
        for key in batch {
            forget_if_gone(server, db, key);
        }
    }
    removed
}

/// Looks whether up to `budget` keys with tags, and as many with a soft expiry, exist, and forgets those that do not: on Redis
/// 7.0 the keys of a slot that another node took over vanish without an event. Only for a primary, where a key that has expired
/// is removed on sight. False when it has been through all there is.
pub fn check_ghosts<S: Server>(server: &mut S, budget: usize) -> bool {
    let cache = &mut server.state().cache;
    let GhostWalk { db, tagged, aging } = cache.ghost_walk;
    let Some((&db, database)) = cache.databases.range(db..).next() else {
        cache.ghost_walk = GhostWalk::default();
        return false;
    };
    let (tagged, keys) = tagged.map_or((0, Vec::new()), |cursor| database.tags.sample(cursor, budget));
    let (aging, more) = aging.map_or((0, Vec::new()), |cursor| database.freshness.sample(cursor, budget));
    let keys: Vec<Box<[u8]>> = keys.into_iter().map(Box::from).chain(more).collect();
    let next = |cursor: u64| Some(cursor).filter(|&cursor| cursor != 0);
    cache.ghost_walk = match (next(tagged), next(aging)) {
        (None, None) => GhostWalk { db: db.saturating_add(1), ..GhostWalk::default() },
        (tagged, aging) => GhostWalk { db, tagged, aging },
    };
    server.select(db);
    for key in &keys {
        forget_if_gone(server, db, key);
    }
    true
}

/// A key that is still known here was either not removed, and stays, or is a ghost.
pub(super) fn forget_if_gone<S: Server>(server: &mut S, db: usize, key: &[u8]) {
    let known = |server: &mut S| server.state().cache.databases.get(&db).is_some_and(|d| d.knows(key));
    if !known(server) || server.exists(key) {
        return;
    }
    // With its slot, which another node took over: Redis 7.0 tells nobody, and Redis 8.4 not yet. The other node may still ask.
    let lost = !server.serves(Arg::named(key));
    let now = server.now().to_ms();
    let cache = &mut server.state().cache;
    if lost {
        cache.departs_with_slot(db, key, now);
    }
    // The look may have found that the key had expired, and forgotten it.
    let forgotten = cache.databases.get_mut(&db).is_some_and(|database| database.forget(key));
    cache.counters.ghosts = cache.counters.ghosts.saturating_add(u64::from(forgotten && !lost));
}

impl TagIndex {
    /// Has the key any tags, retired ones included?
    pub(super) fn knows(&self, key: &[u8]) -> bool {
        self.find(self.hash(key), key).is_some()
    }

    /// Was the key invalidated before this retirement already?
    pub(super) fn is_retired_before(&self, key: &[u8], retirement: u64) -> bool {
        let id = self.find(self.hash(key), key);
        id.into_iter().flat_map(|id| self.memberships(id)).any(|membership| {
            let of = self.tags.cohort(membership.cohort).map_or(0, |cohort| cohort.retirement);
            (1..retirement).contains(&of)
        })
    }

    fn left_of(&self, retirement: u64) -> usize {
        self.tags.retired_cohort(retirement).map_or(0, |cohort| cohort.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::set::Set;
    use crate::cluster::{Question, Verdict};
    use crate::config::Config;
    use crate::fake_server::FakeServer;

    /// Two keys in each of two databases, the first of which vanishes without an event.
    fn haunted() -> FakeServer {
        let mut server = FakeServer::new();
        for db in [0, 4] {
            server.db = db;
            server.call::<Set>("CACHE.SET ghost v TAGS 1 t").unwrap();
            server.call::<Set>("CACHE.SET key v TAGS 1 t").unwrap();
            server.keys.remove(&(db, b"ghost".to_vec()));
        }
        server
    }

    #[test]
    fn the_check_goes_round_all_databases_and_forgets_only_ghosts() {
        let mut server = haunted();
        for _ in 0..6 {
            check_ghosts(&mut server, 1);
        }
        assert_eq!((server.state.cache.tagged_keys(), server.state.cache.counters.ghosts), (2, 2));
    }

    #[test]
    fn who_has_a_slot_now_is_still_told_of_a_key_that_went_without_an_event() {
        let mut server = haunted();
        server.moved.push(b"ghost".to_vec());
        for _ in 0..6 {
            check_ghosts(&mut server, 1);
        }
        assert_eq!((server.state.cache.tagged_keys(), server.state.cache.counters.ghosts), (2, 0));
        let question = Question { db: 0, key: b"ghost"[..].into(), number: 1, age_ms: 1 };
        let answers = server.state.cache.answer(vec![question], true, server.now.to_ms().plus(1));
        assert_eq!(answers[0].verdict, Verdict::Known);
    }

    #[test]
    fn ghosts_do_not_keep_the_reclaimer_busy() {
        let mut server = haunted();
        let now = server.now.to_ms();
        server.state.cache.retire(0, b"t", now);
        server.state.cache.retire(4, b"t", now);
        assert!(reclaim(&mut server, 100), "the other database is left");
        assert!(!reclaim(&mut server, 100));
        assert!(server.keys.is_empty() && !server.state.cache.has_retired());
        let counters = server.state.cache.counters;
        assert_eq!((counters.ghosts, counters.invalidated_keys), (2, 2));
    }

    #[test]
    fn a_key_that_no_tag_would_reach_is_removed() {
        let mut server = FakeServer::new();
        server.put_string("k", "v");
        server.state.cache.doomed.push((0, b"k"[..].into()));
        server.state.cache.sweep(&Config::default(), UnixMs(0), 1);
        server.db = 3;
        assert!(server.state.cache.has_retired() && !reclaim(&mut server, 100));
        assert!(server.keys.is_empty() && server.state.cache.backlog() == 0);
    }
}
