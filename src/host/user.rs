//! The user that a command runs as, and what it may do.

use std::ffi::c_int;

use redis_module::raw;

use super::api::{Ctx, call, ok};
use super::main_thread::flags;
use super::strings::{OwnedString, bytes};
use crate::server::{Permission, UserName};

/// A user by name; `None`: another module makes the call, which has no user.
pub(super) struct User(Option<OwnedString>);

impl User {
    /// Of the running command, unless that runs within another one, which lends it a client.
    pub(super) fn of(ctx: Ctx) -> User {
        let nested = raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING;
        let scripted = raw::REDISMODULE_CTX_FLAGS_LUA | raw::REDISMODULE_CTX_FLAGS_MULTI;
        let flags = flags(ctx);
        if flags & nested != 0 && flags & scripted == 0 {
            // Redis 7.0 crashes when asked for the name of nobody.
            return User(None);
        }
        // SAFETY: the context of the running command; a name that is not null is ours to free.
        let name = unsafe { call!(RedisModule_GetCurrentUserName, ctx) };
        User((!name.is_null()).then(|| OwnedString::adopt(name)))
    }

    pub(super) fn named(name: &UserName) -> User {
        User(name.as_deref().map(OwnedString::new))
    }

    pub(super) fn name(&self) -> UserName {
        // SAFETY: a live string of ours.
        self.0.as_ref().map(|name| unsafe { bytes(name.raw()) }.into())
    }

    /// May the user do this to the key?
    pub(super) fn may(&self, permission: Permission, key: &[u8]) -> bool {
        let Some(name) = &self.0 else { return true };
        let access = match permission {
            Permission::Read => raw::REDISMODULE_CMD_KEY_ACCESS,
            Permission::Delete => raw::REDISMODULE_CMD_KEY_DELETE,
        };
        let key = OwnedString::new(key);
        // SAFETY: live strings; the user is checked for null, which is one that was deleted, and freed once.
        unsafe {
            let user = call!(RedisModule_GetModuleUserFromUserName, name.raw());
            if user.is_null() {
                return false;
            }
            let allowed = call!(RedisModule_ACLCheckKeyPermissions, user, key.raw(), access as c_int);
            call!(RedisModule_FreeModuleUser, user);
            ok(allowed)
        }
    }
}
