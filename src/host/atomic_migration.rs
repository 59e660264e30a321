//! Atomic slot migration: CLUSTER MIGRATESLOTS of Valkey 9, CLUSTER MIGRATION of Redis 8.4.
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

/// The numbers by which a server tells of migrations, from its module header. The bindings do not have them.
#[derive(Clone, Copy)]
struct Numbers {
    event: u64,
    /// Started, given up, completed.
    import: [u64; 3],
    export: [u64; 3],
}

/// The number of the event has another meaning on Redis.
const VALKEY: Numbers = Numbers { event: 19, import: [0, 2, 4], export: [1, 3, 5] };
/// There is one more subevent, which is told in a forked child.
const REDIS: Numbers = Numbers { event: 18, import: [0, 1, 2], export: [3, 4, 5] };
/// Without this option of all modules Valkey refuses to migrate slots.
const VALKEY_OPTION: u32 = 1 << 5;

#[derive(Default)]
pub(super) struct Migrations {
    numbers: Option<Numbers>,
    importing: u32,
    exporting: u32,
}

/// Asked once, at load: listens, if this server has such migrations. The module options that it wants for them.
pub(super) fn listen(ctx: Ctx) -> u32 {
    let valkey = server_info::is_valkey(ctx);
    let numbers = if valkey { VALKEY } else { REDIS };
    if !events::listen_to(ctx, numbers.event) {
        return 0;
    }
    host().migrations.numbers = Some(numbers);
    if valkey { VALKEY_OPTION } else { 0 }
}

/// Redis 8.4 and later are different in two more things. They remove the keys of a slot that went, or that came in vain, without the
/// events of a removal. And they look for the keys of each command that they send on: to ask the command for them (`getkeys-api`)
/// makes the server send it on once more, and so on until its stack is used up. Found on 8.6.3.
pub(super) fn is_of_redis() -> bool {
    host().migrations.numbers.is_some_and(|numbers| numbers.event == REDIS.event)
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

pub(super) fn happened(ctx: Ctx, event: u64, subevent: u64) {
    let migrations = &mut host().migrations;
    let Some(numbers) = migrations.numbers.filter(|numbers| numbers.event == event) else { return };
    let (count, [started, ..]) = if numbers.import.contains(&subevent) {
        (&mut migrations.importing, numbers.import)
    } else if numbers.export.contains(&subevent) {
        (&mut migrations.exporting, numbers.export)
    } else {
        return;
    };
    *count = if subevent == started { count.saturating_add(1) } else { count.saturating_sub(1) };
    events::watch_writes(ctx);
    slots::changed(ctx);
    let [.., came] = numbers.import;
    if subevent == came {
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
