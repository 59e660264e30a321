"""What CACHE.* propagates, and what a replica makes of it: effects in absolute terms, nothing for what changed nothing."""

import contextlib
import random
import time

import pytest
import redis
from propagation import ReplicationStream
from random_operations import RandomOperations
from raw_client import RawClient
from servers import eventually
from tag_view import (
    at_once,
    cache_get_all,
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


def words(*items):
    return [item if isinstance(item, bytes) else str(item).encode() for item in items]


def transaction(*commands):
    return [[b"MULTI"], *commands, [b"EXEC"]]


def expires_at(client, key):
    return client.execute_command("PEXPIRETIME", key)


# The stream


@pytest.mark.parametrize(
    "command",
    [
        ("CACHE.SET", "k", "v", "EX", 100, "TAGS", 2, "t", "u"),
        ("CACHE.SET", "k", "v", "TAGS", 3, "t", "u", "t", "PX", 100_000, "NX"),
        ("CACHE.SETTAGGED", "k", "v", "EX", 100, "TAGS", 2, "t", "u"),
        ("CACHE.SETJITTER", "k", "v", "EX", 100, "JITTER", "50%", "TAGS", 2, "t", "u"),
        ("CACHE.SET", "k", "v", "PXAT", 10**14, "JITTER", 10**6, "TAGS", 2, "t", "u"),
        ("CACHE.MSET", 1, "k", "v", "EX", 100, "TAGS", 2, "t", "u"),
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_a_write_is_propagated_with_its_moment_and_nothing_to_decide(make_server, command):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        client.execute_command(*command)
        at = expires_at(client, "k")
        assert stream.read() == [words("CACHE.SET", "k", "v", "PXAT", at, "TAGS", 2, "t", "u")]


@pytest.mark.parametrize(
    "command",
    [
        ("CACHE.SET", "k", "v"),
        ("CACHE.SET", "k", "v", "TAGS", 1, "t"),
        ("CACHE.SET", "k", "v", "VERSION", 7),
        ("CACHE.SET", "k", "v", "PXAT", 10**14, "VERSION", 7, "TAGS", 2, "t", "u"),
        ("CACHE.SET", "k", "v", "EXAT", 10**11),
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_a_write_that_is_absolute_is_propagated_as_it_came(make_server, command):
    server = make_server()
    with ReplicationStream(server) as stream:
        server.client().execute_command(*command)
        assert stream.read() == [words(*command)]


def test_conditions_and_versions_are_decided_once(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        client.execute_command("CACHE.SET", "k", "v", "NX", "VERSION", 3)
        assert stream.read() == [words("CACHE.SET", "k", "v", "VERSION", 3)]
        client.execute_command("CACHE.SET", "k", "w", "XX", "TAGS", 1, "t")
        assert stream.read() == [words("CACHE.SET", "k", "w", "TAGS", 1, "t")]


def test_each_key_of_mset_has_its_own_draw(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        client.execute_command("CACHE.MSET", 2, "a", "1", "b", "2", "EX", 10_000, "JITTER", 5000, "TAGS", 1, "t")
        first = words("CACHE.SET", "a", "1", "PXAT", expires_at(client, "a"), "TAGS", 1, "t")
        second = words("CACHE.SET", "b", "2", "PXAT", expires_at(client, "b"), "TAGS", 1, "t")
        assert stream.read() == transaction(first, second)


def test_bytes_of_any_kind(make_server):
    server = make_server()
    odd = bytes(range(256)) + b"\r\n*1\r\n"
    with ReplicationStream(server) as stream:
        server.client().execute_command("CACHE.SET", b"k" + odd, odd, "PX", 100_000, "TAGS", 1, b"t" + odd)
        ((command, key, value, _, _, *tail),) = stream.read()
        assert (command, key, value, tail) == (b"CACHE.SET", b"k" + odd, odd, [b"TAGS", b"1", b"t" + odd])


def test_tag_and_untag(make_server):
    server = make_server()
    client = server.client()
    client.set("k", "v")
    with ReplicationStream(server) as stream:
        for command in (("CACHE.TAG", "k", "t", "u"), ("CACHE.UNTAG", "k", "u", "x"), ("CACHE.UNTAG", "k")):
            client.execute_command(*command)
            assert stream.read() == [words(*command)]


def test_invalidate_is_unlink(make_server):
    server = make_server()
    client = server.client()
    client.mset({"a": 1, "b": 2})
    with ReplicationStream(server) as stream:
        client.execute_command("CACHE.INVALIDATE", "a", "nothing", "b")
        assert stream.read() == [words("UNLINK", "a", "b")]


def test_floor_carries_the_moment_until_which_it_holds(make_server):
    server = make_server(args=["version-floor-ms", "100000"])
    client = server.client()
    client.set("k", "v")
    before = int(time.time() * 1000)
    with ReplicationStream(server) as stream:
        client.execute_command("CACHE.FLOOR", "k", 5)
        _, unlink, floor, _ = stream.read()
        client.execute_command("CACHE.FLOOR", "missing", 6)
        (missing,) = stream.read()
    assert unlink == words("UNLINK", "k")
    assert floor[:-1] == words("KEYWARD.APPLY", "FLOOR", "k", 5)
    assert missing[:-1] == words("KEYWARD.APPLY", "FLOOR", "missing", 6)
    for effect in (floor, missing):
        assert before + 100_000 - 5 <= int(effect[-1]) <= int(time.time() * 1000) + 100_000 + 5


def test_a_small_tag_is_retired_and_unlinked_in_one_transaction(make_server):
    server = make_server()
    client = server.client()
    keys = fill_tag(client, "t", 3)
    set_tagged(client, "other", "u")
    with ReplicationStream(server) as stream:
        client.execute_command("CACHE.INVALIDATETAG", "t", "unknown")
        moment = tag_info(client, "t")["last_invalidated_ms"]
        multi, retire, unlink, exec_ = stream.read()
    assert [multi, exec_] == transaction()
    assert retire == words("KEYWARD.APPLY", "RETIRE", moment, "t")
    assert unlink[0] == b"UNLINK"
    assert sorted(unlink[1:]) == keys


def test_a_giant_tag_is_retired_first_and_every_key_unlinked_once(make_server):
    server = make_server(args=["invalidate-sync-keys", str(SYNC)])
    client = server.client(db=3)
    keys = fill_tag(client, "t", GIANT)
    with ReplicationStream(server) as stream:
        client.execute_command("CACHE.INVALIDATETAG", "t")
        eventually(lambda: client.dbsize() == 0)
        effects = [effect for effect in stream.read_with_db() if effect[1] not in ([b"MULTI"], [b"EXEC"])]
    assert {db for db, _ in effects} == {3}
    commands = [command for _, command in effects]
    assert commands[0][:2] == words("KEYWARD.APPLY", "RETIRE")
    assert commands[0][3:] == [b"t"]
    assert {command[0] for command in commands[1:]} == {b"UNLINK"}
    assert sorted(key for command in commands[1:] for key in command[1:]) == sorted(keys)
    assert len(commands) > 2, "the rest came later"


def test_what_changes_nothing_propagates_nothing(make_server):
    server = make_server()
    client = server.client()
    client.execute_command("CACHE.SET", "k", "v", "TAGS", 1, "t", "VERSION", 5, "EX", 1000)
    client.sadd("set", 1)
    with ReplicationStream(server) as stream:
        for command in (
            ("CACHE.SET", "k", "w", "NX"),
            ("CACHE.SET", "missing", "w", "XX"),
            ("CACHE.SET", "k", "w", "VERSION", 5),
            ("CACHE.SETTAGGED", "k", "w", "EX", 10, "TAGS", 1, "u", "VERSION", 4),
            ("CACHE.TAG", "k", "t"),
            ("CACHE.TAG", "missing", "t"),
            ("CACHE.UNTAG", "k", "unknown"),
            ("CACHE.UNTAG", "missing"),
            ("CACHE.FLOOR", "k", 5),
            ("CACHE.INVALIDATE", "missing", "too"),
            ("CACHE.INVALIDATETAG", "unknown"),
            ("CACHE.GET", "k"),
            ("CACHE.GET", "missing"),
            ("CACHE.GET", "set"),
            ("CACHE.MGET", "k", "missing"),
            ("CACHE.TTL", "k"),
            ("CACHE.TAGS", "k"),
            ("CACHE.TAGKEYS", "t"),
            ("CACHE.TAGINFO", "t"),
            ("CACHE.SET", "k", "w", "EX", 0),
            ("CACHE.SET", "k", "w", "BAD"),
            ("CACHE.MSET", 2, "k", "w", "l", "w", "TAGS", 1, ""),
        ):
            with contextlib.suppress(redis.ResponseError):
                client.execute_command(*command)
            assert stream.read() == [], command


def test_effects_of_scripts_and_transactions_stay_together(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        script = "redis.call('CACHE.SET', 'a', 1) redis.call('CACHE.SET', 'b', 2, 'TAGS', 1, 't')"
        client.eval(script, 0)
        effects = words("CACHE.SET", "a", 1), words("CACHE.SET", "b", 2, "TAGS", 1, "t")
        assert stream.read() == transaction(*effects)
        at_once(server, ("CACHE.SET", "a", 1), ("CACHE.GET", "a"), ("CACHE.SET", "b", 2, "TAGS", 1, "t"))
        assert stream.read() == transaction(*effects)


def test_a_stream_that_begins_in_the_middle_lacks_nothing(make_server):
    """While nobody listens effects need not be built; the first listener must not miss the ones after its snapshot."""
    server = make_server()
    client = server.client()
    for number in range(100):
        client.execute_command("CACHE.SET", f"before:{number}", "v", "EX", 1000, "TAGS", 1, "t")
    replica = make_server()
    replica.client().replicaof("127.0.0.1", server.port)
    replica.primary = server
    number = 0
    while server.info("replication").get("slave0", {}).get("state") != "online":
        client.execute_command("CACHE.SET", f"during:{number}", "v", "EX", 1000, "TAGS", 1, "t")
        number += 1
    client.execute_command("CACHE.SET", "after", "v", "EX", 1000, "TAGS", 1, "t")
    replica.wait_until_synced()
    assert picture(replica) == picture(server)
    assert replica.client().dbsize() == 101 + number


# Replicas


@pytest.fixture
def pair(make_server):
    """A primary with a small bound of keys unlinked at once, and its replica."""
    primary = make_server(args=["invalidate-sync-keys", str(SYNC)])
    replica = make_server(args=["invalidate-sync-keys", str(SYNC)])
    replica.replicate_from(primary).wait_until_synced()
    return primary, replica


def test_a_replica_is_equal(pair):
    primary, replica = pair
    client = primary.client()
    client.execute_command("CACHE.SET", "a", "1", "EX", 1000, "JITTER", "50%", "TAGS", 2, "t", "u")
    client.execute_command("CACHE.MSET", 2, "b", "2", "c", "3", "PX", 1_000_000, "JITTER", 500_000, "TAGS", 1, "t")
    primary.client(db=4).execute_command("CACHE.SET", "a", "4", "TAGS", 1, "t")
    client.rpush("list", 1, 2)
    client.execute_command("CACHE.TAG", "list", "u")
    client.execute_command("CACHE.UNTAG", "b", "t")
    set_tagged(client, "gone", "w")
    set_tagged(client, "stays", "w2", "t")
    client.execute_command("CACHE.INVALIDATETAG", "w")
    client.rename("c", "renamed")
    client.execute_command("COPY", "a", "copied")
    replica.wait_until_synced()
    assert picture(replica) == picture(primary)
    assert tag_info(replica.client(), "w") == tag_info(client, "w")
    assert tag_info(client, "w")["invalidations"] == 1
    assert tag_keys(replica.client(), "t") == {b"a", b"renamed", b"stays"}


@pytest.mark.parametrize("seed", [11, 12])
def test_a_replica_is_equal_after_random_operations(make_server, seed):
    primary, replica, second = make_server(args=["invalidate-sync-keys", "3"]), make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    # A replica of the replica gets the stream as it came.
    second.replicate_from(replica).wait_until_synced()
    operations = RandomOperations(random.Random(seed), size=100)
    with RawClient(primary) as raw:
        raw.call("RPUSH", "list", "a")
        operations.dump = raw.call("DUMP", "list")
        for _ in range(10):
            batch = [operations.next() for _ in range(300)]
            commands = [command for operation in batch for command in (("SELECT", operation.db), operation.words)]
            raw.pipeline(commands)
            # What is short-lived ends here and there at slightly different moments.
            eventually(lambda: metric(primary, "cache_reclaim_backlog") == 0)
            replica.wait_until_synced()
            second.wait_until_synced()
            eventually(lambda: picture(primary) == picture(replica) == picture(second))
    for server in (primary, replica, second):
        assert metric(server, "cache_ghosts") == 0
        assert metric(server, "cache_tagged_keys") == metric(primary, "cache_tagged_keys")


def test_versions_hold_on_a_promoted_replica(pair):
    primary, replica = pair
    client = primary.client()
    client.execute_command("CACHE.SET", "live", "v", "VERSION", 10)
    client.execute_command("CACHE.SET", "gone", "v", "VERSION", 10)
    client.delete("gone")
    client.execute_command("CACHE.FLOOR", "floored", 10)
    client.execute_command("CACHE.SET", "old", "v", "VERSION", 10)
    client.rename("old", "renamed")
    replica.wait_until_synced()
    replica.promote()
    promoted = replica.client()
    for key in ("live", "gone", "floored", "renamed"):
        assert promoted.execute_command("CACHE.SET", key, "late", "VERSION", 10) is None, key
        assert promoted.execute_command("CACHE.SET", key, "new", "VERSION", 11) == b"OK", key


def test_a_replica_takes_no_setting_of_its_own_for_a_floor(make_server):
    primary, replica = make_server(args=["version-floor-ms", "600000"]), make_server(args=["version-floor-ms", "0"])
    replica.replicate_from(primary).wait_until_synced()
    primary.client().execute_command("CACHE.FLOOR", "k", 10)
    replica.wait_until_synced()
    replica.promote()
    assert replica.client().execute_command("CACHE.SET", "k", "late", "VERSION", 10) is None


def test_a_replica_decides_nothing_even_with_a_floor_of_its_own(make_server):
    """What the primary stored is stored, whatever the replica remembers."""
    primary, replica = make_server(args=["version-floor-ms", "1"]), make_server(args=["version-floor-ms", "600000"])
    replica.replicate_from(primary).wait_until_synced()
    client = primary.client()
    client.execute_command("CACHE.SET", "k", "v", "VERSION", 10)
    client.delete("k")
    eventually(lambda: client.execute_command("CACHE.SET", "k", "w", "VERSION", 5) == b"OK")
    replica.wait_until_synced()
    assert replica.client().execute_command("CACHE.GET", "k") == b"w"


def test_expiry_and_eviction_reach_the_replica(pair):
    primary, replica = pair
    client = primary.client()
    fill_tag(client, "t", 300, value="x" * 2000)
    client.execute_command("CACHE.SET", "short", "v", "PX", 20, "TAGS", 1, "t")
    eventually(lambda: client.exists("short") == 0)
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", primary.info("memory")["used_memory"] - 300_000)
    eventually(lambda: client.dbsize() < 250)
    client.config_set("maxmemory", 0)
    replica.wait_until_synced()
    assert tag_keys(replica.client(), "t") == set(replica.client().keys("*")) == set(client.keys("*"))
    assert metric(replica, "cache_tagged_keys") == client.dbsize()


@pytest.mark.parametrize("words", [("FLUSHDB",), ("FLUSHALL", "ASYNC"), ("SWAPDB", 0, 1)], ids=lambda words: words[0])
def test_whole_databases_on_a_replica(pair, words):
    primary, replica = pair
    set_tagged(primary.client(), "k", "t")
    set_tagged(primary.client(db=1), "l", "t")
    primary.client().execute_command(*words)
    replica.wait_until_synced()
    assert picture(replica) == picture(primary)
    assert tag_keys(replica.client(), "t") == tag_keys(primary.client(), "t")


def test_partial_resync(pair):
    primary, replica = pair
    client = primary.client()
    set_tagged(client, "k", "t")
    replica.wait_until_synced()
    client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    set_tagged(client, "l", "t", "u")
    client.execute_command("CACHE.INVALIDATE", "k")
    replica.wait_until_synced()
    stats = primary.info("stats")
    assert (stats["sync_full"], stats["sync_partial_ok"]) == (1, 1)
    assert picture(replica) == picture(primary)
    assert tag_keys(replica.client(), "u") == {b"l"}


@pytest.mark.parametrize("diskless", ["disabled", "swapdb", "on-empty-db"])
def test_full_sync_brings_everything(make_server, diskless):
    primary = make_server(config=["repl-diskless-sync yes"])
    client = primary.client()
    fill_tag(client, "t", 500, "u")
    client.execute_command("CACHE.SET", "k", "v", "VERSION", 10, "EX", 1000)
    client.execute_command("CACHE.FLOOR", "f", 10)
    set_tagged(client, "gone", "w")
    client.execute_command("CACHE.INVALIDATETAG", "w")
    replica = make_server(config=[f"repl-diskless-load {diskless}"])
    replica.replicate_from(primary).wait_until_synced()
    assert picture(replica) == picture(primary)
    assert tag_info(replica.client(), "w") == tag_info(client, "w")
    replica.promote()
    for key in ("k", "f"):
        assert replica.client().execute_command("CACHE.SET", key, "late", "VERSION", 10) is None


# Retirement


def test_a_replica_reads_no_invalidated_value(pair):
    primary, replica = pair
    keys = fill_tag(primary.client(), "t", GIANT, "second")
    assert retire_and_hold(primary, "t", ("SET", keys[0], "plain")) == [GIANT, "OK"]
    replica.wait_until_synced()
    client = replica.client()
    assert client.dbsize() == GIANT - SYNC, "the rest was to be there still"
    assert cache_get_all(client, keys) == [b"plain"] + [None] * (GIANT - 1)
    assert client.execute_command("CACHE.TTL", keys[1]) == [-2, -2]
    assert tag_keys(client, "t") == tag_keys(client, "second") == {keys[0]}, "a plain write keeps the tags"
    assert tags(client, keys[1]) == set()
    primary.client().execute_command("CLIENT", "UNPAUSE")
    eventually(lambda: primary.client().dbsize() == 1)
    replica.wait_until_synced()
    assert picture(replica) == picture(primary)
    assert replica.client().keys("*") == [keys[0]]


def test_a_promoted_replica_goes_on_reclaiming(pair):
    primary, replica = pair
    keys = fill_tag(primary.client(), "t", GIANT)
    retire_and_hold(primary, "t", ("SET", keys[0], "plain"))
    replica.wait_until_synced()
    client = replica.client()
    assert client.dbsize() == GIANT - SYNC
    replica.promote()
    assert cache_get_all(client, keys) == [b"plain"] + [None] * (GIANT - 1)
    eventually(lambda: client.dbsize() == 1)
    assert client.execute_command("CACHE.GET", keys[0]) == b"plain"
    assert metric(replica, "cache_reclaim_backlog") == 0
    assert metric(replica, "cache_ghosts") == 0
    primary.client().execute_command("CLIENT", "UNPAUSE")


def test_a_replica_that_comes_in_the_middle(make_server):
    primary, replica = make_server(args=["invalidate-sync-keys", str(SYNC)]), make_server()
    keys = fill_tag(primary.client(), "t", GIANT)
    retire_and_hold(primary, "t", ("SET", keys[0], "plain"))
    replica.replicate_from(primary).wait_until_synced()
    client = replica.client()
    assert client.dbsize() == GIANT - SYNC
    assert cache_get_all(client, keys) == [b"plain"] + [None] * (GIANT - 1)
    with RawClient(primary) as raw:
        # Both arrive together: the key is written before the reclaimer wakes.
        assert raw.pipeline([("CLIENT", "UNPAUSE"), ("SET", keys[1], "spared")]) == ["OK", "OK"]
    eventually(lambda: primary.client().dbsize() == 2)
    replica.wait_until_synced()
    assert client.dbsize() == 2
    assert cache_get_all(client, keys[:2]) == [b"plain", b"spared"]
    assert metric(replica, "cache_reclaim_backlog") == 0
