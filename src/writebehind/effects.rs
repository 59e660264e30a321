//! What of this family is replicated by KEYWARD.APPLY. The primary decided; here it is only repeated. Claims are not among it.
//!
//! - `WBSET queue key version now_ms due_ms JOIN|NEW value [PXAT t [GRACE g]] [TAGS n tag ...]`: the value is in the cache and in
//!   the record; it joined with the last record of the key or is a new one
//! - `WBINCRBY queue key version now_ms due_ms JOIN|NEW by value|- [options as above]`: `-`, nobody knows the value
//! - `WBDEL queue key version now_ms due_ms JOIN|NEW`; the cached key went by an UNLINK before it
//! - `WBFAIL queue key version failures due_ms [message]`: a claim ended without an ACK
//! - `WBDIE queue key version failures [message]`: and the record was given up
//! - `WBREQUEUE queue key KEEP due_ms`, `WBREQUEUE queue key MERGE version now_ms due_ms JOIN|NEW`: those that were given up come back
//! - `WBCONFIG queue token delay_ms max_delay_ms attempts max_dirty`
//! - `WBPUTBACK queue token`, `WBFORGET queue token`: the evicted queue has its key again; the queue is gone, and not by eviction
//!
//! ACK and DROP are replicated as they came: they name versions, or take all there is. A queue that is not there begins with the
//! version of its first write as its token.

use smallvec::{SmallVec, smallvec};

use super::deliver::Failure;
use super::dump::MAX_MESSAGE;
use super::keyspace;
use super::queue::EntryId;
use super::record::{Mark, Revival, Write};
use super::settings::Settings;
use super::write::store_number;
use crate::args::{Arg, Args};
use crate::cache::{WriteOptions, behind};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::fencing::is_token;
use crate::server::{Server, Word};

const APPLY: &str = "KEYWARD.APPLY";

type Words<'a> = SmallVec<[Word<'a>; 16]>;

fn begin<'a>(effect: &'static str, (queue, key): (Arg<'a>, Arg<'a>), mark: Mark) -> Words<'a> {
    let Mark { version, now, due, joins } = mark;
    smallvec![
        Word::Text(effect),
        Word::Arg(queue),
        Word::Arg(key),
        Word::Int(version),
        Word::Int(now.0),
        Word::Int(due.0),
        join_word(joins),
    ]
}

fn join_word(joins: bool) -> Word<'static> {
    Word::Text(if joins { "JOIN" } else { "NEW" })
}

pub fn propagate_set<S: Server>(
    server: &mut S,
    names: (Arg<'_>, Arg<'_>),
    value: Arg<'_>,
    mark: Mark,
    options: &[Word<'_>],
) {
    let mut words = begin("WBSET", names, mark);
    words.push(Word::Arg(value));
    words.extend_from_slice(options);
    server.replicate(APPLY, &words);
}

pub fn propagate_increment<S: Server>(
    server: &mut S,
    names: (Arg<'_>, Arg<'_>),
    (by, value): (i64, Option<i64>),
    mark: Mark,
    options: &[Word<'_>],
) {
    let mut words = begin("WBINCRBY", names, mark);
    words.extend([Word::Int(by), value.map_or(Word::Text("-"), Word::Int)]);
    if value.is_some() {
        words.extend_from_slice(options);
    }
    server.replicate(APPLY, &words);
}

pub fn propagate_delete<S: Server>(server: &mut S, names: (Arg<'_>, Arg<'_>), mark: Mark) {
    server.replicate(APPLY, &begin("WBDEL", names, mark));
}

pub fn propagate_failure<S: Server>(server: &mut S, queue: Arg<'_>, key: &[u8], failure: Failure<'_>) {
    let Failure { version, failures, due, message, .. } = failure;
    let mut words: Words<'_> = smallvec![
        Word::Text("WBFAIL"),
        Word::Arg(queue),
        Word::Bytes(key),
        Word::Int(version),
        Word::Int(i64::from(failures)),
        Word::Int(due.0),
    ];
    words.extend(message.map(Word::Arg));
    server.replicate(APPLY, &words);
}

pub fn propagate_death<S: Server>(server: &mut S, queue: Arg<'_>, key: &[u8], failure: Failure<'_>) {
    let Failure { version, failures, message, .. } = failure;
    let mut words: Words<'_> = smallvec![
        Word::Text("WBDIE"),
        Word::Arg(queue),
        Word::Bytes(key),
        Word::Int(version),
        Word::Int(i64::from(failures)),
    ];
    words.extend(message.map(Word::Arg));
    server.replicate(APPLY, &words);
}

pub fn propagate_revival<S: Server>(server: &mut S, queue: Arg<'_>, key: Arg<'_>, revival: Revival) {
    let mut words: Words<'_> = smallvec![Word::Text("WBREQUEUE"), Word::Arg(queue), Word::Arg(key)];
    match revival {
        Revival::Kept { due } => words.extend([Word::Text("KEEP"), Word::Int(due.0)]),
        Revival::Merged(Mark { version, now, due, joins }) => words.extend([
            Word::Text("MERGE"),
            Word::Int(version),
            Word::Int(now.0),
            Word::Int(due.0),
            join_word(joins),
        ]),
    }
    server.replicate(APPLY, &words);
}

pub fn propagate_settings<S: Server>(server: &mut S, queue: Arg<'_>, born: i64, settings: Settings) {
    let Settings { delay_ms, max_delay_ms, attempts, max_dirty } = settings;
    let numbers = [born, delay_ms, max_delay_ms, attempts, max_dirty];
    let mut words: Words<'_> = smallvec![Word::Text("WBCONFIG"), Word::Arg(queue)];
    words.extend(numbers.map(Word::Int));
    server.replicate(APPLY, &words);
}

pub fn propagate_put_back<S: Server>(server: &mut S, queue: &[u8], born: i64) {
    server.replicate(APPLY, &[Word::Text("WBPUTBACK"), Word::Bytes(queue), Word::Int(born)]);
}

/// The queue is gone: to be sent when [`crate::state::Aftermath`] says so.
pub fn propagate_forget<S: Server>(server: &mut S, queue: &[u8], born: i64) {
    server.replicate(APPLY, &[Word::Text("WBFORGET"), Word::Bytes(queue), Word::Int(born)]);
}

/// Applies `effect` if it is one of this family's; `None` if it is not.
pub fn apply<S: Server>(effect: Arg<'_>, args: &mut Args<'_>, server: &mut S) -> Option<Result<(), Error>> {
    let applied = if effect.is("WBSET") {
        set(args, server)
    } else if effect.is("WBINCRBY") {
        increment(args, server)
    } else if effect.is("WBDEL") {
        delete(args, server)
    } else if effect.is("WBFAIL") {
        fail(args, server)
    } else if effect.is("WBDIE") {
        die(args, server)
    } else if effect.is("WBREQUEUE") {
        requeue(args, server)
    } else if effect.is("WBCONFIG") {
        config(args, server)
    } else if effect.is("WBPUTBACK") {
        put_back(args, server)
    } else if effect.is("WBFORGET") {
        forget(args, server)
    } else {
        return None;
    };
    Some(applied)
}

fn set<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, key, mark) = start(args)?;
    let value = word(args)?;
    let options = options(args)?;
    let expires = options.expires(server.now().to_ms(), args.command()).map_err(|_| Error::BadEffect)?;
    put(server, queue, key, Write::Set(value.bytes.into()), mark)?;
    behind::store(server, key, value, expires, &options)?;
    Ok(())
}

fn increment<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, key, mark) = start(args)?;
    let (by, value) = (number(args)?, word(args)?);
    let value = if value.is("-") { None } else { Some(value.int().map_err(|_| Error::BadEffect)?) };
    let options = options(args)?;
    let expires = options.expires(server.now().to_ms(), args.command()).map_err(|_| Error::BadEffect)?;
    put(server, queue, key, Write::IncrBy { by, value }, mark)?;
    // A value that must go went by an UNLINK before.
    store_number(server, key, value, false, expires, &options)?;
    Ok(())
}

fn delete<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, key, mark) = start(args)?;
    end(args)?;
    put(server, queue, key, Write::Del, mark)
}

fn put<S: Server>(server: &mut S, queue: Arg<'_>, key: Arg<'_>, write: Write, mark: Mark) -> Result<(), Error> {
    if queue.bytes == key.bytes {
        return Err(Error::BadEffect);
    }
    if mark.joins && keyspace::open(server, queue)?.is_none() {
        return Err(Error::BadEffect);
    }
    let id = keyspace::open_or_create(server, queue, mark.version)?;
    server.state().writebehind.put(id, key.bytes, write, mark).ok_or(Error::BadEffect)?;
    server.state().fencing.saw(mark.version);
    server.changed(queue);
    Ok(())
}

fn fail<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, key, version, failures) = (word(args)?, word(args)?, token(args)?, failures(args)?);
    let due = moment(args)?;
    let message = message(args)?;
    let (id, entry) = find(server, queue, key)?;
    let state = &mut server.state().writebehind;
    state.change(id, |queue| queue.fail(entry, version, failures, due, message)).flatten().ok_or(Error::BadEffect)?;
    server.changed(queue);
    Ok(())
}

fn die<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, key, version, failures) = (word(args)?, word(args)?, token(args)?, failures(args)?);
    let message = message(args)?;
    let (id, entry) = find(server, queue, key)?;
    let state = &mut server.state().writebehind;
    state.change(id, |queue| queue.die(entry, version, failures, message)).flatten().ok_or(Error::BadEffect)?;
    server.changed(queue);
    Ok(())
}

fn requeue<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, key, how) = (word(args)?, word(args)?, word(args)?);
    let revival = if how.is("KEEP") {
        Revival::Kept { due: moment(args)? }
    } else if how.is("MERGE") {
        Revival::Merged(mark(args)?)
    } else {
        return Err(Error::BadEffect);
    };
    end(args)?;
    let (id, entry) = find(server, queue, key)?;
    let state = &mut server.state().writebehind;
    state.change_entry(id, entry, |queue| queue.revive(entry, revival)).ok_or(Error::BadEffect)?;
    if let Revival::Merged(mark) = revival {
        server.state().fencing.saw(mark.version);
    }
    server.changed(queue);
    Ok(())
}

fn config<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, born) = (word(args)?, token(args)?);
    let settings = Settings {
        delay_ms: number(args)?,
        max_delay_ms: number(args)?,
        attempts: number(args)?,
        max_dirty: number(args)?,
    };
    end(args)?;
    let settings = settings.checked().map_err(|_| Error::BadEffect)?;
    let id = keyspace::open_or_create(server, queue, born)?;
    server.state().writebehind.change(id, |queue| queue.settings = settings);
    server.state().fencing.saw(born);
    server.changed(queue);
    Ok(())
}

/// Without a queue in limbo there is nothing to do, for instance when a FLUSHALL came between.
fn put_back<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, born) = (word(args)?, token(args)?);
    end(args)?;
    let db = server.db();
    if server.state().writebehind.in_limbo(db, queue.bytes).is_some_and(|queued| queued.born == born) {
        keyspace::recall(server, queue);
    }
    Ok(())
}

/// Sent within the removal it belongs to, this comes before the DEL, or before the SET that wrote over the queue. A key that holds
/// something else by now is left alone.
fn forget<S: Server>(args: &mut Args<'_>, server: &mut S) -> Result<(), Error> {
    let (queue, born) = (word(args)?, token(args)?);
    end(args)?;
    keyspace::forget(server, queue, born);
    Ok(())
}

fn find<S: Server>(server: &mut S, queue: Arg<'_>, key: Arg<'_>) -> Result<(u64, EntryId), Error> {
    let id = keyspace::open(server, queue)?.ok_or(Error::BadEffect)?;
    let entry = server.state().writebehind.entry_of(id, key.bytes).ok_or(Error::BadEffect)?;
    Ok((id, entry))
}

fn start<'a>(args: &mut Args<'a>) -> Result<(Arg<'a>, Arg<'a>, Mark), Error> {
    Ok((word(args)?, word(args)?, mark(args)?))
}

fn mark(args: &mut Args<'_>) -> Result<Mark, Error> {
    let (version, now, due, how) = (token(args)?, moment(args)?, moment(args)?, word(args)?);
    if !how.is("JOIN") && !how.is("NEW") {
        return Err(Error::BadEffect);
    }
    Ok(Mark { version, now, due, joins: how.is("JOIN") })
}

fn options<'a>(args: &mut Args<'a>) -> Result<WriteOptions<'a>, Error> {
    behind::options(args).map_err(|_| Error::BadEffect)
}

fn word<'a>(args: &mut Args<'a>) -> Result<Arg<'a>, Error> {
    args.take().ok_or(Error::BadEffect)
}

fn number(args: &mut Args<'_>) -> Result<i64, Error> {
    word(args)?.int().map_err(|_| Error::BadEffect)
}

fn failures(args: &mut Args<'_>) -> Result<u32, Error> {
    u32::try_from(number(args)?).map_err(|_| Error::BadEffect)
}

fn moment(args: &mut Args<'_>) -> Result<UnixMs, Error> {
    number(args).and_then(|ms| if ms >= 0 { Ok(UnixMs(ms)) } else { Err(Error::BadEffect) })
}

fn token(args: &mut Args<'_>) -> Result<i64, Error> {
    number(args).and_then(|number| if is_token(number) { Ok(number) } else { Err(Error::BadEffect) })
}

fn message<'a>(args: &mut Args<'a>) -> Result<Option<&'a [u8]>, Error> {
    let message = args.take().map(|message| message.bytes);
    end(args)?;
    if message.is_some_and(|message| message.len() > MAX_MESSAGE) {
        return Err(Error::BadEffect);
    }
    Ok(message)
}

fn end(args: &Args<'_>) -> Result<(), Error> {
    args.end().map_err(|_| Error::BadEffect)
}
