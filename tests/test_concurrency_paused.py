"""Clients that wait for a slot, and slots that end with a connection, while replicas must see no traffic: CLIENT PAUSE,
FAILOVER, and a SHUTDOWN that waits for a replica. A write at such a moment makes the server abort, so it must wait, and go on
afterwards."""

import os
import signal

import pytest
from servers import eventually, upkeep_passes
from slots import LONG, Callers, enter, held

# Longer than any test; each ends its pause itself.
PAUSE = ("CLIENT", "PAUSE", 100_000, "WRITE")
GRANTED = [1, 1, 1, 0]


@pytest.fixture
def pair(make_server):
    """A primary and its replica, up to date and acknowledged."""
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    primary.client().set("warm-up", 1)
    replica.wait_until_synced()
    return primary, replica


def test_a_lease_that_ends_under_a_pause_wakes_when_it_is_over(pair):
    primary, replica = pair
    with Callers(primary) as callers:
        callers.enter("a", 1)
        waiter = callers.wait("b", 1)
        callers.first.pipeline([("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, "PX", 100), PAUSE])
        eventually(lambda: held(primary.client()) == [])
        upkeep_passes(primary)
        assert not waiter.is_answered()
        callers.call("CLIENT", "UNPAUSE")
        assert waiter.read() == GRANTED
        replica.wait_until_synced()
        assert held(replica.client()) == [b"b"]


def test_a_connection_that_closes_under_a_pause_frees_its_slot_afterwards(pair):
    primary, replica = pair
    with Callers(primary) as callers:
        holder = callers.connect()
        holder.call("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, *LONG, "SESSION")
        waiter = callers.wait("b", 1)
        callers.call(*PAUSE)
        holder.close()
        upkeep_passes(primary)
        assert not waiter.is_answered()
        assert held(primary.client()) == [b"a"]
        callers.call("CLIENT", "UNPAUSE")
        assert waiter.read() == GRANTED
        replica.wait_until_synced()
        assert held(replica.client()) == [b"b"]


def test_waits_end_under_a_pause(pair):
    primary, _ = pair
    with Callers(primary) as callers:
        callers.enter("a", 1)
        waiter = callers.wait("b", 1, wait_ms=3000)
        gone = callers.wait("c", 1)
        callers.call(*PAUSE)
        gone.close()
        assert waiter.read()[:3] == [0, 1, 1]
        eventually(lambda: callers.waiting() == 0)
        callers.call("CLIENT", "UNPAUSE")


def test_failover_sends_the_waiters_away(pair):
    primary, replica = pair
    with Callers(primary) as callers:
        callers.enter("a", 1)
        waiter = callers.wait("b", 1)
        callers.call("FAILOVER", "TO", "127.0.0.1", replica.port)
        primary.primary, replica.primary = replica, None
        eventually(lambda: replica.info("replication")["role"] == "master", timeout=30)
        assert waiter.read().startswith("UNBLOCKED ")
        copy = replica.client()
        assert enter(copy, "b", 1)[0] == 0
        assert copy.execute_command("RATELIMIT.LEAVE", "slots", "a") == 1
        assert enter(copy, "b", 1) == GRANTED


def test_a_shutdown_that_waits_for_a_replica(pair):
    primary, replica = pair
    with Callers(primary) as callers:
        callers.call("CONFIG", "SET", "shutdown-timeout", 100)
        callers.enter("a", 1)
        waiter = callers.wait("b", 1)
        replica.wait_until_synced()
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            # In one go: the lease ends while the shutdown waits.
            asking = callers.connect()
            asking.send("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, "PX", 300)
            asking.send("SHUTDOWN", "NOSAVE")
            assert asking.read() == GRANTED
            eventually(lambda: "replicas before shutting down" in primary.log())
            eventually(lambda: held(primary.client()) == [])
            upkeep_passes(primary)
            assert not waiter.is_answered()
            callers.call("SHUTDOWN", "ABORT")
            assert waiter.read() == GRANTED
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        replica.wait_until_synced()
        assert held(replica.client()) == [b"b"]
