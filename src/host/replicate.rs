//! Effects on their way to replicas and the AOF.

use std::ffi::c_char;

use smallvec::SmallVec;

use super::api::{Ctx, Str, call};
use super::strings::OwnedString;
use crate::server::Word;

/// How many keys one replicated UNLINK carries at most.
const UNLINK_BATCH: usize = 512;

/// Sends one command. Arguments of the running command go on as the server's own objects.
pub(super) fn command(ctx: Ctx, argv: &[Str], command: &'static str, words: &[Word<'_>]) {
    let mut own: SmallVec<[OwnedString; 8]> = SmallVec::new();
    let mut sent: SmallVec<[Str; 16]> = SmallVec::new();
    for word in words {
        let bytes = match word {
            Word::Arg(arg) => match argv.get(arg.position) {
                Some(string) => {
                    sent.push(*string);
                    continue;
                }
                None => OwnedString::new(arg.bytes),
            },
            Word::Text(text) => OwnedString::new(text.as_bytes()),
            Word::Int(n) => OwnedString::new(n.to_string().as_bytes()),
            Word::Bytes(bytes) => OwnedString::new(bytes),
        };
        sent.push(bytes.raw());
        own.push(bytes);
    }
    send(ctx, command, &mut sent);
}

/// Sends UNLINK of these keys.
pub(super) fn unlinked(ctx: Ctx, keys: &[OwnedString]) {
    for batch in keys.chunks(UNLINK_BATCH) {
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
