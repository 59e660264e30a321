"""Clients that wait for a lock: granted in the order of arrival, by the event that frees it, and answered once."""

import pytest
from locks import Waiters, answered_once, is_error
from raw_client import RawClient
from servers import eventually


@pytest.fixture
def waiters(server, protocol):
    with Waiters(server, protocol) as waiters:
        yield waiters
    with Waiters(server) as after:
        eventually(lambda: after.number() == 0)


def clock_ms(waiters):
    seconds, microseconds = waiters.call("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


# The queue


def test_who_came_first_is_granted_first(waiters):
    last = waiters.acquire("ann")
    names = [f"waiter-{number}" for number in range(10)]
    clients = [waiters.wait(name) for name in names]
    assert waiters.queue() == names
    holder = "ann"
    for position, (name, client) in enumerate(zip(names, clients, strict=True)):
        assert not any(later.is_answered() for later in clients[position:])
        assert waiters.release(holder) == 1
        token = client.read()
        assert token > last
        assert waiters.info()["token"] == token
        assert answered_once(client)
        holder, last = name, token
    assert waiters.release(holder) == 1
    assert waiters.call("EXISTS", "lock") == 0


def test_a_release_and_its_grant_are_one_step(waiters):
    """Nobody can come between, not even in the packet that brings the release."""
    waiters.acquire("ann")
    bob = waiters.wait("bob")
    released, busy, info = waiters.admin.pipeline(
        [("LOCK.RELEASE", "lock", "ann"), ("LOCK.ACQUIRE", "lock", "cy", "PX", 1000), ("LOCK.INFO", "lock")]
    )
    assert (released, busy) == (1, None)
    assert b"bob" in str(info).encode()
    assert bob.read()


def test_only_the_last_of_several_holds_frees_it(waiters):
    waiters.acquire("ann", "REENTRANT")
    waiters.acquire("ann", "REENTRANT")
    bob = waiters.wait("bob")
    assert waiters.release("ann") == 1
    assert not bob.is_answered()
    assert waiters.release("ann") == 1
    assert bob.read()


def test_the_lease_starts_at_the_grant(waiters):
    waiters.acquire("ann")
    bob = waiters.wait("bob", px=60_000)
    begun = clock_ms(waiters)
    eventually(lambda: clock_ms(waiters) > begun + 50)
    now, _, ends = waiters.admin.pipeline([("TIME",), ("LOCK.RELEASE", "lock", "ann"), ("PEXPIRETIME", "lock")])
    assert ends >= int(now[0]) * 1000 + int(now[1]) // 1000 + 60_000
    assert bob.read()


def test_the_queue_shows_who_waits_for_what_and_how_long(waiters, protocol):
    waiters.acquire("ann")
    waiters.wait("bob", "SHARED")
    waiters.wait("cy", "PERMITS", 3)
    waiters.wait_for_all(["lock", "other"], "dan")
    reply = waiters.call("LOCK.INFO", "lock")
    assert isinstance(reply, list if protocol == 2 else dict)
    first = waiters.info()["waiters"]
    assert [waiter[:2] for waiter in first] == [[b"bob", b"shared"], [b"cy", b"permits"], [b"dan", b"exclusive"]]
    waited = [waiter[2] for waiter in first]
    assert waited == sorted(waited, reverse=True)
    eventually(lambda: waiters.info()["waiters"][0][2] > waited[0])
    assert waiters.queue("other") == ["dan"]
    assert waiters.info("other")["mode"] == b"free"


def test_a_free_lock_is_granted_without_waiting(waiters):
    assert isinstance(waiters.acquire("ann", "WAIT", 0), int)
    assert waiters.acquire("ann", "WAIT", 0) == waiters.acquire("ann"), "nobody waits for himself"
    assert waiters.number() == 0


def test_two_waiters_of_one_owner_have_a_hold_each_if_they_want_one(waiters):
    waiters.acquire("ann")
    clients = [waiters.wait("bob", "REENTRANT") for _ in range(3)]
    assert waiters.release("ann") == 1
    (token,) = {client.read() for client in clients}
    assert waiters.info()["holders"][0][:3] == [b"bob", token, 3]
    assert [waiters.release("bob") for _ in range(4)] == [1, 1, 1, 0]


def test_two_waiters_of_one_owner_who_count_no_holds_share_it(waiters):
    waiters.acquire("ann")
    clients = [waiters.wait("bob") for _ in range(2)]
    waiters.release("ann")
    assert clients[0].read() == clients[1].read()
    assert [waiters.release("bob") for _ in range(2)] == [1, 0]


# What frees the lock


FREE = {
    "release": ("LOCK.RELEASE", "lock", "ann"),
    "force": ("LOCK.FORCE", "lock"),
    "mrelease": ("LOCK.MRELEASE", 2, "lock", "other", "ann"),
    "del": ("DEL", "lock"),
    "unlink": ("UNLINK", "lock"),
    "expire": ("PEXPIRE", "lock", 1),
    "expire-in-the-past": ("PEXPIRE", "lock", -1),
    "flushdb": ("FLUSHDB",),
    "flushall": ("FLUSHALL", "SYNC"),
    "flushall-async": ("FLUSHALL", "ASYNC"),
    "rename": ("RENAME", "lock", "elsewhere"),
    "swapdb": ("SWAPDB", 0, 1),
    "script": ("EVAL", "return redis.call('LOCK.RELEASE', 'lock', 'ann')", 0),
    "script-del": ("EVAL", "return redis.call('DEL', 'lock')", 0),
}


@pytest.mark.parametrize("free", FREE.values(), ids=FREE)
def test_whatever_frees_the_lock_grants_it(waiters, free):
    token = waiters.acquire("ann")
    bob, cy = waiters.wait("bob"), waiters.wait("cy")
    assert not is_error(waiters.call(*free), "")
    assert bob.read() > token
    assert waiters.owners() == ["bob"]
    assert waiters.queue() == ["cy"]
    assert answered_once(bob)
    assert not cy.is_answered()
    assert waiters.release("bob") == 1
    assert cy.read()


@pytest.mark.parametrize("free", ["release", "force", "mrelease", "del", "flushall", "rename"])
def test_whatever_frees_the_lock_in_a_transaction_grants_it(waiters, free):
    token = waiters.acquire("ann")
    bob = waiters.wait("bob")
    *_, done = waiters.admin.pipeline([("MULTI",), FREE[free], ("PING",), ("EXEC",)])
    assert len(done) == 2
    assert bob.read() > token


def test_the_end_of_a_lease_grants_it(waiters):
    token = waiters.acquire("ann", px=500)
    bob, cy = waiters.wait("bob", px=500), waiters.wait("cy")
    tokens = [token, bob.read(), cy.read()]
    assert tokens == sorted(set(tokens))
    assert waiters.owners() == ["cy"]


def test_the_end_of_a_lease_whose_key_was_made_to_stay_grants_it(waiters):
    token = waiters.acquire("ann", px=500)
    assert waiters.call("PERSIST", "lock") == 1
    bob = waiters.wait("bob")
    assert bob.read() > token
    assert waiters.call("PTTL", "lock") > 0, "the key has a TTL again"


def test_a_longer_lease_keeps_them_waiting(waiters):
    waiters.acquire("ann", px=600)
    bob = waiters.wait("bob")
    assert waiters.call("LOCK.EXTEND", "lock", "ann", "PX", 600_000) == 1
    assert waiters.acquire("ann", px=1_000_000)
    marker = waiters.acquire("marker", key="marker", px=700)
    eventually(lambda: waiters.call("LOCK.VALIDATE", "marker", marker) == 0)
    assert not bob.is_answered()
    waiters.release("ann")
    assert bob.read()


@pytest.mark.parametrize("free", ["lease", "release"])
def test_watch_sees_the_grant(waiters, free):
    """Also the one that no command makes."""
    waiters.acquire("ann", px=1000 if free == "lease" else 60_000)
    bob, watcher = waiters.wait("bob"), waiters.connect()
    assert watcher.call("WATCH", "lock") == "OK"
    if free == "release":
        waiters.release("ann")
    assert bob.read()
    assert watcher.pipeline([("MULTI",), ("PING",), ("EXEC",)])[-1] is None


# Nobody is overtaken


@pytest.mark.parametrize(
    "options", [(), ("SHARED",), ("REENTRANT",), ("WAIT", 1)], ids=["plain", "shared", "reentrant", "wait"]
)
def test_a_newcomer_does_not_overtake_although_the_lease_is_over(waiters, options):
    """Both come in one packet, before any timer."""
    waiters.acquire("ann", px=500)
    bob = waiters.wait("bob")
    asleep, newcomer, info = waiters.admin.pipeline(
        [
            ("DEBUG", "SLEEP", 0.7),
            ("LOCK.ACQUIRE", "lock", "cy", "PX", 1000, *options),
            ("LOCK.INFO", "lock"),
        ]
    )
    assert (asleep, newcomer) == ("OK", None)
    assert b"bob" in str(info).encode()
    assert bob.read()


def test_a_holder_whose_lease_is_over_goes_to_the_end(waiters):
    waiters.acquire("ann", px=500)
    bob = waiters.wait("bob")
    again, released, extended = waiters.admin.pipeline(
        [
            ("DEBUG", "SLEEP", 0.7),
            ("LOCK.ACQUIRE", "lock", "ann", "PX", 1000),
            ("LOCK.RELEASE", "lock", "ann"),
            ("LOCK.EXTEND", "lock", "ann", "PX", 1000),
        ]
    )[1:]
    assert (again, released, extended) == (None, 0, 0)
    assert bob.read()


# A wait ends


def test_a_wait_runs_out(waiters):
    waiters.acquire("ann")
    bob, cy = waiters.wait("bob", wait_ms=500), waiters.wait("cy")
    assert bob.read() is None
    assert answered_once(bob)
    eventually(lambda: waiters.queue() == ["cy"])
    waiters.release("ann")
    assert cy.read()


def test_a_wait_for_the_longest_time_does_not_run_out(waiters):
    waiters.acquire("ann")
    bob = waiters.wait("bob", wait_ms=2**63 - 1)
    cy = waiters.wait("cy", wait_ms=500)
    assert cy.read() is None
    assert not bob.is_answered()
    waiters.release("ann")
    assert bob.read()


@pytest.mark.parametrize("how", ["TIMEOUT", "ERROR", "KILL", "HANG UP"])
def test_who_leaves_is_not_granted(waiters, how):
    waiters.acquire("ann")
    bob = waiters.connect()
    number = bob.call("CLIENT", "ID")
    waiters.wait("bob", client=bob)
    cy = waiters.wait("cy")
    match how:
        case "TIMEOUT" | "ERROR":
            assert waiters.call("CLIENT", "UNBLOCK", number, how) == 1
            reply = bob.read()
            assert reply is None if how == "TIMEOUT" else is_error(reply, "UNBLOCKED ")
            assert answered_once(bob)
        case "KILL":
            assert waiters.call("CLIENT", "KILL", "ID", number) == 1
        case "HANG UP":
            bob.close()
    eventually(lambda: waiters.queue() == ["cy"])
    assert waiters.release("ann") == 1
    assert cy.read()
    assert waiters.owners() == ["cy"]


def test_killed_and_released_in_one_packet(waiters):
    waiters.acquire("ann")
    clients = [waiters.connect() for _ in range(3)]
    numbers = [client.call("CLIENT", "ID") for client in clients]
    for name, client in zip(("bob", "cy", "dan"), clients, strict=True):
        waiters.wait(name, client=client)
    kills = [("CLIENT", "KILL", "ID", number) for number in numbers[:2]]
    assert waiters.admin.pipeline([*kills, ("LOCK.RELEASE", "lock", "ann")]) == [1, 1, 1]
    assert clients[2].read()
    assert waiters.owners() == ["dan"]


def test_unblocked_and_released_in_one_packet(waiters):
    waiters.acquire("ann")
    bob = waiters.connect()
    number = bob.call("CLIENT", "ID")
    waiters.wait("bob", client=bob)
    cy = waiters.wait("cy")
    unblock, release = ("CLIENT", "UNBLOCK", number), ("LOCK.RELEASE", "lock", "ann")
    assert waiters.admin.pipeline([unblock, release, unblock]) == [1, 1, 0]
    assert bob.read() is None
    assert cy.read()
    assert answered_once(bob)


def test_granted_and_unblocked_in_one_packet(waiters):
    waiters.acquire("ann")
    bob = waiters.connect()
    number = bob.call("CLIENT", "ID")
    waiters.wait("bob", client=bob)
    release = ("LOCK.RELEASE", "lock", "ann")
    assert waiters.admin.pipeline([release, ("CLIENT", "UNBLOCK", number, "ERROR")]) == [1, 0]
    assert isinstance(bob.read(), int)
    assert answered_once(bob)


def test_what_was_sent_behind_a_wait_comes_after_it(waiters):
    waiters.acquire("ann")
    bob = waiters.wait("bob")
    bob.send("LOCK.RELEASE", "lock", "bob")
    waiters.release("ann")
    assert isinstance(bob.read(), int)
    assert bob.read() == 1
    assert waiters.call("EXISTS", "lock") == 0


# Where nobody can be held: as if WAIT were absent

FUNCTION = """#!lua name=locks
redis.register_function('acquire', function(keys, args)
    return {redis.call('LOCK.ACQUIRE', keys[1], args[1], 'PX', '60000', 'WAIT', '0'), 'on'}
end)
redis.register_function('macquire', function(keys, args)
    return {redis.call('LOCK.MACQUIRE', '1', keys[1], args[1], 'PX', '60000', 'WAIT', '0'), 'on'}
end)
"""


def test_nobody_waits_in_a_transaction(waiters):
    waiters.acquire("ann")
    acquire = ("LOCK.ACQUIRE", "lock", "bob", "PX", 60_000, "WAIT", 0)
    macquire = ("LOCK.MACQUIRE", 2, "lock", "other", "bob", "PX", 60_000, "WAIT", 0)
    assert waiters.admin.pipeline([("MULTI",), acquire, macquire, ("ECHO", "on"), ("EXEC",)])[-1] == [None, None, b"on"]
    assert waiters.number() == 0
    waiters.release("ann")
    (token,) = waiters.admin.pipeline([("MULTI",), acquire, ("EXEC",)])[-1]
    assert waiters.info()["token"] == token


def test_nobody_waits_in_a_script_or_a_function(waiters):
    waiters.acquire("ann")
    script = "return redis.call('LOCK.ACQUIRE', KEYS[1], 'bob', 'PX', '60000', 'WAIT', '0')"
    assert waiters.call("EVAL", script, 1, "lock") is None
    assert waiters.call("FUNCTION", "LOAD", "REPLACE", FUNCTION) == b"locks"
    for function in ("acquire", "macquire"):
        # A nil ends an array in Lua: false stands for it.
        assert waiters.call("FCALL", function, 1, "lock", "bob") == [None, b"on"]
    assert waiters.number() == 0
    waiters.release("ann")
    assert waiters.call("EVAL", script, 1, "lock") == waiters.info()["token"]
    waiters.call("FUNCTION", "DELETE", "locks")


def test_a_full_queue_is_as_if_wait_were_absent_there(make_server):
    server = make_server(args=["waiters-max", "0"])
    with RawClient(server) as raw:
        raw.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        acquire = ("LOCK.ACQUIRE", "lock", "bob", "PX", 60_000, "WAIT", 0)
        assert raw.call(*acquire) == "ERR too many waiters"
        assert raw.pipeline([("MULTI",), acquire, ("EXEC",)])[-1] == [None]
        assert raw.call("EVAL", "return redis.call('LOCK.ACQUIRE', 'lock', 'bob', 'PX', '1', 'WAIT', '0')", 0) is None


# Caps


def test_caps_are_errors_and_those_who_left_free_their_seats(make_server, protocol):
    server = make_server(args=["waiters-per-key-max", "2", "waiters-max", "3"])
    with Waiters(server, protocol) as waiters:
        for key in ("a", "b", "c"):
            waiters.acquire("ann", key=key)
        first, _ = waiters.wait("bob", key="a"), waiters.wait("cy", key="a")
        full = "ERR too many waiters"
        assert waiters.acquire("dan", "WAIT", 0, key="a") == full, "per key"
        assert waiters.call("LOCK.MACQUIRE", 2, "a", "b", "dan", "PX", 1, "WAIT", 0) == full, "in one of its queues"
        waiters.wait("dan", key="b")
        assert waiters.acquire("eve", "WAIT", 0, key="c") == full, "in all"
        assert waiters.acquire("eve", key="c") is None, "who does not wait is not refused"
        assert waiters.acquire("eve", "WAIT", 0, key="d"), "nor who is granted at once"
        assert waiters.metric("waits_refused") == 3
        waiters.release("ann", key="a")
        assert first.read()
        waiters.wait("eve", key="c")
        assert waiters.call("CONFIG", "SET", "keyward.waiters-max", 100) == "OK"
        waiters.wait("fay", key="c")
        assert waiters.number() == 4
