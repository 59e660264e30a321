"""Ten thousand clients that wait for one lock: served in order, or gone all at once, and the server goes on."""

import resource

import pytest
from locks import Waiters, answered_once
from servers import eventually

COUNT = 10_000


@pytest.fixture
def crowd(make_server):
    """(Waiters of a server that takes so many, their connections)"""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < COUNT + 1000:
        pytest.skip(f"this system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (COUNT + 1000, hard))
    server = make_server(config=[f"maxclients {COUNT + 100}"])
    with Waiters(server) as waiters:
        yield waiters, [waiters.connect() for _ in range(COUNT)]


def wait(waiters, clients, *options):
    """They wait in the order of the list: each thousand is there before the next begins."""
    for begin in range(0, COUNT, 1000):
        for number in range(begin, begin + 1000):
            words = ("LOCK.ACQUIRE", "lock", f"owner-{number}", "PX", 600_000, "WAIT", 0)
            clients[number].send(*words, *options)
        eventually(lambda begin=begin: waiters.number() == begin + 1000, timeout=60)


def test_each_has_his_turn_in_order(crowd):
    waiters, clients = crowd
    waiters.acquire("ann", px=600_000)
    wait(waiters, clients)
    order = waiters.queue()
    numbers = {f"owner-{number}": client for number, client in enumerate(clients)}
    assert len(order) == len(set(order)) == COUNT
    last, holder = 0, "ann"
    for owner in order:
        assert waiters.release(holder) == 1
        token = numbers[owner].read()
        assert token > last
        holder, last = owner, token
    assert waiters.release(holder) == 1
    assert (waiters.number(), waiters.call("DBSIZE")) == (0, 0)
    assert all(answered_once(client) for client in clients)


def test_readers_are_all_granted(crowd):
    waiters, clients = crowd
    waiters.acquire("ann", px=600_000)
    wait(waiters, clients, "SHARED")
    order = waiters.queue()
    writer = waiters.wait("writer")
    assert waiters.release("ann") == 1
    tokens = {f"owner-{number}": client.read() for number, client in enumerate(clients)}
    assert sorted(tokens, key=tokens.get) == order, "their tokens tell the order"
    assert len(waiters.owners()) == COUNT
    assert not writer.is_answered()
    replies = waiters.admin.pipeline([("LOCK.RELEASE", "lock", owner) for owner in order])
    assert replies == [1] * COUNT
    assert writer.read() > max(tokens.values())


def test_all_are_killed_at_once(crowd):
    waiters, clients = crowd
    waiters.acquire("ann", px=600_000)
    wait(waiters, clients)
    assert waiters.call("CLIENT", "KILL", "TYPE", "normal") >= COUNT
    eventually(lambda: waiters.number() == 0)
    assert waiters.queue() == []
    bob = waiters.wait("bob")
    assert waiters.release("ann") == 1
    assert bob.read()
    assert waiters.owners() == ["bob"]
    assert waiters.metric("grants") == 2, "nobody dead was granted"


def test_all_are_killed_and_the_lock_released_in_one_packet(crowd):
    waiters, clients = crowd
    waiters.acquire("ann", px=600_000)
    wait(waiters, clients)
    killed, released = waiters.admin.pipeline([("CLIENT", "KILL", "TYPE", "normal"), ("LOCK.RELEASE", "lock", "ann")])
    assert (killed >= COUNT, released) == (True, 1)
    assert waiters.metric("grants") == 1
    eventually(lambda: waiters.number() == 0)
    assert waiters.call("DBSIZE") == 0


def test_all_waits_run_out_at_once(crowd):
    waiters, clients = crowd
    waiters.acquire("ann", px=600_000)
    for number, client in enumerate(clients):
        client.send("LOCK.ACQUIRE", "lock", f"owner-{number}", "PX", 600_000, "WAIT", 3000)
    assert all(client.read() is None for client in clients)
    eventually(lambda: waiters.number() == 0)
    assert waiters.release("ann") == 1
    assert waiters.metric("grants") == 1


def test_ten_thousand_locks_are_flushed_at_once(crowd):
    """Each has a holder, and somebody who waits."""
    waiters, clients = crowd
    waiters.admin.pipeline([("LOCK.ACQUIRE", f"lock:{number}", "ann", "PX", 600_000) for number in range(COUNT)])
    for number, client in enumerate(clients):
        client.send("LOCK.ACQUIRE", f"lock:{number}", "bob", "PX", 600_000, "WAIT", 0)
    eventually(lambda: waiters.number() == COUNT, timeout=60)
    assert waiters.call("FLUSHALL") == "OK"
    assert len({client.read() for client in clients}) == COUNT
    assert waiters.call("DBSIZE") == COUNT
