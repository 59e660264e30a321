"""What a restart keeps: values, TTLs, tags, versions, and the knowledge of what was invalidated."""

import random
import time

import pytest
from propagation import aof_commands
from random_operations import RandomOperations
from raw_client import RawClient
from servers import eventually
from tag_view import (
    assert_view_is,
    at_once,
    cache_get_all,
    differences,
    fill_tag,
    metric,
    picture,
    retire_and_hold,
    set_tagged,
    tag_info,
    tag_keys,
    tags,
)

SYNC = 100
GIANT = 2000
LOWERED = ["invalidate-sync-keys", str(SYNC)]
AOF = ["appendonly yes"]
AOF_OF_COMMANDS = ["appendonly yes", "aof-use-rdb-preamble no"]


def fill(server):
    """Some of everything."""
    client = server.client()
    fill_tag(client, "many", 3000, "second")
    client.execute_command("CACHE.SET", "short", "v", "PX", 1_000_000, "TAGS", 2, "t", "u", "VERSION", 10)
    client.execute_command("CACHE.SET", b"odd\x00\xff\r\n", b"\xff", "TAGS", 1, b"\x00t")
    server.client(db=9).execute_command("CACHE.SET", "far", "v", "TAGS", 1, "t")
    client.rpush("list", 1)
    client.execute_command("CACHE.TAG", "list", *(f"t{number}" for number in range(64)))
    client.set("plain", "v")
    client.execute_command("CACHE.SET", "gone", "v", "VERSION", 10)
    client.delete("gone")
    client.execute_command("CACHE.FLOOR", "floored", 10)
    set_tagged(client, "invalidated", "w")
    client.execute_command("CACHE.INVALIDATETAG", "w")


def refuses_old_versions(client):
    return all(
        client.execute_command("CACHE.SET", key, "late", "VERSION", 10) is None for key in ("short", "gone", "floored")
    )


def rewrite_aof(server):
    server.client().bgrewriteaof()

    def done():
        state = server.info("persistence")
        return not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]

    eventually(done, timeout=30)


# RDB


def test_an_rdb_file_brings_everything_back(make_server):
    server = make_server(config=["save 3600 1"])
    fill(server)
    before, info = picture(server), tag_info(server.client(), "w")
    server.restart()
    assert picture(server) == before
    client = server.client()
    assert tag_info(client, "w") == info
    assert len(tag_keys(client, "many")) == 3000
    assert refuses_old_versions(client)
    assert metric(server, "cache_ghosts") == 0
    assert client.execute_command("CACHE.INVALIDATETAG", "many", "t") == 3001
    assert tag_keys(server.client(db=9), "t") == {b"far"}


def test_a_second_restart_keeps_it_too(make_server):
    server = make_server(config=["save 3600 1"])
    fill(server)
    before = picture(server)
    server.restart()
    server.client().set("another", "change")
    server.client().delete("another")
    server.restart()
    assert picture(server) == before
    assert refuses_old_versions(server.client())


def test_what_expires_while_the_server_is_down(make_server):
    server = make_server()
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.execute_command("CACHE.SET", "short", "v", "PX", 50, "TAGS", 1, "t", "VERSION", 10)
    set_tagged(client, "long", "t")
    end = time.time() + 0.06
    client.save()
    server.kill9()
    eventually(lambda: time.time() > end)
    server.start()
    client = server.client()
    assert_view_is(server, {0: {b"long": {b"t"}}})
    assert client.execute_command("CACHE.SET", "short", "late", "VERSION", 10) is None, "the floor outlives the key"
    client.set("short", "again")
    assert tags(client, "short") == set()


def test_restart_in_the_middle_of_a_giant_invalidation(make_server):
    server = make_server(args=LOWERED)
    client = server.client()
    keys = fill_tag(client, "t", GIANT, "second")
    retire_and_hold(server, "t", ("SET", keys[0], "plain"))
    client.save()
    assert client.dbsize() == GIANT - SYNC
    server.kill9()
    server.start()
    client = server.client()
    assert cache_get_all(client, keys) == [b"plain"] + [None] * (GIANT - 1)
    assert tag_keys(client, "second") == {keys[0]}
    eventually(lambda: client.dbsize() == 1)
    assert client.execute_command("CACHE.GET", keys[0]) == b"plain"
    assert metric(server, "cache_ghosts") == 0


def test_save_metadata_no_leaves_only_values(make_server):
    server = make_server(args=["save-metadata", "no"], config=["save 3600 1"])
    fill(server)
    client = server.client()
    values = client.mget("short", "plain", "k:0")
    server.restart()
    client = server.client()
    assert client.mget("short", "plain", "k:0") == values
    assert_view_is(server, {})
    assert client.execute_command("CACHE.SET", "short", "w", "VERSION", 10) == b"OK"


def test_an_rdb_without_metadata_loads_without_the_module(make_server):
    """The way out: docs/removing.md. On 7.0 every file of a server with the module has a record of it."""
    server = make_server(args=["save-metadata", "no"], config=["save 3600 1"])
    if server.version < (7, 2):
        pytest.skip("Redis 7.0 writes a record in any case")
    fill(server)
    server.stop()
    server.module = False
    server.start()
    assert server.client().get("plain") == b"v"


def test_an_rdb_of_a_server_that_never_used_the_module_loads(make_server):
    server = make_server(module=False, config=["save 3600 1"])
    server.client().set("k", "v")
    server.stop()
    server.module = True
    server.start()
    assert server.client().execute_command("CACHE.GET", "k") == b"v"


# AOF


@pytest.mark.parametrize("config", [AOF, AOF_OF_COMMANDS], ids=["preamble", "commands"])
def test_aof_survives_a_crash(make_server, config):
    server = make_server(config=config)
    fill(server)
    before, info = picture(server), tag_info(server.client(), "w")
    server.kill9()
    server.start()
    assert picture(server) == before
    assert tag_info(server.client(), "w") == info
    assert refuses_old_versions(server.client())


def test_a_rewritten_aof_with_preamble_keeps_everything(make_server):
    server = make_server(config=AOF)
    fill(server)
    rewrite_aof(server)
    client = server.client()
    assert aof_commands(server) == []
    set_tagged(client, "after", "t", "x")
    client.execute_command("CACHE.INVALIDATETAG", "second")
    client.execute_command("CACHE.UNTAG", "list", "t1")
    before = picture(server)
    server.kill9()
    server.start()
    assert picture(server) == before
    assert refuses_old_versions(server.client())
    assert metric(server, "cache_ghosts") == 0


def test_an_aof_rewritten_as_commands_keeps_the_values_and_says_what_is_lost(make_server):
    server = make_server(config=AOF_OF_COMMANDS)
    fill(server)
    assert "aof-use-rdb-preamble" in server.log(), "the loss was to be announced"
    rewrite_aof(server)
    client = server.client()
    values = client.mget("short", "plain", "k:0")
    server.kill9()
    server.start()
    client = server.client()
    assert client.mget("short", "plain", "k:0") == values
    assert metric(server, "cache_tagged_keys") == 0


def test_an_aof_that_is_switched_on_lacks_nothing(make_server):
    """Nobody listened before; what is written while the first file is made must be in it."""
    server = make_server()
    fill(server)
    with RawClient(server) as raw:
        during = [("CACHE.SET", f"during:{number}", "v", "EX", 1000, "TAGS", 1, "t") for number in range(500)]
        replies = raw.pipeline([("CONFIG", "SET", "appendonly", "yes"), *during])
        assert replies == ["OK"] * 501
    client = server.client()
    client.execute_command("CACHE.INVALIDATE", "during:0")

    def done():
        state = server.info("persistence")
        return state["aof_enabled"] and not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]

    eventually(done, timeout=30)
    before = picture(server)
    server.kill9()
    server.config.append("appendonly yes")
    server.start()
    assert picture(server) == before
    assert server.client().exists("during:0") == 0


def test_aof_in_the_middle_of_a_giant_invalidation(make_server):
    server = make_server(args=LOWERED, config=AOF)
    client = server.client()
    keys = fill_tag(client, "t", GIANT)
    retire_and_hold(server, "t", ("SET", keys[0], "plain"))
    assert client.dbsize() == GIANT - SYNC
    server.kill9()
    server.start()
    client = server.client()
    assert cache_get_all(client, keys) == [b"plain"] + [None] * (GIANT - 1)
    eventually(lambda: client.dbsize() == 1)
    assert client.execute_command("CACHE.GET", keys[0]) == b"plain"


def test_aof_rewritten_in_the_middle_of_a_giant_invalidation(make_server):
    """The preamble holds the retired keys, and the commands after it spare one of them."""
    server = make_server(args=LOWERED, config=AOF)
    keys = fill_tag(server.client(), "t", GIANT)
    retire_and_hold(server, "t")
    rewrite_aof(server)
    with RawClient(server) as raw:
        # Both arrive together: the key is written before the reclaimer wakes.
        assert raw.pipeline([("CLIENT", "UNPAUSE"), ("SET", keys[0], "plain")]) == ["OK", "OK"]
    server.kill9()
    server.start()
    client = server.client()
    assert cache_get_all(client, keys) == [b"plain"] + [None] * (GIANT - 1)
    eventually(lambda: client.dbsize() == 1)
    assert client.execute_command("CACHE.GET", keys[0]) == b"plain"


def test_an_old_aof_decides_nothing_anew(make_server):
    """NX, VERSION, floors and moments that are long over stand in the file as what came of them."""
    server = make_server(args=["version-floor-ms", "1"], config=AOF)
    client = server.client()
    client.execute_command("CACHE.SET", "k", "first", "VERSION", 10)
    client.delete("k")
    eventually(lambda: client.execute_command("CACHE.SET", "k", "second", "VERSION", 5, "NX") == b"OK")
    client.execute_command("CACHE.SET", "j", "v", "EX", 1000, "JITTER", "100%", "TAGS", 1, "t")
    at = client.execute_command("PEXPIRETIME", "j")
    server.kill9()
    # The setting at the time of loading has no say either.
    server.args = ["version-floor-ms", "600000"]
    server.start()
    client = server.client()
    assert client.execute_command("CACHE.GET", "k") == b"second"
    assert client.execute_command("PEXPIRETIME", "j") == at


@pytest.mark.parametrize("how", ["rdb", "aof", "rewritten"])
def test_random_operations_survive_a_restart(make_server, how):
    server = make_server(args=["invalidate-sync-keys", "3"], config=["save 3600 1"] if how == "rdb" else AOF)
    operations = RandomOperations(random.Random(21), size=100)
    with RawClient(server) as raw:
        raw.call("RPUSH", "list", "a")
        operations.dump = raw.call("DUMP", "list")
        for turn in range(4):
            batch = [operations.next() for _ in range(500)]
            raw.pipeline([command for operation in batch for command in (("SELECT", operation.db), operation.words)])
            if how == "rewritten" and turn == 1:
                rewrite_aof(server)
    eventually(lambda: metric(server, "cache_reclaim_backlog") == 0)
    before = settled_picture(server)
    if how == "rdb":
        server.stop()
    else:
        server.kill9()
    server.start()
    assert differences(before, picture(server)) == []
    assert metric(server, "cache_ghosts") == 0


def settled_picture(server):
    """When nothing short-lived is left, not even in memory: it would go while the server is down."""

    def settled():
        # Asked first: what expires afterwards then makes the two differ.
        known = metric(server, "cache_tagged_keys")
        seen = picture(server)
        values = [value for keys, _ in seen.values() for value in keys.values()]
        long_lived = all(value[2] == -1 or value[2] > (time.time() + 100) * 1000 for value in values)
        return seen if long_lived and known == sum(bool(value[3]) for value in values) else None

    return eventually(settled)


def test_a_snapshot_holds_one_moment(make_server):
    """What is invalidated while a snapshot is written is in it or not, with its tags."""
    server = make_server(args=LOWERED)
    client = server.client()
    keys = fill_tag(client, "t", GIANT)
    replies = at_once(server, ("BGSAVE",), ("CACHE.INVALIDATETAG", "t"))
    assert replies[1] == GIANT
    eventually(lambda: not server.info("persistence")["rdb_bgsave_in_progress"])
    server.kill9()
    server.start()
    left = set(server.client().keys("*"))
    assert left <= set(keys)
    alive = {key for key, value in zip(keys, cache_get_all(server.client(), keys), strict=True) if value}
    assert tag_keys(server.client(), "t") == alive
