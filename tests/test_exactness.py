"""The tags that the module knows are those of the keys that are there, whoever changed the keyspace and how."""

import itertools
import random

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from keyspace_model import KeyspaceModel
from random_operations import DATABASES, KEYS, TAGS, RandomOperations
from raw_client import ErrorReply, RawClient
from servers import default_flavour, eventually
from tag_view import assert_view_is, at_once, fill_tag, metric, set_tagged, tag_info, tag_keys, tags

VALKEY_8_1 = default_flavour() == "valkey-8.1"
# Fixed in Valkey 9: with a module that hears of GENERIC key events, the client is on the wrong database after these.
wrong_database = pytest.mark.skipif(
    VALKEY_8_1, reason="Valkey 8.1: MOVE and COPY ... DB leave the client on the wrong database (server bug)"
)
wrong_database_in_multi = pytest.mark.xfail(
    default_flavour() == "valkey-9.1",
    strict=True,
    reason="Valkey 9.1: inside MULTI a module hears of MOVE and COPY ... DB as if they ended in the client's database",
)
HAS_HASH_FIELD_EXPIRY = default_flavour() in ("redis-8.2", "valkey-9.1")


def no_ghosts(server):
    assert metric(server, "cache_ghosts") == 0, "an event was missed"
    assert metric(server, "caught_panics") == 0


@pytest.fixture
def tagged(server, client):
    """k carries t, u; other carries t."""
    set_tagged(client, "k", "t", "u")
    set_tagged(client, "other", "t")
    yield client
    no_ghosts(server)


# Removal


@pytest.mark.parametrize(
    "words",
    [
        ("DEL", "k"),
        ("UNLINK", "k"),
        ("GETDEL", "k"),
        ("EXPIRE", "k", -1),
        ("PEXPIREAT", "k", 1),
        ("GETEX", "k", "PXAT", 1),
        ("GETEX", "k", "EXAT", 1),
        ("SET", "k", "v", "PXAT", 1),
        ("SORT", "nothing", "STORE", "k"),
        ("SUNIONSTORE", "k", "nothing"),
        ("SINTERSTORE", "k", "nothing", "nothing"),
        ("ZUNIONSTORE", "k", 1, "nothing"),
        ("ZRANGESTORE", "k", "nothing", 0, -1),
        ("BITOP", "AND", "k", "nothing"),
        ("EVAL", "return redis.call('DEL', KEYS[1])", 1, "k"),
        ("MIGRATE-LIKE",),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_whatever_removes_a_key_removes_its_tags(server, tagged, words):
    if words == ("MIGRATE-LIKE",):
        dump = tagged.dump("k")
        tagged.delete("k")
        tagged.restore("elsewhere", 0, dump)
        assert tags(tagged, "elsewhere") == set()
    else:
        tagged.execute_command(*words)
    assert tagged.exists("k") == 0
    assert_tags_are(tagged, {b"other": {b"t"}})
    tagged.set("k", "again")
    assert tags(tagged, "k") == set(), "a new key with an old key's tags"


def assert_tags_are(client, expected):
    """By key and by tag, in the client's database, for the tags that the tests here use."""
    keys = client.keys("*")
    assert {key: found for key in keys if (found := tags(client, key))} == expected
    for tag in (b"t", b"u", b"x"):
        carriers = {key for key, carried in expected.items() if tag in carried}
        assert tag_keys(client, tag) == carriers
        assert tag_info(client, tag)["keys"] == len(carriers)


def emptied(make, *words):
    return pytest.param(make, words, id=words[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        emptied(lambda c: c.rpush("k", 1), "LPOP", "k"),
        emptied(lambda c: c.rpush("k", 1), "RPOP", "k", 5),
        emptied(lambda c: c.rpush("k", 1), "LMOVE", "k", "l", "LEFT", "LEFT"),
        emptied(lambda c: c.rpush("k", 1), "LREM", "k", 0, 1),
        emptied(lambda c: c.rpush("k", 1), "LTRIM", "k", 5, 9),
        emptied(lambda c: c.rpush("k", 1), "BLPOP", "k", 0),
        emptied(lambda c: c.rpush("k", 1), "LMPOP", 1, "k", "LEFT"),
        emptied(lambda c: c.sadd("k", 1), "SPOP", "k"),
        emptied(lambda c: c.sadd("k", 1, 2), "SPOP", "k", 5),
        emptied(lambda c: c.sadd("k", 1), "SREM", "k", 1),
        emptied(lambda c: c.sadd("k", 1), "SMOVE", "k", "s", 1),
        emptied(lambda c: c.sadd("k", 1), "SDIFFSTORE", "k", "k", "k"),
        emptied(lambda c: c.zadd("k", {"m": 1}), "ZPOPMIN", "k"),
        emptied(lambda c: c.zadd("k", {"m": 1}), "ZREM", "k", "m"),
        emptied(lambda c: c.zadd("k", {"m": 1}), "ZREMRANGEBYRANK", "k", 0, -1),
        emptied(lambda c: c.zadd("k", {"m": 1}), "BZPOPMAX", "k", 0),
        emptied(lambda c: c.hset("k", "f", "v"), "HDEL", "k", "f"),
    ],
)
def test_a_container_that_is_emptied_is_gone(client, make, words):
    make(client)
    assert client.execute_command("CACHE.TAG", "k", "t", "u") == 2
    client.execute_command(*words)
    assert client.exists("k") == 0
    assert tag_keys(client, "t") == tag_keys(client, "u") == set()
    make(client)
    assert tags(client, "k") == set()


@pytest.mark.skipif(not HAS_HASH_FIELD_EXPIRY, reason="the server has no expiry of hash fields")
def test_a_hash_whose_last_field_expires_is_gone(client):
    client.hset("k", "f", "v")
    client.execute_command("CACHE.TAG", "k", "t")
    client.execute_command("HPEXPIRE", "k", 1, "FIELDS", 1, "f")
    eventually(lambda: client.exists("k") == 0)
    assert tag_keys(client, "t") == set()


def test_expiry_found_by_a_reader(server, tagged):
    tagged.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    try:
        tagged.pexpire("k", 1)
        eventually(lambda: tagged.get("k") is None)
        assert_tags_are(tagged, {b"other": {b"t"}})
    finally:
        tagged.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)


def test_expiry_that_nobody_asked_for(server, tagged):
    fill_tag(tagged, "x", 500)
    for number in range(500):
        tagged.pexpire(f"k:{number}", 1)
    tagged.pexpire("k", 1)
    # TAGINFO counts what the module knows, and looks at no key.
    eventually(lambda: tag_info(tagged, "x")["keys"] == 0)
    eventually(lambda: tag_info(tagged, "u")["keys"] == 0)
    assert metric(server, "cache_tagged_keys") == 1


# Overwriting: a plain write keeps the tags


@pytest.mark.parametrize(
    "words",
    [
        ("SET", "k", "w"),
        ("SET", "k", "w", "EX", 100),
        ("SET", "k", "w", "KEEPTTL"),
        ("SET", "k", "w", "GET"),
        ("GETSET", "k", "w"),
        ("MSET", "k", "w"),
        ("SETEX", "k", 100, "w"),
        ("APPEND", "k", "w"),
        ("SETRANGE", "k", 3, "w"),
        ("SETBIT", "k", 5, 1),
        ("BITOP", "NOT", "k", "other"),
        ("EXPIRE", "k", 100),
        ("PERSIST", "k"),
        ("SORT", "list", "STORE", "k"),
        ("SUNIONSTORE", "k", "set"),
        ("ZUNIONSTORE", "k", 1, "zset"),
        ("ZRANGESTORE", "k", "zset", 0, -1),
        (
            "PFMERGE",
            "k",
        ),
        ("EVAL", "return redis.call('SET', KEYS[1], 'w')", 1, "k"),
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_a_plain_write_keeps_the_tags(tagged, words):
    tagged.rpush("list", 1)
    tagged.sadd("set", 1)
    tagged.zadd("zset", {"m": 1})
    if words[0] == "PFMERGE":
        tagged.set("k", b"")
        tagged.delete("k")
        tagged.pfadd("k", 1)
        tagged.execute_command("CACHE.TAG", "k", "t", "u")
    tagged.execute_command(*words)
    assert tagged.exists("k") == 1
    assert_tags_are(tagged, {b"k": {b"t", b"u"}, b"other": {b"t"}})


def test_in_place_writes_of_containers_keep_the_tags(client):
    client.hset("h", "f", "v")
    client.rpush("l", 1, 2)
    client.sadd("s", 1, 2)
    client.zadd("z", {"a": 1, "b": 2})
    client.xadd("x", {"f": "v"})
    for key in "hlszx":
        client.execute_command("CACHE.TAG", key, "t")
    client.hset("h", "g", "v")
    client.hdel("h", "f")
    client.lpop("l")
    client.srem("s", 1)
    client.zrem("z", "a")
    client.xtrim("x", maxlen=0)
    client.xadd("x", {"f": "v"})
    assert tag_keys(client, "t") == {b"h", b"l", b"s", b"z", b"x"}


def test_a_key_deleted_and_set_again_in_one_go_has_no_tags(server, tagged):
    tagged.eval("redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], 'new')", 1, "k")
    at_once(server, ("DEL", "other"), ("SET", "other", "new"))
    assert_tags_are(tagged, {})


# RENAME, MOVE, COPY, RESTORE


def test_rename_carries_the_tags(tagged):
    tagged.rename("k", "new")
    assert_tags_are(tagged, {b"new": {b"t", b"u"}, b"other": {b"t"}})


def test_rename_onto_a_tagged_key(tagged):
    set_tagged(tagged, "target", "x", "t")
    tagged.rename("k", "target")
    assert_tags_are(tagged, {b"target": {b"t", b"u"}, b"other": {b"t"}})


def test_rename_of_an_untagged_key_onto_a_tagged_one(tagged):
    tagged.set("plain", "v")
    tagged.rename("plain", "k")
    assert tagged.get("k") == b"v"
    assert_tags_are(tagged, {b"other": {b"t"}})


def test_rename_onto_itself(tagged):
    tagged.rename("k", "k")
    assert tagged.renamenx("k", "k") == 0
    assert_tags_are(tagged, {b"k": {b"t", b"u"}, b"other": {b"t"}})


def test_renamenx(tagged):
    assert tagged.renamenx("k", "other") == 0
    assert_tags_are(tagged, {b"k": {b"t", b"u"}, b"other": {b"t"}})
    assert tagged.renamenx("k", "new") == 1
    assert_tags_are(tagged, {b"new": {b"t", b"u"}, b"other": {b"t"}})


def test_renames_there_and_back_in_one_transaction(server, tagged):
    at_once(server, ("RENAME", "k", "tmp"), ("RENAME", "other", "k"), ("RENAME", "tmp", "other"))
    assert_tags_are(tagged, {b"other": {b"t", b"u"}, b"k": {b"t"}})


@wrong_database
def test_move_carries_the_tags(server, tagged):
    there = server.client(db=5)
    assert tagged.move("k", 5)
    assert_tags_are(tagged, {b"other": {b"t"}})
    assert_tags_are(there, {b"k": {b"t", b"u"}})
    set_tagged(there, "other", "x")
    assert not tagged.move("other", 5), "the key is there already"
    assert_tags_are(tagged, {b"other": {b"t"}})
    assert_tags_are(there, {b"k": {b"t", b"u"}, b"other": {b"x"}})


@wrong_database
@wrong_database_in_multi
def test_move_inside_a_transaction(make_server):
    server = make_server()
    client, there = server.client(), server.client(db=5)
    set_tagged(client, "k", "t", "u")
    assert at_once(server, ("MOVE", "k", 5)) == [1]
    assert_tags_are(client, {})
    assert_tags_are(there, {b"k": {b"t", b"u"}})


@wrong_database
@wrong_database_in_multi
def test_copy_to_another_database_inside_a_transaction(make_server):
    server = make_server()
    client, there = server.client(), server.client(db=5)
    set_tagged(client, "k", "t")
    set_tagged(client, "new", "t", "u")
    set_tagged(there, "new", "x")
    assert at_once(server, ("COPY", "k", "new", "DB", 5, "REPLACE")) == [1]
    assert_tags_are(client, {b"k": {b"t"}, b"new": {b"t", b"u"}})
    assert_tags_are(there, {})


def test_the_target_of_copy_has_no_tags(tagged):
    set_tagged(tagged, "target", "x")
    assert tagged.copy("k", "new")
    assert not tagged.copy("k", "target")
    assert_tags_are(tagged, {b"k": {b"t", b"u"}, b"other": {b"t"}, b"target": {b"x"}})
    assert tagged.copy("k", "target", replace=True)
    assert_tags_are(tagged, {b"k": {b"t", b"u"}, b"other": {b"t"}})
    assert tagged.mget("new", "target") == [b"v", b"v"]


@wrong_database
def test_copy_to_another_database(server, tagged):
    there = server.client(db=5)
    set_tagged(there, "k", "x")
    assert tagged.copy("k", "k", destination_db=5, replace=True)
    assert tagged.copy("k", "new", destination_db=5)
    assert_tags_are(there, {})
    assert_tags_are(tagged, {b"k": {b"t", b"u"}, b"other": {b"t"}})


def test_restore_brings_a_value_without_tags(tagged):
    dump = tagged.dump("k")
    tagged.restore("new", 0, dump)
    with pytest.raises(redis.ResponseError, match="BUSYKEY"):
        tagged.restore("other", 0, dump)
    assert_tags_are(tagged, {b"k": {b"t", b"u"}, b"other": {b"t"}})
    tagged.restore("other", 0, dump, replace=True)
    assert_tags_are(tagged, {b"k": {b"t", b"u"}})
    tagged.restore("k", 1, dump, replace=True, absttl=True)
    assert tagged.exists("k") == 0
    assert_tags_are(tagged, {})


# Whole databases


@pytest.mark.parametrize(
    "words", [("FLUSHDB", "SYNC"), ("FLUSHDB", "ASYNC"), ("FLUSHALL", "SYNC"), ("FLUSHALL", "ASYNC")]
)
def test_flush(server, tagged, words):
    there = server.client(db=5)
    set_tagged(there, "k", "x")
    tagged.execute_command(*words)
    assert_tags_are(tagged, {})
    assert_tags_are(there, {b"k": {b"x"}} if words[0] == "FLUSHDB" else {})
    tagged.set("k", "again")
    assert tags(tagged, "k") == set()


def test_flush_inside_a_transaction(server, tagged):
    at_once(server, ("FLUSHDB",), ("CACHE.SET", "k", "v", "TAGS", 1, "x"))
    assert_tags_are(tagged, {b"k": {b"x"}})


def test_swapdb(server, tagged):
    there = server.client(db=5)
    set_tagged(there, "k", "x")
    tagged.swapdb(0, 5)
    assert_tags_are(tagged, {b"k": {b"x"}})
    assert_tags_are(there, {b"k": {b"t", b"u"}, b"other": {b"t"}})
    tagged.swapdb(5, 9)
    assert_tags_are(there, {})
    assert_tags_are(server.client(db=9), {b"k": {b"t", b"u"}, b"other": {b"t"}})
    tagged.swapdb(9, 9)
    assert server.client(db=9).execute_command("CACHE.INVALIDATETAG", "t") == 2
    assert tagged.exists("k") == 1


def test_debug_reload(server, tagged):
    set_tagged(server.client(db=5), "k", "x")
    with RawClient(server) as raw:
        assert raw.call("DEBUG", "RELOAD") == "OK"
    expected = {0: {b"k": {b"t", b"u"}, b"other": {b"t"}}, 5: {b"k": {b"x"}}}
    assert_view_is(server, expected)


def test_debug_reload_does_not_bring_back_expired_keys(server, tagged):
    tagged.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    tagged.execute_command("CACHE.SET", "short", "v", "PX", 1, "TAGS", 1, "x")
    seconds, microseconds = tagged.time()
    eventually(lambda: tagged.time() > (seconds, microseconds + 3000))
    try:
        with RawClient(server) as raw:
            assert raw.call("DEBUG", "RELOAD") == "OK"
        assert_tags_are(tagged, {b"k": {b"t", b"u"}, b"other": {b"t"}})
        tagged.set("short", "again")
        assert tags(tagged, "short") == set()
    finally:
        tagged.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)


def test_a_full_resync_replaces_everything(make_server):
    primary, replica = make_server(), make_server()
    set_tagged(primary.client(), "k", "t")
    set_tagged(primary.client(db=3), "l", "t", "u")
    set_tagged(replica.client(), "k", "old")
    set_tagged(replica.client(db=7), "m", "old")
    replica.replicate_from(primary).wait_until_synced()
    assert_view_is(replica, {0: {b"k": {b"t"}}, 3: {b"l": {b"t", b"u"}}})
    assert tag_info(replica.client(), "old")["keys"] == 0
    no_ghosts(replica)


# Eviction


@pytest.mark.parametrize(
    "policy",
    ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"],
)
def test_evicted_keys_lose_their_tags(make_server, policy):
    server = make_server(config=[f"maxmemory-policy {policy}"])
    client = server.client()
    value = "x" * 2000
    for number in range(1000):
        client.execute_command(
            "CACHE.SET", f"k:{number}", value, "PX", 10**8 + number, "TAGS", 2, "t", f"t{number % 7}"
        )
    set_tagged(client, "without expiry", "t")
    client.config_set("maxmemory", server.info("memory")["used_memory"] - 1_000_000)
    for number in range(1000, 2000):
        client.execute_command(
            "CACHE.SET", f"k:{number}", value, "PX", 10**8 + number, "TAGS", 2, "t", f"t{number % 7}"
        )
    client.config_set("maxmemory", 0)
    keys = set(client.keys("*"))
    assert server.info("stats")["evicted_keys"] > 500
    assert len(keys) < 1500
    if policy.startswith("volatile"):
        assert b"without expiry" in keys
    assert tag_keys(client, "t") == keys
    for residue in range(7):
        expected = {key for key in keys if key.startswith(b"k:") and int(key[2:]) % 7 == residue}
        assert tag_keys(client, f"t{residue}") == expected
    assert metric(server, "cache_tagged_keys") == len(keys)
    no_ghosts(server)


def test_noeviction_refuses_and_stays_exact(make_server):
    server = make_server(config=["maxmemory-policy noeviction"])
    client = server.client()
    keys = set(fill_tag(client, "t", 100))
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError, match="OOM|not allowed"):
        set_tagged(client, "new", "t")
    assert tag_keys(client, "t") == keys
    client.config_set("maxmemory", 0)
    assert_view_is(server, {0: {key: {b"t"} for key in keys}})


# Memory


REMOVALS = {
    "invalidated": lambda client, keys: client.execute_command("CACHE.INVALIDATETAG", "all"),
    "deleted": lambda client, keys: client.delete(*keys),
    "expired": lambda client, keys: [client.execute_command("PEXPIRE", key, 1) for key in keys],
    "untagged": lambda client, keys: [client.execute_command("CACHE.UNTAG", key) for key in keys] + [client.flushall()],
    "flushed": lambda client, keys: client.flushall(),
}


def test_memory_comes_back_when_all_is_gone(make_server):
    server = make_server(args=["version-floor-ms", "1", "tag-history-max", "0", "explain-history-max", "0"])
    client = server.client()

    def fill(count):
        pipeline = client.pipeline(transaction=False)
        keys = [f"key:with:a:usual:length:{number}" for number in range(count)]
        for number, key in enumerate(keys):
            pipeline.execute_command(
                "CACHE.SET", key, "v", "TAGS", 3, "all", f"t{number}", f"g{number % 50}", "VERSION", 5
            )
        pipeline.execute()
        return keys

    def used():
        client.execute_command("MEMORY", "PURGE")
        return server.info("memory")["used_memory"]

    base = used()
    peak = 0
    for remove in REMOVALS.values():
        keys = fill(10_000)
        peak = max(peak, used())
        remove(client, keys)
        eventually(lambda: client.dbsize() == 0)
        # The sweep takes the floors and gives the empty tables back.
        eventually(lambda: metric(server, "cache_tagged_keys") == 0)
        most = base + 500_000
        eventually(lambda most=most: used() < most, timeout=20, message="memory did not come back")
    assert peak - base > 3_000_000
    no_ghosts(server)


# Random operations, compared with the model


def run(raw, model, operation):
    """Runs the operation between two looks at its keys, all in one transaction, so that nothing expires or is evicted
    between them, and tells the model. The reply; None if memory was full."""
    look = [command for db, key in operation.keys for command in (("SELECT", db), ("EXISTS", key))]
    commands = [*look, ("SELECT", operation.db), operation.words, *look]
    *queued, replies = raw.pipeline([("MULTI",), *commands, ("EXEC",)])
    if isinstance(replies, ErrorReply):
        assert replies.startswith(("EXECABORT", "OOM")), replies
        refusals = [reply for reply in [*queued, replies] if isinstance(reply, ErrorReply) and "OOM" in reply]
        assert refusals, (queued, replies)
        return None
    before, reply, after = replies[: len(look)], replies[len(look) + 1], replies[len(look) + 2 :]
    model.there(dict(zip(operation.keys, map(bool, before[1::2]), strict=True)))
    if isinstance(reply, ErrorReply):
        assert reply.startswith(
            ("WRONGTYPE", "ERR no such key", "BUSYKEY", "ERR source and destination", "OOM", "ERR")
        ), reply
    else:
        model.ran(operation, reply)
    model.there(dict(zip(operation.keys, map(bool, after[1::2]), strict=True)))
    return reply


def compare(raw, model, keys=KEYS, databases=DATABASES):
    """One consistent look at everything."""
    commands, places = [], list(itertools.product(databases, keys))
    for db, key in places:
        commands += [("SELECT", db), ("EXISTS", key), ("CACHE.TAGS", key)]
    for db in databases:
        commands.append(("SELECT", db))
        commands += [("CACHE.TAGKEYS", tag, "COUNT", 10_000) for tag in TAGS]
    replies = raw.pipeline([("MULTI",), *commands, ("EXEC",)])[-1]
    assert isinstance(replies, list), replies
    model.there({place: bool(replies[3 * index + 1]) for index, place in enumerate(places)})
    for index, place in enumerate(places):
        assert set(replies[3 * index + 2]) == model.tags.get(place, set()), place
    rest = replies[3 * len(places) :]
    for number, db in enumerate(databases):
        pages = rest[number * (1 + len(TAGS)) + 1 : (number + 1) * (1 + len(TAGS))]
        for tag, (cursor, found) in zip(TAGS, pages, strict=True):
            expected = {key for (at, key), carried in model.tags.items() if at == db and tag in carried}
            assert cursor == b"0"
            assert sorted(found) == sorted(expected), (db, tag)
    return sum(1 for carried in model.tags.values() if carried)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("sync_keys", [5000, 3], ids=["unlinked at once", "unlinked in slices"])
def test_thousands_of_random_operations_under_eviction(make_server, seed, sync_keys):
    server = make_server(
        args=["invalidate-sync-keys", str(sync_keys)], config=["maxmemory-policy allkeys-lru", "hz 100"]
    )
    operations = RandomOperations(random.Random(seed), size=20_000)
    model = KeyspaceModel()
    with RawClient(server) as raw:
        raw.call("RPUSH", "list", "a")
        operations.dump = raw.call("DUMP", "list")
        raw.call("FLUSHALL")
        refused = most = 0
        for number in range(1, 8001):
            refused += run(raw, model, operations.next()) is None
            if number % 100 == 0:
                # To look at everything takes memory too.
                raw.call("CONFIG", "SET", "maxmemory", 0)
                most = max(most, compare(raw, model))
                if number % 2000 == 0:
                    assert raw.call("DEBUG", "RELOAD") == "OK"
                    compare(raw, model)
                # As much as there is now: what comes drives out what is there.
                raw.call("CONFIG", "SET", "maxmemory", server.info("memory")["used_memory"])
        stats = server.info("stats")
        assert stats["evicted_keys"] > 200, "memory was not small enough"
        assert stats["expired_keys"] > 0
        assert refused < 4000, "memory was too small"
        assert most > 10
        assert raw.call("CONFIG", "SET", "maxmemory", 0) == "OK"
        eventually(lambda: metric(server, "cache_reclaim_backlog") == 0)
        eventually(lambda: metric(server, "cache_tagged_keys") == compare(raw, model), timeout=5)
    no_ghosts(server)


@pytest.fixture(scope="module")
def sequence_server(_shared_server):
    return _shared_server.get()


FEW_KEYS = KEYS[:3]


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=25))
@example(seeds=[0])
def test_short_sequences_are_exact_after_every_step(sequence_server, seeds):
    """Few keys meet each other often; a failure shrinks to the shortest sequence that has it."""
    model = KeyspaceModel()
    with RawClient(sequence_server) as raw:
        raw.call("FLUSHALL")
        for seed in seeds:
            operations = RandomOperations(random.Random(seed), FEW_KEYS, size=20)
            operations.dump = dump_of_a_list(raw)
            operation = operations.next()
            run(raw, model, operation)
            compare(raw, model, FEW_KEYS)
    no_ghosts(sequence_server)


def dump_of_a_list(raw, made={}):  # noqa: B006 the same for all examples
    if "dump" not in made:
        raw.call("RPUSH", "list", "a")
        made["dump"] = raw.call("DUMP", "list")
        raw.call("DEL", "list")
    return made["dump"]
