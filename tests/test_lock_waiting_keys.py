"""What becomes of those who wait for a lock when something happens to its key behind its back. Nobody hangs: each waits for
whoever holds the lock now, or is granted it, or is told that there is no lock any more."""

import pytest
from locks import Waiters, answered_once, is_error
from servers import eventually


@pytest.fixture
def waiters(server, protocol):
    with Waiters(server, protocol) as waiters:
        yield waiters
    with Waiters(server) as after:
        eventually(lambda: after.number() == 0)


@pytest.fixture
def contended(waiters):
    """ann holds the lock; bob and cy wait for it."""
    waiters.acquire("ann")
    return waiters.wait("bob"), waiters.wait("cy")


# The key goes away: the next one is granted


def test_rename_takes_the_lock_away_and_the_next_one_gets_the_old_name(waiters, contended):
    bob, _ = contended
    token = waiters.info()["token"]
    assert waiters.call("RENAME", "lock", "there") == "OK"
    assert bob.read() > token
    assert waiters.owners("there") == ["ann"]
    assert waiters.call("LOCK.VALIDATE", "there", token) == 1
    assert (waiters.owners(), waiters.queue()) == (["bob"], ["cy"])
    assert waiters.queue("there") == []


def test_move_takes_the_lock_away(server, waiters, contended):
    bob, _ = contended
    # A connection of its own: Valkey 8.1 leaves it on the wrong database.
    mover, there = waiters.connect(), waiters.connect(db=1)
    assert mover.call("MOVE", "lock", 1) == 1
    assert bob.read()
    assert there.call("LOCK.RELEASE", "lock", "ann") == 1
    assert waiters.queue() == ["cy"]


def test_swapdb_leaves_the_waiters_in_their_database(waiters):
    other = waiters.connect(db=1)
    waiters.acquire("ann")
    waiters.acquire("ann", key="only here")
    other.call("LOCK.ACQUIRE", "lock", "dan", "PX", 60_000)
    bob, frank = waiters.wait("bob"), waiters.wait("frank", key="only here")
    eve = waiters.wait("eve", client=waiters.connect(db=1))
    waiters.call("SWAPDB", 0, 1)
    assert frank.read(), "that lock is in the other database now"
    assert (waiters.owners(), waiters.queue()) == (["dan"], ["bob"])
    assert not bob.is_answered()
    assert not eve.is_answered()
    assert waiters.release("dan") == 1
    assert bob.read()
    assert other.call("LOCK.RELEASE", "lock", "ann") == 1
    assert eve.read()


def test_a_flush_of_another_database_concerns_nobody(waiters, contended):
    bob, _ = contended
    other = waiters.connect(db=1)
    other.call("LOCK.ACQUIRE", "lock", "dan", "PX", 60_000)
    eve = waiters.wait("eve", client=waiters.connect(db=1))
    assert other.call("FLUSHDB") == "OK"
    assert eve.read()
    assert not bob.is_answered()
    assert waiters.queue() == ["bob", "cy"]
    assert waiters.release("ann") == 1
    assert bob.read()


def test_a_flush_grants_every_lock_that_somebody_waits_for(waiters):
    clients = []
    for number in range(50):
        waiters.acquire("ann", key=f"lock:{number}")
        clients.append(waiters.wait("bob", key=f"lock:{number}"))
    assert waiters.call("FLUSHALL") == "OK"
    tokens = [client.read() for client in clients]
    assert len(set(tokens)) == 50
    assert waiters.call("DBSIZE") == 50


# Another lock comes to its name: they wait for that


@pytest.mark.parametrize("how", ["rename", "copy", "restore"])
def test_another_lock_in_its_place_is_waited_for(waiters, contended, how):
    bob, cy = contended
    waiters.acquire("dan", key="other")
    match how:
        case "rename":
            assert waiters.call("RENAME", "other", "lock") == "OK"
        case "copy":
            assert waiters.call("COPY", "other", "lock", "REPLACE") == 1
        case "restore":
            dump = waiters.call("DUMP", "other")
            assert waiters.call("RESTORE", "lock", 60_000, dump, "REPLACE") == "OK"
    eventually(lambda: waiters.owners() == ["dan"])
    assert waiters.queue() == ["bob", "cy"]
    assert not bob.is_answered()
    assert waiters.release("ann") == 0
    assert waiters.release("dan") == 1
    assert bob.read()
    assert waiters.release("bob") == 1
    assert cy.read()


def test_the_lease_of_the_other_lock_wakes_them(waiters, contended):
    bob, _ = contended
    waiters.acquire("dan", key="other", px=600)
    assert waiters.call("COPY", "other", "lock", "REPLACE") == 1
    token = waiters.info()["token"]
    assert bob.read() > token


def test_a_lock_renamed_onto_one_that_is_waited_for_brings_its_own_waiters_nothing(waiters, contended):
    """Those who waited for the other name are granted that."""
    bob, _ = contended
    waiters.acquire("dan", key="other")
    eve = waiters.wait("eve", key="other")
    assert waiters.call("RENAME", "other", "lock") == "OK"
    assert eve.read()
    assert waiters.owners("other") == ["eve"]
    assert waiters.owners() == ["dan"]
    assert not bob.is_answered()


def test_a_server_reloads_its_data_and_they_wait_on(waiters, contended):
    bob, _ = contended
    token = waiters.info()["token"]
    assert waiters.call("DEBUG", "RELOAD") == "OK"
    assert waiters.info()["token"] == token
    assert waiters.queue() == ["bob", "cy"]
    assert not bob.is_answered()
    assert waiters.release("ann") == 1
    assert bob.read() > token


# Something else comes to its name: they are told

OVERWRITES = {
    "set": [("SET", "lock", "value")],
    "rename": [("SET", "text", "value"), ("RENAME", "text", "lock")],
    "copy": [("SET", "text", "value"), ("COPY", "text", "lock", "REPLACE")],
    "store": [("SADD", "set", "item"), ("SUNIONSTORE", "lock", "set")],
    "cache": [("CACHE.SET", "lock", "value", "PX", 60_000)],
}


@pytest.mark.parametrize("overwrite", OVERWRITES.values(), ids=OVERWRITES)
def test_an_overwritten_lock_is_no_lock(waiters, contended, overwrite):
    for command in overwrite:
        assert not is_error(waiters.call(*command), "")
    for client in contended:
        assert is_error(client.read(), "WRONGTYPE ")
        assert answered_once(client)
    assert waiters.number() == 0
    assert waiters.call("TYPE", "lock") != "kw-lock-1"


def test_a_restored_value_of_another_type_is_no_lock(waiters, contended):
    waiters.call("SET", "text", "value")
    assert waiters.call("RESTORE", "lock", 0, waiters.call("DUMP", "text"), "REPLACE") == "OK"
    assert all(is_error(client.read(), "WRONGTYPE ") for client in contended)


def test_overwritten_and_deleted_in_one_packet(waiters, contended):
    bob, cy = contended
    waiters.admin.pipeline([("SET", "lock", "value"), ("DEL", "lock")])
    assert bob.read()
    assert not cy.is_answered()
    assert waiters.release("bob") == 1
    assert cy.read()


def test_a_store_of_nothing_deletes_it(waiters, contended):
    bob, _ = contended
    assert waiters.call("SUNIONSTORE", "lock", "no such set") == 0
    assert bob.read()


# What changes nothing


def test_a_copy_of_the_lock_is_another_lock(waiters, contended):
    bob, _ = contended
    assert waiters.call("COPY", "lock", "copy") == 1
    assert waiters.owners("copy") == ["ann"]
    assert waiters.release("ann", key="copy") == 1
    assert not bob.is_answered()
    assert waiters.release("ann") == 1
    assert bob.read()


def test_a_longer_or_no_expiry_of_the_key_changes_nothing(waiters):
    token = waiters.acquire("ann", px=600)
    bob = waiters.wait("bob")
    assert waiters.call("PEXPIRE", "lock", 60_000) == 1
    assert bob.read() > token
    cy = waiters.wait("cy")
    waiters.call("PERSIST", "lock")
    waiters.call("OBJECT", "ENCODING", "lock")
    assert not cy.is_answered()
