//! All that a node remembers of the bus.

use std::rc::Rc;

use super::inbox::Receipt;
use super::{Answer, Event, FanOuts, Inbox, Incoming, Message, NodeId, Nodes, Outbox, Question, RequestId, Topic};
use crate::clock::UnixMs;
use crate::reply::Reply;
use crate::server::Waiter;

/// Bytes for a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub to: NodeId,
    pub bytes: Vec<u8>,
}

/// What is to be done at once for a message that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    Nothing,
    Send(Outgoing),
    /// Its sender asks about values that came there from here.
    Questions(Vec<Question>),
    /// It answers about values that came here from there.
    Answers(Vec<Answer>),
}

impl From<Option<Outgoing>> for Received {
    fn from(outgoing: Option<Outgoing>) -> Received {
        outgoing.map_or(Received::Nothing, Received::Send)
    }
}

/// What there is to do for a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    pub messages: Vec<Outgoing>,
    /// What it is told, if it waits no longer.
    pub answer: Option<(Waiter, Reply<'static>)>,
}

/// What INFO tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub sent: u64,
    pub received: u64,
    /// Messages that were none, or found no room, or were about what this node does not do.
    pub refused: u64,
    /// Questions about requests that were not answered.
    pub asked: u64,
    /// Requests that came again.
    pub duplicates: u64,
    /// Requests of other nodes that were done here.
    pub done: u64,
    pub waits: u64,
    /// Clients that were told which shards were not reached.
    pub not_reached: u64,
}

#[derive(Debug, Default)]
pub struct State {
    pub outbox: Outbox,
    pub inbox: Inbox,
    pub fan_outs: FanOuts,
    pub counters: Counters,
}

impl State {
    /// A message has come over the bus. `primary`: this node may do what others ask of it.
    pub fn received(&mut self, from: NodeId, bytes: &[u8], primary: bool, now: UnixMs) -> Received {
        add(&mut self.counters.received);
        let Some(message) = Message::decode(bytes) else {
            add(&mut self.counters.refused);
            return Received::Nothing;
        };
        match message {
            // The shard has another primary, or will have; its sender looks for that one.
            Message::Request { .. } | Message::Ask { .. } if !primary => {
                add(&mut self.counters.refused);
                Received::Nothing
            }
            Message::Request { id, floor, topic, payload } => {
                let receipt = self.inbox.request(from, id, floor, Topic(topic), payload);
                self.answer(from, receipt).into()
            }
            Message::Ask { id, floor } => {
                let receipt = self.inbox.ask(from, id, floor);
                self.answer(from, receipt).into()
            }
            Message::Done { id, count } => self.answered(from, id, Some(count), now).into(),
            Message::Unknown { id } => self.answered(from, id, None, now).into(),
            Message::Questions(questions) => Received::Questions(questions),
            Message::Answers(answers) => Received::Answers(answers),
        }
    }

    fn answer(&mut self, to: NodeId, receipt: Receipt) -> Option<Outgoing> {
        match receipt {
            Receipt::Taken => None,
            Receipt::Known(answer) => {
                add(&mut self.counters.duplicates);
                answer.map(|bytes| Outgoing { to, bytes })
            }
            Receipt::Unknown(bytes) => Some(Outgoing { to, bytes }),
            Receipt::Refused => {
                add(&mut self.counters.refused);
                None
            }
        }
    }

    fn answered(&mut self, from: NodeId, id: RequestId, count: Option<i64>, now: UnixMs) -> Option<Outgoing> {
        match self.outbox.answered(from, id, count) {
            Event::Done { number, count } => {
                self.fan_outs.done(number, count, now);
                None
            }
            Event::Send(outgoing) => Some(outgoing),
            Event::Nothing => None,
        }
    }

    /// The next request to be done here; [`State::done`] must follow.
    pub fn take(&mut self) -> Option<Incoming> {
        self.inbox.take()
    }

    /// A request is done; `None`: it cannot be done here, and is not answered. What is to be sent.
    pub fn done(&mut self, from: NodeId, id: RequestId, count: Option<i64>) -> Option<Outgoing> {
        match count {
            Some(count) => {
                add(&mut self.counters.done);
                Some(Outgoing { to: from, bytes: self.inbox.done(from, id, count) })
            }
            None => {
                add(&mut self.counters.refused);
                self.inbox.given_up(from, id);
                None
            }
        }
    }

    /// A client waits until every shard has done this. See [`FanOuts`]; this node has done its part.
    pub fn fan_out(
        &mut self,
        nodes: &Nodes,
        waiter: Waiter,
        request: (Topic, Rc<[u8]>),
        count: i64,
        now: UnixMs,
        wait_ms: i64,
    ) -> Vec<Outgoing> {
        add(&mut self.counters.waits);
        self.fan_outs.begin(&mut self.outbox, nodes, waiter, request, count, now, wait_ms)
    }

    /// When there is something to send or to look at.
    pub fn next_deadline(&self) -> Option<UnixMs> {
        UnixMs::earliest(self.outbox.next_deadline(), self.fan_outs.next_deadline())
    }

    /// Must the nodes of the cluster be known for what is due?
    pub fn looks_at_nodes(&self, now: UnixMs) -> bool {
        self.fan_outs.next_deadline().is_some_and(|at| at <= now)
    }

    /// The next question that is due.
    pub fn next_question(&mut self, now: UnixMs) -> Option<Outgoing> {
        let outgoing = self.outbox.due(now)?;
        add(&mut self.counters.asked);
        Some(outgoing)
    }

    /// What there is to do for the next client that is due.
    pub fn next_look(&mut self, nodes: &Nodes, now: UnixMs) -> Option<Look> {
        let look = self.fan_outs.due(&mut self.outbox, nodes, now)?;
        if matches!(look.answer, Some((_, Reply::Error(_)))) {
            add(&mut self.counters.not_reached);
        }
        Some(look)
    }

    /// A client waits no longer, since it has gone or was sent away.
    pub fn waiter_left(&mut self, waiter: Waiter) {
        self.fan_outs.end(&mut self.outbox, waiter);
    }

    /// This node is no primary any more. What it was asked to do is left to the one that is, and its clients are sent away by the server.
    pub fn demoted(&mut self) {
        self.inbox.give_up_all();
        self.fan_outs.end_all(&mut self.outbox);
    }
}

fn add(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}
