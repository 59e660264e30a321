//! An in-memory [`Server`] for tests of the families: a map, a clock that stands still until told, and a log of what was replicated.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{CStr, CString};

use crate::args::{Arg, Args};
use crate::clock::{UnixMs, UnixUs};
use crate::cluster::{Nodes, Outgoing};
use crate::commands::Command;
use crate::doctor::Drawn;
use crate::error::Error;
use crate::lock::Lock;
use crate::native::NativeValue;
use crate::ratelimit::concurrency::Slots;
use crate::ratelimit::limiter::Limiter;
use crate::reply::Reply;
use crate::server::{Expiry, Permission, Server, StringValue, UserName, Waiter, Word};
use crate::state::{Aftermath, KeyEvent, State};
use crate::writebehind::Handle;

pub enum Value {
    String(Vec<u8>),
    Native(Box<dyn Any>),
    /// A list, a hash: something that is not ours.
    Other,
}

pub struct Entry {
    pub value: Value,
    pub expiry: Option<UnixMs>,
}

#[derive(Default)]
pub struct FakeServer {
    pub now: UnixUs,
    pub replayed: bool,
    pub db: usize,
    pub state: State,
    pub keys: HashMap<(usize, Vec<u8>), Entry>,
    pub memory_full: bool,
    /// Names that [`Server::permits`] refuses.
    pub denied: Vec<Vec<u8>>,
    /// What `random` answers next (clamped to its bound); 0 when empty.
    pub draws: VecDeque<u64>,
    /// What was replicated, one word list a command.
    pub replicated: Vec<Vec<Vec<u8>>>,
    /// The database of each.
    pub replicated_in: Vec<usize>,
    /// The server is a replica.
    pub replica: bool,
    /// Clients cannot be held.
    pub never_blocks: bool,
    /// Keys that have moved to another node of the cluster.
    pub moved: Vec<Vec<u8>>,
    /// The slots of all keys come from a node of this epoch.
    pub visiting: Option<u64>,
    /// The connection of the commands that follow; `None` is a script.
    pub connection: Option<u64>,
    /// Who waits, and what each is told when the wait runs out.
    pub waiting: BTreeMap<Waiter, Reply<'static>>,
    /// Answers to those who waited, in order.
    pub answers: Vec<(Waiter, Reply<'static>)>,
    /// Notifications of the module's own, with their keys.
    pub announced: Vec<(CString, Vec<u8>)>,
    /// Commands that were run by `execute`.
    pub executed: Vec<Vec<Vec<u8>>>,
    /// The nodes of the cluster, if this is one of them.
    pub nodes: Option<Nodes>,
    /// What was sent over the cluster bus.
    pub messages: Vec<Outgoing>,
    argv: Vec<Vec<u8>>,
    found: Vec<Vec<u8>>,
}

impl FakeServer {
    /// A server at a moment of the year 2025.
    pub fn new() -> FakeServer {
        FakeServer { now: UnixUs(1_750_000_000_000_000), connection: Some(1), ..FakeServer::default() }
    }

    pub fn advance_ms(&mut self, ms: i64) {
        self.now = UnixUs(self.now.0.saturating_add(ms.saturating_mul(1000)));
    }

    /// Parses and runs one command, words split at spaces.
    pub fn call<C: Command>(&mut self, line: &str) -> Result<Reply<'_>, Error> {
        let argv: Vec<Vec<u8>> = line.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        self.call_argv::<C>(argv)
    }

    /// As `call`, for arguments with any bytes.
    pub fn call_argv<C: Command>(&mut self, argv: Vec<Vec<u8>>) -> Result<Reply<'_>, Error> {
        self.argv.clone_from(&argv);
        self.found.clear();
        let words: Vec<&[u8]> = argv.iter().map(Vec::as_slice).collect();
        let mut args = Args::new(&words, C::SPEC.name);
        let request = C::parse(&mut args)?;
        C::run(request, self)
    }

    /// The replicated commands as lines, and forgets them.
    pub fn take_replicated(&mut self) -> Vec<String> {
        let line = |words: Vec<Vec<u8>>| {
            words.iter().map(|w| String::from_utf8_lossy(w).into_owned()).collect::<Vec<_>>().join(" ")
        };
        self.replicated_in.clear();
        self.replicated.drain(..).map(line).collect()
    }

    /// A plain SET.
    pub fn put_string(&mut self, key: &str, value: &str) {
        self.put((self.db, key.as_bytes().to_vec()), Value::String(value.as_bytes().to_vec()), None);
        self.event(KeyEvent::Written, key.as_bytes());
    }

    pub fn put_other(&mut self, key: &str) {
        self.keys.insert((self.db, key.as_bytes().to_vec()), Entry { value: Value::Other, expiry: None });
    }

    /// Removes the key as expiry would, if its time has come.
    fn expire_if_due(&mut self, key: &[u8]) {
        let id = (self.db, key.to_vec());
        let due = self.keys.get(&id).and_then(|e| e.expiry).is_some_and(|at| at <= self.now.to_ms());
        if due && !self.replayed {
            self.take(&id);
            self.event(KeyEvent::Expired, key);
        }
    }

    /// A key event in the selected database, as the host would pass it on.
    pub fn event(&mut self, event: KeyEvent, key: &[u8]) {
        let after = self.state.key_event(event, self.db, key, self.now.to_ms(), self.replayed);
        let Aftermath { forget_lock, forget_queue, .. } = after;
        if let Some(token) = forget_lock {
            crate::lock::effects::tell_gone(self, event, key, token);
        }
        if let Some(token) = forget_queue {
            crate::writebehind::effects::propagate_forget(self, key, token);
        }
        if event == KeyEvent::Expired && (forget_lock.is_some() || forget_queue.is_some()) {
            // The server's own, after what its key event brings about. Where nothing is told before it, nothing asks for it here.
            self.replicate("DEL", &[Word::Bytes(key)]);
        }
    }

    /// Takes a key away and tells its value so; which event follows is the caller's to say.
    pub fn take(&mut self, id: &(usize, Vec<u8>)) -> Option<Entry> {
        let mut entry = self.keys.remove(id)?;
        self.tell_unlinked::<Lock>(id, &mut entry);
        self.tell_unlinked::<Limiter>(id, &mut entry);
        self.tell_unlinked::<Slots>(id, &mut entry);
        self.tell_unlinked::<Handle>(id, &mut entry);
        Some(entry)
    }

    fn tell_unlinked<T: NativeValue>(&mut self, id: &(usize, Vec<u8>), entry: &mut Entry) {
        if let Value::Native(value) = &mut entry.value
            && let Some(value) = value.downcast_mut::<T>()
        {
            value.unlinked(id.0, &id.1, &mut self.state);
        }
    }

    /// Puts a value in place of whatever is there.
    pub fn put(&mut self, id: (usize, Vec<u8>), value: Value, expiry: Option<UnixMs>) {
        self.take(&id);
        self.keys.insert(id, Entry { value, expiry });
    }

    /// Evicts a key of the selected database.
    pub fn evict(&mut self, key: &str) {
        if self.take(&(self.db, key.as_bytes().to_vec())).is_some() {
            self.replicate("DEL", &[Word::Bytes(key.as_bytes())]);
            self.event(KeyEvent::Evicted, key.as_bytes());
        }
    }

    /// Takes a key's expiry away, as PERSIST does.
    pub fn persist(&mut self, key: &str) {
        self.set_expiry(Arg::named(key.as_bytes()), None);
    }

    pub fn holds(&self, key: &str) -> bool {
        self.keys.contains_key(&(self.db, key.as_bytes().to_vec()))
    }

    pub fn key_expiry(&self, key: &str) -> Option<UnixMs> {
        self.keys.get(&(self.db, key.as_bytes().to_vec()))?.expiry
    }

    /// A command goes to the replicas.
    pub fn send(&mut self, words: Vec<Vec<u8>>) {
        self.replicated.push(words);
        self.replicated_in.push(self.db);
    }

    /// `event`: what is told of each key besides `del`.
    fn unlink_each(&mut self, keys: &[&[u8]], event: Option<&'static CStr>) -> usize {
        let mut unlinked: Vec<Vec<u8>> = vec![b"UNLINK".to_vec()];
        for key in keys {
            self.expire_if_due(key);
            if self.take(&(self.db, key.to_vec())).is_some() {
                unlinked.push(key.to_vec());
                self.event(KeyEvent::Deleted, key);
                if let Some(event) = event {
                    self.state.cache.was_invalidated(key);
                    self.announce(event, Arg::named(key));
                }
            }
        }
        let count = unlinked.len().saturating_sub(1);
        if count > 0 {
            self.send(unlinked);
        }
        count
    }

    /// The module's own notifications as lines, and forgets them.
    pub fn take_announced(&mut self) -> Vec<String> {
        let line =
            |(event, key): (CString, Vec<u8>)| format!("{} {}", event.to_string_lossy(), String::from_utf8_lossy(&key));
        self.announced.drain(..).map(line).collect()
    }

    fn id(&self, key: Arg<'_>) -> (usize, Vec<u8>) {
        (self.db, key.bytes.to_vec())
    }
}

impl Server for FakeServer {
    fn now(&self) -> UnixUs {
        self.now
    }

    fn let_time_go_on(&mut self) {}

    fn replayed(&self) -> bool {
        self.replayed
    }

    fn is_replica(&self) -> bool {
        self.replica
    }

    fn may_block(&self) -> bool {
        !self.never_blocks
    }

    fn serves(&mut self, key: Arg<'_>) -> bool {
        !self.moved.iter().any(|moved| moved == key.bytes)
    }

    fn redirection(&mut self, key: &[u8]) -> Error {
        Error::Moved(crate::slot::slot(key), "other:6379".into())
    }

    fn notice_slot(&mut self, _key: &[u8]) -> Option<u64> {
        self.visiting
    }

    fn block(&mut self, _timeout_ms: i64, otherwise: Reply<'static>) -> Option<Waiter> {
        if self.never_blocks {
            return None;
        }
        let arrived = self.waiting.keys().chain(self.answers.iter().map(|(waiter, _)| waiter)).max();
        let waiter = Waiter(arrived.map_or(1, |last| last.0 + 1));
        self.waiting.insert(waiter, otherwise);
        Some(waiter)
    }

    fn answer(&mut self, waiter: Waiter, reply: Reply<'static>) -> bool {
        let waits = self.waiting.remove(&waiter).is_some();
        if waits {
            self.answers.push((waiter, reply));
        }
        waits
    }

    fn is_waiting(&self, waiter: Waiter) -> bool {
        self.waiting.contains_key(&waiter)
    }

    fn connection(&self) -> Option<u64> {
        self.connection
    }

    fn execute(&mut self, _key: Arg<'_>, command: Arg<'_>) -> Result<Reply<'static>, Error> {
        self.executed.push(self.argv.get(command.position..).unwrap_or_default().to_vec());
        Ok(Reply::Relayed)
    }

    fn db(&self) -> usize {
        self.db
    }

    fn select(&mut self, db: usize) {
        self.db = db;
    }

    fn random(&mut self, most: u64) -> u64 {
        self.draws.pop_front().unwrap_or(0).min(most)
    }

    fn state(&mut self) -> &mut State {
        &mut self.state
    }

    fn memory_full(&mut self, _key: Arg<'_>) -> bool {
        self.memory_full
    }

    fn permits(&mut self, name: &[u8], _permission: Permission) -> bool {
        !self.denied.iter().any(|denied| denied == name)
    }

    fn user(&mut self) -> UserName {
        None
    }

    fn user_permits(&mut self, _user: &UserName, name: &[u8], permission: Permission) -> bool {
        self.permits(name, permission)
    }

    fn exists(&mut self, key: &[u8]) -> bool {
        self.expire_if_due(key);
        self.keys.contains_key(&(self.db, key.to_vec()))
    }

    fn expiry(&mut self, key: Arg<'_>) -> Expiry {
        self.expire_if_due(key.bytes);
        match self.keys.get(&self.id(key)) {
            None => Expiry::NoKey,
            Some(entry) => entry.expiry.map_or(Expiry::Never, Expiry::At),
        }
    }

    fn string(&mut self, key: Arg<'_>) -> Result<Option<StringValue>, Error> {
        self.expire_if_due(key.bytes);
        match self.keys.get(&self.id(key)).map(|e| &e.value) {
            None => Ok(None),
            Some(Value::String(bytes)) => {
                self.found.push(bytes.clone());
                Ok(Some(StringValue(self.found.len().saturating_sub(1))))
            }
            Some(_) => Err(Error::WrongType),
        }
    }

    fn bytes(&self, value: StringValue) -> &[u8] {
        self.found.get(value.0).map(Vec::as_slice).unwrap_or_default()
    }

    fn hold(&mut self, bytes: Vec<u8>) -> StringValue {
        self.found.push(bytes);
        StringValue(self.found.len().saturating_sub(1))
    }

    fn set_string(&mut self, key: Arg<'_>, value: Arg<'_>, expiry: Option<UnixMs>) {
        self.expire_if_due(key.bytes);
        self.put(self.id(key), Value::String(value.bytes.to_vec()), expiry);
        self.event(KeyEvent::Written, key.bytes);
    }

    fn unlink(&mut self, keys: &[&[u8]]) -> usize {
        self.unlink_each(keys, None)
    }

    fn invalidate(&mut self, keys: &[&[u8]]) -> usize {
        self.unlink_each(keys, Some(c"cache.invalidate"))
    }

    fn native<T: NativeValue>(&mut self, key: Arg<'_>) -> Result<Option<&mut T>, Error> {
        self.expire_if_due(key.bytes);
        let id = self.id(key);
        match self.keys.get_mut(&id).map(|e| &mut e.value) {
            None => Ok(None),
            Some(Value::Native(value)) => value.downcast_mut::<T>().map(Some).ok_or(Error::WrongType),
            Some(_) => Err(Error::WrongType),
        }
    }

    fn put_native<T: NativeValue>(&mut self, key: Arg<'_>, value: T, expiry: Option<UnixMs>) {
        self.put(self.id(key), Value::Native(Box::new(value)), expiry);
    }

    fn changed(&mut self, _key: Arg<'_>) {}

    fn announce(&mut self, event: &'static CStr, key: Arg<'_>) {
        if !self.replayed {
            self.announced.push((event.to_owned(), key.bytes.to_vec()));
        }
    }

    fn set_expiry(&mut self, key: Arg<'_>, expiry: Option<UnixMs>) {
        let id = self.id(key);
        if let Some(entry) = self.keys.get_mut(&id) {
            entry.expiry = expiry;
        }
    }

    fn delete(&mut self, key: Arg<'_>) -> bool {
        let was_there = self.take(&self.id(key)).is_some();
        if was_there {
            self.event(KeyEvent::Deleted, key.bytes);
        }
        was_there
    }

    fn nodes(&mut self) -> Result<Option<Nodes>, Error> {
        Ok(self.nodes.clone())
    }

    fn send_messages(&mut self, messages: &[Outgoing]) {
        self.messages.extend_from_slice(messages);
    }

    fn info(&mut self) -> String {
        String::new()
    }

    fn setting(&mut self, _name: &'static CStr) -> Option<String> {
        None
    }

    fn draw_keys(&mut self, _count: usize) -> Vec<Drawn> {
        Vec::new()
    }

    fn has_audience(&self) -> bool {
        true
    }

    fn replicate(&mut self, command: &'static str, words: &[Word<'_>]) {
        let mut sent = vec![command.as_bytes().to_vec()];
        sent.extend(words.iter().map(|word| match word {
            Word::Arg(arg) => arg.bytes.to_vec(),
            Word::Text(text) => text.as_bytes().to_vec(),
            Word::Int(n) => n.to_string().into_bytes(),
            Word::Bytes(bytes) => bytes.to_vec(),
        }));
        self.send(sent);
    }

    fn replicate_verbatim(&mut self) {
        self.send(self.argv.clone());
    }
}
