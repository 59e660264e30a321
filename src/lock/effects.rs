//! What of this family is replicated by KEYWARD.APPLY:
//!
//! - `LOCK key owner token deadline_ms holds`: the lock as it stands now, after a grant or a change
//! - `RESERVE number`: no token reaches this number before a new reserve is sent
//! - `PUTBACK key token`: the evicted lock has its key again
//! - `FORGET key token`: the lock is gone, and not by eviction
//!
//! PUTBACK and FORGET name the token, so that one that comes late never meets another lock of the same name.

use crate::args::{Arg, Args};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::lock::fencing::is_token;
use crate::lock::keyspace;
use crate::lock::record::{Record, Standing};
use crate::server::{Server, Word};

const APPLY: &str = "KEYWARD.APPLY";

/// The lock stands like this now.
pub fn propagate_lock<S: Server>(server: &mut S, key: Arg<'_>, owner: Arg<'_>, standing: Standing) {
    let Standing { token, holds, deadline } = standing;
    let words = [
        Word::Text("LOCK"),
        Word::Arg(key),
        Word::Arg(owner),
        Word::Int(token),
        Word::Int(deadline.0),
        Word::Int(holds),
    ];
    server.replicate(APPLY, &words);
}

pub fn propagate_reserve<S: Server>(server: &mut S, reserve: i64) {
    server.replicate(APPLY, &[Word::Text("RESERVE"), Word::Int(reserve)]);
}

pub fn propagate_put_back<S: Server>(server: &mut S, key: &[u8], token: i64) {
    server.replicate(APPLY, &[Word::Text("PUTBACK"), Word::Bytes(key), Word::Int(token)]);
}

/// The lock is gone: to be sent when [`crate::state::Aftermath::Forget`] says so.
pub fn propagate_forget<S: Server>(server: &mut S, key: &[u8], token: i64) {
    server.replicate(APPLY, &[Word::Text("FORGET"), Word::Bytes(key), Word::Int(token)]);
}

/// Applies `effect` if it is one of this family's; `None` if it is not.
pub fn apply<S: Server>(effect: Arg<'_>, args: &mut Args<'_>, server: &mut S) -> Option<Result<(), Error>> {
    if effect.is("LOCK") {
        Some(lock(args, server))
    } else if effect.is("RESERVE") {
        Some(reserve(args, server))
    } else if effect.is("PUTBACK") {
        Some(put_back(args, server))
    } else if effect.is("FORGET") {
        Some(forget(args, server))
    } else {
        None
    }
}

fn lock<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, owner) = (word(args)?, word(args)?);
    let (token, deadline, holds) = (number(args)?, UnixMs(number(args)?), number(args)?);
    end(args)?;
    let record = Record::new(owner.bytes, Standing { token, holds, deadline }).ok_or(Error::BadEffect)?;
    keyspace::store(server, key, record)?;
    server.state().lock.fencing.saw(token);
    Ok(())
}

fn reserve<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let reserve = token(args)?;
    end(args)?;
    server.state().lock.fencing.raise_reserve(reserve);
    Ok(())
}

/// Without a lock in limbo there is nothing to do, for instance when a FLUSHALL came between.
fn put_back<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, token) = (word(args)?, token(args)?);
    end(args)?;
    let db = server.db();
    let waits = server.state().lock.in_limbo(db, key.bytes).is_some_and(|record| record.standing().token == token);
    if waits {
        keyspace::recall(server, key);
    }
    Ok(())
}

/// Sent within the removal it belongs to, this comes before the DEL, and so it removes the key as well. A key that holds
/// something else by now is left alone.
fn forget<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, token) = (word(args)?, token(args)?);
    end(args)?;
    keyspace::forget(server, key, token);
    Ok(())
}

fn word<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
    args.take().ok_or(Error::BadEffect)
}

fn number(args: &mut Args<'_>) -> Result<i64, Error> {
    word(args)?.int().map_err(|_| Error::BadEffect)
}

fn token(args: &mut Args<'_>) -> Result<i64, Error> {
    number(args).and_then(|number| if is_token(number) { Ok(number) } else { Err(Error::BadEffect) })
}

fn end(args: &Args<'_>) -> Result<(), Error> {
    args.end().map_err(|_| Error::BadEffect)
}
