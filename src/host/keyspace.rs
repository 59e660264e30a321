//! The keyspace as [`Server`]: what a running command, or a timer, does with the server it lives in.

use std::cell::Cell;
use std::ffi::{CStr, c_int};

use rand::RngExt;
use redis_module::raw;
use smallvec::SmallVec;

use super::api::{Ctx, Str, call};
use super::execute::{self, CallReply};
use super::main_thread::{flags, host, now, state};
use super::open_key::OpenKey;
use super::strings::OwnedString;
use super::user::User;
use super::{atomic_migration, blocked, cluster_bus, native_type, replicate, server_info, slots, timer};
use crate::args::Arg;
use crate::clock::{UnixMs, UnixUs};
use crate::cluster::{Nodes, Outgoing};
use crate::doctor::Drawn;
use crate::error::Error;
use crate::native::NativeValue;
use crate::reply::Reply;
use crate::server::{Expiry, Permission, Server, StringValue, UserName, Waiter, Word};
use crate::state::State;

const READ: c_int = raw::REDISMODULE_READ as c_int;
pub(super) const WRITE: c_int = (raw::REDISMODULE_READ | raw::REDISMODULE_WRITE) as c_int;
pub(super) const NO_TOUCH: c_int = raw::REDISMODULE_OPEN_KEY_NOTOUCH as c_int;
pub(super) const EMPTY: c_int = raw::REDISMODULE_KEYTYPE_EMPTY as c_int;
const MODULE: c_int = raw::REDISMODULE_KEYTYPE_MODULE as c_int;
/// The class of keyspace notifications that are a module's own, `d`.
pub(super) const OWN_EVENTS: c_int = raw::REDISMODULE_NOTIFY_MODULE;

/// The server during one callback.
pub(super) struct Running<'a> {
    pub(super) ctx: Ctx,
    argv: &'a [Str],
    /// A command flagged readonly opens keys for reading only.
    mode: c_int,
    now: Cell<Option<UnixUs>>,
    db: Cell<Option<usize>>,
    open: Option<OpenKey>,
    /// Bytes that are answered as if they had been found.
    held: Vec<Vec<u8>>,
    /// Strings found so far; emptied by every change, since that may free them.
    found: SmallVec<[(*const u8, usize); 4]>,
    /// What the command replied that was run within this one.
    relayed: Option<CallReply>,
}

impl<'a> Running<'a> {
    /// `argv` belongs to the running command; timers pass none.
    pub(super) fn new(ctx: Ctx, argv: &'a [Str], writes: bool) -> Running<'a> {
        let mode = if writes { WRITE } else { READ };
        Running {
            ctx,
            argv,
            mode,
            now: Cell::new(None),
            db: Cell::new(None),
            open: None,
            held: Vec::new(),
            found: SmallVec::new(),
            relayed: None,
        }
    }

    /// Hands on what the command replied that was run within this one.
    pub(super) fn relay(&mut self) {
        if let Some(reply) = self.relayed.take() {
            reply.relay(self.ctx);
        }
    }

    /// Opens a key, or gives the one that is open already. Opened for reading it is null if there is no such key.
    #[inline(always)]
    fn open(&mut self, key: Arg<'_>, mode: c_int) -> &mut OpenKey {
        let open = match self.open.take() {
            Some(open) if open.mode == mode && open.is_of(key) => open,
            other => {
                drop(other);
                OpenKey::of(self.ctx, self.argv, key, mode)
            }
        };
        self.open.insert(open)
    }

    /// Is there a value that is none of ours?
    pub(super) fn has_plain_value(&mut self, key: Arg<'_>) -> bool {
        let kind = self.open(key, READ).kind();
        kind != EMPTY && kind != MODULE
    }

    /// Something else than the open key may change now: it is closed, and strings found before are forgotten.
    pub(super) fn close(&mut self) {
        self.open = None;
        self.found.clear();
    }

    /// Tells WATCH and client-side caches. The implicit signal at closing is switched off (see `register`), so that a
    /// key that was opened for writing and left alone disturbs nobody.
    pub(super) fn signal(&mut self, name: Str) {
        // SAFETY: the context of the running callback and a live string.
        unsafe {
            call!(RedisModule_SignalModifiedKey, self.ctx, name);
        }
    }

    pub(super) fn notify(&mut self, class: c_int, event: &CStr, name: Str) {
        // SAFETY: the context of the running callback, a static text and a live string. Our own callback may run inside.
        unsafe {
            call!(RedisModule_NotifyKeyspaceEvent, self.ctx, class, event.as_ptr(), name);
        }
    }
}

impl Server for Running<'_> {
    fn now(&self) -> UnixUs {
        self.now.get().unwrap_or_else(|| {
            let moment = now();
            self.now.set(Some(moment));
            moment
        })
    }

    fn let_time_go_on(&mut self) {
        self.now.set(None);
    }

    fn replayed(&self) -> bool {
        // Asking the server costs some hundred instructions, and a primary that is not loading replays nothing.
        (host().replica || host().loading || atomic_migration::is_importing())
            && flags(self.ctx) & (raw::REDISMODULE_CTX_FLAGS_REPLICATED | raw::REDISMODULE_CTX_FLAGS_LOADING) != 0
    }

    fn is_replica(&self) -> bool {
        host().replica
    }

    fn may_block(&self) -> bool {
        blocked::may_block(self.ctx)
    }

    fn serves(&mut self, key: Arg<'_>) -> bool {
        // The server itself has to say, by refusing a command: one that does nothing to a key that is not there, or is a lock.
        !host().cluster || self.takes_setrange(key, c"scc")
    }

    fn redirection(&mut self, key: &[u8]) -> Error {
        self.open = None;
        slots::redirection(self.ctx, key)
    }

    fn notice_slot(&mut self, key: &[u8]) -> Option<u64> {
        if !host().cluster {
            return None;
        }
        // What was found stays good: the look changes no key.
        self.open = None;
        slots::notice(self.ctx, key)
    }

    fn block(&mut self, timeout_ms: i64, otherwise: Reply<'static>) -> Option<Waiter> {
        blocked::block(self.ctx, timeout_ms, otherwise)
    }

    fn answer(&mut self, waiter: Waiter, reply: Reply<'static>) -> bool {
        // A command runs for it. What was found stays good: that one changes no key.
        self.open = None;
        blocked::answer(self.ctx, waiter, reply)
    }

    fn is_waiting(&self, waiter: Waiter) -> bool {
        blocked::is_waiting(waiter)
    }

    fn connection(&self) -> Option<u64> {
        // The clients of replication and of files are replayed ones. A script, and a command that runs another one, lend it a client
        // that has no connection; a command in a transaction has its own.
        let (nested, transaction) = (raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING, raw::REDISMODULE_CTX_FLAGS_MULTI);
        let flags = flags(self.ctx);
        let lent = flags & raw::REDISMODULE_CTX_FLAGS_LUA != 0
            || host().executing.is_some()
            || flags & (nested | transaction) == nested;
        if lent || self.replayed() {
            return None;
        }
        // SAFETY: the context of the running command.
        Some(unsafe { call!(RedisModule_GetClientId, self.ctx) }).filter(|id| *id != 0)
    }

    fn execute(&mut self, key: Arg<'_>, command: Arg<'_>) -> Result<Reply<'static>, Error> {
        self.close();
        let strings = self.argv.get(command.position..).unwrap_or_default();
        self.relayed = Some(execute::run(self.ctx, key.bytes, strings)?);
        Ok(Reply::Relayed)
    }

    fn db(&self) -> usize {
        self.db.get().unwrap_or_else(|| {
            // SAFETY: the context of the running callback.
            let db = usize::try_from(unsafe { call!(RedisModule_GetSelectedDb, self.ctx) }).unwrap_or(0);
            self.db.set(Some(db));
            db
        })
    }

    fn select(&mut self, db: usize) {
        self.close();
        self.db.set(None);
        let Ok(db) = c_int::try_from(db) else { return };
        // SAFETY: the context of the running callback; the server checks the range.
        unsafe {
            call!(RedisModule_SelectDb, self.ctx, db);
        }
    }

    fn random(&mut self, most: u64) -> u64 {
        rand::rng().random_range(0..=most)
    }

    fn state(&mut self) -> &mut State {
        state()
    }

    fn memory_full(&mut self, key: Arg<'_>) -> bool {
        // Above maxmemory is not full: the server evicts before a command, and the command itself goes a little above
        // again. Whether eviction could make room then is known to the server alone. It tells by how it takes a command
        // that it would refuse, and that does nothing.
        if flags(self.ctx) & raw::REDISMODULE_CTX_FLAGS_OOM == 0 {
            return false;
        }
        !self.takes_setrange(key, c"sccM")
    }

    fn permits(&mut self, name: &[u8], permission: Permission) -> bool {
        self.replayed()
            || match &host().executing {
                Some(user) => user.may(permission, name),
                None => User::of(self.ctx).may(permission, name),
            }
    }

    fn user(&mut self) -> UserName {
        match &host().executing {
            Some(user) => user.name(),
            None => User::of(self.ctx).name(),
        }
    }

    fn user_permits(&mut self, user: &UserName, name: &[u8], permission: Permission) -> bool {
        User::named(user).may(permission, name)
    }

    fn exists(&mut self, key: &[u8]) -> bool {
        self.close();
        let name = OwnedString::new(key);
        // Opened as if for writing, since only that leaves keyspace_hits and keyspace_misses alone on every server: the
        // module looks at keys that nobody asked for.
        let there = OpenKey::named(self.ctx, name, WRITE | NO_TOUCH);
        there.kind() != EMPTY
    }

    fn expiry(&mut self, key: Arg<'_>) -> Expiry {
        let mode = self.mode | NO_TOUCH;
        let open = self.open(key, mode);
        if open.kind() == EMPTY {
            return Expiry::NoKey;
        }
        // SAFETY: an open key.
        match unsafe { call!(RedisModule_GetAbsExpire, open.key) } {
            at if at < 0 => Expiry::Never,
            at => Expiry::At(UnixMs(at)),
        }
    }

    #[inline(always)]
    fn string(&mut self, key: Arg<'_>) -> Result<Option<StringValue>, Error> {
        let mode = self.mode;
        let open = self.open(key, mode);
        // A key opened for reading is null when it is not there; one opened for writing never is.
        if open.key.is_null() || (mode == WRITE && open.kind() == EMPTY) {
            return Ok(None);
        }
        let mut len = 0;
        // SAFETY: an open key; the server answers null if it holds no string. The pointer stays good until the value changes:
        // `found` is emptied before this module changes anything.
        let pointer = unsafe { call!(RedisModule_StringDMA, open.key, &mut len, READ) };
        if pointer.is_null() {
            return Err(Error::WrongType);
        }
        let value = StringValue(self.found.len());
        self.found.push((pointer.cast_const().cast(), len));
        Ok(Some(value))
    }

    fn bytes(&self, value: StringValue) -> &[u8] {
        match self.found.get(value.0) {
            // SAFETY: nothing changed since the string was found, or it would not be in `found`.
            Some((pointer, len)) if !pointer.is_null() => unsafe { std::slice::from_raw_parts(*pointer, *len) },
            _ => &[],
        }
    }

    fn hold(&mut self, bytes: Vec<u8>) -> StringValue {
        let value = StringValue(self.found.len());
        self.found.push((bytes.as_ptr(), bytes.len()));
        // Its heap stays where it is, and as it is, until the end of the command.
        self.held.push(bytes);
        value
    }

    fn set_string(&mut self, key: Arg<'_>, value: Arg<'_>, expiry: Option<UnixMs>) {
        self.found.clear();
        let own;
        let value = match self.argv.get(value.position) {
            Some(value) => *value,
            None => {
                own = OwnedString::new(value.bytes);
                own.raw()
            }
        };
        let open = self.open(key, WRITE);
        let name = open.name();
        // SAFETY: a key open for writing and a live string, to which the server takes its own reference.
        unsafe {
            call!(RedisModule_StringSet, open.key, value);
            if let Some(at) = expiry {
                call!(RedisModule_SetAbsExpire, open.key, at.0);
            }
        }
        self.signal(name);
        // Not `expire` as well, as SET has it: this module itself listens to that class, and the server would spend 600
        // instructions on telling it.
        self.notify(raw::REDISMODULE_NOTIFY_STRING, c"set", name);
    }

    fn unlink(&mut self, keys: &[&[u8]]) -> usize {
        self.unlink_each(keys, None)
    }

    fn invalidate(&mut self, keys: &[&[u8]]) -> usize {
        self.unlink_each(keys, Some(c"cache.invalidate"))
    }

    fn native<T: NativeValue>(&mut self, key: Arg<'_>) -> Result<Option<&mut T>, Error> {
        let mode = self.mode;
        let open = self.open(key, mode);
        // SAFETY: the key is open; the value lives as long as it is untouched, and the borrow of `self` keeps it so.
        match unsafe { native_type::value_of::<T>(open.key) } {
            Some(value) => Ok(Some(value)),
            None if open.kind() == EMPTY => Ok(None),
            None => Err(Error::WrongType),
        }
    }

    fn put_native<T: NativeValue>(&mut self, key: Arg<'_>, value: T, expiry: Option<UnixMs>) {
        self.found.clear();
        let open = self.open(key, WRITE);
        let name = open.name();
        // SAFETY: a key open for writing.
        unsafe {
            native_type::put(open.key, value);
            if let Some(at) = expiry {
                call!(RedisModule_SetAbsExpire, open.key, at.0);
            }
        }
        self.signal(name);
    }

    #[inline(always)]
    fn changed(&mut self, key: Arg<'_>) {
        let (mode, argument) = (self.mode, self.argv.get(key.position));
        let name = argument.copied().unwrap_or_else(|| self.open(key, mode).name());
        self.signal(name);
    }

    fn announce(&mut self, event: &'static CStr, key: Arg<'_>) {
        if self.is_heard() {
            self.close();
            let name = OwnedString::new(key.bytes);
            self.notify(OWN_EVENTS, event, name.raw());
        }
    }

    #[inline(always)]
    fn set_expiry(&mut self, key: Arg<'_>, expiry: Option<UnixMs>) {
        let open = self.open(key, WRITE);
        let at = expiry.map_or(i64::from(raw::REDISMODULE_NO_EXPIRE), |at| at.0);
        // SAFETY: a key open for writing; the server ignores a key that is not there.
        unsafe {
            call!(RedisModule_SetAbsExpire, open.key, at);
        }
    }

    fn delete(&mut self, key: Arg<'_>) -> bool {
        self.found.clear();
        let open = self.open(key, WRITE);
        if open.kind() == EMPTY {
            return false;
        }
        // Not UnlinkKey, which finds out first how much there is to free: nothing is left in what is deleted so.
        // SAFETY: a key open for writing.
        unsafe {
            call!(RedisModule_DeleteKey, open.key);
        }
        let name = open.name();
        self.signal(name);
        let (db, moment) = (self.db(), self.now().to_ms());
        state().own_key_deleted(db, key.bytes, moment, self.replayed());
        true
    }

    fn nodes(&mut self) -> Result<Option<Nodes>, Error> {
        cluster_bus::nodes(self.ctx)
    }

    fn send_messages(&mut self, messages: &[Outgoing]) {
        messages.iter().for_each(|message| cluster_bus::send(self.ctx, message));
        timer::bus_soon(self.ctx);
    }

    fn info(&mut self) -> String {
        self.close();
        server_info::all(self.ctx)
    }

    fn setting(&mut self, name: &'static CStr) -> Option<String> {
        self.close();
        server_info::setting(self.ctx, name)
    }

    fn draw_keys(&mut self, count: usize) -> Vec<Drawn> {
        self.close();
        (0..count).map_while(|_| self.draw_key()).collect()
    }

    fn has_audience(&self) -> bool {
        host().audience || self.argv.is_empty()
    }

    fn replicate(&mut self, command: &'static str, words: &[Word<'_>]) {
        if self.has_audience() {
            replicate::command(self.ctx, self.argv, command, words);
        } else {
            replicate::verbatim(self.ctx);
        }
    }

    fn replicate_verbatim(&mut self) {
        replicate::verbatim(self.ctx);
    }
}

impl Running<'_> {
    /// Would the server run a SETRANGE of nothing now? "M" in the format: also if memory is full.
    fn takes_setrange(&mut self, key: Arg<'_>, format: &CStr) -> bool {
        self.close();
        let name = OwnedString::new(key.bytes);
        // SAFETY: the context of the running callback, NUL-terminated strings and a live one. A refusal is a null reply; another
        // one is freed once.
        unsafe {
            let (command, zero, nothing) = (c"SETRANGE".as_ptr(), c"0".as_ptr(), c"".as_ptr());
            let reply = call!(RedisModule_Call, self.ctx, command, format.as_ptr(), name.raw(), zero, nothing);
            if reply.is_null() {
                return false;
            }
            call!(RedisModule_FreeCallReply, reply);
        }
        true
    }

    /// Would anybody hear of an event of ours? The server builds a context for each before it looks whether it is to publish it.
    /// Of other modules that listen it cannot be known.
    #[inline]
    pub(super) fn is_heard(&self) -> bool {
        // SAFETY: takes no argument.
        let classes = unsafe { call!(RedisModule_GetNotifyKeyspaceEvents) };
        let ways = raw::REDISMODULE_NOTIFY_KEYSPACE | raw::REDISMODULE_NOTIFY_KEYEVENT;
        classes & OWN_EVENTS != 0 && classes & ways != 0 && !self.replayed()
    }
}
