//! The INFO sections.

use std::ffi::{CString, c_int};

use redis_module::raw;

use super::api::{Ctx, call, ok};
use super::main_thread::{now, state};
use super::shell::guarded;
use crate::metrics::SECTIONS;

pub(super) fn register(ctx: Ctx) -> bool {
    // SAFETY: the context of the load and a callback with the signature the server expects.
    ok(unsafe { call!(RedisModule_RegisterInfoFunc, ctx, Some(on_info)) })
}

unsafe extern "C" fn on_info(ctx: *mut raw::RedisModuleInfoCtx, for_crash_report: c_int) {
    if for_crash_report != 0 {
        // The crash may have come in the middle of a change to what would be read here.
        return;
    }
    guarded("INFO", || {
        let now = now().to_ms();
        for section in SECTIONS {
            let Ok(name) = CString::new(section.name) else { continue };
            // SAFETY: the context of the running callback and NUL-terminated strings that live through the call.
            unsafe {
                if !ok(call!(RedisModule_InfoAddSection, ctx, name.as_ptr())) {
                    continue;
                }
                for metric in section.metrics {
                    let Ok(name) = CString::new(metric.name) else { continue };
                    call!(RedisModule_InfoAddFieldULongLong, ctx, name.as_ptr(), metric.value(state(), now));
                }
            }
        }
    });
}
