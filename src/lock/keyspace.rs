//! Locks and their keys: looking one up, storing one, removing one, and bringing back what was evicted.

use crate::args::Arg;
use crate::error::Error;
use crate::lock::effects;
use crate::lock::record::{Record, Standing};
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

/// Lets `act` look at the lock of this name and change it; what was evicted comes back first. `None`: there is no such key.
/// A change must be followed by [`Server::changed`].
pub fn open<S: Server, T>(server: &mut S, key: Arg<'_>, act: impl FnOnce(&mut Lock) -> T) -> Result<Option<T>, Error> {
    recall(server, key);
    Ok(server.native::<Lock>(key)?.map(act))
}

/// Makes this the lock of the key, which holds a lock or nothing. In place if it can be: replacing a value is dear.
pub fn store<S: Server>(server: &mut S, key: Arg<'_>, record: Record) -> Result<(), Error> {
    recall(server, key);
    let (db, owner_len) = (server.db(), record.owner().len());
    let deadline = Some(record.standing().deadline);
    match server.native::<Lock>(key)? {
        None => server.put_native(key, Lock::Held(record), deadline),
        Some(lock) => {
            if let Some(old) = lock.replace(record) {
                server.state().lock.left(db, old.owner().len());
            }
            server.set_expiry(key, deadline);
            server.changed(key);
        }
    }
    server.state().lock.arrived(db, owner_len);
    Ok(())
}

/// The holder's lock has changed in place: `longer` if its lease did.
pub fn announce<S: Server>(server: &mut S, key: Arg<'_>, owner: Arg<'_>, standing: Standing, longer: bool) {
    if longer {
        server.set_expiry(key, Some(standing.deadline));
    }
    server.changed(key);
    effects::propagate_lock(server, key, owner, standing);
}

/// Removes the lock and its key, if `gone` says so (and has its say in the answer). `None`: there is no lock.
pub fn remove_if<S: Server, T>(
    server: &mut S,
    key: Arg<'_>,
    gone: impl FnOnce(&mut Record) -> (T, bool),
) -> Result<Option<T>, Error> {
    recall(server, key);
    let Some(lock) = server.native::<Lock>(key)? else { return Ok(None) };
    let Some((answer, gone)) = lock.record_mut().map(gone) else { return Ok(None) };
    if gone {
        // Out of the value first: what is unlinked with a record in it was deleted by somebody else.
        let record = lock.take();
        let (db, owner_len) = (server.db(), record.map_or(0, |record| record.owner().len()));
        server.state().lock.left(db, owner_len);
        server.delete(key);
    }
    Ok(Some(answer))
}

/// Removes the lock that this token was granted for, with its key or without. Anything else of that name is left alone.
pub fn forget<S: Server>(server: &mut S, key: Arg<'_>, token: i64) {
    let db = server.db();
    server.state().lock.drop_keyless(db, key.bytes, token);
    let Ok(Some(lock)) = server.native::<Lock>(key) else { return };
    if lock.record().is_some_and(|record| record.standing().token == token) {
        let owner_len = lock.take().map_or(0, |record| record.owner().len());
        server.state().lock.left(db, owner_len);
        server.delete(key);
    }
}

/// Gives evicted locks their keys back, at most `max`. True if some are left. Only for the primary, and only while it may
/// write (see [`crate::state::Aftermath::PutBackSoon`]).
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
pub fn recall<S: Server>(server: &mut S, key: Arg<'_>) {
    if server.state().lock.limbo_len() == 0 {
        return;
    }
    let db = server.db();
    let Some(record) = server.state().lock.take_from_limbo(db, key.bytes) else { return };
    let Standing { token, deadline, .. } = record.standing();
    let now = (!server.replayed()).then(|| server.now().to_ms());
    let taken = server.exists(key.bytes);
    if !taken && record.held(now) {
        server.state().lock.arrived(db, record.owner().len());
        server.put_native(key, Lock::Held(record), Some(deadline));
        if now.is_some() {
            server.state().lock.count_put_back();
            effects::propagate_put_back(server, key.bytes, token);
        }
    } else if now.is_some() {
        server.state().lock.count_forgotten();
        effects::propagate_forget(server, key.bytes, token);
    }
}
