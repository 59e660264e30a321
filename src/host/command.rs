//! The shell round every command: argv -> Args -> Request -> reply.

use std::ffi::c_int;

use smallvec::SmallVec;

use super::api::{Ctx, OK, Str};
use super::keyspace::Running;
use super::reply_writer::{write, write_error};
use super::shell::guarded;
use super::strings::bytes;
use super::timer;
use crate::args::Args;
use crate::commands::Command;
use crate::error::Error;
use crate::spec::Flag;

/// The function that the server calls for the command `C`. The reply comes last: a panic before it is answered by an error
/// and not by half a reply.
pub(super) unsafe extern "C" fn entry<C: Command>(ctx: Ctx, argv: *mut Str, argc: c_int) -> c_int {
    let answered = guarded(C::SPEC.name, || {
        let argc = usize::try_from(argc).unwrap_or(0);
        // SAFETY: the server passes `argc` strings, which live and stay as they are through the command.
        let argv: &[Str] = unsafe { std::slice::from_raw_parts(argv, argc) };
        // SAFETY: as above.
        let words: SmallVec<[&[u8]; 16]> = argv.iter().map(|string| unsafe { bytes(*string) }).collect();
        run::<C>(ctx, argv, &words);
    });
    if answered.is_none() {
        write_error(ctx, &Error::Internal);
    }
    OK
}

fn run<C: Command>(ctx: Ctx, argv: &[Str], words: &[&[u8]]) {
    let writes = C::SPEC.flags.contains(&Flag::Write);
    let mut running = Running::new(ctx, argv, writes);
    let mut args = Args::new(words, C::SPEC.name);
    match C::parse(&mut args).and_then(|request| C::run(request, &mut running)) {
        Ok(reply) => write(ctx, &reply),
        Err(error) => write_error(ctx, &error),
    }
    if writes {
        timer::reclaim_soon(ctx);
    }
}
