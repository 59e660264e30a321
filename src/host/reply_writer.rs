//! Writes a [`Reply`] in the protocol version of the client.

use std::ffi::{CString, c_long};

use super::api::{Ctx, call};
use super::main_thread::host;
use crate::error::Error;
use crate::reply::Reply;

/// Sends the reply. The server itself turns maps and sets into arrays for RESP2 clients. Takes the reply over, since what
/// most replies are made of needs no freeing.
pub(super) fn write(ctx: Ctx, reply: Reply<'_>) {
    // SAFETY: `ctx` is the context of the running command; every pointer comes from a live slice with its length.
    unsafe {
        match reply {
            Reply::Ok => {
                call!(RedisModule_ReplyWithSimpleString, ctx, c"OK".as_ptr());
            }
            Reply::Nil => {
                call!(RedisModule_ReplyWithNull, ctx);
            }
            Reply::Int(n) => {
                call!(RedisModule_ReplyWithLongLong, ctx, n);
            }
            Reply::Double(n) => {
                call!(RedisModule_ReplyWithDouble, ctx, n);
            }
            Reply::Ints(numbers) => {
                call!(RedisModule_ReplyWithArray, ctx, length(numbers.len()));
                for n in &numbers {
                    call!(RedisModule_ReplyWithLongLong, ctx, *n);
                }
            }
            Reply::Bytes(bytes) => write_bytes(ctx, bytes),
            Reply::Hit(value) => write_hit(ctx, value),
            Reply::OwnedBytes(bytes) => write_bytes(ctx, &bytes),
            Reply::Shared(bytes) => write_bytes(ctx, &bytes),
            Reply::Error(error) => write_error(ctx, &error),
            // What is relayed the shell hands on itself.
            Reply::Later | Reply::Relayed => {}
            Reply::Word(word) => write_bytes(ctx, word.as_bytes()),
            Reply::Array(items) => {
                call!(RedisModule_ReplyWithArray, ctx, length(items.len()));
                items.into_iter().for_each(|item| write(ctx, item));
            }
            Reply::Set(items) => {
                call!(RedisModule_ReplyWithSet, ctx, length(items.len()));
                items.into_iter().for_each(|item| write(ctx, item));
            }
            Reply::Map(fields) => {
                call!(RedisModule_ReplyWithMap, ctx, length(fields.len()));
                for (name, value) in fields {
                    write_bytes(ctx, name.as_bytes());
                    write(ctx, value);
                }
            }
        }
    }
}

/// [`Reply::Hit`].
#[inline]
pub(super) fn write_hit(ctx: Ctx, value: &[u8]) {
    // SAFETY: the context of the running command.
    unsafe {
        call!(RedisModule_ReplyWithArray, ctx, 3);
    }
    if !host().hit.as_ref().is_some_and(|hit| hit.repeat(ctx)) {
        write_bytes(ctx, b"HIT");
    }
    write_bytes(ctx, value);
    // SAFETY: as above.
    unsafe {
        call!(RedisModule_ReplyWithNull, ctx);
    }
}

pub(super) fn write_error(ctx: Ctx, error: &Error) {
    // Error texts are ASCII tables without NUL; should one ever have it, the client still gets an error.
    let text = CString::new(error.to_string()).unwrap_or_else(|_| c"ERR internal error".to_owned());
    // SAFETY: the context of the running command and a NUL-terminated string.
    unsafe {
        call!(RedisModule_ReplyWithError, ctx, text.as_ptr());
    }
}

fn write_bytes(ctx: Ctx, bytes: &[u8]) {
    // SAFETY: the context of the running command; pointer and length of a slice, which the server copies.
    unsafe {
        call!(RedisModule_ReplyWithStringBuffer, ctx, bytes.as_ptr().cast(), bytes.len());
    }
}

fn length(n: usize) -> c_long {
    c_long::try_from(n).unwrap_or(c_long::MAX)
}
