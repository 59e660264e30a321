//! A SPEC as the structures that COMMAND DOCS and COMMAND INFO are made from.

use std::ffi::{CString, c_char, c_int};
use std::ptr::null;

use redis_module::raw;

use super::api::{Ctx, call, call_newer, has, ok};
use super::atomic_migration;
use crate::spec::{Access, ArgSpec, CommandSpec, Container, Keys, Kind};

/// The C strings and arrays that a description points into. The server copies everything.
#[derive(Default)]
struct Arena {
    strings: Vec<CString>,
    arrays: Vec<Box<[raw::RedisModuleCommandArg]>>,
}

impl Arena {
    fn string(&mut self, text: &str) -> *const c_char {
        let Ok(string) = CString::new(text) else { return null() };
        let pointer = string.as_ptr();
        self.strings.push(string);
        pointer
    }

    /// An array of arguments, ended by one without a name.
    fn args(&mut self, specs: &[ArgSpec]) -> *mut raw::RedisModuleCommandArg {
        if specs.is_empty() {
            return std::ptr::null_mut();
        }
        let mut args: Vec<_> = specs.iter().map(|spec| self.arg(spec)).collect();
        args.push(END);
        let mut array = args.into_boxed_slice();
        let pointer = array.as_mut_ptr();
        self.arrays.push(array);
        pointer
    }

    fn arg(&mut self, spec: &ArgSpec) -> raw::RedisModuleCommandArg {
        let mut flags = raw::REDISMODULE_CMD_ARG_NONE;
        if spec.optional {
            flags |= raw::REDISMODULE_CMD_ARG_OPTIONAL;
        }
        if spec.multiple {
            flags |= raw::REDISMODULE_CMD_ARG_MULTIPLE;
        }
        raw::RedisModuleCommandArg {
            name: self.string(spec.name),
            type_: kind(spec.kind),
            key_spec_index: if spec.kind == Kind::Key { 0 } else { -1 },
            token: spec.token.map_or(null(), |token| self.string(token)),
            flags: flags as c_int,
            subargs: self.args(spec.parts),
            ..END
        }
    }
}

const END: raw::RedisModuleCommandArg = raw::RedisModuleCommandArg {
    name: null(),
    type_: 0,
    key_spec_index: -1,
    token: null(),
    summary: null(),
    since: null(),
    flags: 0,
    deprecated_since: null(),
    subargs: std::ptr::null_mut(),
    display_text: null(),
};

fn kind(kind: Kind) -> raw::RedisModuleCommandArgType {
    match kind {
        Kind::Key => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_KEY,
        Kind::String => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_STRING,
        Kind::Integer => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_INTEGER,
        Kind::Double => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_DOUBLE,
        Kind::UnixTime => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_UNIX_TIME,
        Kind::Token => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PURE_TOKEN,
        Kind::OneOf => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_ONEOF,
        Kind::Block => raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_BLOCK,
    }
}

static VERSION: raw::RedisModuleCommandInfoVersion = raw::RedisModuleCommandInfoVersion {
    version: 1,
    sizeof_historyentry: size_of::<raw::RedisModuleCommandHistoryEntry>(),
    sizeof_keyspec: size_of::<raw::RedisModuleCommandKeySpec>(),
    sizeof_arg: size_of::<raw::RedisModuleCommandArg>(),
};

/// The flags of a key spec for what a command does to its keys.
pub(super) fn access_flags(access: Access) -> u64 {
    u64::from(match access {
        Access::None => 0,
        Access::Read => raw::REDISMODULE_CMD_KEY_RO | raw::REDISMODULE_CMD_KEY_ACCESS,
        Access::Inspect => raw::REDISMODULE_CMD_KEY_RO,
        Access::Overwrite => raw::REDISMODULE_CMD_KEY_OW | raw::REDISMODULE_CMD_KEY_UPDATE,
        Access::Update => {
            raw::REDISMODULE_CMD_KEY_RW | raw::REDISMODULE_CMD_KEY_ACCESS | raw::REDISMODULE_CMD_KEY_UPDATE
        }
        Access::Delete => raw::REDISMODULE_CMD_KEY_RM | raw::REDISMODULE_CMD_KEY_DELETE,
    })
}

/// Must the command itself be asked where its keys are?
pub(super) fn is_asked_for_keys(spec: &CommandSpec) -> bool {
    spec.keys.are_told() && !atomic_migration::is_of_redis()
}

fn key_specs(spec: &CommandSpec) -> Vec<raw::RedisModuleCommandKeySpec> {
    let flags = access_flags(spec.access);
    let asked = is_asked_for_keys(spec);
    match spec.keys {
        Keys::None => vec![],
        Keys::First => vec![key_spec(flags, 1, Find::Range(0))],
        Keys::FirstTwo => vec![key_spec(flags, 1, Find::Range(1))],
        Keys::All => vec![key_spec(flags, 1, Find::Range(-1))],
        Keys::AllButFirst => vec![key_spec(flags, 2, Find::Range(-1))],
        // So that servers that would misread it ask the command, see `tell_keys`.
        Keys::Counted { step } if asked => {
            vec![key_spec(flags | u64::from(raw::REDISMODULE_CMD_KEY_INCOMPLETE), 1, Find::Counted(step))]
        }
        // What is sent on with a slot is looked at by ranges alone: by the first key, whose slot is that of all.
        Keys::Counted { step } => vec![
            key_spec(flags, 1, Find::Counted(step)),
            key_spec(flags | u64::from(raw::REDISMODULE_CMD_KEY_NOT_KEY), 2, Find::Range(0)),
        ],
        Keys::OfEffect if asked => vec![],
        // For a few effects this is a number: it costs a user more rights, and the effect is sent on with some slot, to no avail.
        Keys::OfEffect => vec![key_spec(flags, 2, Find::Range(0))],
    }
}

/// How the keys go on from the first.
enum Find {
    /// To this one, counted from the first, or from the end.
    Range(c_int),
    /// As many as the number before the first says, each this far from the one before.
    Counted(c_int),
}

fn key_spec(flags: u64, pos: c_int, find: Find) -> raw::RedisModuleCommandKeySpec {
    let (find_keys_type, fk) = match find {
        Find::Range(lastkey) => {
            let range = raw::RedisModuleCommandKeySpec__bindgen_ty_2__bindgen_ty_1 { lastkey, keystep: 1, limit: 0 };
            let kind = raw::RedisModuleKeySpecFindKeysType_REDISMODULE_KSPEC_FK_RANGE;
            (kind, raw::RedisModuleCommandKeySpec__bindgen_ty_2 { range })
        }
        Find::Counted(keystep) => {
            let keynum =
                raw::RedisModuleCommandKeySpec__bindgen_ty_2__bindgen_ty_2 { keynumidx: 0, firstkey: 1, keystep };
            let kind = raw::RedisModuleKeySpecFindKeysType_REDISMODULE_KSPEC_FK_KEYNUM;
            (kind, raw::RedisModuleCommandKeySpec__bindgen_ty_2 { keynum })
        }
    };
    raw::RedisModuleCommandKeySpec {
        notes: null(),
        flags,
        begin_search_type: raw::RedisModuleKeySpecBeginSearchType_REDISMODULE_KSPEC_BS_INDEX,
        bs: raw::RedisModuleCommandKeySpec__bindgen_ty_1 {
            index: raw::RedisModuleCommandKeySpec__bindgen_ty_1__bindgen_ty_1 { pos },
        },
        find_keys_type,
        fk,
    }
}

/// Describes a command that is nothing but its subcommands.
pub(super) fn describe_container(ctx: Ctx, container: &Container) -> bool {
    let mut arena = Arena::default();
    let info = raw::RedisModuleCommandInfo {
        version: &VERSION,
        summary: arena.string(container.summary),
        complexity: arena.string("Depends on subcommand."),
        since: arena.string("0.1.0"),
        history: std::ptr::null_mut(),
        tips: null(),
        arity: -2,
        key_specs: std::ptr::null_mut(),
        args: std::ptr::null_mut(),
    };
    let name = arena.string(container.name);
    // SAFETY: the context of the load; `info` points into `arena`, which lives through the call.
    unsafe {
        let command = call!(RedisModule_GetCommand, ctx, name);
        !command.is_null() && ok(call!(RedisModule_SetCommandInfo, command, &info))
    }
}

/// Describes a registered command to the server, and puts it into its ACL categories where the server lets modules do that.
pub(super) fn describe(ctx: Ctx, spec: &CommandSpec) -> bool {
    let mut arena = Arena::default();
    // SAFETY: zero is valid for every field: null pointers and 0.
    let end_of_key_specs: raw::RedisModuleCommandKeySpec = unsafe { std::mem::zeroed() };
    let mut key_specs = key_specs(spec);
    key_specs.push(end_of_key_specs);
    let info = raw::RedisModuleCommandInfo {
        version: &VERSION,
        summary: arena.string(spec.summary),
        complexity: arena.string(spec.complexity),
        since: arena.string(spec.since),
        history: std::ptr::null_mut(),
        tips: if spec.tips.is_empty() { null() } else { arena.string(&spec.tips.join(" ")) },
        arity: spec.arity,
        key_specs: key_specs.as_mut_ptr(),
        args: arena.args(spec.args),
    };
    let name = arena.string(spec.name);
    // SAFETY: the context of the load; `info` points into `arena` and `key_specs`, which live through the call, and its
    // arrays end as the server expects.
    unsafe {
        let command = call!(RedisModule_GetCommand, ctx, name);
        !command.is_null()
            && ok(call!(RedisModule_SetCommandInfo, command, &info))
            && categorize(command, spec, &mut arena)
    }
}

/// # Safety
/// `command` is a command of this module.
unsafe fn categorize(command: *mut raw::RedisModuleCommand, spec: &CommandSpec, arena: &mut Arena) -> bool {
    if !has!(RedisModule_SetCommandACLCategories) {
        return true;
    }
    let own = spec.family.category().filter(|_| has!(RedisModule_AddACLCategory));
    let categories = own.into_iter().chain(spec.categories()).collect::<Vec<_>>().join(" ");
    let categories = arena.string(&categories);
    // SAFETY: a command of ours and a NUL-terminated string that lives through the call.
    unsafe { ok(call_newer!(RedisModule_SetCommandACLCategories, command, categories)) }
}
