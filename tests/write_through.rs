//! Random writers, loaders, plain commands and accidents against write-through on the in-memory server. A database holds a
//! version for each row; writers announce their writes and commit them, roll them back or die; loaders read a row when they are
//! elected and fill later. After every step:
//! - while a write is under way its key is read as stale, and nobody is elected; on a replica as well;
//! - a COMMIT stores if nobody else touched the key since its intent, and never if somebody may have;
//! - no read that starts after a write was over returns an older row, and when nobody is late with his COMMIT the cache has
//!   the row as it is, or nothing.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use keyward::apply::Apply;
use keyward::cache::commands::commit::Commit;
use keyward::cache::commands::fail::Fail;
use keyward::cache::commands::fetch::Fetch;
use keyward::cache::commands::fill::Fill;
use keyward::cache::commands::get::Get;
use keyward::cache::commands::intent::Intent;
use keyward::cache::commands::invalidate::Invalidate;
use keyward::cache::commands::invalidate_tag::InvalidateTag;
use keyward::cache::commands::rollback::Rollback;
use keyward::cache::commands::set::Set;
use keyward::cache::commands::ttl::Ttl;
use keyward::cache::{due, reclaim};
use keyward::fake_server::{Entry, FakeServer, Value};
use keyward::reply::Reply;
use keyward::server::{Server, Waiter};
use keyward::state::{KeyEvent, State};
use proptest::prelude::*;

const KEYS: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    Begin {
        key: usize,
        ms: i64,
    },
    /// The nth writer writes to the database.
    Write(usize),
    /// He tells the cache how it went.
    End {
        writer: usize,
        with: With,
    },
    Die(usize),
    Fetch {
        key: usize,
        wait: bool,
        never: bool,
    },
    /// The nth load under way brings what was read.
    Fill(usize),
    Fail(usize),
    /// Somebody writes the row without an intent, and tells the cache in one of several ways.
    Update {
        key: usize,
        how: How,
    },
    /// Somebody stores the row as it is without having been elected, with CACHE.SET or a plain SET.
    Store {
        key: usize,
        plain: bool,
    },
    /// The same for all rows, with a tag that all keys carry: more of them than are unlinked at once.
    UpdateAll,
    Unknown(usize),
    Evict(usize),
    Flush,
    Advance(i64),
    Leave(usize),
    Reclaim,
    /// For some steps write commands are held, and timers may do nothing.
    Pause(usize),
    Accident(Accident),
}

#[derive(Clone, Copy, Debug)]
enum With {
    /// The row he wrote.
    Value,
    /// The same without its tags.
    Untagged,
    Version,
    /// A COMMIT without a value.
    Nothing,
    /// It came to nothing, if he has not written yet.
    Rollback,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Invalidate,
    Tag,
    Delete,
}

#[derive(Clone, Copy, Debug)]
enum Accident {
    Restart,
    Failover,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS;
    let with = prop_oneof![
        4 => Just(With::Value),
        2 => Just(With::Untagged),
        4 => Just(With::Version),
        1 => Just(With::Nothing),
        2 => Just(With::Rollback),
    ];
    prop_oneof![
        12 => (key(), 1..8_000i64).prop_map(|(key, ms)| Op::Begin { key, ms }),
        12 => (0..3usize).prop_map(Op::Write),
        16 => (0..3usize, with).prop_map(|(writer, with)| Op::End { writer, with }),
        1 => (0..3usize).prop_map(Op::Die),
        12 => (key(), any::<bool>(), any::<bool>()).prop_map(|(key, wait, never)| Op::Fetch { key, wait, never }),
        8 => (0..4usize).prop_map(Op::Fill),
        1 => (0..4usize).prop_map(Op::Fail),
        10 => (key(), any::<bool>()).prop_map(|(key, plain)| Op::Store { key, plain }),
        3 => (key(), prop_oneof![Just(How::Invalidate), Just(How::Tag), Just(How::Delete)])
            .prop_map(|(key, how)| Op::Update { key, how }),
        2 => Just(Op::UpdateAll),
        1 => key().prop_map(Op::Unknown),
        1 => key().prop_map(Op::Evict),
        1 => Just(Op::Flush),
        4 => (1..3_000i64).prop_map(Op::Advance),
        1 => (0..4usize).prop_map(Op::Leave),
        2 => Just(Op::Reclaim),
        2 => (1..6usize).prop_map(Op::Pause),
        1 => prop_oneof![Just(Accident::Restart), Just(Accident::Failover)].prop_map(Op::Accident),
    ]
}

/// Somebody who announced a write. Moments are steps.
#[derive(Clone, Debug)]
struct Writer {
    key: usize,
    token: String,
    began: usize,
    until: i64,
    /// When his intent was over, in whatever way.
    over: Option<usize>,
    wrote: Option<u64>,
    /// He is still there to say how it went.
    lives: bool,
}

impl Writer {
    fn is_open(&self, now: i64) -> bool {
        self.over.is_none() && now < self.until
    }

    /// He wrote when nothing protected the key any more, and has not said so.
    fn is_late(&self) -> bool {
        self.lives && self.over.is_some() && self.wrote.is_some()
    }
}

/// Somebody who was elected, and the version he read.
#[derive(Clone, Debug)]
struct Load {
    key: usize,
    token: String,
    version: u64,
}

struct World {
    primary: FakeServer,
    replica: FakeServer,
    /// The rows, and the oldest that a read may return that starts now.
    rows: [u64; KEYS],
    floors: [u64; KEYS],
    writers: Vec<Writer>,
    loads: Vec<Load>,
    /// Who waits: his key, and the oldest version he may be told.
    waiters: BTreeMap<Waiter, (usize, u64)>,
    /// When each key was changed by somebody who ended no intent of his own by it.
    changes: [Vec<usize>; KEYS],
    /// When its tag was invalidated, and there was no key that carried it.
    tag_hits: [Vec<usize>; KEYS],
    step: usize,
    answered: usize,
    paused_until: usize,
}

fn name(key: usize) -> String {
    format!("k{key}")
}

fn text(reply: &Reply<'_>) -> Option<String> {
    let bytes = match reply {
        Reply::Word(word) => word.as_bytes(),
        Reply::Bytes(bytes) => bytes,
        Reply::OwnedBytes(bytes) => bytes,
        Reply::Shared(bytes) => bytes,
        _ => return None,
    };
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

type Told = (String, Option<String>, Option<String>);

/// Status, value, token.
fn parts(reply: &Reply<'_>) -> Told {
    match reply {
        Reply::Hit(value) => ("HIT".to_owned(), text(&Reply::Bytes(value)), None),
        Reply::Array(items) => (text(&items[0]).unwrap(), text(&items[1]), text(&items[2])),
        other => panic!("{other:?}"),
    }
}

fn get(server: &mut FakeServer, key: usize) -> Option<u64> {
    text(&server.call::<Get>(&format!("CACHE.GET {}", name(key))).unwrap()).map(|value| value.parse().unwrap())
}

/// What a full sync or a restart leaves of a server: the keys and what is saved.
fn reborn(server: &FakeServer, as_replica: bool) -> FakeServer {
    let mut new = FakeServer::new();
    (new.now, new.replayed, new.replica) = (server.now, as_replica, as_replica);
    new.state.config = server.state.config.clone();
    let (config, now) = (new.state.config.clone(), new.now.to_ms());
    let mut state = State { config, ..State::default() };
    server.state.save(&mut |kind, bytes| state.load(kind, bytes, now).unwrap());
    new.state = state;
    for ((db, key), entry) in &server.keys {
        let Value::String(bytes) = &entry.value else { panic!("only strings") };
        new.keys.insert((*db, key.clone()), Entry { value: Value::String(bytes.clone()), expiry: entry.expiry });
        new.event(KeyEvent::Loaded, key);
    }
    new.state.loaded();
    new
}

impl World {
    fn new(sync_keys: i64) -> World {
        let mut primary = FakeServer::new();
        primary.state.config.invalidate_sync_keys = sync_keys;
        primary.state.cache.set_epoch(1);
        let replica = reborn(&primary, true);
        World {
            primary,
            replica,
            rows: [0; KEYS],
            floors: [0; KEYS],
            writers: Vec::new(),
            loads: Vec::new(),
            waiters: BTreeMap::new(),
            changes: Default::default(),
            tag_hits: Default::default(),
            step: 0,
            answered: 0,
            paused_until: 0,
        }
    }

    /// Some values expire soon.
    fn ttl(&self) -> i64 {
        if self.step.is_multiple_of(3) { 2_000 } else { 30_000 }
    }

    fn now(&self) -> i64 {
        self.primary.now.to_ms().0
    }

    fn is_open(&self, key: usize) -> bool {
        self.writers.iter().any(|writer| writer.key == key && writer.is_open(self.now()))
    }

    /// One whose time is over, and nobody has come by to remove the key.
    fn has_run_out(&self, key: usize) -> bool {
        let now = self.now();
        self.writers.iter().any(|writer| writer.key == key && writer.over.is_none() && now >= writer.until)
    }

    /// The nth of those who are still there.
    fn living(&self, nth: usize) -> Option<usize> {
        self.writers.iter().enumerate().filter(|(_, writer)| writer.lives).map(|(at, _)| at).nth(nth)
    }

    fn run(&mut self, op: Op) {
        self.step += 1;
        let held = !matches!(op, Op::Write(_) | Op::Fetch { .. } | Op::Advance(_) | Op::Leave(_));
        let paused = self.step < self.paused_until;
        if !(paused && held) {
            self.apply(op);
        }
        if !paused {
            self.timers();
        }
        self.forward();
        self.collect();
        self.check();
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Begin { key, ms } => self.begin(key, ms),
            Op::Write(nth) => self.write(nth),
            Op::End { writer, with } => self.end(writer, with),
            Op::Die(nth) => self.die(nth),
            Op::Fetch { key, wait, never } => self.fetch(key, wait, never),
            Op::Fill(nth) => self.fill(nth),
            Op::Fail(nth) => {
                if let Some(load) = self.load(nth) {
                    let line = format!("CACHE.FAIL {} {}", name(load.key), load.token);
                    self.primary.call::<Fail>(&line).unwrap();
                }
            }
            Op::Update { key, how } => self.update(key, how),
            Op::UpdateAll => self.update_all(),
            Op::Store { key, plain } => self.store(key, plain),
            Op::Unknown(key) => {
                self.run_out(key);
                let line = format!("CACHE.COMMIT {} nobody {}", name(key), self.rows[key]);
                assert_eq!(self.primary.call::<Commit>(&line), Ok(Reply::Int(0)));
                self.changes[key].push(self.step);
                self.assert_gone(key);
            }
            Op::Evict(key) => self.primary.evict(&name(key)),
            Op::Flush => {
                for server in [&mut self.primary, &mut self.replica] {
                    server.keys.clear();
                    server.state.flushed(None);
                }
                self.all_are_over();
            }
            Op::Advance(ms) => {
                self.primary.advance_ms(ms);
                self.replica.now = self.primary.now;
            }
            Op::Leave(nth) => {
                if let Some(&waiter) = self.waiters.keys().nth(nth) {
                    self.waiters.remove(&waiter);
                    self.primary.waiting.remove(&waiter);
                    self.primary.state.waiter_left(waiter);
                }
            }
            Op::Reclaim => while reclaim(&mut self.primary, 1) {},
            Op::Pause(steps) => self.paused_until = self.step + steps,
            Op::Accident(accident) => self.accident(accident),
        }
    }

    /// What the host's timer does.
    fn timers(&mut self) {
        for key in 0..KEYS {
            self.run_out(key);
        }
        while self.primary.state.cache.next_deadline().is_some_and(|at| at <= self.primary.now.to_ms()) {
            assert!(due(&mut self.primary));
        }
    }

    /// Those whose time is over end now, by whatever comes first: a timer, or a command for the key.
    fn run_out(&mut self, key: usize) {
        let (now, step) = (self.now(), self.step);
        for writer in &mut self.writers {
            if writer.key == key && writer.over.is_none() && now >= writer.until {
                writer.over = Some(step);
                self.changes[key].push(step);
                // What he wrote in time is protected by the removal.
                if writer.wrote.is_some() {
                    self.floors[key] = self.rows[key];
                }
            }
        }
    }

    fn all_are_over(&mut self) {
        let step = self.step;
        for writer in &mut self.writers {
            writer.over.get_or_insert(step);
        }
        for changes in &mut self.changes {
            changes.push(step);
        }
    }

    fn begin(&mut self, key: usize, ms: i64) {
        self.run_out(key);
        let line = format!("CACHE.INTENT {} PX {ms}", name(key));
        let token = text(&self.primary.call::<Intent>(&line).unwrap()).unwrap();
        assert!(self.writers.iter().all(|writer| writer.token != token) && token.len() <= 40);
        let (began, until) = (self.step, self.now() + ms);
        self.writers.push(Writer { key, token, began, until, over: None, wrote: None, lives: true });
    }

    fn write(&mut self, nth: usize) {
        let Some(at) = self.living(nth).filter(|at| self.writers[*at].wrote.is_none()) else { return };
        let key = self.writers[at].key;
        self.rows[key] += 1;
        self.writers[at].wrote = Some(self.rows[key]);
    }

    /// One who wrote too late always says so: what he wrote is in the database, and nothing else would tell the cache.
    fn die(&mut self, nth: usize) {
        if let Some(at) = self.living(nth).filter(|at| !self.writers[*at].is_late()) {
            self.writers[at].lives = false;
        }
    }

    fn end(&mut self, nth: usize, with: With) {
        let Some(at) = self.living(nth) else { return };
        let with = match (with, self.writers[at].wrote) {
            (With::Rollback, Some(_)) => With::Value,
            (with, _) => with,
        };
        if !matches!(with, With::Rollback) {
            self.write(nth);
        }
        self.run_out(self.writers[at].key);
        self.writers[at].lives = false;
        let writer = self.writers[at].clone();
        let key = writer.key;
        let Some(version) = writer.wrote else {
            let line = format!("CACHE.ROLLBACK {} {}", name(key), writer.token);
            let known = Reply::yes_no(writer.over.is_none());
            assert_eq!(self.primary.call::<Rollback>(&line), Ok(known));
            self.writers[at].over.get_or_insert(self.step);
            return;
        };
        // A value without its tags cannot be reached by them: it is only brought where that does no harm.
        let with = match with {
            With::Untagged if self.tag_hits[key].iter().any(|at| *at > writer.began) => With::Value,
            with => with,
        };
        let ttl = self.ttl();
        let new = match with {
            With::Untagged => format!(" {version} PX {ttl}"),
            With::Value => format!(" {version} TAGS 2 t{key} all PX {ttl}"),
            With::Version => format!(" {version} TAGS 2 t{key} all VERSION {version} PX {ttl}"),
            With::Nothing | With::Rollback => String::new(),
        };
        let line = format!("CACHE.COMMIT {} {}{new}", name(key), writer.token);
        let done = self.primary.call::<Commit>(&line).unwrap() == Reply::Int(1);
        self.judge(&writer, with, done);
        self.writers[at].over.get_or_insert(self.step);
        self.floors[key] = self.floors[key].max(version);
        let left = self.stored(key);
        if done && !matches!(with, With::Nothing) {
            assert_eq!(left, Some(version));
        } else {
            // A version that is not newer leaves the newer one.
            assert!(left.is_none_or(|left| matches!(with, With::Version) && left > version), "{left:?} was left");
            self.changes[key].extend(left.is_none().then_some(self.step));
        }
    }

    /// What is in the keyspace, whoever may see it.
    fn stored(&self, key: usize) -> Option<u64> {
        match &self.primary.keys.get(&(0, name(key).into_bytes()))?.value {
            Value::String(bytes) => Some(String::from_utf8(bytes.clone()).unwrap().parse().unwrap()),
            _ => panic!("only strings"),
        }
    }

    /// Was it right that this COMMIT stored, or did not?
    fn judge(&self, writer: &Writer, with: With, done: bool) {
        let overlaps = |other: &Writer| {
            let apart = other.key != writer.key || other.over.is_some_and(|over| over <= writer.began);
            !apart && other.token != writer.token
        };
        let overlapped = self.writers.iter().any(overlaps);
        let since = |moments: &[usize]| moments.iter().any(|at| *at > writer.began);
        let changed = since(&self.changes[writer.key])
            || (!matches!(with, With::Nothing | With::Untagged) && since(&self.tag_hits[writer.key]));
        if writer.over.is_some() || changed || (overlapped && !matches!(with, With::Version)) {
            assert!(!done, "{writer:?} stored");
        } else if !overlapped {
            assert!(done, "{writer:?} was refused");
        }
    }

    fn assert_gone(&self, key: usize) {
        assert!(!self.primary.holds(&name(key)));
    }

    fn fetch(&mut self, key: usize, wait: bool, never: bool) {
        let oldest = self.floors[key];
        let hidden = self.is_open(key) || self.has_run_out(key);
        let line = format!(
            "CACHE.FETCH {}{}{} LEASE 5000",
            name(key),
            if wait { " WAIT 0" } else { "" },
            if never { " STALE NEVER" } else { "" },
        );
        let reply = self.primary.call::<Fetch>(&line).unwrap();
        if reply == Reply::Later {
            let waiter = *self.primary.waiting.keys().last().unwrap();
            assert!(self.waiters.insert(waiter, (key, oldest)).is_none());
            return;
        }
        let told = parts(&reply);
        let allowed: &[&str] = match (hidden, self.has_run_out(key), never) {
            (false, ..) => &["HIT", "MISS", "STALE", "BUSY"],
            (true, false, false) => &["STALE", "BUSY"],
            (true, true, _) | (true, _, true) => &["BUSY"],
        };
        assert!(allowed.contains(&told.0.as_str()), "{told:?}");
        self.told(key, oldest, told);
    }

    fn told(&mut self, key: usize, oldest: u64, (status, value, token): Told) {
        if let Some(value) = value {
            assert!(value.parse::<u64>().unwrap() >= oldest, "{status} of row {value}, not {oldest}, of {key}");
        }
        if let Some(token) = token {
            assert!(!self.is_open(key) && !self.has_run_out(key), "elected while the row is being written");
            self.loads.push(Load { key, token, version: self.rows[key] });
        }
    }

    fn load(&mut self, nth: usize) -> Option<Load> {
        (nth < self.loads.len()).then(|| self.loads.remove(nth))
    }

    fn fill(&mut self, nth: usize) {
        let Some(Load { key, token, version }) = self.load(nth) else { return };
        let hidden = self.is_open(key) || self.has_run_out(key);
        let ttl = self.ttl();
        let line = format!("CACHE.FILL {} {token} {version} TAGS 2 t{key} all PX {ttl}", name(key));
        let done = self.primary.call::<Fill>(&line).unwrap();
        assert!(!hidden || done == Reply::Int(0), "filled while the row is being written");
    }

    fn update(&mut self, key: usize, how: How) {
        let there = self.primary.exists(name(key).as_bytes());
        match how {
            How::Tag if self.has_no_tags(key) => return,
            // A DEL of what is not there tells nobody.
            How::Delete if !there => return,
            How::Invalidate | How::Tag | How::Delete => self.rows[key] += 1,
        }
        match how {
            How::Invalidate => {
                self.primary.call::<Invalidate>(&format!("CACHE.INVALIDATE {}", name(key))).unwrap();
            }
            How::Tag => {
                self.primary.call::<InvalidateTag>(&format!("CACHE.INVALIDATETAG t{key}")).unwrap();
            }
            How::Delete => assert_eq!(self.primary.unlink(&[name(key).as_bytes()]), 1),
        }
        self.updated(key, matches!(how, How::Tag) && !there);
    }

    fn update_all(&mut self) {
        if (0..KEYS).any(|key| self.has_no_tags(key)) {
            return;
        }
        let there: Vec<bool> = (0..KEYS).map(|key| self.primary.exists(name(key).as_bytes())).collect();
        self.rows.iter_mut().for_each(|row| *row += 1);
        self.primary.call::<InvalidateTag>("CACHE.INVALIDATETAG all").unwrap();
        for (key, there) in there.into_iter().enumerate() {
            self.updated(key, !there);
        }
    }

    fn store(&mut self, key: usize, plain: bool) {
        let row = self.rows[key].to_string();
        if plain {
            self.primary.exists(name(key).as_bytes());
            self.primary.put_string(&name(key), &row);
            self.replica.put_string(&name(key), &row);
        } else {
            let ttl = self.ttl();
            let line = format!("CACHE.SET {} {row} TAGS 2 t{key} all PX {ttl}", name(key));
            self.primary.call::<Set>(&line).unwrap();
        }
        self.changes[key].push(self.step);
    }

    /// What a plain SET has stored carries no tag, and would not be reached by it.
    fn has_no_tags(&mut self, key: usize) -> bool {
        let there = self.primary.exists(name(key).as_bytes());
        there && self.primary.state.cache.tags(0, name(key).as_bytes()).next().is_none()
    }

    fn updated(&mut self, key: usize, only_its_tag: bool) {
        let moments = if only_its_tag { &mut self.tag_hits } else { &mut self.changes };
        moments[key].push(self.step);
        self.floors[key] = self.rows[key];
        assert_eq!(get(&mut self.primary, key), None);
    }

    /// The server is another process now, or another server. Whoever waited has lost his connection.
    fn accident(&mut self, accident: Accident) {
        self.forward();
        for (key, floor) in self.floors.iter_mut().enumerate() {
            let wrote = |writer: &Writer| writer.key == key && writer.over.is_none() && writer.wrote.is_some();
            if self.writers.iter().any(wrote) {
                *floor = self.rows[key];
            }
        }
        self.all_are_over();
        self.primary = match accident {
            Accident::Restart => reborn(&self.primary, false),
            Accident::Failover => {
                let mut promoted = std::mem::replace(&mut self.replica, FakeServer::new());
                (promoted.replica, promoted.replayed) = (false, false);
                promoted.state.role_changed(true);
                promoted
            }
        };
        self.primary.state.cache.set_epoch(1 + self.step as u64);
        self.replica = reborn(&self.primary, true);
        self.waiters.clear();
        self.answered = 0;
        for key in 0..KEYS {
            assert!(self.writers.iter().all(|writer| writer.key != key || !writer.is_open(self.now())));
        }
    }

    /// Sends the replica what was replicated, with the deletion of what has expired before it.
    fn forward(&mut self) {
        for key in 0..KEYS {
            let id = (0, name(key).into_bytes());
            let expiry = |server: &FakeServer| server.keys.get(&id).map(|entry| entry.expiry);
            let over = expiry(&self.replica).flatten().is_some_and(|at| at <= self.primary.now.to_ms());
            if over && expiry(&self.primary) != expiry(&self.replica) {
                self.replica.unlink(&[&id.1]);
            }
        }
        for words in std::mem::take(&mut self.primary.replicated) {
            match words[0].as_slice() {
                b"UNLINK" | b"DEL" => {
                    let keys: Vec<&[u8]> = words[1..].iter().map(Vec::as_slice).collect();
                    self.replica.unlink(&keys);
                }
                b"CACHE.SET" => drop(self.replica.call_argv::<Set>(words).unwrap()),
                b"KEYWARD.APPLY" => drop(self.replica.call_argv::<Apply>(words).unwrap()),
                other => panic!("{:?}", String::from_utf8_lossy(other)),
            }
        }
        self.replica.replicated.clear();
    }

    /// Whoever was answered by the last step.
    fn collect(&mut self) {
        let answers: Vec<_> =
            self.primary.answers[self.answered..].iter().map(|(waiter, reply)| (*waiter, parts(reply))).collect();
        self.answered += answers.len();
        for (waiter, told) in answers {
            let (key, oldest) = self.waiters.remove(&waiter).expect("answered once");
            self.told(key, oldest, told);
        }
        assert!(self.waiters.keys().eq(self.primary.waiting.keys()));
        assert_eq!(self.primary.state.cache.waiters(), self.waiters.len());
    }

    fn check(&mut self) {
        let open = self.writers.iter().filter(|writer| writer.over.is_none()).count();
        assert_eq!(self.primary.state.cache.intents(), open);
        assert_eq!(self.primary.state.cache.needs_write_events(), open > 0 || self.primary.state.cache.has_retired());
        for key in 0..KEYS {
            let hidden = self.is_open(key) || self.has_run_out(key);
            let seen = get(&mut self.primary, key);
            assert!(!hidden || seen.is_none(), "{key} is read as fresh while its row is being written");
            let expiry = self.replica.keys.get(&(0, name(key).into_bytes())).and_then(|entry| entry.expiry);
            let expired = expiry.is_some_and(|at| at <= self.primary.now.to_ms());
            let on_replica = get(&mut self.replica, key).filter(|_| !expired);
            assert!(!hidden || on_replica.is_none(), "{key} is read as fresh on the replica");
            let in_doubt = self.writers.iter().any(|writer| writer.key == key && writer.is_late());
            for value in [seen, on_replica].into_iter().flatten() {
                assert!(in_doubt || value == self.rows[key], "{value} of {key}, not {}", self.rows[key]);
            }
            if self.is_open(key) && !self.has_run_out(key) && self.primary.holds(&name(key)) {
                for server in [&mut self.primary, &mut self.replica] {
                    let Ok(Reply::Ints(ttl)) = server.call::<Ttl>(&format!("CACHE.TTL {}", name(key))) else {
                        panic!()
                    };
                    assert!(ttl[0] <= 0, "{ttl:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn the_cache_never_has_an_older_row_than_the_database(
        ops in prop::collection::vec(op(), 1..80),
        sync_keys in 1..3i64,
    ) {
        let mut world = World::new(sync_keys);
        for op in ops {
            world.run(op);
        }
        // Everybody says how it went, and everybody who waits is answered in the end.
        world.paused_until = 0;
        while world.living(0).is_some() {
            world.run(Op::End { writer: 0, with: With::Value });
        }
        for _ in 0..200 {
            world.loads.clear();
            world.run(Op::Advance(5_000));
            let cache = &world.primary.state.cache;
            if world.waiters.is_empty() && cache.leases() == 0 && cache.intents() == 0 {
                break;
            }
        }
        world.run(Op::Reclaim);
        prop_assert!(world.waiters.is_empty());
        let cache = &world.primary.state.cache;
        prop_assert_eq!((cache.leases(), cache.fence_tags(), cache.intents(), cache.needs_write_events()), (0, 0, 0, false));
        prop_assert_eq!(world.replica.state.cache.intents(), 0);
    }
}
