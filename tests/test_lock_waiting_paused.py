"""Those who wait for locks while replicas must see no traffic: CLIENT PAUSE, FAILOVER, a SHUTDOWN that waits for a replica. A
grant at such a moment would make the server abort: it comes when the pause is over, or the wait ends by itself."""

import os
import signal
import threading

import pytest
import redis
from locks import Waiters, evict_everything, is_error, make_evicting
from servers import eventually, upkeep_passes

# Longer than any test; each ends its pause itself.
PAUSE = ("CLIENT", "PAUSE", 600_000, "WRITE")
UNPAUSE = ("CLIENT", "UNPAUSE")


@pytest.fixture
def pair(make_server):
    """A primary that can evict in one go, and its replica, up to date."""
    primary = make_evicting(make_server, "allkeys-random", "shutdown-timeout 100")
    replica = make_server(config=["maxmemory-policy allkeys-random", "shutdown-timeout 100"])
    replica.replicate_from(primary).wait_until_synced()
    primary.client().set("warm-up", 1)
    replica.wait_until_synced()
    return primary, replica


@pytest.fixture
def waiters(pair):
    with Waiters(pair[0]) as waiters:
        yield waiters


def over(waiters, token, key="lock"):
    """Waits for the end of a lease, and a little longer."""
    eventually(lambda: waiters.call("LOCK.VALIDATE", key, token) == 0)


@pytest.mark.parametrize("mode", [(), ("SHARED",), ("PERMITS", 1)], ids=["exclusive", "shared", "permits"])
def test_a_lease_that_ends_under_a_pause_is_granted_after_it(pair, waiters, mode):
    primary, replica = pair
    token = waiters.acquire("ann", px=1500)
    bob, cy = waiters.wait("bob", *mode), waiters.wait("cy")
    waiters.call(*PAUSE)
    over(waiters, token)
    upkeep_passes(primary)
    assert waiters.queue() == ["bob", "cy"]
    assert not bob.is_answered()
    waiters.call(*UNPAUSE)
    newer = bob.read()
    assert newer > token
    assert not cy.is_answered()
    replica.wait_until_synced()
    assert replica.client().execute_command("LOCK.VALIDATE", "lock", newer) == 1


def test_without_replicas_but_with_an_aof(make_server):
    server = make_server(config=["appendonly yes"])
    with Waiters(server) as waiters:
        token = waiters.acquire("ann", px=1500)
        bob = waiters.wait("bob", px=600_000)
        waiters.call(*PAUSE)
        over(waiters, token)
        upkeep_passes(server)
        assert not bob.is_answered()
        waiters.call(*UNPAUSE)
        newer = bob.read()
        server.kill9()
    server.start()
    with Waiters(server) as waiters:
        assert waiters.call("LOCK.VALIDATE", "lock", newer) == 1


def test_a_permit_that_ends_beside_another(pair, waiters):
    primary, _ = pair
    token = waiters.acquire("ann", "PERMITS", 2, px=1500)
    waiters.acquire("bob", "PERMITS", 2)
    cy = waiters.wait("cy", "PERMITS", 2)
    waiters.call(*PAUSE)
    over(waiters, token)
    upkeep_passes(primary)
    assert not cy.is_answered()
    waiters.call(*UNPAUSE)
    assert cy.read()


def test_what_was_freed_in_the_packet_that_pauses(pair, waiters):
    """The lock goes with a key event, and the timer that would grant it finds the server paused."""
    primary, replica = pair
    waiters.acquire("ann")
    bob = waiters.wait("bob")
    waiters.admin.pipeline([("DEL", "lock"), PAUSE])
    upkeep_passes(primary)
    assert not bob.is_answered()
    waiters.call(*UNPAUSE)
    token = bob.read()
    replica.wait_until_synced()
    assert replica.client().execute_command("LOCK.VALIDATE", "lock", token) == 1


def test_a_connection_that_closes_under_a_pause(pair, waiters):
    primary, replica = pair
    client = waiters.connect()
    client.call("LOCK.ACQUIRE", "lock", "ann", "PX", 600_000, "SESSION")
    client.call("LOCK.ACQUIRE", "other", "ann", "PX", 600_000, "SESSION")
    bob = waiters.wait("bob")
    waiters.call(*PAUSE)
    client.close()
    upkeep_passes(primary)
    assert waiters.owners() == ["ann"]
    assert not bob.is_answered()
    waiters.call(*UNPAUSE)
    assert bob.read()
    eventually(lambda: waiters.call("EXISTS", "other") == 0)
    replica.wait_until_synced()
    assert replica.client().exists("other") == 0


@pytest.mark.parametrize("how", ["runs out", "unblocked", "killed"])
def test_a_wait_that_ends_under_a_pause(pair, waiters, how):
    primary, _ = pair
    waiters.acquire("ann", "SHARED")
    writer = waiters.connect()
    number = writer.call("CLIENT", "ID")
    waiters.wait("writer", client=writer, wait_ms=1000 if how == "runs out" else 0)
    reader = waiters.wait("bob", "SHARED")
    waiters.call(*PAUSE)
    if how == "killed":
        waiters.call("CLIENT", "KILL", "ID", number)
    else:
        if how == "unblocked":
            waiters.call("CLIENT", "UNBLOCK", number)
        assert writer.read() is None
    eventually(lambda: waiters.queue() == ["bob"])
    upkeep_passes(primary)
    assert not reader.is_answered(), "it could go now, if it were not for the pause"
    waiters.call(*UNPAUSE)
    assert reader.read()


def test_a_release_that_waits_for_the_pause_grants_after_it(pair, waiters):
    primary, _ = pair
    waiters.acquire("ann")
    bob = waiters.wait("bob")
    waiters.call(*PAUSE)
    ann = waiters.connect()
    ann.send("LOCK.RELEASE", "lock", "ann")
    eventually(lambda: primary.info("clients")["blocked_clients"] >= 2)
    assert not bob.is_answered()
    waiters.call(*UNPAUSE)
    assert ann.read() == 1
    assert bob.read()


def test_a_pause_of_all_commands(pair, waiters):
    """Not even reads run; timers do."""
    waiters.acquire("ann", px=1000)
    bob = waiters.wait("bob")
    waiters.call("CLIENT", "PAUSE", 1500, "ALL")
    assert bob.read()


def test_an_evicted_lock_under_a_pause(pair, waiters):
    primary, _ = pair
    token = waiters.acquire("ann", px=1500)
    bob = waiters.wait("bob")
    evict_everything(primary, PAUSE)
    over(waiters, token)
    upkeep_passes(primary)
    assert not bob.is_answered()
    waiters.call(*UNPAUSE)
    assert bob.read() > token
    eventually(lambda: waiters.metric("limbo") == 0)


def test_a_long_queue_of_readers_whose_grants_a_pause_comes_between(pair, waiters):
    """A release serves the first hundred, and then nobody may be granted."""
    _, replica = pair
    waiters.acquire("ann")
    readers = [waiters.connect() for _ in range(300)]
    for number, reader in enumerate(readers):
        reader.send("LOCK.ACQUIRE", "lock", f"reader-{number}", "PX", 600_000, "SHARED", "WAIT", 0)
    eventually(lambda: waiters.number() == 300)
    released, _, info = waiters.admin.pipeline([("LOCK.RELEASE", "lock", "ann"), PAUSE, ("INFO", "keyward_lock")])
    assert released == 1
    assert b"keyward_lock_waiters:200\r\n" in info
    waiters.call(*UNPAUSE)
    assert len({reader.read() for reader in readers}) == 300
    replica.wait_until_synced()
    with Waiters(replica) as copy:
        assert copy.owners() == waiters.owners()


# FAILOVER


def test_failover_sends_those_who_wait_away_and_keeps_the_holders(pair, waiters):
    primary, replica = pair
    token = waiters.acquire("ann", px=600_000)
    waiters.acquire("ann", key="short", px=1000)
    clients = [waiters.wait("bob"), waiters.wait("cy", key="short"), waiters.wait_for_all(["lock", "short"], "dan")]
    evict = evict_everything(primary, ("FAILOVER", "TO", "127.0.0.1", replica.port))
    assert evict == ["OK"]
    primary.primary, replica.primary = replica, None
    eventually(lambda: replica.info("replication")["role"] == "master", timeout=30)
    answers = [client.read() for client in clients]
    assert is_error(answers[0], "UNBLOCKED ")
    # `short` may have been over in time.
    assert all(isinstance(answer, int) or is_error(answer, "UNBLOCKED ") for answer in answers[1:])
    with Waiters(replica) as there:
        assert there.owners() == ["ann"]
        bob = there.wait("bob")
        assert there.release("ann") == 1
        newer = bob.read()
        assert newer > token
        eventually(lambda: primary.info("replication")["role"] == "slave")
        primary.wait_until_synced()
        assert waiters.call("LOCK.VALIDATE", "lock", newer) == 1
        assert is_error(waiters.acquire("eve", "WAIT", 0), "READONLY ")


def stopped(replica):
    os.kill(replica.pid, signal.SIGSTOP)


def continued(replica):
    os.kill(replica.pid, signal.SIGCONT)


def test_a_failover_that_is_called_off_grants_afterwards(pair, waiters):
    """The replica is stopped, so that the primary goes on waiting for it."""
    primary, replica = pair
    token = waiters.acquire("ann", px=1500)
    bob = waiters.wait("bob")
    client = waiters.connect()
    client.call("LOCK.ACQUIRE", "session", "ann", "PX", 600_000, "SESSION")
    cy = waiters.wait("cy", key="session")
    replica.wait_until_synced()
    stopped(replica)
    try:
        waiters.admin.pipeline([("SET", "ahead of", "the replica"), ("FAILOVER",)])
        client.close()
        over(waiters, token)
        upkeep_passes(primary)
        assert primary.info("replication")["master_failover_state"] == "waiting-for-sync"
        assert not bob.is_answered()
        assert not cy.is_answered()
        waiters.call("FAILOVER", "ABORT")
        assert bob.read() > token
        assert cy.read()
    finally:
        continued(replica)
    replica.wait_until_synced()
    with Waiters(replica) as copy:
        assert (copy.owners(), copy.owners("session")) == (["bob"], ["cy"])


# SHUTDOWN


def shut_down(server):
    """On a connection of its own: it is not answered."""
    with pytest.raises((redis.ConnectionError, redis.ResponseError)):
        server.client().execute_command("SHUTDOWN", "NOSAVE")


def test_a_shutdown_that_waits_for_a_replica(pair, waiters):
    primary, replica = pair
    token = waiters.acquire("ann", px=1500)
    bob, cy = waiters.wait("bob", px=1500), waiters.wait("cy")
    client = waiters.connect()
    client.call("LOCK.ACQUIRE", "session", "ann", "PX", 600_000, "SESSION")
    dan = waiters.wait("dan", key="session")
    replica.wait_until_synced()
    stopped(replica)
    try:
        waiters.call("SET", "ahead of", "the replica")
        threads = [threading.Thread(target=shut_down, args=(primary,), daemon=True) for _ in range(2)]
        threads[0].start()
        eventually(lambda: "replicas before shutting down" in primary.log())
        client.close()
        over(waiters, token)
        upkeep_passes(primary)
        assert not bob.is_answered()
        assert not dan.is_answered()
        waiters.call("SHUTDOWN", "ABORT")
        threads[0].join(30)
        newer = bob.read()
        assert newer > token
        assert dan.read()
        # And again, to its end.
        threads[1].start()
        eventually(lambda: primary.log().count("replicas before shutting down") >= 2)
        over(waiters, newer)
        upkeep_passes(primary)
        assert not cy.is_answered()
    finally:
        continued(replica)
    threads[1].join(30)
    primary.stop()
    with pytest.raises(OSError, match="closed|reset"):
        cy.read()


def test_a_shutdown_with_those_who_wait(make_server):
    server = make_server(config=["save 3600 1"])
    with Waiters(server) as waiters:
        token = waiters.acquire("ann")
        clients = [waiters.wait("bob"), waiters.wait("cy", wait_ms=60_000), waiters.wait_for_all(["lock", "x"], "dan")]
        server.stop()
        for client in clients:
            with pytest.raises(OSError, match="closed|reset"):
                client.read()
    server.start()
    with Waiters(server) as waiters:
        assert waiters.call("LOCK.VALIDATE", "lock", token) == 1
        assert waiters.number() == 0
