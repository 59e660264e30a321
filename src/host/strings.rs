//! The server's string objects.

use std::ptr::null_mut;

use super::api::{Str, call};

/// The bytes of a string object.
///
/// # Safety
/// `string` must be valid for `'a` and must not be changed in that time.
pub(super) unsafe fn bytes<'a>(string: Str) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: a valid string object, as the caller says; the server gives a pointer to `len` bytes.
    unsafe {
        let pointer = call!(RedisModule_StringPtrLen, string, &mut len);
        if pointer.is_null() { &[] } else { std::slice::from_raw_parts(pointer.cast(), len) }
    }
}

/// A string object of our own, freed when dropped.
pub(super) struct OwnedString(Str);

impl OwnedString {
    pub(super) fn new(bytes: &[u8]) -> OwnedString {
        // SAFETY: pointer and length of a slice; the server copies. A null context means: not managed by one.
        OwnedString(unsafe { call!(RedisModule_CreateString, null_mut(), bytes.as_ptr().cast(), bytes.len()) })
    }

    pub(super) fn raw(&self) -> Str {
        self.0
    }
}

impl Drop for OwnedString {
    fn drop(&mut self) {
        // SAFETY: created in `new`, freed once; the server counts its own references.
        unsafe { call!(RedisModule_FreeString, null_mut(), self.0) }
    }
}
