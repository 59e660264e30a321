//! Queues and their keys: looking one up, making one, and bringing back what was evicted.

use super::effects;
use super::index::QueueId;
use super::queue::Queue;
use super::value::Handle;
use crate::args::Arg;
use crate::error::Error;
use crate::server::Server;

/// The queue of this name; what was evicted comes back first. `None`: there is none.
pub fn open<S: Server>(server: &mut S, queue: Arg<'_>) -> Result<Option<QueueId>, Error> {
    recall(server, queue);
    if let Some(handle) = server.native::<Handle>(queue)? {
        return Ok(handle.id());
    }
    // The look itself may have found that the key had expired, which does not end a queue.
    let db = server.db();
    if server.state().writebehind.in_limbo(db, queue.bytes).is_none() {
        return Ok(None);
    }
    recall(server, queue);
    Ok(server.native::<Handle>(queue)?.and_then(|handle| handle.id()))
}

/// The same for commands that change nothing.
pub fn look<S: Server>(server: &mut S, queue: Arg<'_>) -> Result<Option<QueueId>, Error> {
    if let Some(handle) = server.native::<Handle>(queue)? {
        return Ok(handle.id());
    }
    let db = server.db();
    Ok(server.state().writebehind.in_limbo(db, queue.bytes).map(|queued| queued.id))
}

/// The queue of this name; one is made if there is none. The name holds a queue or nothing.
pub fn open_or_create<S: Server>(server: &mut S, queue: Arg<'_>, born: i64) -> Result<QueueId, Error> {
    if let Some(id) = open(server, queue)? {
        return Ok(id);
    }
    let db = server.db();
    let id = server.state().writebehind.insert(db, queue.bytes, Queue::new(born));
    server.put_native(queue, Handle::Queue(id), None);
    Ok(id)
}

/// Ends the queue of this token, with its key or without. The key stays, with an empty queue that nobody knows: what removed it or wrote
/// over it on the primary comes next, and a plain write keeps the tags of the key. Anything else of that name is left alone.
pub fn forget<S: Server>(server: &mut S, queue: Arg<'_>, born: i64) {
    let db = server.db();
    server.state().writebehind.drop_keyless(db, queue.bytes, born);
    let Ok(Some(handle)) = server.native::<Handle>(queue) else { return };
    let Some(id) = handle.id() else { return };
    if server.state().writebehind.queue(id).is_some_and(|queue| queue.born == born) {
        server.state().writebehind.forget(id);
        if let Ok(Some(handle)) = server.native::<Handle>(queue) {
            *handle = Handle::Loaded(Box::new(Queue::new(born)));
        }
    }
}

/// Gives evicted queues their keys back, at most `max`. True if some are left. Only for the primary, and only while it may
/// write.
pub fn put_back<S: Server>(server: &mut S, max: usize) -> bool {
    let home = server.db();
    for name in server.state().writebehind.names_in_limbo(max) {
        server.select(name.db);
        if server.db() == name.db {
            recall(server, Arg::named(&name.key));
        } else if let Some(queued) = server.state().writebehind.take_from_limbo(name.db, &name.key) {
            // From a file of a server with more databases.
            server.state().writebehind.forget(queued.id);
        }
    }
    server.select(home);
    server.state().writebehind.limbo_len() > 0
}

/// If the queue of this name was evicted, its key comes back, unless something else has the name.
pub fn recall<S: Server>(server: &mut S, queue: Arg<'_>) {
    if server.state().writebehind.limbo_len() == 0 {
        return;
    }
    let db = server.db();
    let Some(queued) = server.state().writebehind.take_from_limbo(db, queue.bytes) else { return };
    let decides = !server.replayed();
    if server.exists(queue.bytes) {
        server.state().writebehind.forget(queued.id);
        if decides {
            effects::propagate_forget(server, queue.bytes, queued.born);
        }
        return;
    }
    server.put_native(queue, Handle::Queue(queued.id), None);
    if decides {
        let put_backs = &mut server.state().writebehind.counters.put_backs;
        *put_backs = put_backs.saturating_add(1);
        effects::propagate_put_back(server, queue.bytes, queued.born);
    }
}
