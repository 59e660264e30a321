//! Random callers of locks, who try and who wait, for one lock or several, alone, as readers or with permits; against a model
//! that knows the rules and nothing of queues and timers. After every step:
//! - whoever the model says is granted has been, everybody else has not, and everybody is answered once;
//! - every token is larger than all before it;
//! - LOCK.INFO shows who holds and who waits, in order;
//! - a replica that sees nothing but the replicated stream holds the same locks.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use keyward::apply::Apply;
use keyward::clock::UnixUs;
use keyward::fake_server::{FakeServer, Value};
use keyward::lock::commands::{Acquire, AcquireMany, Extend, Force, Info, Release, ReleaseMany};
use keyward::lock::{Lock, due, put_back};
use keyward::native::NativeValue;
use keyward::reply::Reply;
use keyward::server::{Server, Waiter};
use proptest::collection::vec;
use proptest::prelude::*;

const KEYS: [&str; 3] = ["a", "b", "c"];
const OWNERS: [&str; 5] = ["ann", "bob", "cy", "dan", "eve"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Exclusive,
    Shared,
    Permits(usize),
}

#[derive(Clone, Debug)]
enum Op {
    Acquire {
        keys: Vec<&'static str>,
        owner: &'static str,
        ms: i64,
        mode: Mode,
        wait: bool,
        reentrant: bool,
        session: Option<u64>,
    },
    Release {
        key: &'static str,
        owner: &'static str,
    },
    ReleaseMany {
        keys: Vec<&'static str>,
        owner: &'static str,
    },
    Extend {
        key: &'static str,
        owner: &'static str,
        ms: i64,
    },
    Force(&'static str),
    Delete(&'static str),
    Evict(&'static str),
    PutBack,
    FlushAll,
    Advance(i64),
    /// A waiter's wait runs out, or his connection closes.
    Leave(usize),
    /// A connection closes, and with it go its locks, and whoever waits on it.
    Close(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let key = || prop::sample::select(&KEYS[..]);
    let keys = || prop::sample::subsequence(&KEYS[..], 1..=3);
    let owner = || prop::sample::select(&OWNERS[..]);
    let mode = || {
        prop_oneof![
            4 => Just(Mode::Exclusive), 3 => Just(Mode::Shared), 2 => Just(Mode::Permits(2)), 1 => Just(Mode::Permits(1))
        ]
    };
    let session = || prop_oneof![3 => Just(None), 1 => (1..4_u64).prop_map(Some)];
    prop_oneof![
        12 => (key(), owner(), 1..3000_i64, mode(), any::<bool>(), any::<bool>(), session()).prop_map(
            |(key, owner, ms, mode, wait, reentrant, session)| {
                Op::Acquire { keys: vec![key], owner, ms, mode, wait, reentrant, session }
            }
        ),
        4 => (keys(), owner(), 1..3000_i64, any::<bool>(), session()).prop_map(|(keys, owner, ms, wait, session)| {
            Op::Acquire { keys, owner, ms, mode: Mode::Exclusive, wait, reentrant: false, session }
        }),
        6 => (key(), owner()).prop_map(|(key, owner)| Op::Release { key, owner }),
        2 => (keys(), owner()).prop_map(|(keys, owner)| Op::ReleaseMany { keys, owner }),
        2 => (key(), owner(), 1..3000_i64).prop_map(|(key, owner, ms)| Op::Extend { key, owner, ms }),
        1 => key().prop_map(Op::Force),
        1 => key().prop_map(Op::Delete),
        2 => key().prop_map(Op::Evict),
        1 => Just(Op::PutBack),
        1 => Just(Op::FlushAll),
        4 => (1..2000_i64).prop_map(Op::Advance),
        2 => (0..6_usize).prop_map(Op::Leave),
        2 => (1..4_u64).prop_map(Op::Close),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hold {
    owner: &'static str,
    token: i64,
    holds: i64,
    deadline: i64,
    keys: usize,
    session: Option<u64>,
}

#[derive(Clone, Debug)]
struct Wish {
    keys: Vec<&'static str>,
    owner: &'static str,
    ms: i64,
    mode: Mode,
    reentrant: bool,
    session: Option<u64>,
}

/// What the rules make of a wish.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Grant,
    /// The owner has it already.
    Again,
    Busy,
    Refused,
}

#[derive(Default)]
struct Model {
    now: i64,
    locks: BTreeMap<&'static str, (Mode, Vec<Hold>)>,
    /// In the order of arrival.
    waiting: Vec<(Waiter, Wish)>,
}

impl Model {
    fn expire(&mut self) {
        let now = self.now;
        for (_, holds) in self.locks.values_mut() {
            holds.retain(|hold| now < hold.deadline);
        }
        self.locks.retain(|_, (_, holds)| !holds.is_empty());
    }

    fn judge(&self, wish: &Wish, behind: &[(Waiter, Wish)]) -> Verdict {
        let waited = behind.iter().any(|(_, other)| other.keys.iter().any(|key| wish.keys.contains(key)));
        if wish.keys.len() > 1 { self.judge_many(wish, waited) } else { self.judge_one(wish, waited) }
    }

    fn judge_many(&self, wish: &Wish, waited: bool) -> Verdict {
        let held: Vec<_> = wish.keys.iter().filter_map(|key| self.locks.get(key)).collect();
        let own: Vec<_> = held
            .iter()
            .filter_map(|(mode, holds)| Some((mode, holds.iter().find(|hold| hold.owner == wish.owner)?)))
            .collect();
        if own.is_empty() {
            return if held.is_empty() && !waited { Verdict::Grant } else { Verdict::Busy };
        }
        let first = own[0].1;
        let same = |(mode, hold): &(&Mode, &Hold)| {
            **mode == Mode::Exclusive && hold.token == first.token && hold.keys == wish.keys.len()
        };
        if own.len() == wish.keys.len() && own.iter().all(same) { Verdict::Again } else { Verdict::Refused }
    }

    fn judge_one(&self, wish: &Wish, waited: bool) -> Verdict {
        let Some((mode, holds)) = self.locks.get(wish.keys[0]) else {
            return if waited { Verdict::Busy } else { Verdict::Grant };
        };
        let own = holds.iter().any(|hold| hold.owner == wish.owner);
        match (*mode, wish.mode) {
            (Mode::Permits(n), Mode::Permits(other)) if n != other => Verdict::Refused,
            (Mode::Exclusive, _) if own => Verdict::Again,
            (mode, wanted) if own && mode == wanted => Verdict::Again,
            (Mode::Shared, Mode::Exclusive) if own && holds.len() == 1 && !waited => Verdict::Grant,
            _ if own => Verdict::Refused,
            (Mode::Shared, Mode::Shared) if !waited => Verdict::Grant,
            (Mode::Permits(n), Mode::Permits(_)) if holds.len() < n && !waited => Verdict::Grant,
            _ => Verdict::Busy,
        }
    }

    /// Gives out what was granted, or lengthens what is held.
    fn give(&mut self, wish: &Wish, verdict: &Verdict, token: i64) {
        let deadline = self.now + wish.ms;
        for key in &wish.keys {
            let (owner, keys, session) = (wish.owner, wish.keys.len(), wish.session);
            let mut hold = Hold { owner, token, holds: 1, deadline, keys, session };
            match self.locks.get_mut(key) {
                Some((_, holds)) if *verdict == Verdict::Again => {
                    let own = holds.iter_mut().find(|hold| hold.owner == wish.owner).unwrap();
                    assert_eq!(own.token, token, "the same token");
                    own.deadline = own.deadline.max(deadline);
                    own.holds += i64::from(wish.reentrant);
                    own.session = wish.session.or(own.session);
                }
                Some((mode, holds)) if *mode == wish.mode && wish.mode != Mode::Exclusive => holds.push(hold),
                held => {
                    // The only reader becomes the writer, and loses nothing by it.
                    if let Some(own) = held.and_then(|(_, holds)| holds.first()) {
                        hold.deadline = hold.deadline.max(own.deadline);
                        hold.holds = own.holds + i64::from(wish.reentrant);
                        hold.session = hold.session.or(own.session);
                    }
                    self.locks.insert(key, (wish.mode, vec![hold]));
                }
            }
        }
    }

    /// The owner gives one hold up.
    fn release(&mut self, key: &'static str, owner: &'static str) -> bool {
        let holds = self.locks.get_mut(key).map(|(_, holds)| holds.iter_mut());
        match holds.and_then(|mut holds| holds.find(|hold| hold.owner == owner)) {
            Some(hold) if hold.holds > 1 => {
                hold.holds -= 1;
                true
            }
            _ => self.free(key, |hold| hold.owner == owner),
        }
    }

    fn free(&mut self, key: &'static str, gone: impl Fn(&Hold) -> bool) -> bool {
        let Some((_, holds)) = self.locks.get_mut(key) else { return false };
        let before = holds.len();
        holds.retain(|hold| !gone(hold));
        let freed = holds.len() < before;
        if holds.is_empty() {
            self.locks.remove(key);
        }
        freed
    }
}

struct World {
    primary: FakeServer,
    replica: FakeServer,
    model: Model,
    last_token: i64,
    seen: usize,
}

impl World {
    fn new() -> World {
        let (primary, mut replica) = (FakeServer::new(), FakeServer::new());
        replica.replayed = true;
        let model = Model { now: primary.now.to_ms().0, ..Model::default() };
        World { primary, replica, model, last_token: 0, seen: 0 }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Acquire { keys, owner, ms, mode, wait, reentrant, session } => {
                let (keys, ms, mode, reentrant, session) = (keys.clone(), *ms, *mode, *reentrant, *session);
                self.acquire(Wish { keys, owner, ms, mode, reentrant, session }, *wait);
            }
            Op::Release { key, owner } => {
                let freed = self.model.release(key, owner);
                let reply = self.primary.call::<Release>(&format!("lock.release {key} {owner}"));
                assert_eq!(reply, Ok(Reply::yes_no(freed)));
            }
            Op::ReleaseMany { keys, owner } => {
                let freed = keys.iter().filter(|key| self.model.release(key, owner)).count();
                let line = format!("lock.mrelease {} {} {owner}", keys.len(), keys.join(" "));
                assert_eq!(self.primary.call::<ReleaseMany>(&line), Ok(Reply::count(freed)));
            }
            Op::Extend { key, owner, ms } => {
                let deadline = self.model.now + ms;
                let own = self.model.locks.get_mut(key).and_then(|(_, holds)| {
                    let own = holds.iter_mut().find(|hold| hold.owner == *owner)?;
                    own.deadline = own.deadline.max(deadline);
                    Some(())
                });
                let reply = self.primary.call::<Extend>(&format!("lock.extend {key} {owner} PX {ms}"));
                assert_eq!(reply, Ok(Reply::yes_no(own.is_some())));
            }
            Op::Force(key) => {
                let freed = self.model.free(key, |_| true);
                assert_eq!(self.primary.call::<Force>(&format!("lock.force {key}")), Ok(Reply::yes_no(freed)));
            }
            Op::Delete(key) => {
                // An evicted lock has no key to delete until it is put back.
                if self.primary.exists(key.as_bytes()) {
                    self.model.free(key, |_| true);
                    self.primary.unlink(&[key.as_bytes()]);
                }
            }
            Op::Evict(key) => self.primary.evict(key),
            Op::PutBack => while put_back(&mut self.primary, 10) {},
            Op::FlushAll => {
                self.model.locks.clear();
                self.primary.keys.clear();
                self.primary.state.flushed(None);
                self.primary.send(vec![b"FLUSHALL".to_vec()]);
            }
            Op::Advance(ms) => {
                self.primary.advance_ms(*ms);
                self.model.now += ms;
                self.model.expire();
            }
            Op::Leave(which) => {
                if let Some((waiter, _)) = self.model.waiting.get(*which) {
                    self.leave(*waiter);
                }
            }
            Op::Close(session) => {
                for key in KEYS {
                    self.model.free(key, |hold| hold.session == Some(*session));
                }
                self.primary.state.lock.connection_closed(*session);
                let waiting = self.model.waiting.iter().filter(|(_, wish)| wish.session == Some(*session));
                for waiter in waiting.map(|(waiter, _)| *waiter).collect::<Vec<_>>() {
                    self.leave(waiter);
                }
            }
        }
        while self.primary.state.lock.next_deadline().is_some_and(|at| at <= self.primary.now.to_ms()) {
            assert!(due(&mut self.primary), "a timer that finds nothing to do would never stop");
        }
        self.serve();
        self.check();
    }

    fn leave(&mut self, waiter: Waiter) {
        self.model.waiting.retain(|(other, _)| *other != waiter);
        self.primary.waiting.remove(&waiter);
        self.primary.state.waiter_left(waiter);
    }

    fn acquire(&mut self, wish: Wish, wait: bool) {
        let verdict = self.model.judge(&wish, &self.model.waiting);
        let Wish { keys, owner, ms, mode, reentrant, session } = &wish;
        let mut line = match keys.as_slice() {
            [key] => format!("lock.acquire {key} {owner} PX {ms}"),
            keys => format!("lock.macquire {} {} {owner} PX {ms}", keys.len(), keys.join(" ")),
        };
        match mode {
            Mode::Exclusive => {}
            Mode::Shared => line.push_str(" SHARED"),
            Mode::Permits(n) => line.push_str(&format!(" PERMITS {n}")),
        }
        line.push_str(if wait { " WAIT 0" } else { "" });
        line.push_str(if *reentrant { " REENTRANT" } else { "" });
        line.push_str(if session.is_some() { " SESSION" } else { "" });
        self.primary.connection = *session;
        let waiting = self.primary.waiting.len();
        let reply = match keys.len() {
            1 => self.primary.call::<Acquire>(&line),
            _ => self.primary.call::<AcquireMany>(&line),
        };
        match (verdict, reply) {
            (Verdict::Busy, Ok(Reply::Later)) if wait => {
                let waiter = *self.primary.waiting.last_key_value().unwrap().0;
                assert_eq!(self.primary.waiting.len(), waiting + 1);
                self.model.waiting.push((waiter, wish));
            }
            (Verdict::Busy, Ok(Reply::Nil)) if !wait => {}
            (Verdict::Refused, Err(_)) => {}
            (verdict @ (Verdict::Grant | Verdict::Again), Ok(Reply::Int(token))) => {
                self.granted(&wish, &verdict, token)
            }
            (verdict, reply) => panic!("{line}: {verdict:?}, and the reply is {reply:?}"),
        }
    }

    fn granted(&mut self, wish: &Wish, verdict: &Verdict, token: i64) {
        if *verdict == Verdict::Grant {
            assert!(token > self.last_token, "{token} after {}", self.last_token);
            self.last_token = token;
        }
        self.model.give(wish, verdict, token);
    }

    /// Whoever heads all his queues, and has what he wants to himself, has been answered by now.
    fn serve(&mut self) {
        let mut answers: Vec<_> = self.primary.answers[self.seen..].to_vec();
        self.seen += answers.len();
        answers.sort_by_key(|(_, reply)| if let Reply::Int(token) = reply { *token } else { 0 });
        loop {
            let next = (0..self.model.waiting.len()).find_map(|at| {
                let (waiter, wish) = &self.model.waiting[at];
                let verdict = self.model.judge(wish, &self.model.waiting[..at]);
                // Only the head of a queue is told that it will not do.
                let heads =
                    !self.model.waiting[..at].iter().any(|(_, other)| other.keys.iter().any(|k| wish.keys.contains(k)));
                (heads && verdict != Verdict::Busy).then(|| (at, *waiter, wish.clone(), verdict))
            });
            let Some((at, waiter, wish, verdict)) = next else { break };
            self.model.waiting.remove(at);
            let answer = answers.iter().position(|(answered, _)| *answered == waiter).expect("he is answered");
            match (verdict, answers.remove(answer).1) {
                (Verdict::Refused, Reply::Error(_)) => {}
                (verdict @ (Verdict::Grant | Verdict::Again), Reply::Int(token)) => {
                    // Grants of one moment have their tokens in an order of their own.
                    self.model.give(&wish, &verdict, token);
                    self.last_token = self.last_token.max(token);
                }
                (verdict, reply) => panic!("{wish:?}: {verdict:?}, and the answer is {reply:?}"),
            }
        }
        assert!(answers.is_empty(), "nobody else is answered: {answers:?}");
        assert!(self.model.waiting.iter().map(|(waiter, _)| waiter).eq(self.primary.waiting.keys()));
    }

    fn check(&mut self) {
        for key in KEYS {
            let info = self.primary.call::<Info>(&format!("lock.info {key}")).unwrap();
            let Reply::Map(fields) = info else { panic!("{info:?}") };
            let (mode, holders, now) = match self.model.locks.get(key) {
                Some((mode, holds)) => (word(*mode), holds.as_slice(), self.model.now),
                None => ("free", &[][..], 0),
            };
            assert_eq!(fields[0].1, Reply::Word(mode), "{key}");
            let holders = holders.iter().map(|hold| {
                let session = hold.session.map_or(0, |session| session as i64);
                let owner = Reply::OwnedBytes(hold.owner.into());
                let numbers = [hold.token, hold.holds, hold.deadline - now, session];
                Reply::Array([vec![owner], numbers.map(Reply::Int).to_vec()].concat())
            });
            assert_eq!(fields[3].1, Reply::Array(holders.collect()), "{key}");
            let Reply::Array(waiters) = &fields[4].1 else { panic!("{fields:?}") };
            let expected = self.model.waiting.iter().filter(|(_, wish)| wish.keys.contains(&key));
            let owners: Vec<_> = expected.map(|(_, wish)| Reply::OwnedBytes(wish.owner.into())).collect();
            let shown: Vec<_> = waiters
                .iter()
                .map(|waiter| if let Reply::Array(parts) = waiter { parts[0].clone() } else { Reply::Nil })
                .collect();
            assert_eq!(shown, owners, "{key}");
        }
        self.deliver();
        assert_eq!(view(&self.primary), view(&self.replica), "primary and replica");
    }

    /// The replica gets what was replicated. Its clock is far off, and must not matter.
    fn deliver(&mut self) {
        self.primary.replicated_in.clear();
        for words in std::mem::take(&mut self.primary.replicated) {
            self.replica.now = UnixUs(self.primary.now.0 + 3_600_000_000);
            match String::from_utf8_lossy(&words[0]).to_ascii_uppercase().as_str() {
                "KEYWARD.APPLY" => assert_eq!(self.replica.call_argv::<Apply>(words), Ok(Reply::Ok)),
                "LOCK.RELEASE" => assert_eq!(self.replica.call_argv::<Release>(words), Ok(Reply::Int(1))),
                "LOCK.FORCE" => assert_eq!(self.replica.call_argv::<Force>(words), Ok(Reply::Int(1))),
                "LOCK.MRELEASE" => assert_ne!(self.replica.call_argv::<ReleaseMany>(words), Ok(Reply::Int(0))),
                "DEL" | "UNLINK" => {
                    self.replica.unlink(&[words[1].as_slice()]);
                }
                "FLUSHALL" => {
                    self.replica.keys.clear();
                    self.replica.state.flushed(None);
                }
                other => panic!("{other}"),
            }
        }
    }
}

fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Shared => "shared",
        Mode::Permits(_) => "permits",
    }
}

/// The locks in keys and in limbo. Sessions are the primary's alone.
fn view(server: &FakeServer) -> BTreeMap<String, String> {
    let mut view = BTreeMap::new();
    for ((_, key), entry) in &server.keys {
        if let Value::Native(value) = &entry.value {
            let lock = value.downcast_ref::<Lock>().unwrap().copied(&server.state).unwrap();
            view.insert(String::from_utf8(key.clone()).unwrap(), format!("{:?} {lock:?}", entry.expiry));
        }
    }
    for key in KEYS {
        if let Some(record) = server.state.lock.in_limbo(0, key.as_bytes()) {
            view.insert(key.to_owned(), format!("limbo {:?}", record.copied()));
        }
    }
    view
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn everybody_gets_his_turn_and_nobody_before(ops in vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        // When the last lease is over, everybody has had his turn.
        for _ in 0..200 {
            world.step(&Op::Advance(3000));
        }
        prop_assert!(world.primary.waiting.is_empty());
        world.step(&Op::FlushAll);
        for session in 1..4 {
            world.step(&Op::Close(session));
        }
        let lock = &world.primary.state.lock;
        prop_assert_eq!((lock.locks(), lock.bytes(), lock.queues.len(), lock.sessions.count()), (0, 0, 0, 0));
        prop_assert_eq!(lock.next_deadline(), None);
    }
}
