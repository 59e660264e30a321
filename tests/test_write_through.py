"""Write-through: nobody takes a value for fresh while its row is being written, and where it is not known which write came
last nothing is stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from propagation import ReplicationStream
from raw_client import ErrorReply
from servers import Server, eventually, upkeep_passes
from single_flight import BUSY, NONE, Callers, hit

# Longer than any test.
LONG = ("PX", 600_000)


@pytest.fixture
def callers(server: Server, protocol: int) -> Iterator[Callers]:
    with Callers(server, protocol) as callers:
        yield callers


def begin(callers: Callers, key: str = "k", *options: str | int) -> bytes:
    token = callers.call("CACHE.INTENT", key, *(options or LONG))
    assert isinstance(token, bytes), token
    assert 0 < len(token) <= 40
    return token


def commit(callers: Callers, token: bytes, *value_and_options: str | int, key: str = "k") -> object:
    return callers.call("CACHE.COMMIT", key, token, *value_and_options)


def is_open(callers: Callers) -> bool:
    """With an old value in the key."""
    return callers.call("CACHE.GET", "k") is None and callers.call("CACHE.FETCH", "k") == [b"STALE", b"old", None]


# What readers and loaders see


def test_during_an_intent_the_old_value_is_stale(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "old", "PX", 60_000)
    token = begin(callers)
    assert callers.call("CACHE.GET", "k") is None
    assert callers.call("CACHE.MGET", "k", "none") == [None, None]
    assert callers.call("CACHE.FETCH", "k") == [b"STALE", b"old", None]
    assert callers.call("CACHE.FETCH", "k", "STALE", "NEVER") == BUSY
    assert callers.call("CACHE.MFETCH", 1, "k") == [[b"STALE", b"old", None]]
    soft, hard = callers.call("CACHE.TTL", "k")
    assert soft == 0
    assert 0 < hard <= 60_000
    assert callers.call("GET", "k") == b"old", "plain commands see what is there"
    assert commit(callers, token, "new", "PX", 60_000) == 1
    assert callers.call("CACHE.FETCH", "k") == hit(b"new")
    soft, hard = callers.call("CACHE.TTL", "k")
    assert soft == hard > 0


def test_during_an_intent_nobody_loads(callers: Callers) -> None:
    lease = callers.lease("k")
    token = begin(callers)
    assert callers.call("CACHE.FILL", "k", lease, "old") == 0, "read before the write"
    assert callers.call("CACHE.FETCH", "k") == BUSY
    assert callers.call("CACHE.FETCH", "k", "WAIT", 20) == BUSY
    assert callers.info("leases") == 0
    assert commit(callers, token, "new") == 1


def test_who_waits_is_answered_by_the_commit(callers: Callers) -> None:
    token = begin(callers)
    waiters = [callers.wait("k") for _ in range(3)]
    assert commit(callers, token, "new") == 1
    assert [waiter.read() for waiter in waiters] == [hit(b"new")] * 3


def test_who_waits_is_elected_when_the_write_leaves_nothing(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "old")
    token = begin(callers)
    first, second = callers.wait("k", "STALE", "NEVER"), callers.wait("k", "STALE", "NEVER")
    assert commit(callers, token) == 1, "the row was deleted"
    assert callers.call("EXISTS", "k") == 0
    status, value, lease = first.read()
    assert (status, value) == (b"MISS", None)
    assert callers.call("CACHE.FILL", "k", lease, "loaded") == 1
    assert second.read() == hit(b"loaded")


def test_who_waited_before_the_intent_may_be_answered_by_the_old_load(callers: Callers) -> None:
    lease = callers.lease("k")
    before = callers.wait("k")
    token = begin(callers)
    after = callers.wait("k")
    assert callers.call("CACHE.FILL", "k", lease, "old") == 0
    assert before.read() == hit(b"old")
    assert not after.is_answered()
    assert commit(callers, token, "new") == 1
    assert after.read() == hit(b"new")


def test_a_rollback_brings_the_old_value_back(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "old", "PX", 60_000, "TAGS", 1, "t")
    token = begin(callers)
    waiter = callers.wait("k", "STALE", "NEVER")
    assert callers.call("CACHE.ROLLBACK", "k", token) == 1
    assert waiter.read() == hit(b"old")
    assert callers.call("CACHE.GET", "k") == b"old"
    assert callers.call("CACHE.TAGS", "k") in ([b"t"], {b"t"})
    assert callers.call("CACHE.ROLLBACK", "k", token) == 0


def test_a_negative_answer_is_not_given_during_an_intent(callers: Callers) -> None:
    callers.call("CACHE.FILLNIL", "k", callers.lease("k"), "EX", 60)
    token = begin(callers)
    assert callers.call("CACHE.FETCH", "k") == BUSY
    callers.call("CACHE.ROLLBACK", "k", token)
    assert callers.call("CACHE.FETCH", "k") == NONE
    assert commit(callers, begin(callers)) == 1
    callers.lease("k")


def test_a_cache_set_during_an_intent_answers_nobody(callers: Callers) -> None:
    token = begin(callers)
    waiter = callers.wait("k")
    assert callers.call("CACHE.SET", "k", "other") == "OK"
    assert callers.call("CACHE.GET", "k") is None
    assert not waiter.is_answered()
    assert commit(callers, token, "new") == 0
    assert waiter.read()[0] == b"MISS"


# The races


def test_a_writer_that_died(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "old")
    timeouts = callers.info("intent_timeouts")
    token = begin(callers, "k", "PX", 50)
    waiter = callers.wait("k", "STALE", "NEVER")
    status, _, lease = waiter.read()
    assert status == b"MISS", "elected when the intent ran out"
    assert callers.call("EXISTS", "k") == 0
    assert callers.info("intent_timeouts") == timeouts + 1
    assert callers.call("CACHE.FILL", "k", lease, "loaded") == 1
    # It was alive, only slow: what was loaded may be from before its write.
    assert commit(callers, token, "new") == 0
    assert callers.call("EXISTS", "k") == 0


def test_a_slow_writer_and_a_load_that_is_under_way(callers: Callers) -> None:
    token = begin(callers, "k", "PX", 1)
    eventually(lambda: callers.info("intents") == 0)
    lease = callers.lease("k")
    assert commit(callers, token, "new") == 0
    assert callers.call("CACHE.FILL", "k", lease, "old") == 0, "it may have been read before the write"


def test_two_writers_at_once(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "old")
    a, b = begin(callers), begin(callers)
    assert a != b
    assert commit(callers, a, "a") == 0
    assert callers.call("EXISTS", "k") == 0
    assert callers.call("CACHE.FETCH", "k") == BUSY, "the other one is under way"
    assert commit(callers, b, "b") == 0
    assert callers.call("EXISTS", "k") == 0
    assert commit(callers, begin(callers), "c") == 1, "all that is over"


@pytest.mark.parametrize(("first", "second", "replies"), [(1, 2, [1, 1]), (2, 1, [1, 0])])
def test_two_writers_at_once_with_versions(callers: Callers, first: int, second: int, replies: list[int]) -> None:
    callers.call("CACHE.SET", "k", "old")
    tokens = [begin(callers), begin(callers)]
    waiter = callers.wait("k", "STALE", "NEVER")
    done = []
    for token, version in zip(tokens, (first, second), strict=True):
        assert callers.call("CACHE.GET", "k") is None
        assert not waiter.is_answered()
        done.append(commit(callers, token, f"row {version}", "VERSION", version))
    assert done == replies
    assert callers.call("CACHE.FETCH", "k") == waiter.read() == hit(b"row 2")


@pytest.mark.parametrize(
    "change",
    [
        ("SET", "k", "plain"),
        ("SET", "k", "plain", "KEEPTTL"),
        ("SET", "k", "plain", "PXAT", 1),
        ("CACHE.SET", "k", "other"),
        ("CACHE.MSET", 1, "k", "other"),
        ("MSET", "k", "plain"),
        ("GETSET", "k", "plain"),
        ("APPEND", "k", "plain"),
        ("SETRANGE", "k", 0, "plain"),
        ("DEL", "k"),
        ("UNLINK", "k"),
        ("GETDEL", "k"),
        ("EXPIRE", "k", -1),
        ("GETEX", "k", "PXAT", 1),
        ("SUNIONSTORE", "k", "set"),
        ("RENAME", "k", "elsewhere"),
        ("RENAME", "other", "k"),
        ("COPY", "other", "k", "REPLACE"),
        ("CACHE.INVALIDATE", "k"),
        ("CACHE.INVALIDATETAG", "t"),
        ("CACHE.STALE", "k"),
        ("CACHE.STALETAG", "t"),
        ("CACHE.FLOOR", "k", 1),
        ("FLUSHDB",),
        ("FLUSHALL", "ASYNC"),
        ("SWAPDB", 0, 1),
        ("EVAL", "return redis.call('SET', KEYS[1], 'plain')", 1, "k"),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
@pytest.mark.parametrize("options", [("PX", 60_000), ("VERSION", 9)], ids=["plain", "version"])
def test_whoever_changes_the_key_meanwhile(callers: Callers, change: tuple, options: tuple) -> None:
    callers.call("CACHE.SET", "k", "old", "PX", 60_000, "GRACE", 60_000, "TAGS", 1, "t")
    callers.call("SET", "other", "plain")
    callers.call("SADD", "set", "member")
    token = begin(callers)
    assert not isinstance(callers.call(*change), ErrorReply)
    assert commit(callers, token, "new", *options) == 0
    assert callers.call("EXISTS", "k") == 0


def test_the_first_intent_of_a_server_sees_plain_writes(make_server: Callable[..., Server]) -> None:
    """Nothing that came before had the module listen to them."""
    server = make_server()
    with Callers(server) as callers:
        callers.call("SET", "k", "old")
        replies = callers.first.pipeline([("CACHE.INTENT", "k"), ("SET", "k", "plain")])
        assert commit(callers, replies[0], "new") == 0


def test_all_within_a_script(callers: Callers) -> None:
    """No turn of the event loop in between."""
    script = """
        local token = redis.call('CACHE.INTENT', KEYS[1])
        if ARGV[1] == 'write' then redis.call('SET', KEYS[1], 'plain') end
        return {redis.call('CACHE.GET', KEYS[1]), redis.call('CACHE.COMMIT', KEYS[1], token, 'new')}
    """
    assert callers.call("EVAL", script, 1, "k", "") == [None, 1]
    assert callers.call("EVAL", script, 1, "k", "write") == [None, 0]
    assert callers.call("EXISTS", "k") == 0


def test_a_restored_value(callers: Callers) -> None:
    callers.call("SET", "other", "plain")
    dump = callers.call("DUMP", "other")
    token = begin(callers)
    assert callers.call("RESTORE", "k", 0, dump, "REPLACE") == "OK"
    assert commit(callers, token, "new") == 0


def test_a_key_that_moves_to_another_database(server: Server, callers: Callers) -> None:
    if server.flavour == "valkey-8.1":
        pytest.skip("MOVE leaves the client on the wrong database there: docs/replication.md")
    callers.call("SET", "k", "old")
    token = begin(callers)
    assert callers.call("MOVE", "k", 1) == 1
    assert commit(callers, token, "new") == 0
    with server.client(db=1) as other:
        assert other.execute_command("CACHE.GET", "k") == b"old", "it is another key there"


def test_a_tag_of_the_new_value_that_is_invalidated_meanwhile(callers: Callers) -> None:
    token = begin(callers)
    assert callers.call("CACHE.INVALIDATETAG", "t") == 0, "no key carries it yet"
    assert commit(callers, token, "new", "TAGS", 2, "u", "t") == 0
    token = begin(callers)
    callers.call("CACHE.INVALIDATETAG", "other")
    assert commit(callers, token, "new", "TAGS", 2, "u", "t") == 1


def test_a_giant_tag_of_the_old_value(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["invalidate-sync-keys", "1"])
    keys = [f"k{number}" for number in range(100)]
    with Callers(server) as callers:
        callers.call("CACHE.MSET", len(keys), *(word for key in keys for word in (key, "old")), "TAGS", 1, "t")
        tokens = [begin(callers, key) for key in keys]
        # In one write, so that the reclaimer does not come in between.
        replies = callers.first.pipeline(
            [("CACHE.INVALIDATETAG", "t")]
            + [("CACHE.COMMIT", key, token, "new") for key, token in zip(keys, tokens, strict=True)]
            + [("CACHE.INTENT", key) for key in keys]
        )
        assert replies[:101] == [100] + [0] * 100
        eventually(lambda: callers.info("reclaim_backlog") == 0)
        for key, token in zip(keys, replies[101:], strict=True):
            assert commit(callers, token, "new", key=key) == 1, "the reclaimer is no writer"


def test_the_old_value_may_expire_or_be_evicted(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["maxmemory-policy allkeys-random"])
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old", "PX", 30)
        token = begin(callers)
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        assert commit(callers, token, "new") == 1
        token = begin(callers)
        callers.call("CONFIG", "SET", "maxmemory", 1)
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        callers.call("CONFIG", "SET", "maxmemory", 0)
        assert commit(callers, token, "new") == 1


def test_an_unknown_token(callers: Callers) -> None:
    for token in ("", "x", b"\xff", "0123456789abcdef-1", callers.lease("k")):
        callers.call("CACHE.SET", "k", "old")
        assert callers.call("CACHE.ROLLBACK", "k", token) == 0
        assert callers.call("CACHE.GET", "k") == b"old"
        assert callers.call("CACHE.COMMIT", "k", token, "new") == 0
        assert callers.call("EXISTS", "k") == 0


def test_the_token_of_another_key_or_database(server: Server, callers: Callers) -> None:
    token = begin(callers)
    callers.call("SET", "other", "old")
    assert commit(callers, token, "new", key="other") == 0
    with server.client(db=1) as other:
        assert other.execute_command("CACHE.COMMIT", "k", token, "new") == 0
    assert commit(callers, token, "new") == 1


def test_full_memory(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["maxmemory-policy noeviction"])
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old")
        callers.call("CONFIG", "SET", "maxmemory", 1)
        token = begin(callers)
        waiter = callers.wait("k", "STALE", "NEVER")
        assert str(commit(callers, token, "new")).startswith("OOM ")
        assert waiter.read() == hit(b"new")
        assert callers.call("EXISTS", "k") == 0
        assert commit(callers, begin(callers)) == 1
        assert callers.call("CACHE.ROLLBACK", "k", begin(callers)) == 1
        assert callers.info("intents") == 0


def test_there_is_a_most(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["intents-max", "2"])
    with Callers(server) as callers:
        token = begin(callers)
        begin(callers, "other")
        assert callers.call("CACHE.INTENT", "third") == "ERR too many intents"
        assert (callers.info("intents"), callers.info("intents_full")) == (2, 1)
        assert commit(callers, token, "new") == 1
        begin(callers, "third")


def test_who_waits_when_the_database_is_flushed_or_swapped(callers: Callers) -> None:
    for change in (("FLUSHDB",), ("FLUSHALL",), ("SWAPDB", 0, 1)):
        token = begin(callers)
        waiter = callers.wait("k")
        assert callers.call(*change) == "OK"
        status, _, lease = waiter.read()
        assert status == b"MISS", change
        assert commit(callers, token, "new") == 0
        assert callers.call("CACHE.FILL", "k", lease, "old") == 0, "the writer has written since"


def test_an_intent_of_a_million_years(callers: Callers) -> None:
    begin(callers, "other", "PX", 2**63 - 10**14)
    begin(callers, "k", "PX", 20)
    eventually(lambda: callers.info("intents") == 1)
    assert callers.call("CACHE.FETCH", "other") == BUSY


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "nothing"])
def test_near_caches_are_told_when_it_begins_and_when_it_is_over(server: Server, end: str) -> None:
    with Callers(server) as callers:
        tracker, listener = callers.connect(), callers.connect()
        number = listener.call("CLIENT", "ID")
        listener.call("SUBSCRIBE", "__redis__:invalidate")
        assert tracker.call("CLIENT", "TRACKING", "ON", "REDIRECT", number) == "OK"
        callers.call("CACHE.SET", "k", "old")
        assert tracker.call("CACHE.GET", "k") == b"old"
        token = begin(callers, "k", "PX", 2_000 if end == "nothing" else 600_000)
        assert listener.read() == [b"message", b"__redis__:invalidate", [b"k"]]
        assert tracker.call("CACHE.GET", "k") is None
        if end != "nothing":
            callers.call(f"CACHE.{end}", "k", token)
        assert listener.read() == [b"message", b"__redis__:invalidate", [b"k"]]


# Replicas, files, pauses


def effects(stream: ReplicationStream) -> list[list[bytes]]:
    return [words for words in stream.read() if words not in ([b"MULTI"], [b"EXEC"])]


def test_what_is_replicated(server: Server) -> None:
    intent, no_intent = ([b"KEYWARD.APPLY", word, b"k"] for word in (b"INTENT", b"NOINTENT"))
    with Callers(server) as callers, ReplicationStream(server) as stream:
        token = begin(callers)
        assert effects(stream) == [intent]
        assert commit(callers, token, "new", "PX", 60_000, "TAGS", 1, "t") == 1
        at = b"%d" % callers.call("PEXPIRETIME", "k")
        assert effects(stream) == [[b"CACHE.SET", b"k", b"new", b"PXAT", at, b"TAGS", b"1", b"t"], no_intent]
        a, b = begin(callers), begin(callers)
        assert effects(stream) == [intent]
        commit(callers, a, "a", "VERSION", 1)
        assert effects(stream) == [[b"CACHE.SET", b"k", b"a", b"VERSION", b"1"]]
        commit(callers, b, "b")
        assert effects(stream) == [[b"UNLINK", b"k"], no_intent]
        assert callers.call("CACHE.ROLLBACK", "k", begin(callers)) == 1
        assert effects(stream) == [intent, no_intent]
        callers.call("CACHE.ROLLBACK", "k", "unknown")
        callers.call("CACHE.COMMIT", "k", "unknown", "v")
        assert effects(stream) == []
        callers.call("SET", "k", "old")
        begin(callers, "k", "PX", 1)
        eventually(lambda: callers.info("intents") == 0)
        assert effects(stream) == [[b"SET", b"k", b"old"], intent, [b"UNLINK", b"k"], no_intent]


def test_a_replica_hides_the_value_until_the_primary_says_otherwise(make_server: Callable[..., Server]) -> None:
    primary = make_server()
    early = make_server().replicate_from(primary)
    with Callers(primary) as callers:
        callers.call("CACHE.SET", "k", "old")
        token = begin(callers)
        late = make_server().replicate_from(primary)
        for replica in (early, late):
            replica.wait_until_synced()
        with Callers(early) as one, Callers(late) as two:
            for reader in (one, two):
                assert is_open(reader)
                assert reader.call("CACHE.TTL", "k") == [0, -1]
                assert str(reader.call("CACHE.FETCH", "k", "STALE", "NEVER")).startswith("READONLY ")
                assert str(reader.call("CACHE.INTENT", "k")).startswith("READONLY ")
                assert reader.info("intents") == 1
            assert commit(callers, token, "new") == 1
            for replica, reader in ((early, one), (late, two)):
                replica.wait_until_synced()
                assert reader.call("CACHE.FETCH", "k") == hit(b"new")
                assert reader.info("intents") == 0


def test_on_a_replica_nothing_runs_out(make_server: Callable[..., Server]) -> None:
    primary = make_server()
    replica = make_server().replicate_from(primary)
    with Callers(primary) as callers, Callers(replica) as reader:
        callers.call("CACHE.SET", "k", "old")
        replica.wait_until_synced()
        # In one write, so that no timer comes in between.
        callers.first.pipeline([("CACHE.INTENT", "k", "PX", 50), ("CLIENT", "PAUSE", 600_000, "WRITE")])
        # The primary says that it has run out, and cannot remove it yet.
        eventually(lambda: callers.call("CACHE.TTL", "k") == [-2, -2])
        assert callers.call("CACHE.FETCH", "k") == BUSY
        upkeep_passes(primary)
        assert callers.call("EXISTS", "k") == 1
        eventually(lambda: is_open(reader))
        callers.call("CLIENT", "UNPAUSE")
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        replica.wait_until_synced()
        assert reader.call("EXISTS", "k") == 0
        assert (callers.info("intents"), reader.info("intents")) == (0, 0)


def test_a_pause_longer_than_the_intent_with_a_commit_behind_it(server: Server) -> None:
    with Callers(server) as callers:
        callers.call("SET", "k", "old")
        token, _ = callers.first.pipeline([("CACHE.INTENT", "k", "PX", 50), ("CLIENT", "PAUSE", 600_000, "WRITE")])
        late = callers.connect()
        late.send("CACHE.COMMIT", "k", token, "new")
        eventually(lambda: callers.call("CACHE.TTL", "k") == [-2, -2])
        callers.call("CLIENT", "UNPAUSE")
        assert late.read() == 0
        assert callers.call("EXISTS", "k") == 0


def test_promotion_during_an_intent(make_server: Callable[..., Server]) -> None:
    old = make_server()
    new = make_server().replicate_from(old)
    with Callers(old) as callers, Callers(new) as others:
        callers.call("CACHE.SET", "k", "old")
        token = begin(callers)
        new.wait_until_synced()
        assert is_open(others)
        new.promote()
        eventually(lambda: others.call("EXISTS", "k") == 0, message="what became of the write is not known")
        assert others.info("intents") == 0
        assert commit(others, token, "new") == 0
        assert commit(others, begin(others), "newer") == 1
        old.replicate_from(new)
        old.wait_until_synced()
        assert callers.call("CACHE.GET", "k") == b"newer"
        assert callers.info("intents") == 0


def test_failover_with_intents_open(make_server: Callable[..., Server]) -> None:
    """The old primary keeps hiding the key until the new one has removed it."""
    old = make_server()
    new = make_server().replicate_from(old)
    with Callers(old) as callers, Callers(new) as others:
        callers.call("CACHE.SET", "k", "old")
        begin(callers)
        waiter = callers.wait("k", "STALE", "NEVER")
        new.wait_until_synced()
        # Refused until the primary has heard from the replica.
        eventually(lambda: callers.call("FAILOVER", "TO", "127.0.0.1", new.port) == "OK")
        assert str(waiter.read()).startswith("UNBLOCKED")
        eventually(lambda: new.info("replication")["role"] == "master", timeout=30)
        eventually(lambda: others.call("EXISTS", "k") == 0)
        old.primary, new.primary = new, None
        eventually(lambda: old.info("replication")["role"] == "slave")
        old.wait_until_synced()
        assert callers.call("EXISTS", "k") == 0
        assert (callers.info("intents"), others.info("intents")) == (0, 0)


def test_a_demoted_primary_that_is_promoted_again(make_server: Callable[..., Server]) -> None:
    server = make_server()
    nobody = make_server()
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old")
        token = begin(callers)
        nobody.kill9()
        server.replicate_from(nobody)
        assert is_open(callers)
        upkeep_passes(server)
        assert is_open(callers)
        server.promote()
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        assert commit(callers, token, "new") == 0


@pytest.mark.parametrize("config", [["save 900 1"], ["appendonly yes"], ["appendonly yes", "appendfsync always"]])
def test_a_restart_during_an_intent(make_server: Callable[..., Server], config: list[str]) -> None:
    server = make_server(config=config)
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old")
        callers.call("CACHE.SET", "other", "old")
        ended = begin(callers, "other")
        token = begin(callers)
        callers.call("CACHE.ROLLBACK", "other", ended)
    server.restart()
    with Callers(server) as callers:
        assert callers.call("CACHE.GET", "k") is None
        assert callers.call("CACHE.FETCH", "k", "STALE", "NEVER")[0] in (b"BUSY", b"MISS")
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        assert callers.info("intents") == 0
        assert callers.call("CACHE.GET", "other") == b"old"
        assert commit(callers, token, "new") == 0
    server.restart()
    with Callers(server) as callers:
        assert callers.call("EXISTS", "k") == 0
        assert callers.info("intents") == 0


def test_a_crash_during_an_intent(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["appendonly yes", "appendfsync always"])
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old")
        token = begin(callers)
    server.kill9()
    server.start()
    with Callers(server) as callers:
        assert callers.call("CACHE.GET", "k") is None
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        assert commit(callers, token, "new") == 0


def test_an_aof_rewrite_carries_intents(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["appendonly yes"])
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old")
        begin(callers)
        callers.call("BGREWRITEAOF")
        eventually(lambda: server.info("persistence")["aof_rewrite_in_progress"] == 0)
    server.restart()
    with Callers(server) as callers:
        assert callers.call("CACHE.GET", "k") is None
        eventually(lambda: callers.call("EXISTS", "k") == 0)


def test_a_reload_is_a_restart(server: Server) -> None:
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old")
        token = begin(callers)
        assert callers.call("DEBUG", "RELOAD") == "OK"
        assert callers.call("CACHE.GET", "k") is None
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        assert commit(callers, token, "new") == 0
        assert callers.info("intents") == 0


def test_a_pause_does_not_stop_reads_of_what_ran_out(make_server: Callable[..., Server]) -> None:
    """Intents that came with a file are removed after the pause, and are hidden until then."""
    server = make_server(config=["save 900 1"])
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old")
        begin(callers)
        *_, replies = callers.first.pipeline(
            [("MULTI",), ("DEBUG", "RELOAD"), ("CLIENT", "PAUSE", 600_000, "WRITE"), ("EXEC",)]
        )
        assert replies == ["OK", "OK"]
        upkeep_passes(server)
        assert callers.call("EXISTS", "k") == 1, "nothing may be removed now"
        assert callers.call("CACHE.GET", "k") is None
        assert callers.call("CACHE.FETCH", "k") == BUSY
        callers.call("CLIENT", "UNPAUSE")
        eventually(lambda: callers.call("EXISTS", "k") == 0)


def test_what_a_queue_has_of_the_key_is_not_fresh_either(callers: Callers) -> None:
    callers.call("WRITEBEHIND.SET", "wb", "k", "dirty")
    callers.call("DEL", "k")
    assert callers.call("CACHE.GET", "k") == b"dirty"
    token = begin(callers)
    assert callers.call("CACHE.GET", "k") is None
    assert callers.call("CACHE.FETCH", "k") == [b"STALE", b"dirty", None]
    waiter = callers.wait("k", "STALE", "NEVER")
    callers.call("WRITEBEHIND.DEL", "wb", "k")
    assert callers.call("CACHE.FETCH", "k") == BUSY
    assert not waiter.is_answered(), "what becomes of the write is not known"
    assert callers.call("CACHE.ROLLBACK", "k", token) == 1
    assert waiter.read() == NONE
    assert callers.call("CACHE.FETCH", "k") == NONE


def test_many_writers_at_once(server: Server) -> None:
    """When all are done the cache has the row as it is, or nothing."""
    writes, lock = [0], threading.Lock()

    def write() -> None:
        with Callers(server) as mine:
            for _ in range(100):
                token = begin(mine)
                with lock:
                    writes[0] += 1
                    row = writes[0]
                commit(mine, token, row)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with Callers(server) as callers:
        assert writes == [400]
        assert callers.info("intents") == 0
        assert callers.call("CACHE.GET", "k") in (None, b"400")
