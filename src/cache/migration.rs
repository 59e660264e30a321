//! What becomes of the cache's memory when slots of the cluster move: see [`doubt`](super::doubt).
//!
//! The rest is memory of loads and of negative answers, which stays behind. While a slot is away its keys are changed without
//! this node hearing of it. It ends when the slot is seen to have left, and at the latest when this node has a new epoch in the
//! cluster: without that no slot that was away can have come back. A load for a slot that is still coming may not have been given out
//! for this coming, but for an earlier one: that is told by the epoch of the node that has the slot, which is greater each time.

use super::departed::Was;
use super::leases::Place;
use super::state::State;
use super::waiters;
use crate::args::Arg;
use crate::clock::UnixMs;
use crate::cluster::arrivals::MAX_KEYS;
use crate::cluster::{Answer, NodeId, Question, Verdict};
use crate::error::Error;
use crate::server::{Server, Word};

/// The walk over all leases while slots leave.
#[derive(Debug, Default)]
pub(super) struct LeaseWalk {
    /// It is to begin, or to begin again when it has come to its end.
    wanted: bool,
    /// Where it is; `None` where none is under way.
    last: Option<Place>,
}

impl State {
    fn arrived(&mut self, db: usize, key: &[u8], source: NodeId, now: UnixMs) {
        self.doubts.arrived(db, key, source, now);
        self.counters.doubts = self.counters.doubts.saturating_add(1);
    }

    /// Is a value in doubt here?
    #[inline]
    pub fn has_doubts(&self) -> bool {
        !self.doubts.is_empty()
    }

    /// If the value is in doubt: the node that it came from.
    pub fn came_from(&self, db: usize, key: &[u8]) -> Option<NodeId> {
        self.doubts.origin(db, key).map(|(source, _)| source)
    }

    pub fn doubts(&self) -> usize {
        self.doubts.len()
    }

    pub fn departed(&self) -> usize {
        self.departed.len()
    }

    /// Is anything known of the key that its value does not carry?
    #[inline]
    pub fn is_known(&self, db: usize, key: &[u8], now: UnixMs) -> bool {
        self.knows(db, key, now) || self.doubts.holds(db, key)
    }

    /// And more than that it is in doubt?
    fn knows(&self, db: usize, key: &[u8], now: UnixMs) -> bool {
        let known = |database: &super::database::Database| {
            database.knows(key) || (database.floors.live() > 0 && database.floors.get(key, now).is_some())
        };
        self.databases.get(&db).is_some_and(known) || self.intents.holds(db, key)
    }

    /// A key of which something is known goes, and its slot is on its way.
    pub fn departs_with_slot(&mut self, db: usize, key: &[u8], now: UnixMs) {
        let was = self.was(db, key, now).unwrap_or(Was::Known);
        self.departed.went(db, key, was, now);
    }

    /// What is known of a key that is here.
    fn was(&self, db: usize, key: &[u8], now: UnixMs) -> Option<Was> {
        let in_doubt = || self.doubts.origin(db, key).map(|(source, since)| Was::InDoubt(source, since));
        // Where it is not known from which node it came, nobody can be sent on to that one: it is removed wherever it goes.
        let known = self.knows(db, key, now) || self.doubts.has_several_origins(db, key);
        if known { Some(Was::Known) } else { in_doubt() }
    }

    /// This process serves from now on.
    pub fn begins_to_serve(&mut self, now: UnixMs) {
        self.departed.begin(now);
    }

    /// Is a value in doubt about which somebody can be asked?
    pub fn has_questions(&self) -> bool {
        self.doubts.has_questions()
    }

    /// Are keys removed just now that were invalidated before?
    pub fn is_reclaiming(&self) -> bool {
        self.reclaiming
    }

    /// The check for records without a key begins anew.
    pub fn walk_from_start(&mut self) {
        self.ghost_walk = super::reclaim::GhostWalk::default();
    }

    /// Slots have left this node, or are leaving it: the leases are to be looked at, all that there are now. See [`leave_slots`].
    pub fn slots_leave(&mut self) {
        self.lease_walk.wanted = true;
    }

    /// The next keys that the walk looks at, at most `max`. The walk goes by the order of the names, so that it misses none that
    /// was there when it began, whatever comes and goes.
    fn next_leases(&mut self, max: usize) -> Vec<Place> {
        let walk = &mut self.lease_walk;
        if walk.last.is_none() && !std::mem::take(&mut walk.wanted) {
            return Vec::new();
        }
        let places = self.leases.places_after(walk.last.as_ref(), max);
        walk.last = if places.len() < max { None } else { places.last().cloned() };
        places
    }

    /// What another node asks about values that went there. `serves`: this node is a primary. Any other notes nothing of what goes.
    pub fn answer(&self, questions: Vec<Question>, serves: bool, now: UnixMs) -> Vec<Answer> {
        let answer = |question: Question| {
            let Question { db, key, number, age_ms } = question;
            // One that is here went as well, if a MIGRATE failed half way.
            let (here, gone) = (self.was(db, &key, now), self.departed.was(db, &key));
            let verdict = match if gone == Some(Was::Known) { gone } else { here.or(gone) } {
                Some(Was::Known) => Verdict::Known,
                Some(Was::InDoubt(source, since)) => Verdict::CameFrom { source, age_ms: now.since(since).max(0) },
                None if serves && self.departed.remembers(age_ms, now) => Verdict::Plain,
                None => Verdict::Forgotten,
            };
            let floor = self.version_seen(db, &key, now);
            Answer { db, key, number, verdict, floor }
        };
        questions.into_iter().map(answer).collect()
    }

    /// This node's epoch in the cluster. With a new one slots may have come back: what was remembered of loads, writes and
    /// negative answers means nothing.
    pub fn in_epoch(&mut self, epoch: u64) {
        if self.epoch.replace(epoch).is_some_and(|before| before != epoch) {
            self.slots_came();
        }
    }

    /// Slots have come, or may have been away.
    pub fn slots_came(&mut self) {
        for db in self.leases.in_databases() {
            self.leases.void(db);
        }
        self.intents.spoil_all();
        for database in self.databases.values_mut() {
            database.negatives.clear();
        }
    }
}

/// The next questions about values that came, and whom to ask. For a primary.
/// `ready`: the key can be asked for now.
pub fn ask(state: &mut State, now: UnixMs, ready: impl Fn(&[u8]) -> bool) -> Option<(NodeId, Vec<Question>)> {
    state.doubts.questions(now, MAX_KEYS, ready)
}

/// A value has come with its slot, from the first of these nodes or, where it is not known from which, from any of them. Replicas learn
/// of the first before they get the value: one that is promoted asks on.
pub fn arrived<S: Server>(server: &mut S, key: &[u8], sources: &[NodeId]) {
    let Some((&source, others)) = sources.split_first() else { return };
    let (db, now) = (server.db(), server.now().to_ms());
    let cache = &mut server.state().cache;
    cache.arrived(db, key, source, now);
    cache.doubts.may_be_from(db, key, others.to_vec());
    let words = [Word::Text("DOUBT"), Word::Bytes(key), Word::Bytes(source.as_bytes()), Word::Int(now.0)];
    server.replicate("KEYWARD.APPLY", &words);
}

/// Deals with what the other node said. For a timer, and only while the server may write. `me`: the name of this node.
///
/// # Errors
/// `IndexFull` if there is no room for the floor; the key is gone then.
pub fn act_on<S: Server>(server: &mut S, answer: &Answer, me: Option<NodeId>) -> Result<(), Error> {
    let Answer { db, ref key, number, verdict, floor } = *answer;
    let cache = &mut server.state().cache;
    if !cache.doubts.is_arrival(db, key, number) {
        return Ok(());
    }
    if let Verdict::CameFrom { source, age_ms } = verdict
        && Some(source) != me
    {
        let since = server.now().to_ms().plus(age_ms.saturating_neg());
        if server.state().cache.doubts.send_on(db, key, source, since) {
            return Ok(());
        }
    }
    server.select(db);
    let cache = &mut server.state().cache;
    match verdict {
        Verdict::Forgotten => cache.doubts.leave(db, key),
        Verdict::Plain if cache.doubts.ask_another(db, key) => {}
        Verdict::Plain => {
            cache.doubts.settle(db, key);
            server.replicate("KEYWARD.APPLY", &[Word::Text("NODOUBT"), Word::Bytes(key)]);
        }
        // One that has gone round between nodes, so fast that none of them was told: nobody knows any more.
        Verdict::Known | Verdict::CameFrom { .. } => {
            cache.reclaiming = true;
            server.unlink(&[key]);
            let cache = &mut server.state().cache;
            cache.reclaiming = false;
            cache.doubts.settle(db, key);
            cache.counters.doubts_removed = cache.counters.doubts_removed.saturating_add(1);
            waiters::settle(server, Arg::named(key));
        }
    }
    match floor {
        Some(version) if verdict != Verdict::Forgotten => raise_floor(server, db, key, version),
        _ => Ok(()),
    }
}

fn raise_floor<S: Server>(server: &mut S, db: usize, key: &[u8], version: u64) -> Result<(), Error> {
    let now = server.now().to_ms();
    let state = server.state();
    let until = now.plus(state.config.version_floor_ms);
    if state.cache.set_floor(&state.config, (db, key), version, until, Some(now))? {
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        let words = [Word::Text("FLOOR"), Word::Bytes(key), Word::Int(version), Word::Int(until.0)];
        server.replicate("KEYWARD.APPLY", &words);
    }
    Ok(())
}

/// After [`State::slots_leave`]: who waits for a load of a key that is not served here any more is sent after it. Looks at up to
/// `budget` keys; whether any are left. `stays`: of these keys nothing can have changed.
pub fn leave_slots<S: Server>(server: &mut S, budget: usize, stays: impl Fn(&[u8]) -> bool) -> bool {
    for (db, key) in server.state().cache.next_leases(budget) {
        if !stays(&key) {
            server.select(db);
            waiters::send_away(server, Arg::named(&key));
        }
    }
    let walk = &server.state().cache.lease_walk;
    walk.wanted || walk.last.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::fetch::Fetch;
    use crate::cache::commands::fill::Fill;
    use crate::cache::commands::get::Get;
    use crate::cache::commands::set::Set;
    use crate::fake_server::FakeServer;
    use crate::reply::Reply;

    fn node(letter: u8) -> NodeId {
        NodeId::new(&[letter; NodeId::LENGTH]).unwrap()
    }

    fn source() -> NodeId {
        node(b'a')
    }

    /// A server to which `k` has come, and what it asks.
    fn doubtful() -> (FakeServer, Question) {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v").unwrap();
        arrived(&mut server, b"k", &[source()]);
        server.take_replicated();
        let (_, mut questions) = ask(&mut server.state.cache, UnixMs(0), |_| true).unwrap();
        (server, questions.pop().unwrap())
    }

    fn answered(server: &mut FakeServer, question: &Question, verdict: Verdict, floor: Option<u64>) {
        let Question { db, ref key, number, .. } = *question;
        act_on(server, &Answer { db, key: key.clone(), number, verdict, floor }, Some(node(b'm'))).unwrap();
    }

    #[test]
    fn a_value_in_doubt_is_not_seen() {
        let (mut server, question) = doubtful();
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Nil));
        answered(&mut server, &question, Verdict::Forgotten, None);
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Nil));
        assert!(ask(&mut server.state.cache, UnixMs(9_999), |_| true).is_none() && !server.state.cache.has_questions());
        server.call::<Set>("CACHE.SET k new").unwrap();
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Bytes(b"new")));
    }

    #[test]
    fn a_plain_value_is_seen_again_and_a_known_one_is_removed() {
        let (mut server, question) = doubtful();
        answered(&mut server, &question, Verdict::Plain, None);
        assert_eq!(server.take_replicated(), ["KEYWARD.APPLY NODOUBT k"]);
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Bytes(b"v")));
        let (mut server, question) = doubtful();
        answered(&mut server, &question, Verdict::Known, Some(7));
        assert!(server.keys.is_empty() && !server.state.cache.has_doubts());
        assert_eq!(server.call::<Set>("CACHE.SET k late VERSION 7"), Ok(Reply::Nil));
    }

    #[test]
    fn what_is_loaded_meanwhile_stands() {
        let (mut server, question) = doubtful();
        let Ok(Reply::Array(parts)) = server.call::<Fetch>("CACHE.FETCH k") else { panic!("no array") };
        let Some(Reply::OwnedBytes(token)) = parts.get(2) else { panic!("no token") };
        let fill = format!("CACHE.FILL k {} new", String::from_utf8_lossy(token));
        answered(&mut server, &question, Verdict::Known, None);
        assert_eq!(server.call::<Fill>(&fill), Ok(Reply::Int(1)), "its removal ends no load");
        answered(&mut server, &question, Verdict::Known, None);
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Bytes(b"new")));
    }

    #[test]
    fn the_source_knows_what_went_and_since_when() {
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET here v TAGS 1 t VERSION 3").unwrap();
        let now = server.now.to_ms();
        let cache = &mut server.state.cache;
        cache.begins_to_serve(now);
        cache.departs_with_slot(0, b"gone", now);
        let question = |key: &[u8], age_ms| Question { db: 0, key: key.into(), number: 1, age_ms };
        let questions =
            vec![question(b"here", 5), question(b"gone", 50), question(b"plain", 5), question(b"plain", 50)];
        let verdicts = |serves| -> Vec<_> {
            let answers = cache.answer(questions.clone(), serves, now.plus(10));
            answers.iter().map(|answer| (answer.verdict, answer.floor)).collect()
        };
        let (known, plain, forgotten) = ((Verdict::Known, None), (Verdict::Plain, None), (Verdict::Forgotten, None));
        assert_eq!(verdicts(true), [(Verdict::Known, Some(3)), known, plain, forgotten]);
        assert_eq!(verdicts(false), [(Verdict::Known, Some(3)), known, forgotten, forgotten], "no primary");
    }

    #[test]
    fn of_a_value_that_went_on_in_doubt_another_node_is_asked() {
        let (mut server, question) = doubtful();
        let now = server.now.to_ms();
        let cache = &mut server.state.cache;
        cache.departs_with_slot(0, b"k", now.plus(30));
        cache.doubts.settle(0, b"k");
        let answers = cache.answer(vec![question], true, now.plus(40));
        let sent_on = Verdict::CameFrom { source: source(), age_ms: 40 };
        assert_eq!(answers[0].verdict, sent_on);
        // Where it went.
        let mut server = FakeServer::new();
        server.call::<Set>("CACHE.SET k v").unwrap();
        arrived(&mut server, b"k", &[node(b'b')]);
        let now = server.now.to_ms();
        let mut asked = ask(&mut server.state.cache, now, |_| true).unwrap();
        for _ in 0..8 {
            answered(&mut server, &asked.1[0], sent_on, None);
            asked = ask(&mut server.state.cache, now, |_| true).unwrap();
            assert_eq!((asked.0, asked.1[0].age_ms), (source(), 40));
        }
        assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(Reply::Nil));
        answered(&mut server, &asked.1[0], sent_on, None);
        assert!(server.keys.is_empty() && !server.state.cache.has_doubts(), "it goes round");
        let (mut server, question) = doubtful();
        answered(&mut server, &question, Verdict::CameFrom { source: node(b'm'), age_ms: 0 }, None);
        assert!(server.keys.is_empty(), "it had come from here");
    }

    #[test]
    fn a_value_that_may_be_from_several_nodes_is_seen_when_all_have_said_so() {
        let (mut server, now) = (FakeServer::new(), UnixMs(0));
        server.call::<Set>("CACHE.SET k v").unwrap();
        arrived(&mut server, b"k", &[node(b'a'), node(b'b')]);
        for (asked, floor, seen) in [(b'a', Some(7), Reply::Nil), (b'b', None, Reply::Bytes(b"v"))] {
            let (to, questions) = ask(&mut server.state.cache, now, |_| true).unwrap();
            assert_eq!(to, node(asked));
            answered(&mut server, &questions[0], Verdict::Plain, floor);
            assert_eq!(server.call::<Get>("CACHE.GET k"), Ok(seen));
        }
        assert_eq!(server.call::<Set>("CACHE.SET k late VERSION 7"), Ok(Reply::Nil), "also what the first has said");
    }

    #[test]
    fn a_new_epoch_ends_loads_and_negative_answers() {
        let mut server = FakeServer::new();
        server.state.cache.in_epoch(1);
        let Ok(Reply::Array(parts)) = server.call::<Fetch>("CACHE.FETCH k") else { panic!("no array") };
        let Some(Reply::OwnedBytes(token)) = parts.get(2) else { panic!("no token") };
        let fill = format!("CACHE.FILL k {} v", String::from_utf8_lossy(token));
        server.state.cache.in_epoch(1);
        server.state.cache.in_epoch(2);
        assert_eq!(server.call::<Fill>(&fill), Ok(Reply::Int(0)));
    }

    #[test]
    fn a_load_for_a_slot_that_comes_ends_when_the_slot_is_here_or_comes_anew() {
        for (meanwhile, stored) in [(Some(4), 1), (Some(6), 0), (None, 0)] {
            let mut server = FakeServer::new();
            server.visiting = Some(4);
            let Ok(Reply::Array(parts)) = server.call::<Fetch>("CACHE.FETCH k") else { panic!("no array") };
            let Some(Reply::OwnedBytes(token)) = parts.get(2) else { panic!("no token") };
            let fill = format!("CACHE.FILL k {} v", String::from_utf8_lossy(token));
            server.visiting = meanwhile;
            assert_eq!(server.call::<Fill>(&fill), Ok(Reply::Int(stored)), "{meanwhile:?}");
        }
    }

    /// Keys of two databases, each with a load and somebody who waits for it.
    fn waited_for() -> FakeServer {
        let mut server = FakeServer::new();
        for (n, db) in [0, 3].repeat(50).into_iter().enumerate() {
            server.db = db;
            for _ in ["elected", "waits"] {
                server.call::<Fetch>(&format!("CACHE.FETCH k{n:03} WAIT 1000")).unwrap();
            }
        }
        server.moved = (0..100).map(|n| format!("k{n:03}").into_bytes()).collect();
        server
    }

    fn stays(key: &[u8]) -> bool {
        key.ends_with(b"9")
    }

    #[test]
    fn leases_leave_in_slices_and_nobody_is_left_waiting() {
        let mut server = waited_for();
        assert!(!leave_slots(&mut server, 7, stays), "no slot leaves");
        server.state.cache.slots_leave();
        let mut slices = 0;
        loop {
            let before = server.answers.len();
            let more = leave_slots(&mut server, 7, stays);
            assert!(server.answers.len() - before <= 7);
            slices += 1;
            if !more {
                break;
            }
            // Meanwhile keys come and go, also the one that was looked at last.
            let last = server.state.cache.lease_walk.last.clone();
            if let Some((db, key)) = last {
                server.state.cache.leases.forget(db, &key);
            }
            server.db = 0;
            server.call::<Fetch>(&format!("CACHE.FETCH a{slices}")).unwrap();
        }
        assert_eq!((slices, server.answers.len()), (15, 90));
        assert!(server.answers.iter().all(|(_, reply)| matches!(reply, Reply::Error(Error::Moved(..)))));
        assert_eq!(server.state.cache.waiters(), 10, "those whose keys stay");
    }

    #[test]
    fn slots_that_leave_during_the_walk_are_walked_for_as_well() {
        let mut server = waited_for();
        server.state.cache.slots_leave();
        assert!(leave_slots(&mut server, 60, |_| true));
        server.state.cache.slots_leave();
        assert!(leave_slots(&mut server, 60, |_| false), "to its end, and again");
        assert_eq!(server.answers.len(), 40);
        while leave_slots(&mut server, 60, |_| false) {}
        assert_eq!((server.answers.len(), server.state.cache.waiters()), (100, 0));
    }
}
