//! Requests of this node that are not answered yet.
//!
//! A request goes out at once. If no answer comes the node is asked what became of it, again and again with longer pauses; and when it
//! never got the request it says so and is sent it again. So the payload goes over the bus once, as a rule, however slow the other one is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::state::Outgoing;
use super::{MAX_UNANSWERED, Message, NodeId, RequestId, Topic};
use crate::clock::UnixMs;

/// After how many milliseconds a node is asked for the first time. Then the pause doubles each time.
const FIRST_PAUSE_MS: i64 = 100;
const LONGEST_PAUSE_MS: i64 = 1000;

#[derive(Debug)]
struct Request {
    target: NodeId,
    topic: Topic,
    payload: Rc<[u8]>,
    pause_ms: i64,
    /// When the node is asked next; as in `schedule`.
    ask_at: UnixMs,
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The request with this number is done.
    Done { number: u64, count: i64 },
    /// This has to be sent.
    Send(Outgoing),
    /// Nothing waits for this answer (any more).
    Nothing,
}

#[derive(Debug, Default)]
pub struct Outbox {
    epoch: u64,
    last: u64,
    requests: BTreeMap<u64, Request>,
    schedule: BTreeSet<(UnixMs, u64)>,
    /// The numbers of each node's requests.
    per_node: HashMap<NodeId, BTreeSet<u64>>,
}

impl Outbox {
    /// Drawn at random when the process begins: answers to one before it are none.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// A request to one node: its number, and what is to be sent now. `None`: too many to this node are not answered.
    pub fn send(&mut self, target: NodeId, topic: Topic, payload: Rc<[u8]>, now: UnixMs) -> Option<(u64, Outgoing)> {
        let unanswered = self.per_node.entry(target).or_default();
        if unanswered.len() >= MAX_UNANSWERED {
            return None;
        }
        self.last = self.last.saturating_add(1);
        let number = self.last;
        unanswered.insert(number);
        let ask_at = now.plus(FIRST_PAUSE_MS);
        self.requests.insert(number, Request { target, topic, payload, pause_ms: FIRST_PAUSE_MS, ask_at });
        self.schedule.insert((ask_at, number));
        Some((number, self.message(number)?))
    }

    /// Nobody waits for the answer any more.
    pub fn forget(&mut self, number: u64) {
        let Some(request) = self.requests.remove(&number) else { return };
        self.schedule.remove(&(request.ask_at, number));
        if let Some(unanswered) = self.per_node.get_mut(&request.target) {
            unanswered.remove(&number);
            if unanswered.is_empty() {
                self.per_node.remove(&request.target);
            }
        }
    }

    /// When the next node is to be asked.
    pub fn next_deadline(&self) -> Option<UnixMs> {
        self.schedule.first().map(|(at, _)| *at)
    }

    /// The next question that is due.
    pub fn due(&mut self, now: UnixMs) -> Option<Outgoing> {
        let &(at, number) = self.schedule.first().filter(|(at, _)| *at <= now)?;
        self.schedule.remove(&(at, number));
        let request = self.requests.get_mut(&number)?;
        request.pause_ms = request.pause_ms.saturating_mul(2).min(LONGEST_PAUSE_MS);
        request.ask_at = now.plus(request.pause_ms);
        self.schedule.insert((request.ask_at, number));
        let (id, to) = (RequestId { epoch: self.epoch, number }, request.target);
        Some(Outgoing { to, bytes: Message::Ask { id, floor: self.floor(to) }.encode() })
    }

    /// A node says that a request is done, with this count, or (`None`) that it never got it.
    pub fn answered(&mut self, from: NodeId, id: RequestId, count: Option<i64>) -> Event {
        let expected = self.requests.get(&id.number).is_some_and(|request| request.target == from);
        if id.epoch != self.epoch || !expected {
            return Event::Nothing;
        }
        match count {
            Some(count) => {
                self.forget(id.number);
                // What came over a network is not to make a sum shrink.
                Event::Done { number: id.number, count: count.max(0) }
            }
            None => self.message(id.number).map_or(Event::Nothing, Event::Send),
        }
    }

    /// The least number that this node has not answered.
    fn floor(&self, target: NodeId) -> u64 {
        self.per_node.get(&target).and_then(BTreeSet::first).copied().unwrap_or(self.last)
    }

    fn message(&self, number: u64) -> Option<Outgoing> {
        let request = self.requests.get(&number)?;
        let (id, floor) = (RequestId { epoch: self.epoch, number }, self.floor(request.target));
        let message = Message::Request { id, floor, topic: request.topic.0, payload: &request.payload };
        Some(Outgoing { to: request.target, bytes: message.encode() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1000);

    fn node(letter: u8) -> NodeId {
        NodeId::new(&[letter; NodeId::LENGTH]).unwrap()
    }

    fn outbox() -> Outbox {
        let mut outbox = Outbox::default();
        outbox.set_epoch(9);
        outbox
    }

    fn send(outbox: &mut Outbox, target: u8) -> u64 {
        outbox.send(node(target), Topic(1), b"payload"[..].into(), NOW).unwrap().0
    }

    #[test]
    fn a_node_that_says_nothing_is_asked_with_longer_pauses() {
        let mut outbox = outbox();
        let number = send(&mut outbox, b'a');
        let mut asked = Vec::new();
        for ms in 0..5000 {
            while let Some(Outgoing { to, bytes }) = outbox.due(NOW.plus(ms)) {
                let id = RequestId { epoch: 9, number };
                assert_eq!((to, Message::decode(&bytes).unwrap()), (node(b'a'), Message::Ask { id, floor: number }));
                asked.push(ms);
            }
        }
        assert_eq!(asked, [100, 300, 700, 1500, 2500, 3500, 4500]);
        outbox.forget(number);
        assert!(outbox.is_empty() && outbox.next_deadline().is_none() && outbox.per_node.is_empty());
    }

    #[test]
    fn only_the_node_that_was_asked_can_answer_and_only_once() {
        let mut outbox = outbox();
        let number = send(&mut outbox, b'a');
        let id = RequestId { epoch: 9, number };
        assert_eq!(outbox.answered(node(b'b'), id, Some(5)), Event::Nothing);
        assert_eq!(outbox.answered(node(b'a'), RequestId { epoch: 8, number }, Some(5)), Event::Nothing);
        assert_eq!(outbox.answered(node(b'a'), RequestId { epoch: 9, number: 2 }, Some(5)), Event::Nothing);
        let Event::Send(Outgoing { bytes, .. }) = outbox.answered(node(b'a'), id, None) else {
            panic!("not sent again")
        };
        assert_eq!(
            Message::decode(&bytes),
            Some(Message::Request { id, floor: number, topic: 1, payload: b"payload" })
        );
        assert_eq!(outbox.answered(node(b'a'), id, Some(-5)), Event::Done { number, count: 0 });
        assert_eq!(outbox.answered(node(b'a'), id, Some(5)), Event::Nothing);
    }

    #[test]
    fn each_node_is_told_what_is_still_wanted_of_it() {
        let mut outbox = outbox();
        let first = send(&mut outbox, b'a');
        let second = send(&mut outbox, b'b');
        let floor = |outgoing: Outgoing| match Message::decode(&outgoing.bytes).unwrap() {
            Message::Request { floor, .. } => floor,
            other => panic!("{other:?}"),
        };
        let mut next = |target| outbox.send(node(target), Topic(1), b""[..].into(), NOW).unwrap();
        assert_eq!((floor(next(b'a').1), floor(next(b'b').1)), (first, second));
        let id = RequestId { epoch: 9, number: second };
        outbox.answered(node(b'b'), id, Some(0));
        assert_eq!(floor(outbox.send(node(b'b'), Topic(1), b""[..].into(), NOW).unwrap().1), second + 2);
    }

    #[test]
    fn a_node_has_only_so_many_to_answer() {
        let mut outbox = outbox();
        let first = send(&mut outbox, b'a');
        for _ in 1..MAX_UNANSWERED {
            send(&mut outbox, b'a');
        }
        assert!(outbox.send(node(b'a'), Topic(1), b""[..].into(), NOW).is_none());
        send(&mut outbox, b'b');
        outbox.forget(first);
        send(&mut outbox, b'a');
    }
}
