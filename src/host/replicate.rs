//! Effects on their way to replicas and the AOF.
//!
//! **Nobody listening.** Building a command for RM_Replicate costs 5 k instructions, a third of a tagged SET, also when the
//! server then drops it. So it is not built while it is certain that nobody can receive it: [`host`]`().audience` is false
//! from the start of a process until the first sign of anybody, and true for ever after: AOF or cluster on, a file loaded
//! (it may bring a replication backlog), a role change, a replica, or any fork. A replica that attaches, and an AOF that is switched on, begin
//! with a snapshot, and a snapshot begins with a fork: what was written before is in it. The verbatim form is still sent, at 20
//! instructions: it counts the change for the save points, which a write that propagates nothing would not reach.

use std::ffi::c_char;

use smallvec::SmallVec;

use super::api::{Ctx, Str, call};
use super::atomic_migration;
use super::main_thread::host;
use super::strings::OwnedString;
use crate::server::Word;

/// How many keys one replicated UNLINK carries at most.
const UNLINK_BATCH: usize = 512;

/// Sends one command. Arguments of the running command go on as the server's own objects.
pub(super) fn command(ctx: Ctx, argv: &[Str], command: &'static str, words: &[Word<'_>]) {
    let mut own: SmallVec<[OwnedString; 8]> = SmallVec::new();
    let mut sent: SmallVec<[Str; 16]> = SmallVec::new();
    for word in words {
        let string = match word {
            Word::Arg(arg) => match argv.get(arg.position) {
                Some(string) => {
                    sent.push(*string);
                    continue;
                }
                None => OwnedString::new(arg.bytes),
            },
            Word::Text(text) => {
                sent.push(host().words.get(text));
                continue;
            }
            Word::Int(n) => OwnedString::from_int(*n),
            Word::Bytes(bytes) => OwnedString::new(bytes),
        };
        sent.push(string.raw());
        own.push(string);
    }
    send(ctx, command, &mut sent);
}

/// Sends the running command as it came.
pub(super) fn verbatim(ctx: Ctx) {
    // SAFETY: the context of the running command.
    unsafe {
        call!(RedisModule_ReplicateVerbatim, ctx);
    }
}

/// Sends UNLINK of these keys. One by one while slots migrate: a command with keys of several slots makes Redis give the migration up.
pub(super) fn unlinked(ctx: Ctx, keys: &[OwnedString]) {
    let batch = if atomic_migration::is_exporting() { 1 } else { UNLINK_BATCH };
    for batch in keys.chunks(batch) {
        let mut sent: SmallVec<[Str; 16]> = batch.iter().map(OwnedString::raw).collect();
        send(ctx, "UNLINK", &mut sent);
    }
}

fn send(ctx: Ctx, command: &'static str, strings: &mut SmallVec<[Str; 16]>) {
    let mut name: SmallVec<[u8; 32]> = SmallVec::from_slice(command.as_bytes());
    name.push(0);
    // SAFETY: the context of the running callback, a NUL-terminated name, and for "v" an array of live strings with its
    // length; the server takes its own references.
    unsafe {
        call!(
            RedisModule_Replicate,
            ctx,
            name.as_ptr().cast::<c_char>(),
            c"v".as_ptr(),
            strings.as_mut_ptr(),
            strings.len(),
        );
    }
}
