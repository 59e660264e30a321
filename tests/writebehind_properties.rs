//! Write-behind queues under random operations: writers, workers that die before or after the database has what they claimed, time,
//! evictions, restarts and promotions. The database is a model that refuses what is not newer, as every worker must ask it to. After
//! every step:
//! - a record comes back with the same version and payload, before anything newer of its key, and a key is with one worker;
//! - a dirty value is readable, and nobody is elected to load it;
//! - a replica that sees nothing but the replicated stream has the same queue and the same cache.
//!
//! In the end the database has what was written, every increment once.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use keyward::apply::Apply;
use keyward::args::Arg;
use keyward::cache::commands::{fetch::Fetch, get::Get};
use keyward::clock::UnixMs;
use keyward::error::Error;
use keyward::fake_server::{Entry, FakeServer, Value};
use keyward::native::NativeValue;
use keyward::reply::Reply;
use keyward::server::Server;
use keyward::state::KeyEvent;
use keyward::writebehind::commands::{Ack, Claim, Config, Dead, Delete, DropDead, Increment, Info, Nack, Requeue, Set};
use keyward::writebehind::{Handle, due, put_back};
use proptest::collection::vec;
use proptest::prelude::*;

const QUEUE: &str = "q";
const KEYS: [&str; 3] = ["a", "b", "c"];
const WORKERS: [&str; 2] = ["w1", "w2"];
const LEASE_MS: i64 = 1000;

type Key = &'static str;

/// What becomes of a claim.
#[derive(Clone, Copy, Debug)]
enum Work {
    WriteAndAck,
    /// The worker dies after the database has it.
    WriteOnly,
    /// It dies before that.
    Nothing,
    Nack,
}

#[derive(Clone, Debug)]
enum Op {
    Set { key: Key, value: &'static str, px: Option<i64> },
    IncrBy { key: Key, by: i64 },
    Del { key: Key },
    Claim { worker: Key, count: usize },
    Work { claim: usize, work: Work },
    Advance(i64),
    Timer,
    Evict(Key),
    EvictQueue,
    PutBack,
    DeleteCached(Key),
    Config { delay_ms: i64, max_delay_ms: i64 },
    Requeue(Key),
    Restart,
    Promote,
}

fn op(works: &'static [Work]) -> impl Strategy<Value = Op> {
    let key = || prop::sample::select(&KEYS[..]);
    let value = prop::sample::select(&["1", "20", "-7", "9", "text"][..]);
    prop_oneof![
        10 => (key(), value, prop::option::of(1..2000_i64)).prop_map(|(key, value, px)| Op::Set { key, value, px }),
        12 => (key(), -9..10_i64).prop_map(|(key, by)| Op::IncrBy { key, by }),
        4 => key().prop_map(|key| Op::Del { key }),
        10 => (prop::sample::select(&WORKERS[..]), 1..4_usize).prop_map(|(worker, count)| Op::Claim { worker, count }),
        16 => (0..8_usize, prop::sample::select(works)).prop_map(|(claim, work)| Op::Work { claim, work }),
        8 => (0..1500_i64).prop_map(Op::Advance),
        4 => Just(Op::Timer),
        4 => key().prop_map(Op::Evict),
        3 => Just(Op::EvictQueue),
        2 => Just(Op::PutBack),
        3 => key().prop_map(Op::DeleteCached),
        1 => (0..300_i64, 0..600_i64).prop_map(|(delay_ms, max_delay_ms)| Op::Config { delay_ms, max_delay_ms }),
        2 => key().prop_map(Op::Requeue),
        1 => Just(Op::Restart),
        1 => Just(Op::Promote),
    ]
}

/// The same with increments alone, on keys that nobody else changes.
fn increments(works: &'static [Work]) -> impl Strategy<Value = Op> {
    op(works).prop_map(|op| match op {
        Op::Set { key, .. } | Op::Del { key } => Op::IncrBy { key, by: 1 },
        op => op,
    })
}

/// What a worker has in hand, whether its claim still holds or not.
#[derive(Clone, Debug)]
struct InHand {
    worker: String,
    key: String,
    version: i64,
    until: UnixMs,
}

/// A row of the database; a deleted one keeps its version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    value: Option<String>,
    version: i64,
}

struct World {
    primary: FakeServer,
    replica: FakeServer,
    database: BTreeMap<String, Row>,
    /// What was written, as if there were no queue.
    truth: BTreeMap<Key, Option<String>>,
    /// Keys of which an increment could not tell the value.
    unknown: BTreeMap<Key, bool>,
    /// The versions that were given out and are neither acked nor given up, by key. Joined ones are replaced.
    open: BTreeMap<Key, Vec<i64>>,
    /// What was claimed under each version.
    seen: BTreeMap<i64, (String, String)>,
    in_hand: Vec<InHand>,
    last_version: i64,
    attempts: i64,
}

fn text(reply: &Reply<'_>) -> String {
    match reply {
        Reply::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::OwnedBytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Shared(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Reply::Word(word) => (*word).to_owned(),
        Reply::Nil => "-".to_owned(),
        other => panic!("{other:?}"),
    }
}

fn number(reply: &Reply<'_>) -> i64 {
    if let Reply::Int(n) = reply { *n } else { panic!("{reply:?}") }
}

fn array<'a, 'b>(reply: &'b Reply<'a>) -> &'b [Reply<'a>] {
    if let Reply::Array(items) = reply { items } else { panic!("{reply:?}") }
}

/// The queue's dump, wherever it is.
fn queue_dump(server: &FakeServer) -> Option<Vec<u8>> {
    let id = (0, QUEUE.as_bytes().to_vec());
    let in_key = server.keys.get(&id).map(|entry| match &entry.value {
        Value::Native(value) => value.downcast_ref::<Handle>().unwrap().encode(&server.state),
        _ => panic!("the queue was overwritten"),
    });
    in_key.or_else(|| {
        let queued = server.state.writebehind.in_limbo(0, QUEUE.as_bytes())?;
        Some(server.state.writebehind.queue(queued.id)?.encode())
    })
}

/// The cached strings that have not expired.
fn cached(server: &FakeServer) -> BTreeMap<String, (String, Option<UnixMs>)> {
    let now = server.now.to_ms();
    let live = server.keys.iter().filter(|(_, entry)| entry.expiry.is_none_or(|at| now < at));
    let strings = live.filter_map(|((_, key), entry)| match &entry.value {
        Value::String(value) => {
            Some((String::from_utf8(key.clone()).unwrap(), (String::from_utf8(value.clone()).unwrap(), entry.expiry)))
        }
        _ => None,
    });
    strings.collect()
}

/// A server that starts from the file of another, or takes a full sync from it.
fn loaded_from(server: &FakeServer) -> FakeServer {
    let mut new = FakeServer::default();
    (new.now, new.replayed) = (server.now, true);
    let now = server.now;
    server.state.save(&mut |kind, bytes| new.state.load(kind, bytes, now.to_ms()).unwrap());
    for (id, entry) in &server.keys {
        let value = match &entry.value {
            Value::Native(value) => {
                let dump = value.downcast_ref::<Handle>().unwrap().encode(&server.state);
                Value::Native(Box::new(Handle::decode(&dump).unwrap()))
            }
            Value::String(value) => Value::String(value.clone()),
            Value::Other => Value::Other,
        };
        new.keys.insert(id.clone(), Entry { value, expiry: entry.expiry });
        new.event(KeyEvent::Loaded, &id.1);
        if let Value::Native(value) = &mut new.keys.get_mut(id).unwrap().value {
            value.downcast_mut::<Handle>().unwrap().linked(id.0, &id.1, &mut new.state, now);
        }
    }
    new.state.loaded();
    new
}

fn replay(server: &mut FakeServer, words: Vec<Vec<u8>>) {
    match &*words[0] {
        b"KEYWARD.APPLY" => drop(server.call_argv::<Apply>(words).unwrap()),
        b"WRITEBEHIND.ACK" => drop(server.call_argv::<Ack>(words).unwrap()),
        b"WRITEBEHIND.DROP" => drop(server.call_argv::<DropDead>(words).unwrap()),
        b"DEL" | b"UNLINK" => words[1..].iter().for_each(|key| {
            server.delete(Arg::named(key));
        }),
        other => panic!("{}", String::from_utf8_lossy(other)),
    }
}

impl World {
    fn new(attempts: i64) -> World {
        let mut primary = FakeServer::new();
        primary.call::<Config>(&format!("WRITEBEHIND.CONFIG q ATTEMPTS {attempts}")).unwrap();
        let replica = loaded_from(&primary);
        primary.take_replicated();
        World {
            primary,
            replica,
            database: BTreeMap::new(),
            truth: BTreeMap::new(),
            unknown: BTreeMap::new(),
            open: BTreeMap::new(),
            seen: BTreeMap::new(),
            in_hand: Vec::new(),
            last_version: 0,
            attempts,
        }
    }

    fn is_dirty(&self, key: &str) -> bool {
        let open = self.open.get(key).is_some_and(|versions| !versions.is_empty());
        let known = self.primary.state.dirty(0, key.as_bytes()).is_some();
        // Increments that were given up outlive an ACK of something newer.
        assert!(open == known || (known && self.attempts < 10), "{key}: {open} {known}");
        known
    }

    /// The reply of a command on the primary.
    fn line(&mut self, run: impl FnOnce(&mut FakeServer) -> Result<Reply<'_>, Error>) -> Reply<'static> {
        fn owned(reply: Reply<'_>) -> Reply<'static> {
            match reply {
                Reply::Bytes(bytes) => Reply::OwnedBytes(bytes.to_vec()),
                Reply::Hit(value) => {
                    Reply::Array(vec![Reply::Word("HIT"), Reply::OwnedBytes(value.to_vec()), Reply::Nil])
                }
                Reply::Array(items) => Reply::Array(items.into_iter().map(owned).collect()),
                Reply::Map(fields) => {
                    Reply::Map(fields.into_iter().map(|(name, value)| (name, owned(value))).collect())
                }
                Reply::Int(n) => Reply::Int(n),
                Reply::OwnedBytes(bytes) => Reply::OwnedBytes(bytes),
                Reply::Word(word) => Reply::Word(word),
                Reply::Nil => Reply::Nil,
                Reply::Ok => Reply::Ok,
                other => panic!("{other:?}"),
            }
        }
        owned(run(&mut self.primary).unwrap())
    }

    /// A write was given this version.
    fn wrote(&mut self, key: Key, version: i64, value: Option<String>) {
        assert!(version > self.last_version, "versions grow");
        self.last_version = version;
        self.truth.insert(key, value);
        // Which of them have joined is for the claims to show.
        self.open.entry(key).or_default().push(version);
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Set { key, value, px } => {
                let px = px.map_or_else(String::new, |px| format!(" PX {px}"));
                let version = number(&self.line(|s| s.call::<Set>(&format!("WRITEBEHIND.SET q {key} {value}{px}"))));
                self.wrote(key, version, Some(value.to_owned()));
                self.unknown.insert(key, false);
            }
            Op::Del { key } => {
                let version = number(&self.line(|s| s.call::<Delete>(&format!("WRITEBEHIND.DEL q {key}"))));
                self.wrote(key, version, None);
                self.unknown.insert(key, false);
            }
            Op::IncrBy { key, by } => self.increment(key, by),
            Op::Claim { worker, count } => self.claim(worker, count),
            Op::Work { claim, work } => self.work(claim, work),
            Op::Advance(ms) => self.advance(ms),
            Op::Timer => while due(&mut self.primary) {},
            Op::Evict(key) => self.primary.evict(key),
            Op::EvictQueue => self.primary.evict(QUEUE),
            Op::PutBack => drop(put_back(&mut self.primary, 10)),
            Op::DeleteCached(key) => {
                self.primary.unlink(&[key.as_bytes()]);
            }
            Op::Config { delay_ms, max_delay_ms } => {
                let line = format!("WRITEBEHIND.CONFIG q DELAY {delay_ms} MAXDELAY {max_delay_ms}");
                self.line(|s| s.call::<Config>(&line));
            }
            Op::Requeue(key) => drop(self.line(|s| s.call::<Requeue>(&format!("WRITEBEHIND.REQUEUE q {key}")))),
            Op::Restart => {
                self.sync();
                self.primary = loaded_from(&self.primary);
                self.primary.replayed = false;
                self.replica = loaded_from(&self.primary);
                self.lose_claims();
            }
            Op::Promote => {
                self.sync();
                std::mem::swap(&mut self.primary, &mut self.replica);
                self.primary.replayed = false;
                self.primary.state.role_changed(true);
                self.replica = loaded_from(&self.primary);
                self.lose_claims();
            }
        }
    }

    /// Workers go on with what they have, but nobody keeps it for them.
    fn lose_claims(&mut self) {
        self.in_hand.iter_mut().for_each(|claim| claim.until = UnixMs(0));
    }

    fn advance(&mut self, ms: i64) {
        self.primary.advance_ms(ms);
        self.replica.now = self.primary.now;
    }

    fn increment(&mut self, key: Key, by: i64) {
        let line = format!("WRITEBEHIND.INCRBY q {key} {by}");
        let before = self.truth.get(key).cloned().flatten().unwrap_or_else(|| "0".to_owned());
        let is_known = cached(&self.primary).contains_key(key) || self.is_dirty(key);
        match self.primary.call::<Increment>(&line).map(|reply| (number(&array(&reply)[1]), array(&reply)[0].clone())) {
            Err(error) => {
                assert_eq!((error, &*before), (Error::NotAnInteger, "text"));
            }
            Ok((version, value)) => {
                // Where nothing is known here, the database may hold a text; it adds to nothing then.
                let sum = before.parse::<i64>().unwrap_or(0) + by;
                match value {
                    Reply::Int(value) => assert_eq!(value, sum),
                    Reply::Nil => {
                        let was_unknown = self.unknown.insert(key, true);
                        assert!(!is_known || was_unknown == Some(true), "{key} had a value");
                    }
                    other => panic!("{other:?}"),
                }
                self.wrote(key, version, Some(sum.to_string()));
            }
        }
    }

    fn claim(&mut self, worker: Key, count: usize) {
        let now = self.primary.now.to_ms();
        let line = format!("WRITEBEHIND.CLAIM q {worker} COUNT {count} LEASE {LEASE_MS}");
        let reply = self.line(|s| s.call::<Claim>(&line));
        for record in array(&reply) {
            let [key, version, op, payload, attempt, age] = array(record) else { panic!() };
            let (key, version, op, payload) = (text(key), number(version), text(op), text(payload));
            assert!((1..=self.attempts).contains(&number(attempt)) && number(age) >= 0);
            let taken = self.in_hand.iter().any(|claim| claim.key == key && now < claim.until);
            assert!(!taken, "{key} is with two workers");
            if let Some(before) = self.seen.insert(version, (op.clone(), payload.clone())) {
                assert_eq!(before, (op, payload), "a frozen record has changed");
            }
            self.in_hand.push(InHand { worker: worker.to_owned(), key, version, until: now.plus(LEASE_MS) });
        }
    }

    /// What the worker does at the database: only if that is newer.
    fn write(&mut self, key: &str, version: i64) {
        let (op, payload) = self.seen[&version].clone();
        let row = self.database.entry(key.to_owned()).or_default();
        if row.version >= version {
            return;
        }
        row.version = version;
        row.value = match &*op {
            "SET" => Some(payload),
            "DEL" => None,
            "INCRBY" => {
                let before = row.value.as_deref().unwrap_or("0").parse::<i64>().unwrap_or(0);
                Some((before + payload.parse::<i64>().unwrap()).to_string())
            }
            other => panic!("{other}"),
        };
    }

    fn work(&mut self, claim: usize, work: Work) {
        if self.in_hand.is_empty() {
            return;
        }
        let claim = self.in_hand.remove(claim % self.in_hand.len());
        let InHand { worker, key, version, until } = claim;
        // Where records are given up, a worker that writes after its time may write an increment twice.
        let honest = self.attempts >= 10 || self.primary.now.to_ms() < until;
        match work {
            _ if !honest => {}
            Work::Nothing => {}
            Work::WriteOnly => self.write(&key, version),
            Work::WriteAndAck => {
                self.write(&key, version);
                self.ack(&worker, &key, version);
            }
            Work::Nack => {
                // Where records are given up, that is to happen often.
                let delay = if self.attempts < 10 { 0 } else { 50 };
                let line = format!("WRITEBEHIND.NACK q {worker} {key} {version} MSG no DELAY {delay}");
                let told = number(&self.line(|s| s.call::<Nack>(&line)));
                // A claim that has run out counts until somebody sees that.
                assert!(told == 1 || until <= self.primary.now.to_ms(), "the claim of {key} was lost");
                if told == 1 {
                    self.end_claims(&key, version);
                }
            }
        }
    }

    fn ack(&mut self, worker: &str, key: &str, version: i64) {
        let line = format!("WRITEBEHIND.ACK q {worker} {key} {version}");
        let cleaned = number(&self.line(|s| s.call::<Ack>(&line)));
        let open = self.open.entry(KEYS.into_iter().find(|known| *known == key).unwrap()).or_default();
        if cleaned == 1 {
            // With the version go those that had joined.
            open.retain(|other| *other > version);
            self.end_claims(key, version);
        } else {
            // REQUEUE may have found that it was overruled, or have given it another version.
            assert!(!open.contains(&version) || self.attempts < 10, "{key} {version} is still dirty");
        }
    }

    /// Whoever else has it, under the same name or before, has it for nothing.
    fn end_claims(&mut self, key: &str, version: i64) {
        let same = self.in_hand.iter_mut().filter(|claim| claim.key == key && claim.version == version);
        same.for_each(|claim| claim.until = UnixMs(0));
    }

    /// The replica receives what was sent.
    fn sync(&mut self) {
        for words in std::mem::take(&mut self.primary.replicated) {
            replay(&mut self.replica, words);
        }
        self.primary.replicated_in.clear();
        self.replica.take_replicated();
        assert_eq!(queue_dump(&self.replica), queue_dump(&self.primary), "the replica's queue");
        assert_eq!(cached(&self.replica), cached(&self.primary), "the replica's cache");
    }

    fn check(&mut self) {
        self.sync();
        for key in KEYS {
            let truth = self.truth.get(key).cloned().flatten();
            let is_cached = cached(&self.primary).contains_key(key);
            let (dirty, unknown) = (self.is_dirty(key), self.unknown.get(key).copied().unwrap_or(false));
            for server in [&mut self.primary, &mut self.replica] {
                // A replica's own reads go by its clock.
                let replayed = std::mem::replace(&mut server.replayed, false);
                let got = match server.call::<Get>(&format!("CACHE.GET {key}")).unwrap() {
                    Reply::Nil => None,
                    value => Some(text(&value)),
                };
                server.replayed = replayed;
                if dirty && !unknown {
                    assert_eq!(got, truth, "{key} is dirty and known");
                } else if !dirty {
                    assert_eq!(got, truth.clone().filter(|_| is_cached), "{key} is clean");
                } else {
                    assert!(got.is_none() || got == truth, "{key} is {got:?}");
                }
            }
            if dirty {
                let fetched = self.line(|s| s.call::<Fetch>(&format!("CACHE.FETCH {key}")));
                let status = text(&array(&fetched)[0]);
                let expected = if unknown {
                    &["BUSY", "HIT"][..]
                } else if truth.is_some() {
                    &["HIT"]
                } else {
                    &["NONE"]
                };
                assert!(expected.contains(&&*status), "FETCH of {key} is {status}");
            } else {
                self.unknown.insert(key, false);
            }
        }
        assert_eq!(self.primary.state.panics, 0);
    }

    /// Workers that do not fail do all the work.
    fn drain(&mut self) {
        for _ in 0..100 {
            if self.primary.state.writebehind.is_clean() {
                break;
            }
            self.advance(2 * LEASE_MS);
            while due(&mut self.primary) {}
            for key in KEYS {
                self.step(&Op::Requeue(key));
            }
            self.claim("w3", 10);
            while !self.in_hand.is_empty() {
                self.work(0, Work::WriteAndAck);
            }
            self.check();
        }
        let info = self.line(|s| s.call::<Info>("WRITEBEHIND.INFO q"));
        let Reply::Map(fields) = info else { panic!() };
        for (name, value) in fields {
            if ["dirty", "in_flight", "dead", "keys", "oldest_ms"].contains(&name) {
                assert_eq!(value, Reply::Int(0), "{name}");
            }
        }
        assert_eq!(self.line(|s| s.call::<Dead>("WRITEBEHIND.DEAD q")), Reply::Array(vec![]));
        assert!(self.primary.state.writebehind.is_clean());
        for (key, truth) in &self.truth {
            let row = self.database.get(*key).cloned().unwrap_or_default();
            assert_eq!(row.value, *truth, "{key} in the database");
        }
    }
}

fn run(attempts: i64, steps: &[Op]) {
    let mut world = World::new(attempts);
    for step in steps {
        world.step(step);
        world.check();
    }
    world.drain();
}

const ANY: &[Work] = &[Work::WriteAndAck, Work::WriteAndAck, Work::WriteOnly, Work::Nothing, Work::Nack];

/// Whoever gives up has not written, and whose time is over does not write.
const HONEST: &[Work] = &[Work::WriteAndAck, Work::Nothing, Work::Nack, Work::Nack];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_database_ends_with_what_was_written(steps in vec(op(ANY), 1..80)) {
        run(1_000_000, &steps);
    }

    #[test]
    fn what_was_given_up_is_not_lost(steps in vec(op(HONEST), 1..80), attempts in 1..3_i64) {
        run(attempts, &steps);
    }

    #[test]
    fn every_increment_counts_once(steps in vec(increments(HONEST), 1..80), attempts in 1..3_i64) {
        run(attempts, &steps);
    }
}
