//! What the server tells: key events, and events of the server itself. This is what keeps module memory in step with the
//! keyspace, whoever changes it.

use std::ffi::{CStr, c_char, c_int, c_void};

use rand::RngExt;
use redis_module::raw;

use super::api::{Ctx, Str, call, call_newer, has, ok};
use super::keyspace::Running;
use super::main_thread::{host, now, read_role, state};
use super::shell::guarded;
use super::strings::bytes;
use super::{atomic_migration, blocked, slots, timer};
use crate::args::Arg;
use crate::lock::Lock;
use crate::native::NativeValue;
use crate::ratelimit::concurrency::Slots;
use crate::ratelimit::limiter::Limiter;
use crate::server::Server;
use crate::state::{Aftermath, KeyEvent};
use crate::writebehind::Handle;

/// Every way a key can go or come. The classes of plain writes are left out: they would cost SET 16 % (see DESIGN).
const REMOVALS: c_int = raw::REDISMODULE_NOTIFY_GENERIC
    | raw::REDISMODULE_NOTIFY_EXPIRED
    | raw::REDISMODULE_NOTIFY_EVICTED
    | raw::REDISMODULE_NOTIFY_LOADED;

/// A key of a slot that went to another node, or came in vain. Redis 8.4 and later, which the bindings do not know; another event elsewhere.
const TRIMMED: c_int = 1 << 17;

/// Plain writes, subscribed to while a retired key waits for the reclaimer, or a load is to replace a value.
const WRITES: c_int = raw::REDISMODULE_NOTIFY_STRING
    | raw::REDISMODULE_NOTIFY_LIST
    | raw::REDISMODULE_NOTIFY_SET
    | raw::REDISMODULE_NOTIFY_HASH
    | raw::REDISMODULE_NOTIFY_ZSET
    | raw::REDISMODULE_NOTIFY_STREAM;

/// Subscribes to everything that is needed from the start.
pub(super) fn subscribe(ctx: Ctx) -> bool {
    // SAFETY: the context of the load and callbacks with the signatures the server expects.
    unsafe {
        let removals = if atomic_migration::is_of_redis() { REMOVALS | TRIMMED } else { REMOVALS };
        let server_event = |id, version| {
            let event = raw::RedisModuleEvent { id, dataver: version };
            ok(call!(RedisModule_SubscribeToServerEvent, ctx, event, Some(on_server_event)))
        };
        ok(call!(RedisModule_SubscribeToKeyspaceEvents, ctx, removals, Some(on_key_event)))
            && server_event(raw::REDISMODULE_EVENT_FLUSHDB, 1)
            && server_event(raw::REDISMODULE_EVENT_SWAPDB, 1)
            && server_event(raw::REDISMODULE_EVENT_LOADING, 1)
            && server_event(raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED, 1)
            && server_event(raw::REDISMODULE_EVENT_REPLICA_CHANGE, 1)
            && server_event(raw::REDISMODULE_EVENT_FORK_CHILD, 1)
            && server_event(raw::REDISMODULE_EVENT_CLIENT_CHANGE, 1)
            && server_event(raw::REDISMODULE_EVENT_CONFIG, 1)
    }
}

/// Subscribes to an event that not every server has. Whether this one has it.
pub(super) fn listen_to(ctx: Ctx, id: u64) -> bool {
    let event = raw::RedisModuleEvent { id, dataver: 1 };
    // SAFETY: the context of the load and a callback with the signature the server expects.
    ok(unsafe { call!(RedisModule_SubscribeToServerEvent, ctx, event, Some(on_server_event)) })
}

/// Subscribes to plain writes while they matter, and unsubscribes where the server can.
pub(super) fn watch_writes(ctx: Ctx) {
    let wanted = state().cache.needs_write_events() || atomic_migration::is_importing();
    if wanted && !host().write_events {
        // SAFETY: the context of the running callback and a callback with the signature the server expects.
        host().write_events =
            ok(unsafe { call!(RedisModule_SubscribeToKeyspaceEvents, ctx, WRITES, Some(on_write_event)) });
    } else if !wanted && host().write_events && has!(RedisModule_UnsubscribeFromKeyspaceEvents) {
        // SAFETY: as above; the function is there.
        host().write_events =
            !ok(unsafe { call_newer!(RedisModule_UnsubscribeFromKeyspaceEvents, ctx, WRITES, Some(on_write_event)) });
    }
}

unsafe extern "C" fn on_write_event(ctx: Ctx, _: c_int, _: *const c_char, key: Str) -> c_int {
    guarded("a write event", || {
        // SAFETY: the server's string lives through the callback.
        let key = unsafe { bytes(key) };
        if state().cache.needs_write_events() {
            key_event(ctx, KeyEvent::Written, key);
        }
        atomic_migration::written(ctx, key);
    });
    super::api::OK
}

unsafe extern "C" fn on_key_event(ctx: Ctx, _: c_int, event: *const c_char, key: Str) -> c_int {
    guarded("a key event", || {
        // SAFETY: a NUL-terminated name and a string, both of which live through the callback.
        let (event, name) = unsafe { (CStr::from_ptr(event).to_bytes(), bytes(key)) };
        match event {
            // The commonest first: every SET with an expiry fires it, and it concerns nobody here.
            b"expire" | b"persist" => {}
            b"del" | b"key_trimmed" => key_event(ctx, KeyEvent::Deleted, name),
            b"expired" => key_event(ctx, KeyEvent::Expired, name),
            b"evicted" => key_event(ctx, KeyEvent::Evicted, name),
            b"loaded" => {
                arrived(ctx, KeyEvent::Loaded, name);
                // The commands of an AOF come after its preamble, and one of them may write a retired key.
                if !host().write_events && state().cache.has_retired() {
                    watch_writes(ctx);
                }
            }
            b"copy_to" => {
                arrived(ctx, KeyEvent::Replaced, name);
                atomic_migration::written(ctx, name);
            }
            b"restore" => restored(ctx, name),
            b"rename_from" => host().rename_from = Some((db(ctx), name.to_vec())),
            b"rename_to" => {
                if let Some((db, old)) = host().rename_from.take() {
                    state().key_renamed(db, &old, name, now().to_ms());
                    link(ctx, name);
                    timer::queues_soon(ctx);
                }
            }
            b"move_from" => host().move_from = Some(db(ctx)),
            b"move_to" => {
                if let Some(from) = host().move_from.take() {
                    state().key_moved(from, db(ctx), name, now().to_ms());
                    link(ctx, name);
                    timer::queues_soon(ctx);
                }
            }
            _ => {}
        }
    });
    super::api::OK
}

fn db(ctx: Ctx) -> usize {
    Running::new(ctx, &[], false).db()
}

fn key_event(ctx: Ctx, event: KeyEvent, key: &[u8]) {
    if host().loading && event != KeyEvent::Loaded {
        state().cache.settle();
    }
    let replayed = Running::new(ctx, &[], false).replayed() || host().replica;
    let db = db(ctx);
    slots::departs(ctx, event, db, key, replayed);
    let Aftermath { forget_lock, forget_queue, put_back_soon } =
        state().key_event(event, db, key, now().to_ms(), replayed);
    if let Some(token) = forget_lock {
        crate::lock::effects::tell_gone(&mut Running::new(ctx, &[], true), event, key, token);
    }
    if let Some(token) = forget_queue {
        crate::writebehind::effects::propagate_forget(&mut Running::new(ctx, &[], true), key, token);
    }
    if put_back_soon {
        host().put_back_pace.evicted();
        timer::put_back_soon(ctx);
    }
    timer::queues_soon(ctx);
}

/// A value has come to this key from outside. Whether it is one of ours.
fn arrived(ctx: Ctx, event: KeyEvent, key: &[u8]) -> bool {
    key_event(ctx, event, key);
    link(ctx, key)
}

/// A value of ours carries all that there is to know; another one may have left something behind.
fn restored(ctx: Ctx, key: &[u8]) {
    if !arrived(ctx, KeyEvent::Replaced, key) {
        slots::restored(ctx, key);
        atomic_migration::written(ctx, key);
    }
}

/// If the key holds a value of ours, it learns of its name. Whether it does. Only looked at when one is on its way: opening every key of a
/// large file would double the time to load it.
fn link(ctx: Ctx, key: &[u8]) -> bool {
    if !std::mem::take(&mut host().native_arrival) {
        return false;
    }
    let mut running = Running::new(ctx, &[], false);
    link_as::<Lock>(&mut running, key)
        || link_as::<Limiter>(&mut running, key)
        || link_as::<Slots>(&mut running, key)
        || link_as::<Handle>(&mut running, key)
}

/// False: the key does not hold a `T`.
fn link_as<T: NativeValue>(running: &mut Running<'_>, key: &[u8]) -> bool {
    let db = running.db();
    // The value lives in the keyspace, apart from the module's memory; `linked` calls nothing of the server.
    let Ok(Some(value)) = running.native::<T>(Arg::named(key)) else { return false };
    value.linked(db, key, state(), now());
    true
}

unsafe extern "C" fn on_server_event(ctx: Ctx, event: raw::RedisModuleEvent, subevent: u64, data: *mut c_void) {
    guarded("a server event", || match event.id {
        raw::REDISMODULE_EVENT_FLUSHDB if subevent == raw::REDISMODULE_SUBEVENT_FLUSHDB_END => {
            // SAFETY: the server passes this structure with this event.
            if let Some(info) = unsafe { data.cast::<raw::RedisModuleFlushInfo>().as_ref() } {
                state().flushed(usize::try_from(info.dbnum).ok());
                timer::leases_soon(ctx);
                timer::queues_soon(ctx);
            }
        }
        raw::REDISMODULE_EVENT_SWAPDB => {
            // SAFETY: the server passes this structure with this event.
            if let Some(info) = unsafe { data.cast::<raw::RedisModuleSwapDbInfo>().as_ref() }
                && let (Ok(a), Ok(b)) = (usize::try_from(info.dbnum_first), usize::try_from(info.dbnum_second))
            {
                state().swapped(a, b);
                timer::leases_soon(ctx);
                timer::queues_soon(ctx);
            }
        }
        raw::REDISMODULE_EVENT_CLIENT_CHANGE if subevent == raw::REDISMODULE_SUBEVENT_CLIENT_CHANGE_DISCONNECTED => {
            // SAFETY: the server passes this structure with this event.
            if let Some(client) = unsafe { data.cast::<raw::RedisModuleClientInfo>().as_ref() } {
                state().connection_closed(client.id);
                timer::queues_soon(ctx);
            }
        }
        raw::REDISMODULE_EVENT_CONFIG => host().latency_monitored = None,
        raw::REDISMODULE_EVENT_LOADING => loading(ctx, subevent),
        raw::REDISMODULE_EVENT_REPLICA_CHANGE | raw::REDISMODULE_EVENT_FORK_CHILD => host().audience = true,
        raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED => {
            host().audience = true;
            host().replica = subevent == raw::REDISMODULE_EVENT_REPLROLECHANGED_NOW_REPLICA;
            state().role_changed(!host().replica);
            if host().replica {
                blocked::send_away_soon(ctx);
            }
            state().cache.set_epoch(rand::rng().random());
            state().cache.begins_to_serve(now().to_ms());
            timer::resume(ctx);
        }
        other => atomic_migration::happened(ctx, other, subevent),
    });
}

fn loading(ctx: Ctx, subevent: u64) {
    host().audience = true;
    match subevent {
        raw::REDISMODULE_SUBEVENT_LOADING_ENDED => {
            read_role(ctx);
            host().loading = false;
            state().loaded();
            state().cache.begins_to_serve(now().to_ms());
            timer::resume(ctx);
        }
        raw::REDISMODULE_SUBEVENT_LOADING_FAILED => {
            host().loading = false;
            state().flushed(None);
            state().loading();
        }
        _ => {
            host().loading = true;
            state().loading();
        }
    }
}
