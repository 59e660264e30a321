//! What RDB files carry besides keys: tags, version floors, the fencing reserve, locks and queues in limbo.
//!
//! A sequence of records (kind, bytes), each a string of the file and so framed by its length, ended by kind 0. Unknown kinds
//! are skipped, so that an older version can read what a newer one wrote.

use std::ffi::c_int;
use std::ptr::null_mut;

use redis_module::raw;

use super::api::{Ctx, ERR, OK, call};
use super::main_thread::{now, state};
use super::native_type::{load_buffer, save_buffer};
use super::shell::guarded;

const ENCODING: c_int = 0;
const END: u64 = 0;

/// Registers a data type that no key has: aux data belongs to a type.
pub(super) fn register(ctx: Ctx) -> bool {
    let mut methods = raw::RedisModuleTypeMethods {
        version: u64::from(raw::REDISMODULE_TYPE_METHOD_VERSION),
        rdb_load: Some(rdb_load),
        rdb_save: Some(rdb_save),
        aof_rewrite: None,
        mem_usage: None,
        digest: None,
        free: None,
        aux_load: Some(aux_load),
        // Redis 7.0 knows only this one, and it must always write something.
        aux_save: Some(aux_save),
        aux_save_triggers: raw::REDISMODULE_AUX_BEFORE_RDB as c_int,
        free_effort: None,
        unlink: None,
        copy: None,
        defrag: None,
        mem_usage2: None,
        free_effort2: None,
        unlink2: None,
        copy2: None,
        // Newer servers: what writes nothing leaves no trace, and the file loads without the module.
        aux_save2: Some(aux_save2),
    };
    // SAFETY: the context of the load, a NUL-terminated name and a table that the server copies.
    let handle = unsafe { call!(RedisModule_CreateDataType, ctx, c"kw-meta-1".as_ptr(), ENCODING, &mut methods) };
    !handle.is_null()
}

/// No key has this type; a file that says so is refused.
unsafe extern "C" fn rdb_load(_: *mut raw::RedisModuleIO, _: c_int) -> *mut std::ffi::c_void {
    null_mut()
}

unsafe extern "C" fn rdb_save(_: *mut raw::RedisModuleIO, _: *mut std::ffi::c_void) {}

unsafe extern "C" fn aux_save(io: *mut raw::RedisModuleIO, _when: c_int) {
    guarded("saving metadata", || {
        save_records(io);
        save_unsigned(io, END);
    });
}

unsafe extern "C" fn aux_save2(io: *mut raw::RedisModuleIO, _when: c_int) {
    guarded("saving metadata", || {
        if save_records(io) > 0 {
            save_unsigned(io, END);
        }
    });
}

fn save_records(io: *mut raw::RedisModuleIO) -> usize {
    let mut records = 0_usize;
    if state().config.save_metadata {
        state().save(&mut |kind, bytes| {
            save_unsigned(io, kind);
            save_buffer(io, bytes);
            records = records.saturating_add(1);
        });
    }
    records
}

fn save_unsigned(io: *mut raw::RedisModuleIO, value: u64) {
    // SAFETY: the stream of the running callback.
    unsafe { call!(RedisModule_SaveUnsigned, io, value) }
}

unsafe extern "C" fn aux_load(io: *mut raw::RedisModuleIO, encoding: c_int, _when: c_int) -> c_int {
    let loaded = guarded("loading metadata", || encoding == ENCODING && load_records(io).is_some());
    if loaded == Some(true) { OK } else { ERR }
}

fn load_records(io: *mut raw::RedisModuleIO) -> Option<()> {
    let moment = now().to_ms();
    loop {
        // SAFETY: the stream of the running callback.
        let (kind, failed) = unsafe { (call!(RedisModule_LoadUnsigned, io), call!(RedisModule_IsIOError, io) != 0) };
        if failed {
            return None;
        }
        if kind == END {
            return Some(());
        }
        let bytes = load_buffer(io)?;
        state().load(kind, &bytes, moment)?;
    }
}
