//! CACHE.CLUSTER: one file per subcommand.

mod emit;
mod invalidate_tag;
mod stale_tag;

pub use emit::Emit;
pub use invalidate_tag::InvalidateTag;
pub use stale_tag::StaleTag;

use crate::cache::fan_out::Task;
use crate::cluster::Topic;
use crate::error::Error;
use crate::reply::Reply;
use crate::server::Server;
use crate::spec::Container;

pub const CONTAINER: Container =
    Container { name: "cache.cluster", summary: "Invalidates on every shard of a cluster, from any one primary." };

/// Does it here, and holds the client until every other shard has done it. Without a cluster there is nobody to wait for.
fn everywhere<S: Server>(server: &mut S, task: Task<'_>, command: &'static str) -> Result<Reply<'static>, Error> {
    let Some(nodes) = server.nodes()? else { return Ok(Reply::count(task.run(server))) };
    if !server.may_block() {
        return Err(Error::MustWait(command));
    }
    if nodes.shards().all(|node| node.myself) {
        return Ok(Reply::count(task.run(server)));
    }
    let payload = task.clone().encode(server.db())?;
    let state = server.state();
    if !state.has_room_to_wait(0) || !state.cluster.fan_outs.has_room(payload.len()) {
        return Err(Error::TooManyWaiters);
    }
    let waiter = server.block(0, Reply::Nil).ok_or(Error::MustWait(command))?;
    let count = i64::try_from(task.run(server)).unwrap_or(i64::MAX);
    let now = server.now().to_ms();
    let state = server.state();
    let wait_ms = state.config.cluster_wait_ms;
    let messages = state.cluster.fan_out(&nodes, waiter, (Topic::INVALIDATION, payload), count, now, wait_ms);
    server.send_messages(&messages);
    Ok(Reply::Later)
}
