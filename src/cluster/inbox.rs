//! Requests of other nodes: each is given out once, however often it comes, and what was done is remembered until its sender says, by the
//! floor in a later message, that it does not wait for that any more.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{MAX_UNANSWERED, Message, NodeId, RequestId, Topic};

/// How many nodes are remembered. A cluster has no more; beyond it the one that was silent longest is forgotten.
const MAX_SENDERS: usize = 1024;
/// How many bytes of payloads may wait to be given out. Beyond it a request is left to be sent again.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// A request to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    pub from: NodeId,
    pub id: RequestId,
    pub topic: Topic,
    pub payload: Vec<u8>,
}

/// What is known of a sender's requests.
#[derive(Debug, Default)]
struct Sender {
    epoch: u64,
    floor: u64,
    /// By number: the count, or `None` while it waits or is being done.
    requests: BTreeMap<u64, Option<i64>>,
    heard: u64,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It waits to be given out.
    Taken,
    /// It came before. The answer, if there is one.
    Known(Option<Vec<u8>>),
    /// It was asked for and never came.
    Unknown(Vec<u8>),
    /// There is no room, or its sender has given it up. Nothing is answered.
    Refused,
}

#[derive(Debug, Default)]
pub struct Inbox {
    senders: HashMap<NodeId, Sender>,
    waiting: VecDeque<Incoming>,
    waiting_bytes: usize,
    heard: u64,
}

impl Inbox {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A request has come.
    pub fn request(&mut self, from: NodeId, id: RequestId, floor: u64, topic: Topic, payload: &[u8]) -> Receipt {
        let full = self.waiting_bytes.saturating_add(payload.len()) > MAX_WAITING_BYTES && !self.waiting.is_empty();
        let sender = self.sender(from, id.epoch, floor);
        if let Some(known) = sender.requests.get(&id.number) {
            return Receipt::Known(known.map(|count| Message::Done { id, count }.encode()));
        }
        if full || id.number < sender.floor || sender.requests.len() >= MAX_UNANSWERED {
            return Receipt::Refused;
        }
        sender.requests.insert(id.number, None);
        self.waiting_bytes = self.waiting_bytes.saturating_add(payload.len());
        self.waiting.push_back(Incoming { from, id, topic, payload: payload.to_vec() });
        Receipt::Taken
    }

    /// A node asks what became of a request.
    pub fn ask(&mut self, from: NodeId, id: RequestId, floor: u64) -> Receipt {
        let sender = self.sender(from, id.epoch, floor);
        match sender.requests.get(&id.number) {
            Some(known) => Receipt::Known(known.map(|count| Message::Done { id, count }.encode())),
            None if id.number < sender.floor => Receipt::Refused,
            None => Receipt::Unknown(Message::Unknown { id }.encode()),
        }
    }

    /// The next request to be done. [`Inbox::done`] or [`Inbox::given_up`] must follow.
    pub fn take(&mut self) -> Option<Incoming> {
        let incoming = self.waiting.pop_front()?;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(incoming.payload.len());
        Some(incoming)
    }

    /// It is done: the answer.
    pub fn done(&mut self, from: NodeId, id: RequestId, count: i64) -> Vec<u8> {
        if let Some(known) = self.requests(from, id).and_then(|requests| requests.get_mut(&id.number)) {
            *known = Some(count);
        }
        Message::Done { id, count }.encode()
    }

    /// It cannot be done here. Nothing is answered; if it comes again it is looked at again.
    pub fn given_up(&mut self, from: NodeId, id: RequestId) {
        if let Some(requests) = self.requests(from, id) {
            requests.remove(&id.number);
        }
    }

    /// Whatever waits is given up: this node does no such work any more.
    pub fn give_up_all(&mut self) {
        while let Some(Incoming { from, id, .. }) = self.take() {
            self.given_up(from, id);
        }
    }

    fn requests(&mut self, from: NodeId, id: RequestId) -> Option<&mut BTreeMap<u64, Option<i64>>> {
        self.senders.get_mut(&from).filter(|sender| sender.epoch == id.epoch).map(|sender| &mut sender.requests)
    }

    fn sender(&mut self, from: NodeId, epoch: u64, floor: u64) -> &mut Sender {
        self.heard = self.heard.saturating_add(1);
        if self.senders.len() >= MAX_SENDERS && !self.senders.contains_key(&from) {
            let silent = self.senders.iter().min_by_key(|(_, sender)| sender.heard).map(|(id, _)| *id);
            silent.and_then(|id| self.senders.remove(&id));
        }
        let sender = self.senders.entry(from).or_default();
        if sender.epoch != epoch {
            // Its process is another one, and remembers nothing of what the one before it had sent.
            *sender = Sender { epoch, ..Sender::default() };
        }
        sender.heard = self.heard;
        if floor > sender.floor {
            sender.floor = floor;
            sender.requests = sender.requests.split_off(&floor);
        }
        sender
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(letter: u8) -> NodeId {
        NodeId::new(&[letter; NodeId::LENGTH]).unwrap()
    }

    fn id(number: u64) -> RequestId {
        RequestId { epoch: 1, number }
    }

    fn request(inbox: &mut Inbox, number: u64, floor: u64) -> Receipt {
        inbox.request(node(b'a'), id(number), floor, Topic(1), b"do")
    }

    #[test]
    fn a_request_is_given_out_once_and_answered_each_time() {
        let mut inbox = Inbox::default();
        assert_eq!(request(&mut inbox, 5, 5), Receipt::Taken);
        assert_eq!(request(&mut inbox, 5, 5), Receipt::Known(None));
        assert_eq!(inbox.ask(node(b'a'), id(5), 5), Receipt::Known(None));
        assert_eq!(inbox.take().map(|incoming| incoming.payload), Some(b"do".to_vec()));
        assert_eq!(inbox.take(), None);
        let answer = inbox.done(node(b'a'), id(5), 3);
        assert_eq!(Message::decode(&answer), Some(Message::Done { id: id(5), count: 3 }));
        assert_eq!(request(&mut inbox, 5, 5), Receipt::Known(Some(answer.clone())));
        assert_eq!(inbox.ask(node(b'a'), id(5), 5), Receipt::Known(Some(answer)));
        let unknown = Message::Unknown { id: id(6) }.encode();
        assert_eq!(inbox.ask(node(b'a'), id(6), 5), Receipt::Unknown(unknown));
        assert_eq!(inbox.request(node(b'b'), id(5), 5, Topic(1), b""), Receipt::Taken, "of another node");
    }

    #[test]
    fn what_its_sender_does_not_wait_for_is_forgotten_and_not_done_again() {
        let mut inbox = Inbox::default();
        for number in 1..=3 {
            request(&mut inbox, number, 1);
            inbox.take();
            inbox.done(node(b'a'), id(number), 1);
        }
        assert_eq!(request(&mut inbox, 4, 3), Receipt::Taken);
        assert_eq!(inbox.senders[&node(b'a')].requests.len(), 2);
        assert_eq!(request(&mut inbox, 2, 1), Receipt::Refused);
        assert_eq!(inbox.ask(node(b'a'), id(2), 1), Receipt::Refused);
        assert_eq!(inbox.request(node(b'a'), RequestId { epoch: 2, number: 2 }, 1, Topic(1), b""), Receipt::Taken);
    }

    #[test]
    fn tables_are_bounded() {
        let mut inbox = Inbox::default();
        for number in 0..2000 {
            let expected = if number < 1024 { Receipt::Taken } else { Receipt::Refused };
            assert_eq!(request(&mut inbox, number, 0), expected);
        }
        inbox.give_up_all();
        assert_eq!((inbox.waiting_bytes, request(&mut inbox, 0, 0)), (0, Receipt::Taken));
        for number in 0..5000_u32 {
            let from = NodeId::new(format!("{number:040}").as_bytes()).unwrap();
            inbox.ask(from, id(1), 1);
        }
        assert_eq!(inbox.senders.len(), MAX_SENDERS);
        let mut inbox = Inbox::default();
        let large = vec![0; MAX_WAITING_BYTES];
        assert_eq!(inbox.request(node(b'a'), id(1), 1, Topic(1), &large), Receipt::Taken);
        assert_eq!(inbox.request(node(b'b'), id(1), 1, Topic(1), b"x"), Receipt::Refused);
    }
}
