"""Work of the cache that no command does, while replicas must see no traffic: CLIENT PAUSE, FAILOVER, a SHUTDOWN that
waits for a replica. A write at such a moment makes the server abort, so it must wait, and go on afterwards."""

import os
import signal
import threading

import pytest
import redis
from servers import eventually, upkeep_passes
from tag_view import (
    at_once,
    cache_get_all,
    fill_tag,
    metric,
    picture,
    retire_and_hold,
    set_tagged,
    tag_info,
    tag_keys,
    tags,
)

SYNC = 100
GIANT = 3000
REST = GIANT - SYNC
# Longer than any test; each ends its pause itself.
PAUSE_MS = 600_000


@pytest.fixture
def pair(make_server):
    """A primary with a small bound of keys unlinked at once, and its replica, up to date."""
    config = ["shutdown-timeout 100"]
    primary = make_server(args=["invalidate-sync-keys", str(SYNC)], config=config)
    replica = make_server(args=["invalidate-sync-keys", str(SYNC)], config=config)
    replica.replicate_from(primary)
    primary.client().set("warm-up", 1)
    primary.client().delete("warm-up")
    replica.wait_until_synced()
    return primary, replica


def stop_process(server):
    os.kill(server.pid, signal.SIGSTOP)


def continue_process(server):
    os.kill(server.pid, signal.SIGCONT)


# CLIENT PAUSE


def test_the_reclaimer_waits_for_the_end_of_a_pause(pair):
    primary, replica = pair
    client = primary.client()
    keys = fill_tag(client, "t", GIANT)
    retire_and_hold(primary, "t")
    upkeep_passes(primary)
    assert client.dbsize() == REST, "nothing may be removed now"
    assert metric(primary, "cache_reclaim_backlog") == REST
    assert not any(cache_get_all(client, keys))
    client.client_unpause()
    eventually(lambda: client.dbsize() == 0, message="the work did not go on")
    replica.wait_until_synced()
    assert replica.client().dbsize() == 0
    assert metric(primary, "cache_ghosts") == 0


def test_the_reclaimer_waits_without_replicas_and_with_an_aof(make_server):
    server = make_server(args=["invalidate-sync-keys", str(SYNC)], config=["appendonly yes"])
    client = server.client()
    fill_tag(client, "t", GIANT)
    retire_and_hold(server, "t")
    upkeep_passes(server)
    assert client.dbsize() == REST
    client.client_unpause()
    eventually(lambda: client.dbsize() == 0)
    server.kill9()
    server.start()
    assert server.client().dbsize() == 0


def test_a_pause_of_all_commands(pair):
    """Not even reads run; timers do."""
    primary, replica = pair
    fill_tag(primary.client(), "t", GIANT)
    at_once(primary, ("CACHE.INVALIDATETAG", "t"), ("CLIENT", "PAUSE", 500, "ALL"))
    client = primary.client()
    assert client.dbsize() >= 0, "answered when the pause is over"
    eventually(lambda: client.dbsize() == 0)
    replica.wait_until_synced()
    assert replica.client().dbsize() == 0


def test_a_pause_that_comes_between_two_slices(pair):
    primary, replica = pair
    client = primary.client()
    fill_tag(client, "t", 20_000)
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == 20_000
    client.client_pause(PAUSE_MS, all=False)
    left = client.dbsize()
    upkeep_passes(primary)
    assert client.dbsize() == left
    client.client_unpause()
    eventually(lambda: client.dbsize() == 0)
    replica.wait_until_synced()
    assert replica.client().dbsize() == 0


def test_keys_that_expire_under_a_pause(pair):
    """They cannot be removed now; they are read as missing, and are forgotten when they go."""
    primary, replica = pair
    client = primary.client()
    keys = fill_tag(client, "t", 200, "u")
    set_tagged(client, "stays", "t")
    expire = [("PEXPIRE", key, 20) for key in keys]
    at_once(primary, *expire, ("CLIENT", "PAUSE", PAUSE_MS, "WRITE"))
    eventually(lambda: not any(cache_get_all(client, keys)))
    # The sweeps look at tagged keys: those are expired and still there.
    upkeep_passes(primary)
    assert client.execute_command("CACHE.TTL", keys[0]) == [-2, -2]
    assert tags(client, keys[0]) == set()
    assert tag_keys(client, "t") == {b"stays"}
    client.client_unpause()
    eventually(lambda: client.dbsize() == 1)
    eventually(lambda: tag_info(client, "u")["keys"] == 0)
    assert metric(primary, "cache_tagged_keys") == 1
    assert metric(primary, "cache_ghosts") == 0
    replica.wait_until_synced()
    assert picture(replica) == picture(primary)


def test_floors_that_end_under_a_pause(make_server):
    server = make_server(args=["version-floor-ms", "20"])
    client = server.client()
    with client.pipeline(transaction=True) as pipeline:
        # In one turn, so that it does not end before it is seen.
        pipeline.execute_command("CACHE.FLOOR", "k", 5)
        pipeline.info("keyward_cache")
        assert pipeline.execute()[1]["keyward_cache_version_floors_lingering"] == 1
    client.client_pause(PAUSE_MS, all=False)
    upkeep_passes(server)
    client.client_unpause()
    assert client.execute_command("CACHE.SET", "k", "v", "VERSION", 1) == b"OK"
    eventually(lambda: metric(server, "cache_version_floors_lingering") == 0)


def test_commands_that_wait_for_the_pause_run_after_it(pair):
    primary, _ = pair
    client = primary.client()
    keys = fill_tag(client, "t", GIANT)
    retire_and_hold(primary, "t")
    replies = []
    waiting = primary.client()

    def write():
        replies.append(waiting.execute_command("CACHE.SET", keys[0], "new", "TAGS", 1, "t"))

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    eventually(lambda: primary.info("clients")["blocked_clients"] >= 1)
    client.client_unpause()
    thread.join(30)
    assert replies == [b"OK"]
    eventually(lambda: client.dbsize() == 1)
    assert client.execute_command("CACHE.GET", keys[0]) == b"new"
    assert tag_keys(client, "t") == {keys[0]}


# FAILOVER


def test_failover_in_the_middle_of_a_giant_invalidation(pair):
    """The old primary pauses writes until the replica is level, and then becomes its replica: nothing may be removed in
    between. The new primary does the rest."""
    primary, replica = pair
    keys = fill_tag(primary.client(), "t", 20_000)
    replica.wait_until_synced()
    with primary.client() as client:
        pipeline = client.pipeline(transaction=False)
        pipeline.execute_command("CACHE.INVALIDATETAG", "t")
        pipeline.execute_command("FAILOVER", "TO", "127.0.0.1", replica.port)
        assert pipeline.execute() == [20_000, b"OK"]
    primary.primary, replica.primary = replica, None
    eventually(lambda: replica.info("replication")["role"] == "master", timeout=30)
    new = replica.client()
    assert not any(cache_get_all(new, keys))
    eventually(lambda: new.dbsize() == 0, message="the new primary did not go on")
    eventually(lambda: primary.info("replication")["role"] == "slave")
    primary.wait_until_synced()
    assert primary.client().dbsize() == 0
    for server in pair:
        assert metric(server, "cache_reclaim_backlog") == 0
        assert metric(server, "cache_ghosts") == 0


def test_a_failover_that_is_called_off(pair):
    """The replica is stopped, so that the primary goes on waiting for it."""
    primary, replica = pair
    client = primary.client()
    keys = fill_tag(client, "t", GIANT)
    expiring = fill_tag(client, "u", 50, prefix="expiring")
    replica.wait_until_synced()
    stop_process(replica)
    try:
        pipeline = client.pipeline(transaction=False)
        for key in expiring:
            pipeline.pexpire(key, 100)
        pipeline.execute_command("CACHE.INVALIDATETAG", "t")
        pipeline.execute_command("FAILOVER")
        pipeline.execute()
        upkeep_passes(primary)
        assert primary.info("replication")["master_failover_state"] == "waiting-for-sync"
        assert client.dbsize() >= REST
        assert not any(cache_get_all(client, keys + expiring))
        client.execute_command("FAILOVER", "ABORT")
        eventually(lambda: client.dbsize() == 0, message="the work did not go on")
    finally:
        continue_process(replica)
    replica.wait_until_synced()
    assert replica.client().dbsize() == 0


# SHUTDOWN


def shut_down(server):
    """On a connection of its own: it is not answered."""
    with pytest.raises((redis.ConnectionError, redis.ResponseError)):
        server.client().execute_command("SHUTDOWN", "NOSAVE")


def test_a_shutdown_that_waits_for_a_replica(pair):
    primary, replica = pair
    client = primary.client()
    keys = fill_tag(client, "t", 20_000)
    replica.wait_until_synced()
    stop_process(replica)
    try:
        at_once(primary, ("CACHE.INVALIDATETAG", "t"), ("CLIENT", "PAUSE", PAUSE_MS, "WRITE"))
        thread = threading.Thread(target=shut_down, args=(primary,), daemon=True)
        thread.start()
        eventually(lambda: "replicas before shutting down" in primary.log())
        client.client_unpause()
        left = client.dbsize()
        upkeep_passes(primary)
        assert client.dbsize() == left, "nothing may be removed while it waits"
        assert not any(cache_get_all(client, keys))
    finally:
        continue_process(replica)
    # Now the replica is level, and the primary ends in peace.
    thread.join(30)
    primary.stop()
    eventually(lambda: "Connection with master lost" in replica.log() or "PRIMARY" in replica.log())
    replica.promote()
    assert not any(cache_get_all(replica.client(), keys))
    eventually(lambda: replica.client().dbsize() == 0)


def test_a_shutdown_that_is_called_off(pair):
    primary, replica = pair
    client = primary.client()
    keys = fill_tag(client, "t", 20_000)
    expiring = fill_tag(client, "u", 50, prefix="expiring")
    replica.wait_until_synced()
    stop_process(replica)
    try:
        expire = [("PEXPIRE", key, 100) for key in expiring]
        at_once(primary, *expire, ("CACHE.INVALIDATETAG", "t"), ("CLIENT", "PAUSE", PAUSE_MS, "WRITE"))
        thread = threading.Thread(target=shut_down, args=(primary,), daemon=True)
        thread.start()
        eventually(lambda: "replicas before shutting down" in primary.log())
        client.client_unpause()
        left = client.dbsize()
        upkeep_passes(primary)
        assert client.dbsize() == left
        assert not any(cache_get_all(client, keys + expiring))
        client.execute_command("SHUTDOWN", "ABORT")
        thread.join(30)
        eventually(lambda: client.dbsize() == 0, message="the work did not go on")
    finally:
        continue_process(replica)
    replica.wait_until_synced()
    assert replica.client().dbsize() == 0


# Demotion


def test_demotion_in_the_middle_of_a_giant_invalidation(pair):
    """A replica removes nothing of its own accord."""
    primary, other = pair
    client = primary.client()
    keys = fill_tag(client, "t", GIANT)
    other.wait_until_synced()
    other.promote()
    retire_and_hold(primary, "t")
    client.replicaof("127.0.0.1", other.port)
    client.client_unpause()
    primary.primary = other
    primary.wait_until_synced()
    # The invalidation was never heard of there.
    assert cache_get_all(client, keys) == [b"v"] * GIANT
    assert picture(primary) == picture(other)
    assert metric(primary, "cache_reclaim_backlog") == 0
