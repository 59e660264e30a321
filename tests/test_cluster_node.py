"""One node of a cluster that owns every slot. Tags across slots: see test_invalidation.py."""

import pytest
from raw_client import RawClient
from redis.exceptions import ResponseError
from servers import eventually
from slots import Callers
from write_behind import ack, delete, get, incrby, info, put


@pytest.fixture
def node(make_server):
    server = make_server(config=["cluster-enabled yes"])
    client = server.client()
    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    eventually(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
    return server


def test_keys_of_one_command_must_share_a_slot(node):
    client = node.client()
    for command in (["CACHE.MGET", "a", "b"], ["CACHE.MSET", 2, "a", 1, "b", 2], ["CACHE.INVALIDATE", "a", "b"]):
        with pytest.raises(ResponseError, match="slot"):
            client.execute_command(*command)
    assert client.dbsize() == 0
    assert client.execute_command("CACHE.MSET", 2, "{x}a", 1, "{x}b", 2) in (b"OK", True)
    assert client.execute_command("CACHE.MGET", "{x}a", "{x}b") == [b"1", b"2"]


def test_locks_and_limiters_work(node):
    client = node.client()
    token = client.execute_command("LOCK.ACQUIRE", "lock", "ann", "EX", 100)
    assert client.execute_command("LOCK.VALIDATE", "lock", token) == 1
    assert client.execute_command("LOCK.RELEASE", "lock", "ann") == 1
    assert client.execute_command("RATELIMIT.CHECK", "limit", 3, "EX", 100)[:3] == [1, 3, 2]


def test_who_waits_for_a_slot_gets_it(node):
    with Callers(node) as callers:
        callers.enter("a", 1)
        waiter = callers.wait("b", 1)
        callers.leave("a")
        assert waiter.read() == [1, 1, 1, 0]
        callers.enter("b", 1, "PX", 50)
        assert callers.enter("c", 1, "PX", 1000, "WAIT", 0) == [1, 1, 1, 0]


def test_a_queue_and_its_keys_share_a_slot(node):
    client = node.client()
    for write in (lambda: put(client, "k", 1), lambda: incrby(client, "k", 1), lambda: delete(client, "k")):
        with pytest.raises(ResponseError, match="slot"):
            write()
    assert client.dbsize() == 0
    with RawClient(node) as worker:
        worker.send("WRITEBEHIND.CLAIM", "wb:{07}", "w", "BLOCK", 60_000)
        eventually(lambda: info(client, queue="wb:{07}")["waiters"] == 1)
        version = put(client, "metric:{07}:load", 5, queue="wb:{07}")
        assert worker.read()[0][:2] == [b"metric:{07}:load", version]
    client.delete("metric:{07}:load")
    assert get(client, "metric:{07}:load") == b"5"
    assert ack(client, "metric:{07}:load", version, queue="wb:{07}") == 1
