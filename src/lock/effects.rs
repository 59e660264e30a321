//! What of this family is replicated by KEYWARD.APPLY:
//!
//! - `LOCK key owner token deadline_ms holds [KEYS n] [SHARED | PERMITS n]`: the lock, and who alone holds it now
//! - `HOLD`, with the same arguments: one of those who hold it, as he stands now
//! - `LEAVE key token [token ...]`: those do not hold it any more
//! - `PUTBACK key token`: the evicted lock has its key again
//! - `FORGET key token`: the lock is gone, and not by eviction
//!
//! PUTBACK and FORGET name the last token, so that one that comes late never meets another lock of the same name.

use smallvec::{SmallVec, smallvec};

use crate::args::{Arg, Args};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::fencing::is_token;
use crate::lock::holders::{Holder, Standing};
use crate::lock::keyspace;
use crate::lock::record::{Mode, Record};
use crate::server::{Server, Word};
use crate::state::KeyEvent;

const APPLY: &str = "KEYWARD.APPLY";

/// A new lock, with its only holder.
pub fn propagate_lock<S: Server>(server: &mut S, key: Arg<'_>, owner: Arg<'_>, mode: Mode, standing: Standing) {
    propagate_standing(server, "LOCK", key, owner, mode, standing);
}

/// A holder has come, or stands differently now.
pub fn propagate_hold<S: Server>(server: &mut S, key: Arg<'_>, owner: Arg<'_>, mode: Mode, standing: Standing) {
    // Of the only one who can hold it the shorter word says as much.
    let effect = if mode == Mode::Exclusive { "LOCK" } else { "HOLD" };
    propagate_standing(server, effect, key, owner, mode, standing);
}

fn propagate_standing<S: Server>(
    server: &mut S,
    effect: &'static str,
    key: Arg<'_>,
    owner: Arg<'_>,
    mode: Mode,
    standing: Standing,
) {
    if !server.has_audience() {
        return server.replicate_verbatim();
    }
    let Standing { token, holds, deadline, keys } = standing;
    let mut words: SmallVec<[Word<'_>; 10]> = smallvec![
        Word::Text(effect),
        Word::Arg(key),
        Word::Arg(owner),
        Word::Int(token),
        Word::Int(deadline.0),
        Word::Int(holds),
    ];
    if keys != 1 {
        words.extend([Word::Text("KEYS"), Word::Int(i64::from(keys))]);
    }
    match mode {
        Mode::Exclusive => {}
        Mode::Shared => words.push(Word::Text("SHARED")),
        Mode::Permits(n) => words.extend([Word::Text("PERMITS"), Word::Int(i64::from(n))]),
    }
    server.replicate(APPLY, &words);
}

/// Holders have left whose lease or connection is over.
pub fn propagate_leave<S: Server>(server: &mut S, key: Arg<'_>, tokens: &[i64]) {
    let mut words: SmallVec<[Word<'_>; 10]> = smallvec![Word::Text("LEAVE"), Word::Arg(key)];
    words.extend(tokens.iter().map(|token| Word::Int(*token)));
    server.replicate(APPLY, &words);
}

pub fn propagate_put_back<S: Server>(server: &mut S, key: &[u8], token: i64) {
    server.replicate(APPLY, &[Word::Text("PUTBACK"), Word::Bytes(key), Word::Int(token)]);
}

pub fn propagate_forget<S: Server>(server: &mut S, key: &[u8], token: i64) {
    server.replicate(APPLY, &[Word::Text("FORGET"), Word::Bytes(key), Word::Int(token)]);
}

/// The lock is gone by this event: for when [`crate::state::Aftermath`] says so.
pub fn tell_gone<S: Server>(server: &mut S, event: KeyEvent, key: &[u8], token: i64) {
    propagate_forget(server, key, token);
    if event == KeyEvent::Expired {
        server.announce(c"lock.expired", Arg::named(key));
    }
}

/// Applies `effect` if it is one of this family's; `None` if it is not.
pub fn apply<S: Server>(effect: Arg<'_>, args: &mut Args<'_>, server: &mut S) -> Option<Result<(), Error>> {
    if effect.is("LOCK") {
        Some(lock(args, server))
    } else if effect.is("HOLD") {
        Some(hold(args, server))
    } else if effect.is("LEAVE") {
        Some(leave(args, server))
    } else if effect.is("PUTBACK") {
        Some(put_back(args, server))
    } else if effect.is("FORGET") {
        Some(forget(args, server))
    } else {
        None
    }
}

fn lock<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, mode, holder) = standing(args)?;
    let token = holder.standing.token;
    keyspace::store(server, key, Record::new(mode, holder).ok_or(Error::BadEffect)?)?;
    server.state().fencing.saw(token);
    Ok(())
}

fn hold<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, mode, holder) = standing(args)?;
    let token = holder.standing.token;
    keyspace::join(server, key, mode, holder)?;
    server.state().fencing.saw(token);
    Ok(())
}

fn standing<'a>(args: &mut Args<'a>) -> Result<(Arg<'a>, Mode, Holder), Error> {
    let (key, owner) = (word(args)?, word(args)?);
    let (token, deadline, holds) = (number(args)?, UnixMs(number(args)?), number(args)?);
    let (mut mode, mut keys) = (Mode::Exclusive, 1);
    while let Some(word) = args.take() {
        if word.is("KEYS") {
            keys = small(args)?;
        } else if word.is("SHARED") {
            mode = Mode::Shared;
        } else if word.is("PERMITS") {
            mode = Mode::Permits(small(args)?);
        } else {
            return Err(Error::BadEffect);
        }
    }
    let holder = Holder::new(owner.bytes, Standing { token, holds, deadline, keys }).ok_or(Error::BadEffect)?;
    Ok((key, mode, holder))
}

/// Of a holder who is not there nothing is to be done.
fn leave<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let key = word(args)?;
    while args.left() > 0 {
        let token = token(args)?;
        keyspace::release(server, key, |record| record.remove(token))?;
    }
    Ok(())
}

/// Without a lock in limbo there is nothing to do, for instance when a FLUSHALL came between.
fn put_back<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (key, token) = (word(args)?, token(args)?);
    end(args)?;
    let db = server.db();
    let waits = server.state().lock.in_limbo(db, key.bytes).is_some_and(|record| record.token() == token);
    if waits {
        keyspace::recall(server, key);
    }
    Ok(())
}

/// Sent within the removal it belongs to, this comes before the DEL, or before the SET that wrote over the lock. A key that holds
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

fn small(args: &mut Args<'_>) -> Result<u32, Error> {
    u32::try_from(number(args)?).map_err(|_| Error::BadEffect)
}

fn token(args: &mut Args<'_>) -> Result<i64, Error> {
    number(args).and_then(|number| if is_token(number) { Ok(number) } else { Err(Error::BadEffect) })
}

fn end(args: &Args<'_>) -> Result<(), Error> {
    args.end().map_err(|_| Error::BadEffect)
}
