"""CACHE.INVALIDATE and CACHE.INVALIDATETAG: what is gone, when, and who is told.

A giant tag is one with more keys than `invalidate-sync-keys`. at_once() keeps the reclaimer out: it runs from a timer, and
no timer runs inside a transaction or between commands that arrived in one packet. CLIENT PAUSE WRITE holds it longer.
"""

import pytest
import redis
from raw_client import RawClient
from servers import eventually
from tag_view import at_once, cache_get_all, fill_tag, metric, set_tagged, tag_info, tag_keys, tags

SYNC = 100
GIANT = 5000


@pytest.fixture
def lowered(make_server):
    """A server whose invalidations unlink few keys inside the command."""
    return make_server(args=["invalidate-sync-keys", str(SYNC)])


def wait_until_reclaimed(client, left=0):
    eventually(lambda: client.dbsize() == left, message="the reclaimer did not finish")


# INVALIDATE


def test_invalidate_counts_the_keys_it_removed(client):
    for key in "abc":
        set_tagged(client, key, "t")
    client.set("plain", "v")
    client.rpush("list", 1)
    assert client.execute_command("CACHE.INVALIDATE", "a", "nothing", "plain", "list", "a") == 3
    assert client.execute_command("CACHE.INVALIDATE", "a") == 0
    assert client.dbsize() == 2
    assert tag_keys(client, "t") == {b"b", b"c"}
    assert client.execute_command("CACHE.GET", "a") is None


def test_invalidate_of_thousands_of_keys(client):
    keys = fill_tag(client, "t", 3000)
    assert client.execute_command("CACHE.INVALIDATE", *keys) == 3000
    assert client.dbsize() == 0
    assert tag_info(client, "t")["keys"] == 0


# INVALIDATETAG, small


def test_every_living_key_of_any_of_the_tags_goes(client):
    set_tagged(client, "a", "t", "u")
    set_tagged(client, "b", "u")
    set_tagged(client, "c", "v")
    set_tagged(client, "d", "t", "v")
    client.set("plain", "v")
    assert client.execute_command("CACHE.INVALIDATETAG", "t", "u", "unknown", "t") == 3
    assert set(client.keys("*")) == {b"c", b"plain"}
    assert client.execute_command("CACHE.INVALIDATETAG", "t", "u") == 0
    assert client.execute_command("CACHE.INVALIDATETAG", "unknown") == 0
    assert tag_keys(client, "v") == {b"c"}
    assert client.execute_command("CACHE.MGET", "a", "b", "c", "d") == [None, None, b"v", None]


def test_up_to_the_bound_all_is_unlinked_inside_the_command(lowered):
    fill_tag(lowered.client(), "t", SYNC)
    assert at_once(lowered, ("CACHE.INVALIDATETAG", "t"), ("DBSIZE",)) == [SYNC, 0]


def test_a_tag_lives_again_after_its_invalidation(client):
    for _ in range(3):
        set_tagged(client, "k", "t")
        assert tag_keys(client, "t") == {b"k"}
        assert client.execute_command("CACHE.INVALIDATETAG", "t") == 1
        assert client.exists("k") == 0


def test_the_default_bound_is_5000_keys(client, server):
    fill_tag(client, "t", 5001)
    assert at_once(server, ("CACHE.INVALIDATETAG", "t"), ("DBSIZE",)) == [5001, 1]
    wait_until_reclaimed(client)


def test_one_bad_tag_and_nothing_is_done(client):
    set_tagged(client, "k", "t")
    for bad in ("", "x" * 513):
        with pytest.raises(redis.ResponseError, match="1 to 512 bytes"):
            client.execute_command("CACHE.INVALIDATETAG", "t", bad)
    assert client.execute_command("CACHE.GET", "k") == b"v"
    assert tag_info(client, "t")["invalidations"] == 0


# INVALIDATETAG, giant


def test_a_giant_tag_is_invalid_at_once_and_gone_soon(lowered, protocol):
    client = lowered.client(protocol)
    keys = fill_tag(client, "t", GIANT, "second")
    set_tagged(client, "other", "u")
    count, left, values, first_ttl, page, second_page, carried, info = at_once(
        lowered,
        ("CACHE.INVALIDATETAG", "t"),
        ("DBSIZE",),
        ("CACHE.MGET", *keys, "other"),
        ("CACHE.TTL", keys[0]),
        ("CACHE.TAGKEYS", "t", "COUNT", GIANT),
        ("CACHE.TAGKEYS", "second", "COUNT", GIANT),
        ("CACHE.TAGS", keys[0]),
        ("CACHE.TAGINFO", "t"),
    )
    assert count == GIANT
    assert left == GIANT - SYNC + 1, "the bound of the stall is not held"
    assert values == [None] * GIANT + [b"v"]
    assert first_ttl == [-2, -2]
    assert page == [b"0", []]
    assert second_page[1] == []
    assert carried == []
    assert info[1] == 0
    wait_until_reclaimed(client, 1)
    assert client.get("other") == b"v"
    assert tag_info(client, "t")["keys"] == tag_info(client, "second")["keys"] == 0
    assert metric(lowered, "cache_ghosts") == 0
    assert metric(lowered, "cache_reclaim_backlog") == 0


def test_cache_reads_never_see_an_invalidated_value_while_it_is_reclaimed(lowered):
    client = lowered.client()
    keys = fill_tag(client, "t", GIANT)
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == GIANT
    while True:
        left = client.dbsize()
        assert not any(cache_get_all(client, keys))
        if left == 0:
            break


def test_until_then_plain_commands_see_it(lowered):
    keys = fill_tag(lowered.client(), "t", GIANT)
    _, values = at_once(lowered, ("CACHE.INVALIDATETAG", "t"), ("MGET", *keys))
    assert values.count(b"v") == GIANT - SYNC


@pytest.mark.parametrize(
    "write",
    [
        ("SET", "{key}", "new"),
        ("SET", "{key}", "new", "EX", 100),
        ("GETSET", "{key}", "new"),
        ("MSET", "{key}", "new"),
        ("APPEND", "{key}", "new"),
        ("SETRANGE", "{key}", 0, "new"),
        ("EVAL", "return redis.call('SET', KEYS[1], 'new')", 1, "{key}"),
        ("BITOP", "NOT", "{key}", "{key}"),
    ],
    ids=lambda words: words[0],
)
def test_a_key_written_by_a_plain_command_meanwhile_is_spared(lowered, write):
    client = lowered.client()
    keys = fill_tag(client, "t", GIANT, "second", value="v" * 3)
    # The last keys are unlinked inside the command or soon after; the first ones go last.
    spared = keys[10]
    words = [word.format(key=spared.decode()) if isinstance(word, str) else word for word in write]
    replies = at_once(
        lowered, ("CACHE.INVALIDATETAG", "t"), ("EXISTS", spared), words, ("CACHE.GET", spared), ("GET", spared)
    )
    assert replies[1] == 1, "the key was to be still there"
    assert replies[3] == replies[4]
    assert replies[3] is not None
    wait_until_reclaimed(client, 1)
    assert client.execute_command("CACHE.GET", spared) == client.get(spared) == replies[3]
    # A plain write keeps the tags, as ever.
    assert tags(client, spared) == {b"t", b"second"}
    assert client.execute_command("CACHE.INVALIDATETAG", "second") == 1


@pytest.mark.parametrize(
    ("make", "write"),
    [
        (lambda c: c.hset("k", "f", "v"), ("HSET", "k", "f", "new")),
        (lambda c: c.rpush("k", 1), ("RPUSH", "k", "new")),
        (lambda c: c.sadd("k", 1), ("SADD", "k", "new")),
        (lambda c: c.zadd("k", {"m": 1}), ("ZADD", "k", 5, "new")),
        (lambda c: c.xadd("k", {"f": "v"}), ("XADD", "k", "*", "f", "new")),
    ],
    ids=["hash", "list", "set", "zset", "stream"],
)
def test_writes_of_every_type_spare_the_key(make_server, make, write):
    server = make_server(args=["invalidate-sync-keys", "1"])
    client = server.client()
    make(client)
    client.execute_command("CACHE.TAG", "k", "t")
    fill_tag(client, "t", 10)
    replies = at_once(server, ("CACHE.INVALIDATETAG", "t"), ("EXISTS", "k"), write, ("CACHE.TTL", "k"))
    assert replies[1] == 1
    assert replies[3] == [-1, -1]
    wait_until_reclaimed(client, 1)
    assert client.exists("k") == 1


def test_expire_and_persist_are_no_writes(lowered):
    keys = fill_tag(lowered.client(), "t", GIANT)
    replies = at_once(
        lowered,
        ("CACHE.INVALIDATETAG", "t"),
        ("EXPIRE", keys[0], 100),
        ("PERSIST", keys[0]),
        ("CACHE.GET", keys[0]),
    )
    assert replies[1:] == [1, 1, None]
    wait_until_reclaimed(lowered.client())


def test_cache_writes_treat_an_invalidated_key_as_missing(lowered):
    client = lowered.client()
    keys = fill_tag(client, "t", GIANT)
    nx, xx, tagged, untagged, replaced = keys[:5]
    replies = at_once(
        lowered,
        ("CACHE.INVALIDATETAG", "t"),
        ("CACHE.SET", xx, "new", "XX"),
        ("CACHE.SET", nx, "new", "NX", "TAGS", 1, "t"),
        ("CACHE.TAG", tagged, "u"),
        ("CACHE.UNTAG", untagged),
        ("CACHE.SET", replaced, "new"),
        ("CACHE.MGET", xx, nx, tagged, untagged, replaced),
        ("CACHE.TAGKEYS", "t"),
    )
    assert replies == [GIANT, None, "OK", 0, 0, "OK", [None, b"new", None, None, b"new"], [b"0", [nx]]]
    wait_until_reclaimed(client, 2)
    assert client.mget(nx, replaced) == [b"new", b"new"]
    assert tag_keys(client, "t") == {nx}


def test_invalidations_of_a_key_that_is_invalid_already_do_not_count(lowered):
    client = lowered.client()
    keys = fill_tag(client, "t", GIANT, "second")
    assert at_once(
        lowered,
        ("CACHE.INVALIDATETAG", "t"),
        ("CACHE.INVALIDATETAG", "t"),
        ("CACHE.INVALIDATE", keys[0]),
        ("EXISTS", keys[0]),
    ) == [GIANT, 0, 0, 0]
    wait_until_reclaimed(client)


def test_moved_and_renamed_keys_stay_invalid(lowered):
    client = lowered.client()
    keys = fill_tag(client, "t", GIANT)
    commands = [("CACHE.INVALIDATETAG", "t"), ("RENAME", keys[0], "renamed"), ("CACHE.GET", "renamed")]
    assert at_once(lowered, *commands) == [GIANT, "OK", None]
    wait_until_reclaimed(client)


def test_deletions_meanwhile_are_no_trouble(lowered):
    client = lowered.client()
    keys = fill_tag(client, "t", GIANT)
    commands = [("CACHE.INVALIDATETAG", "t"), ("DEL", *keys[: GIANT // 2]), ("SET", keys[0], "plain")]
    assert at_once(lowered, *commands) == [GIANT, GIANT // 2, "OK"]
    wait_until_reclaimed(client, 1)
    assert client.execute_command("CACHE.GET", keys[0]) == b"plain"


def test_flush_and_swap_meanwhile(lowered):
    client, other = lowered.client(), lowered.client(db=1)
    keys = fill_tag(client, "t", GIANT)
    replies = at_once(
        lowered, ("CACHE.INVALIDATETAG", "t"), ("FLUSHDB",), ("SET", keys[0], "new"), ("CACHE.GET", keys[0])
    )
    assert replies[3] == b"new"
    client.flushall()
    fill_tag(client, "t", GIANT)
    at_once(lowered, ("CACHE.INVALIDATETAG", "t"), ("SWAPDB", 0, 1), ("SET", keys[0], "new"))
    assert other.execute_command("CACHE.GET", keys[0]) is None
    assert client.execute_command("CACHE.GET", keys[0]) == b"new"
    wait_until_reclaimed(other)
    assert client.dbsize() == 1


def test_several_giants_in_several_databases(lowered):
    clients = [lowered.client(db=db) for db in (0, 3, 9)]
    for client in clients:
        fill_tag(client, "t", 1000, prefix="t")
        fill_tag(client, "u", 1000, prefix="u")
        set_tagged(client, "kept", "v")
    for client in clients:
        assert client.execute_command("CACHE.INVALIDATETAG", "t", "u") == 2000
    for client in clients:
        wait_until_reclaimed(client, 1)
    assert metric(lowered, "cache_ghosts") == 0


# Counting


def test_up_to_the_bound_a_key_counts_once(lowered):
    client = lowered.client()
    fill_tag(client, "a", SYNC, "b", "c")
    assert client.execute_command("CACHE.INVALIDATETAG", "a", "b", "c", "b") == SYNC


def test_beyond_the_bound_a_key_counts_at_most_once_per_tag(lowered):
    client = lowered.client()
    fill_tag(client, "a", 1000, "b")
    count = client.execute_command("CACHE.INVALIDATETAG", "a", "b")
    assert 1000 <= count <= 2000
    wait_until_reclaimed(client)


# Who is told


def invalidation_messages(server, tracker, listener, *reads):
    """Switches client-side caching on for `tracker`, with the messages going to `listener`."""
    number = listener.call("CLIENT", "ID")
    listener.call("SUBSCRIBE", "__redis__:invalidate")
    assert tracker.call("CLIENT", "TRACKING", "ON", "REDIRECT", number) == "OK"
    for words in reads:
        tracker.call(*words)


def read_messages(listener, keys):
    """Reads messages until all keys were named; every key once."""
    named = []
    while len(named) < len(keys):
        kind, channel, content = listener.read()
        assert (kind, channel) == (b"message", b"__redis__:invalidate")
        named += content
    assert sorted(named) == sorted(keys)


@pytest.mark.parametrize("command", [("CACHE.INVALIDATE", "k:1", "k:2", "k:3"), ("CACHE.INVALIDATETAG", "t")])
def test_near_caches_are_told(server, protocol, command):
    with server.client() as client, RawClient(server, protocol) as tracker, RawClient(server) as listener:
        keys = fill_tag(client, "t", 4)[1:]
        client.delete("k:0")
        reads = (("CACHE.GET", keys[0]), ("CACHE.MGET", *keys[:2]), ("GET", keys[2]))
        invalidation_messages(server, tracker, listener, *reads)
        assert client.execute_command(*command) == 3
        read_messages(listener, keys)


@pytest.mark.parametrize(
    "write",
    [
        ("CACHE.SET", "k", "new"),
        ("CACHE.SET", "k", "new", "PX", 100_000, "TAGS", 1, "t"),
        ("CACHE.MSET", 1, "k", "new"),
        ("CACHE.FLOOR", "k", 5),
    ],
    ids=lambda words: words[0],
)
def test_near_caches_are_told_of_writes(server, write):
    with server.client() as client, RawClient(server) as tracker, RawClient(server) as listener:
        client.set("k", "v")
        invalidation_messages(server, tracker, listener, ("CACHE.GET", "k"))
        client.execute_command(*write)
        read_messages(listener, [b"k"])


def test_near_caches_are_told_of_every_key_of_a_giant(lowered):
    with lowered.client() as client, RawClient(lowered) as tracker, RawClient(lowered) as listener:
        keys = fill_tag(client, "t", GIANT)
        invalidation_messages(lowered, tracker, listener, ("CACHE.MGET", *keys))
        assert client.execute_command("CACHE.INVALIDATETAG", "t") == GIANT
        read_messages(listener, keys)


def test_del_events_fire_once_for_each_key(make_server):
    server = make_server(args=["invalidate-sync-keys", str(SYNC)], config=["notify-keyspace-events Kg"])
    client, pubsub = server.client(), server.client(socket_timeout=30).pubsub()
    keys = fill_tag(client, "t", 1000)
    pubsub.psubscribe("__keyspace@0__:*")
    assert pubsub.get_message(timeout=10)["type"] == "psubscribe"
    assert client.execute_command("CACHE.INVALIDATE", keys[0], "nothing") == 1
    assert client.execute_command("CACHE.INVALIDATETAG", "t", "unknown") == 999
    set_tagged(client, "last", "u")
    heard = []
    eventually(lambda: client.dbsize() == 1)
    client.execute_command("CACHE.INVALIDATE", "last")
    while not heard or heard[-1][0] != b"last":
        message = pubsub.get_message(timeout=10)
        heard.append((message["channel"].partition(b":")[2], message["data"]))
    assert sorted(heard) == sorted((key, b"del") for key in [*keys, b"last"])


@pytest.mark.parametrize(
    ("command", "aborts"),
    [
        (("CACHE.INVALIDATE", "k"), True),
        (("CACHE.INVALIDATETAG", "t"), True),
        (("CACHE.FLOOR", "k", 5), True),
        (("CACHE.SET", "k", "w"), True),
        (("CACHE.INVALIDATE", "other"), False),
        (("CACHE.INVALIDATETAG", "u"), False),
        (("CACHE.GET", "k"), False),
        (("CACHE.TAGKEYS", "t"), False),
    ],
    ids=lambda words: " ".join(map(str, words)) if isinstance(words, tuple) else None,
)
def test_watch(server, command, aborts):
    client = server.client()
    set_tagged(client, "k", "t")
    with server.client().pipeline() as watcher:
        watcher.watch("k")
        client.execute_command(*command)
        watcher.multi()
        watcher.ping()
        if aborts:
            with pytest.raises(redis.WatchError):
                watcher.execute()
        else:
            assert watcher.execute() == [True]


def test_watch_is_aborted_by_the_reclaimer(lowered):
    client = lowered.client()
    keys = fill_tag(client, "t", GIANT)
    with lowered.client().pipeline() as watcher:
        watcher.watch(keys[0])
        client.execute_command("CACHE.INVALIDATETAG", "t")
        wait_until_reclaimed(client)
        watcher.multi()
        watcher.ping()
        with pytest.raises(redis.WatchError):
            watcher.execute()


def test_keys_of_any_type_go_with_their_tag(client):
    client.hset("hash", mapping={f"f{number}": "v" for number in range(1000)})
    client.sadd("set", *range(1000))
    client.execute_command("CACHE.TAG", "hash", "t")
    client.execute_command("CACHE.TAG", "set", "t")
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == 2
    assert client.dbsize() == 0


def test_scripts_and_transactions_may_invalidate_giants(lowered):
    client = lowered.client()
    fill_tag(client, "t", GIANT)
    assert client.eval("return redis.call('CACHE.INVALIDATETAG', ARGV[1])", 0, "t") == GIANT
    wait_until_reclaimed(client)


def test_invalidations_are_counted(make_server):
    server = make_server(args=["invalidate-sync-keys", "10"])
    client = server.client()
    fill_tag(client, "t", 100)
    client.set("k", "v")
    client.execute_command("CACHE.INVALIDATE", "k", "nothing")
    client.execute_command("CACHE.INVALIDATE", "nothing")
    client.execute_command("CACHE.INVALIDATETAG", "t")
    client.execute_command("CACHE.INVALIDATETAG", "t")
    eventually(lambda: metric(server, "cache_invalidated_keys") == 101)
    assert metric(server, "cache_invalidations") == 2
    assert tags(client, "k:0") == set()


# Cluster


def make_node(make_server):
    return make_server(args=["invalidate-sync-keys", str(SYNC)], config=["cluster-enabled yes"])


def own_all_slots(node):
    node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    eventually(lambda: b"cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))


def test_a_tag_spans_the_slots_of_a_node(make_server):
    node = make_node(make_server)
    own_all_slots(node)
    client = node.client()
    for number in range(GIANT):
        set_tagged(client, f"k:{number}", "t")
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == GIANT
    wait_until_reclaimed(client)
    assert metric(node, "cache_ghosts") == 0


def test_a_tag_of_a_slot_that_another_node_took_over(make_server):
    """Redis 7.0 drops the keys of a lost slot without a word. The sweep finds that."""
    old, new = make_node(make_server), make_node(make_server)
    own_all_slots(old)
    client = old.client()
    for number in range(100):
        set_tagged(client, f"{{lost}}:{number}", "t")
    set_tagged(client, "stays", "t")
    slot = client.execute_command("CLUSTER", "KEYSLOT", "{lost}")
    assert slot != client.execute_command("CLUSTER", "KEYSLOT", "stays")
    taker = new.client()
    taker.execute_command("CLUSTER", "MEET", "127.0.0.1", old.port)
    own_name, old_name = (node.execute_command("CLUSTER", "MYID") for node in (taker, client))
    eventually(lambda: set_slot(taker, slot, "IMPORTING", old_name), timeout=30)
    assert set_slot(taker, slot, "NODE", own_name)
    eventually(lambda: client.dbsize() == 1, timeout=30)
    eventually(lambda: tag_keys(client, "t") == {b"stays"} and metric(old, "cache_tagged_keys") == 1)


def set_slot(client, slot, *words):
    try:
        return client.execute_command("CLUSTER", "SETSLOT", slot, *words) in (b"OK", True)
    except redis.ResponseError:
        return False  # it does not know the other node yet
