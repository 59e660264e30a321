//! What RDB files carry of the cache family: tags, version floors, the history of invalidated tags, soft expiries, negative
//! answers, which keys are being written in the database, which came with their slot and are in doubt, and the policies and rules of the server.
//!
//! A chunk is a kind and up to about 64 KiB of records of that kind, one after the other in postcard's format. Records
//! come before the keys and wait until their key has come; what is left over is dropped at the end of loading.

use serde::{Deserialize, Serialize};

use super::State;
use super::freshness::Freshness;
use super::policy_dump::SavedPolicy;
use super::rules::Rule;
use super::tags::Invalidations;
use super::template::Template;
use super::write_options::MAX_TAG_LENGTH;
use crate::clock::UnixMs;
use crate::cluster::NodeId;
use crate::config::Config;

/// Kinds of chunks. Numbers are never given a second meaning; 0 is not used.
const KEYS: u64 = 1;
const FLOORS: u64 = 2;
const TAGS: u64 = 3;
const FRESHNESS: u64 = 4;
const NEGATIVES: u64 = 5;
const INTENTS: u64 = 6;
const POLICIES: u64 = 7;
const RULES: u64 = 8;
const DOUBTS: u64 = 9;

/// A chunk is written when it is at least this long.
const CHUNK: usize = 64 * 1024;

/// A key with its tags, and of each whether it is retired.
#[derive(Serialize, Deserialize)]
struct Key<'a> {
    db: u32,
    key: &'a [u8],
    #[serde(borrow)]
    tags: Vec<(&'a [u8], bool)>,
}

#[derive(Serialize, Deserialize)]
struct Floor<'a> {
    db: u32,
    key: &'a [u8],
    version: u64,
    /// Unix milliseconds; `None` while the key is there.
    until: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct Tag<'a> {
    db: u32,
    tag: &'a [u8],
    invalidations: u64,
    /// Unix milliseconds.
    last_invalidated: i64,
}

/// The soft expiry of a key with a grace. How long its load took is not saved.
#[derive(Serialize, Deserialize)]
struct Soft<'a> {
    db: u32,
    key: &'a [u8],
    /// Unix milliseconds.
    soft: i64,
    grace_ms: i64,
    fingerprint: u64,
}

#[derive(Serialize, Deserialize)]
struct Negative<'a> {
    db: u32,
    key: &'a [u8],
    /// Unix milliseconds.
    until: i64,
    #[serde(borrow)]
    tags: Vec<&'a [u8]>,
}

#[derive(Serialize, Deserialize)]
struct Intent<'a> {
    db: u32,
    key: &'a [u8],
}

/// A value that came with its slot, and of which the node that it came from has not yet said what was known of it.
#[derive(Serialize, Deserialize)]
struct InDoubt<'a> {
    db: u32,
    key: &'a [u8],
    source: &'a [u8],
    /// Unix milliseconds.
    since: i64,
    /// The value itself has still to come.
    expected: bool,
}

/// The templates as they were written.
#[derive(Serialize, Deserialize)]
struct SavedRule<'a> {
    event: &'a [u8],
    #[serde(borrow)]
    keys: Vec<&'a [u8]>,
    #[serde(borrow)]
    tags: Vec<&'a [u8]>,
}

impl State {
    /// Hands out everything that is to be saved, in chunks: kind and bytes.
    pub fn save(&self, emit: &mut dyn FnMut(u64, &[u8])) {
        let mut chunk = Chunk { kind: KEYS, bytes: Vec::new(), emit };
        for policy in self.policies.iter() {
            chunk.add(POLICIES, &SavedPolicy::from(policy));
        }
        for Rule { event, keys, tags, .. } in self.rules.iter() {
            chunk.add(RULES, &SavedRule { event, keys: texts(keys), tags: texts(tags) });
        }
        for (db, database) in self.numbered() {
            for record in database.tags.records() {
                let graceless = database.freshness.get(record.key()).is_none_or(|(_, known)| known.grace_ms == 0);
                chunk.add(KEYS, &Key { db, key: record.key(), tags: record.tags(graceless).collect() });
            }
            for (key, version, until) in database.floors.iter() {
                chunk.add(FLOORS, &Floor { db, key, version, until: until.map(|until| until.0) });
            }
            for (tag, Invalidations { count, last }) in database.tags.tag_history() {
                chunk.add(TAGS, &Tag { db, tag, invalidations: count, last_invalidated: last.0 });
            }
            for (key, _) in database.freshness.iter() {
                if let Some(known) = database.effective_freshness(key).filter(|known| known.grace_ms > 0) {
                    let Freshness { soft, grace_ms, fingerprint, .. } = known;
                    chunk.add(FRESHNESS, &Soft { db, key, soft: soft.0, grace_ms, fingerprint });
                }
            }
            for (key, until, tags) in database.negatives.iter() {
                chunk.add(NEGATIVES, &Negative { db, key, until: until.0, tags });
            }
        }
        for name in self.intents.names() {
            if let Ok(db) = u32::try_from(name.db) {
                chunk.add(INTENTS, &Intent { db, key: &name.key });
            }
        }
        for (name, source, since, expected) in self.doubts.iter() {
            if let Ok(db) = u32::try_from(name.db) {
                let (key, source) = (&*name.key, &source.as_bytes()[..]);
                chunk.add(DOUBTS, &InDoubt { db, key, source, since: since.0, expected });
            }
        }
        chunk.flush();
    }

    /// Takes in one chunk. `None`: the bytes are no such chunk; what came before the fault may have been taken in, since
    /// the server gives the load up. Kinds that nobody knows are skipped.
    pub fn load(&mut self, config: &Config, kind: u64, mut bytes: &[u8], now: UnixMs) -> Option<()> {
        let load = match kind {
            KEYS => State::load_key,
            FLOORS => State::load_floor,
            TAGS => State::load_tag,
            FRESHNESS => State::load_freshness,
            NEGATIVES => State::load_negative,
            INTENTS => State::load_intent,
            POLICIES => State::load_policy,
            RULES => State::load_rule,
            DOUBTS => State::load_doubt,
            _ => return Some(()),
        };
        while !bytes.is_empty() {
            bytes = load(self, config, bytes, now)?;
        }
        Some(())
    }

    fn numbered(&self) -> impl Iterator<Item = (u32, &super::database::Database)> {
        self.databases.iter().filter_map(|(&db, database)| Some((u32::try_from(db).ok()?, database)))
    }

    fn load_key<'a>(&mut self, config: &Config, bytes: &'a [u8], _: UnixMs) -> Option<&'a [u8]> {
        let (Key { db, key, tags }, rest) = postcard::take_from_bytes(bytes).ok()?;
        if tags.is_empty() || !tags.iter().all(|(tag, _)| is_tag(tag)) {
            return None;
        }
        self.database(config, number(db)?).tags.load_record(key, tags).ok()?;
        Some(rest)
    }

    /// Every floor has an end until its key comes.
    fn load_floor<'a>(&mut self, config: &Config, bytes: &'a [u8], now: UnixMs) -> Option<&'a [u8]> {
        let (Floor { db, key, version, until }, rest) = postcard::take_from_bytes(bytes).ok()?;
        i64::try_from(version).ok()?;
        let database = self.database(config, number(db)?);
        if until.is_none() {
            database.awaited.insert(key.into());
        }
        let until = until.map_or(now.plus(config.version_floor_ms), UnixMs);
        database.floors.load(key, version, until).ok()?;
        Some(rest)
    }

    fn load_tag<'a>(&mut self, config: &Config, bytes: &'a [u8], _: UnixMs) -> Option<&'a [u8]> {
        let (Tag { db, tag, invalidations, last_invalidated }, rest) = postcard::take_from_bytes(bytes).ok()?;
        if !is_tag(tag) {
            return None;
        }
        let history = Invalidations { count: invalidations, last: UnixMs(last_invalidated) };
        self.database(config, number(db)?).tags.load_tag_history(tag, history).ok()?;
        Some(rest)
    }

    fn load_freshness<'a>(&mut self, config: &Config, bytes: &'a [u8], _: UnixMs) -> Option<&'a [u8]> {
        let (Soft { db, key, soft, grace_ms, fingerprint }, rest) = postcard::take_from_bytes(bytes).ok()?;
        if grace_ms <= 0 {
            return None;
        }
        let known = Freshness { soft: UnixMs(soft), grace_ms, fingerprint, load_us: 0 };
        self.database(config, number(db)?).unconfirmed.put(key, known).ok()?;
        Some(rest)
    }

    fn load_negative<'a>(&mut self, config: &Config, bytes: &'a [u8], _: UnixMs) -> Option<&'a [u8]> {
        let (Negative { db, key, until, tags }, rest) = postcard::take_from_bytes(bytes).ok()?;
        if !tags.iter().copied().all(is_tag) {
            return None;
        }
        self.database(config, number(db)?).negatives.put(key, UnixMs(until), &tags).ok()?;
        Some(rest)
    }

    fn load_intent<'a>(&mut self, _: &Config, bytes: &'a [u8], _: UnixMs) -> Option<&'a [u8]> {
        let (Intent { db, key }, rest) = postcard::take_from_bytes(bytes).ok()?;
        self.intents.adopt(number(db)?, key);
        Some(rest)
    }

    fn load_doubt<'a>(&mut self, _: &Config, bytes: &'a [u8], _: UnixMs) -> Option<&'a [u8]> {
        let (InDoubt { db, key, source, since, expected }, rest) = postcard::take_from_bytes(bytes).ok()?;
        self.doubts.put(number(db)?, key, NodeId::new(source)?, UnixMs(since), expected);
        Some(rest)
    }

    /// As many as there are: whoever saved them had room.
    fn load_policy<'a>(&mut self, _: &Config, bytes: &'a [u8], _: UnixMs) -> Option<&'a [u8]> {
        let (saved, rest) = postcard::take_from_bytes::<SavedPolicy<'_>>(bytes).ok()?;
        self.policies.put(saved.policy()?);
        Some(rest)
    }

    /// As many as there are, too.
    fn load_rule<'a>(&mut self, _: &Config, bytes: &'a [u8], _: UnixMs) -> Option<&'a [u8]> {
        let (SavedRule { event, keys, tags }, rest) = postcard::take_from_bytes(bytes).ok()?;
        self.rules.put(Rule::new(event, keys, tags).ok()?);
        Some(rest)
    }
}

fn texts(templates: &[Template]) -> Vec<&[u8]> {
    templates.iter().map(Template::text).collect()
}

fn is_tag(tag: &[u8]) -> bool {
    (1..=MAX_TAG_LENGTH).contains(&tag.len())
}

/// The server numbers databases with an int.
fn number(db: u32) -> Option<usize> {
    usize::try_from(i32::try_from(db).ok()?).ok()
}

struct Chunk<'e> {
    kind: u64,
    bytes: Vec<u8>,
    emit: &'e mut dyn FnMut(u64, &[u8]),
}

impl Chunk<'_> {
    fn add<T: Serialize>(&mut self, kind: u64, record: &T) {
        if kind != self.kind || self.bytes.len() >= CHUNK {
            self.flush();
            self.kind = kind;
        }
        // Can only fail where a writer does, and a vector does not. The vector goes through by value.
        if let Ok(bytes) = postcard::to_extend(record, std::mem::take(&mut self.bytes)) {
            self.bytes = bytes;
        }
    }

    fn flush(&mut self) {
        if !self.bytes.is_empty() {
            (self.emit)(self.kind, &self.bytes);
            self.bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::key_pattern::KeyPattern;
    use super::super::policies::{Enforce, Policy};
    use super::super::state::Known;
    use super::super::write_options::{Jitter, Terms};
    use super::*;
    use crate::state::KeyEvent;

    const NOW: UnixMs = UnixMs(1_000);

    fn saved(state: &State) -> Vec<(u64, Vec<u8>)> {
        let mut chunks = Vec::new();
        state.save(&mut |kind, bytes| chunks.push((kind, bytes.to_vec())));
        chunks
    }

    fn filled(keys: u32) -> (State, Config) {
        let (mut state, config) = (State::default(), Config::default());
        for i in 0..keys {
            let key = format!("key:{i}");
            let tags: [&[u8]; 2] = [b"all", if i % 2 == 0 { b"even" } else { b"odd" }];
            let known = Known { tags: &tags, version: Some(i.into()), now: Some(NOW), freshness: None };
            state.stored(&config, (i as usize % 3, key.as_bytes()), known).unwrap();
        }
        state.retire(0, b"even", UnixMs(500));
        state.policies.put(Policy { name: b"p"[..].into(), prefix: Some(b"key:"[..].into()), ..Policy::default() });
        state.rules.put(Rule::new(b"e", [&b"k:{id}"[..]], [&b"t:{a[].b}"[..]]).unwrap());
        state.set_floor(&config, (1, b"gone"), 9, UnixMs(1_400), Some(NOW)).unwrap();
        (state, config)
    }

    #[test]
    fn a_dump_gives_back_what_its_keys_had() {
        let (state, config) = filled(5_000);
        let chunks = saved(&state);
        assert!(chunks.len() > 4 && chunks.iter().all(|(_, bytes)| bytes.len() < CHUNK + 1024));
        let mut loaded = State::default();
        for (kind, bytes) in &chunks {
            loaded.load(&config, *kind, bytes, UnixMs(2_000)).unwrap();
        }
        assert_eq!(loaded.tagged_keys(), 0, "nothing counts before its key has come");
        for i in 1..5_000 {
            loaded.key_event(&config, KeyEvent::Loaded, i % 3, format!("key:{i}").as_bytes(), UnixMs(2_000));
        }
        loaded.loaded();
        assert_eq!((loaded.tagged_keys(), loaded.live_floors()), (4_999, 4_999));
        for i in 1..5_000_usize {
            let (db, key) = (i % 3, format!("key:{i}"));
            let tags = |state: &State| state.tags(db, key.as_bytes()).map(<[u8]>::to_vec).collect::<Vec<_>>();
            assert_eq!(tags(&loaded), tags(&state), "{key}");
            assert_eq!(loaded.is_retired(db, key.as_bytes()), state.is_retired(db, key.as_bytes()), "{key}");
            assert_eq!(loaded.version_seen(db, key.as_bytes(), UnixMs(i64::MAX)), Some(i as u64));
        }
        assert_eq!(loaded.tag_info(0, b"even").invalidations, Invalidations { count: 1, last: UnixMs(500) });
        assert_eq!(loaded.version_seen(1, b"gone", UnixMs(1_399)), Some(9));
        assert_eq!(loaded.version_seen(1, b"gone", UnixMs(1_400)), None);
        let without_key = |now| loaded.version_seen(0, b"key:0", UnixMs(now));
        assert_eq!((without_key(61_999), without_key(62_000)), (Some(0), None), "a key that expired meanwhile");
    }

    #[test]
    fn values_in_doubt_stay_so_and_are_asked_about() {
        let (mut state, config) = (State::default(), Config::default());
        let source = NodeId::new(&[b'a'; NodeId::LENGTH]).unwrap();
        state.doubts.put(0, b"here", source, UnixMs(100), false);
        state.doubts.put(0, b"coming", source, UnixMs(200), true);
        let mut loaded = State::default();
        for (kind, bytes) in saved(&state) {
            loaded.load(&config, kind, &bytes, NOW).unwrap();
        }
        loaded.key_event(&config, KeyEvent::Loaded, 0, b"here", NOW);
        loaded.loaded();
        loaded.key_event(&config, KeyEvent::Replaced, 0, b"coming", NOW);
        assert!(loaded.is_retired(0, b"here") && loaded.is_retired(0, b"coming"));
        let (to, questions) = loaded.doubts.questions(NOW, 9, |_| true).unwrap();
        let mut ages: Vec<_> = questions.iter().map(|question| (&*question.key, question.age_ms)).collect();
        ages.sort_unstable();
        assert_eq!((to, ages), (source, vec![(&b"coming"[..], 800), (&b"here"[..], 900)]));
        loaded.key_event(&config, KeyEvent::Replaced, 0, b"here", NOW);
        assert!(!loaded.is_retired(0, b"here"), "another value");
        loaded.doubts.put(0, b"here", source, NOW, false);
        let chunk = saved(&loaded).remove(0);
        assert!(State::default().load(&config, chunk.0, &chunk.1[..chunk.1.len() - 1], NOW).is_none());
    }

    #[test]
    fn policies_come_back_as_they_were_whatever_the_cap() {
        let config = Config { policies_max: 0, ..Config::default() };
        let mut state = State::default();
        let full = Policy {
            name: b"full\xff"[..].into(),
            prefix: Some(b"user:"[..].into()),
            terms: Terms { ttl_ms: Some(5), jitter: Some(Jitter::Percent(10)), grace_ms: Some(7) },
            negative_ms: Some(9),
            sliding: true,
            beta: Some(1.5),
            ahead: Some(20),
            loader: Some(b"l"[..].into()),
            pattern: KeyPattern::parse(b"user:{id}"),
            enforce: Enforce::Reject,
        };
        assert!(full.is_sound());
        let jitter = Terms { ttl_ms: Some(5), jitter: Some(Jitter::Ms(3)), grace_ms: None };
        state.policies.put(full);
        state.policies.put(Policy { name: b"bare"[..].into(), ..Policy::default() });
        state.policies.put(Policy { name: b"jitter"[..].into(), terms: jitter, ..Policy::default() });
        let mut loaded = State::default();
        for (kind, bytes) in saved(&state) {
            assert_eq!(State::default().load(&config, kind, &bytes[..bytes.len() - 1], NOW), None);
            loaded.load(&config, kind, &bytes, NOW).unwrap();
        }
        assert!(loaded.policies.iter().eq(state.policies.iter()));
        assert_eq!(loaded.policies.find(b"user:1").map(|policy| &*policy.name), Some(&b"full\xff"[..]));
    }

    #[test]
    fn rules_come_back_as_they_were_and_bad_ones_are_refused() {
        let mut state = State::default();
        state.rules.put(Rule::new(b"e\xff", [&b"k:{id}"[..], b"\x00"], [&b"t:{a[].b}"[..]]).unwrap());
        state.rules.put(Rule::new(b"f", [], [&b"t"[..]]).unwrap());
        let mut loaded = State::default();
        for (kind, bytes) in saved(&state) {
            loaded.load(&Config::default(), kind, &bytes, NOW).unwrap();
        }
        assert!(loaded.rules.iter().eq(state.rules.iter()) && loaded.rules.len() == 2);
        for (event, keys) in [(&b""[..], vec![&b"k"[..]]), (b"e", vec![b"{"]), (b"e", vec![])] {
            let bytes = postcard::to_extend(&SavedRule { event, keys, tags: vec![] }, Vec::new()).unwrap();
            assert_eq!(State::default().load(&Config::default(), RULES, &bytes, NOW), None);
        }
    }

    #[test]
    fn nothing_to_say_is_nothing_written() {
        assert!(saved(&State::default()).is_empty());
    }

    #[test]
    fn a_chunk_that_is_cut_or_wrong_is_refused_and_an_unknown_one_skipped() {
        let (state, config) = filled(20);
        for (kind, bytes) in saved(&state) {
            assert_eq!(State::default().load(&config, kind, &bytes[..bytes.len() - 1], NOW), None, "kind {kind}");
            assert_eq!(State::default().load(&config, kind + 100, &bytes, NOW), Some(()));
        }
        for (kind, bytes) in [
            (KEYS, &b"\x00\x01k\x00"[..]),
            (KEYS, b"\x00\x01k\x01\x00\x00"),
            (KEYS, b"\xff\xff\xff\xff\x0f\x01k\x01\x01t\x00"),
            (FLOORS, b"\x00\x01k\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00"),
            (TAGS, b"\x00\x00\x00\x00"),
        ] {
            assert_eq!(State::default().load(&config, kind, bytes, NOW), None, "kind {kind}: {bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_loaded_or_refused(
            kind in prop::sample::select(vec![KEYS, FLOORS, TAGS, POLICIES, RULES]),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            tail in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let (state, config) = filled(20);
            let mut bytes = saved(&state).into_iter().find(|(k, _)| *k == kind).unwrap().1;
            for (index, byte) in flips {
                let place = index.index(bytes.len());
                bytes[place] = byte;
            }
            bytes.extend(&tail);
            let mut loaded = State::default();
            for bytes in [&bytes, &tail] {
                let _ = loaded.load(&config, kind, bytes, NOW);
            }
            loaded.loaded();
            prop_assert_eq!(loaded.tagged_keys(), 0);
        }
    }
}
