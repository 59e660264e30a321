"""Where single flight and the meta commands of memcached differ: each difference on both servers, ours first.
docs/single-flight.md tells them; where the two do the same is in test_memcached_comparison.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
from memcached import Answer, Memcached, MetaClient, MetaError
from servers import Server, eventually
from single_flight import BUSY, NONE, Callers, hit

GRACE = ("PX", 600_000, "GRACE", 600_000)
FETCH = ("mg", "k", "v", "c", "t", "N60", "R30")


@pytest.fixture(scope="module")
def memcached() -> Iterator[Memcached]:
    with Memcached() as memcached:
        yield memcached


@pytest.fixture
def callers(server: Server) -> Iterator[Callers]:
    with Callers(server) as callers:
        yield callers


@pytest.fixture
def meta(memcached: Memcached) -> Iterator[MetaClient]:
    with MetaClient(memcached) as meta:
        assert meta.classic("flush_all") == "OK"
        yield meta


@pytest.fixture
def refresh(callers: Callers, meta: MetaClient) -> tuple[bytes, str]:
    """A value that was made stale, and the one who refreshes it: token and CAS."""
    callers.call("CACHE.SET", "k", "old", *GRACE)
    callers.call("CACHE.STALE", "k")
    status, value, token = callers.call("CACHE.FETCH", "k")
    assert (status, value) == (b"REFRESH", b"old")

    meta.store("k", b"old", "T600")
    meta.call("md", "k", "I")
    answer = meta.call(*FETCH)
    assert (answer.won, answer.stale, answer.value) == (True, True, b"old")
    return token, answer.cas


def lease(meta: MetaClient) -> str:
    """The CAS of an election on a missing key."""
    answer = meta.call(*FETCH)
    assert (answer.won, answer.stale, answer.value) == (True, False, b"")
    return answer.cas


def is_hit(answer: Answer, value: bytes) -> bool:
    return answer.value == value and not (answer.won or answer.lost or answer.stale)


# What is stored


def test_a_value_read_before_an_invalidation_is_stored_there_if_the_loader_wants(
    callers: Callers, meta: MetaClient, refresh: tuple[bytes, str]
) -> None:
    token, cas = refresh
    callers.call("CACHE.STALE", "k")
    assert callers.call("CACHE.FILL", "k", token, "read too early", *GRACE) == 0
    assert callers.call("CACHE.FETCH", "k")[:2] == [b"REFRESH", b"old"]

    meta.call("md", "k", "I")
    assert meta.store("k", b"read too early", f"C{cas}", "T600").code == "EX"
    assert meta.store("k", b"read too early", f"C{cas}", "I", "T600").code == "HD"
    answer = meta.call(*FETCH)
    assert (answer.value, answer.stale, answer.won) == (b"read too early", True, True)


def test_such_a_value_comes_back_there_after_a_removal_and_spoils_the_next_load(
    callers: Callers, meta: MetaClient
) -> None:
    late = callers.lease("k")
    callers.call("CACHE.INVALIDATE", "k")
    token = callers.lease("k")
    assert callers.call("CACHE.FILL", "k", late, "read too early") == 0
    assert callers.call("CACHE.FETCH", "k") == BUSY
    assert callers.call("CACHE.FILL", "k", token, "new") == 1
    assert callers.call("CACHE.FETCH", "k") == hit(b"new")

    late = lease(meta)
    meta.call("md", "k")
    cas = lease(meta)
    assert meta.store("k", b"read too early", f"C{late}", "I", "T600").code == "HD"
    answer = meta.call(*FETCH)
    assert (answer.value, answer.stale, answer.lost) == (b"read too early", True, True)
    assert meta.store("k", b"new", f"C{cas}", "T600").code == "EX", "it was elected, and nobody else since"
    assert meta.store("k", b"new", f"C{cas}", "I", "T600").code == "HD"
    answer = meta.call(*FETCH)
    assert (answer.value, answer.stale, answer.lost) == (b"new", True, True), "stale, and nobody is elected"


def test_a_tag_invalidated_in_mid_load_refuses_the_value_here_alone(callers: Callers, meta: MetaClient) -> None:
    token = callers.lease("k")
    callers.call("CACHE.SET", "other", "v", "TAGS", 1, "t")
    assert callers.call("CACHE.INVALIDATETAG", "t") == 1
    assert callers.call("CACHE.FILL", "k", token, "read too early", "TAGS", 1, "t") == 0

    # It has no tags: who invalidates names the keys that carry it, and this one does not yet.
    cas = lease(meta)
    meta.store("other", b"v", "T600")
    assert meta.call("md", "other").code == "HD"
    assert meta.store("k", b"read too early", f"C{cas}", "T600").code == "HD"


def test_a_plain_delete_of_what_is_being_loaded_is_noticed_there_alone(callers: Callers, meta: MetaClient) -> None:
    token = callers.lease("k")
    assert callers.call("DEL", "k") == 0
    assert callers.call("CACHE.FILL", "k", token, "read too early") == 1, "CACHE.INVALIDATE would have ended the lease"

    cas = lease(meta)
    assert meta.classic("delete", "k") == "DELETED"
    assert meta.store("k", b"read too early", f"C{cas}", "T600").code == "NF"


def test_a_load_outlives_the_old_value_here_and_goes_with_it_there(
    callers: Callers, meta: MetaClient, refresh: tuple[bytes, str]
) -> None:
    token, cas = refresh
    callers.call("PEXPIRE", "k", 1)
    eventually(lambda: callers.call("EXISTS", "k") == 0)
    assert callers.call("CACHE.FETCH", "k") == BUSY
    assert callers.call("CACHE.FILL", "k", token, "new") == 1

    assert meta.classic("touch", "k", -1) == "TOUCHED"
    assert meta.call(*FETCH).won, "two load"
    assert meta.store("k", b"new", f"C{cas}", "T600").code == "EX"


def test_a_lease_is_evicted_there_alone(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["maxmemory-policy allkeys-random"])
    with Callers(server) as callers:
        token = callers.lease("k")
        callers.call("SET", "other", "v")
        callers.call("CONFIG", "SET", "maxmemory", 1)
        eventually(lambda: callers.call("DBSIZE") == 0)
        callers.call("CONFIG", "SET", "maxmemory", 0)
        assert callers.call("CACHE.FETCH", "k") == BUSY
        assert callers.call("CACHE.FILL", "k", token, "v") == 1

    with Memcached("-m", "2") as memcached, MetaClient(memcached) as meta:
        cas = lease(meta)
        for number in range(200_000):
            if number % 1000 == 0 and meta.call("me", "k").code == "EN":
                break
            meta.store(f"other:{number}", b"", "T600")
        assert meta.store("k", b"v", f"C{cas}", "T600").code == "NF"


def test_a_token_of_before_a_restart_may_fit_another_load_there(make_server: Callable[..., Server]) -> None:
    server = make_server()
    with Callers(server) as callers:
        late = callers.lease("k")
    server.restart()
    with Callers(server) as callers:
        token = callers.lease("k")
        assert callers.call("CACHE.FILL", "k", late, "of another life") == 0
        assert callers.call("CACHE.FILL", "k", token, "v") == 1

    with Memcached() as memcached:
        with MetaClient(memcached) as meta:
            late = lease(meta)
        memcached.stop()
        memcached.start()
        with MetaClient(memcached) as meta:
            cas = lease(meta)
            assert meta.store("k", b"of another life", f"C{late}", "T600").code == "HD", "it counts from 1 again"
            assert meta.store("k", b"v", f"C{cas}", "T600").code == "EX"


# Who is elected


def test_a_dead_loader_of_a_stale_value_is_replaced_here_alone(callers: Callers, meta: MetaClient) -> None:
    callers.call("CACHE.SET", "k", "old", *GRACE)
    callers.call("CACHE.STALE", "k")
    meta.store("k", b"old", "T600")
    meta.call("md", "k", "I")
    assert meta.call("mg", "k", "v", "N1", "R1").won
    assert callers.call("CACHE.FETCH", "k", "LEASE", 1500)[0] == b"REFRESH"

    eventually(lambda: callers.call("CACHE.FETCH", "k")[0] == b"REFRESH", message="the lease has run out")
    # That somebody was elected is kept with the item, and has no time of its own.
    answer = meta.call("mg", "k", "v", "t", "N1", "R1")
    assert (answer.value, answer.lost) == (b"old", True)
    assert int(answer.flags["t"]) > 500


def test_after_a_loader_died_who_waits_is_elected_here_and_who_asks_again_there(
    callers: Callers, meta: MetaClient
) -> None:
    callers.lease("k", "LEASE", 2000)
    waiter = callers.wait("k")
    # It counts in whole seconds, and the first of them may be over at once.
    assert meta.call("mg", "k", "N3").won
    assert meta.call("mg", "k", "N3").lost

    status, _, token = waiter.read()
    assert status == b"MISS"
    assert token
    eventually(lambda: meta.call("mg", "k", "N3").won)


def test_who_waits_is_answered_by_the_load_here_and_asks_again_there(
    callers: Callers, meta: MetaClient, memcached: Memcached
) -> None:
    token = callers.lease("k")
    waiter = callers.wait("k")
    assert not waiter.is_answered()
    assert callers.call("CACHE.FILL", "k", token, "v") == 1
    assert waiter.read() == hit(b"v")

    cas = lease(meta)
    with MetaClient(memcached) as other:
        assert other.call(*FETCH).lost, "answered at once, without a value"
        assert meta.store("k", b"v", f"C{cas}", "T600").code == "HD"
        assert not other.is_answered()
        assert is_hit(other.call(*FETCH), b"v")


def test_the_token_is_the_loaders_alone_here_and_everybodys_there(callers: Callers, meta: MetaClient) -> None:
    token = callers.lease("k")
    assert callers.call("CACHE.FETCH", "k") == BUSY, "without a token"
    assert callers.call("CACHE.FILL", "k", token, "v") == 1

    lease(meta)
    other = meta.call(*FETCH)
    assert other.lost
    assert meta.store("k", b"by one who lost", f"C{other.cas}", "T600").code == "HD"


def test_only_fetch_elects_here_and_any_mg_of_a_stale_item_there(callers: Callers, meta: MetaClient) -> None:
    callers.call("CACHE.SET", "k", "old", *GRACE)
    callers.call("CACHE.STALE", "k")
    assert (callers.call("CACHE.GET", "k"), callers.call("GET", "k")) == (None, b"old")
    assert callers.call("CACHE.FETCH", "k")[0] == b"REFRESH"

    meta.store("k", b"old", "T600")
    meta.call("md", "k", "I")
    assert meta.get("k") == b"old", "the classic get sees no difference"
    assert meta.call("mg", "k", "v").won
    assert meta.call(*FETCH).lost


def test_early_refresh_is_a_draw_here_and_a_threshold_there(callers: Callers, meta: MetaClient) -> None:
    [_, _, token], begun = callers.first.pipeline([("CACHE.FETCH", "k"), ("TIME",)])
    eventually(lambda: milliseconds(callers.call("TIME")) > milliseconds(begun) + 10, message="the load")
    ended, filled = callers.first.pipeline([("TIME",), ("CACHE.FILL", "k", token, "v", "PX", 600_000)])
    assert filled == 1
    # An even chance for a load that took so long.
    left = int((milliseconds(ended) - milliseconds(begun)) * 1000 * math.log(2))
    outcomes = set()
    for _ in range(200):
        _, [status, value, token] = callers.first.pipeline([("PEXPIRE", "k", left), ("CACHE.FETCH", "k", "BETA", 1000)])
        assert value == b"v"
        outcomes.add(status)
        if token:
            assert callers.call("CACHE.FETCH", "k", "BETA", 1000) == hit(b"v"), "one at a time"
            assert callers.call("CACHE.FAIL", "k", token) == 1
    assert outcomes == {b"HIT", b"REFRESH"}

    meta.store("k", b"v", "T300")
    assert not any(meta.call("mg", "k", "v", "R200").won for _ in range(200))
    assert meta.call("mg", "k", "v", "R400").won
    assert meta.call("mg", "k", "v", "R400").lost


# What is old


def test_when_a_value_is_old_says_the_writer_here_and_each_reader_there(callers: Callers, meta: MetaClient) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 1, "GRACE", 600_000)
    eventually(lambda: callers.call("CACHE.TTL", "k")[0] == 0)
    assert callers.call("CACHE.GET", "k") is None
    assert callers.call("CACHE.FETCH", "k")[:2] == [b"REFRESH", b"v"]

    meta.store("k", b"v", "T600")
    assert is_hit(meta.call("mg", "k", "v"), b"v")
    assert is_hit(meta.call("mg", "k", "v", "R300"), b"v")
    answer = meta.call("mg", "k", "v", "R900")
    assert (answer.won, answer.stale) == (True, False)


def test_what_has_no_grace_is_removed_here_and_kept_there(callers: Callers, meta: MetaClient) -> None:
    callers.call("CACHE.SET", "k", "old", "PX", 600_000)
    assert callers.call("CACHE.STALE", "k") == 1
    assert callers.call("CACHE.FETCH", "k")[0] == b"MISS"

    meta.store("k", b"old")
    meta.call("md", "k", "I")
    answer = meta.call("mg", "k", "v", "t")
    assert (answer.value, answer.stale, answer.flags["t"]) == (b"old", True, "-1"), "for ever"


def test_a_lease_is_no_value_here_and_an_empty_one_there(callers: Callers, meta: MetaClient) -> None:
    callers.lease("k")
    assert (callers.call("GET", "k"), callers.call("EXISTS", "k")) == (None, 0)
    callers.call("CACHE.STALE", "k")
    token = callers.lease("k")
    assert callers.call("CACHE.FILL", "k", token, "", *GRACE) == 1
    callers.call("CACHE.STALE", "k")
    assert callers.call("CACHE.FETCH", "k")[:2] == [b"REFRESH", b""]
    callers.lease("other")
    assert callers.call("CACHE.SET", "other", "v", "NX") == "OK"

    lease(meta)
    assert meta.get("k") == b""
    meta.call("md", "k", "I")
    of_nothing = meta.call("mg", "k", "v")
    meta.store("k", b"", "T600")
    meta.call("md", "k", "I")
    assert meta.call("mg", "k", "v") == of_nothing, "a value that is empty looks the same once it is stale"
    assert meta.call("mg", "other", "N60").won
    assert meta.store("other", b"v", "ME").code == "NS"


# What the origin said


def test_that_there_is_nothing_has_a_status_here_alone(callers: Callers, meta: MetaClient) -> None:
    assert callers.call("CACHE.FILLNIL", "k", callers.lease("k"), "EX", 60) == 1
    assert callers.call("CACHE.FETCH", "k") == NONE
    assert callers.call("EXISTS", "k") == 0

    assert meta.store("k", b"a marker", f"C{lease(meta)}", "T60").code == "HD"
    assert is_hit(meta.call(*FETCH), b"a marker"), "which every reader must know"


def test_a_failure_keeps_others_from_trying_here_alone(callers: Callers, meta: MetaClient) -> None:
    callers.call("CACHE.FAIL", "k", callers.lease("k"), "MSG", "down", "RETRY", 60_000)
    assert callers.call("CACHE.FETCH", "k") == [b"ERROR", b"down", None]

    assert meta.call("md", "k", f"C{lease(meta)}").code == "HD"
    assert meta.call(*FETCH).won


def test_time_is_in_milliseconds_here_and_in_seconds_there(callers: Callers, meta: MetaClient) -> None:
    callers.lease("k", "LEASE", 50)
    eventually(lambda: callers.call("CACHE.FETCH", "k")[0] == b"MISS")

    with pytest.raises(MetaError, match="CLIENT_ERROR"):
        meta.call("mg", "k", "N0.05")


def milliseconds(time: list[bytes]) -> float:
    seconds, microseconds = time
    return int(seconds) * 1000 + int(microseconds) / 1000
