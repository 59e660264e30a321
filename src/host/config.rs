//! Settings as module configs: `keyward.<name>` in redis.conf, CONFIG SET, MODULE LOADEX, and `<name> value` pairs after
//! `loadmodule`.

use std::ffi::{CString, c_char, c_int, c_longlong, c_void};

use redis_module::raw;

use super::api::{Ctx, call, ok};
use super::log::warning;
use super::main_thread::state;
use super::shell::guarded;
use crate::config::{Kind, SETTINGS, Setting};

/// Registers every setting, applies redis.conf and MODULE LOADEX, then the arguments of the load. False, with the reason
/// in the log, when a name is unknown or a value is bad.
pub(super) fn load(ctx: Ctx, arguments: &[&[u8]]) -> bool {
    let Some(defaults) = from_arguments(ctx, arguments) else { return false };
    let registered = SETTINGS.iter().zip(&defaults).all(|(setting, default)| register(ctx, setting, *default));
    // SAFETY: the context of the load.
    registered && ok(unsafe { call!(RedisModule_LoadConfigs, ctx) })
}

/// The default of each setting with the arguments of the load applied, as integers; a word by its position.
fn from_arguments(ctx: Ctx, arguments: &[&[u8]]) -> Option<Vec<i64>> {
    let mut values: Vec<i64> = SETTINGS
        .iter()
        .map(|setting| match setting.kind {
            Kind::Int { default, .. } => default,
            Kind::Bool { default, .. } => i64::from(default),
            Kind::Word { .. } => 0,
        })
        .collect();
    for pair in arguments.chunks(2) {
        let (name, value) = match pair {
            [name, value] => (String::from_utf8_lossy(name), *value),
            [name] => {
                warning(ctx, &format!("keyward: setting '{}' has no value", String::from_utf8_lossy(name)));
                return None;
            }
            _ => return None,
        };
        let bare = name.strip_prefix("keyward.").unwrap_or(&name);
        let found = SETTINGS.iter().zip(&mut values).find(|(setting, _)| setting.name.eq_ignore_ascii_case(bare));
        let Some((setting, slot)) = found else {
            warning(ctx, &format!("keyward: unknown setting '{name}'"));
            return None;
        };
        match parse(setting, value) {
            Some(parsed) => *slot = parsed,
            None => {
                warning(ctx, &format!("keyward: bad value for setting '{}': {}", setting.name, range(setting)));
                return None;
            }
        }
    }
    Some(values)
}

fn parse(setting: &Setting, value: &[u8]) -> Option<i64> {
    match setting.kind {
        Kind::Int { min, max, .. } => crate::args::parse_int(value).filter(|n| (min..=max).contains(n)),
        Kind::Bool { .. } if value.eq_ignore_ascii_case(b"yes") => Some(1),
        Kind::Bool { .. } if value.eq_ignore_ascii_case(b"no") => Some(0),
        Kind::Bool { .. } => None,
        Kind::Word { words, .. } => {
            let position = words.iter().position(|word| value.eq_ignore_ascii_case(word.as_bytes()));
            position.and_then(|position| i64::try_from(position).ok())
        }
    }
}

fn range(setting: &Setting) -> String {
    match setting.kind {
        Kind::Int { min, max, .. } => format!("an integer from {min} to {max}"),
        Kind::Bool { .. } => "yes or no".to_owned(),
        Kind::Word { words, .. } => format!("one of {}", words.join(", ")),
    }
}

/// The words that a setting may have; a setting of another kind has none.
fn words(setting: &Setting) -> &'static [&'static str] {
    match setting.kind {
        Kind::Word { words, .. } => words,
        Kind::Int { .. } | Kind::Bool { .. } => &[],
    }
}

fn register(ctx: Ctx, setting: &'static Setting, default: i64) -> bool {
    let Ok(name) = CString::new(setting.name) else { return false };
    let flags = if setting.mutable { raw::REDISMODULE_CONFIG_DEFAULT } else { raw::REDISMODULE_CONFIG_IMMUTABLE };
    let private: *mut c_void = std::ptr::from_ref(setting).cast_mut().cast();
    let words: Vec<CString> = words(setting).iter().filter_map(|word| CString::new(*word).ok()).collect();
    let mut texts: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    let positions: Vec<c_int> = (0..).take(texts.len()).collect();
    // SAFETY: the context of the load, NUL-terminated texts and numbers that the server copies, and callbacks that get
    // `private` back: a setting that lives for ever and is only read.
    ok(unsafe {
        match setting.kind {
            Kind::Int { min, max, .. } => call!(
                RedisModule_RegisterNumericConfig,
                ctx,
                name.as_ptr(),
                default,
                flags,
                min,
                max,
                Some(get_int),
                Some(set_int),
                None,
                private
            ),
            Kind::Bool { .. } => call!(
                RedisModule_RegisterBoolConfig,
                ctx,
                name.as_ptr(),
                c_int::from(default != 0),
                flags,
                Some(get_bool),
                Some(set_bool),
                None,
                private
            ),
            Kind::Word { .. } => call!(
                RedisModule_RegisterEnumConfig,
                ctx,
                name.as_ptr(),
                c_int::try_from(default).unwrap_or(0),
                flags,
                texts.as_mut_ptr(),
                positions.as_ptr(),
                c_int::try_from(texts.len()).unwrap_or(0),
                Some(get_word),
                Some(set_word),
                None,
                private
            ),
        }
    })
}

/// The setting that a config callback is about.
///
/// # Safety
/// `private` is what `register` passed.
unsafe fn setting(private: *mut c_void) -> &'static Setting {
    // SAFETY: as above.
    unsafe { &*private.cast::<Setting>() }
}

unsafe extern "C" fn get_int(_: *const c_char, private: *mut c_void) -> c_longlong {
    guarded("CONFIG GET", || {
        // SAFETY: our own setting.
        match unsafe { setting(private) }.kind {
            Kind::Int { field, .. } => *field(&mut state().config),
            Kind::Bool { .. } | Kind::Word { .. } => 0,
        }
    })
    .unwrap_or(0)
}

/// The server has checked the range.
unsafe extern "C" fn set_int(
    _: *const c_char,
    value: c_longlong,
    private: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    guarded("CONFIG SET", || {
        // SAFETY: our own setting.
        if let Kind::Int { field, .. } = unsafe { setting(private) }.kind {
            *field(&mut state().config) = value;
            state().config_changed();
        }
    });
    super::api::OK
}

unsafe extern "C" fn get_bool(_: *const c_char, private: *mut c_void) -> c_int {
    guarded("CONFIG GET", || {
        // SAFETY: our own setting.
        match unsafe { setting(private) }.kind {
            Kind::Bool { field, .. } => c_int::from(*field(&mut state().config)),
            Kind::Int { .. } | Kind::Word { .. } => 0,
        }
    })
    .unwrap_or(0)
}

unsafe extern "C" fn set_bool(
    _: *const c_char,
    value: c_int,
    private: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    guarded("CONFIG SET", || {
        // SAFETY: our own setting.
        if let Kind::Bool { field, .. } = unsafe { setting(private) }.kind {
            *field(&mut state().config) = value != 0;
        }
    });
    super::api::OK
}

unsafe extern "C" fn get_word(_: *const c_char, private: *mut c_void) -> c_int {
    guarded("CONFIG GET", || {
        // SAFETY: our own setting.
        match unsafe { setting(private) }.kind {
            Kind::Word { words, field } => {
                let now = *field(&mut state().config);
                words.iter().position(|word| *word == now).and_then(|position| c_int::try_from(position).ok())
            }
            Kind::Int { .. } | Kind::Bool { .. } => None,
        }
    })
    .flatten()
    .unwrap_or(0)
}

/// `value` is the position of a word.
unsafe extern "C" fn set_word(
    _: *const c_char,
    value: c_int,
    private: *mut c_void,
    _: *mut *mut raw::RedisModuleString,
) -> c_int {
    guarded("CONFIG SET", || {
        // SAFETY: our own setting.
        if let Kind::Word { words, field } = unsafe { setting(private) }.kind
            && let Some(word) = usize::try_from(value).ok().and_then(|position| words.get(position))
        {
            *field(&mut state().config) = word;
        }
    });
    super::api::OK
}
