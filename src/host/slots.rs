//! The server as a node of a cluster: who serves a slot, what its keys leave behind when it moves, and what the nodes ask each other
//! about that.

use std::ffi::c_void;
use std::rc::Rc;
use std::time::{Duration, Instant};

use redis_module::raw;

use super::api::Ctx;
use super::keyspace::Running;
use super::log::warning;
use super::main_thread::{flags, host, may_write, now, state};
use super::shell::guarded;
use super::{atomic_migration, cluster_bus, server_info, timer};
use crate::args::Arg;
use crate::cache::{act_on, arrived, ask, leave_slots};
use crate::cluster::{Answer, Message, Node, NodeId, Nodes, Outgoing, Question};
use crate::error::Error;
use crate::server::Server;
use crate::slot::slot;
use crate::state::KeyEvent;

/// How many messages one turn sends at most.
const MESSAGES: usize = 20;
/// The rhythm of asking, in milliseconds.
const ASK_MS: i64 = 20;
/// How often the slots are looked at when nothing is known to move.
const LOOK: Duration = Duration::from_secs(1);
/// How old what is known of the cluster may be where it must be right.
const FRESH: Duration = Duration::from_millis(1);
/// How old it may be where a failed MIGRATE has to be noticed.
const LATELY: Duration = Duration::from_millis(20);
/// How long after a new epoch keys may come to a slot that has come before them. By the rules of the cluster every node knows within two
/// seconds whose the slot is.
const SETTLED: Duration = Duration::from_secs(10);
/// How many keys of lost slots are looked at between two looks at the clock.
const LOST_BATCH: usize = 64;
/// How many leases are looked at between two looks at the clock. Of each whose key has gone the server is asked.
const LEASE_BATCH: usize = 16;
/// How many answers wait to be acted on at most; those beyond are asked for again.
const ANSWERS_MAX: usize = 100_000;

#[derive(Default)]
pub(super) struct Slots {
    topology: Rc<Nodes>,
    looked_at: Option<Instant>,
    /// When this node's epoch was seen to have changed: slots may have come to it.
    new_epoch: Option<Instant>,
    /// When the rhythmical look was.
    round: Option<Instant>,
    /// A slot has gone since the last rhythmical look, whoever saw it: it may also have come since then.
    lost: bool,
    ask_timer: bool,
    lost_timer: bool,
    lease_timer: bool,
    answers: Vec<Answer>,
    answer_timer: bool,
}

/// Whether this is a node of a cluster never changes while it runs.
pub(super) fn begin(ctx: Ctx) {
    host().cluster = flags(ctx) & raw::REDISMODULE_CTX_FLAGS_CLUSTER != 0;
    state().cache.begins_to_serve(now().to_ms());
}

/// What this node knows of the cluster, not older than a millisecond.
fn topology(ctx: Ctx) -> Rc<Nodes> {
    topology_of(ctx, FRESH)
}

fn topology_of(ctx: Ctx, age: Duration) -> Rc<Nodes> {
    if host().slots.looked_at.is_none_or(|at| at.elapsed() >= age) {
        let text = server_info::cluster(ctx, c"NODES").unwrap_or_default();
        let nodes = Rc::new(Nodes::parse(&text).unwrap_or_default());
        let slots = &mut host().slots;
        slots.lost |= nodes.has_lost(&slots.topology);
        if slots.topology.myself().is_some_and(|me| me.epoch != nodes.epoch()) {
            slots.new_epoch = Some(Instant::now());
        }
        (slots.topology, slots.looked_at) = (nodes, Some(Instant::now()));
    }
    Rc::clone(&host().slots.topology)
}

pub(super) fn redirection(ctx: Ctx, key: &[u8]) -> Error {
    host().slots.looked_at = None;
    let (slot, topology) = (slot(key), topology(ctx));
    let address = |node: Option<&Node>| node.map(|node| Rc::clone(&node.address));
    let redirection = if topology.is_mine(slot) {
        let target = topology.migrating_to(slot).and_then(|target| topology.find(target));
        address(target).map(|address| Error::Ask(slot, address))
    } else {
        address(topology.owner(slot)).map(|address| Error::Moved(slot, address))
    };
    redirection.unwrap_or(Error::SlotMoves)
}

/// Looks whether slots may have been away. If the slot of this key is still coming from another node: the epoch of the one that has it.
///
/// A look that is a millisecond old will do where the slot was at rest here: it cannot have gone and come back since, which takes seven
/// commands on two nodes, one after the other. Where it was not, it may have come just now.
pub(super) fn notice(ctx: Ctx, key: &[u8]) -> Option<u64> {
    let slot = slot(key);
    if !topology(ctx).rests_here(slot) {
        host().slots.looked_at = None;
    }
    let topology = topology(ctx);
    state().cache.in_epoch(topology.epoch());
    (!topology.is_mine(slot)).then(|| topology.owner(slot).map_or(0, |owner| owner.epoch))
}

/// A value has come to this key by RESTORE. With its slot, if the slot is not served here yet: nobody else may restore there. And
/// perhaps if it has come lately: Valkey gives a slot that is on its way to the node it goes to, if that one gets an old message of the
/// other by which it had not the slot yet; the keys come after it. Nobody knows then from where.
pub(super) fn restored(ctx: Ctx, key: &[u8]) {
    let slot = slot(key);
    if !host().cluster || Running::new(ctx, &[], false).replayed() {
        return;
    }
    // A look that is a millisecond old will do: see `notice`. A command on the key would not: after ASKING some servers take it.
    let sources = if topology(ctx).rests_here(slot) {
        let lately = host().slots.new_epoch.is_some_and(|at| at.elapsed() < SETTLED);
        if lately { topology(ctx).other_primaries() } else { Vec::new() }
    } else {
        if topology(ctx).importing_from(slot).is_none() {
            // It may have gone, or begun to come, since the last look.
            host().slots.looked_at = None;
        }
        topology(ctx).importing_from(slot).into_iter().collect()
    };
    if !sources.is_empty() {
        arrived(&mut Running::new(ctx, &[], true), key, &sources);
        ask_after(ctx, 0);
    }
}

/// A value has come to this key ahead of its slot, which nobody may write to here but the node that has it.
pub(super) fn streamed(ctx: Ctx, key: &[u8]) {
    let (topology, slot) = (topology(ctx), slot(key));
    if topology.is_mine(slot) || topology.importing_from(slot).is_some() {
        return;
    }
    let mut running = Running::new(ctx, &[], true);
    if let Some(owner) = topology.owner(slot)
        && running.has_plain_value(Arg::named(key))
    {
        arrived(&mut running, key, &[owner.id]);
    }
}

/// Slots may have come or gone just now.
pub(super) fn changed(ctx: Ctx) {
    (host().slots.looked_at, host().slots.round) = (None, None);
    if state().cache.has_questions() {
        ask_after(ctx, 0);
    }
}

/// A key goes. If something is known of it that its value does not carry, and it may have gone with its slot, that is remembered.
pub(super) fn departs(ctx: Ctx, event: KeyEvent, db: usize, key: &[u8], replayed: bool) {
    let goes = matches!(event, KeyEvent::Deleted | KeyEvent::Expired | KeyEvent::Evicted);
    if !host().cluster || replayed || !goes {
        return;
    }
    let moment = now().to_ms();
    if !state().cache.is_known(db, key, moment) {
        return;
    }
    let (reclaiming, exporting) = (state().cache.is_reclaiming(), atomic_migration::is_exporting());
    if let Some(source) = state().cache.came_from(db, key) {
        if !reclaiming {
            // The slot may have come and be leaving since the last look.
            host().slots.looked_at = None;
        }
        // A migration was given up, and the node that the value came from has it as before.
        if topology(ctx).owner(slot(key)).is_some_and(|owner| owner.id == source) {
            return;
        }
    }
    // What is invalidated here was not sent, unless a MIGRATE failed half way: to ask the server for each key of a giant tag would
    // cost half as much again.
    if reclaiming && !exporting && !topology_of(ctx, LATELY).is_migrating() {
        return;
    }
    if exporting || !Running::new(ctx, &[], false).serves(Arg::named(key)) {
        state().cache.departs_with_slot(db, key, moment);
    }
}

/// To be called some times a second.
pub(super) fn look(ctx: Ctx) {
    if !host().cluster || host().slots.round.is_some_and(|at| at.elapsed() < LOOK) {
        return;
    }
    host().slots.round = Some(Instant::now());
    host().slots.looked_at = None;
    let topology = topology(ctx);
    state().cache.in_epoch(topology.epoch());
    // What is lost meanwhile is dealt with after the pause.
    if may_write() {
        slots_leave(ctx, &topology);
    }
    if state().cache.has_questions() {
        ask_after(ctx, 0);
    }
}

fn slots_leave(ctx: Ctx, topology: &Nodes) {
    let lost = std::mem::take(&mut host().slots.lost);
    if lost || topology.is_migrating() {
        state().look_at_all_queues();
        state().cache.slots_leave();
        leave_after(ctx, 0);
    }
    if lost {
        state().cache.walk_from_start();
        walk_after(ctx, 0);
    }
}

fn leave_after(ctx: Ctx, after_ms: i64) {
    if !host().slots.lease_timer {
        host().slots.lease_timer = true;
        timer::start(ctx, after_ms, on_leave);
    }
}

unsafe extern "C" fn on_leave(ctx: Ctx, _: *mut c_void) {
    host().slots.lease_timer = false;
    guarded("leases of keys that left", || {
        if host().replica || host().loading {
            return;
        }
        if !may_write() {
            leave_after(ctx, timer::PAUSED_MS);
            return;
        }
        let topology = Rc::clone(&host().slots.topology);
        let stays = |key: &[u8]| topology.is_mine(slot(key)) && topology.migrating_to(slot(key)).is_none();
        if timer::in_slices(|| leave_slots(&mut Running::new(ctx, &[], false), LEASE_BATCH, stays)) {
            leave_after(ctx, 0);
        }
    });
}

/// On Redis 7.0 the keys of a slot that another node took over vanish without an event: all that is known is compared with the
/// keyspace once, in slices.
fn walk_after(ctx: Ctx, after_ms: i64) {
    if !host().slots.lost_timer {
        host().slots.lost_timer = true;
        timer::start(ctx, after_ms, on_walk);
    }
}

unsafe extern "C" fn on_walk(ctx: Ctx, _: *mut c_void) {
    host().slots.lost_timer = false;
    guarded("keys of lost slots", || {
        if host().replica || host().loading {
            return;
        }
        let more = || crate::cache::check_ghosts(&mut Running::new(ctx, &[], false), LOST_BATCH);
        if !may_write() {
            walk_after(ctx, timer::PAUSED_MS);
        } else if timer::in_slices(more) {
            walk_after(ctx, 0);
        }
    });
}

fn ask_after(ctx: Ctx, after_ms: i64) {
    if !host().slots.ask_timer {
        host().slots.ask_timer = true;
        timer::start(ctx, after_ms, on_ask);
    }
}

unsafe extern "C" fn on_ask(ctx: Ctx, _: *mut c_void) {
    host().slots.ask_timer = false;
    guarded("asking for keys that came", || {
        if host().replica || host().loading {
            return;
        }
        let topology = topology(ctx);
        let mut asked = false;
        for _ in 0..MESSAGES {
            let ready = |key: &[u8]| !atomic_migration::is_importing() || topology.is_mine(slot(key));
            let Some((node, questions)) = ask(&mut state().cache, now().to_ms(), ready) else { break };
            send(ctx, node, &Message::Questions(questions));
            asked = true;
        }
        // What comes with slots that are not here yet is asked for when they are.
        if state().cache.has_questions() && (asked || !atomic_migration::is_importing()) {
            ask_after(ctx, ASK_MS);
        }
    });
}

/// A message may be lost: what is not answered is asked again.
fn send(ctx: Ctx, to: NodeId, message: &Message<'_>) {
    cluster_bus::send(ctx, &Outgoing { to, bytes: message.encode() });
}

/// Another node asks about values that went there.
pub(super) fn asked(ctx: Ctx, from: NodeId, questions: Vec<Question>) {
    let serves = !host().replica && !host().loading;
    let answers = state().cache.answer(questions, serves, now().to_ms());
    send(ctx, from, &Message::Answers(answers));
}

/// Another node says what it knows of values that came from there.
pub(super) fn answered(ctx: Ctx, answers: Vec<Answer>) {
    if host().slots.answers.len() < ANSWERS_MAX {
        host().slots.answers.extend(answers);
    }
    act_after(ctx, 0);
}

fn act_after(ctx: Ctx, after_ms: i64) {
    if !host().slots.answer_timer {
        host().slots.answer_timer = true;
        timer::start(ctx, after_ms, on_act);
    }
}

unsafe extern "C" fn on_act(ctx: Ctx, _: *mut c_void) {
    host().slots.answer_timer = false;
    guarded("answers about keys that came", || {
        if host().replica || host().loading {
            host().slots.answers.clear();
            return;
        }
        if !may_write() {
            act_after(ctx, timer::PAUSED_MS);
            return;
        }
        let me = topology(ctx).myself().map(|me| me.id);
        let more = timer::in_slices(|| {
            let Some(answer) = host().slots.answers.pop() else { return false };
            if act_on(&mut Running::new(ctx, &[], true), &answer, me).is_err() {
                warning(ctx, "keyward: no room for the version floor of a key that came with its slot");
            }
            true
        });
        if more {
            act_after(ctx, 0);
        } else {
            // What the answers of a large slot took is given back.
            host().slots.answers = Vec::new();
        }
        timer::leases_soon(ctx);
    });
}
