//! Random commands, cache ones and plain ones, against a model that keeps everything in plain maps. After each of them the
//! model, the server, and a replica that was only sent the replicated commands must agree on keys, tags and versions.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use keyward::apply::Apply;
use keyward::cache::commands::floor::Floor;
use keyward::cache::commands::get::Get;
use keyward::cache::commands::invalidate::Invalidate;
use keyward::cache::commands::invalidate_tag::InvalidateTag;
use keyward::cache::commands::mset::MSet;
use keyward::cache::commands::set::Set;
use keyward::cache::commands::set_jitter::SetJitter;
use keyward::cache::commands::set_tagged::SetTagged;
use keyward::cache::commands::tag::Tag;
use keyward::cache::commands::tag_keys::TagKeys;
use keyward::cache::commands::untag::Untag;
use keyward::cache::reclaim;
use keyward::fake_server::{Entry, FakeServer, Value};
use keyward::reply::Reply;
use keyward::server::Server;
use keyward::state::KeyEvent;
use proptest::prelude::*;

const DBS: usize = 2;
const KEYS: usize = 6;
const TAGS: usize = 4;
const SYNC_KEYS: usize = 3;
const FLOOR_MS: i64 = 60_000;

type Id = (usize, usize);

#[derive(Clone, Debug)]
enum Op {
    Set { key: usize, ttl: Option<i64>, tags: Vec<usize>, condition: Option<bool>, version: Option<u64> },
    SetTagged { key: usize, ttl: i64, tags: Vec<usize>, absolute: bool },
    SetJitter { key: usize, ttl: i64, jitter: i64, draw: u64 },
    MSet { keys: Vec<usize>, ttl: i64, tags: Vec<usize> },
    Tag { key: usize, tags: Vec<usize> },
    Untag { key: usize, tags: Vec<usize> },
    Floor { key: usize, version: u64 },
    Invalidate { keys: Vec<usize> },
    InvalidateTag { tags: Vec<usize> },
    Reclaim { keys: usize },
    Read,
    Plain(Plain),
    Select(usize),
    Advance(i64),
}

/// What other commands do to the keyspace.
#[derive(Clone, Debug)]
enum Plain {
    Set(usize),
    Del(usize),
    Evict(usize),
    Rename(usize, usize),
    Move(usize),
    Copy(usize, usize),
    Flush,
    Swap,
}

fn key() -> impl Strategy<Value = usize> {
    0..KEYS
}

fn tags(least: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..TAGS, least..4)
}

fn ttl() -> impl Strategy<Value = i64> {
    1_000_i64..40_000
}

fn op() -> impl Strategy<Value = Op> {
    let keys = || prop::collection::vec(key(), 1..4);
    let plain = prop_oneof![
        6 => key().prop_map(Plain::Set),
        3 => key().prop_map(Plain::Del),
        1 => key().prop_map(Plain::Evict),
        4 => (key(), key()).prop_map(|(a, b)| Plain::Rename(a, b)),
        2 => key().prop_map(Plain::Move),
        2 => (key(), key()).prop_map(|(a, b)| Plain::Copy(a, b)),
        1 => Just(Plain::Flush),
        1 => Just(Plain::Swap),
    ];
    let version = prop::option::of(0_u64..12);
    prop_oneof![
        8 => (key(), prop::option::of(ttl()), tags(0), prop::option::of(any::<bool>()), version)
            .prop_map(|(key, ttl, tags, condition, version)| Op::Set { key, ttl, tags, condition, version }),
        6 => (key(), ttl(), tags(1), any::<bool>())
            .prop_map(|(key, ttl, tags, absolute)| Op::SetTagged { key, ttl, tags, absolute }),
        2 => (key(), ttl(), 0_i64..5_000, any::<u64>())
            .prop_map(|(key, ttl, jitter, draw)| Op::SetJitter { key, ttl, jitter, draw }),
        3 => (keys(), ttl(), tags(1)).prop_map(|(keys, ttl, tags)| Op::MSet { keys, ttl, tags }),
        4 => (key(), tags(1)).prop_map(|(key, tags)| Op::Tag { key, tags }),
        2 => (key(), tags(0)).prop_map(|(key, tags)| Op::Untag { key, tags }),
        3 => (key(), 0_u64..12).prop_map(|(key, version)| Op::Floor { key, version }),
        3 => keys().prop_map(|keys| Op::Invalidate { keys }),
        5 => tags(1).prop_map(|tags| Op::InvalidateTag { tags }),
        1 => (1_usize..4).prop_map(|keys| Op::Reclaim { keys }),
        2 => Just(Op::Read),
        10 => plain.prop_map(Op::Plain),
        2 => (0..DBS).prop_map(Op::Select),
        4 => (1_i64..30_000).prop_map(Op::Advance),
    ]
}

#[derive(Clone, Debug, Default)]
struct Cached {
    value: String,
    expiry: Option<i64>,
    tags: BTreeSet<usize>,
    /// Those of the tags that it was invalidated by.
    invalidated: BTreeSet<usize>,
}

/// A version, and the end of its floor if the key is gone.
type FloorModel = (u64, Option<i64>);

#[derive(Default)]
struct Model {
    keys: BTreeMap<Id, Cached>,
    floors: BTreeMap<Id, FloorModel>,
}

impl Model {
    fn live(&self, id: Id) -> bool {
        self.keys.get(&id).is_some_and(|cached| cached.invalidated.is_empty())
    }

    fn floor(&self, id: Id, now: i64) -> Option<FloorModel> {
        self.floors.get(&id).copied().filter(|(_, until)| until.is_none_or(|until| until > now))
    }

    fn write(&mut self, id: Id, value: &str, expiry: Option<i64>, tags: &[usize]) {
        let tags = tags.iter().copied().collect();
        self.keys.insert(id, Cached { value: value.to_owned(), expiry, tags, ..Cached::default() });
    }

    fn raise(&mut self, id: Id, version: u64, now: i64) {
        let seen = self.floor(id, now).map_or(0, |(seen, _)| seen);
        self.floors.insert(id, (version.max(seen), None));
    }

    fn gone(&mut self, id: Id, now: i64) -> Option<Cached> {
        if let Some((version, None)) = self.floor(id, now) {
            self.floors.insert(id, (version, Some(now + FLOOR_MS)));
        }
        self.keys.remove(&id)
    }

    fn moved(&mut self, from: Id, to: Id, now: i64) {
        let version = self.floor(from, now).map(|(version, _)| version);
        let cached = self.gone(from, now).unwrap();
        self.keys.insert(to, cached);
        if let Some(version) = version {
            self.raise(to, version, now);
        }
    }
}

fn key_name(key: usize) -> String {
    format!("k{key}")
}

fn tag_words(tags: &[usize]) -> String {
    tags.iter().map(|tag| format!(" t{tag}")).collect()
}

fn stored(server: &FakeServer, (db, key): Id) -> Option<(String, Option<i64>)> {
    let entry = server.keys.get(&(db, key_name(key).into_bytes()))?;
    let Value::String(value) = &entry.value else { return None };
    Some((String::from_utf8(value.clone()).unwrap(), entry.expiry.map(|at| at.0)))
}

fn ids() -> impl Iterator<Item = Id> {
    (0..DBS).flat_map(|db| (0..KEYS).map(move |key| (db, key)))
}

/// Does what a plain command does and tells the module as the host would; whether it did anything.
fn plain(server: &mut FakeServer, op: &Plain, value: &str) -> bool {
    let (db, now) = (server.db, server.now.to_ms());
    match *op {
        Plain::Set(key) => {
            server.exists(key_name(key).as_bytes());
            server.put_string(&key_name(key), value);
            true
        }
        Plain::Del(key) => {
            let done = server.unlink(&[key_name(key).as_bytes()]) > 0;
            server.replicated.clear();
            done
        }
        Plain::Evict(key) => {
            let name = key_name(key).into_bytes();
            let done = server.keys.remove(&(db, name.clone())).is_some();
            if done {
                server.event(KeyEvent::Evicted, &name);
            }
            done
        }
        Plain::Rename(old, new) => {
            let (from, to) = (key_name(old).into_bytes(), key_name(new).into_bytes());
            server.exists(&to);
            if old == new || !server.exists(&from) {
                return false;
            }
            let entry = server.keys.remove(&(db, from.clone())).unwrap();
            server.keys.insert((db, to.clone()), entry);
            server.state.key_renamed(db, &from, &to, now);
            true
        }
        Plain::Move(key) => {
            let (name, other) = (key_name(key).into_bytes(), 1 - db);
            server.db = other;
            let taken = server.exists(&name);
            server.db = db;
            if taken || !server.exists(&name) {
                return false;
            }
            let entry = server.keys.remove(&(db, name.clone())).unwrap();
            server.keys.insert((other, name.clone()), entry);
            server.state.key_moved(db, other, &name, now);
            true
        }
        Plain::Copy(from, to) => {
            let (from_name, to_name) = (key_name(from).into_bytes(), key_name(to).into_bytes());
            server.exists(&to_name);
            if from == to || !server.exists(&from_name) {
                return false;
            }
            let expiry = server.keys[&(db, from_name)].expiry;
            let entry = Entry { value: Value::String(value.as_bytes().to_vec()), expiry };
            server.keys.insert((db, to_name.clone()), entry);
            server.event(KeyEvent::Replaced, &to_name);
            true
        }
        Plain::Flush => {
            server.keys.retain(|(of, _), _| *of != db);
            server.state.flushed(Some(db));
            true
        }
        Plain::Swap => {
            server.keys = server.keys.drain().map(|((of, key), entry)| ((1 - of, key), entry)).collect();
            server.state.swapped(0, 1);
            true
        }
    }
}

struct World {
    primary: FakeServer,
    replica: FakeServer,
    model: Model,
    step: usize,
}

impl World {
    fn new() -> World {
        let (mut primary, mut replica) = (FakeServer::new(), FakeServer::new());
        primary.state.config.invalidate_sync_keys = SYNC_KEYS as i64;
        replica.replayed = true;
        World { primary, replica, model: Model::default(), step: 0 }
    }

    fn run(&mut self, op: &Op) {
        self.step += 1;
        let value = format!("v{}", self.step);
        let (db, now) = (self.primary.db, self.primary.now.to_ms().0);
        let due: Vec<(Id, String)> = ids()
            .filter_map(|id| {
                stored(&self.primary, id).filter(|(_, at)| at.is_some_and(|at| at <= now)).map(|v| (id, v.0))
            })
            .collect();
        let reply = self.call(op, &value);
        let seen_expired: Vec<Id> = match op {
            // These take keys away or along without looking at their time.
            Op::Plain(Plain::Flush | Plain::Swap | Plain::Evict(_)) => Vec::new(),
            _ => due
                .into_iter()
                .filter(|(id, value)| stored(&self.primary, *id).is_none_or(|(now, _)| now != *value))
                .map(|(id, _)| id)
                .collect(),
        };
        for &(db, key) in &seen_expired {
            self.model.gone((db, key), now);
            self.replica.db = db;
            self.replica.unlink(&[key_name(key).as_bytes()]);
        }
        self.replica.db = self.primary.db;
        self.send(op, &value, reply == Some(1));
        self.primary.db = db;
        self.replica.db = db;
        self.check_reply(op, db, now, &value, reply, seen_expired.len());
        self.adopt_removals(op, now);
        self.compare();
    }

    /// The reply as a number: OK is 1, nil is 0; `None` if there is nothing to compare.
    fn call(&mut self, op: &Op, value: &str) -> Option<i64> {
        let server = &mut self.primary;
        let now = server.now.to_ms().0;
        let reply = match op {
            Op::Set { key, ttl, tags, condition, version } => {
                let mut line = format!("CACHE.SET k{key} {value}");
                if let Some(version) = version {
                    line += &format!(" VERSION {version}");
                }
                if !tags.is_empty() {
                    line += &format!(" TAGS {}{}", tags.len(), tag_words(tags));
                }
                line += match condition {
                    Some(true) => " NX",
                    Some(false) => " XX",
                    None => "",
                };
                if let Some(ttl) = ttl {
                    line += &format!(" PX {ttl}");
                }
                server.call::<Set>(&line)
            }
            Op::SetTagged { key, ttl, tags, absolute } => {
                let expiry = if *absolute { format!("PXAT {}", now + ttl) } else { format!("PX {ttl}") };
                let tags = format!("TAGS {}{}", tags.len(), tag_words(tags));
                server.call::<SetTagged>(&format!("CACHE.SETTAGGED k{key} {value} {expiry} {tags}"))
            }
            Op::SetJitter { key, ttl, jitter, draw } => {
                server.draws.push_back(*draw);
                server.call::<SetJitter>(&format!("CACHE.SETJITTER k{key} {value} PX {ttl} JITTER {jitter}"))
            }
            Op::MSet { keys, ttl, tags } => {
                let pairs: String = keys.iter().map(|key| format!(" k{key} {value}")).collect();
                let options = format!("PX {ttl} TAGS {}{}", tags.len(), tag_words(tags));
                server.call::<MSet>(&format!("CACHE.MSET {}{pairs} {options}", keys.len()))
            }
            Op::Tag { key, tags } => server.call::<Tag>(&format!("CACHE.TAG k{key}{}", tag_words(tags))),
            Op::Untag { key, tags } => server.call::<Untag>(&format!("CACHE.UNTAG k{key}{}", tag_words(tags))),
            Op::Floor { key, version } => server.call::<Floor>(&format!("CACHE.FLOOR k{key} {version}")),
            Op::Invalidate { keys } => {
                let keys: String = keys.iter().map(|key| format!(" k{key}")).collect();
                server.call::<Invalidate>(&format!("CACHE.INVALIDATE{keys}"))
            }
            Op::InvalidateTag { tags } => {
                server.call::<InvalidateTag>(&format!("CACHE.INVALIDATETAG{}", tag_words(tags)))
            }
            Op::Reclaim { keys } => {
                reclaim(server, *keys);
                return None;
            }
            Op::Read => {
                self.check_reads();
                return None;
            }
            Op::Plain(op) => return Some(i64::from(plain(server, op, value))),
            Op::Select(db) => {
                server.db = *db;
                return None;
            }
            Op::Advance(ms) => {
                server.advance_ms(*ms);
                self.replica.advance_ms(*ms);
                return None;
            }
        };
        match reply.unwrap() {
            Reply::Ok => Some(1),
            Reply::Nil => Some(0),
            Reply::Int(n) => Some(n),
            other => panic!("{other:?}"),
        }
    }

    /// Sends what was replicated, and plain commands themselves, to the replica.
    fn send(&mut self, op: &Op, value: &str, done: bool) {
        if let Op::Plain(op) = op
            && done
        {
            plain(&mut self.replica, op, value);
        }
        for words in self.primary.replicated.drain(..) {
            let reply = match &*words[0] {
                b"UNLINK" => {
                    let keys: Vec<&[u8]> = words[1..].iter().map(Vec::as_slice).collect();
                    assert_eq!(self.replica.unlink(&keys), keys.len(), "{keys:?}");
                    continue;
                }
                b"CACHE.SET" => self.replica.call_argv::<Set>(words),
                b"CACHE.SETTAGGED" => self.replica.call_argv::<SetTagged>(words),
                b"CACHE.TAG" => self.replica.call_argv::<Tag>(words),
                b"CACHE.UNTAG" => self.replica.call_argv::<Untag>(words),
                b"KEYWARD.APPLY" => self.replica.call_argv::<Apply>(words),
                other => panic!("{}", String::from_utf8_lossy(other)),
            };
            assert!(!matches!(reply.unwrap(), Reply::Nil), "a replica decides nothing");
        }
        self.replica.replicated.clear();
    }

    fn check_reply(&mut self, op: &Op, db: usize, now: i64, value: &str, reply: Option<i64>, expired: usize) {
        let model = &mut self.model;
        let expected = match op {
            Op::Set { key, ttl, tags, condition, version } => {
                let id = (db, *key);
                let allowed = condition.is_none_or(|missing| model.live(id) != missing)
                    && version.is_none_or(|version| model.floor(id, now).is_none_or(|(seen, _)| version > seen));
                if allowed {
                    model.write(id, value, ttl.map(|ttl| now + ttl), tags);
                    version.inspect(|version| model.raise(id, *version, now));
                }
                i64::from(allowed)
            }
            Op::SetTagged { key, ttl, tags, .. } => {
                model.write((db, *key), value, Some(now + ttl), tags);
                1
            }
            Op::SetJitter { key, ttl, jitter, draw } => {
                let drawn = (*draw).min(*jitter as u64) as i64;
                model.write((db, *key), value, Some(now + ttl + drawn), &[]);
                self.primary.draws.clear();
                1
            }
            Op::MSet { keys, ttl, tags } => {
                for key in keys {
                    model.write((db, *key), value, Some(now + ttl), tags);
                }
                1
            }
            Op::Tag { key, tags } if model.live((db, *key)) => {
                let carried = &mut model.keys.get_mut(&(db, *key)).unwrap().tags;
                tags.iter().filter(|tag| carried.insert(**tag)).count() as i64
            }
            Op::Untag { key, tags } if model.live((db, *key)) => {
                let carried = &mut model.keys.get_mut(&(db, *key)).unwrap().tags;
                let before = carried.len();
                carried.retain(|tag| !tags.is_empty() && !tags.contains(tag));
                (before - carried.len()) as i64
            }
            Op::Tag { .. } | Op::Untag { .. } => 0,
            Op::Floor { key, version } => {
                let id = (db, *key);
                let news = model.floor(id, now).is_none_or(|(seen, _)| *version > seen);
                if news {
                    model.gone(id, now);
                    model.floors.insert(id, (*version, Some(now + FLOOR_MS)));
                }
                i64::from(news)
            }
            Op::Invalidate { keys } => {
                let keys: BTreeSet<usize> = keys.iter().copied().collect();
                let live = keys.iter().filter(|&&key| model.live((db, key))).count();
                for key in keys {
                    model.gone((db, key), now);
                }
                live as i64
            }
            Op::InvalidateTag { tags } => return self.check_invalidation(db, tags, reply.unwrap(), expired),
            Op::Plain(op) => {
                if reply == Some(1) {
                    self.plain_in_model(op, db, now, value);
                }
                return;
            }
            Op::Reclaim { .. } | Op::Read | Op::Select(_) | Op::Advance(_) => return,
        };
        assert_eq!(reply, Some(expected), "{op:?}");
    }

    /// `expired`: keys that were taken up and found to have expired.
    fn check_invalidation(&mut self, db: usize, tags: &[usize], reply: i64, expired: usize) {
        let backlog = self.model.keys.iter().any(|(id, cached)| id.0 == db && !cached.invalidated.is_empty());
        let (mut hit, mut listed) = (0, expired);
        for (_, cached) in self.model.keys.iter_mut().filter(|(id, _)| id.0 == db) {
            let was_live = cached.invalidated.is_empty();
            let by: Vec<usize> = tags
                .iter()
                .copied()
                .filter(|tag| cached.tags.contains(tag) && !cached.invalidated.contains(tag))
                .collect();
            hit += i64::from(was_live && !by.is_empty());
            listed += usize::from(!by.is_empty());
            cached.invalidated.extend(by);
        }
        if listed <= SYNC_KEYS && !backlog {
            assert_eq!(reply, hit, "all of them are removed at once, and each counts once");
        }
        assert!(reply >= hit, "{reply} of {hit}");
    }

    fn plain_in_model(&mut self, op: &Plain, db: usize, now: i64, value: &str) {
        let model = &mut self.model;
        match *op {
            Plain::Set(key) => {
                let cached = model.keys.entry((db, key)).or_default();
                cached.value = value.to_owned();
                cached.expiry = None;
                cached.invalidated.clear();
            }
            Plain::Del(key) | Plain::Evict(key) => {
                model.gone((db, key), now);
            }
            Plain::Rename(old, new) => model.moved((db, old), (db, new), now),
            Plain::Move(key) => model.moved((db, key), (1 - db, key), now),
            Plain::Copy(from, to) => {
                let expiry = model.keys[&(db, from)].expiry;
                model.write((db, to), value, expiry, &[]);
            }
            Plain::Flush => {
                model.keys.retain(|id, _| id.0 != db);
                model.floors.retain(|id, _| id.0 != db);
            }
            Plain::Swap => {
                model.keys = std::mem::take(&mut model.keys).into_iter().map(|((db, k), v)| ((1 - db, k), v)).collect();
                model.floors =
                    std::mem::take(&mut model.floors).into_iter().map(|((db, k), v)| ((1 - db, k), v)).collect();
            }
        }
    }

    /// Which of the invalidated keys are removed when is not the model's business; only they may be.
    fn adopt_removals(&mut self, op: &Op, now: i64) {
        let removed: Vec<Id> =
            self.model.keys.keys().copied().filter(|id| stored(&self.primary, *id).is_none()).collect();
        for &id in &removed {
            let cached = self.model.gone(id, now).unwrap();
            let removes = matches!(op, Op::InvalidateTag { .. } | Op::Reclaim { .. });
            assert!(removes && !cached.invalidated.is_empty(), "{id:?} {cached:?} is gone after {op:?}");
        }
        assert!(removed.len() <= SYNC_KEYS, "{removed:?}");
    }

    fn compare(&mut self) {
        let now = self.primary.now.to_ms();
        for (db, key) in ids() {
            let (id, name) = ((db, key), key_name(key));
            let cached = self.model.keys.get(&id);
            let carried: BTreeSet<String> = cached.map_or_else(BTreeSet::new, |cached| {
                cached.tags.difference(&cached.invalidated).map(|tag| format!("t{tag}")).collect()
            });
            let retired = cached.is_some_and(|cached| !cached.invalidated.is_empty());
            let version = self.model.floor(id, now.0).map(|(version, _)| version);
            for server in [&self.primary, &self.replica] {
                assert_eq!(stored(server, id), cached.map(|c| (c.value.clone(), c.expiry)), "{id:?}");
                let cache = &server.state.cache;
                let tags: BTreeSet<String> =
                    cache.tags(db, name.as_bytes()).map(|tag| String::from_utf8(tag.to_vec()).unwrap()).collect();
                assert_eq!(tags, carried, "{id:?}");
                assert_eq!(cache.is_retired(db, name.as_bytes()), retired, "{id:?}");
                assert_eq!(cache.version_seen(db, name.as_bytes(), now), version, "{id:?}");
            }
        }
        let tagged = self.model.keys.values().filter(|cached| !cached.tags.is_empty()).count();
        for server in [&self.primary, &self.replica] {
            assert_eq!(server.state.cache.tagged_keys(), tagged, "no record without a key");
            assert_eq!(server.state.cache.counters.ghosts, 0);
        }
    }

    /// CACHE.GET of every key and CACHE.TAGKEYS of every tag.
    fn check_reads(&mut self) {
        let (db, now) = (self.primary.db, self.primary.now.to_ms().0);
        let fresh = |cached: &Cached| cached.expiry.is_none_or(|at| at > now) && cached.invalidated.is_empty();
        for key in 0..KEYS {
            let expected = self.model.keys.get(&(db, key)).filter(|cached| fresh(cached)).map(|c| c.value.clone());
            let reply = self.primary.call::<Get>(&format!("CACHE.GET k{key}")).unwrap();
            assert_eq!(reply, expected.as_ref().map_or(Reply::Nil, |value| Reply::Bytes(value.as_bytes())), "k{key}");
        }
        for tag in 0..TAGS {
            let reply = self.primary.call::<TagKeys>(&format!("CACHE.TAGKEYS t{tag} COUNT 100")).unwrap();
            let Reply::Array(parts) = reply else { panic!() };
            let [Reply::OwnedBytes(cursor), Reply::Array(keys)] = &*parts else { panic!() };
            assert_eq!(cursor, b"0");
            let listed: BTreeSet<Vec<u8>> =
                keys.iter().map(|key| if let Reply::OwnedBytes(key) = key { key.clone() } else { panic!() }).collect();
            let carriers = self.model.keys.iter().filter(|(id, c)| id.0 == db && fresh(c) && c.tags.contains(&tag));
            assert_eq!(listed, carriers.map(|(id, _)| key_name(id.1).into_bytes()).collect(), "t{tag}");
        }
    }

    /// Save, load, and the keys come: everything is the same again.
    fn restart(&mut self) {
        let (old, now) = (&self.primary, self.primary.now.to_ms());
        let mut new = FakeServer::new();
        new.now = old.now;
        new.state.config = old.state.config.clone();
        let mut chunks = Vec::new();
        old.state.save(&mut |kind, bytes| chunks.push((kind, bytes.to_vec())));
        for (kind, bytes) in chunks {
            new.state.load(kind, &bytes, now).unwrap();
        }
        for id in ids() {
            if let Some((value, expiry)) = stored(old, id) {
                let expiry = expiry.map(keyward::clock::UnixMs);
                let name = key_name(id.1).into_bytes();
                new.keys.insert((id.0, name.clone()), Entry { value: Value::String(value.into_bytes()), expiry });
                new.db = id.0;
                new.event(KeyEvent::Loaded, &name);
            }
        }
        new.state.loaded();
        new.db = old.db;
        self.primary = new;
    }

    /// When all keys are gone and the floors have run out, nothing is left in memory.
    fn check_no_leak(mut self) {
        while reclaim(&mut self.primary, 100) {}
        for db in 0..DBS {
            self.primary.db = db;
            for key in 0..KEYS {
                self.primary.unlink(&[key_name(key).as_bytes()]);
            }
        }
        self.primary.advance_ms(FLOOR_MS);
        self.primary.state.config.tag_history_max = 0;
        let now = self.primary.now.to_ms();
        self.primary.state.sweep(now, 100);
        assert_eq!(self.primary.state.cache.memory(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn model_server_and_replica_agree(ops in prop::collection::vec(op(), 1..120), restart_at in 0_usize..120) {
        let mut world = World::new();
        for (step, op) in ops.iter().enumerate() {
            if step == restart_at {
                world.restart();
                world.compare();
            }
            world.run(op);
        }
        world.check_no_leak();
    }
}
