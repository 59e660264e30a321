//! Random callers of a concurrency limit, who enter, wait, leave and die, against a model that is a list of slots and a list of
//! waiters. After every step:
//! - every answer is the one that the rules give, and everybody who waits is answered once, in his turn;
//! - RATELIMIT.INFO shows who holds a slot until when, and who waits;
//! - a replica that sees nothing but the replicated stream, and whose clock is wrong, holds the same slots;
//! - the connections' table knows exactly the slots that end with one.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};

use keyward::apply::Apply;
use keyward::args::Arg;
use keyward::clock::UnixUs;
use keyward::fake_server::{FakeServer, Value};
use keyward::native::NativeValue;
use keyward::ratelimit::commands::{Enter, Info, Leave, Reset};
use keyward::ratelimit::concurrency::Slots;
use keyward::reply::Reply;
use keyward::server::{Server, Waiter};
use keyward::state::due;
use proptest::collection::vec;
use proptest::prelude::*;

const KEYS: [&str; 2] = ["a", "b"];
const IDS: [&str; 6] = ["1", "2", "3", "4", "5", "6"];
const SESSIONS: std::ops::Range<u64> = 1..4;

#[derive(Clone, Debug)]
enum Op {
    Enter {
        key: &'static str,
        wish: Wish,
        wait: bool,
    },
    Leave(&'static str, Vec<&'static str>),
    Reset(&'static str),
    Delete(&'static str),
    Evict(&'static str),
    Persist(&'static str),
    Rename(&'static str, &'static str),
    FlushAll,
    Advance(i64),
    /// A waiter's wait runs out.
    GiveUp(usize),
    /// A connection closes: its wait is over, and its slots are freed.
    Close(u64),
}

#[derive(Clone, Debug)]
struct Wish {
    id: &'static str,
    limit: usize,
    ms: i64,
    session: Option<u64>,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || prop::sample::select(&KEYS[..]);
    let id = || prop::sample::select(&IDS[..]);
    let session = || prop_oneof![2 => Just(None), 1 => SESSIONS.prop_map(Some)];
    let wish = (id(), 1..5_usize, 1..3000_i64, session());
    prop_oneof![
        14 => (key(), wish, any::<bool>()).prop_map(|(key, (id, limit, ms, session), wait)| {
            Op::Enter { key, wish: Wish { id, limit, ms, session }, wait }
        }),
        6 => (key(), vec(id(), 1..4)).prop_map(|(key, ids)| Op::Leave(key, ids)),
        1 => key().prop_map(Op::Reset),
        1 => key().prop_map(Op::Delete),
        1 => key().prop_map(Op::Evict),
        1 => key().prop_map(Op::Persist),
        1 => (key(), key()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => Just(Op::FlushAll),
        5 => (1..2000_i64).prop_map(Op::Advance),
        2 => (0..6_usize).prop_map(Op::GiveUp),
        2 => SESSIONS.prop_map(Op::Close),
    ]
}

#[derive(Clone, Debug)]
struct Slot {
    id: &'static str,
    deadline: i64,
    session: Option<u64>,
}

#[derive(Default)]
struct Model {
    now: i64,
    /// Those whose lease is running.
    slots: BTreeMap<&'static str, Vec<Slot>>,
    /// In the order of arrival.
    waiting: Vec<(Waiter, &'static str, Wish)>,
}

impl Model {
    fn of(&mut self, key: &'static str) -> &mut Vec<Slot> {
        self.slots.entry(key).or_default()
    }

    fn expire(&mut self) {
        let now = self.now;
        self.slots.values_mut().for_each(|slots| slots.retain(|slot| now < slot.deadline));
    }

    fn ahead(&self, key: &'static str) -> usize {
        self.waiting.iter().filter(|(_, other, _)| *other == key).count()
    }

    /// Answers an ENTER, and does it.
    fn enter(&mut self, key: &'static str, wish: &Wish, ahead: usize) -> [i64; 4] {
        let now = self.now;
        let slots = self.of(key);
        if let Some(own) = slots.iter_mut().find(|slot| slot.id == wish.id) {
            own.deadline = now + wish.ms;
            own.session = wish.session.or(own.session);
        } else if ahead == 0 && slots.len() < wish.limit {
            slots.push(Slot { id: wish.id, deadline: now + wish.ms, session: wish.session });
        } else {
            let mut ends: Vec<i64> = slots.iter().map(|slot| slot.deadline).collect();
            ends.sort_unstable();
            let missing = (slots.len() + ahead + 1).saturating_sub(wish.limit).max(1).min(slots.len());
            return [0, slots.len() as i64, wish.limit as i64, ends[missing - 1] - now];
        }
        [1, slots.len() as i64, wish.limit as i64, 0]
    }
}

struct World {
    primary: FakeServer,
    replica: FakeServer,
    model: Model,
    seen: usize,
}

fn ints(reply: Reply<'_>) -> [i64; 4] {
    let Reply::Ints(ints) = reply else { panic!("{reply:?}") };
    ints[..].try_into().unwrap()
}

fn rename(server: &mut FakeServer, from: &str, to: &str) {
    let id = |key: &str| (0, key.as_bytes().to_vec());
    if from == to || !server.keys.contains_key(&id(from)) {
        return;
    }
    let mut entry = server.take(&id(from)).unwrap();
    server.take(&id(to));
    let now = server.now;
    server.state.key_renamed(0, from.as_bytes(), to.as_bytes(), now.to_ms());
    if let Value::Native(value) = &mut entry.value {
        value.downcast_mut::<Slots>().unwrap().linked(0, to.as_bytes(), &mut server.state, now);
    }
    server.keys.insert(id(to), entry);
}

fn flush(server: &mut FakeServer) {
    server.keys.clear();
    server.state.flushed(None);
}

fn words(line: &str) -> Vec<Vec<u8>> {
    line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

impl World {
    fn new() -> World {
        let (primary, mut replica) = (FakeServer::new(), FakeServer::new());
        replica.replayed = true;
        let model = Model { now: primary.now.to_ms().0, ..Model::default() };
        World { primary, replica, model, seen: 0 }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Enter { key, wish, wait } => self.enter(key, wish, *wait),
            Op::Leave(key, ids) => {
                let slots = self.model.of(key);
                let before = slots.len();
                slots.retain(|slot| !ids.contains(&slot.id));
                let freed = before - slots.len();
                let line = format!("ratelimit.leave {key} {}", ids.join(" "));
                assert_eq!(self.primary.call::<Leave>(&line), Ok(Reply::count(freed)));
            }
            Op::Reset(key) => {
                // With PERSIST the key may be there with nobody in it.
                let there = self.primary.exists(key.as_bytes());
                self.model.of(key).clear();
                assert_eq!(self.primary.call::<Reset>(&format!("ratelimit.reset {key}")), Ok(Reply::yes_no(there)));
            }
            Op::Delete(key) => {
                self.model.of(key).clear();
                self.primary.unlink(&[key.as_bytes()]);
            }
            Op::Evict(key) => {
                self.model.of(key).clear();
                self.primary.evict(key);
            }
            Op::Persist(key) => {
                self.primary.persist(key);
                self.primary.send(words(&format!("PERSIST {key}")));
            }
            Op::Rename(from, to) => {
                if self.primary.exists(from.as_bytes()) && from != to {
                    let moved = std::mem::take(self.model.of(from));
                    *self.model.of(to) = moved;
                    rename(&mut self.primary, from, to);
                    self.primary.send(words(&format!("RENAME {from} {to}")));
                }
            }
            Op::FlushAll => {
                self.model.slots.clear();
                flush(&mut self.primary);
                self.primary.send(words("FLUSHALL"));
            }
            Op::Advance(ms) => {
                self.primary.advance_ms(*ms);
                self.model.now += ms;
                self.model.expire();
            }
            Op::GiveUp(which) => {
                if *which < self.model.waiting.len() {
                    let (waiter, ..) = self.model.waiting.remove(*which);
                    self.leave_room(waiter);
                }
            }
            Op::Close(session) => {
                let (gone, left): (Vec<_>, Vec<_>) =
                    self.model.waiting.drain(..).partition(|(_, _, wish)| wish.session == Some(*session));
                self.model.waiting = left;
                gone.iter().for_each(|(waiter, ..)| self.leave_room(*waiter));
                for key in KEYS {
                    self.model.of(key).retain(|slot| slot.session != Some(*session));
                }
                self.primary.state.connection_closed(*session);
            }
        }
        while self.is_due() {
            // What a closed connection held may have gone meanwhile.
            assert!(due(&mut self.primary) || !self.is_due(), "a timer that finds nothing to do would never stop");
        }
        self.serve(matches!(op, Op::Close(_)));
        self.check();
    }

    fn is_due(&self) -> bool {
        self.primary.state.next_deadline().is_some_and(|at| at <= self.primary.now.to_ms())
    }

    fn leave_room(&mut self, waiter: Waiter) {
        self.primary.waiting.remove(&waiter);
        self.primary.state.waiter_left(waiter);
    }

    fn enter(&mut self, key: &'static str, wish: &Wish, wait: bool) {
        let expected = self.model.enter(key, wish, self.model.ahead(key));
        let Wish { id, limit, ms, session } = wish;
        let session_word = if session.is_some() { " SESSION" } else { "" };
        let wait_word = if wait { " WAIT 0" } else { "" };
        self.primary.connection = *session;
        let line = format!("ratelimit.enter {key} {id} LIMIT {limit} PX {ms}{session_word}{wait_word}");
        let reply = self.primary.call::<Enter>(&line).unwrap();
        if wait && expected[0] == 0 {
            assert_eq!(reply, Reply::Later);
            let (waiter, otherwise) = self.primary.waiting.last_key_value().unwrap();
            assert_eq!(ints(otherwise.clone()), expected, "as it stands when he begins to wait");
            self.model.waiting.push((*waiter, key, wish.clone()));
        } else {
            assert_eq!(ints(reply), expected, "{line}");
        }
    }

    /// Whoever heads his queue, and can have a slot, has been answered by now. `one_by_one`: the slots of a closed connection were
    /// freed one after the other, and who got the first of them was told that the others are in use.
    fn serve(&mut self, one_by_one: bool) {
        let mut answers: BTreeMap<Waiter, Reply<'static>> = BTreeMap::new();
        for (waiter, reply) in &self.primary.answers[self.seen..] {
            assert!(answers.insert(*waiter, reply.clone()).is_none(), "answered twice");
        }
        self.seen = self.primary.answers.len();
        for key in KEYS {
            while let Some(at) = self.model.waiting.iter().position(|(_, other, _)| *other == key) {
                let (waiter, _, wish) = self.model.waiting[at].clone();
                let expected = self.model.enter(key, &wish, 0);
                if expected[0] == 0 {
                    break;
                }
                let answer = ints(answers.remove(&waiter).expect("he is answered"));
                assert!(answer == expected || (one_by_one && answer[1] > expected[1]), "{answer:?} {expected:?}");
                assert_eq!((answer[0], answer[2], answer[3]), (1, expected[2], 0));
                self.model.waiting.remove(at);
            }
        }
        assert!(answers.is_empty(), "nobody else is answered: {answers:?}");
        let waiting: BTreeSet<Waiter> = self.model.waiting.iter().map(|(waiter, ..)| *waiter).collect();
        assert!(waiting.iter().eq(self.primary.waiting.keys()));
    }

    fn check(&mut self) {
        let now = self.model.now;
        for key in KEYS {
            let info = self.primary.call::<Info>(&format!("ratelimit.info {key}")).unwrap();
            let Reply::Map(fields) = info else { panic!("{info:?}") };
            let slots = self.model.of(key);
            slots.sort_by_key(|slot| (slot.deadline, slot.id));
            if slots.is_empty() && fields[0].0 == "limits" {
                continue;
            }
            let shown = slots.iter().map(|slot| {
                let session = slot.session.map_or(0, |session| session as i64);
                let id = Reply::OwnedBytes(slot.id.into());
                Reply::Array(vec![id, Reply::Int(slot.deadline - now), Reply::Int(session)])
            });
            let (in_use, shown) = (Reply::count(slots.len()), Reply::Array(shown.collect()));
            assert_eq!(fields[..2], [("in_use", in_use), ("slots", shown)]);
            let ("waiters", Reply::Array(waiters)) = &fields[2] else { panic!("{fields:?}") };
            let ids = waiters.iter().map(|waiter| {
                let Reply::Array(parts) = waiter else { panic!("{waiter:?}") };
                parts[0].clone()
            });
            let expected = self.model.waiting.iter().filter(|(_, other, _)| *other == key);
            assert!(ids.eq(expected.map(|(_, _, wish)| Reply::OwnedBytes(wish.id.into()))), "{key}");
        }
        self.deliver();
        for key in KEYS {
            // What has expired the server removes by itself, and sends a DEL.
            self.primary.exists(key.as_bytes());
            if self.replica.key_expiry(key).is_some_and(|at| at.0 <= now) {
                self.replica.unlink(&[key.as_bytes()]);
                self.replica.take_replicated();
            }
        }
        assert_eq!(view(&self.primary), view(&self.replica), "primary and replica");
        let bound = bound(&self.primary);
        assert_eq!(self.primary.state.ratelimit.sessions.count(), bound.len());
        for (session, key, id) in bound {
            let sessions = &self.primary.state.ratelimit.sessions;
            assert!(sessions.ends(session, &(*id).into(), 0, key.as_ref()), "{session} {key:?} {id:?}");
        }
        assert_eq!(self.replica.state.ratelimit.sessions.count(), 0);
    }

    fn deliver(&mut self) {
        self.primary.replicated_in.clear();
        for words in std::mem::take(&mut self.primary.replicated) {
            self.replica.now = UnixUs(self.primary.now.0 + 3_600_000_000);
            let text: Vec<String> = words.iter().map(|word| String::from_utf8(word.clone()).unwrap()).collect();
            match text[0].to_ascii_uppercase().as_str() {
                "KEYWARD.APPLY" => assert_eq!(self.replica.call_argv::<Apply>(words), Ok(Reply::Ok)),
                "RATELIMIT.LEAVE" => assert_ne!(self.replica.call_argv::<Leave>(words), Ok(Reply::Int(0))),
                "DEL" | "UNLINK" => {
                    self.replica.unlink(&[words[1].as_slice()]);
                    self.replica.take_replicated();
                }
                "PERSIST" => self.replica.persist(&text[1]),
                "RENAME" => rename(&mut self.replica, &text[1], &text[2]),
                "FLUSHALL" => flush(&mut self.replica),
                other => panic!("{other}"),
            }
        }
    }
}

fn slots_of(server: &FakeServer) -> impl Iterator<Item = (&[u8], &Slots, Option<i64>)> {
    server.keys.iter().map(|((_, key), entry)| {
        let Value::Native(value) = &entry.value else { panic!("{key:?} is something else") };
        (key.as_slice(), value.downcast_ref::<Slots>().unwrap(), entry.expiry.map(|at| at.0))
    })
}

/// What is saved of every key, and when it expires.
fn view(server: &FakeServer) -> BTreeMap<&[u8], (Vec<u8>, Option<i64>)> {
    slots_of(server).map(|(key, slots, expiry)| (key, (slots.encode(&server.state), expiry))).collect()
}

fn bound(server: &FakeServer) -> BTreeSet<(u64, Vec<u8>, Vec<u8>)> {
    let of_key = |(key, slots, _): (&[u8], &Slots, _)| {
        let key = key.to_vec();
        slots.bound().map(|(id, session)| (session, key.clone(), id.to_vec())).collect::<Vec<_>>()
    };
    slots_of(server).flat_map(of_key).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn everybody_gets_a_slot_in_his_turn_and_not_before(ops in vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        // When the last lease is over, everybody has had his turn.
        for _ in 0..60 {
            world.step(&Op::Advance(3000));
        }
        prop_assert!(world.primary.waiting.is_empty());
        world.step(&Op::FlushAll);
        SESSIONS.for_each(|session| world.step(&Op::Close(session)));
        let limiters = &world.primary.state.ratelimit;
        prop_assert_eq!((limiters.queues.len(), limiters.sessions.count()), (0, 0));
        prop_assert_eq!(world.primary.state.next_deadline(), None);
    }

    #[test]
    fn a_dump_comes_back_and_other_bytes_are_refused(
        ids in prop::collection::btree_set(vec(any::<u8>(), 1..20), 1..40),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut server = FakeServer::new();
        for (n, id) in ids.iter().enumerate() {
            let rest = words(&format!("LIMIT 100 PX {}", 1 + n * 7919 % 5000));
            let argv = [words("ratelimit.enter k"), vec![id.clone()], rest].concat();
            prop_assert_eq!(ints(server.call_argv::<Enter>(argv).unwrap())[..2].to_vec(), vec![1, 1 + n as i64]);
        }
        let slots: &Slots = server.native(Arg::named(b"k")).unwrap().unwrap();
        let state = keyward::state::State::default();
        let bytes = slots.encode(&state);
        let expiry = slots.expiry();
        let again = Slots::decode(&bytes).unwrap();
        prop_assert_eq!(again.encode(&state), bytes.clone());
        prop_assert_eq!(again.expiry(), expiry);
        let mut other = bytes.clone();
        for (at, value) in flips {
            *at.get_mut(&mut other) = value;
        }
        // Damaged bytes are refused, or are another sound value.
        if let Some(other_slots) = Slots::decode(&other) {
            prop_assert_eq!(other_slots.encode(&state), other);
        }
        prop_assert!(Slots::decode(&bytes[..bytes.len() - 1]).is_none());
    }
}
