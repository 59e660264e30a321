//! The module's memory, owned by the server's main thread.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::time::Instant;

use super::api::{Ctx, call};
use super::strings::Words;
use crate::clock::{UnixMs, UnixUs};
use crate::state::State;
use redis_module::raw;

/// How fast evicted locks come back.
///
/// At once, as a rule. But where memory is full of nothing but locks, each command evicts what was just put back: 250 evictions
/// for one command were measured. So the pause doubles while locks go on being evicted, up to 64 ms, and halves when they do not. They hold all the time.
#[derive(Default)]
pub(super) struct PutBackPace {
    doublings: u32,
    evicted: bool,
    last_ms: i64,
}

impl PutBackPace {
    const MOST_DOUBLINGS: u32 = 6;
    /// A pause of this length without an eviction, and all begins anew.
    const QUIET_MS: i64 = 1000;

    /// A lock was evicted.
    pub(super) fn evicted(&mut self) {
        self.evicted = true;
    }

    /// Milliseconds until the next locks are put back.
    pub(super) fn pause(&mut self, now: UnixMs) -> i64 {
        if now.0.saturating_sub(self.last_ms) > PutBackPace::QUIET_MS {
            self.doublings = 0;
        } else if self.evicted {
            self.doublings = (self.doublings + 1).min(PutBackPace::MOST_DOUBLINGS);
        } else {
            self.doublings = self.doublings.saturating_sub(1);
        }
        self.evicted = false;
        self.last_ms = now.0;
        1 << self.doublings
    }
}

/// A timer that stands at the earliest of many moments.
#[derive(Clone, Copy)]
pub(super) struct Alarm {
    pub at: UnixMs,
    pub id: raw::RedisModuleTimerID,
}

/// What the host itself remembers between callbacks.
#[derive(Default)]
pub(super) struct HostState {
    /// The server is a replica: commands may come from its primary.
    pub replica: bool,
    /// An RDB or AOF file is being loaded, or a full sync is.
    pub loading: bool,
    /// Somebody may be listening to what is propagated; see `replicate`.
    pub audience: bool,
    /// The write events of every type are subscribed to.
    pub write_events: bool,
    pub reclaim_timer: bool,
    pub put_back_timer: bool,
    pub slide_timer: bool,
    /// Looks for leases of loads that have run out.
    pub lease_alarm: Option<Alarm>,
    /// Looks at the queues of locks and limiters.
    pub queue_alarm: Option<Alarm>,
    /// This is a node of a cluster.
    pub cluster: bool,
    pub slots: super::slots::Slots,
    pub migrations: super::atomic_migration::Migrations,
    /// Looks at what other nodes have not answered.
    pub bus_alarm: Option<Alarm>,
    /// Does what other nodes ask for.
    pub bus_timer: bool,
    /// The nodes of the cluster as they were seen last.
    pub nodes: crate::cluster::Nodes,
    pub put_back_pace: PutBackPace,
    /// Is the server's latency monitor on? To be asked again after each CONFIG SET.
    pub latency_monitored: Option<bool>,
    /// A value of one of our types was loaded, copied or renamed, and its key event is still to come.
    pub native_arrival: bool,
    /// The old name of a RENAME, between its two events.
    pub rename_from: Option<(usize, Vec<u8>)>,
    /// The database a MOVE takes a key from, between its two events.
    pub move_from: Option<usize>,
    /// Those that waited when this server became a replica.
    pub sent_away: std::collections::VecDeque<crate::server::Waiter>,
    /// Clients that wait.
    pub room: super::blocked::Room,
    /// A command runs within LOCK.EXEC, as this user.
    pub executing: Option<super::user::User>,
    /// The word that most FETCHes begin with.
    pub hit: Option<super::execute::CallReply>,
    /// Words of replicated effects.
    pub words: Words,
    /// The last moment given out.
    last_us: i64,
    /// Since when the server's clock is behind it, and what it was then.
    set_back: Option<(Instant, i64)>,
}

/// Made by [`begin`]. Not lazily, at the first use: whether it is there would be asked ten times in each command.
struct Shared {
    state: UnsafeCell<MaybeUninit<State>>,
    host: UnsafeCell<MaybeUninit<HostState>>,
}

// SAFETY: every callback that reaches for it runs on the main thread (or in a forked child, which has a copy). The one
// callback that runs elsewhere, the `free` of a data type, does not.
unsafe impl Sync for Shared {}

static SHARED: Shared =
    Shared { state: UnsafeCell::new(MaybeUninit::uninit()), host: UnsafeCell::new(MaybeUninit::uninit()) };

/// Makes the module's memory.
///
/// # Safety
/// On the main thread, before anything else of this module runs.
pub(super) unsafe fn begin() {
    // SAFETY: nobody else has a reference yet, as the caller says.
    unsafe {
        (*SHARED.state.get()).write(State::default());
        (*SHARED.host.get()).write(HostState::default());
    }
}

/// The module's memory. The reference must be gone before anything is called that may call back into the module:
/// [`crate::server::Server`] takes `&mut self` for that, and the callbacks here keep it for one statement.
pub(super) fn state<'a>() -> &'a mut State {
    // SAFETY: made at the load; main thread only, and no two references live at once, as said above.
    unsafe { (*SHARED.state.get()).assume_init_mut() }
}

/// The host's own memory, under the same rule.
pub(super) fn host<'a>() -> &'a mut HostState {
    // SAFETY: as in `state`.
    unsafe { (*SHARED.host.get()).assume_init_mut() }
}

/// The system's wall clock in microseconds. Not by SystemTime, which takes three times as long to tell it from 1970.
fn clock_us() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a clock that every system has, and a place for its time.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1000)
}

/// The server's wall clock in microseconds, never running backwards within a process. When it is set back, time goes on from the
/// last moment given out at its usual pace, until the clock has come up with it: leases and limits end when they should.
pub(super) fn now() -> UnixUs {
    let clock = clock_us();
    let host = host();
    if clock >= host.last_us {
        (host.last_us, host.set_back) = (clock, None);
        return UnixUs(clock);
    }
    let (since, at) = *host.set_back.get_or_insert_with(|| (Instant::now(), host.last_us));
    let elapsed = i64::try_from(since.elapsed().as_micros()).unwrap_or(i64::MAX);
    host.last_us = host.last_us.max(at.saturating_add(elapsed));
    UnixUs(host.last_us)
}

/// The context flags of the server.
pub(super) fn flags(ctx: Ctx) -> u32 {
    // SAFETY: `ctx` is the context of the running callback.
    unsafe { call!(RedisModule_GetContextFlags, ctx) as u32 }
}

/// May the module change the keyspace or propagate on its own account now? Not on a replica, not while loading, and not
/// while replicas must see no traffic (CLIENT PAUSE, FAILOVER, SHUTDOWN): the server aborts on it then.
pub(super) fn may_write() -> bool {
    // SAFETY: takes no argument.
    let silent = unsafe { call!(RedisModule_AvoidReplicaTraffic) } != 0;
    !host().replica && !host().loading && !silent
}

/// Reads role and loading state; for the moment the module is loaded. Later changes come as events.
pub(super) fn read_role(ctx: Ctx) {
    let flags = flags(ctx);
    host().replica = flags & raw::REDISMODULE_CTX_FLAGS_SLAVE != 0;
    host().loading = flags & raw::REDISMODULE_CTX_FLAGS_LOADING != 0;
    let listeners = raw::REDISMODULE_CTX_FLAGS_AOF | raw::REDISMODULE_CTX_FLAGS_CLUSTER;
    host().audience |= host().replica || host().loading || flags & listeners != 0;
}
