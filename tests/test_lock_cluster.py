"""Locks in a cluster: keys of one slot, and what becomes of a lock and of those who wait when its slot moves."""

import pytest
from locks import Waiters, is_error
from raw_client import ErrorReply, RawClient
from servers import eventually

CROSSSLOT = "CROSSSLOT "


def cluster_says(server, *lines):
    with RawClient(server) as raw:
        told = raw.call("CLUSTER", "INFO")
    return all(line in told for line in lines)


@pytest.fixture
def node(make_server):
    """One node that owns every slot."""
    server = make_server(config=["cluster-enabled yes"])
    with RawClient(server) as raw:
        assert raw.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383) == "OK"
    eventually(lambda: cluster_says(server, b"cluster_state:ok"))
    return server


@pytest.fixture
def nodes(node, make_server):
    """The same, and a second one without slots."""
    other = make_server(config=["cluster-enabled yes"])
    with RawClient(other) as raw:
        assert raw.call("CLUSTER", "MEET", "127.0.0.1", node.port) == "OK"
    for server in (node, other):
        eventually(
            lambda server=server: cluster_says(server, b"cluster_known_nodes:2", b"cluster_state:ok"), timeout=60
        )
    return node, other


# One slot


def test_the_keys_of_one_call_share_a_slot(node):
    with Waiters(node) as waiters:
        for words in (
            ("LOCK.MACQUIRE", 2, "a", "b", "ann", "PX", 60_000),
            ("LOCK.MACQUIRE", 2, "a", "b", "ann", "PX", 60_000, "WAIT", 0),
            ("LOCK.MRELEASE", 2, "a", "b", "ann"),
        ):
            assert is_error(waiters.call(*words), CROSSSLOT)
        assert waiters.call("DBSIZE") == 0
        keys = [f"{{x}}{number}" for number in range(3)]
        assert waiters.call("LOCK.MACQUIRE", 3, *keys, "ann", "PX", 60_000)
        bob = waiters.wait_for_all(keys[:2], "bob")
        assert waiters.call("LOCK.MRELEASE", 3, *keys, "ann") == 3
        assert bob.read()


@pytest.mark.parametrize("free", [("LOCK.RELEASE", "lock", "ann"), ("DEL", "lock"), ("FLUSHALL",)], ids=lambda w: w[0])
def test_who_waits_is_granted_in_a_cluster_too(node, free):
    with Waiters(node) as waiters:
        waiters.acquire("ann")
        bob, cy = waiters.wait("bob"), waiters.wait("cy", px=200)
        waiters.call(*free)
        assert bob.read()
        waiters.call("LOCK.FORCE", "lock")
        assert cy.read()
        dan = waiters.wait("dan")
        assert dan.read()


def test_exec_stays_in_the_slot_of_its_lock(node):
    with RawClient(node) as raw:
        token = raw.call("LOCK.ACQUIRE", "{x}lock", "ann", "PX", 60_000)
        exec_ = ("LOCK.EXEC", "{x}lock", token)
        for command in (
            ("SET", "y", "v"),
            ("MSET", "{x}a", "v", "y", "v"),
            ("GET", "y"),
            ("SUNIONSTORE", "{x}a", "y"),
            ("LOCK.ACQUIRE", "y", "ann", "PX", 60_000),
            ("LOCK.MACQUIRE", 2, "{x}a", "y", "ann", "PX", 60_000),
            ("CACHE.SET", "y", "v"),
            ("CACHE.MSET", 2, "{x}a", "v", "y", "v"),
            ("CACHE.INVALIDATE", "{x}a", "y"),
        ):
            assert is_error(raw.call(*exec_, *command), CROSSSLOT), command
        assert raw.call("DBSIZE") == 1
        assert raw.call(*exec_, "MSET", "{x}a", "1", "{x}b", "2") == "OK"
        assert raw.call(*exec_, "PING") == "PONG"
        assert raw.call(*exec_, "CACHE.MSET", 2, "{x}a", "v", "{x}b", "v") == "OK"
        assert raw.call(*exec_, "LOCK.MACQUIRE", 2, "{x}c", "{x}d", "ann", "PX", 60_000)
        script = "return redis.call('LOCK.EXEC', KEYS[1], ARGV[1], 'SET', ARGV[2], 'v')"
        assert CROSSSLOT.strip() in raw.call("EVAL", script, 1, "{x}lock", token, "y")
        assert raw.call("EVAL", script, 1, "{x}lock", token, "{x}e") == "OK"


def test_a_script_reaches_no_key_of_another_slot(node):
    """Not even behind a first key that is in the script's slot."""
    script = "return redis.call('CACHE.MSET', 2, KEYS[1], 'v', ARGV[1], 'v')"
    with RawClient(node) as raw:
        assert raw.call("EVAL", script, 1, "{x}a", "{x}b") == "OK"
        # Last, since Valkey 9.1 lets no script of this connection do anything after that, MSET neither.
        assert isinstance(raw.call("EVAL", script, 1, "{x}c", "y"), ErrorReply)
        assert raw.call("EXISTS", "{x}c") == 0


# A slot moves


class Move:
    """The slot of a key on its way from one node to another."""

    def __init__(self, source, target, key):
        self.source, self.target = source, target
        self._slot = source.call("CLUSTER", "KEYSLOT", key)
        self._from, self._to = source.call("CLUSTER", "MYID"), target.call("CLUSTER", "MYID")

    def begin(self):
        assert self.target.call("CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._from) == "OK"
        assert self.source.call("CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._to) == "OK"

    def key(self, port, key):
        assert self.source.call("MIGRATE", "127.0.0.1", port, key, 0, 30_000) == "OK"

    def end(self):
        for node in (self.target, self.source):
            assert node.call("CLUSTER", "SETSLOT", self._slot, "NODE", self._to) == "OK"


def test_a_lock_that_moves_has_one_holder(nodes):
    """The key goes from here, and its lock does not: who waits is sent after it, and waits there."""
    source, target = nodes
    with Waiters(source) as here, Waiters(target) as there:
        token = here.acquire("ann")
        bob, cy = here.wait("bob"), here.wait_for_all(["lock"], "cy")
        move = Move(here.admin, there.admin, "lock")
        move.begin()
        assert not bob.is_answered()
        move.key(target.port, "lock")
        for waiter in (bob, cy):
            assert is_error(waiter.read(), "ASK ")
        assert here.number() == 0
        assert is_error(bob.call("LOCK.ACQUIRE", "lock", "bob", "PX", 60_000, "WAIT", 0), "ASK ")
        move.end()
        assert is_error(bob.call("LOCK.ACQUIRE", "lock", "bob", "PX", 60_000, "WAIT", 0), "MOVED ")
        assert there.owners() == ["ann"]
        assert there.call("LOCK.VALIDATE", "lock", token) == 1
        assert here.call("DBSIZE") == 0
        bob = there.wait("bob")
        assert there.release("ann") == 1
        assert bob.read()


def test_a_lock_that_is_still_here_is_granted_here(nodes):
    """Up to the moment when its key goes. Then it is for the other node to make a new one."""
    source, target = nodes
    with Waiters(source) as here, Waiters(target) as there:
        here.acquire("ann", "SHARED")
        here.acquire("bob", "SHARED")
        cy = here.wait("cy")
        dan = here.wait("dan", "SHARED")
        move = Move(here.admin, there.admin, "lock")
        move.begin()
        assert here.call("LOCK.EXTEND", "lock", "ann", "PX", 100_000) == 1
        assert here.release("ann") == 1
        assert not cy.is_answered()
        assert here.release("bob") == 1
        for waiter in (cy, dan):
            reply = waiter.read()
            assert isinstance(reply, int) or is_error(reply, "ASK "), reply
        move.end()
        holders = here.admin.call("LOCK.INFO", "lock")
        assert isinstance(holders, ErrorReply)
        assert there.owners() in ([], ["cy"])


def test_a_lease_that_ends_while_its_slot_moves_makes_no_second_lock(nodes):
    source, target = nodes
    with Waiters(source) as here, Waiters(target) as there:
        here.acquire("ann", px=300)
        bob = here.wait("bob")
        move = Move(here.admin, there.admin, "lock")
        move.begin()
        reply = bob.read()
        if isinstance(reply, int):
            # Valkey: a key whose time is over is here until it is removed, and this was before that.
            assert here.acquire("cy") is None
            move.key(target.port, "lock")
        else:
            assert is_error(reply, "ASK ")
            assert is_error(here.acquire("cy"), "ASK ")
            asking = there.admin.pipeline([("ASKING",), ("LOCK.ACQUIRE", "lock", "bob", "PX", 60_000)])
            assert isinstance(asking[1], int)
        move.end()
        assert there.owners() == ["bob"]


def test_a_session_lock_that_moved_lives_to_the_end_of_its_lease(nodes):
    source, target = nodes
    with Waiters(source) as here, Waiters(target) as there:
        client = here.connect()
        client.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000, "SESSION")
        move = Move(here.admin, there.admin, "lock")
        move.begin()
        move.key(target.port, "lock")
        move.end()
        assert here.metric("sessions") == 0
        client.close()
        assert there.owners() == ["ann"]
        assert there.info()["holders"][0][4] == 0
