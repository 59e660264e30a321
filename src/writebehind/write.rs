//! The way of a write: the cached value, the dirty record and their one effect, in one step.

use super::index::QueueId;
use super::record::{Entry, Mark, Op, View, Write};
use super::{deliver, effects, keyspace};
use crate::args::{Arg, parse_int};
use crate::cache::behind;
use crate::cache::{Expires, Lifetime, WriteOptions};
use crate::clock::UnixMs;
use crate::error::Error;
use crate::fencing;
use crate::server::Server;

/// The command's name, for errors.
type Command = &'static str;

/// What a write will be, found before anything changes.
struct Plan {
    id: Option<QueueId>,
    joins: bool,
    now: UnixMs,
    due: UnixMs,
    /// The increment that this one would join with.
    pending: Option<i64>,
    /// The key's value by this queue.
    view: Option<Base>,
}

/// What an increment is added to.
#[derive(Clone, Debug)]
enum Base {
    Number(Vec<u8>),
    Nothing,
    Unknown,
}

impl Base {
    fn of(view: View<'_>) -> Base {
        match view {
            View::Value(value) => Base::Number(value.into_owned()),
            View::Deleted => Base::Nothing,
            View::Unknown => Base::Unknown,
        }
    }
}

/// Finds out what a write of the key is going to be. An error changes nothing.
fn plan<S: Server>(server: &mut S, queue: Arg<'_>, key: Arg<'_>) -> Result<Plan, Error> {
    if queue.bytes == key.bytes {
        return Err(Error::QueueIsKey);
    }
    let (moment, now) = (server.now(), server.now().to_ms());
    let id = keyspace::open(server, queue)?;
    let next_version = server.state().fencing.peek(moment);
    let state = &mut server.state().writebehind;
    let Some((id, of)) = id.and_then(|id| Some((id, state.queue(id)?))) else {
        return Ok(Plan { id: None, joins: false, now, due: now, pending: None, view: None });
    };
    let entry = state.entry_of(id, key.bytes).and_then(|entry| of.entry(entry));
    let joined = entry.and_then(|entry| entry.joins(state.frozen_to()));
    let full = joined.is_none() && of.is_full();
    let plan = Plan {
        id: Some(id),
        joins: joined.is_some(),
        now,
        due: of.settings.due(now, joined.map_or(now, |record| record.since)),
        pending: joined.and_then(|record| if let Op::IncrBy { by, .. } = record.op { Some(by) } else { None }),
        view: entry.and_then(Entry::view).map(Base::of),
    };
    if entry.is_some_and(|entry| next_version <= entry.last_version()) {
        // Only a forged dump has versions from the future.
        return Err(Error::NoTokenLeft);
    }
    if full {
        state.counters.refused = state.counters.refused.saturating_add(1);
        return Err(Error::QueueFull);
    }
    Ok(plan)
}

impl Plan {
    /// Gives the write its version.
    fn mark<S: Server>(&self, server: &mut S) -> Result<Mark, Error> {
        let version = fencing::next_token(server)?;
        Ok(Mark { version, now: self.now, due: self.due, joins: self.joins })
    }

    /// Puts the write into the queue.
    fn record<S: Server>(
        &self,
        server: &mut S,
        queue: Arg<'_>,
        key: Arg<'_>,
        write: Write,
        mark: Mark,
    ) -> Result<(), Error> {
        let id = match self.id {
            Some(id) => id,
            None => keyspace::open_or_create(server, queue, mark.version)?,
        };
        let state = &mut server.state().writebehind;
        state.put(id, key.bytes, write, mark).ok_or(Error::Internal)?;
        state.counters.writes = state.counters.writes.saturating_add(1);
        state.counters.coalesced = state.counters.coalesced.saturating_add(u64::from(mark.joins));
        server.changed(queue);
        Ok(())
    }
}

/// WRITEBEHIND.SET; the version.
pub fn set<S: Server>(
    server: &mut S,
    (queue, key): (Arg<'_>, Arg<'_>),
    value: Arg<'_>,
    options: &WriteOptions<'_>,
    command: Command,
) -> Result<i64, Error> {
    let expires = behind::expires(server, key, options, command)?;
    let plan = plan(server, queue, key)?;
    let mark = plan.mark(server)?;
    let life = behind::store(server, key, value, expires, options)?;
    plan.record(server, queue, key, Write::Set(value.bytes.into()), mark)?;
    effects::propagate_set(server, (queue, key), value, mark, &behind::words(life, options));
    behind::value_came(server, key, value);
    deliver::serve(server, queue);
    Ok(mark.version)
}

/// WRITEBEHIND.INCRBY; the key's value, if it is known, and the version.
pub fn increment<S: Server>(
    server: &mut S,
    (queue, key): (Arg<'_>, Arg<'_>),
    by: i64,
    options: &WriteOptions<'_>,
    command: Command,
) -> Result<(Option<i64>, i64), Error> {
    let expires = options.expires(server.now().to_ms(), command)?;
    let plan = plan(server, queue, key)?;
    let cached = behind::peek(server, key)?;
    let value = match base(server, key, &plan, cached.as_deref())? {
        Some(base) => Some(base.checked_add(by).ok_or(Error::Overflow)?),
        None => None,
    };
    if plan.pending.is_some_and(|pending| pending.checked_add(by).is_none()) {
        return Err(Error::Overflow);
    }
    let mark = plan.mark(server)?;
    let life = store_number(server, key, value, cached.is_some(), expires, options)?;
    plan.record(server, queue, key, Write::IncrBy { by, value }, mark)?;
    effects::propagate_increment(server, (queue, key), (by, value), mark, &behind::words(life, options));
    if value.is_none() {
        behind::value_unknown(server, key);
    }
    deliver::serve(server, queue);
    Ok((value, mark.version))
}

/// What the increment is added to; `None`: nobody knows.
fn base<S: Server>(server: &mut S, key: Arg<'_>, plan: &Plan, cached: Option<&[u8]>) -> Result<Option<i64>, Error> {
    let number = |digits: &[u8]| parse_int(digits).map(Some).ok_or(Error::NotAnInteger);
    let view = plan.view.clone().or_else(|| {
        let db = server.db();
        server.state().writebehind.view(db, key.bytes).map(Base::of)
    });
    match (view, cached) {
        (Some(Base::Nothing), _) => Ok(Some(0)),
        (Some(Base::Unknown), _) | (None, None) => Ok(None),
        (Some(Base::Number(_)) | None, Some(cached)) => number(cached),
        (Some(Base::Number(value)), None) => number(&value),
    }
}

/// The cached value is the sum. Where that is unknown, a value that somebody cached meanwhile goes: nobody knows whether the
/// increments are in it.
pub fn store_number<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    value: Option<i64>,
    is_cached: bool,
    expires: Option<Expires>,
    options: &WriteOptions<'_>,
) -> Result<Option<Lifetime>, Error> {
    let Some(value) = value else {
        if is_cached {
            server.unlink(&[key.bytes]);
        }
        return Ok(None);
    };
    let digits = value.to_string();
    let value = Arg::named(digits.as_bytes());
    let life = behind::rewrite(server, key, value, expires, options)?;
    behind::value_came(server, key, value);
    Ok(life)
}

/// WRITEBEHIND.DEL; the version.
pub fn delete<S: Server>(server: &mut S, (queue, key): (Arg<'_>, Arg<'_>)) -> Result<i64, Error> {
    let plan = plan(server, queue, key)?;
    let mark = plan.mark(server)?;
    behind::remove(server, key);
    plan.record(server, queue, key, Write::Del, mark)?;
    effects::propagate_delete(server, (queue, key), mark);
    behind::value_gone(server, key);
    deliver::serve(server, queue);
    Ok(mark.version)
}
