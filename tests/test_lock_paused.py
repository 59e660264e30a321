"""The work that timers do for locks, while replicas must see no traffic: CLIENT PAUSE, FAILOVER, and a
SHUTDOWN that waits for a replica. A write at such a moment makes the server abort, so it must wait,
and go on afterwards."""

import os
import signal
import threading

import pytest
import redis
from locks import acquire_many, all_valid, evict_everything, make_evicting, validate
from raw_client import RawClient
from servers import eventually, upkeep_passes

# Longer than any test; each ends its pause itself.
PAUSE = ("CLIENT", "PAUSE", 100_000, "WRITE")


@pytest.fixture
def pair(make_server):
    """A primary that can evict in one go, and its replica, up to date and acknowledged."""
    primary = make_evicting(make_server)
    replica = make_server(config=["maxmemory-policy allkeys-random"])
    replica.replicate_from(primary).wait_until_synced()
    primary.client().set("warm-up", 1)
    replica.wait_until_synced()
    return primary, replica


def test_put_back_waits_for_the_end_of_a_pause(pair):
    primary, replica = pair
    client = primary.client()
    locks = acquire_many(client)
    evict_everything(primary, PAUSE)
    upkeep_passes(primary)
    assert client.dbsize() == 0
    assert all_valid(client, locks), "held all the time"
    client.client_unpause()
    eventually(lambda: client.exists(*locks) == len(locks), message="work did not resume")
    replica.wait_until_synced()
    assert replica.client().exists(*locks) == len(locks)
    assert all_valid(replica.client(), locks)


def test_put_back_waits_for_the_end_of_a_pause_without_replicas(make_server):
    """With an AOF, which a paused server does not write either."""
    server = make_evicting(make_server, "allkeys-random", "appendonly yes")
    client = server.client()
    locks = acquire_many(client)
    evict_everything(server, PAUSE)
    upkeep_passes(server)
    client.client_unpause()
    eventually(lambda: client.exists(*locks) == len(locks), message="work did not resume")
    server.kill9()
    server.start()
    assert all_valid(server.client(), locks)


def test_a_pause_of_all_commands(pair):
    """Not even reads run; timers do."""
    primary, replica = pair
    locks = acquire_many(primary.client())
    evict_everything(primary, ("CLIENT", "PAUSE", 500, "ALL"))
    client = primary.client()
    assert client.dbsize() >= 0  # answered when the pause is over
    eventually(lambda: client.exists(*locks) == len(locks), message="work did not resume")
    replica.wait_until_synced()
    assert all_valid(replica.client(), locks)


def test_locks_and_limiters_that_expire_under_a_pause(pair):
    """Keys cannot be removed now; what they say is over all the same."""
    primary, replica = pair
    client = primary.client()
    locks = acquire_many(client, px=300)
    client.execute_command("RATELIMIT.CHECK", "limiter", 1, "PX", 300)
    client.execute_command(*PAUSE)
    eventually(lambda: not any(validate(client, token, key) for key, token in locks.items()))
    eventually(lambda: client.execute_command("RATELIMIT.PEEK", "limiter", 1, "PX", 300)[0] == 1)
    upkeep_passes(primary)
    client.client_unpause()
    eventually(lambda: client.exists("limiter", *locks) == 0)
    replica.wait_until_synced()
    assert replica.client().exists("limiter", *locks) == 0
    assert client.execute_command("LOCK.ACQUIRE", "lock:0", "bob", "PX", 1000) > max(locks.values())


def test_evicted_locks_that_expire_under_a_pause(pair):
    primary, replica = pair
    client = primary.client()
    locks = acquire_many(client, px=300)
    evict_everything(primary, PAUSE)
    eventually(lambda: not any(validate(client, token, key) for key, token in locks.items()))
    upkeep_passes(primary)
    client.client_unpause()
    limbo = "keyward_lock_limbo"
    eventually(lambda: primary.info("everything")[limbo] == 0, message="work did not resume")
    assert client.exists(*locks) == 0
    replica.wait_until_synced()
    assert replica.info("everything")[limbo] == 0


def test_a_write_that_waits_for_the_pause_finds_the_lock_held(pair):
    """It runs in the same turn in which the pause ends, before any timer."""
    primary, _ = pair
    client = primary.client()
    locks = acquire_many(client)
    evict_everything(primary, PAUSE)
    waiting = RawClient(primary)
    replies = []
    thread = threading.Thread(
        target=lambda: replies.append(waiting.call("LOCK.ACQUIRE", "lock:0", "bob", "PX", 1000)), daemon=True
    )
    thread.start()
    eventually(lambda: primary.info("clients")["blocked_clients"] >= 1)
    client.client_unpause()
    thread.join(30)
    waiting.close()
    assert replies == [None]
    assert validate(client, locks["lock:0"], "lock:0") == 1


def test_failover_with_locks_in_limbo(pair):
    """The old primary pauses writes until the replica is level, and then becomes its replica: nothing
    may be put back in between. The new primary does it."""
    primary, replica = pair
    client = primary.client()
    locks = acquire_many(client)
    evict_everything(primary, ("FAILOVER", "TO", "127.0.0.1", replica.port))
    primary.primary, replica.primary = replica, None
    eventually(lambda: replica.info("replication")["role"] == "master", timeout=30)
    copy = replica.client()
    eventually(lambda: copy.exists(*locks) == len(locks), message="work did not resume")
    assert all_valid(copy, locks)
    primary.wait_until_synced()
    assert all_valid(client, locks)
    eventually(lambda: client.exists(*locks) == len(locks))
    assert copy.execute_command("LOCK.ACQUIRE", "lock:0", "bob", "PX", 1000) is None
    assert copy.execute_command("LOCK.ACQUIRE", "new", "bob", "PX", 1000) > max(locks.values())


def test_a_failover_that_is_called_off(pair):
    """The replica is stopped, so that the primary goes on waiting for it."""
    primary, replica = pair
    client = primary.client()
    locks = acquire_many(client)
    replica.wait_until_synced()
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        client.set("ahead of", "the replica")
        evict_everything(primary, ("FAILOVER",))
        upkeep_passes(primary)
        assert primary.info("replication")["master_failover_state"] == "waiting-for-sync"
        assert all_valid(client, locks)
        client.execute_command("FAILOVER", "ABORT")
        eventually(lambda: client.exists(*locks) == len(locks), message="work did not resume")
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    replica.wait_until_synced()
    assert all_valid(replica.client(), locks)


def shut_down(server):
    """Asks for a shutdown that waits for replicas, on a connection of its own: it is not answered."""
    with pytest.raises((redis.ConnectionError, redis.ResponseError)):
        server.client().execute_command("SHUTDOWN", "NOSAVE")


def test_shutdown_waits_for_a_replica_with_locks_in_limbo(pair):
    primary, replica = pair
    client = primary.client()
    client.config_set("shutdown-timeout", 100)
    locks = acquire_many(client)
    replica.wait_until_synced()
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        client.set("ahead of", "the replica")
        evict_everything(primary)
        thread = threading.Thread(target=shut_down, args=(primary,), daemon=True)
        thread.start()
        eventually(lambda: "replicas before shutting down" in primary.log())
        upkeep_passes(primary)
        client.execute_command("SHUTDOWN", "ABORT")
        thread.join(30)
        eventually(lambda: client.exists(*locks) == len(locks), message="work did not resume")
        assert all_valid(client, locks)
        evict_everything(primary)
        thread = threading.Thread(target=shut_down, args=(primary,), daemon=True)
        thread.start()
        eventually(lambda: primary.log().count("replicas before shutting down") >= 2)
        upkeep_passes(primary)
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    # Now it is level, and the primary ends in peace.
    thread.join(30)
    primary.stop()
    assert all_valid(replica.client(), locks)


def test_demotion_with_locks_in_limbo(pair):
    """REPLICAOF in the same turn as the eviction: a replica decides nothing."""
    primary, replica = pair
    client = primary.client()
    locks = acquire_many(client)
    replica.wait_until_synced()
    replica.promote()
    evict_everything(primary, ("REPLICAOF", "127.0.0.1", replica.port))
    primary.primary = replica
    primary.wait_until_synced()
    assert all_valid(client, locks)
    assert client.exists(*locks) == len(locks)
    assert primary.info("everything")["keyward_lock_limbo"] == 0
