//! KEYWARD.DEBUG, in debug builds only: what a test needs and no user does.

use std::ffi::c_int;

use super::api::{Ctx, OK, Str};
use super::blocked;
use super::main_thread::host;
use super::reply_writer::{write, write_error};
use super::shell::guarded;
use super::strings::bytes;
use crate::args::Args;
use crate::error::Error;
use crate::reply::Reply;
use crate::spec::{Access, ArgSpec, CommandSpec, Family, Flag, Keys};

pub(super) const SPEC: CommandSpec = CommandSpec {
    name: "keyward.debug",
    family: Family::Keyward,
    summary: "Panics on purpose, waits for an answer, or answers everybody who waits. Debug builds only.",
    complexity: "O(1); WAKE: O(N log N), N clients that wait",
    since: "0.1.0",
    arity: -2,
    flags: &[Flag::ReadOnly, Flag::Admin],
    keys: Keys::None,
    access: Access::None,
    tips: &[],
    args: &[ArgSpec::one_of(
        "action",
        &[
            ArgSpec::word("panic", "PANIC"),
            ArgSpec::integer("milliseconds").token("WAIT"),
            ArgSpec::word("wake", "WAKE"),
        ],
    )],
};

/// No [`crate::commands::Command`], since those answer at once.
pub(super) unsafe extern "C" fn entry(ctx: Ctx, argv: *mut Str, argc: c_int) -> c_int {
    let done = guarded(SPEC.name, || {
        let argc = usize::try_from(argc).unwrap_or(0);
        // SAFETY: the server passes `argc` strings, which live and stay as they are through the command.
        let words: Vec<&[u8]> =
            unsafe { std::slice::from_raw_parts(argv, argc).iter().map(|string| bytes(*string)).collect() };
        match run(ctx, &mut Args::new(&words, SPEC.name)) {
            Ok(Some(reply)) => write(ctx, reply),
            Ok(None) => {}
            Err(error) => write_error(ctx, &error),
        }
    });
    if done.is_none() {
        write_error(ctx, &Error::Internal);
    }
    OK
}

/// `None`: the client waits.
#[allow(clippy::panic, reason = "the purpose of PANIC")]
fn run(ctx: Ctx, args: &mut Args<'_>) -> Result<Option<Reply<'static>>, Error> {
    let action = args.required()?;
    if action.is("WAIT") {
        let timeout_ms = args.value()?.int()?;
        args.end()?;
        return Ok(if blocked::block(ctx, timeout_ms, Reply::Nil).is_some() { None } else { Some(Reply::Nil) });
    }
    args.end()?;
    if action.is("WAKE") {
        Ok(Some(Reply::Int(wake(ctx))))
    } else if action.is("PANIC") {
        panic!("planted on purpose: 100% \u{439}\0")
    } else {
        Err(Error::Syntax)
    }
}

/// Tells all who wait which turn they had, and gives the number of them.
fn wake(ctx: Ctx) -> i64 {
    let mut turn = 0_i64;
    for waiter in host().room.waiting() {
        let next = turn.saturating_add(1);
        if blocked::answer(ctx, waiter, Reply::Int(next)) {
            turn = next;
        }
    }
    turn
}
