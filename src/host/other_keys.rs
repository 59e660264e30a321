//! Keys that are none of the running command's arguments: those that an invalidation unlinks, and those that are drawn at random.

use std::ffi::CStr;

use redis_module::raw;

use super::api::{Str, call};
use super::keyspace::{EMPTY, NO_TOUCH, OWN_EVENTS, Running, WRITE};
use super::main_thread::state;
use super::open_key::OpenKey;
use super::strings::{OwnedString, bytes};
use super::{replicate, server_info};
use crate::clock::UnixMs;
use crate::doctor::Drawn;
use crate::server::Expiry;

impl Running<'_> {
    /// `event`: what is told of each key besides `del`.
    pub(super) fn unlink_each(&mut self, keys: &[&[u8]], event: Option<&CStr>) -> usize {
        self.close();
        let mut unlinked: Vec<OwnedString> = Vec::with_capacity(keys.len());
        let (invalidated, event) = (event.is_some(), event.filter(|_| self.is_heard()));
        for key in keys {
            let name = OwnedString::new(key);
            if self.unlink_one(name.raw()) {
                if invalidated {
                    state().cache.was_invalidated(key);
                }
                if let Some(event) = event {
                    self.notify(OWN_EVENTS, event, name.raw());
                }
                unlinked.push(name);
            }
        }
        replicate::unlinked(self.ctx, &unlinked);
        unlinked.len()
    }

    /// `None`: the database is empty.
    pub(super) fn draw_key(&mut self) -> Option<Drawn> {
        // SAFETY: the context of the running command; a name that is not null is ours to free.
        let name = unsafe { call!(RedisModule_RandomKey, self.ctx) };
        let name = (!name.is_null()).then(|| OwnedString::adopt(name))?;
        // Opened as in `exists`, for the same reason.
        let open = OpenKey::named(self.ctx, name, WRITE | NO_TOUCH);
        // SAFETY: a live string of ours, and an open key.
        let (text, at) = unsafe { (bytes(open.name()), call!(RedisModule_GetAbsExpire, open.key)) };
        let expiry = if at < 0 { Expiry::Never } else { Expiry::At(UnixMs(at)) };
        let size = server_info::memory_usage(self.ctx, open.name());
        Some(Drawn { name: text.into(), expiry, bytes: u64::try_from(size).unwrap_or(0) })
    }

    /// Unlinks a key that may be anywhere: unlike a call of UNLINK this works across slots in a cluster.
    fn unlink_one(&mut self, name: Str) -> bool {
        // SAFETY: the context of the running callback, a live string, and a key that is closed in every case.
        let was_there = unsafe {
            let key = call!(RedisModule_OpenKey, self.ctx, name, WRITE | NO_TOUCH);
            let was_there = !key.is_null() && call!(RedisModule_KeyType, key) != EMPTY;
            if was_there {
                call!(RedisModule_UnlinkKey, key);
            }
            call!(RedisModule_CloseKey, key);
            was_there
        };
        if was_there {
            self.signal(name);
            self.notify(raw::REDISMODULE_NOTIFY_GENERIC, c"del", name);
        }
        was_there
    }
}
