//! The server's log.

use std::ffi::{CStr, CString};

use super::api::{Ctx, call};

/// Logs a line. The text is an argument of `%s`, never the format: percent signs in it are harmless.
pub(super) fn log(ctx: Ctx, level: &CStr, text: &str) {
    let line: Vec<u8> = text.bytes().filter(|&byte| byte != 0).collect();
    let Ok(line) = CString::new(line) else { return };
    // SAFETY: NUL-terminated strings that live through the call; a null context is allowed.
    unsafe { call!(RedisModule_Log, ctx, level.as_ptr(), c"%s".as_ptr(), line.as_ptr()) }
}

pub(super) fn notice(ctx: Ctx, text: &str) {
    log(ctx, c"notice", text);
}

pub(super) fn warning(ctx: Ctx, text: &str) {
    log(ctx, c"warning", text);
}
