//! A command within a command: LOCK.EXEC. And a reply of the server's that is kept.

use std::ffi::{CStr, CString, c_char, c_int};

use redis_module::raw;

use super::api::{Ctx, OK, Str, call};
use super::main_thread::{flags, host};
use super::strings::bytes;
use super::user::User;
use crate::error::Error;
use crate::slot::slot;

/// "v": the arguments as an array; "!": what it changes is replicated; "E": its errors are replies; "C": the calling user must
/// be allowed to; "S": under the rules of scripts; "M": refused when memory is full, as for clients; "0": the reply is in the
/// protocol of the client.
const FORMAT: &CStr = c"v!ECSM0";

/// How Redis 7.0 begins a refusal by ACL, of a command that is called; later servers begin it with NOPERM as for clients.
const DENIED: &[u8] = b"ERR acl verification failed";

/// What a command replied; freed when dropped.
pub(super) struct CallReply(*mut raw::RedisModuleCallReply);

impl CallReply {
    /// Hands the reply on to the client of the running command.
    pub(super) fn relay(self, ctx: Ctx) {
        // SAFETY: the context of the running command, and a reply that is not freed yet.
        unsafe {
            call!(RedisModule_ReplyWithCallReply, ctx, self.0);
        }
    }

    /// Sends the reply to the client of the running command, and keeps it. Whether the server did.
    pub(super) fn repeat(&self, ctx: Ctx) -> bool {
        // SAFETY: as above; the server copies the reply.
        unsafe { call!(RedisModule_ReplyWithCallReply, ctx, self.0) == OK }
    }

    fn is_denial(&self) -> bool {
        // SAFETY: a reply that is not freed yet; an error has a text, whose bytes live as long.
        unsafe {
            if call!(RedisModule_CallReplyType, self.0) != raw::REDISMODULE_REPLY_ERROR as c_int {
                return false;
            }
            let mut len = 0;
            let text = call!(RedisModule_CallReplyStringPtr, self.0, &mut len);
            !text.is_null() && std::slice::from_raw_parts(text.cast::<u8>(), len).starts_with(DENIED)
        }
    }
}

impl Drop for CallReply {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { call!(RedisModule_FreeCallReply, self.0) }
    }
}

/// A word as the server replies it. It comes from the server in one piece, where a string that the module replies is put together from
/// three: 240 instructions less for each. `None`: the server does not say.
pub(super) fn word(ctx: Ctx, word: &CStr) -> Option<CallReply> {
    // SAFETY: the context of the running callback and NUL-terminated strings.
    let reply = unsafe { call!(RedisModule_Call, ctx, c"ECHO".as_ptr(), c"c".as_ptr(), word.as_ptr()) };
    if reply.is_null() {
        return None;
    }
    let reply = CallReply(reply);
    // SAFETY: a reply that is not freed yet.
    let is_string = unsafe { call!(RedisModule_CallReplyType, reply.0) == raw::REDISMODULE_REPLY_STRING as c_int };
    is_string.then_some(reply)
}

/// Nothing of the kind runs within it.
struct Within;

impl Within {
    fn enter(ctx: Ctx) -> Result<Within, Error> {
        if host().executing.is_some() {
            return Err(Error::Nested);
        }
        host().executing = Some(User::of(ctx));
        Ok(Within)
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        host().executing = None;
    }
}

/// Runs the command that these strings are, with no key outside the slot of `key`.
pub(super) fn run(ctx: Ctx, key: &[u8], strings: &[Str]) -> Result<CallReply, Error> {
    let _within = Within::enter(ctx)?;
    let Some((name, arguments)) = strings.split_first() else { return Err(Error::Internal) };
    if flags(ctx) & raw::REDISMODULE_CTX_FLAGS_CLUSTER != 0 {
        check_slots(ctx, slot(key), strings)?;
    }
    // SAFETY: a string of the running command.
    let name = CString::new(unsafe { bytes(*name) }).map_err(|_| Error::Syntax)?;
    // SAFETY: the context of the running command, NUL-terminated strings, and an array of live strings with its length.
    let reply = unsafe {
        let (name, format) = (name.as_ptr(), FORMAT.as_ptr());
        call!(RedisModule_Call, ctx, name.cast::<c_char>(), format, arguments.as_ptr().cast_mut(), arguments.len())
    };
    if reply.is_null() {
        return Err(Error::Internal);
    }
    let reply = CallReply(reply);
    if reply.is_denial() { Err(Error::CommandDenied) } else { Ok(reply) }
}

fn check_slots(ctx: Ctx, wanted: u16, strings: &[Str]) -> Result<(), Error> {
    let Ok(argc) = c_int::try_from(strings.len()) else { return Err(Error::Internal) };
    let mut count = 0;
    // SAFETY: the context of the running command and an array of live strings with its length. The server allocates the
    // positions, which are read within their number and freed once; null means that there are none.
    let positions = unsafe {
        let positions = call!(RedisModule_GetCommandKeys, ctx, strings.as_ptr().cast_mut(), argc, &mut count);
        if positions.is_null() {
            return Ok(());
        }
        let copy = std::slice::from_raw_parts(positions, usize::try_from(count).unwrap_or(0)).to_vec();
        call!(RedisModule_Free, positions.cast());
        copy
    };
    let keys = positions.iter().filter_map(|at| strings.get(usize::try_from(*at).ok()?));
    for key in keys {
        // SAFETY: a string of the running command.
        if slot(unsafe { bytes(*key) }) != wanted {
            return Err(Error::CrossSlot);
        }
    }
    Ok(())
}
