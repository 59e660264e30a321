//! The entry of the module: what is registered, in which order.

use std::ffi::{CStr, CString, c_int};

use rand::RngExt;
use redis_module::raw;

use super::api::{Ctx, ERR, OK, Str, call, call_newer, has, missing, ok};
use super::command::entry;
use super::log::{notice, warning};
use super::main_thread::{begin, host, read_role, state};
use super::shell::guarded;
use super::strings::bytes;
use super::{
    atomic_migration, aux, cluster_bus, command_info, config, events, execute, info, native_type, server_info, slots,
    timer,
};
use crate::commands::{CONTAINERS, Command};
use crate::every_command;
use crate::ratelimit::commands::Throttle;
use crate::spec::{CommandSpec, Container, Keys};

type Entry = unsafe extern "C" fn(Ctx, *mut Str, c_int) -> c_int;

const NAME: &CStr = c"keyward";
/// The module's version as MODULE LIST shows it: major * 10000 + minor * 100 + patch.
const VERSION: c_int = 100;

/// What the server calls when it loads the module.
///
/// # Safety
/// Called by the server, once, on its main thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RedisModule_OnLoad(ctx: Ctx, argv: *mut Str, argc: c_int) -> c_int {
    // SAFETY: the context of the load. This fills in the function pointers; nothing of ours may run before it, since Rust's
    // allocator is one of them.
    if !ok(unsafe { raw::Export_RedisModule_Init(ctx, NAME.as_ptr(), VERSION, raw::REDISMODULE_APIVER_1 as c_int) }) {
        return ERR;
    }
    // SAFETY: on the main thread, and the first thing of ours.
    unsafe { begin() };
    let loaded = guarded("the load", || {
        // First of all: what is missing must not be called.
        if let Some(first) = missing().first() {
            warning(ctx, &format!("keyward: needs Redis 7.0 or Valkey 8.0 or later; this server has no {first}"));
            return false;
        }
        let argc = usize::try_from(argc).unwrap_or(0);
        let strings: &[Str] = if argc == 0 {
            &[]
        } else {
            // SAFETY: the server passes `argc` strings that live through the call.
            unsafe { std::slice::from_raw_parts(argv, argc) }
        };
        // SAFETY: as above.
        let arguments: Vec<&[u8]> = strings.iter().map(|string| unsafe { bytes(*string) }).collect();
        load(ctx, &arguments)
    });
    if loaded == Some(true) { OK } else { ERR }
}

fn load(ctx: Ctx, arguments: &[&[u8]]) -> bool {
    // SAFETY: the context of the load.
    unsafe { call!(RedisModule_SetModuleOptions, ctx, options(ctx) as c_int) };
    read_role(ctx);
    add_categories(ctx);
    // In this order: which commands there are is a setting, and what may fail because of how the server is configured comes
    // before the types, which a load that fails does not take back.
    if !config::load(ctx, arguments) {
        return false;
    }
    let registered = commands(ctx) && native_type::register_all(ctx) && aux::register(ctx) && info::register(ctx);
    if !registered {
        warning(ctx, "keyward: the server refused to register a type or a command");
        return false;
    }
    if !events::subscribe(ctx) {
        return false;
    }
    server_info::look(ctx);
    slots::begin(ctx);
    host().hit = execute::word(ctx, c"HIT");
    state().config_changed();
    state().cache.set_epoch(rand::rng().random());
    state().cluster.outbox.set_epoch(rand::rng().random());
    cluster_bus::register(ctx);
    timer::begin(ctx);
    notice(ctx, concat!("keyward ", env!("CARGO_PKG_VERSION"), " loaded"));
    true
}

fn options(ctx: Ctx) -> u32 {
    let own = raw::REDISMODULE_OPTIONS_HANDLE_IO_ERRORS | raw::REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED;
    own | atomic_migration::listen(ctx)
}

/// Adds the families' ACL categories where the server lets modules do that. One that is there already is fine.
fn add_categories(ctx: Ctx) {
    if !has!(RedisModule_AddACLCategory) {
        return;
    }
    for category in [c"cache", c"lock", c"ratelimit", c"writebehind"] {
        // SAFETY: the context of the load and a static string.
        unsafe {
            call_newer!(RedisModule_AddACLCategory, ctx, category.as_ptr());
        }
    }
}

fn commands(ctx: Ctx) -> bool {
    macro_rules! register {
        ($($command:ty,)*) => { true $(&& add(ctx, <$command>::SPEC, entry::<$command>))* };
    }
    let registered = CONTAINERS.iter().all(|container| add_container(ctx, container)) && every_command!(register);
    #[cfg(debug_assertions)]
    let registered = registered && add(ctx, &super::debug::SPEC, super::debug::entry);
    registered
}

fn add(ctx: Ctx, spec: &CommandSpec, entry: Entry) -> bool {
    // The one command that has its name from another module, which may be loaded as well.
    let borrowed = spec.name == Throttle::SPEC.name;
    let choice = if borrowed { state().config.cl_throttle } else { "yes" };
    if choice == "no" {
        return true;
    }
    if create(ctx, spec, entry) {
        return command_info::describe(ctx, spec);
    }
    let name = spec.name.to_ascii_uppercase();
    if choice == "auto" {
        notice(ctx, &format!("keyward: the server has a command {name} already; that of Keyward is left out"));
        return true;
    }
    warning(ctx, &format!("keyward: the server has a command {name} already"));
    false
}

fn add_container(ctx: Ctx, container: &Container) -> bool {
    let Ok(name) = CString::new(container.name) else { return false };
    // SAFETY: the context of the load and NUL-terminated strings that the server copies. Without a function of its own a command is
    // what its subcommands are.
    let created = unsafe { ok(call!(RedisModule_CreateCommand, ctx, name.as_ptr(), None, c"".as_ptr(), 0, 0, 0)) };
    created && command_info::describe_container(ctx, container)
}

fn create(ctx: Ctx, spec: &CommandSpec, entry: Entry) -> bool {
    let asked = command_info::is_asked_for_keys(spec).then_some("getkeys-api");
    let flags = spec.flags.iter().map(|flag| flag.word()).chain(asked).collect::<Vec<_>>().join(" ");
    let (container, name) = spec.subcommand().map_or((None, spec.name), |(container, name)| (Some(container), name));
    let (Ok(name), Ok(flags)) = (CString::new(name), CString::new(flags)) else { return false };
    let (first, last, step) = match spec.keys {
        Keys::None => (0, 0, 0),
        Keys::First => (1, 1, 1),
        Keys::FirstTwo => (1, 2, 1),
        Keys::All => (1, -1, 1),
        Keys::AllButFirst => (2, -1, 1),
        // What the old triple cannot say; the key spec does, and the command when it is asked.
        Keys::Counted { .. } | Keys::OfEffect => (0, 0, 0),
    };
    let (name, flags, entry) = (name.as_ptr(), flags.as_ptr(), Some(entry));
    // SAFETY: the context of the load, NUL-terminated strings that the server copies, and a function with its signature.
    unsafe {
        let Some(container) = container else {
            return ok(call!(RedisModule_CreateCommand, ctx, name, entry, flags, first, last, step));
        };
        let Ok(container) = CString::new(container) else { return false };
        let container = call!(RedisModule_GetCommand, ctx, container.as_ptr());
        !container.is_null()
            && ok(call!(RedisModule_CreateSubcommand, container, name, entry, flags, first, last, step))
    }
}
