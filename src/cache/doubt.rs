//! Keys that came from another node of the cluster with their slot, and that may have carried tags there.
//!
//! What is known of a key does not travel with its value. So a value that arrives is in doubt: CACHE reads do not see it until the
//! node it came from has said whether anything was known of it. If so it is removed, since a tag may have been invalidated on the
//! way, and a miss is always right. If not it is a value like any other. A question or an answer that is lost is asked again, and until then
//! the value stays unseen: nothing depends on a message that arrives.
//!
//! A value may go on before it is settled. Then the node that it was at has nothing to say but where it came from, and that one is asked.
//!
//! [`Doubts`] is what the node has that the keys come to, [`Departed`](super::departed::Departed) what the other one answers from.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::clock::UnixMs;
use crate::cluster::{MAX_PAYLOAD, NodeId, Question};
use crate::name::{Name, NameRef};

/// How long a question waits for its answer before it is asked again.
const PATIENCE_MS: i64 = 200;
/// How often one is sent on to another node. Who is sent on for ever asks for a value that goes round.
const SENT_ON_MAX: u8 = 8;

/// One value in doubt.
#[derive(Clone, Debug)]
struct Doubt {
    /// Grows with each arrival: an answer about an earlier arrival of the key means nothing.
    number: u64,
    since: UnixMs,
    source: NodeId,
    /// Where it may have come from as well.
    others: Vec<NodeId>,
    /// When it was asked for last.
    asked: Option<UnixMs>,
    /// How often the node that was asked named another one.
    sent_on: u8,
    /// On a replica, and in an AOF: it is said that the value comes before it does.
    expected: bool,
}

#[derive(Debug, Default)]
pub(super) struct Doubts {
    keys: HashMap<Name, Doubt>,
    /// In the order in which they are to be asked for. Those that are settled are skipped when their turn comes.
    turns: VecDeque<(Name, u64)>,
    arrived: u64,
}

impl Doubts {
    /// Numbers begin here: an answer that an earlier process of this node had asked for must mean nothing.
    pub fn begin(&mut self, seed: u64) {
        self.arrived = seed >> 1;
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn has_questions(&self) -> bool {
        !self.turns.is_empty()
    }

    #[inline]
    pub fn holds(&self, db: usize, key: &[u8]) -> bool {
        !self.is_empty() && self.keys.contains_key(&NameRef { db, key })
    }

    /// Where a value in doubt came from, and when.
    pub fn origin(&self, db: usize, key: &[u8]) -> Option<(NodeId, UnixMs)> {
        self.keys.get(&NameRef { db, key }).map(|doubt| (doubt.source, doubt.since))
    }

    /// May a value in doubt have come from several nodes?
    pub fn has_several_origins(&self, db: usize, key: &[u8]) -> bool {
        self.keys.get(&NameRef { db, key }).is_some_and(|doubt| !doubt.others.is_empty())
    }

    /// A value has come from this node.
    pub fn arrived(&mut self, db: usize, key: &[u8], source: NodeId, now: UnixMs) {
        self.put(db, key, source, now, false);
    }

    /// These may have sent it as well: each of them is to be asked.
    pub fn may_be_from(&mut self, db: usize, key: &[u8], others: Vec<NodeId>) {
        if let Some(doubt) = self.keys.get_mut(&NameRef { db, key }) {
            doubt.others = others;
        }
    }

    /// The primary says that the next value of the key comes from this node, and is in doubt there.
    pub fn announce(&mut self, db: usize, key: &[u8], source: NodeId, since: UnixMs) {
        self.put(db, key, source, since, true);
    }

    /// For saving: name, source, since when, and whether its value has still to come.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, NodeId, UnixMs, bool)> {
        self.keys.iter().map(|(name, doubt)| (name, doubt.source, doubt.since, doubt.expected))
    }

    /// As [`Doubts::iter`] says it. One that nobody could settle any more is asked about again.
    pub fn put(&mut self, db: usize, key: &[u8], source: NodeId, since: UnixMs, expected: bool) {
        self.arrived = self.arrived.saturating_add(1);
        let name = Name { db, key: key.into() };
        self.turns.push_back((name.clone(), self.arrived));
        let doubt =
            Doubt { number: self.arrived, since, source, others: Vec::new(), asked: None, sent_on: 0, expected };
        self.keys.insert(name, doubt);
        self.tidy();
    }

    /// A replica asks nobody, and so comes to no turn: those that are settled would stay for ever. Where most are, a few go with each arrival.
    fn tidy(&mut self) {
        const A_FEW: usize = 4;
        for _ in 0..A_FEW {
            if self.turns.len() <= self.keys.len().saturating_mul(2).saturating_add(A_FEW) {
                return;
            }
            let Some((name, number)) = self.turns.pop_front() else { return };
            if self.is_arrival(name.db, &name.key, number) {
                self.turns.push_back((name, number));
            }
        }
    }

    /// Another value has come to the key: the one that was expected, or one that ends the doubt.
    pub fn replaced(&mut self, db: usize, key: &[u8]) {
        if self.is_empty() {
            return;
        }
        match self.keys.get_mut(&NameRef { db, key }) {
            Some(doubt) if doubt.expected => doubt.expected = false,
            _ => {
                self.settle(db, key);
            }
        }
    }

    /// The value is gone, or another one that is known. Whether it was in doubt.
    #[inline]
    pub fn settle(&mut self, db: usize, key: &[u8]) -> bool {
        if self.is_empty() {
            return false;
        }
        let settled = self.keys.remove(&NameRef { db, key }).is_some();
        if self.keys.is_empty() {
            // A large slot may have come. What it took is given back.
            (self.keys, self.turns) = (HashMap::new(), VecDeque::new());
        }
        settled
    }

    /// Nobody knows any more: it stays in doubt until it is written or goes, and there is no use in asking again.
    pub fn leave(&mut self, db: usize, key: &[u8]) {
        if let Some(doubt) = self.keys.get_mut(&NameRef { db, key }) {
            self.arrived = self.arrived.saturating_add(1);
            doubt.number = self.arrived;
        }
    }

    /// The value had come to the node that was asked from this one, so long ago, and that one is to be asked. `false`: no more.
    pub fn send_on(&mut self, db: usize, key: &[u8], source: NodeId, since: UnixMs) -> bool {
        let Some(doubt) = self.keys.get_mut(&NameRef { db, key }).filter(|doubt| doubt.sent_on < SENT_ON_MAX) else {
            return false;
        };
        (doubt.since, doubt.sent_on) = (doubt.since.min(since), doubt.sent_on.saturating_add(1));
        self.ask(db, key, source);
        true
    }

    /// The node that was asked knows nothing of the key. Is there another one to be asked?
    pub fn ask_another(&mut self, db: usize, key: &[u8]) -> bool {
        let other = self.keys.get_mut(&NameRef { db, key }).and_then(|doubt| doubt.others.pop());
        if let Some(other) = other {
            self.ask(db, key, other);
        }
        other.is_some()
    }

    fn ask(&mut self, db: usize, key: &[u8], source: NodeId) {
        let Some(doubt) = self.keys.get_mut(&NameRef { db, key }) else { return };
        self.arrived = self.arrived.saturating_add(1);
        (doubt.number, doubt.source, doubt.asked) = (self.arrived, source, None);
        self.turns.push_front((Name { db, key: key.into() }, self.arrived));
    }

    /// Is it still the arrival of this number?
    pub fn is_arrival(&self, db: usize, key: &[u8], number: u64) -> bool {
        self.keys.get(&NameRef { db, key }).is_some_and(|doubt| doubt.number == number)
    }

    /// The value has another name now. Nobody knows that one where it came from: it stays in doubt until it is written or goes.
    pub fn moved(&mut self, from: (usize, &[u8]), to: (usize, &[u8])) {
        self.settle(to.0, to.1);
        if let Some(doubt) = self.keys.remove(&NameRef { db: from.0, key: from.1 }) {
            self.keys.insert(Name { db: to.0, key: to.1.into() }, doubt);
        }
    }

    /// The next questions, at most `max` and no more than one message holds, all to one node. Of keys that are not `ready` a few are
    /// passed over. A key that is too long for a message is not asked about: it stays in doubt, as one of which nobody knows any more,
    /// until it is written or goes.
    pub fn questions(
        &mut self,
        now: UnixMs,
        max: usize,
        ready: impl Fn(&[u8]) -> bool,
    ) -> Option<(NodeId, Vec<Question>)> {
        let (mut to, mut questions, mut bytes) = (None, Vec::new(), 0_usize);
        let mut passed = 0;
        for _ in 0..self.turns.len() {
            let Some((name, number)) = self.turns.front() else { break };
            let known = NameRef { db: name.db, key: &name.key };
            let is_asked = |doubt: &&mut Doubt| doubt.number == *number && name.key.len() <= MAX_PAYLOAD;
            let Some(doubt) = self.keys.get_mut(&known).filter(is_asked) else {
                self.turns.pop_front();
                continue;
            };
            if !ready(&name.key) {
                if passed >= max {
                    break;
                }
                passed = passed.saturating_add(1);
                self.turns.rotate_left(1);
                continue;
            }
            let early = doubt.asked.is_some_and(|at| now.since(at) < PATIENCE_MS);
            bytes = bytes.saturating_add(name.key.len());
            let full = questions.len() >= max || bytes > MAX_PAYLOAD;
            if early || full || to.is_some_and(|to| to != doubt.source) {
                break;
            }
            to = Some(doubt.source);
            doubt.asked = Some(now);
            let age_ms = now.since(doubt.since).max(0);
            questions.push(Question { db: name.db, key: name.key.clone(), number: *number, age_ms });
            self.turns.rotate_left(1);
        }
        Some((to?, questions))
    }

    pub fn flushed(&mut self, db: Option<usize>) {
        self.keys.retain(|name, _| db.is_some_and(|db| db != name.db));
    }

    pub fn swapped(&mut self, a: usize, b: usize) {
        let keys = std::mem::take(&mut self.keys);
        self.keys = keys.into_iter().map(|(name, doubt)| (name.swapped(a, b), doubt)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(letter: u8) -> NodeId {
        NodeId::new(&[letter; NodeId::LENGTH]).unwrap()
    }

    fn keys(questions: Option<(NodeId, Vec<Question>)>) -> Vec<Box<[u8]>> {
        questions.map_or_else(Vec::new, |(_, questions)| questions.into_iter().map(|question| question.key).collect())
    }

    #[test]
    fn a_question_is_asked_until_it_is_settled() {
        let mut doubts = Doubts::default();
        for key in [b"a", b"b", b"c"] {
            doubts.arrived(0, key, node(b'a'), UnixMs(0));
        }
        assert_eq!(keys(doubts.questions(UnixMs(1), 2, |_| true)), [b"a"[..].into(), b"b"[..].into()]);
        assert_eq!(keys(doubts.questions(UnixMs(1), 2, |_| true)), [b"c"[..].into()]);
        assert!(keys(doubts.questions(UnixMs(2), 2, |_| true)).is_empty());
        assert!(doubts.settle(0, b"a"));
        assert_eq!(keys(doubts.questions(UnixMs(PATIENCE_MS + 1), 9, |_| true)), [b"b"[..].into(), b"c"[..].into()]);
    }

    #[test]
    fn one_question_goes_to_one_node() {
        let mut doubts = Doubts::default();
        doubts.arrived(0, b"a", node(b'a'), UnixMs(0));
        doubts.arrived(0, b"b", node(b'b'), UnixMs(0));
        assert_eq!(
            doubts.questions(UnixMs(5), 9, |_| true).map(|(to, questions)| (to, questions[0].age_ms)),
            Some((node(b'a'), 5))
        );
        assert_eq!(doubts.questions(UnixMs(5), 9, |_| true).map(|(to, _)| to), Some(node(b'b')));
    }

    #[test]
    fn questions_fit_in_a_message_and_a_key_that_does_not_stays_in_doubt() {
        let mut doubts = Doubts::default();
        let key = |letter: u8, len: usize| vec![letter; len].into_boxed_slice();
        let (long, large) = (key(b'l', MAX_PAYLOAD + 1), [b'a', b'b'].map(|letter| key(letter, MAX_PAYLOAD / 2)));
        for key in [&long, &large[0], &large[1], &key(b'c', 1)] {
            doubts.arrived(0, key, node(b'a'), UnixMs(0));
        }
        assert_eq!(keys(doubts.questions(UnixMs(1), 9, |_| true)), large);
        assert_eq!(keys(doubts.questions(UnixMs(1), 9, |_| true)), [key(b'c', 1)]);
        large.iter().chain([&key(b'c', 1)]).for_each(|key| assert!(doubts.settle(0, key)));
        assert!(doubts.questions(UnixMs(9_999), 9, |_| true).is_none() && !doubts.has_questions());
        assert!(doubts.holds(0, &long));
    }

    #[test]
    fn what_a_large_slot_took_is_given_back() {
        let mut doubts = Doubts::default();
        (0..1000_u32).for_each(|n| doubts.arrived(0, &n.to_le_bytes(), node(b'a'), UnixMs(0)));
        assert!((0..1000_u32).all(|n| doubts.settle(0, &n.to_le_bytes())));
        assert_eq!((doubts.keys.capacity(), doubts.turns.capacity()), (0, 0));
    }

    #[test]
    fn an_answer_about_an_earlier_arrival_means_nothing() {
        let mut doubts = Doubts::default();
        doubts.arrived(0, b"a", node(b'a'), UnixMs(0));
        let first = doubts.questions(UnixMs(0), 1, |_| true).unwrap().1[0].number;
        doubts.arrived(0, b"a", node(b'b'), UnixMs(9));
        assert!(!doubts.is_arrival(0, b"a", first));
        let (to, questions) = doubts.questions(UnixMs(9), 1, |_| true).unwrap();
        assert!(to == node(b'b') && doubts.is_arrival(0, b"a", questions[0].number));
        doubts.leave(0, b"a");
        assert!(doubts.holds(0, b"a") && doubts.questions(UnixMs(9_999), 9, |_| true).is_none(), "nobody knows");
    }

    #[test]
    fn where_several_may_have_sent_it_each_is_asked() {
        let mut doubts = Doubts::default();
        doubts.arrived(0, b"a", node(b'a'), UnixMs(0));
        doubts.may_be_from(0, b"a", vec![node(b'b'), node(b'c')]);
        let mut asked = Vec::new();
        while let Some((to, questions)) = doubts.questions(UnixMs(0), 1, |_| true) {
            assert!(doubts.is_arrival(0, b"a", questions[0].number));
            asked.push((to, doubts.has_several_origins(0, b"a")));
            doubts.ask_another(0, b"a");
        }
        assert_eq!(asked, [(node(b'a'), true), (node(b'c'), true), (node(b'b'), false)]);
        assert!(doubts.holds(0, b"a"), "who asked settles it");
    }

    #[test]
    fn what_is_expected_stays_in_doubt_when_it_comes() {
        let mut doubts = Doubts::default();
        doubts.announce(0, b"a", node(b'a'), UnixMs(7));
        doubts.replaced(0, b"a");
        let asked = doubts.questions(UnixMs(9), 1, |_| true).map(|(to, questions)| (to, questions[0].age_ms));
        assert_eq!(asked, Some((node(b'a'), 2)));
        doubts.replaced(0, b"a");
        assert!(doubts.is_empty());
    }

    #[test]
    fn a_replica_which_never_asks_keeps_nothing_of_what_is_settled() {
        let mut doubts = Doubts::default();
        doubts.announce(0, b"stays", node(b'a'), UnixMs(0));
        for n in 0..10_000_u32 {
            doubts.announce(0, &n.to_le_bytes(), node(b'a'), UnixMs(0));
            assert!(doubts.settle(0, &n.to_le_bytes()));
        }
        assert!(doubts.turns.len() < 20, "{}", doubts.turns.len());
        assert_eq!(keys(doubts.questions(UnixMs(0), 9, |_| true)), [b"stays"[..].into()]);
    }

    #[test]
    fn what_was_renamed_stays_in_doubt() {
        let mut doubts = Doubts::default();
        doubts.arrived(0, b"a", node(b'a'), UnixMs(0));
        doubts.moved((0, b"a"), (0, b"b"));
        assert!(!doubts.holds(0, b"a") && doubts.holds(0, b"b") && doubts.questions(UnixMs(0), 1, |_| true).is_none());
        assert!(doubts.settle(0, b"b") && doubts.is_empty());
    }
}
