"""docs/locks.md: what it says of the server's own settings and commands beside locks, and the code it shows."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from servers import REPOSITORY, Server, eventually

SECONDS = 30


def acquire(client, owner="ann", *options):
    return client.execute_command("LOCK.ACQUIRE", "lock", owner, "EX", 600, *options)


def waiters(server: Server) -> int:
    return server.info("keyward_lock")["keyward_lock_waiters"]


def test_the_page_shows_the_function_of_the_example():
    page = (REPOSITORY / "docs" / "locks.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert block in (REPOSITORY / "examples" / "locks" / "fencing.py").read_text()
    assert "def update(" in block


@pytest.fixture
def pair(make_server):
    """A primary, and a replica that has received all of it."""
    primary = make_server()
    replica = make_server().replicate_from(primary)
    primary.client().set("key", "value")
    replica.wait_until_synced()
    return primary, replica


def test_wait_counts_a_grant_that_came_at_once(pair):
    primary, replica = pair
    client = primary.client(single_connection_client=True)
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        acquire(client)
        assert client.wait(1, 100) == 0
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    assert client.wait(1, 1000 * SECONDS) == 1


def test_wait_counts_a_grant_that_came_later_once_the_lease_was_lengthened(pair):
    primary, replica = pair
    holder, waiter = primary.client(), primary.client(single_connection_client=True)
    acquire(holder)
    waiter.ping()
    with ThreadPoolExecutor(1) as pool:
        granted = pool.submit(acquire, waiter, "bob", "WAIT", 0)
        eventually(lambda: waiters(primary) == 1)
        replica.wait_until_synced()
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            holder.execute_command("LOCK.RELEASE", "lock", "ann")
            assert granted.result(SECONDS)
            assert waiter.execute_command("LOCK.EXTEND", "lock", "bob", "EX", 601) == 1
            assert waiter.wait(1, 100) == 0
        finally:
            os.kill(replica.pid, signal.SIGCONT)
    assert waiter.wait(1, 1000 * SECONDS) == 1


def test_timeout_closes_an_idle_holder_and_spares_those_who_wait(make_server):
    server = make_server(config=["timeout 1"])
    first = acquire(server.client(single_connection_client=True), "ann", "SESSION")
    # Both wait for longer than the timeout: the first for the holder, the second for the first as well.
    with ThreadPoolExecutor(2) as pool:
        turns = [pool.submit(acquire, server.client(), owner, "WAIT", 0, "SESSION") for owner in ("bob", "cid")]
        tokens = sorted(turn.result(SECONDS) for turn in turns)
    assert first < tokens[0] < tokens[1]


def test_who_waits_for_a_lock_that_is_overwritten_is_told_so(server, client):
    acquire(server.client())
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(acquire, client, "bob", "WAIT", 0)
        eventually(lambda: waiters(server) == 1)
        server.client().set("lock", "value")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            refused.result(SECONDS)
    assert server.client().get("lock") == b"value"
