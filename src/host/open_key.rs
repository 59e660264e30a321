//! A key that the server has opened for the module.

use std::ffi::c_int;

use redis_module::raw;

use super::api::{Ctx, Str, call};
use super::strings::{OwnedString, bytes};
use crate::args::Arg;

/// The key that was opened last. Most commands use one key several times, and opening costs a lookup.
pub(super) struct OpenKey {
    pub(super) position: usize,
    pub(super) mode: c_int,
    name: KeyName,
    pub(super) key: *mut raw::RedisModuleKey,
}

enum KeyName {
    Argument(Str),
    Own(OwnedString),
}

impl KeyName {
    #[inline]
    fn raw(&self) -> Str {
        match self {
            KeyName::Argument(name) => *name,
            KeyName::Own(name) => name.raw(),
        }
    }
}

impl OpenKey {
    /// The key of this argument, or of a name that is none of the command's arguments.
    #[inline(always)]
    pub(super) fn of(ctx: Ctx, argv: &[Str], key: Arg<'_>, mode: c_int) -> OpenKey {
        let name = match argv.get(key.position) {
            Some(name) => KeyName::Argument(*name),
            None => KeyName::Own(OwnedString::new(key.bytes)),
        };
        OpenKey::new(ctx, key.position, name, mode)
    }

    /// The key of this name, which is none of the command's arguments.
    pub(super) fn named(ctx: Ctx, name: OwnedString, mode: c_int) -> OpenKey {
        OpenKey::new(ctx, usize::MAX, KeyName::Own(name), mode)
    }

    #[inline(always)]
    fn new(ctx: Ctx, position: usize, name: KeyName, mode: c_int) -> OpenKey {
        // SAFETY: the context of the running callback and a live string.
        let key = unsafe { call!(RedisModule_OpenKey, ctx, name.raw(), mode) };
        OpenKey { position, mode, name, key }
    }

    #[inline]
    pub(super) fn name(&self) -> Str {
        self.name.raw()
    }

    /// A key that is no argument goes by its name. It must not be opened twice: outside commands time goes on, and it might expire
    /// between a look at it and a change of it, which would be lost.
    #[inline]
    pub(super) fn is_of(&self, key: Arg<'_>) -> bool {
        self.position == key.position
            && match &self.name {
                KeyName::Argument(_) => true,
                // SAFETY: a live string of ours.
                KeyName::Own(name) => unsafe { bytes(name.raw()) == key.bytes },
            }
    }

    #[inline]
    pub(super) fn kind(&self) -> c_int {
        // SAFETY: an open key, or null, which the server takes for an empty one.
        unsafe { call!(RedisModule_KeyType, self.key) }
    }
}

impl Drop for OpenKey {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; null is allowed.
        unsafe { call!(RedisModule_CloseKey, self.key) }
    }
}
