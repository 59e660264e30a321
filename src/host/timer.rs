//! Work that no command does: reclaiming what was invalidated, putting evicted locks back, sweeping. All of it waits while
//! replicas must see no traffic, for the server aborts on a write then.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use redis_module::raw;

use super::api::{Ctx, call};
use super::keyspace::Running;
use super::main_thread::{Alarm, HostState, host, may_write, now, state};
use super::server_info::setting;
use super::shell::guarded;
use super::{blocked, cluster_bus, events, log::notice, slots};
use crate::cache::{due, reclaim, slide};
use crate::clock::UnixMs;

/// How long one slice of work may hold the server.
const SLICE: Duration = Duration::from_millis(1);
/// How many keys are unlinked between two looks at the clock.
const RECLAIM_BATCH: usize = 128;
/// How many keys are given their full time to live between two looks at the clock.
const SLIDE_BATCH: usize = 128;
/// How many locks are put back between two looks at the clock.
const PUT_BACK_BATCH: usize = 32;
/// How long work waits when the server is paused, in milliseconds.
pub(super) const PAUSED_MS: i64 = 10;
/// The rhythm of sweeping, in milliseconds.
const SWEEP_MS: i64 = 100;
/// How many records of each kind that have run out a sweep drops at most.
const SWEEP_BUDGET: usize = 1000;
/// How many keys a sweep looks up in the keyspace, in search of records whose key is gone.
const GHOST_BUDGET: usize = 4;

type Callback = unsafe extern "C" fn(Ctx, *mut c_void);

pub(super) fn start(ctx: Ctx, after_ms: i64, callback: Callback) -> raw::RedisModuleTimerID {
    // SAFETY: the context of the running callback, and a callback that takes no data.
    unsafe { call!(RedisModule_CreateTimer, ctx, after_ms, Some(callback), null_mut()) }
}

/// Runs the work of a timer. No command shows how long it took, so LATENCY has it under the name of an event.
fn timed(ctx: Ctx, event: &CStr, what: &str, work: impl FnOnce()) {
    let begun = Instant::now();
    guarded(what, work);
    let ms = i64::try_from(begun.elapsed().as_millis()).unwrap_or(i64::MAX);
    // The server takes samples also while its monitor is off.
    if ms > 0 && latency_is_monitored(ctx) {
        // SAFETY: a NUL-terminated name, which the server copies.
        unsafe { call!(RedisModule_LatencyAddSample, event.as_ptr(), ms) };
    }
}

fn latency_is_monitored(ctx: Ctx) -> bool {
    if host().latency_monitored.is_none() {
        let threshold = setting(ctx, c"latency-monitor-threshold");
        host().latency_monitored = Some(threshold.is_some_and(|ms| ms != "0"));
    }
    host().latency_monitored == Some(true)
}

/// Starts the work that goes on for ever.
pub(super) fn begin(ctx: Ctx) {
    start(ctx, SWEEP_MS, on_sweep);
}

/// Takes up what was left: after a load or a change of role.
pub(super) fn resume(ctx: Ctx) {
    reclaim_soon(ctx);
    leases_soon(ctx);
    slides_soon(ctx);
    if state().lock.limbo_len() > 0 || state().writebehind.limbo_len() > 0 {
        put_back_soon(ctx);
    }
}

/// Something may have been retired.
#[inline]
pub(super) fn reclaim_soon(ctx: Ctx) {
    if state().cache.has_retired() {
        start_reclaiming(ctx);
    }
}

fn start_reclaiming(ctx: Ctx) {
    if !host().reclaim_timer {
        host().reclaim_timer = true;
        events::watch_writes(ctx);
        start(ctx, 0, on_reclaim);
    }
}

/// Where an alarm is kept.
type Place = fn(&mut HostState) -> &mut Option<Alarm>;

/// Sets the alarm to this moment, unless it rings earlier.
fn ring_at(ctx: Ctx, place: Place, at: UnixMs, callback: Callback) {
    let alarm = place(host());
    if alarm.is_some_and(|alarm| alarm.at <= at) {
        return;
    }
    if let Some(later) = alarm.take() {
        // SAFETY: the context of the running callback; nothing is asked back.
        unsafe {
            call!(RedisModule_StopTimer, ctx, later.id, null_mut());
        }
    }
    let id = start(ctx, at.since(now().to_ms()).max(0), callback);
    *place(host()) = Some(Alarm { at, id });
}

/// The alarm rings. True if there is work to do and it may be done now; else it rings again when it is time.
fn rings(ctx: Ctx, place: Place, callback: Callback) -> bool {
    let Some(Alarm { at, .. }) = place(host()).take() else { return false };
    if host().replica || host().loading {
        return false;
    }
    // Timers go by the server's clock. When that is set back one may ring before its moment has come by ours, which never is.
    let early = now().to_ms() < at;
    if early || !may_write() {
        let id = start(ctx, PAUSED_MS, callback);
        *place(host()) = Some(Alarm { at, id });
        return false;
    }
    true
}

/// A lease or an intent may have been given out: the timer is to look at the next one that runs out. And while a load is to
/// replace a value, or a key is being written in the database, plain writes are watched.
#[inline]
pub(super) fn leases_soon(ctx: Ctx) {
    if let Some(at) = state().cache.next_deadline() {
        watch_leases(ctx, at);
    }
}

fn watch_leases(ctx: Ctx, at: UnixMs) {
    if host().replica || host().loading {
        return;
    }
    if state().cache.needs_write_events() && !host().write_events {
        events::watch_writes(ctx);
    }
    ring_at(ctx, |host| &mut host.lease_alarm, at, on_lease);
}

unsafe extern "C" fn on_lease(ctx: Ctx, _: *mut c_void) {
    timed(ctx, c"keyward-leases", "the leases and intents that ran out", || {
        if rings(ctx, |host| &mut host.lease_alarm, on_lease) {
            in_slices(|| due(&mut Running::new(ctx, &[], false)));
            leases_soon(ctx);
        }
    });
}

/// A queue of a lock, of a limiter or of workers may have to be looked at, now or when a lease ends, or a connection has closed that held
/// something.
#[inline]
pub(super) fn queues_soon(ctx: Ctx) {
    if let Some(at) = state().next_deadline() {
        ring_at(ctx, |host| &mut host.queue_alarm, at, on_queue);
    }
}

unsafe extern "C" fn on_queue(ctx: Ctx, _: *mut c_void) {
    timed(ctx, c"keyward-queues", "the queues", || {
        if rings(ctx, |host| &mut host.queue_alarm, on_queue) {
            in_slices(|| crate::state::due(&mut Running::new(ctx, &[], true)));
            queues_soon(ctx);
        }
    });
}

/// Another node may have asked for something, or have to be asked.
pub(super) fn bus_soon(ctx: Ctx) {
    if !state().cluster.inbox.is_empty() && !host().bus_timer {
        host().bus_timer = true;
        start(ctx, 0, on_request);
    }
    if let Some(at) = state().cluster.next_deadline() {
        ring_at(ctx, |host| &mut host.bus_alarm, at, on_bus);
    }
}

/// It writes nothing and is not held up by a pause. The clients of a server that is a replica now have been answered by that server.
unsafe extern "C" fn on_bus(ctx: Ctx, _: *mut c_void) {
    guarded("asking other nodes", || {
        host().bus_alarm = None;
        cluster_bus::look(ctx);
        bus_soon(ctx);
    });
}

unsafe extern "C" fn on_request(ctx: Ctx, _: *mut c_void) {
    host().bus_timer = false;
    guarded("the requests of other nodes", || {
        if host().replica || host().loading {
            return;
        }
        if !may_write() {
            host().bus_timer = true;
            start(ctx, PAUSED_MS, on_request);
            return;
        }
        in_slices(|| cluster_bus::serve(ctx));
        resume(ctx);
        queues_soon(ctx);
        bus_soon(ctx);
    });
}

/// Clients wait that may have to be sent away. In the next turn: the server does it in this one, where it does.
pub(super) fn send_away_soon(ctx: Ctx) {
    if !host().sent_away.is_empty() {
        start(ctx, 0, on_send_away);
    }
}

unsafe extern "C" fn on_send_away(ctx: Ctx, _: *mut c_void) {
    guarded("sending clients away", || {
        if in_slices(|| blocked::send_one_away(ctx)) {
            send_away_soon(ctx);
        }
    });
}

/// A lock was evicted. One millisecond later, not at once: within the eviction the replica would receive the new key
/// before the DEL of the old one, and a server full of nothing but locks would evict them for ever.
pub(super) fn put_back_soon(ctx: Ctx) {
    if !host().put_back_timer {
        host().put_back_timer = true;
        let moment = now().to_ms();
        start(ctx, host().put_back_pace.pause(moment), on_put_back);
    }
}

/// A read may have noted that a key is to be given its full time to live.
#[inline]
pub(super) fn slides_soon(ctx: Ctx) {
    if !state().cache.slides.is_empty() && !host().slide_timer {
        host().slide_timer = true;
        start(ctx, 0, on_slide);
    }
}

unsafe extern "C" fn on_slide(ctx: Ctx, _: *mut c_void) {
    host().slide_timer = false;
    timed(ctx, c"keyward-slides", "sliding", || {
        if host().replica || host().loading {
            return;
        }
        if !may_write() {
            host().slide_timer = true;
            start(ctx, PAUSED_MS, on_slide);
            return;
        }
        in_slices(|| slide(&mut Running::new(ctx, &[], true), SLIDE_BATCH));
        slides_soon(ctx);
    });
}

unsafe extern "C" fn on_reclaim(ctx: Ctx, _: *mut c_void) {
    host().reclaim_timer = false;
    timed(ctx, c"keyward-reclaim", "the reclaimer", || {
        if host().replica || host().loading {
            return;
        }
        if !may_write() {
            host().reclaim_timer = true;
            start(ctx, PAUSED_MS, on_reclaim);
            return;
        }
        if in_slices(|| reclaim(&mut Running::new(ctx, &[], true), RECLAIM_BATCH)) {
            reclaim_soon(ctx);
        }
        events::watch_writes(ctx);
    });
}

unsafe extern "C" fn on_put_back(ctx: Ctx, _: *mut c_void) {
    host().put_back_timer = false;
    timed(ctx, c"keyward-put-back", "putting keys back", || {
        if host().replica || host().loading {
            return;
        }
        if !may_write() {
            host().put_back_timer = true;
            start(ctx, PAUSED_MS, on_put_back);
            return;
        }
        if in_slices(|| {
            let locks = crate::lock::put_back(&mut Running::new(ctx, &[], true), PUT_BACK_BATCH);
            crate::writebehind::put_back(&mut Running::new(ctx, &[], true), PUT_BACK_BATCH) || locks
        }) {
            put_back_soon(ctx);
        }
        queues_soon(ctx);
    });
}

/// Repeats `work` until it says that nothing is left, or the slice is over. Whether something is left.
pub(super) fn in_slices(mut work: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while work() {
        if begun.elapsed() >= SLICE {
            return true;
        }
    }
    false
}

unsafe extern "C" fn on_sweep(ctx: Ctx, _: *mut c_void) {
    timed(ctx, c"keyward-sweep", "sweeping", || {
        let moment = now().to_ms();
        state().sweep(moment, SWEEP_BUDGET);
        if let Some(line) = state().cache.policies.log_line(moment) {
            notice(ctx, &line);
        }
        slots::look(ctx);
        if may_write() {
            crate::cache::check_ghosts(&mut Running::new(ctx, &[], false), GHOST_BUDGET);
        }
        resume(ctx);
        queues_soon(ctx);
        events::watch_writes(ctx);
    });
    start(ctx, SWEEP_MS, on_sweep);
}
