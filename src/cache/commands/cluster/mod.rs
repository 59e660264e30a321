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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::commands::rule;
    use crate::cache::commands::set::Set;
    use crate::cluster::{MAX_PAYLOAD, NodeId, Nodes};
    use crate::fake_server::FakeServer;

    /// A node with some keys; the slots are shared evenly, and this one has the first part.
    fn server(shards: usize) -> FakeServer {
        let mut server = FakeServer::new();
        for line in ["a v TAGS 1 t", "b v TAGS 2 t u", "c v"] {
            server.call::<Set>(&format!("CACHE.SET {line}")).unwrap();
        }
        server.call::<rule::Set>("CACHE.RULE SET e KEYS 1 {key} TAGS 1 t").unwrap();
        server.take_replicated();
        let line = |node: usize| {
            let (first, last) = (16384 * node / shards, 16384 * (node + 1) / shards - 1);
            let me = if node == 0 { "myself," } else { "" };
            format!("{node:0width$} h:{node}@1 {me}master - 0 0 1 connected {first}-{last}\n", width = NodeId::LENGTH)
        };
        let text: String = (0..shards).map(line).collect();
        server.nodes = (shards > 0).then(|| Nodes::parse(text.as_bytes()).unwrap());
        server
    }

    #[test]
    fn the_own_part_is_done_at_once_and_the_others_are_sent_theirs() {
        for (line, own) in [
            ("CACHE.CLUSTER INVALIDATETAG u x", 1),
            ("CACHE.CLUSTER STALETAG t", 2),
            (r#"CACHE.CLUSTER EMIT e {"key":"c"}"#, 3),
        ] {
            let mut server = server(3);
            assert_eq!(call(&mut server, line), Ok(Reply::Later), "{line}");
            assert_eq!((server.keys.len(), server.waiting.len(), server.messages.len()), (3 - own, 1, 2), "{line}");
            assert_eq!(server.messages[0].bytes.len(), server.messages[1].bytes.len());
        }
    }

    #[test]
    fn where_there_is_nobody_else_it_is_the_plain_command() {
        for shards in [0, 1] {
            let mut server = server(shards);
            assert_eq!(call(&mut server, "CACHE.CLUSTER INVALIDATETAG u"), Ok(Reply::Int(1)));
            assert_eq!(call(&mut server, "CACHE.CLUSTER STALETAG t"), Ok(Reply::Int(1)));
            assert_eq!(call(&mut server, r#"CACHE.CLUSTER EMIT e {"key":"c"}"#), Ok(Reply::Int(1)));
            assert!(server.messages.is_empty() && server.waiting.is_empty());
        }
        let mut server = server(0);
        server.never_blocks = true;
        assert_eq!(call(&mut server, "CACHE.CLUSTER INVALIDATETAG u"), Ok(Reply::Int(1)), "nor to wait for");
    }

    #[test]
    fn what_is_refused_does_nothing() {
        let mut server = server(2);
        server.denied.push(b"denied".to_vec());
        let refused = |server: &mut FakeServer, line: &str, error: Error| {
            assert_eq!(call(server, line), Err(error), "{line}");
            assert!(server.keys.len() == 3 && server.waiting.is_empty() && server.messages.is_empty());
            assert!(server.take_replicated().is_empty());
        };
        for line in ["INVALIDATETAG t denied", "STALETAG denied", r#"EMIT e {"key":"denied"}"#] {
            refused(&mut server, &format!("CACHE.CLUSTER {line}"), Error::NoPermission);
        }
        let tag = "t".repeat(512);
        let tags = vec![&*tag; MAX_PAYLOAD / 512 + 1].join(" ");
        refused(&mut server, &format!("CACHE.CLUSTER INVALIDATETAG {tags}"), Error::FanOutLength);
        server.never_blocks = true;
        refused(&mut server, "CACHE.CLUSTER STALETAG t", Error::MustWait("cache.cluster|staletag"));
        refused(&mut server, r#"CACHE.CLUSTER EMIT e {"key":"c"}"#, Error::MustWait("cache.cluster|emit"));
        assert_eq!(server.state.cache.counters.events, 0);
        server.never_blocks = false;
        server.state.config.waiters_max = 0;
        refused(&mut server, "CACHE.CLUSTER INVALIDATETAG t", Error::TooManyWaiters);
    }

    fn call<'s>(server: &'s mut FakeServer, line: &str) -> Result<Reply<'s>, Error> {
        match line.split(' ').nth(1).unwrap() {
            "INVALIDATETAG" => server.call::<InvalidateTag>(line),
            "STALETAG" => server.call::<StaleTag>(line),
            _ => server.call::<Emit>(line),
        }
    }
}
