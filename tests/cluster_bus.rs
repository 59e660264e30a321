//! Nodes that talk over a network that loses, repeats, delays and reorders what they say, with a clock of its own. Whatever it does:
//! - a client that is told a sum is told the truth: every shard did what it asked for, and each counted once;
//! - a client that is told which shards were not reached: the named ones and no others had not answered;
//! - no node does the same request twice;
//! - every client is answered at its deadline at the latest, or when its node goes on that stood still then, and nothing is left over then.
#![cfg(not(feature = "module"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use keyward::clock::UnixMs;
use keyward::cluster::{Answer, Look, Message, NodeId, Nodes, Outgoing, Question, Received, State, Topic, Verdict};
use keyward::error::Error;
use keyward::reply::Reply;
use keyward::server::Waiter;
use proptest::collection::vec;
use proptest::prelude::*;

const WAIT_MS: i64 = 3000;
const TOPIC: Topic = Topic(1);

fn id(node: usize) -> NodeId {
    NodeId::new(format!("{node:040}").as_bytes()).unwrap()
}

struct Member {
    state: State,
    alive: bool,
    primary: bool,
    /// What it did: sender, epoch and number, with the payload.
    done: BTreeMap<(NodeId, u64, u64), Vec<u8>>,
}

struct Flight {
    at: UnixMs,
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

/// A client's command: the node it was sent to, and the answer.
struct Call {
    node: usize,
    payload: Vec<u8>,
    begun: UnixMs,
    /// Its node stood still meanwhile, and may answer late.
    held_up: bool,
    answer: Option<Reply<'static>>,
}

struct World {
    now: UnixMs,
    members: Vec<Member>,
    /// Which node has which part of the slots.
    owners: Vec<usize>,
    flights: Vec<Flight>,
    calls: BTreeMap<u64, Call>,
    /// What becomes of the messages, in turn: lost, or delivered so many milliseconds later, once or twice.
    fates: Vec<(bool, u16, Option<u16>)>,
    sent: usize,
}

impl World {
    fn new(shards: usize, spare: usize, fates: Vec<(bool, u16, Option<u16>)>) -> World {
        let mut members: Vec<Member> = (0..shards + spare)
            .map(|node| Member { state: State::default(), alive: true, primary: node < shards, done: BTreeMap::new() })
            .collect();
        for (epoch, member) in members.iter_mut().enumerate() {
            member.state.outbox.set_epoch(epoch as u64 + 100);
        }
        let owners = (0..shards).collect();
        World { now: UnixMs(1000), members, owners, flights: Vec::new(), calls: BTreeMap::new(), fates, sent: 0 }
    }

    /// CLUSTER NODES of this node.
    fn nodes(&self, myself: usize) -> Nodes {
        let parts = self.owners.len();
        let lines = (0..self.members.len()).map(|node| {
            let slots = (0..parts)
                .filter(|part| self.owners[*part] == node)
                .map(|part| format!(" {}-{}", 16384 * part / parts, 16384 * (part + 1) / parts - 1));
            let role = if self.members[node].primary { "master" } else { "slave" };
            let me = if node == myself { "myself," } else { "" };
            format!("{} h:{node}@1 {me}{role} - 0 0 1 connected{}\n", id(node), slots.collect::<String>())
        });
        Nodes::parse(lines.collect::<String>().as_bytes()).unwrap()
    }

    fn send(&mut self, from: usize, message: Outgoing) {
        let to = (0..self.members.len()).find(|node| id(*node) == message.to).unwrap();
        if to == from {
            // The host delivers what is for itself.
            self.receive(from, from, &message.bytes);
            return;
        }
        let (lost, delay, again) = self.fates[self.sent % self.fates.len()];
        self.sent += 1;
        if lost {
            return;
        }
        for delay in [Some(delay), again].into_iter().flatten() {
            let at = self.now.plus(delay.into());
            self.flights.push(Flight { at, from, to, bytes: message.bytes.clone() });
        }
    }

    fn receive(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let (now, member) = (self.now, &mut self.members[to]);
        if let Received::Send(answer) = member.state.received(id(from), bytes, member.primary, now) {
            self.send(to, answer);
        }
    }

    fn call(&mut self, node: usize) {
        let waiter = Waiter(self.calls.len() as u64);
        let (nodes, now) = (self.nodes(node), self.now);
        let payload = format!("{}", waiter.0).into_bytes();
        let request: Rc<[u8]> = payload.clone().into();
        self.calls.insert(waiter.0, Call { node, payload, begun: now, held_up: false, answer: None });
        let messages = self.members[node].state.fan_out(&nodes, waiter, (TOPIC, request), 1, now, WAIT_MS);
        messages.into_iter().for_each(|message| self.send(node, message));
    }

    fn tick(&mut self) {
        let due: Vec<Flight> = self.flights.extract_if(.., |flight| flight.at <= self.now).collect();
        for Flight { from, to, bytes, .. } in due {
            if self.members[to].alive {
                self.receive(from, to, &bytes);
            }
        }
        for node in 0..self.members.len() {
            if self.members[node].alive {
                self.serve(node);
                self.look(node);
            }
        }
    }

    fn serve(&mut self, node: usize) {
        while let Some(incoming) = self.members[node].state.take() {
            let member = &mut self.members[node];
            let request = (incoming.from, incoming.id.epoch, incoming.id.number);
            assert!(member.done.insert(request, incoming.payload).is_none(), "the same request twice");
            let answer = member.state.done(incoming.from, incoming.id, Some(1)).unwrap();
            self.send(node, answer);
        }
    }

    fn look(&mut self, node: usize) {
        let now = self.now;
        if self.members[node].state.looks_at_nodes(now) {
            self.look_at_nodes(node);
        }
        while let Some(message) = self.members[node].state.next_question(now) {
            self.send(node, message);
        }
    }

    fn look_at_nodes(&mut self, node: usize) {
        let (nodes, now) = (self.nodes(node), self.now);
        while let Some(Look { messages, answer }) = self.members[node].state.next_look(&nodes, now) {
            messages.into_iter().for_each(|message| self.send(node, message));
            if let Some((waiter, reply)) = answer {
                let call = self.calls.get_mut(&waiter.0).unwrap();
                assert!(call.answer.replace(reply).is_none(), "answered once");
                self.check(waiter.0);
            }
        }
    }

    /// Who has done what this call asked for, and how often.
    fn did(&self, call: &Call) -> BTreeMap<usize, usize> {
        let times = |member: &Member| member.done.values().filter(|payload| **payload == call.payload).count();
        let mut did: BTreeMap<usize, usize> = self.members.iter().map(times).enumerate().collect();
        *did.get_mut(&call.node).unwrap() += 1;
        did
    }

    fn check(&self, waiter: u64) {
        let call = &self.calls[&waiter];
        let did = self.did(call);
        let owners: BTreeSet<usize> = self.owners.iter().copied().collect();
        match call.answer.as_ref().unwrap() {
            Reply::Int(sum) => {
                assert!(owners.iter().all(|owner| did[owner] > 0), "every shard did it");
                assert!((owners.len()..=did.values().sum()).contains(&(*sum as usize)), "no more than was done");
            }
            Reply::Error(Error::ShardsNotReached(shards)) => {
                let end = call.begun.plus(WAIT_MS);
                assert!(self.now == end || call.held_up && self.now > end, "when the time is over");
                assert_eq!(shards.shards, owners.len());
                let missing: BTreeSet<NodeId> = shards.missing.iter().map(|(id, _)| *id).collect();
                assert!(!missing.is_empty() && missing.len() == shards.missing.len());
                for owner in owners {
                    assert!(missing.contains(&id(owner)) || did[&owner] > 0, "who is not named did it");
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, ms: i64) {
        for _ in 0..ms / 10 {
            self.now = self.now.plus(10);
            self.tick();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Call(usize),
    Wait(i64),
    /// The process of a node stands still, or goes on.
    Stop(usize),
    Go(usize),
    /// A spare node is promoted in the place of a primary.
    Promote(usize),
    /// The slots of one part go to another primary.
    Move(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(
        prop_oneof![
            4 => (0..3_usize).prop_map(Step::Call),
            3 => (0..800_i64).prop_map(Step::Wait),
            1 => (0..3_usize).prop_map(Step::Stop),
            2 => (0..3_usize).prop_map(Step::Go),
            1 => (0..3_usize).prop_map(Step::Promote),
            1 => (0..3_usize, 0..3_usize).prop_map(|(part, to)| Step::Move(part, to)),
        ],
        1..20,
    )
}

fn fates() -> impl Strategy<Value = Vec<(bool, u16, Option<u16>)>> {
    let delay = prop_oneof![4 => 0..30_u16, 1 => 0..1500_u16];
    vec((prop::bool::weighted(0.3), delay.clone(), prop::option::weighted(0.3, delay)), 1..40)
}

/// A question about a key, and what may be answered.
fn parts() -> impl Strategy<Value = (Question, Answer)> {
    let verdict = prop::sample::select(vec![Verdict::Forgotten, Verdict::Plain, Verdict::Known]);
    let floor = prop::option::of(0..=i64::MAX as u64);
    (any::<u32>(), vec(any::<u8>(), 0..50), any::<u64>(), 0..=i64::MAX, verdict, floor).prop_map(
        |(db, key, number, age_ms, verdict, floor)| {
            let (db, key) = (db as usize, key.into_boxed_slice());
            (Question { db, key: key.clone(), number, age_ms }, Answer { db, key, number, verdict, floor })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn whatever_the_network_does_nothing_is_pretended(fates in fates(), steps in steps()) {
        let mut world = World::new(3, 1, fates);
        for step in steps {
            match step {
                Step::Call(node) if world.members[node].alive && world.members[node].primary => world.call(node),
                Step::Wait(ms) => world.run(ms),
                Step::Stop(node) => {
                    world.members[node].alive = false;
                    world.calls.values_mut().filter(|call| call.node == node).for_each(|call| call.held_up = true);
                }
                Step::Go(node) => world.members[node].alive = true,
                Step::Promote(part) if !world.members[3].primary && !world.owners.contains(&3) => {
                    let old = world.owners[part];
                    world.owners.iter_mut().filter(|owner| **owner == old).for_each(|owner| *owner = 3);
                    world.members[old].primary = false;
                    world.members[old].state.demoted();
                    world.members[3].primary = true;
                    // The server answers its clients.
                    world.calls.values_mut().filter(|call| call.node == old && call.answer.is_none()).for_each(|call| {
                        call.answer = Some(Reply::Nil);
                    });
                }
                Step::Move(part, to) if world.members[to].primary => world.owners[part] = to,
                _ => {}
            }
        }
        world.members.iter_mut().for_each(|member| member.alive = true);
        world.run(2 * WAIT_MS);
        for call in world.calls.values() {
            prop_assert!(call.answer.is_some(), "not answered");
        }
        for member in &world.members {
            prop_assert!(member.state.outbox.is_empty() && member.state.fan_outs.is_empty());
            prop_assert_eq!(member.state.next_deadline(), None);
        }
    }

    /// Where nothing is lost for ever the sum is complete and exact.
    #[test]
    fn a_bad_network_only_costs_time(delays in vec((prop::bool::weighted(0.3), 0..50_u16, prop::option::of(0..300_u16)), 1..40), callers in vec(0..3_usize, 1..30)) {
        // Every third message is delivered.
        let mut fates = delays;
        for position in (0..fates.len()).step_by(3) {
            fates[position].0 = false;
        }
        fates.push((false, 5, Some(7)));
        let mut world = World::new(3, 0, fates);
        for &node in &callers {
            world.call(node);
            world.run(30);
        }
        world.run(WAIT_MS);
        for call in world.calls.values() {
            if let Some(Reply::Int(sum)) = call.answer {
                prop_assert_eq!(sum, 3);
                prop_assert!(world.did(call).values().all(|times| *times == 1));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_messages_do_nothing(bytes in vec(any::<u8>(), 0..200), head in prop::option::of(0..7_u8)) {
        let mut bytes = bytes;
        if let (Some(kind), [version, first, ..]) = (head, &mut bytes[..]) {
            (*version, *first) = (1, kind);
        }
        let mut state = State::default();
        let answer = state.received(id(1), &bytes, true, UnixMs(5));
        match Message::decode(&bytes) {
            None => {
                prop_assert!(answer == Received::Nothing && state.inbox.is_empty() && state.counters.refused == 1);
            }
            Some(Message::Request { .. }) => prop_assert!(state.inbox.len() <= 1),
            Some(Message::Questions(questions)) => prop_assert_eq!(answer, Received::Questions(questions)),
            Some(Message::Answers(answers)) => prop_assert_eq!(answer, Received::Answers(answers)),
            Some(_) => prop_assert!(state.inbox.is_empty()),
        }
    }

    #[test]
    fn questions_and_answers_arrive_as_they_were_sent(parts in vec(parts(), 0..20)) {
        let mut state = State::default();
        let questions: Vec<Question> = parts.iter().map(|(question, _)| question.clone()).collect();
        let answers: Vec<Answer> = parts.into_iter().map(|(_, answer)| answer).collect();
        let mut received = |message: Message<'_>| state.received(id(1), &message.encode(), false, UnixMs(5));
        prop_assert_eq!(received(Message::Questions(questions.clone())), Received::Questions(questions));
        prop_assert_eq!(received(Message::Answers(answers.clone())), Received::Answers(answers));
        prop_assert_eq!(state.counters.refused, 0);
    }
}

#[test]
fn a_node_that_is_given_slots_while_others_answer_does_it_again() {
    let mut world = World::new(2, 0, vec![(false, 10, None)]);
    world.members[1].alive = false;
    world.call(0);
    world.run(100);
    // What node 1 had it never did; now node 0 has it, and may have keys from there.
    world.owners = vec![0, 0];
    world.run(600);
    assert_eq!(world.calls[&0].answer, Some(Reply::Int(2)), "once in the command and once again");
    assert_eq!(world.members[0].done.len(), 1);
}

#[test]
fn a_client_that_has_gone_leaves_nothing_behind() {
    let mut world = World::new(3, 0, vec![(true, 0, None)]);
    world.call(0);
    world.run(500);
    let state = &mut world.members[0].state;
    assert!(
        matches!(state.fan_outs.verdict(Waiter(0)), Some(Reply::Error(Error::ShardsNotReached(shards))) if shards.missing.len() == 2)
    );
    state.waiter_left(Waiter(0));
    assert!(state.outbox.is_empty() && state.fan_outs.is_empty() && state.next_deadline().is_none());
}

#[test]
fn where_one_node_has_all_slots_it_is_answered() {
    let mut world = World::new(2, 0, vec![(false, 10, None)]);
    world.owners = vec![1, 1];
    world.call(1);
    world.run(10);
    assert_eq!(world.calls[&0].answer, Some(Reply::Int(1)));
}
