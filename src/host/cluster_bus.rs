//! The cluster bus: carries the messages of [`crate::cluster`] between the nodes, in cluster mode only. What a message asks for is not done
//! when it comes, which is no command and may be while the server is paused, but by a timer (see `timer`).
//!
//! Measured on 7.0, 8.2, 8.1 and 9.1: a message of 64 MiB arrives; messages arrive at replicas and while clients are paused; to a node that
//! has stopped the server takes them, and drops them when it gives up the link; one to this node itself is refused. The list of nodes
//! that the module API gives says nothing of slots, so CLUSTER NODES is read.

use std::ffi::{CString, c_char, c_uchar};

use redis_module::raw;

use super::api::{Ctx, call, ok};
use super::keyspace::Running;
use super::main_thread::{flags, host, now, state};
use super::shell::guarded;
use super::{server_info, slots, timer};
use crate::cluster::{Look, NodeId, Nodes, Outgoing, Received};
use crate::error::Error;
use crate::server::Server;

/// The server keeps the types of one module apart from those of others.
const MESSAGE_TYPE: u8 = 1;

/// Begins to listen, if the server is in cluster mode. That never changes while it runs.
pub(super) fn register(ctx: Ctx) {
    if is_on(ctx) {
        // SAFETY: the context of the load and a callback with the signature the server expects.
        unsafe { call!(RedisModule_RegisterClusterMessageReceiver, ctx, MESSAGE_TYPE, Some(on_message)) }
    }
}

fn is_on(ctx: Ctx) -> bool {
    flags(ctx) & raw::REDISMODULE_CTX_FLAGS_CLUSTER != 0
}

/// The nodes of the cluster; `None` where the server is in none.
pub(super) fn nodes(ctx: Ctx) -> Result<Option<Nodes>, Error> {
    if !is_on(ctx) {
        return Ok(None);
    }
    server_info::cluster_nodes(ctx).and_then(|text| Nodes::parse(&text)).map(Some).ok_or(Error::NodesUnknown)
}

fn myself() -> Option<NodeId> {
    // SAFETY: takes no argument. In cluster mode the server gives the name of its own node, which has this length and lives as long as
    // the server; else null.
    unsafe {
        let id = call!(RedisModule_GetMyClusterID);
        if id.is_null() { None } else { NodeId::new(std::slice::from_raw_parts(id.cast::<u8>(), NodeId::LENGTH)) }
    }
}

/// Sends what can be sent: what is lost is asked for again. A message to this node itself arrives at once.
pub(super) fn send(ctx: Ctx, message: &Outgoing) {
    if myself() == Some(message.to) {
        received(ctx, message.to, &message.bytes);
        return;
    }
    let (Ok(target), Ok(len)) = (CString::new(message.to.as_bytes().as_slice()), u32::try_from(message.bytes.len()))
    else {
        return;
    };
    // SAFETY: the context of the running callback, a NUL-terminated name, and bytes with their length, which the server copies.
    let sent = unsafe {
        let (target, bytes) = (target.as_ptr(), message.bytes.as_ptr().cast::<c_char>());
        ok(call!(RedisModule_SendClusterMessage, ctx, target, MESSAGE_TYPE, bytes, len))
    };
    let counters = &mut state().cluster.counters;
    counters.sent = counters.sent.saturating_add(u64::from(sent));
}

unsafe extern "C" fn on_message(ctx: Ctx, sender: *const c_char, _: u8, payload: *const c_uchar, len: u32) {
    guarded("a message of the cluster", || {
        // SAFETY: the server passes the name of a node, which has this length and no NUL behind it, and `len` bytes.
        let (sender, bytes) = unsafe {
            let sender = std::slice::from_raw_parts(sender.cast::<u8>(), NodeId::LENGTH);
            let len = usize::try_from(len).unwrap_or(0);
            (sender, if len == 0 { &[][..] } else { std::slice::from_raw_parts(payload, len) })
        };
        if let Some(sender) = NodeId::new(sender) {
            received(ctx, sender, bytes);
        }
    });
}

fn received(ctx: Ctx, from: NodeId, bytes: &[u8]) {
    let primary = !host().replica && !host().loading;
    match state().cluster.received(from, bytes, primary, now().to_ms()) {
        Received::Nothing => {}
        Received::Send(answer) => send(ctx, &answer),
        Received::Questions(questions) => slots::asked(ctx, from, questions),
        Received::Answers(answers) => slots::answered(ctx, answers),
    }
    timer::bus_soon(ctx);
}

/// Does one thing that another node asked for, and answers. Whether there was any.
pub(super) fn serve(ctx: Ctx) -> bool {
    let Some(incoming) = state().cluster.take() else { return false };
    let count = guarded("a request of another node", || {
        crate::state::deliver(&mut Running::new(ctx, &[], true), incoming.topic, &incoming.payload)
    });
    if let Some(answer) = state().cluster.done(incoming.from, incoming.id, count.flatten()) {
        send(ctx, &answer);
    }
    true
}

/// Asks those that have not answered, and tells the clients that need wait no longer.
pub(super) fn look(ctx: Ctx) {
    let moment = now().to_ms();
    if state().cluster.looks_at_nodes(moment) {
        // Where they are not told any more the ones known before have to do; they do not change then.
        if let Ok(Some(nodes)) = nodes(ctx) {
            host().nodes = nodes;
        }
        let nodes = std::mem::take(&mut host().nodes);
        while let Some(Look { messages, answer }) = state().cluster.next_look(&nodes, moment) {
            messages.iter().for_each(|message| send(ctx, message));
            if let Some((waiter, reply)) = answer {
                Running::new(ctx, &[], false).answer(waiter, reply);
            }
        }
        host().nodes = nodes;
    }
    while let Some(message) = state().cluster.next_question(moment) {
        send(ctx, &message);
    }
}
