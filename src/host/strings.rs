//! The server's string objects.

use std::ptr::null_mut;

use super::api::{Str, call};

/// The bytes of a string object.
///
/// # Safety
/// `string` must be valid for `'a` and must not be changed in that time.
pub(super) unsafe fn bytes<'a>(string: Str) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: a valid string object, as the caller says; the server gives a pointer to `len` bytes, and never null.
    unsafe {
        let pointer = call!(RedisModule_StringPtrLen, string, &mut len);
        std::slice::from_raw_parts(pointer.cast(), len)
    }
}

/// A string object of our own, freed when dropped.
pub(super) struct OwnedString(Str);

impl OwnedString {
    pub(super) fn new(bytes: &[u8]) -> OwnedString {
        // SAFETY: pointer and length of a slice; the server copies. A null context means: not managed by one.
        OwnedString(unsafe { call!(RedisModule_CreateString, null_mut(), bytes.as_ptr().cast(), bytes.len()) })
    }

    pub(super) fn from_int(n: i64) -> OwnedString {
        // SAFETY: takes no pointer but the null context.
        OwnedString(unsafe { call!(RedisModule_CreateStringFromLongLong, null_mut(), n) })
    }

    /// Takes over a string that the server has made for us.
    pub(super) fn adopt(string: Str) -> OwnedString {
        OwnedString(string)
    }

    pub(super) fn raw(&self) -> Str {
        self.0
    }
}

impl Drop for OwnedString {
    fn drop(&mut self) {
        // SAFETY: created or adopted, freed once; the server counts its own references.
        unsafe { call!(RedisModule_FreeString, null_mut(), self.0) }
    }
}

/// Words that the source names, each made once: replicated effects begin with the same few.
#[derive(Default)]
pub(super) struct Words(Vec<(&'static str, OwnedString)>);

impl Words {
    pub(super) fn get(&mut self, word: &'static str) -> Str {
        // The same word of the source has the same address nearly always; where it has not, it is kept twice.
        let known = self.0.iter().find(|(text, _)| std::ptr::eq(*text, word));
        match known {
            Some((_, string)) => string.raw(),
            None => {
                let string = OwnedString::new(word.as_bytes());
                let raw = string.raw();
                self.0.push((word, string));
                raw
            }
        }
    }
}
