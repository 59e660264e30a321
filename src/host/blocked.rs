//! The room where clients wait. A command parks its client here, and leaves it to another command to answer, to the clock, or
//! to the client's own end.
//!
//! What RM_UnblockClient is given goes out only when the server is about to sleep. A wait that runs out before that, in the
//! same turn, ends without any reply on Redis 7.0 (measured; mended in redis/redis#13015), and CLIENT UNBLOCK ERROR or a
//! change of role overrides the answer on every server. So an answer is brought as CLIENT UNBLOCK does it: the server calls
//! [`on_timeout`] at once, which writes the answer, and nothing can come between.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_longlong, c_ulonglong, c_void};
use std::ptr::null_mut;

use redis_module::raw;

use super::api::{Ctx, OK, Str, call};
use super::main_thread::{flags, host, state};
use super::reply_writer::{write, write_error};
use super::shell::guarded;
use super::timer;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Waiter;

/// Where a client cannot be held: it runs a transaction or a script, or is none that could wait. The server would abort, or
/// leave the client without any reply.
const NOT_HERE: u32 =
    raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING | raw::REDISMODULE_CTX_FLAGS_MULTI | raw::REDISMODULE_CTX_FLAGS_LUA;

/// The longest wait, in milliseconds (285 thousand years): the server adds it to its clock, which must not overflow.
const LONGEST_MS: i64 = i64::MAX / 1024;

type Handle = *mut raw::RedisModuleBlockedClient;

struct Held {
    handle: Handle,
    client: c_ulonglong,
    /// What it is told: when the wait runs out, unless another answer was set on the way out.
    answer: Reply<'static>,
}

/// Who waits. Both maps have the same entries: commands know the waiter, the server knows its handle.
#[derive(Default)]
pub(super) struct Room {
    arrived: u64,
    held: BTreeMap<Waiter, Held>,
    waiters: HashMap<Handle, Waiter>,
}

impl Room {
    fn enter(&mut self, handle: Handle, client: c_ulonglong, answer: Reply<'static>) -> Waiter {
        self.arrived = self.arrived.saturating_add(1);
        let waiter = Waiter(self.arrived);
        self.held.insert(waiter, Held { handle, client, answer });
        self.waiters.insert(handle, waiter);
        waiter
    }

    fn leave(&mut self, waiter: Waiter) -> Option<Held> {
        let held = self.held.remove(&waiter)?;
        self.waiters.remove(&held.handle);
        Some(held)
    }

    /// Everybody, in the order of arrival.
    pub(super) fn waiting(&self) -> Vec<Waiter> {
        self.held.keys().copied().collect()
    }
}

/// Can the client of the running command be held? Where not, a command behaves as if it did not wait.
pub(super) fn may_block(ctx: Ctx) -> bool {
    flags(ctx) & NOT_HERE == 0
}

/// Holds the client of the running command, which must not reply then. It is answered by [`answer`], or with `otherwise` after
/// `timeout_ms` milliseconds (0: never). `None`: it cannot be held, and the command replies itself.
pub(super) fn block(ctx: Ctx, timeout_ms: i64, otherwise: Reply<'static>) -> Option<Waiter> {
    if !may_block(ctx) {
        return None;
    }
    let timeout_ms = timeout_ms.clamp(0, LONGEST_MS);
    // SAFETY: the context of a command whose client can wait, and callbacks with the signatures the server expects.
    let (client, handle) = unsafe {
        let client = call!(RedisModule_GetClientId, ctx);
        let (reply, timeout, free) = (Some(on_answer as _), Some(on_timeout as _), Some(drop_answer as _));
        (client, call!(RedisModule_BlockClient, ctx, reply, timeout, free, timeout_ms))
    };
    if handle.is_null() {
        return None;
    }
    // SAFETY: a handle made just now, and a callback with the signature the server expects.
    unsafe { call!(RedisModule_SetDisconnectCallback, handle, Some(on_disconnect)) };
    Some(host().room.enter(handle, client, otherwise))
}

/// Answers a waiter, whose client is held no longer when this returns. False: it has been answered before, or is gone.
pub(super) fn answer(ctx: Ctx, waiter: Waiter, reply: Reply<'static>) -> bool {
    let Some(held) = host().room.held.get_mut(&waiter) else { return false };
    held.answer = reply;
    client_unblock(ctx, held.client);
    // Still there: rename-command has taken CLIENT away, and the slower way has to do.
    if let Some(held) = host().room.leave(waiter) {
        give_back(held.handle, Some(held.answer));
    }
    true
}

pub(super) fn is_waiting(waiter: Waiter) -> bool {
    host().room.held.contains_key(&waiter)
}

/// This server is no primary any more. As a rule it sends away who waits by itself, at once; but not where it is the failover of a
/// cluster on Valkey 9, which only looks after clients that wait for keys of its own (measured). They would wait for ever.
pub(super) fn send_away_soon(ctx: Ctx) {
    host().sent_away = host().room.waiting().into();
    timer::send_away_soon(ctx);
}

/// Sends one of them away, if it still waits. False: there is none.
pub(super) fn send_one_away(ctx: Ctx) -> bool {
    let Some(waiter) = host().sent_away.pop_front() else { return false };
    answer(ctx, waiter, Reply::Error(Error::Unblocked));
    true
}

fn client_unblock(ctx: Ctx, client: c_ulonglong) {
    let client = c_longlong::try_from(client).unwrap_or_default();
    // SAFETY: the context of the running callback, NUL-terminated strings, an integer for "l"; a reply is freed once.
    unsafe {
        let reply = call!(RedisModule_Call, ctx, c"CLIENT".as_ptr(), c"cl".as_ptr(), c"UNBLOCK".as_ptr(), client);
        if !reply.is_null() {
            call!(RedisModule_FreeCallReply, reply);
        }
    }
}

/// Each handle is given back, also of a client that needs no answer (any more): until then the server keeps it, and two
/// clients' worth of buffers.
fn give_back(handle: Handle, answer: Option<Reply<'static>>) {
    let answer = answer.map_or(null_mut(), |answer| Box::into_raw(Box::new(answer)));
    // SAFETY: the handle has just left the room, which it does once, and the server frees it only after this. `answer` is null
    // or a boxed reply, which the server hands to `on_answer` and then to `drop_answer`.
    unsafe {
        call!(RedisModule_UnblockClient, handle, answer.cast());
    }
}

/// The client is held no longer, and leaves its queue. Its answer.
fn leave(handle: Handle) -> Option<Reply<'static>> {
    let waiter = *host().room.waiters.get(&handle)?;
    let held = host().room.leave(waiter)?;
    give_back(handle, None);
    // Who is sent away while other nodes have not answered is told which.
    let verdict = state().cluster.fan_outs.verdict(waiter);
    state().waiter_left(waiter);
    Some(verdict.unwrap_or(held.answer))
}

unsafe extern "C" fn on_timeout(ctx: Ctx, _: *mut Str, _: c_int) -> c_int {
    replying(ctx, || {
        // SAFETY: the context of a callback for a blocked client.
        let handle = unsafe { call!(RedisModule_GetBlockedClientHandle, ctx) };
        write(ctx, leave(handle).unwrap_or(Reply::Nil));
        timer::queues_soon(ctx);
    })
}

unsafe extern "C" fn on_disconnect(ctx: Ctx, handle: Handle) {
    guarded("the loss of a waiter", || {
        leave(handle);
        timer::queues_soon(ctx);
    });
}

unsafe extern "C" fn on_answer(ctx: Ctx, _: *mut Str, _: c_int) -> c_int {
    replying(ctx, || {
        // SAFETY: the reply that `give_back` boxed, or null. Nobody else has it until `drop_answer`, which comes later.
        let answer = unsafe { call!(RedisModule_GetBlockedClientPrivateData, ctx).cast::<Reply<'static>>().as_mut() };
        write(ctx, answer.map_or(Reply::Nil, |answer| std::mem::replace(answer, Reply::Nil)));
    })
}

fn replying(ctx: Ctx, reply: impl FnOnce()) -> c_int {
    if guarded("answering a waiter", reply).is_none() {
        write_error(ctx, &Error::Internal);
    }
    OK
}

/// Not called where there is no answer.
unsafe extern "C" fn drop_answer(_: Ctx, answer: *mut c_void) {
    // SAFETY: boxed by `give_back`, and dropped once.
    guarded("dropping an answer", || drop(unsafe { Box::from_raw(answer.cast::<Reply<'static>>()) }));
}
