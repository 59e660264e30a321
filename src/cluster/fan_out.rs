//! One request to every shard. It is complete when every primary that has slots by then has done it, for all the slots it has: one that was
//! promoted meanwhile, or that was given slots since it did it, does it (again). Doing it twice is harmless, for it removes things.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::state::{Look, Outgoing};
use super::{MAX_UNANSWERED, NodeId, Nodes, Outbox, Topic};
use crate::clock::UnixMs;
use crate::error::{Error, NotReached};
use crate::reply::Reply;
use crate::server::Waiter;

/// How often the nodes of the cluster are looked at while some have not answered, in milliseconds.
const LOOK_MS: i64 = 250;
/// How many bytes of payloads may wait for answers.
const MAX_WAITING_BYTES: usize = 128 * 1024 * 1024;

/// What one primary has to do.
#[derive(Debug)]
struct Leg {
    address: Rc<str>,
    /// What it had when it was sent the request.
    slots: super::nodes::Slots,
    /// The number of the request, if it was sent.
    request: Option<u64>,
    done: bool,
}

#[derive(Debug)]
struct FanOut {
    topic: Topic,
    payload: Rc<[u8]>,
    deadline: UnixMs,
    /// When it is looked at next; as in `schedule`.
    look_at: UnixMs,
    legs: BTreeMap<NodeId, Leg>,
    count: i64,
}

impl FanOut {
    fn verdict(&self) -> Reply<'static> {
        let missing: Vec<_> =
            self.legs.iter().filter(|(_, leg)| !leg.done).map(|(id, leg)| (*id, Rc::clone(&leg.address))).collect();
        if missing.is_empty() {
            return Reply::Int(self.count);
        }
        let not_reached = NotReached { missing, shards: self.legs.len(), count: self.count };
        Reply::Error(Error::ShardsNotReached(Box::new(not_reached)))
    }

    fn is_done(&self) -> bool {
        self.legs.values().all(|leg| leg.done)
    }
}

/// The clients that wait for all shards, and what they wait for.
#[derive(Debug, Default)]
pub struct FanOuts {
    by_waiter: BTreeMap<Waiter, FanOut>,
    by_request: HashMap<u64, (Waiter, NodeId)>,
    schedule: BTreeSet<(UnixMs, Waiter)>,
    bytes: usize,
}

impl FanOuts {
    pub fn len(&self) -> usize {
        self.by_waiter.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_waiter.is_empty()
    }

    /// May one more client wait, with a payload of this size?
    pub fn has_room(&self, payload: usize) -> bool {
        let bytes = self.bytes.saturating_add(payload);
        self.len() < MAX_UNANSWERED && (bytes <= MAX_WAITING_BYTES || self.is_empty())
    }

    /// A client waits. This node has done its part already, with this count, for the slots that it has.
    #[allow(clippy::too_many_arguments, reason = "what a fan-out is made of")]
    pub(super) fn begin(
        &mut self,
        outbox: &mut Outbox,
        nodes: &Nodes,
        waiter: Waiter,
        (topic, payload): (Topic, Rc<[u8]>),
        count: i64,
        now: UnixMs,
        wait_ms: i64,
    ) -> Vec<Outgoing> {
        let mut legs = BTreeMap::new();
        if let Some(myself) = nodes.shards().find(|node| node.myself) {
            let (address, slots) = (Rc::clone(&myself.address), myself.slots.clone());
            legs.insert(myself.id, Leg { address, slots, request: None, done: true });
        }
        self.bytes = self.bytes.saturating_add(payload.len());
        let fan_out = FanOut { topic, payload, deadline: now.plus(wait_ms), look_at: now, legs, count };
        self.by_waiter.insert(waiter, fan_out);
        self.schedule.insert((now, waiter));
        // Where this node has all slots there is nobody to ask, and the first look answers.
        if nodes.shards().all(|node| node.myself) {
            return Vec::new();
        }
        self.look_at(outbox, nodes, waiter, now).0
    }

    /// When the nodes are to be looked at next.
    pub fn next_deadline(&self) -> Option<UnixMs> {
        self.schedule.first().map(|(at, _)| *at)
    }

    /// What there is to do for the next client that is due.
    pub(super) fn due(&mut self, outbox: &mut Outbox, nodes: &Nodes, now: UnixMs) -> Option<Look> {
        let &(_, waiter) = self.schedule.first().filter(|(at, _)| *at <= now)?;
        let (messages, answer) = self.look_at(outbox, nodes, waiter, now);
        Some(Look { messages, answer: answer.map(|answer| (waiter, answer)) })
    }

    /// A request is done.
    pub(super) fn done(&mut self, number: u64, count: i64, now: UnixMs) {
        let Some((waiter, node)) = self.by_request.remove(&number) else { return };
        let Some(fan_out) = self.by_waiter.get_mut(&waiter) else { return };
        fan_out.count = fan_out.count.saturating_add(count);
        if let Some(leg) = fan_out.legs.get_mut(&node) {
            (leg.done, leg.request) = (true, None);
        }
        // Not yet answered: slots may have gone to another node meanwhile, or a shard to its replica.
        if fan_out.is_done() {
            self.reschedule(waiter, now);
        }
    }

    /// Nobody waits any more: the client has gone. What it would be told now.
    pub(super) fn end(&mut self, outbox: &mut Outbox, waiter: Waiter) -> Option<Reply<'static>> {
        let fan_out = self.by_waiter.remove(&waiter)?;
        self.schedule.remove(&(fan_out.look_at, waiter));
        self.bytes = self.bytes.saturating_sub(fan_out.payload.len());
        for number in fan_out.legs.values().filter_map(|leg| leg.request) {
            self.by_request.remove(&number);
            outbox.forget(number);
        }
        Some(fan_out.verdict())
    }

    pub(super) fn end_all(&mut self, outbox: &mut Outbox) {
        while let Some(waiter) = self.by_waiter.keys().next().copied() {
            self.end(outbox, waiter);
        }
    }

    /// What a client would be told if it waited no longer.
    pub fn verdict(&self, waiter: Waiter) -> Option<Reply<'static>> {
        self.by_waiter.get(&waiter).map(FanOut::verdict)
    }

    /// Brings the legs in line with the nodes that there are.
    fn look_at(
        &mut self,
        outbox: &mut Outbox,
        nodes: &Nodes,
        waiter: Waiter,
        now: UnixMs,
    ) -> (Vec<Outgoing>, Option<Reply<'static>>) {
        let mut outgoing = Vec::new();
        let Some(fan_out) = self.by_waiter.get_mut(&waiter) else { return (outgoing, None) };
        let shards: BTreeSet<NodeId> = nodes.shards().map(|node| node.id).collect();
        let gone: Vec<NodeId> = fan_out.legs.keys().copied().filter(|id| !shards.contains(id)).collect();
        for number in gone.iter().filter_map(|id| fan_out.legs.remove(id)?.request) {
            self.by_request.remove(&number);
            outbox.forget(number);
        }
        for node in nodes.shards() {
            let leg = fan_out.legs.entry(node.id).or_insert_with(|| {
                let (address, slots) = (Rc::clone(&node.address), super::nodes::Slots::default());
                Leg { address, slots, request: None, done: false }
            });
            // While it has a request to do it may do that before it is given further slots: it is asked again after that.
            if leg.request.is_some() || leg.slots.cover(&node.slots) {
                continue;
            }
            (leg.done, leg.slots) = (false, node.slots.clone());
            match outbox.send(node.id, fan_out.topic, Rc::clone(&fan_out.payload), now) {
                Some((number, message)) => {
                    leg.request = Some(number);
                    self.by_request.insert(number, (waiter, node.id));
                    outgoing.push(message);
                }
                // Too many wait for this node. Later.
                None => leg.slots = super::nodes::Slots::default(),
            }
        }
        if fan_out.is_done() || now >= fan_out.deadline {
            return (outgoing, self.end(outbox, waiter));
        }
        let next = now.plus(LOOK_MS).min(fan_out.deadline);
        self.reschedule(waiter, next);
        (outgoing, None)
    }

    fn reschedule(&mut self, waiter: Waiter, at: UnixMs) {
        if let Some(fan_out) = self.by_waiter.get_mut(&waiter) {
            self.schedule.remove(&(fan_out.look_at, waiter));
            fan_out.look_at = at;
            self.schedule.insert((at, waiter));
        }
    }
}
