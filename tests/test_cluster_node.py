"""One node of a cluster that owns every slot: keys of a tag lie in many slots, and calls of UNLINK across slots do nothing there."""

import pytest
from redis.exceptions import ResponseError
from servers import eventually


@pytest.fixture
def node(make_server):
    server = make_server(config=["cluster-enabled yes"])
    client = server.client()
    client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    eventually(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
    return server


def test_a_tag_is_invalidated_across_slots_at_once_and_by_the_reclaimer(node):
    client = node.client()
    client.config_set("keyward.invalidate-sync-keys", 10)
    for n in range(1000):
        client.execute_command("CACHE.SETTAGGED", f"k{n}", n, "EX", 100, "TAGS", 1, "all")
    assert client.execute_command("CACHE.INVALIDATETAG", "all") == 1000
    assert all(client.execute_command("CACHE.GET", f"k{n}") is None for n in range(1000))
    eventually(lambda: client.dbsize() == 0)
    assert client.info("keyward_cache")["keyward_cache_ghosts"] == 0


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
