//! Our own value types as module data types.

use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use redis_module::raw;

use super::api::{Ctx, Str, call};
use super::main_thread::{host, state};
use super::shell::guarded;
use super::strings::bytes;
use crate::lock::Lock;
use crate::native::NativeValue;
use crate::ratelimit::concurrency::Slots;
use crate::ratelimit::limiter::Limiter;
use crate::writebehind::Handle;

/// The version of all encodings; a file with another one is refused.
const ENCODING: c_int = 0;

/// The types, and the server's handles of them in the same order. The names are apart from what changes: so which one it is, is
/// known when this is compiled, and not looked for each time a key is opened.
const NAMES: [&str; 4] = [Lock::TYPE_NAME, Limiter::TYPE_NAME, Slots::TYPE_NAME, Handle::TYPE_NAME];
static HANDLES: [AtomicPtr<raw::RedisModuleType>; 4] = [const { AtomicPtr::new(null_mut()) }; 4];

fn registered<T: NativeValue>() -> Option<&'static AtomicPtr<raw::RedisModuleType>> {
    NAMES.iter().zip(&HANDLES).find_map(|(name, handle)| (*name == T::TYPE_NAME).then_some(handle))
}

fn handle<T: NativeValue>() -> *mut raw::RedisModuleType {
    registered::<T>().map_or(null_mut(), |handle| handle.load(Ordering::Relaxed))
}

/// Registers all types. False if the server refuses one.
pub(super) fn register_all(ctx: Ctx) -> bool {
    register::<Lock>(ctx) && register::<Limiter>(ctx) && register::<Slots>(ctx) && register::<Handle>(ctx)
}

fn register<T: NativeValue>(ctx: Ctx) -> bool {
    let mut methods = raw::RedisModuleTypeMethods {
        version: u64::from(raw::REDISMODULE_TYPE_METHOD_VERSION),
        rdb_load: Some(rdb_load::<T>),
        rdb_save: Some(rdb_save::<T>),
        aof_rewrite: Some(aof_rewrite::<T>),
        mem_usage: Some(mem_usage::<T>),
        digest: Some(digest::<T>),
        free: Some(free::<T>),
        defrag: Some(defrag),
        mem_usage2: Some(mem_usage2::<T>),
        unlink2: Some(unlink2::<T>),
        copy2: Some(copy2::<T>),
        aux_load: None,
        aux_save: None,
        aux_save_triggers: 0,
        free_effort: None,
        unlink: None,
        copy: None,
        free_effort2: Some(free_effort2::<T>),
        aux_save2: None,
    };
    let Ok(name) = CString::new(T::TYPE_NAME) else { return false };
    // SAFETY: the context of the load, a NUL-terminated name and a table that the server copies.
    let handle = unsafe { call!(RedisModule_CreateDataType, ctx, name.as_ptr(), ENCODING, &mut methods) };
    if let Some(registered) = registered::<T>() {
        registered.store(handle, Ordering::Relaxed);
    }
    !handle.is_null()
}

/// The value of an open key, if it is a `T`.
///
/// # Safety
/// `key` is open, or null, which the server takes for an empty one; the reference ends before the value is changed, moved or freed.
pub(super) unsafe fn value_of<'a, T: NativeValue>(key: *mut raw::RedisModuleKey) -> Option<&'a mut T> {
    // SAFETY: as above; a value of our type is a `Box<T>` that `put`, `rdb_load` or `copy2` made.
    unsafe {
        // Null for a key without a value of a module's type.
        let of = call!(RedisModule_ModuleTypeGetType, key);
        if of.is_null() || of != handle::<T>() {
            return None;
        }
        call!(RedisModule_ModuleTypeGetValue, key).cast::<T>().as_mut()
    }
}

/// Puts a value into a key.
///
/// # Safety
/// `key` is open for writing.
pub(super) unsafe fn put<T: NativeValue>(key: *mut raw::RedisModuleKey, value: T) {
    let boxed = Box::into_raw(Box::new(value));
    // SAFETY: as above; the server owns the box from now on and gives it to `free`, unless it refuses it.
    unsafe {
        if !super::api::ok(call!(RedisModule_ModuleTypeSetValue, key, handle::<T>(), boxed.cast())) {
            drop(Box::from_raw(boxed));
        }
    }
}

unsafe extern "C" fn rdb_load<T: NativeValue>(io: *mut raw::RedisModuleIO, encoding: c_int) -> *mut c_void {
    guarded("rdb_load", || {
        if encoding != ENCODING {
            return refuse(io, "was written by a newer version");
        }
        host().native_arrival = true;
        match load_buffer(io).as_deref().and_then(T::decode) {
            Some(value) => Box::into_raw(Box::new(value)).cast(),
            None => refuse(io, "is corrupt"),
        }
    })
    .unwrap_or(null_mut())
}

fn refuse(io: *mut raw::RedisModuleIO, why: &str) -> *mut c_void {
    let Ok(why) = CString::new(why) else { return null_mut() };
    // SAFETY: the stream of the running callback and NUL-terminated strings.
    unsafe {
        call!(RedisModule_LogIOError, io, c"warning".as_ptr(), c"keyward: a value %s".as_ptr(), why.as_ptr());
    }
    null_mut()
}

/// One string from an RDB stream; `None` when the stream ends or errs.
pub(super) fn load_buffer(io: *mut raw::RedisModuleIO) -> Option<Vec<u8>> {
    let mut len = 0;
    // SAFETY: the stream of the running callback. The server allocates the buffer, which is copied and freed once.
    unsafe {
        let buffer = call!(RedisModule_LoadStringBuffer, io, &mut len);
        if buffer.is_null() {
            return None;
        }
        let bytes = std::slice::from_raw_parts(buffer.cast::<u8>(), len).to_vec();
        call!(RedisModule_Free, buffer.cast());
        (call!(RedisModule_IsIOError, io) == 0).then_some(bytes)
    }
}

pub(super) fn save_buffer(io: *mut raw::RedisModuleIO, bytes: &[u8]) {
    // SAFETY: the stream of the running callback; pointer and length of a slice.
    unsafe { call!(RedisModule_SaveStringBuffer, io, bytes.as_ptr().cast(), bytes.len()) }
}

/// A value as the server passes it to the callbacks of its type.
///
/// # Safety
/// `value` is what `put`, `rdb_load` or `copy2` of the same type made, and not freed.
unsafe fn borrow<'a, T>(value: *const c_void) -> &'a T {
    // SAFETY: as above.
    unsafe { &*value.cast::<T>() }
}

unsafe extern "C" fn rdb_save<T: NativeValue>(io: *mut raw::RedisModuleIO, value: *mut c_void) {
    // SAFETY: a live value of this type.
    guarded("rdb_save", || save_buffer(io, &unsafe { borrow::<T>(value) }.encode(state())));
}

unsafe extern "C" fn aof_rewrite<T: NativeValue>(io: *mut raw::RedisModuleIO, key: Str, value: *mut c_void) {
    guarded("aof_rewrite", || {
        // SAFETY: a live value of this type.
        let bytes = unsafe { borrow::<T>(value) }.encode(state());
        // SAFETY: the stream of the running callback; "scbb": a live string, a NUL-terminated word, and two buffers with
        // their lengths.
        unsafe {
            call!(
                RedisModule_EmitAOF,
                io,
                c"KEYWARD.APPLY".as_ptr(),
                c"csbb".as_ptr(),
                c"VALUE".as_ptr(),
                key,
                T::TYPE_NAME.as_ptr(),
                T::TYPE_NAME.len(),
                bytes.as_ptr(),
                bytes.len(),
            );
        }
    });
}

unsafe extern "C" fn mem_usage<T: NativeValue>(value: *const c_void) -> usize {
    // SAFETY: a live value of this type.
    guarded("mem_usage", || unsafe { borrow::<T>(value) }.memory(state())).unwrap_or(0)
}

unsafe extern "C" fn mem_usage2<T: NativeValue>(
    _: *mut raw::RedisModuleKeyOptCtx,
    value: *const c_void,
    _: usize,
) -> usize {
    // SAFETY: a live value of this type.
    unsafe { mem_usage::<T>(value) }
}

/// Beyond 64 the server frees the value in the background, where it is allowed to.
unsafe extern "C" fn free_effort2<T: NativeValue>(_: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) -> usize {
    // SAFETY: a live value of this type.
    guarded("free_effort", || unsafe { borrow::<T>(value) }.pieces()).unwrap_or(1)
}

unsafe extern "C" fn digest<T: NativeValue>(digest: *mut raw::RedisModuleDigest, value: *mut c_void) {
    guarded("digest", || {
        // SAFETY: a live value of this type.
        let bytes = unsafe { borrow::<T>(value) }.encode(state());
        // SAFETY: the digest of the running callback; pointer and length of a slice.
        unsafe {
            call!(RedisModule_DigestAddStringBuffer, digest, bytes.as_ptr().cast(), bytes.len());
            call!(RedisModule_DigestEndSequence, digest);
        }
    });
}

/// May run on a background thread: drops memory and touches nothing else.
unsafe extern "C" fn free<T: NativeValue>(value: *mut c_void) {
    // SAFETY: the server gives each value back once.
    let value = unsafe { Box::from_raw(value.cast::<T>()) };
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(value)));
}

/// Moves the value to where the server's allocator would rather have it.
unsafe extern "C" fn defrag(ctx: *mut raw::RedisModuleDefragCtx, _: Str, value: *mut *mut c_void) -> c_int {
    // SAFETY: the server copies the bytes of the box to its new place and frees the old one; a Rust value may be moved so.
    unsafe {
        let moved = call!(RedisModule_DefragAlloc, ctx, *value);
        if !moved.is_null() {
            *value = moved;
        }
    }
    0
}

/// The value leaves the name it had; which event follows tells why.
unsafe extern "C" fn unlink2<T: NativeValue>(of: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) {
    guarded("unlink", || {
        // SAFETY: the context of this callback; the server's string lives through it.
        let (db, key) = unsafe {
            let key = call!(RedisModule_GetKeyNameFromOptCtx, of);
            (call!(RedisModule_GetDbIdFromOptCtx, of), bytes(key.cast_mut()))
        };
        // SAFETY: a live value of this type, a box of ours that nobody else looks at now: the server calls this on the
        // main thread, before it hands the value to whoever frees it.
        let value = unsafe { &mut *value.cast_mut().cast::<T>() };
        value.unlinked(usize::try_from(db).unwrap_or(0), key, state());
    });
    host().native_arrival = true;
}

unsafe extern "C" fn copy2<T: NativeValue>(_: *mut raw::RedisModuleKeyOptCtx, value: *const c_void) -> *mut c_void {
    guarded("copy", || {
        host().native_arrival = true;
        // SAFETY: a live value of this type.
        let copy = unsafe { borrow::<T>(value) }.copied(state());
        copy.map_or(null_mut(), |copy| Box::into_raw(Box::new(copy)).cast())
    })
    .unwrap_or(null_mut())
}
