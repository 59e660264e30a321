//! Locks and their keys: looking one up, storing one, changing who holds it, removing it, and bringing back what was evicted.

use crate::args::Arg;
use crate::error::Error;
use crate::lock::effects;
use crate::lock::holders::{Holder, Standing};
use crate::lock::record::{Mode, Record, Released};
use crate::lock::value::Lock;
use crate::server::Server;

/// Looks at the lock of this name, also in limbo. `None`: there is none. For commands that change nothing.
pub fn look<S: Server, T>(server: &mut S, key: Arg<'_>, look: impl FnOnce(&Record) -> T) -> Result<Option<T>, Error> {
    if let Some(lock) = server.native::<Lock>(key)? {
        return Ok(lock.record().map(look));
    }
    let db = server.db();
    Ok(server.state().lock.in_limbo(db, key.bytes).map(look))
}

/// Lets `act` look at the lock of this name and change it; what was evicted comes back first, and who held it longer than
/// his lease goes, if others hold it still. `None`: there is no such key. A change must be followed by [`announce`].
pub fn open<S: Server, T>(
    server: &mut S,
    key: Arg<'_>,
    act: impl FnOnce(&mut Record) -> T,
) -> Result<Option<T>, Error> {
    recall(server, key);
    let now = server.now().to_ms();
    let Some(record) = server.native::<Lock>(key)?.and_then(Lock::record_mut) else { return Ok(None) };
    if record.holders().len() == 1 {
        return Ok(Some(act(record)));
    }
    let before = record.heap_bytes();
    let over = record.expire(now);
    let after = record.heap_bytes();
    let acted = act(record);
    if !over.is_empty() {
        let db = server.db();
        server.state().lock.holders_left(db, key.bytes, &over, (before, after));
        let tokens: Vec<i64> = over.iter().map(|holder| holder.standing.token).collect();
        effects::propagate_leave(server, key, &tokens);
        for _ in &tokens {
            server.announce(c"lock.expired", key);
        }
    }
    Ok(Some(acted))
}

/// Makes this the lock of the key, which holds a lock or nothing. In place if it can be: replacing a value is dear.
pub fn store<S: Server>(server: &mut S, key: Arg<'_>, record: Record) -> Result<(), Error> {
    recall(server, key);
    let (db, deadline) = (server.db(), Some(record.deadline()));
    let is_there = server.native::<Lock>(key)?.is_some();
    server.state().lock.arrived(db, key.bytes, &record);
    if !is_there {
        server.put_native(key, Lock::Held(record), deadline);
    } else if let Some(lock) = server.native::<Lock>(key)? {
        let old = lock.replace(record);
        if let Some(old) = &old {
            server.state().lock.left(db, key.bytes, old);
        }
        server.set_expiry(key, deadline);
        server.changed(key);
        let now = server.now().to_ms();
        if old.is_some_and(|old| !old.held(Some(now))) {
            server.announce(c"lock.expired", key);
        }
    }
    Ok(())
}

/// Adds a holder to a lock of this mode, or changes what he holds. If there is no such lock, it becomes the key's lock.
pub fn join<S: Server>(server: &mut S, key: Arg<'_>, mode: Mode, holder: Holder) -> Result<(), Error> {
    recall(server, key);
    let (token, session) = (holder.standing.token, holder.session);
    let lock = server.native::<Lock>(key)?.and_then(Lock::record_mut).filter(|record| record.mode() == mode);
    let Some(record) = lock else {
        let record = Record::new(mode, holder).ok_or(Error::BadEffect)?;
        return store(server, key, record);
    };
    let before = record.heap_bytes();
    let old = record.put(holder)?;
    let (after, deadline) = (record.heap_bytes(), record.deadline());
    let db = server.db();
    let state = &mut server.state().lock;
    state.holders_left(db, key.bytes, old.as_slice(), (before, after));
    state.sessions.arrived(db, key.bytes, session, &token);
    server.set_expiry(key, Some(deadline));
    server.changed(key);
    Ok(())
}

/// A hold was changed in place: with this standing.
pub fn announce<S: Server>(server: &mut S, key: Arg<'_>, owner: Arg<'_>, standing: Standing) -> Result<(), Error> {
    let Some((mode, deadline)) = look(server, key, |record| (record.mode(), record.deadline()))? else { return Ok(()) };
    server.set_expiry(key, Some(deadline));
    server.changed(key);
    effects::propagate_hold(server, key, owner, mode, standing);
    Ok(())
}

/// Binds the hold of this token to a connection.
pub fn bind<S: Server>(server: &mut S, key: Arg<'_>, token: i64, session: u64) -> Result<(), Error> {
    let Some(record) = server.native::<Lock>(key)?.and_then(Lock::record_mut) else { return Ok(()) };
    let before = record.bind(token, session);
    let db = server.db();
    let sessions = &mut server.state().lock.sessions;
    sessions.left(db, key.bytes, before, &token);
    sessions.arrived(db, key.bytes, Some(session), &token);
    Ok(())
}

/// Lets `release` take a holder out, and removes the lock and its key when he was the last.
pub fn release<S: Server>(
    server: &mut S,
    key: Arg<'_>,
    release: impl FnOnce(&mut Record) -> (Released, Option<Holder>),
) -> Result<Released, Error> {
    recall(server, key);
    let Some(lock) = server.native::<Lock>(key)? else { return Ok(Released::NotHolder) };
    let Some(record) = lock.record_mut() else { return Ok(Released::NotHolder) };
    let before = record.heap_bytes();
    let (released, gone) = release(record);
    match released {
        Released::NotHolder => {}
        Released::OneLess => server.changed(key),
        Released::OneLeft => {
            let (after, deadline) = (record.heap_bytes(), record.deadline());
            let db = server.db();
            server.state().lock.holders_left(db, key.bytes, gone.as_slice(), (before, after));
            server.set_expiry(key, Some(deadline));
            server.changed(key);
            server.announce(c"lock.release", key);
        }
        Released::Last => {
            // Out of the value first: what is unlinked with a record in it was deleted by somebody else.
            let record = lock.take();
            drop_taken(server, key, record);
            server.announce(c"lock.release", key);
        }
    }
    Ok(released)
}

fn drop_taken<S: Server>(server: &mut S, key: Arg<'_>, record: Option<Record>) {
    let db = server.db();
    if let Some(record) = record {
        server.state().lock.left(db, key.bytes, &record);
    }
    server.delete(key);
}

/// Ends the lock whose last token this is, with its key or without. The key stays as it is, without a lock in it: what removed it or
/// wrote over it on the primary comes next, and a plain write keeps the tags of the key. Anything else of that name is left alone.
pub fn forget<S: Server>(server: &mut S, key: Arg<'_>, token: i64) {
    let db = server.db();
    server.state().lock.drop_keyless(db, key.bytes, token);
    let Ok(Some(lock)) = server.native::<Lock>(key) else { return };
    if lock.record().is_some_and(|record| record.token() == token)
        && let Some(record) = lock.take()
    {
        server.state().lock.left(db, key.bytes, &record);
    }
}

/// Gives evicted locks their keys back, at most `max`. True if some are left. Only for the primary, and only while it may
/// write (see [`crate::state::Aftermath`]).
pub fn put_back<S: Server>(server: &mut S, max: usize) -> bool {
    let home = server.db();
    for name in server.state().lock.names_in_limbo(max) {
        server.select(name.db);
        if server.db() == name.db {
            recall(server, Arg::named(&name.key));
        } else {
            // From a file of a server with more databases.
            server.state().lock.take_from_limbo(name.db, &name.key);
        }
    }
    server.select(home);
    server.state().lock.limbo_len() > 0
}

/// If the lock of this name was evicted, its key comes back, unless the lease is over or something else has the name.
#[inline]
pub fn recall<S: Server>(server: &mut S, key: Arg<'_>) {
    if server.state().lock.limbo_len() > 0 {
        recall_from_limbo(server, key);
    }
}

fn recall_from_limbo<S: Server>(server: &mut S, key: Arg<'_>) {
    let db = server.db();
    let Some(record) = server.state().lock.take_from_limbo(db, key.bytes) else { return };
    let (token, deadline) = (record.token(), record.deadline());
    let now = (!server.replayed()).then(|| server.now().to_ms());
    let taken = server.exists(key.bytes);
    if !taken && record.held(now) {
        server.state().lock.arrived(db, key.bytes, &record);
        server.put_native(key, Lock::Held(record), Some(deadline));
        if now.is_some() {
            server.state().lock.count_put_back();
            effects::propagate_put_back(server, key.bytes, token);
        }
    } else if now.is_some() {
        server.state().lock.queues.look_at(db, key.bytes);
        server.state().lock.count_forgotten();
        effects::propagate_forget(server, key.bytes, token);
        if !taken {
            server.announce(c"lock.expired", key);
        }
    }
}
