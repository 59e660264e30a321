//! Random callers, writers and events against single flight on the in-memory server. An origin holds a version for each key;
//! whoever loads reads it when elected and fills later. After every step:
//! - a key has at most one live lease, and whoever waits is answered once;
//! - no read that starts after an invalidation of version n has replied returns an older version.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use keyward::cache::commands::fail::Fail;
use keyward::cache::commands::fetch::Fetch;
use keyward::cache::commands::fill::Fill;
use keyward::cache::commands::fill_nil::FillNil;
use keyward::cache::commands::get::Get;
use keyward::cache::commands::invalidate::Invalidate;
use keyward::cache::commands::invalidate_tag::InvalidateTag;
use keyward::cache::commands::stale_tag::StaleTag;
use keyward::cache::{due, reclaim};
use keyward::fake_server::FakeServer;
use keyward::reply::Reply;
use keyward::server::{Server, Waiter};
use keyward::state::KeyEvent;
use proptest::prelude::*;

const KEYS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Fetch {
        key: usize,
        wait: bool,
        never: bool,
    },
    /// The nth load under way brings what was read, with the tag of its key or without.
    Fill {
        load: usize,
        tagged: bool,
    },
    FillNil {
        load: usize,
    },
    Fail {
        load: usize,
        message: bool,
    },
    /// The row changes, and the cache is told in one of several ways.
    Update {
        key: usize,
        how: How,
    },
    Expire(usize),
    Evict(usize),
    Flush,
    Advance(i64),
    Leave(usize),
    Reclaim,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Invalidate,
    Tag,
    Delete,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..KEYS;
    prop_oneof![
        8 => (key(), any::<bool>(), any::<bool>()).prop_map(|(key, wait, never)| Op::Fetch { key, wait, never }),
        6 => (0..4usize, any::<bool>()).prop_map(|(load, tagged)| Op::Fill { load, tagged }),
        1 => (0..4usize).prop_map(|load| Op::FillNil { load }),
        2 => (0..4usize, any::<bool>()).prop_map(|(load, message)| Op::Fail { load, message }),
        4 => (key(), prop_oneof![Just(How::Invalidate), Just(How::Tag), Just(How::Delete)])
            .prop_map(|(key, how)| Op::Update { key, how }),
        1 => key().prop_map(Op::Expire),
        1 => key().prop_map(Op::Evict),
        1 => Just(Op::Flush),
        3 => (1..4_000i64).prop_map(Op::Advance),
        1 => (0..4usize).prop_map(Op::Leave),
        2 => Just(Op::Reclaim),
    ]
}

/// Somebody who was elected: the key, his token, and the version he read.
#[derive(Clone, Debug)]
struct Load {
    key: usize,
    token: String,
    version: u64,
}

#[derive(Default)]
struct World {
    server: FakeServer,
    /// The version in the origin, and the oldest that a read may return that starts now.
    versions: [u64; KEYS],
    floors: [u64; KEYS],
    loads: Vec<Load>,
    /// Who waits: his key, and the oldest version he may be told.
    waiters: BTreeMap<Waiter, (usize, u64)>,
    seen: usize,
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

/// Status, value, token.
fn parts(reply: &Reply<'_>) -> (String, Option<String>, Option<String>) {
    match reply {
        Reply::Hit(value) => ("HIT".to_owned(), text(&Reply::Bytes(value)), None),
        Reply::Array(items) => (text(&items[0]).unwrap(), text(&items[1]), text(&items[2])),
        other => panic!("{other:?}"),
    }
}

impl World {
    fn told(&mut self, key: usize, oldest: u64, (status, value, token): (String, Option<String>, Option<String>)) {
        match status.as_str() {
            "HIT" | "STALE" | "REFRESH" => {
                let version: u64 = value.unwrap().parse().unwrap();
                assert!(version >= oldest, "{status} of version {version}, not {oldest}, of {key}");
            }
            "MISS" => assert!(token.is_some(), "the table is not full"),
            "BUSY" | "NONE" | "ERROR" => {}
            other => panic!("{other}"),
        }
        if let Some(token) = token {
            self.loads.push(Load { key, token, version: self.versions[key] });
        }
    }

    /// Whoever was answered by the last step.
    fn collect(&mut self) {
        let answers: Vec<_> = self.server.answers[self.seen..].iter().map(|(w, reply)| (*w, parts(reply))).collect();
        self.seen += answers.len();
        for (waiter, answer) in answers {
            let (key, oldest) = self.waiters.remove(&waiter).expect("answered once");
            self.told(key, oldest, answer);
        }
        assert!(self.waiters.keys().eq(self.server.waiting.keys()));
        assert_eq!(self.server.state.cache.waiters(), self.waiters.len());
    }

    fn load(&mut self, number: usize) -> Option<Load> {
        (number < self.loads.len()).then(|| self.loads.remove(number))
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Fetch { key, wait, never } => self.fetch(key, wait, never),
            Op::Fill { load, tagged } => {
                let Some(load) = self.load(load) else { return };
                let tags = if tagged { format!(" TAGS 1 t{}", load.key) } else { String::new() };
                let line =
                    format!("CACHE.FILL {} {} {} PX 3000 GRACE 3000{tags}", name(load.key), load.token, load.version);
                // A value without the tag of its row cannot be reached by it: it is only filled where it is current.
                if tagged || load.version == self.versions[load.key] {
                    self.server.call::<Fill>(&line).unwrap();
                }
            }
            Op::FillNil { load } => {
                let Some(load) = self.load(load) else { return };
                let line = format!("CACHE.FILLNIL {} {} PX 3000 TAGS 1 t{}", name(load.key), load.token, load.key);
                self.server.call::<FillNil>(&line).unwrap();
            }
            Op::Fail { load, message } => {
                let Some(load) = self.load(load) else { return };
                let message = if message { " MSG down" } else { "" };
                self.server.call::<Fail>(&format!("CACHE.FAIL {} {}{message}", name(load.key), load.token)).unwrap();
            }
            Op::Update { key, how } => self.update(key, how),
            Op::Expire(key) => self.gone(key, KeyEvent::Expired),
            Op::Evict(key) => self.gone(key, KeyEvent::Evicted),
            Op::Flush => {
                self.server.keys.clear();
                self.server.state.flushed(None);
            }
            Op::Advance(ms) => self.server.advance_ms(ms),
            Op::Leave(number) => {
                if let Some(&waiter) = self.waiters.keys().nth(number) {
                    self.waiters.remove(&waiter);
                    self.server.waiting.remove(&waiter);
                    self.server.state.cache.waiter_left(waiter);
                }
            }
            Op::Reclaim => while reclaim(&mut self.server, 2) {},
        }
        while self.server.state.cache.next_deadline().is_some_and(|at| at <= self.server.now().to_ms()) {
            assert!(due(&mut self.server));
        }
        self.collect();
    }

    fn fetch(&mut self, key: usize, wait: bool, never: bool) {
        let oldest = self.floors[key];
        let wait = if wait { " WAIT 0" } else { "" };
        let never = if never { " STALE NEVER" } else { "" };
        let before = self.server.waiting.keys().last().copied();
        let reply = self.server.call::<Fetch>(&format!("CACHE.FETCH {}{wait}{never} LEASE 5000", name(key))).unwrap();
        let told = if reply == Reply::Later { None } else { Some(parts(&reply)) };
        match told {
            Some(told) => self.told(key, oldest, told),
            None => {
                let waiter = *self.server.waiting.keys().last().unwrap();
                assert_ne!(Some(waiter), before);
                self.waiters.insert(waiter, (key, oldest));
            }
        }
    }

    fn update(&mut self, key: usize, how: How) {
        self.versions[key] += 1;
        // A key whose time is over is not there, though nobody has come by to remove it yet.
        let there = self.server.exists(name(key).as_bytes());
        match how {
            How::Invalidate => {
                self.server.call::<Invalidate>(&format!("CACHE.INVALIDATE {}", name(key))).unwrap();
            }
            // A value that was filled without the tag is not reached by it.
            How::Tag if there && self.server.state.cache.tags(0, name(key).as_bytes()).next().is_none() => return,
            How::Tag => {
                self.server.call::<StaleTag>(&format!("CACHE.STALETAG t{key}")).unwrap();
                self.server.call::<InvalidateTag>(&format!("CACHE.INVALIDATETAG t{key}")).unwrap();
                // Loads under way may still fill without the tag, if what they read is current; it is not any more.
            }
            // A DEL of what is not there tells nobody.
            How::Delete if !there => return,
            How::Delete => {
                self.server.unlink(&[name(key).as_bytes()]);
            }
        }
        self.floors[key] = self.versions[key];
        let got = text(&self.server.call::<Get>(&format!("CACHE.GET {}", name(key))).unwrap());
        assert_eq!(got, None);
    }

    fn gone(&mut self, key: usize, event: KeyEvent) {
        if self.server.take(&(0, name(key).into_bytes())).is_some() {
            self.server.event(event, name(key).as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn nothing_older_than_an_invalidation_is_ever_returned(
        ops in prop::collection::vec(op(), 1..60),
        sync_keys in 1..3i64,
    ) {
        let mut world = World { server: FakeServer::new(), ..World::default() };
        world.server.state.config.invalidate_sync_keys = sync_keys;
        for op in ops {
            world.step(op);
        }
        // Everybody who still waits is answered in the end.
        for _ in 0..200 {
            world.loads.clear();
            world.step(Op::Advance(5_000));
        }
        prop_assert!(world.waiters.is_empty());
        prop_assert_eq!((world.server.state.cache.leases(), world.server.state.cache.fence_tags()), (0, 0));
    }
}
