"""What is read: values, TTLs, tags; in which shape, on a primary and on a replica."""

import time

import pytest
import redis
from raw_client import ErrorReply, RawClient
from servers import eventually, upkeep_passes
from tag_view import fill_tag, metric, set_tagged, tag_info, tag_keys, tags

WRONG_TYPE = "Operation against a key holding the wrong kind of value"


# The shape of replies


def test_replies_have_the_same_shape_in_both_protocols(server, protocol):
    with RawClient(server, protocol) as raw:
        assert raw.call("CACHE.SET", "k", "v", "TAGS", 1, "t", "VERSION", 1) == "OK"
        assert raw.call("CACHE.SET", "k", "v", "NX") is None
        assert raw.call("CACHE.SET", "k", "v", "VERSION", 1) is None
        assert raw.call("CACHE.SETTAGGED", "a", "v", "EX", 100, "TAGS", 1, "t") == "OK"
        assert raw.call("CACHE.SETJITTER", "b", "v", "EX", 100, "JITTER", 1) == "OK"
        assert raw.call("CACHE.MSET", 1, "c", "5") == "OK"
        assert raw.call("CACHE.GET", "c") == b"5"
        assert raw.call("CACHE.GET", "nothing") is None
        assert raw.call("CACHE.MGET", "c", "nothing", "k") == [b"5", None, b"v"]
        assert raw.call("CACHE.TTL", "k") == [-1, -1]
        assert raw.call("CACHE.TTL", "nothing") == [-2, -2]
        assert raw.call("CACHE.TAG", "k", "u") == 1
        assert raw.call("CACHE.TAGKEYS", "u") == [b"0", [b"k"]]
        assert raw.call("CACHE.TAGKEYS", "nothing") == [b"0", []]
        assert raw.call("CACHE.UNTAG", "k", "u") == 1
        assert raw.call("CACHE.FLOOR", "f", 1) == 1
        assert raw.call("CACHE.INVALIDATE", "c", "nothing") == 1
        assert raw.call("CACHE.INVALIDATETAG", "nothing") == 0
        assert raw.call("CACHE.GET") == ErrorReply("ERR wrong number of arguments for 'cache.get' command")
        raw.call("SADD", "s", 1)
        assert raw.call("CACHE.GET", "s") == ErrorReply("WRONGTYPE " + WRONG_TYPE)


def test_sets_and_maps_are_those_of_resp3(server):
    with RawClient(server, 2) as two, RawClient(server, 3) as three:
        two.call("CACHE.SET", "k", "v", "TAGS", 1, "t")
        assert two.call("CACHE.TAGS", "k") == [b"t"]
        assert three.call("CACHE.TAGS", "k") == {b"t"}
        assert two.call("CACHE.TAGS", "nothing") == []
        assert three.call("CACHE.TAGS", "nothing") == set()
        names = [b"keys", b"bytes", b"invalidations", b"last_invalidated_ms"]
        flat, mapping = two.call("CACHE.TAGINFO", "t"), three.call("CACHE.TAGINFO", "t")
        assert isinstance(mapping, dict)
        assert list(mapping) == flat[::2] == names
        assert list(mapping.values()) == flat[1::2]


# GET and MGET


def test_get_reads_any_string_key(client):
    client.set("plain", "v")
    client.set("number", 12345)
    client.append("appended", "abc")
    client.setrange("big", 1 << 20, "x")
    client.set("empty", "")
    client.setbit("bits", 7, 1)
    for key in ("plain", "number", "appended", "big", "empty", "bits"):
        assert client.execute_command("CACHE.GET", key) == client.get(key), key
    keys = ["number", "nothing", "big", "number", "empty"]
    assert client.execute_command("CACHE.MGET", *keys) == client.mget(keys)


def test_get_of_what_is_not_there(client):
    assert client.execute_command("CACHE.GET", "k") is None
    client.execute_command("CACHE.SET", "k", "v", "PX", 1)
    eventually(lambda: client.execute_command("CACHE.GET", "k") is None)
    assert client.execute_command("CACHE.MGET", "k", "l") == [None, None]
    assert client.execute_command("CACHE.TTL", "k") == [-2, -2]


@pytest.mark.parametrize(
    "make",
    [
        lambda c: c.hset("k", "f", "v"),
        lambda c: c.rpush("k", 1),
        lambda c: c.sadd("k", 1),
        lambda c: c.zadd("k", {"m": 1}),
        lambda c: c.xadd("k", {"f": "v"}),
    ],
    ids=["hash", "list", "set", "zset", "stream"],
)
def test_a_key_of_another_type_is_refused(client, make):
    make(client)
    client.set("s", "v")
    for words in (("CACHE.GET", "k"), ("CACHE.MGET", "s", "k")):
        with pytest.raises(redis.ResponseError, match=f"^WRONGTYPE {WRONG_TYPE}|^{WRONG_TYPE}"):
            client.execute_command(*words)
    assert client.execute_command("CACHE.TTL", "k") == [-1, -1]


def test_a_value_of_many_megabytes(client):
    value = bytes(range(256)) * (8 << 12)
    client.execute_command("CACHE.SET", "k", value, "TAGS", 1, "t")
    assert client.execute_command("CACHE.GET", "k") == value
    assert client.execute_command("CACHE.MGET", "k", "k") == [value, value]


def test_ttl_follows_every_change_of_the_expiry(client):
    client.execute_command("CACHE.SET", "k", "v", "PX", 100_000)
    soft, hard = client.execute_command("CACHE.TTL", "k")
    assert soft == hard
    assert 99_000 < hard <= 100_000
    client.expire("k", 1000)
    assert 999_000 < client.execute_command("CACHE.TTL", "k")[0] <= 1_000_000
    client.persist("k")
    assert client.execute_command("CACHE.TTL", "k") == [-1, -1]
    client.pexpireat("k", int(time.time() * 1000) + 50_000)
    soft, hard = client.execute_command("CACHE.TTL", "k")
    assert soft == hard
    assert 45_000 < hard <= 50_000


def test_hits_and_misses_are_counted(make_server):
    server = make_server()
    client = server.client()
    client.set("k", "v")
    client.sadd("s", 1)
    client.execute_command("CACHE.GET", "k")
    client.execute_command("CACHE.GET", "nothing")
    client.execute_command("CACHE.MGET", "k", "nothing", "k")
    client.get("k")
    client.execute_command("CACHE.TTL", "k")
    assert metric(server, "cache_hits") == 3
    assert metric(server, "cache_misses") == 2


def test_reading_counts_as_use_and_looking_does_not(make_server):
    """Eviction by use must see CACHE.GET as it sees GET."""
    server = make_server(config=["maxmemory-policy allkeys-lfu", "lfu-decay-time 0"])
    client = server.client()
    set_tagged(client, "k", "t")
    before = client.object("freq", "k")
    for words in (("CACHE.TTL", "k"), ("CACHE.TAGS", "k"), ("CACHE.TAGKEYS", "t"), ("CACHE.TAGINFO", "t")):
        client.execute_command(*words)
    assert client.object("freq", "k") == before
    client.execute_command("CACHE.GET", "k")
    assert client.object("freq", "k") == before + 1, "the first use is always counted"


def test_reads_work_on_a_replica_and_writes_do_not(make_server, protocol):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary)
    set_tagged(primary.client(), "k", "t")
    replica.wait_until_synced()
    client = replica.client(protocol)
    assert client.execute_command("CACHE.GET", "k") == b"v"
    assert client.execute_command("CACHE.MGET", "k", "l") == [b"v", None]
    assert client.execute_command("CACHE.TTL", "k") == [-1, -1]
    assert tags(client, "k") == {b"t"}
    assert tag_keys(client, "t") == {b"k"}
    assert tag_info(client, "t")["keys"] == 1
    for words in (
        ("CACHE.SET", "k", "v"),
        ("CACHE.SETTAGGED", "k", "v", "EX", 1, "TAGS", 1, "t"),
        ("CACHE.SETJITTER", "k", "v", "EX", 1, "JITTER", 1),
        ("CACHE.MSET", 1, "k", "v"),
        ("CACHE.TAG", "k", "u"),
        ("CACHE.UNTAG", "k"),
        ("CACHE.FLOOR", "k", 1),
        ("CACHE.INVALIDATE", "k"),
        ("CACHE.INVALIDATETAG", "t"),
    ):
        with pytest.raises(redis.ReadOnlyError):
            client.execute_command(*words)
    assert client.get("k") == b"v"


def test_an_expired_value_is_not_read_on_a_replica(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary)
    # The primary must not expire it first: the DEL would hide what is tested.
    primary.client().execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    primary.client().execute_command("CACHE.SET", "k", "v", "PX", 100, "TAGS", 1, "t")
    replica.wait_until_synced()
    client = replica.client()
    eventually(lambda: client.execute_command("CACHE.GET", "k") is None)
    assert client.execute_command("CACHE.MGET", "k") == [None]
    assert client.execute_command("CACHE.TTL", "k") == [-2, -2]
    assert tag_keys(client, "t") == set()
    assert primary.client().execute_command("CACHE.GET", "k") is None
    replica.wait_until_synced()
    assert client.dbsize() == 0


# Tags


def test_tags_of_a_key(client):
    set_tagged(client, "k", "c", "a", "b")
    assert tags(client, "k") == {b"a", b"b", b"c"}
    assert tags(client, "nothing") == set()
    client.set("plain", "v")
    assert tags(client, "plain") == set()


def test_an_expired_key_has_no_tags(client):
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    try:
        client.execute_command("CACHE.SET", "k", "v", "PX", 1, "TAGS", 1, "t")
        deadline = time.time() + 0.002
        eventually(lambda: time.time() > deadline)
        # Nobody has touched it since: it still lies in memory.
        assert tag_keys(client, "t") == set()
        client.execute_command("CACHE.SET", "k", "v", "PX", 1, "TAGS", 1, "t")
        deadline = time.time() + 0.002
        eventually(lambda: time.time() > deadline)
        assert tags(client, "k") == set()
        client.execute_command("CACHE.SET", "k", "v", "PX", 1, "TAGS", 1, "t")
        deadline = time.time() + 0.002
        eventually(lambda: time.time() > deadline)
        assert client.execute_command("CACHE.TAG", "k", "u") == 0
        assert client.execute_command("CACHE.INVALIDATETAG", "t") == 0, "only living keys count"
    finally:
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)


@pytest.mark.parametrize("count", [1, 7, 100, 5000])
def test_tagkeys_walks_all_keys(client, count):
    keys = fill_tag(client, "t", 1000, "u")
    assert tag_keys(client, "t", count) == set(keys)


def test_tagkeys_gives_about_as_many_as_asked_for(client):
    fill_tag(client, "t", 1000)
    cursor, keys = client.execute_command("CACHE.TAGKEYS", "t", "COUNT", 10)
    assert cursor != b"0"
    assert len(keys) == 10
    cursor, more = client.execute_command("CACHE.TAGKEYS", "t", "COUNT", 15, "CURSOR", cursor)
    assert len(more) == 15
    assert not set(keys) & set(more)
    assert 1 <= len(client.execute_command("CACHE.TAGKEYS", "t")[1]) < 1000, "without COUNT a page, not everything"


def test_tagkeys_returns_at_least_once_what_is_there_throughout(client):
    keys = fill_tag(client, "t", 900)
    stay, go = set(keys[::3]), [key for number, key in enumerate(keys) if number % 3]
    found, cursor, turn = set(), b"0", 0
    while True:
        cursor, page = client.execute_command("CACHE.TAGKEYS", "t", "CURSOR", cursor, "COUNT", 7)
        found.update(page)
        if cursor == b"0":
            break
        # Others come and go in every way while the walk goes on.
        if go:
            client.delete(go.pop(0))
            client.execute_command("CACHE.UNTAG", go.pop())
        set_tagged(client, f"new:{turn}", "t")
        kept = sorted(stay)[turn % len(stay)]
        set_tagged(client, kept, "t", "another")
        client.execute_command("CACHE.TAG", kept, "more")
        turn += 1
    assert stay <= found


@pytest.mark.parametrize("cursor", ["-1", "x", "1.5", "", "18446744073709551616"])
def test_tagkeys_refuses_what_is_no_cursor(client, cursor):
    set_tagged(client, "k", "t")
    with pytest.raises(redis.ResponseError, match="^invalid cursor"):
        client.execute_command("CACHE.TAGKEYS", "t", "CURSOR", cursor)


def test_tagkeys_takes_any_number_as_cursor(client):
    """As SCAN: a cursor from elsewhere gives some page, not an error."""
    keys = set(fill_tag(client, "t", 10))
    for cursor in (3, 10, 11, 2**31, 2**32, 2**63 - 1):
        following, page = client.execute_command("CACHE.TAGKEYS", "t", "CURSOR", cursor)
        assert set(page) <= keys
        assert int(following) >= 0


@pytest.mark.parametrize(
    "options",
    [
        ("COUNT", 0),
        ("COUNT", -1),
        ("COUNT", "x"),
        ("COUNT",),
        ("CURSOR",),
        ("COUNT", 1, "COUNT", 1),
        ("CURSOR", 0, "CURSOR", 0),
        ("MATCH", "*"),
        ("0",),
    ],
    ids=str,
)
def test_tagkeys_checks_its_options(client, options):
    with pytest.raises(redis.ResponseError, match="^(syntax error|COUNT must be|value is not an integer)"):
        client.execute_command("CACHE.TAGKEYS", "t", *options)


@pytest.mark.parametrize("command", ["CACHE.TAGKEYS", "CACHE.TAGINFO", "CACHE.INVALIDATETAG"])
def test_a_tag_that_cannot_be_is_refused(client, command):
    for tag in ("", "x" * 513):
        with pytest.raises(redis.ResponseError, match="1 to 512 bytes"):
            client.execute_command(command, tag)


def test_taginfo(client):
    nothing = {"keys": 0, "bytes": 0, "invalidations": 0, "last_invalidated_ms": 0}
    assert tag_info(client, "t") == nothing
    fill_tag(client, "t", 100)
    info = tag_info(client, "t")
    assert info["bytes"] > 100
    assert info | {"bytes": 0} == nothing | {"keys": 100}
    client.delete("k:0")
    client.execute_command("CACHE.UNTAG", "k:1", "t")
    assert tag_info(client, "t")["keys"] == 98
    before = int(time.time() * 1000)
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == 98
    after = int(time.time() * 1000)
    info = tag_info(client, "t")
    assert (info["keys"], info["invalidations"]) == (0, 1)
    assert before - 1 <= info["last_invalidated_ms"] <= after + 1
    set_tagged(client, "k", "t")
    client.execute_command("CACHE.INVALIDATETAG", "t")
    assert tag_info(client, "t")["invalidations"] == 2
    assert tag_info(client, "other") == nothing
    client.flushdb()
    assert tag_info(client, "t") == nothing


def test_taginfo_names_the_last_invalidation_only_while_it_is_remembered(make_server):
    client = make_server(args=["tag-history-max", "10"]).client()
    for number in range(50):
        set_tagged(client, "k", f"t{number}")
        assert client.execute_command("CACHE.INVALIDATETAG", f"t{number}") == 1
    assert tag_info(client, "t49")["invalidations"] == 1
    assert tag_info(client, "t0")["invalidations"] == 0


def test_only_reads_count_as_hits_and_misses_of_the_keyspace(make_server):
    """The module looks keys up that nobody asked for: the hit ratio must not rise while nobody reads."""
    server = make_server()
    client = server.client()

    def counted():
        stats = client.info("stats")
        return stats["keyspace_hits"], stats["keyspace_misses"]

    for n in range(100):
        client.execute_command("CACHE.SETTAGGED", f"k{n}", n, "EX", 100, "TAGS", 1, "t")
    client.execute_command("CACHE.TAGKEYS", "t", "COUNT", 100)
    client.execute_command("CACHE.TAG", "k0", "u")
    client.execute_command("CACHE.TAG", "none", "u")
    upkeep_passes(server)
    assert counted() == (0, 0)
    client.execute_command("CACHE.GET", "k0")
    client.execute_command("CACHE.GET", "none")
    assert counted() == (1, 1)
