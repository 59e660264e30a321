"""Locks with SESSION: they end with their connection, however that ends, or with their lease."""

import subprocess
import sys

import pytest
from locks import Waiters, make_evicting
from propagation import ReplicationStream
from raw_client import RawClient
from servers import eventually


@pytest.fixture
def waiters(server, protocol):
    with Waiters(server, protocol) as waiters:
        yield waiters
        waiters.call("FLUSHALL")
        eventually(lambda: waiters.metric("sessions") == 0)


def holding(waiters, owner="ann", *options, key="lock", px=600_000):
    """A connection of its own that holds the lock."""
    client = waiters.connect()
    assert isinstance(client.call("LOCK.ACQUIRE", key, owner, "PX", px, "SESSION", *options), int)
    return client


def test_a_lock_ends_with_its_connection(waiters):
    client = holding(waiters)
    number = client.call("CLIENT", "ID")
    assert waiters.info()["holders"][0][4] == number
    assert waiters.metric("sessions") == 1
    before = waiters.metric("sessions_closed")
    client.close()
    eventually(lambda: waiters.call("EXISTS", "lock") == 0)
    assert waiters.metric("sessions") == 0
    assert waiters.metric("sessions_closed") == before + 1


def test_a_process_that_is_killed_leaves_no_lock_behind(server, waiters):
    program = (
        "import socket, time\n"
        f"c = socket.create_connection(('127.0.0.1', {server.port}))\n"
        "c.sendall(b'LOCK.ACQUIRE lock ann PX 600000 SESSION\\r\\n')\n"
        "print(c.recv(100), flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline().startswith(b"b':")
        bob = waiters.wait("bob")
        assert not bob.is_answered()
    finally:
        process.kill()
        process.wait()
    assert bob.read()
    assert waiters.owners() == ["bob"]


@pytest.mark.parametrize("how", ["CLIENT KILL", "QUIT"])
def test_other_ends_of_a_connection(waiters, how):
    client = holding(waiters)
    bob = waiters.wait("bob")
    if how == "QUIT":
        client.send("QUIT")
    else:
        assert waiters.call("CLIENT", "KILL", "ID", client.call("CLIENT", "ID")) == 1
    assert bob.read()


def test_without_session_it_stays(waiters):
    client = waiters.connect()
    client.call("LOCK.ACQUIRE", "lock", "ann", "PX", 600_000)
    holding(waiters, key="marker").close()
    client.close()
    eventually(lambda: waiters.call("EXISTS", "marker") == 0)
    assert waiters.owners() == ["ann"]
    assert waiters.info()["holders"][0][4] == 0


def test_it_ends_with_its_lease_as_well(waiters):
    client = holding(waiters, px=500)
    bob = waiters.wait("bob")
    assert bob.read()
    client.close()
    holding(waiters, key="marker").close()
    eventually(lambda: waiters.call("EXISTS", "marker") == 0)
    assert waiters.owners() == ["bob"], "it was not his any more"


def test_a_released_lock_is_none_of_the_connection_s_business(waiters):
    client = holding(waiters)
    assert client.call("LOCK.RELEASE", "lock", "ann") == 1
    waiters.acquire("ann")
    assert waiters.metric("sessions") == 0
    client.close()
    holding(waiters, key="marker").close()
    eventually(lambda: waiters.call("EXISTS", "marker") == 0)
    assert waiters.owners() == ["ann"]


def test_acquired_again_elsewhere_it_belongs_to_the_new_connection(waiters):
    first, second = holding(waiters), waiters.connect()
    token = waiters.info()["token"]
    assert second.call("LOCK.ACQUIRE", "lock", "ann", "PX", 10, "SESSION") == token
    assert waiters.info()["holders"][0][4] == second.call("CLIENT", "ID")
    first.close()
    holding(waiters, key="marker").close()
    eventually(lambda: waiters.call("EXISTS", "marker") == 0)
    assert waiters.owners() == ["ann"]
    second.close()
    eventually(lambda: waiters.owners() == [])


def test_acquired_again_without_session_it_still_ends_with_the_old_connection(waiters):
    client = holding(waiters)
    waiters.acquire("ann", px=6_000_000)
    waiters.call("LOCK.EXTEND", "lock", "ann", "PX", 60_000_000)
    client.close()
    eventually(lambda: waiters.owners() == [])


def test_all_holds_end_with_it(waiters):
    client = holding(waiters, "ann", "REENTRANT")
    for _ in range(3):
        waiters.acquire("ann", "REENTRANT")
    client.close()
    eventually(lambda: waiters.owners() == [])


def test_one_reader_s_connection_ends_his_hold_alone(waiters):
    waiters.acquire("ann", "SHARED")
    client = holding(waiters, "bob", "SHARED")
    waiters.acquire("cy", "SHARED")
    writer = waiters.wait("writer")
    client.close()
    eventually(lambda: waiters.owners() == ["ann", "cy"])
    assert not writer.is_answered()
    waiters.release("ann")
    waiters.release("cy")
    assert writer.read()


def test_a_permit_s_connection_lets_the_next_one_in(waiters):
    holding(waiters, "ann", "PERMITS", 2)
    client = holding(waiters, "bob", "PERMITS", 2)
    cy = waiters.wait("cy", "PERMITS", 2)
    client.close()
    assert cy.read()
    assert waiters.owners() == ["ann", "cy"]


def test_several_keys_end_together(waiters):
    client = waiters.connect()
    assert client.call("LOCK.MACQUIRE", 3, "a", "b", "c", "ann", "PX", 600_000, "SESSION")
    assert waiters.metric("sessions") == 3
    bob = waiters.wait_for_all(["a", "c"], "bob")
    client.close()
    assert bob.read()
    eventually(lambda: waiters.owners("b") == [])
    assert waiters.owners("a") == waiters.owners("c") == ["bob"]


def test_many_locks_of_one_connection(waiters):
    client = waiters.connect()
    keys = [f"lock:{number}" for number in range(20_000)]
    client.pipeline([("LOCK.ACQUIRE", key, "ann", "PX", 600_000, "SESSION") for key in keys])
    assert waiters.metric("sessions") == len(keys)
    last = waiters.wait("bob", key=keys[-1])
    client.close()
    assert last.read()
    eventually(lambda: waiters.call("DBSIZE") == 1)
    assert waiters.metric("sessions") == 0


def test_who_waits_is_granted_a_lock_that_ends_with_his_connection(waiters):
    waiters.acquire("ann")
    bob = waiters.wait("bob", "SESSION")
    cy = waiters.wait("cy")
    assert waiters.metric("sessions") == 0
    waiters.release("ann")
    assert bob.read()
    assert waiters.info()["holders"][0][4] == bob.call("CLIENT", "ID")
    bob.close()
    assert cy.read()


def test_a_connection_that_holds_one_lock_and_waits_for_another(waiters):
    client = holding(waiters)
    waiters.acquire("ann", key="other")
    waiters.wait("bob", "SESSION", key="other", client=client)
    cy, dan = waiters.wait("cy"), waiters.wait("dan", key="other")
    client.close()
    assert cy.read()
    eventually(lambda: waiters.queue("other") == ["dan"])
    waiters.release("ann", key="other")
    assert dan.read()


@pytest.mark.parametrize("move", [("RENAME", "lock", "there"), ("SWAPDB", 0, 1)], ids=lambda words: words[0])
def test_it_goes_along_with_its_key(waiters, move):
    client = holding(waiters)
    waiters.call(*move)
    there, key = (waiters.admin, "there") if move[0] == "RENAME" else (waiters.connect(db=1), "lock")
    assert there.call("EXISTS", key) == 1
    assert waiters.metric("sessions") == 1
    client.close()
    eventually(lambda: there.call("EXISTS", key) == 0)


def test_a_copy_does_not_end_with_it(waiters):
    client = holding(waiters)
    waiters.call("COPY", "lock", "copy")
    assert waiters.info("copy")["holders"][0][4] == 0
    client.close()
    eventually(lambda: waiters.call("EXISTS", "lock") == 0)
    assert waiters.owners("copy") == ["ann"]


@pytest.mark.parametrize("removal", [("DEL", "lock"), ("SET", "lock", "x"), ("FLUSHALL",)], ids=lambda words: words[0])
def test_a_removed_lock_is_forgotten(waiters, removal):
    client = holding(waiters)
    waiters.call(*removal)
    assert waiters.metric("sessions") == 0
    waiters.call("DEL", "lock")
    waiters.acquire("ann")
    client.close()
    holding(waiters, key="marker").close()
    eventually(lambda: waiters.call("EXISTS", "marker") == 0)
    assert waiters.owners() == ["ann"]


# Where there is no connection

NEEDS = "ERR SESSION needs a connection"
FUNCTION = """#!lua name=sessions
redis.register_function('session', function(keys) return redis.call('LOCK.ACQUIRE', keys[1], 'ann', 'PX', '1000', 'SESSION') end)
"""


def test_scripts_and_functions_have_none(waiters):
    script = "return redis.call('LOCK.ACQUIRE', KEYS[1], 'ann', 'PX', '1000', 'SESSION')"
    assert waiters.call("EVAL", script, 1, "lock").startswith(NEEDS)
    script = "return redis.call('LOCK.MACQUIRE', '1', KEYS[1], 'ann', 'PX', '1000', 'SESSION')"
    assert waiters.call("EVAL", script, 1, "lock").startswith(NEEDS)
    waiters.call("FUNCTION", "LOAD", "REPLACE", FUNCTION)
    assert waiters.call("FCALL", "session", 1, "lock").startswith(NEEDS)
    waiters.call("FUNCTION", "DELETE", "sessions")
    assert waiters.call("EXISTS", "lock") == 0


def test_a_command_within_another_has_none(waiters):
    """The client that such a command runs as is not a connection, and never closes."""
    token = waiters.acquire("ann")
    inner = ("LOCK.EXEC", "lock", token, "LOCK.ACQUIRE", "other", "ann", "PX", 1000, "SESSION")
    assert waiters.call(*inner) == NEEDS
    assert waiters.admin.pipeline([("MULTI",), inner, ("EXEC",)])[-1] == [NEEDS]
    assert waiters.call("EXISTS", "other") == 0


def test_a_transaction_has_one(waiters):
    client = waiters.connect()
    acquire = ("LOCK.ACQUIRE", "lock", "ann", "PX", 600_000, "SESSION")
    (token,) = client.pipeline([("MULTI",), acquire, ("EXEC",)])[-1]
    assert waiters.info()["token"] == token
    client.close()
    eventually(lambda: waiters.owners() == [])


# Beyond this process


@pytest.mark.parametrize("how", ["rdb", "aof"])
def test_after_a_restart_it_lives_to_the_end_of_its_lease(make_server, how):
    server = make_server(config=["save 3600 1"] if how == "rdb" else ["appendonly yes"])
    with Waiters(server) as waiters:
        holding(waiters)
        holding(waiters, key="short", px=2000)
        if how == "rdb":
            waiters.call("SAVE")
        server.kill9()
    server.start()
    with Waiters(server) as waiters:
        (holder,) = waiters.info()["holders"]
        assert (holder[0], holder[4]) == (b"ann", 0)
        assert waiters.metric("sessions") == 0
        assert waiters.acquire("bob") is None
        eventually(lambda: waiters.acquire("bob", key="short"))
        assert waiters.owners() == ["ann"]


def test_after_a_promotion_it_lives_to_the_end_of_its_lease(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    with Waiters(primary) as waiters, Waiters(replica) as copy:
        client = holding(waiters)
        replica.wait_until_synced()
        assert copy.info()["holders"][0][4] == 0
        replica.promote()
        client.close()
        eventually(lambda: waiters.owners() == [])
        assert copy.owners() == ["ann"]
        assert copy.acquire("bob") is None
        assert copy.release("ann") == 1


def test_a_server_that_was_a_replica_meanwhile_has_forgotten_whose_it_was(make_server):
    server = make_server()
    with Waiters(server) as waiters:
        client = holding(waiters)
        number = client.call("CLIENT", "ID")
        assert waiters.admin.pipeline([("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")]) == ["OK", "OK"]
        (holder,) = waiters.info()["holders"]
        assert holder[4] != number
        client.close()
        holding(waiters, key="marker").close()
        eventually(lambda: waiters.call("EXISTS", "marker") == 0)
        assert waiters.owners() == ["ann"]


def test_the_end_is_replicated(make_server):
    server = make_server()
    with Waiters(server) as waiters, ReplicationStream(server) as stream:
        waiters.acquire("warm-up", key="warm-up")
        client = holding(waiters)
        token = waiters.info()["token"]
        bob = waiters.wait("bob")
        stream.read()
        client.close()
        assert bob.read()
        words = [command for command in stream.read() if command[0] == b"KEYWARD.APPLY"]
        assert words[0] == [b"KEYWARD.APPLY", b"LEAVE", b"lock", str(token).encode()]
        assert words[1][:4] == [b"KEYWARD.APPLY", b"LOCK", b"lock", b"bob"]


def test_an_evicted_lock_ends_with_its_connection_too(make_server):
    """It closes before the key is back."""
    server = make_evicting(make_server)
    with Waiters(server) as waiters:
        client = holding(waiters)
        number = client.call("CLIENT", "ID")
        with RawClient(server) as raw:
            evict = [("CONFIG", "SET", "maxmemory", 1), ("SET", "big", "x"), ("CONFIG", "SET", "maxmemory", 0)]
            *_, killed, exists = raw.pipeline([*evict, ("CLIENT", "KILL", "ID", number), ("EXISTS", "lock")])
        assert (killed, exists) == (1, 0)
        eventually(lambda: waiters.metric("limbo") == 0 and waiters.metric("locks") == 0)
        assert waiters.owners() == []
        assert waiters.metric("sessions") == 0
