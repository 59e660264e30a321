//! What kind of server this is, asked once at load, and warnings about what it would do to the module's data.

use std::ffi::{CStr, c_int};

use super::api::{Ctx, Str, call};
use super::log::warning;
use super::main_thread::host;

/// Looks for what the operator should know, and for anybody who may listen to what is propagated.
pub(super) fn look(ctx: Ctx) {
    if ask(ctx, c"CONFIG", c"GET", c"aof-use-rdb-preamble", |reply| element(reply, 1)).as_deref() == Some(b"no") {
        warning(
            ctx,
            "keyward: with aof-use-rdb-preamble no, tags, versions, policies and rules are lost when the AOF is rewritten; set it to yes",
        );
    }
    if info(ctx, c"server").is_some_and(|text| text.contains("\r\nvalkey_version:8.1.")) {
        warning(
            ctx,
            "keyward: on Valkey 8.1, MOVE and COPY ... DB leave the client on the wrong database while any module listens to \
             key events; see docs/replication.md",
        );
    }
    // A module that is loaded into a running server finds replicas, or the backlog of one, without having seen them come.
    let alone = info(ctx, c"replication").is_some_and(|text| {
        text.contains("\r\nconnected_slaves:0\r\n") && text.contains("\r\nrepl_backlog_active:0\r\n")
    });
    host().audience |= !alone;
}

pub(super) fn is_valkey(ctx: Ctx) -> bool {
    info(ctx, c"server").is_some_and(|text| text.contains("\r\nvalkey_version:"))
}

fn info(ctx: Ctx, section: &CStr) -> Option<String> {
    let bytes = ask(ctx, c"INFO", section, c"", Some)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What CLUSTER says of this.
pub(super) fn cluster(ctx: Ctx, what: &CStr) -> Option<Vec<u8>> {
    ask(ctx, c"CLUSTER", what, c"", Some)
}

/// What INFO says without being asked for more.
pub(super) fn all(ctx: Ctx) -> String {
    info(ctx, c"default").unwrap_or_default()
}

/// What CLUSTER NODES says, where the server is a node of a cluster.
pub(super) fn cluster_nodes(ctx: Ctx) -> Option<Vec<u8>> {
    ask(ctx, c"CLUSTER", c"NODES", c"", Some)
}

/// The value of a setting.
pub(super) fn setting(ctx: Ctx, name: &CStr) -> Option<String> {
    let value = ask(ctx, c"CONFIG", c"GET", name, |reply| element(reply, 1))?;
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// Bytes of a key and its value; 0 if there is no such key.
pub(super) fn memory_usage(ctx: Ctx, key: Str) -> i64 {
    // SAFETY: the context of the running command, NUL-terminated words and a live string; the reply is checked for null and freed
    // once, and an integer is asked of no other kind of reply.
    unsafe {
        let reply = call!(RedisModule_Call, ctx, c"MEMORY".as_ptr(), c"cs".as_ptr(), c"USAGE".as_ptr(), key);
        if reply.is_null() {
            return 0;
        }
        let is_integer =
            call!(RedisModule_CallReplyType, reply) == redis_module::raw::REDISMODULE_REPLY_INTEGER as c_int;
        let bytes = if is_integer { call!(RedisModule_CallReplyInteger, reply) } else { 0 };
        call!(RedisModule_FreeCallReply, reply);
        bytes
    }
}

type Reply = *mut redis_module::raw::RedisModuleCallReply;

fn element(reply: Reply, index: usize) -> Option<Reply> {
    // SAFETY: a live reply; the server answers null where there is no such element.
    let element = unsafe { call!(RedisModule_CallReplyArrayElement, reply, index) };
    (!element.is_null()).then_some(element)
}

/// Calls a command with one or two arguments and copies the string that `part` finds in its reply.
fn ask(
    ctx: Ctx,
    command: &CStr,
    first: &CStr,
    second: &CStr,
    part: impl Fn(Reply) -> Option<Reply>,
) -> Option<Vec<u8>> {
    // SAFETY: the context of the load and NUL-terminated strings; the reply and its string are checked for null, the string is
    // copied, and the reply is freed once.
    unsafe {
        let reply = if second.is_empty() {
            call!(RedisModule_Call, ctx, command.as_ptr(), c"c".as_ptr(), first.as_ptr())
        } else {
            call!(RedisModule_Call, ctx, command.as_ptr(), c"cc".as_ptr(), first.as_ptr(), second.as_ptr())
        };
        if reply.is_null() {
            return None;
        }
        let mut len = 0;
        let text = part(reply).map(|reply| call!(RedisModule_CallReplyStringPtr, reply, &mut len));
        let found =
            text.filter(|text| !text.is_null()).map(|text| std::slice::from_raw_parts(text.cast::<u8>(), len).to_vec());
        call!(RedisModule_FreeCallReply, reply);
        found
    }
}
