//! SLIDING: a read sets the time to live of its key back to full.
//!
//! A read may not write: it leaves a note, and a timer writes just after it, many keys at a time. At most once per tenth of the time
//! to live, so a hot key costs no more than a cold one.

use std::collections::BTreeMap;

use smallvec::{SmallVec, smallvec};

use super::freshness::{Freshness, fingerprint};
use super::governed::ends;
use super::policies::Policy;
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::name::Name;
use crate::server::{Expiry, Server, Word};

/// Keys that were read, and are still to be given their full time to live.
#[derive(Debug, Default)]
pub struct Slides {
    noted: BTreeMap<Name, Slide>,
}

#[derive(Clone, Copy, Debug)]
struct Slide {
    read_at: UnixMs,
    ttl_ms: i64,
    /// When the key was to expire. Another expiry by now is somebody's wish, and stays.
    seen: UnixMs,
}

impl Slide {
    /// Is a tenth of the time to live over, for a value that is fresh until `soft`?
    fn is_due(self, soft: UnixMs) -> bool {
        soft.since(self.read_at) <= self.ttl_ms.saturating_sub((self.ttl_ms / 10).max(1))
    }
}

impl Slides {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.noted.is_empty()
    }

    pub fn len(&self) -> usize {
        self.noted.len()
    }

    /// Whether there was room.
    fn note(&mut self, name: Name, slide: Slide, max: usize) -> bool {
        let has_room = self.noted.len() < max || self.noted.contains_key(&name);
        if has_room {
            self.noted.insert(name, slide);
        }
        has_room
    }

    /// Takes some out, of one database.
    fn take(&mut self, most: usize) -> Option<(usize, Vec<(Name, Slide)>)> {
        let db = self.noted.first_key_value()?.0.db;
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(first) = self.noted.first_entry().filter(|first| first.key().db == db)
        {
            taken.push(first.remove_entry());
        }
        Some((db, taken))
    }

    /// One database (`Some`) or all of them are empty now.
    pub fn flushed(&mut self, db: Option<usize>) {
        self.noted.retain(|name, _| db.is_some_and(|db| db != name.db));
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        let noted = std::mem::take(&mut self.noted);
        self.noted = noted.into_iter().map(|(name, slide)| (name.swapped(a, b), slide)).collect();
    }

    /// This server is a replica now: the new primary sees the reads.
    pub fn demoted(&mut self) {
        self.noted.clear();
    }
}

/// A client was given the fresh value of a key of this policy.
pub(super) fn read<S: Server>(server: &mut S, key: Arg<'_>, policy: &Policy) {
    let Some(ttl_ms) = policy.terms.ttl_ms.filter(|_| policy.sliding && !server.is_replica()) else { return };
    let Some((soft, hard)) = ends(server, key) else { return };
    let (db, read_at) = (server.db(), server.now().to_ms());
    let slide = Slide { read_at, ttl_ms, seen: hard };
    if !slide.is_due(soft) {
        return;
    }
    let state = server.state();
    let max = usize::try_from(state.config.slides_max).unwrap_or(usize::MAX);
    if !state.cache.slides.note(Name { db, key: key.bytes.into() }, slide, max) {
        state.cache.counters.slides_dropped = state.cache.counters.slides_dropped.saturating_add(1);
    }
}

/// Gives some of the keys that were read their full time to live. Whether there may be more. Only for a primary that may write.
pub fn slide<S: Server>(server: &mut S, most: usize) -> bool {
    let Some((db, taken)) = server.state().cache.slides.take(most) else { return false };
    server.select(db);
    let mut words: SmallVec<[Word<'_>; 16]> = smallvec![Word::Text("SLIDE")];
    for (name, slide) in &taken {
        if let Some((soft, hard)) = prolong(server, db, &name.key, *slide) {
            words.extend([Word::Bytes(&name.key), Word::Int(soft.0), Word::Int(hard.0)]);
        }
    }
    if words.len() > 1 {
        let slid = (words.len() / 3) as u64;
        let counters = &mut server.state().cache.counters;
        counters.slides = counters.slides.saturating_add(slid);
        server.replicate("KEYWARD.APPLY", &words);
    }
    !server.state().cache.slides.is_empty()
}

/// The new ends of freshness and of the key, if it is still as it was when it was read.
fn prolong<S: Server>(server: &mut S, db: usize, key: &[u8], slide: Slide) -> Option<(UnixMs, UnixMs)> {
    let name = Arg::named(key);
    if server.state().cache.retired(db, key).is_some() || server.expiry(name) != Expiry::At(slide.seen) {
        return None;
    }
    let known = server.state().cache.freshness(db, key).filter(|known| known.grace_ms > 0);
    let known = match known {
        Some(known) => {
            let value = server.string(name).ok()??;
            Some(known).filter(|known| fingerprint(server.bytes(value)) == known.fingerprint)
        }
        None => None,
    };
    let soft = known.map_or(slide.seen, |known| known.soft);
    let now = server.now().to_ms();
    let new_soft = slide.read_at.plus(slide.ttl_ms);
    if !slide.is_due(soft) || soft <= slide.read_at || new_soft <= now {
        return None;
    }
    let new_hard = known.map_or(new_soft, |known| new_soft.plus(known.grace_ms));
    apply(server, db, key, new_soft, new_hard);
    Some((new_soft, new_hard))
}

/// The value of the key is fresh until `soft`, and goes at `hard`. Its value does not change, so neither WATCH nor client-side
/// caches are told.
pub(super) fn apply<S: Server>(server: &mut S, db: usize, key: &[u8], soft: UnixMs, hard: UnixMs) {
    let state = server.state();
    let known = state.cache.freshness(db, key).filter(|known| known.grace_ms > 0);
    if let Some(known) = known.filter(|_| hard > soft) {
        // Cannot fail: the record is there, and only its content changes.
        let _ = state.cache.set_freshness(&state.config, db, key, Freshness { soft, ..known });
    }
    server.set_expiry(Arg::named(key), Some(hard));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Apply;
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::get::Get;
    use crate::cache::commands::mget::MGet;
    use crate::cache::commands::policy;
    use crate::cache::commands::set::Set;
    use crate::cache::commands::ttl::Ttl;
    use crate::fake_server::FakeServer;
    use crate::reply::Reply;

    /// A server with sessions of 1000 ms, and one that was just stored.
    fn session(options: &str) -> FakeServer {
        let mut server = FakeServer::new();
        server.call::<policy::Set>(&format!("CACHE.POLICY SET sessions PREFIX s: PX 1000 SLIDING{options}")).unwrap();
        server.call::<Set>("CACHE.SET s:1 v").unwrap();
        server.take_replicated();
        server
    }

    fn ttl(server: &mut FakeServer) -> (i64, i64) {
        match server.call::<Ttl>("CACHE.TTL s:1").unwrap() {
            Reply::Ints(ints) => (ints[0], ints[1]),
            other => panic!("{other:?}"),
        }
    }

    fn read(server: &mut FakeServer) {
        server.call::<Get>("CACHE.GET s:1").unwrap();
    }

    #[test]
    fn a_read_sets_the_ttl_back_to_full_just_after() {
        for line in ["CACHE.GET s:1", "CACHE.MGET s:1 s:1", "CACHE.FETCH s:1"] {
            let mut server = session("");
            server.advance_ms(100);
            match line.split(' ').next().unwrap() {
                "CACHE.GET" => drop(server.call::<Get>(line).unwrap()),
                "CACHE.MGET" => drop(server.call::<MGet>(line).unwrap()),
                _ => drop(server.call::<Fetch>(line).unwrap()),
            }
            assert_eq!((ttl(&mut server), server.state.cache.slides.len()), ((900, 900), 1), "{line}");
            assert!(server.take_replicated().is_empty(), "a read writes nothing");
            assert!(!slide(&mut server, 10));
            assert_eq!(ttl(&mut server), (1000, 1000), "{line}");
            let at = server.now.to_ms().0 + 1000;
            assert_eq!(server.take_replicated(), [format!("KEYWARD.APPLY SLIDE s:1 {at} {at}")]);
            assert_eq!(server.state.cache.counters.slides, 1);
        }
    }

    #[test]
    fn at_most_once_per_tenth_of_the_ttl() {
        let mut server = session("");
        let mut slid = 0;
        for _ in 0..1000 {
            server.advance_ms(1);
            read(&mut server);
            slide(&mut server, 10);
            slid += server.take_replicated().len();
        }
        assert_eq!(slid, 10);
    }

    #[test]
    fn the_moment_of_the_read_counts_and_the_last_one_of_several() {
        let mut server = session("");
        for _ in 0..2 {
            server.advance_ms(200);
            read(&mut server);
        }
        server.advance_ms(50);
        slide(&mut server, 10);
        assert_eq!(ttl(&mut server), (950, 950));
    }

    #[test]
    fn a_grace_stays_behind_the_new_end() {
        let mut server = session(" GRACE 300");
        server.advance_ms(500);
        read(&mut server);
        slide(&mut server, 10);
        assert_eq!(ttl(&mut server), (1000, 1300));
        let effect = server.take_replicated().remove(0);
        let soft = server.now.to_ms().0 + 1000;
        assert_eq!(effect, format!("KEYWARD.APPLY SLIDE s:1 {soft} {}", soft + 300));
        server.advance_ms(1100);
        read(&mut server);
        slide(&mut server, 10);
        assert_eq!(ttl(&mut server), (0, 200), "what is stale is not brought back by a read");
    }

    #[test]
    fn a_plain_value_with_an_expiry_slides_by_it_whatever_is_remembered_of_the_old_one() {
        let mut server = session(" GRACE 300");
        server.put_string("s:1", "plain");
        server.set_expiry(Arg::named(b"s:1"), Some(server.now.to_ms().plus(800)));
        read(&mut server);
        slide(&mut server, 10);
        assert_eq!(server.key_expiry("s:1"), Some(server.now.to_ms().plus(1000)));
    }

    #[test]
    fn what_became_of_the_key_meanwhile_is_left_alone() {
        type Change = fn(&mut FakeServer);
        let changes: [(&str, Change); 5] = [
            ("deleted", |server| {
                server.unlink(&[b"s:1"]);
            }),
            ("persisted", |server| server.persist("s:1")),
            ("written", |server| drop(server.call::<Set>("CACHE.SET s:1 w PX 10").unwrap())),
            ("expired", |server| server.advance_ms(900)),
            ("invalidated", |server| {
                let now = server.now.to_ms();
                server.call::<Set>("CACHE.SET s:1 w TAGS 1 t").unwrap();
                server.advance_ms(200);
                read(server);
                server.state.cache.retire(0, b"t", now);
            }),
        ];
        for (how, change) in changes {
            let mut server = session("");
            server.advance_ms(100);
            read(&mut server);
            change(&mut server);
            let before = server.key_expiry("s:1");
            server.take_replicated();
            slide(&mut server, 10);
            assert!(!server.take_replicated().iter().any(|effect| effect.contains("SLIDE")), "{how}");
            assert!(!server.holds("s:1") || server.key_expiry("s:1") == before, "{how}");
        }
    }

    #[test]
    fn no_read_shortens_a_ttl_or_gives_one() {
        let mut server = session("");
        server.call::<Set>("CACHE.SET s:1 v PX 5000").unwrap();
        read(&mut server);
        server.put_string("s:2", "v");
        server.call::<Get>("CACHE.GET s:2").unwrap();
        server.call::<Get>("CACHE.GET s:none").unwrap();
        server.call::<Set>("CACHE.SET other v PX 10").unwrap();
        server.call::<Get>("CACHE.GET other").unwrap();
        assert!(server.state.cache.slides.is_empty());
    }

    #[test]
    fn databases_are_kept_apart_flushed_and_swapped() {
        let mut server = session("");
        server.advance_ms(100);
        read(&mut server);
        server.select(3);
        server.call::<Set>("CACHE.SET s:1 v PX 500").unwrap();
        read(&mut server);
        server.take_replicated();
        server.state.cache.slides.swapped(3, 4);
        server.state.cache.slides.swapped(4, 3);
        assert!(slide(&mut server, 10) && !slide(&mut server, 10));
        assert_eq!((server.replicated_in.clone(), server.replicated.len()), (vec![0, 3], 2));
        server.advance_ms(200);
        read(&mut server);
        server.state.flushed(Some(3));
        assert!(server.state.cache.slides.is_empty());
    }

    #[test]
    fn a_replica_notes_nothing_and_repeats_what_it_is_told() {
        let mut server = session(" GRACE 300");
        server.replica = true;
        server.advance_ms(500);
        read(&mut server);
        assert!(server.state.cache.slides.is_empty());
        server.replayed = true;
        let soft = server.now.to_ms().0 + 1000;
        let effect = format!("KEYWARD.APPLY SLIDE s:1 {soft} {} none {soft} {soft}", soft + 300);
        server.call::<Apply>(&effect).unwrap();
        assert_eq!((ttl(&mut server), server.holds("none")), ((1000, 1300), false));
    }

    #[test]
    fn notes_are_bounded() {
        let mut server = session("");
        server.state.config.slides_max = 1;
        server.call::<Set>("CACHE.SET s:2 v").unwrap();
        server.advance_ms(100);
        server.call::<MGet>("CACHE.MGET s:1 s:2 s:1").unwrap();
        assert_eq!((server.state.cache.slides.len(), server.state.cache.counters.slides_dropped), (1, 1));
    }
}
