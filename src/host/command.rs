//! The shell round every command: argv -> Args -> Request -> reply.

use std::ffi::c_int;

use smallvec::SmallVec;

use super::api::{Ctx, OK, Str, call};
use super::command_info::access_flags;
use super::keyspace::Running;
use super::main_thread::{host, state};
use super::reply_writer::{write, write_error, write_hit};
use super::shell::guarded;
use super::strings::bytes;
use super::{atomic_migration, timer};
use crate::args::Args;
use crate::commands::Command;
use crate::error::Error;
use crate::reply::Reply;
use crate::slot::slot;
use crate::spec::{CommandSpec, Family, Flag, Keys};

/// The function that the server calls for the command `C`. The reply comes last: a panic before it is answered by an error
/// and not by half a reply.
pub(super) unsafe extern "C" fn entry<C: Command>(ctx: Ctx, argv: *mut Str, argc: c_int) -> c_int {
    // SAFETY: the context of the call.
    if C::SPEC.keys.are_told() && unsafe { call!(RedisModule_IsKeysPositionRequest, ctx) } != 0 {
        // SAFETY: as below.
        guarded(C::SPEC.name, || unsafe { tell_keys(ctx, argv, argc, C::SPEC) });
        return OK;
    }
    let answered = guarded(C::SPEC.name, || {
        let argc = usize::try_from(argc).unwrap_or(0);
        // SAFETY: the server passes `argc` strings, which live and stay as they are through the command.
        let argv: &[Str] = unsafe { std::slice::from_raw_parts(argv, argc) };
        // Extended where it lies: a collected one would be copied.
        let mut words = SmallVec::<[&[u8]; 16]>::new();
        // How the caller wrote the command's name is of no interest.
        words.push(C::SPEC.name.as_bytes());
        let arguments = argv.get(1..).unwrap_or_default();
        // SAFETY: as above.
        words.extend(arguments.iter().map(|string| unsafe { bytes(*string) }));
        run::<C>(ctx, argv, &words);
    });
    if answered.is_none() {
        write_error(ctx, &Error::Internal);
    }
    OK
}

/// The command may have come with a slot that is on its way here.
#[cold]
fn written<C: Command>(ctx: Ctx, words: &[&[u8]]) {
    let first = words.get(1).copied().unwrap_or_default();
    for key in C::SPEC.keys.positions(words.len(), first).filter_map(|at| words.get(at)) {
        atomic_migration::written(ctx, key);
    }
}

/// Redis 8.4 and later look at the first key alone when a script or LOCK.EXEC calls a command with a count of keys: it is not asked there,
/// see [`command_info`](super::command_info).
#[inline]
fn stays_in_slot<C: Command>(words: &[&[u8]]) -> Result<(), Error> {
    let counted = matches!(C::SPEC.keys, Keys::Counted { .. });
    if !counted || !host().cluster || !atomic_migration::is_of_redis() {
        return Ok(());
    }
    let first = words.get(1).copied().unwrap_or_default();
    let mut slots = C::SPEC.keys.positions(words.len(), first).filter_map(|at| words.get(at)).map(|key| slot(key));
    let one = slots.next();
    if slots.all(|slot| Some(slot) == one) { Ok(()) } else { Err(Error::CrossSlot) }
}

/// Tells where the keys are. Servers before Redis 8.4 and Valkey 9 read a counted key spec as if each group had one argument:
/// they would find half of the keys, and ACL and cluster would look at no more.
///
/// # Safety
/// `argv` has `argc` strings.
unsafe fn tell_keys(ctx: Ctx, argv: *mut Str, argc: c_int, spec: &CommandSpec) {
    let argc = usize::try_from(argc).unwrap_or(0);
    if argc < 2 {
        return;
    }
    // SAFETY: the second of at least two strings, which live through the call.
    let first = unsafe { bytes(*argv.add(1)) };
    let flags = c_int::try_from(access_flags(spec.access)).unwrap_or(0);
    for position in spec.keys.positions(argc, first) {
        let position = c_int::try_from(position).unwrap_or(0);
        // SAFETY: the context of a request for positions.
        unsafe { call!(RedisModule_KeyAtPosWithFlags, ctx, position, flags) }
    }
}

fn run<C: Command>(ctx: Ctx, argv: &[Str], words: &[&[u8]]) {
    let writes = C::SPEC.flags.contains(&Flag::Write);
    if writes && host().loading {
        state().cache.settle();
    }
    let mut hit = false;
    {
        // In a block of its own, which closes the key at its end: `drop` would copy all of it first.
        let mut running = Running::new(ctx, argv, writes);
        let mut args = Args::new(words, C::SPEC.name);
        let outcome = stays_in_slot::<C>(words).and_then(|()| C::run(C::parse(&mut args)?, &mut running));
        match outcome {
            Ok(Reply::Hit(value)) => {
                hit = true;
                write_hit(ctx, value);
                // There is nothing in it to drop, and it costs to find that out.
                std::mem::forget(outcome);
            }
            Ok(Reply::Relayed) => running.relay(),
            Ok(reply) => write(ctx, reply),
            Err(error) => write_error(ctx, &error),
        }
    }
    if writes && atomic_migration::is_importing() {
        written::<C>(ctx, words);
    }
    if writes {
        timer::reclaim_soon(ctx);
        timer::queues_soon(ctx);
    }
    // Who was given a fresh value was given no lease.
    if C::SPEC.family.begins_loads() && (writes || C::SPEC.flags.contains(&Flag::Blocking)) && !hit {
        timer::leases_soon(ctx);
    }
    if !writes && C::SPEC.family == Family::Cache && !state().cache.policies.is_empty() {
        // A read may have had its key given its full time to live, or loaded ahead.
        timer::slides_soon(ctx);
        timer::leases_soon(ctx);
    }
}
