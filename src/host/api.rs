//! The module API as function pointers that the server filled in. Which of them a server has differs by version, so
//! what every command needs is checked once at load, and newer ones are asked for by presence, never by version.

use redis_module::raw;

/// Calls a function of the module API that the load has found to be there: one that is not [`Required`] does not compile. To be used
/// in an `unsafe` block: the server fills the pointers in before it calls anything else of ours and never changes them; why the
/// arguments are good is the caller's to say.
macro_rules! call {
    ($name:ident $(, $arg:expr)* $(,)?) => {{
        let _ = $crate::host::api::Required::$name;
        (redis_module::raw::$name.unwrap_unchecked())($($arg),*)
    }};
}
pub(super) use call;

/// The same for a function that only newer servers have.
macro_rules! call_newer {
    ($name:ident $(, $arg:expr)* $(,)?) => {
        match redis_module::raw::$name {
            Some(function) => function($($arg),*),
            None => $crate::host::api::absent(stringify!($name)),
        }
    };
}
pub(super) use call_newer;

/// Is this function of the API there? For what only newer servers have.
macro_rules! has {
    ($name:ident) => {
        // SAFETY: the server fills the pointers in before it calls anything else of ours, and never changes them.
        unsafe {
            // A copy of the pointer: a reference to a mutable static is not allowed.
            let function = redis_module::raw::$name;
            function.is_some()
        }
    };
}
pub(super) use has;

/// Cannot happen where [`has!`] was asked first; a panic is caught by the shell round every callback.
#[cold]
#[allow(clippy::panic, reason = "caught by the shell; the alternative is undefined behaviour")]
pub(super) fn absent(name: &str) -> ! {
    panic!("the server has no {name}")
}

macro_rules! required {
    ($($name:ident),* $(,)?) => {
        /// What this module cannot do without.
        #[allow(non_camel_case_types, dead_code, reason = "names of the API, for `call!` to look at when this is compiled")]
        pub(super) enum Required {
            $($name),*
        }

        /// The names of functions that this module cannot do without and this server does not have.
        pub(super) fn missing() -> Vec<&'static str> {
            let mut names = Vec::new();
            $(if !has!($name) {
                names.push(stringify!($name));
            })*
            names
        }
    };
}

required! {
    RedisModule_Alloc, RedisModule_Calloc, RedisModule_Realloc, RedisModule_Free,
    RedisModule_AvoidReplicaTraffic, RedisModule_BlockClient, RedisModule_Call, RedisModule_CallReplyArrayElement,
    RedisModule_CallReplyInteger, RedisModule_CallReplyStringPtr, RedisModule_CallReplyType, RedisModule_FreeCallReply, RedisModule_CloseKey, RedisModule_CreateCommand, RedisModule_CreateDataType,
    RedisModule_CreateString, RedisModule_CreateSubcommand, RedisModule_CreateStringFromLongLong, RedisModule_CreateTimer, RedisModule_DefragAlloc, RedisModule_DeleteKey, RedisModule_DigestAddStringBuffer, RedisModule_DigestEndSequence,
    RedisModule_EmitAOF, RedisModule_FreeString, RedisModule_GetAbsExpire, RedisModule_GetBlockedClientHandle,
    RedisModule_GetBlockedClientPrivateData, RedisModule_GetClientId, RedisModule_GetCommand, RedisModule_GetCommandKeys, RedisModule_GetContextFlags,
    RedisModule_GetCurrentUserName, RedisModule_GetNotifyKeyspaceEvents, RedisModule_GetDbIdFromOptCtx, RedisModule_GetKeyNameFromOptCtx,
    RedisModule_GetModuleUserFromUserName, RedisModule_GetMyClusterID,
    RedisModule_FreeModuleUser, RedisModule_ACLCheckKeyPermissions, RedisModule_GetSelectedDb,
    RedisModule_InfoAddFieldULongLong, RedisModule_InfoAddSection, RedisModule_IsIOError, RedisModule_IsKeysPositionRequest, RedisModule_KeyAtPosWithFlags,
    RedisModule_KeyType, RedisModule_LatencyAddSample, RedisModule_LoadConfigs, RedisModule_LoadStringBuffer, RedisModule_LoadUnsigned,
    RedisModule_Log, RedisModule_LogIOError, RedisModule_ModuleTypeGetType, RedisModule_ModuleTypeGetValue,
    RedisModule_ModuleTypeSetValue, RedisModule_NotifyKeyspaceEvent, RedisModule_OpenKey, RedisModule_RandomKey, RedisModule_RegisterClusterMessageReceiver, RedisModule_RegisterBoolConfig,
    RedisModule_RegisterEnumConfig, RedisModule_RegisterInfoFunc, RedisModule_RegisterNumericConfig, RedisModule_Replicate,
    RedisModule_ReplicateVerbatim, RedisModule_ReplyWithArray, RedisModule_ReplyWithCallReply, RedisModule_ReplyWithDouble, RedisModule_ReplyWithError, RedisModule_ReplyWithLongLong,
    RedisModule_ReplyWithMap, RedisModule_ReplyWithNull, RedisModule_ReplyWithSet, RedisModule_ReplyWithSimpleString,
    RedisModule_ReplyWithStringBuffer, RedisModule_SaveStringBuffer, RedisModule_SaveUnsigned, RedisModule_SelectDb, RedisModule_SendClusterMessage,
    RedisModule_SetAbsExpire, RedisModule_SetCommandInfo, RedisModule_SetDisconnectCallback, RedisModule_SetExpire,
    RedisModule_SetModuleOptions, RedisModule_SignalModifiedKey, RedisModule_StopTimer, RedisModule_StringDMA, RedisModule_StringPtrLen, RedisModule_StringSet,
    RedisModule_SubscribeToKeyspaceEvents, RedisModule_SubscribeToServerEvent, RedisModule_UnblockClient,
    RedisModule_UnlinkKey,
}

/// What the server calls its things.
pub(super) type Ctx = *mut raw::RedisModuleCtx;
pub(super) type Str = *mut raw::RedisModuleString;

/// Did the server answer REDISMODULE_OK?
pub(super) fn ok(status: std::ffi::c_int) -> bool {
    status == raw::REDISMODULE_OK as std::ffi::c_int
}

pub(super) const OK: std::ffi::c_int = raw::REDISMODULE_OK as std::ffi::c_int;
pub(super) const ERR: std::ffi::c_int = raw::REDISMODULE_ERR as std::ffi::c_int;
