//! Atomic slot migration, as Valkey 9 has it (CLUSTER MIGRATESLOTS).
//!
//! The node that has the slots sends a snapshot of them and then whatever it propagates for their keys, until the other node takes
//! them over. That makes values of ours right there: an effect is sent on by the key that [`key_position`](crate::apply::key_position)
//! finds in it, from a timer as well. It does not make right what is known of other values. An invalidation of a tag is done node by
//! node, and may have passed the target before the value came. So each value that comes is in doubt, as one that comes by RESTORE is: see
//! [`doubt`](crate::cache). Two things are different. It is not asked for before the slot is here, since the source goes on serving it.
//! And the source remembers from the beginning which keys went, as it does while a slot moves step by step.

use super::api::Ctx;
use super::events;
use super::main_thread::{host, state};
use super::{server_info, slots};

/// Numbers of Valkey that the bindings do not have, from its valkeymodule.h. The event's number has another meaning on Redis.
pub(super) const EVENT: u64 = 19;
const IMPORT_STARTED: u64 = 0;
const EXPORT_STARTED: u64 = 1;
const IMPORT_ABORTED: u64 = 2;
const EXPORT_ABORTED: u64 = 3;
const IMPORT_COMPLETED: u64 = 4;
const EXPORT_COMPLETED: u64 = 5;
/// Without this option of all modules the server refuses to migrate slots.
pub(super) const OPTION: u32 = 1 << 5;

#[derive(Default)]
pub(super) struct Migrations {
    heard_of: bool,
    importing: u32,
    exporting: u32,
}

/// Does this server have such migrations, and tell of them? Asked once, at load.
pub(super) fn listen(ctx: Ctx) -> bool {
    host().migrations.heard_of = server_info::is_valkey(ctx) && events::listen_to(ctx, EVENT);
    host().migrations.heard_of
}

/// Are slots on their way to this node?
#[inline]
pub(super) fn is_importing() -> bool {
    host().migrations.importing > 0
}

/// Are slots of this node on their way to another?
pub(super) fn is_exporting() -> bool {
    host().migrations.exporting > 0
}

pub(super) fn happened(ctx: Ctx, subevent: u64) {
    let migrations = &mut host().migrations;
    if !migrations.heard_of {
        return;
    }
    match subevent {
        IMPORT_STARTED => migrations.importing = migrations.importing.saturating_add(1),
        EXPORT_STARTED => migrations.exporting = migrations.exporting.saturating_add(1),
        IMPORT_ABORTED | IMPORT_COMPLETED => migrations.importing = migrations.importing.saturating_sub(1),
        EXPORT_ABORTED | EXPORT_COMPLETED => migrations.exporting = migrations.exporting.saturating_sub(1),
        _ => {}
    }
    events::watch_writes(ctx);
    slots::changed(ctx);
    if subevent == IMPORT_COMPLETED {
        state().slots_came();
    }
}

/// This key was written. If it came with a slot that is on its way here, its value is in doubt.
#[inline]
pub(super) fn written(ctx: Ctx, key: &[u8]) {
    if is_importing() && !host().replica && !host().loading {
        slots::streamed(ctx, key);
    }
}
