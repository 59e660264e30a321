"""The races that single flight is for, each as it would happen: what was read from the database before
a change is never cached after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from raw_client import ErrorReply
from servers import Server, eventually
from single_flight import BUSY, NONE, Callers, hit


@pytest.fixture
def callers(server: Server, protocol: int) -> Iterator[Callers]:
    with Callers(server, protocol) as callers:
        yield callers


def refuse(callers: Callers, key: str, token: bytes, *options: str | int) -> None:
    assert callers.call("CACHE.FILL", key, token, "old", *options) == 0
    assert callers.call("CACHE.GET", key) != b"old"


def test_stale_set_after_invalidate(callers: Callers) -> None:
    token = callers.lease("k")
    assert callers.call("CACHE.INVALIDATE", "k") == 0, "there is no key, and yet its lease ends"
    refuse(callers, "k", token)
    assert callers.call("CACHE.FILL", "k", callers.lease("k"), "new") == 1
    assert callers.call("CACHE.FETCH", "k") == hit(b"new")


def test_two_fillers_after_a_lease_ran_out(callers: Callers) -> None:
    late = callers.lease("k", "LEASE", 30)
    eventually(lambda: callers.info("lease_timeouts") and callers.info("leases") == 0)
    token = callers.lease("k")
    refuse(callers, "k", late)
    assert callers.call("CACHE.FILL", "k", token, "new") == 1
    refuse(callers, "k", late)
    assert callers.call("GET", "k") == b"new"


def test_tag_invalidated_in_mid_load(callers: Callers) -> None:
    token = callers.lease("k")
    before = callers.wait("k")
    assert callers.call("CACHE.INVALIDATETAG", "t") == 0, "no key carries it yet"
    after, last = callers.wait("k"), callers.wait("k")
    refuse(callers, "k", token, "TAGS", 2, "other", "t")
    assert before.read() == hit(b"old"), "asked before the invalidation"
    status, value, promoted = after.read()
    assert (status, value) == (b"MISS", None)
    assert callers.call("CACHE.FILL", "k", promoted, "new", "TAGS", 1, "t") == 1
    assert last.read() == hit(b"new")


def test_a_tag_that_fill_does_not_name_is_no_hit(callers: Callers) -> None:
    token = callers.lease("k")
    callers.call("CACHE.INVALIDATETAG", "t")
    assert callers.call("CACHE.FILL", "k", token, "v", "TAGS", 1, "u") == 1


def test_the_fence_forgets_nothing_that_matters_when_it_is_full(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["fence-tags-max", "3"])
    with Callers(server) as callers:
        token = callers.lease("k")
        for number in range(10):
            callers.call("CACHE.INVALIDATETAG", f"t{number}")
        assert callers.info("fence_tags") == 3
        refuse(callers, "k", token, "TAGS", 1, "t0")
        eventually(lambda: callers.info("fence_tags") == 0, message="no load is out")


def test_failover_between_fetch_and_fill(make_server: Callable[..., Server]) -> None:
    primary = make_server()
    replica = make_server().replicate_from(primary)
    with Callers(primary) as callers, Callers(replica) as others:
        token = callers.lease("k")
        waiter = callers.wait("k")
        assert isinstance(others.call("CACHE.FETCH", "k"), ErrorReply), "a replica elects nobody"
        replica.promote()
        assert others.call("CACHE.FILL", "k", token, "old") == 0
        assert others.call("CACHE.FETCH", "k")[0] == b"MISS"
        callers.call("REPLICAOF", "127.0.0.1", replica.port)
        assert str(waiter.read()).startswith("UNBLOCKED")
        eventually(lambda: callers.waiting() == 0 and callers.info("leases") == 0)


def test_flushdb_in_mid_load(callers: Callers) -> None:
    token = callers.lease("k")
    waiter = callers.wait("k")
    callers.call("FLUSHDB")
    status, _, promoted = waiter.read()
    assert status == b"MISS"
    refuse(callers, "k", token)
    assert callers.call("CACHE.FILL", "k", promoted, "new") == 1


def test_deleted_and_leased_again(callers: Callers) -> None:
    callers.call("SET", "k", "value")
    callers.call("DEL", "k")
    first = callers.lease("k")
    callers.call("SET", "k", "value")
    callers.call("DEL", "k")
    second = callers.lease("k")
    refuse(callers, "k", first)
    assert callers.call("CACHE.FILL", "k", second, "new") == 1


@pytest.mark.parametrize(
    "change",
    [
        ("SET", "k", "plain"),
        ("CACHE.SET", "k", "plain"),
        ("RENAME", "other", "k"),
        ("COPY", "other", "k"),
        ("CACHE.STALE", "k"),
        ("CACHE.FLOOR", "k", 7),
        ("SWAPDB", 0, 1),
        ("FLUSHALL",),
    ],
    ids=lambda words: words[0],
)
def test_whatever_changes_the_key_ends_its_lease(callers: Callers, change: tuple) -> None:
    callers.call("SET", "other", "plain")
    token = callers.lease("k")
    assert not isinstance(callers.call(*change), ErrorReply)
    refuse(callers, "k", token)


@pytest.fixture
def refresh(callers: Callers) -> Callable[..., bytes]:
    """A stale value and the token of the one who refreshes it."""

    def stale_and_elected(*options: str | int) -> bytes:
        callers.call("CACHE.SET", "k", "old value", "PX", 60_000, "GRACE", 60_000, *options)
        assert callers.call("CACHE.STALE", "k") == 1
        status, value, token = callers.call("CACHE.FETCH", "k")
        assert (status, value) == (b"REFRESH", b"old value")
        assert callers.call("CACHE.FETCH", "k") == [b"STALE", b"old value", None]
        return token

    return stale_and_elected


def test_a_refresh_replaces_the_stale_value(callers: Callers, refresh: Callable[..., bytes]) -> None:
    token = refresh()
    assert callers.call("CACHE.FETCH", "k", "STALE", "NEVER") == BUSY
    assert callers.call("CACHE.FILL", "k", token, "new") == 1
    assert callers.call("CACHE.FETCH", "k") == hit(b"new")


@pytest.mark.parametrize(
    "change",
    [
        ("SET", "k", "v", "KEEPTTL"),
        ("APPEND", "k", "v"),
        ("DEL", "k"),
        ("CACHE.STALE", "k"),
        ("CACHE.INVALIDATETAG", "t"),
    ],
    ids=lambda words: words[0],
)
def test_whatever_changes_the_value_ends_its_refresh(
    callers: Callers, refresh: Callable[..., bytes], change: tuple
) -> None:
    token = refresh("TAGS", 1, "t")
    callers.call(*change)
    refuse(callers, "k", token)


def test_expiry_of_the_old_value_does_not_end_its_refresh(callers: Callers, refresh: Callable[..., bytes]) -> None:
    token = refresh()
    callers.call("PEXPIRE", "k", 1)
    eventually(lambda: callers.call("EXISTS", "k") == 0)
    assert callers.call("CACHE.FILL", "k", token, "new") == 1


def test_a_value_that_was_overwritten_and_expired_ends_the_refresh(
    callers: Callers, refresh: Callable[..., bytes]
) -> None:
    token = refresh()
    callers.call("SET", "k", "newer", "KEEPTTL")
    callers.call("PEXPIRE", "k", 1)
    eventually(lambda: callers.call("EXISTS", "k") == 0)
    refuse(callers, "k", token)


def test_eviction_of_the_old_value_does_not_end_its_refresh(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["maxmemory-policy allkeys-random"])
    with Callers(server) as callers:
        callers.call("CACHE.SET", "k", "old", "PX", 60_000, "GRACE", 60_000)
        callers.call("CACHE.STALE", "k")
        token = callers.call("CACHE.FETCH", "k")[2]
        callers.call("CONFIG", "SET", "maxmemory", 1)
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        callers.call("CONFIG", "SET", "maxmemory", 0)
        assert callers.call("CACHE.FILL", "k", token, "new") == 1


def test_a_giant_tag_retired_in_mid_load(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["invalidate-sync-keys", "1"])
    with Callers(server) as callers:
        for number in range(200):
            callers.call("CACHE.SET", f"k{number}", "old", "PX", 60_000, "GRACE", 60_000, "TAGS", 1, "t")
        callers.call("CACHE.STALE", *(f"k{number}" for number in range(200)))
        tokens = [callers.call("CACHE.FETCH", f"k{number}")[2] for number in range(200)]
        # In one write, so that the reclaimer does not come in between.
        replies = callers.first.pipeline(
            [("CACHE.INVALIDATETAG", "t")]
            + [("CACHE.FETCH", f"k{number}") for number in range(200)]
            + [("CACHE.FILL", f"k{number}", token, "old") for number, token in enumerate(tokens)]
        )
        assert replies[0] == 200
        assert {reply[0] for reply in replies[1:201]} == {b"MISS"}
        assert set(replies[201:]) == {0}
        eventually(lambda: callers.info("reclaim_backlog") == 0)
        for number, (_, _, token) in enumerate(replies[1:201]):
            assert callers.call("CACHE.FILL", f"k{number}", token, "new") == 1, "the reclaimer ends no younger lease"


def test_a_giant_tag_made_stale(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["invalidate-sync-keys", "1"])
    replica = make_server().replicate_from(server)
    with Callers(server) as callers:
        for number in range(100):
            callers.call("CACHE.SET", f"k{number}", "v", "PX", 60_000, "GRACE", 60_000, "TAGS", 1, "t")
            callers.call("CACHE.SET", f"n{number}", "v", "PX", 60_000, "TAGS", 1, "t")
        replies = callers.first.pipeline(
            [("CACHE.STALETAG", "t")]
            + [("CACHE.FETCH", f"k{number}") for number in range(100)]
            + [("CACHE.GET", f"n{number}") for number in range(100)]
        )
        assert replies[0] == 200
        assert {reply[0] for reply in replies[1:101]} == {b"REFRESH"}
        assert set(replies[101:]) == {None}
        eventually(lambda: callers.info("reclaim_backlog") == 0)
        assert callers.call("DBSIZE") == 100
        assert all(callers.call("CACHE.TTL", f"k{number}")[0] == 0 for number in range(100))
        assert callers.call("CACHE.INVALIDATETAG", "t") == 100, "stale keys keep their tags"
        eventually(lambda: callers.call("DBSIZE") == 0)
    replica.wait_until_synced()
    with replica.client() as client:
        eventually(lambda: client.dbsize() == 0)


def test_a_tag_is_taken_from_a_key_that_it_is_still_to_make_stale(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["invalidate-sync-keys", "1"])
    with Callers(server) as callers:
        keys = [f"k{number}" for number in range(50)]
        for key in keys:
            callers.call("CACHE.SET", key, "v", "PX", 60_000, "GRACE", 60_000, "TAGS", 1, "t")
        replies = callers.first.pipeline(
            [("CACHE.STALETAG", "t")]
            + [("CACHE.UNTAG", key, "t") for key in keys]
            + [("CACHE.TTL", key) for key in keys]
            + [("CACHE.INVALIDATETAG", "t")]
        )
        assert replies[:51] == [50] + [1] * 50
        assert all(soft == 0 for soft, _ in replies[51:101]), "it is stale all the same"
        assert replies[101] == 0
        eventually(lambda: callers.info("reclaim_backlog") == 0)
        assert callers.call("DBSIZE") == 50
        assert all(callers.call("CACHE.TAGS", key) in ([], set()) for key in keys)


def test_a_negative_answer_ends_with_the_key(callers: Callers) -> None:
    for number, change in enumerate(
        [
            ("CACHE.INVALIDATE", "k"),
            ("CACHE.INVALIDATETAG", "t"),
            ("CACHE.STALE", "k"),
            ("CACHE.STALETAG", "t"),
            ("CACHE.FLOOR", "k", 5),
            ("CACHE.SET", "k", "v", "PX", 1),
            ("FLUSHDB",),
        ]
    ):
        token = callers.lease("k")
        assert callers.call("CACHE.FILLNIL", "k", token, "EX", 60, "TAGS", 1, "t") == 1
        assert (callers.call("CACHE.FETCH", "k"), callers.call("CACHE.GET", "k"), callers.call("GET", "k")) == (
            NONE,
            None,
            None,
        )
        callers.call(*change)
        eventually(lambda: callers.call("EXISTS", "k") == 0)
        status, _, token = callers.call("CACHE.FETCH", "k")
        assert status == b"MISS", (number, change)
        assert callers.call("CACHE.FAIL", "k", token) == 1


def test_a_fill_into_full_memory_answers_and_stores_nothing(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["maxmemory-policy noeviction"])
    with Callers(server) as callers:
        token = callers.lease("k")
        waiter = callers.wait("k")
        callers.call("CONFIG", "SET", "maxmemory", 1)
        assert str(callers.call("CACHE.FILL", "k", token, "v")).startswith("OOM ")
        assert waiter.read() == hit(b"v")
        callers.call("CONFIG", "SET", "maxmemory", 0)
        assert callers.call("EXISTS", "k") == 0
        callers.lease("k")
