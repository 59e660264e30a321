"""What grants to several, and to those who waited, propagate; and what a replica, a restart and a new primary make of it."""

import pytest
from locks import Waiters, is_error
from propagation import ReplicationStream, aof_commands
from servers import eventually

APPLY = b"KEYWARD.APPLY"


@pytest.fixture
def primary(make_server):
    """A server that has granted a token, so that its reserve is known already."""
    server = make_server()
    with Waiters(server) as waiters:
        waiters.acquire("warm-up", key="warm-up")
        waiters.release("warm-up", key="warm-up")
    return server


@pytest.fixture
def waiters(primary):
    with Waiters(primary) as waiters:
        yield waiters


@pytest.fixture
def stream(primary, waiters):
    with ReplicationStream(primary) as stream:
        waiters.call("SET", "stream", "begins")
        assert stream.read()
        yield stream


def effects(stream):
    """What was propagated, without transactions; of LOCK and HOLD the end of the lease is left out, and RESERVE altogether."""
    seen = []
    for command in stream.read():
        if command[0] in (b"MULTI", b"EXEC") or command[:2] == [APPLY, b"RESERVE"]:
            continue
        if command[:2] in ([APPLY, b"LOCK"], [APPLY, b"HOLD"]):
            command = command[:5] + command[6:]
        # Where the server frees lazily it says UNLINK.
        seen.append([b"DEL", *command[1:]] if command[0] == b"UNLINK" else command)
    return seen


def words(*parts):
    return [part if isinstance(part, bytes) else str(part).encode() for part in parts]


def lock(key, owner, token, *rest, holds=1, effect="LOCK"):
    return words(APPLY, effect, key, owner, token, holds, *rest)


# The stream


def test_readers_and_permits(waiters, stream):
    one, two = waiters.acquire("ann", "SHARED"), waiters.acquire("bob", "SHARED")
    assert effects(stream) == [
        lock("lock", "ann", one, "SHARED"),
        lock("lock", "bob", two, "SHARED", effect="HOLD"),
    ]
    waiters.acquire("bob", "SHARED", "REENTRANT")
    waiters.call("LOCK.EXTEND", "lock", "ann", "PX", 600_000)
    assert effects(stream) == [
        lock("lock", "bob", two, "SHARED", holds=2, effect="HOLD"),
        lock("lock", "ann", one, "SHARED", effect="HOLD"),
    ]
    one, two = (waiters.acquire(name, "PERMITS", 5, key="s") for name in ("ann", "bob"))
    assert effects(stream) == [
        lock("s", "ann", one, "PERMITS", 5),
        lock("s", "bob", two, "PERMITS", 5, effect="HOLD"),
    ]
    for owner in ("ann", "bob"):
        waiters.release(owner, key="s")
    assert effects(stream) == [words("LOCK.RELEASE", "s", owner) for owner in ("ann", "bob")]


def test_an_upgrade_is_a_new_lock(waiters, stream):
    waiters.acquire("ann", "SHARED")
    effects(stream)
    token = waiters.acquire("ann")
    assert effects(stream) == [lock("lock", "ann", token)]


def test_a_release_and_the_grant_it_makes_arrive_as_one(waiters, stream):
    waiters.acquire("ann")
    bob = waiters.wait("bob")
    readers = [waiters.wait(name, "SHARED") for name in ("cy", "dan")]
    effects(stream)
    waiters.release("ann")
    token = bob.read()
    commands = stream.read()
    assert (commands[0], commands[-1]) == ([b"MULTI"], [b"EXEC"])
    assert commands[1] == words("LOCK.RELEASE", "lock", "ann")
    assert commands[2][:5] == words(APPLY, "LOCK", "lock", "bob", token)
    waiters.release("bob")
    one, two = (reader.read() for reader in readers)
    assert effects(stream) == [
        words("LOCK.RELEASE", "lock", "bob"),
        lock("lock", "cy", one, "SHARED"),
        lock("lock", "dan", two, "SHARED", effect="HOLD"),
    ]


@pytest.mark.parametrize("free", [("DEL", "lock"), ("FLUSHALL",), ("RENAME", "lock", "there")], ids=lambda w: w[0])
def test_what_freed_the_lock_arrives_before_the_grant(waiters, stream, free):
    waiters.acquire("ann")
    bob = waiters.wait("bob")
    effects(stream)
    waiters.call(*free)
    token = bob.read()
    seen = effects(stream)
    assert words(*free) in [[command[0].upper(), *command[1:]] for command in seen[:-1]]
    assert seen[-1] == lock("lock", "bob", token)


def test_the_end_of_a_lease_arrives_before_the_grant(waiters, stream):
    first = waiters.acquire("ann", px=500)
    bob = waiters.wait("bob")
    effects(stream)
    token = bob.read()
    *before, grant = effects(stream)
    assert grant == lock("lock", "bob", token)
    # The key may be gone by then (some servers say UNLINK of an expired one), or be given over as it is.
    forget = words(APPLY, "FORGET", "lock", first)
    assert sorted(before) in ([], *(sorted([words(removal, "lock"), forget]) for removal in ("DEL", "UNLINK")))


def test_a_lease_that_ends_beside_others_is_a_leave(waiters, stream):
    one = waiters.acquire("ann", "PERMITS", 2, px=500)
    waiters.acquire("bob", "PERMITS", 2)
    cy = waiters.wait("cy", "PERMITS", 2)
    effects(stream)
    token = cy.read()
    assert effects(stream) == [
        words(APPLY, "LEAVE", "lock", one),
        lock("lock", "cy", token, "PERMITS", 2, effect="HOLD"),
    ]


def test_several_locks_arrive_as_one(waiters, stream):
    token = waiters.call("LOCK.MACQUIRE", 3, "c", "a", "b", "ann", "PX", 60_000)
    commands = [command for command in stream.read() if command[:2] != [APPLY, b"RESERVE"]]
    assert (commands[0], commands[-1]) == ([b"MULTI"], [b"EXEC"])
    ends = {command[5] for command in commands[1:-1]}
    assert len(ends) == 1
    assert [command[:5] + command[6:] for command in commands[1:-1]] == [
        lock(key, "ann", token, "KEYS", 3) for key in "abc"
    ]
    bob = waiters.wait_for_all("ab", "bob")
    assert effects(stream) == []
    waiters.call("LOCK.MRELEASE", 2, "a", "b", "ann")
    token = bob.read()
    assert effects(stream) == [
        words("LOCK.MRELEASE", 2, "a", "b", "ann"),
        *(lock(key, "bob", token, "KEYS", 2) for key in "ab"),
    ]
    waiters.call("LOCK.MRELEASE", 3, "a", "b", "c", "ann")
    assert effects(stream) == [words("LOCK.MRELEASE", 1, "c", "ann")], "of the others he holds none"


def test_what_changes_nothing_propagates_nothing(waiters, stream):
    waiters.acquire("ann", "SHARED", px=600_000)
    waiters.acquire("bob", "SHARED", px=600_000)
    waiters.acquire("ann", "PERMITS", 2, key="s")
    token = waiters.call("LOCK.MACQUIRE", 2, "a", "b", "ann", "PX", 600_000)
    bob = waiters.connect()
    number = bob.call("CLIENT", "ID")
    effects(stream)
    for call in [
        ("LOCK.ACQUIRE", "lock", "cy", "PX", 1000),
        ("LOCK.ACQUIRE", "lock", "cy", "PX", 1000, "WAIT", 1),
        ("LOCK.ACQUIRE", "lock", "cy", "PX", 1000, "PERMITS", 2),
        ("LOCK.ACQUIRE", "lock", "ann", "PX", 1000),
        ("LOCK.ACQUIRE", "lock", "ann", "PX", 1000, "SHARED"),
        ("LOCK.ACQUIRE", "lock", "ann", "PX", 1000, "SHARED", "SESSION"),
        ("LOCK.ACQUIRE", "s", "bob", "PX", 1000, "PERMITS", 3),
        ("LOCK.MACQUIRE", 2, "a", "c", "ann", "PX", 1000),
        ("LOCK.MACQUIRE", 2, "a", "b", "bob", "PX", 1000),
        ("LOCK.MACQUIRE", 2, "a", "b", "bob", "PX", 1000, "WAIT", 1),
        ("LOCK.MACQUIRE", 2, "a", "b", "ann", "PX", 1000),
        ("LOCK.MRELEASE", 2, "a", "b", "bob"),
        ("LOCK.EXEC", "a", token, "GET", "k"),
        ("LOCK.EXEC", "a", token, "DEL", "k"),
        ("LOCK.EXEC", "a", token - 1, "SET", "k", "v"),
        ("LOCK.INFO", "lock"),
    ]:
        waiters.call(*call)
    waiters.wait("dan", client=bob)
    waiters.call("CLIENT", "UNBLOCK", number)
    assert bob.read() is None
    waiters.wait("dan", client=bob)
    bob.close()
    eventually(lambda: waiters.number() == 0)
    assert stream.read() == []


def test_the_aof_has_grants_to_those_who_waited(make_server):
    server = make_server(config=["appendonly yes"])
    with Waiters(server) as waiters:
        waiters.acquire("ann")
        bob = waiters.wait("bob", px=600_000)
        waiters.release("ann")
        token = bob.read()
    effects = [command[:5] for command in aof_commands(server) if command[:2] == [APPLY, b"LOCK"]]
    assert effects[-1] == words(APPLY, "LOCK", "lock", "bob", token)


# Who has seen it all holds the same


def shared_locks(waiters):
    """Locks of every kind, by every way of granting one."""
    for name in ("ann", "bob", "cy"):
        waiters.acquire(name, "SHARED", key="readers", px=600_000)
        waiters.acquire(name, "PERMITS", 3, key="semaphore", px=600_000)
    waiters.acquire("bob", "SHARED", "REENTRANT", key="readers", px=6_000_000)
    waiters.release("cy", key="readers")
    waiters.call("LOCK.EXTEND", "semaphore", "ann", "PX", 6_000_000)
    waiters.acquire("ann", "SHARED", key="upgraded")
    waiters.acquire("ann", key="upgraded", px=600_000)
    waiters.acquire("ann", key="waited")
    dan = waiters.wait("dan", "SESSION", key="waited", px=600_000)
    eve = waiters.wait_for_all(["waited", "other"], "eve", px=600_000)
    waiters.release("ann", key="waited")
    assert dan.read()
    waiters.release("dan", key="waited")
    assert eve.read()
    waiters.call("LOCK.MACQUIRE", 3, "a", "b", "c", "ann", "PX", 600_000)
    waiters.call("LOCK.MRELEASE", 2, "c", "waited", "ann")
    short = waiters.acquire("ann", "PERMITS", 2, key="left", px=50)
    waiters.acquire("bob", "PERMITS", 2, key="left", px=600_000)
    eventually(lambda: waiters.call("LOCK.VALIDATE", "left", short) == 0)
    waiters.acquire("cy", "PERMITS", 2, key="left", px=600_000)
    return ["readers", "semaphore", "upgraded", "waited", "other", "a", "b", "c", "left"]


def holders(waiters, keys):
    """All but what shrinks while one looks, and what a connection is to it."""
    seen = {}
    for key in keys:
        told = waiters.info(key)
        held = [holder[:3] for holder in told["holders"]]
        seen[key] = (told["mode"], told["permits"], told["token"], held, waiters.call("PEXPIRETIME", key))
    return seen


def test_a_replica_holds_the_same(primary, make_server, waiters):
    replica = make_server()
    replica.replicate_from(primary).wait_until_synced()
    keys = shared_locks(waiters)
    waiters.wait("zoe", key="a")
    replica.wait_until_synced()
    with Waiters(replica) as copy:
        assert holders(copy, keys) == holders(waiters, keys)
        assert copy.call("DEBUG", "DIGEST") == waiters.call("DEBUG", "DIGEST")
        assert [holder[0] for holder in copy.info("left")["holders"]] == [b"bob", b"cy"]
        assert (copy.queue("a"), waiters.queue("a")) == ([], ["zoe"]), "the queue is the primary's alone"
        for name in ("locks", "bytes", "limbo"):
            assert copy.metric(name) == waiters.metric(name), name


def test_a_full_sync_brings_the_same(primary, make_server, waiters):
    keys = shared_locks(waiters)
    replica = make_server()
    replica.replicate_from(primary).wait_until_synced()
    with Waiters(replica) as copy:
        assert holders(copy, keys) == holders(waiters, keys)


def test_a_replica_answers_no_call_that_changes_or_waits(primary, make_server, waiters):
    replica = make_server()
    replica.replicate_from(primary).wait_until_synced()
    token = waiters.acquire("ann")
    replica.wait_until_synced()
    with Waiters(replica) as copy:
        for call in (
            ("LOCK.ACQUIRE", "lock", "bob", "PX", 1000, "WAIT", 0),
            ("LOCK.ACQUIRE", "free", "bob", "PX", 1000, "SHARED"),
            ("LOCK.MACQUIRE", 2, "lock", "free", "bob", "PX", 1000, "WAIT", 0),
            ("LOCK.MRELEASE", 1, "lock", "ann"),
            ("LOCK.EXEC", "lock", token, "GET", "k"),
        ):
            assert is_error(copy.call(*call), "READONLY "), call
        assert copy.number() == 0


def test_a_replica_that_can_be_written_to_lets_nobody_wait(primary, make_server, waiters):
    """It would serve nobody."""
    replica = make_server(config=["replica-read-only no"])
    replica.replicate_from(primary).wait_until_synced()
    waiters.acquire("ann")
    replica.wait_until_synced()
    with Waiters(replica) as copy:
        assert copy.acquire("bob", "WAIT", 0) is None


@pytest.mark.parametrize("persistence", ["rdb", "aof", "aof-no-preamble", "aof-rewritten"])
def test_a_restart_keeps_the_holders_and_forgets_the_queues(make_server, persistence):
    config = {
        "rdb": ["save 3600 1"],
        "aof": ["appendonly yes"],
        "aof-no-preamble": ["appendonly yes", "aof-use-rdb-preamble no"],
        "aof-rewritten": ["appendonly yes"],
    }[persistence]
    server = make_server(config=config)
    with Waiters(server) as waiters:
        keys = shared_locks(waiters)
        waiters.wait("zoe", key="a")
        waiters.wait_for_all(["b", "upgraded"], "yan")
        if persistence == "rdb":
            waiters.call("SAVE")
        elif persistence != "aof":
            waiters.call("BGREWRITEAOF")
            eventually(lambda: not server.info("persistence")["aof_rewrite_in_progress"])
            eventually(lambda: not server.info("persistence")["aof_rewrite_scheduled"])
        before = holders(waiters, keys)
        server.kill9()
    server.start()
    with Waiters(server) as waiters:
        assert holders(waiters, keys) == before
        assert waiters.number() == 0
        assert waiters.acquire("ann", key="a") == before["a"][2], "he holds it still"
        assert waiters.acquire("dan", "SHARED", key="readers"), "there is room beside them"
        assert waiters.acquire("dan", "PERMITS", 3, key="semaphore") is None
        assert waiters.call("LOCK.MACQUIRE", 2, "a", "b", "ann", "PX", 1) == "ERR owner holds one of the keys"
        bob = waiters.wait("bob", key="a")
        assert waiters.release("ann", key="a") == 1
        assert bob.read() > before["a"][2]


def test_a_promoted_replica_goes_on_with_the_holders_and_a_queue_of_its_own(primary, make_server, waiters):
    replica = make_server()
    replica.replicate_from(primary).wait_until_synced()
    keys = shared_locks(waiters)
    waiters.wait("zoe", key="a")
    short = waiters.acquire("ann", key="short", px=2000)
    replica.wait_until_synced()
    before = holders(waiters, keys)
    replica.promote()
    with Waiters(replica) as copy:
        assert holders(copy, keys) == before
        last = max(seen[2] for seen in before.values())
        bob, gus = copy.wait("bob", key="a"), copy.wait("gus", "PERMITS", 3, key="semaphore")
        assert copy.wait("dan", key="short").read() > max(short, last), "the lease it knows of ends, and wakes him"
        assert copy.release("ann", key="a") == 1
        assert bob.read() > last
        assert copy.release("bob", key="semaphore") == 1
        assert gus.read() > last


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_change_of_role_sends_those_who_wait_away(make_server, protocol):
    server = make_server()
    with Waiters(server, protocol) as waiters:
        token = waiters.acquire("ann")
        waiters.acquire("ann", key="short", px=1000)
        clients = [
            waiters.wait("bob"),
            waiters.wait("cy", wait_ms=60_000),
            waiters.wait_for_all(["lock", "other"], "dan"),
        ]
        clients.append(waiters.wait("eve", key="short"))
        # To a primary that is not there: the role changes all the same.
        replies = waiters.admin.pipeline([("REPLICAOF", "127.0.0.1", 1), ("LOCK.VALIDATE", "lock", token)])
        assert replies == ["OK", 1]
        for client in clients:
            assert is_error(client.read(), "UNBLOCKED ")
        assert (waiters.number(), waiters.queue()) == (0, [])
        assert waiters.call("REPLICAOF", "NO", "ONE") == "OK"
        bob = waiters.wait("bob")
        assert waiters.release("ann") == 1
        assert bob.read() > token
