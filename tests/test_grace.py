"""GRACE: how long a value is fresh, how long it may be served stale, and what ends that. And early refresh."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest
from servers import Server, eventually
from single_flight import Callers, hit


@pytest.fixture
def callers(server: Server, protocol: int) -> Iterator[Callers]:
    with Callers(server, protocol) as callers:
        yield callers


def becomes_stale(callers: Callers, key: str = "k") -> None:
    eventually(lambda: callers.call("CACHE.TTL", key)[0] == 0)


@pytest.mark.parametrize(("unit", "amount", "ms"), [("EX", 50, 1000), ("PX", 50_000, 1)])
def test_the_grace_is_in_the_unit_of_the_expiry(callers: Callers, unit: str, amount: int, ms: int) -> None:
    callers.call("CACHE.SET", "k", "v", unit, amount, "GRACE", 20)
    soft, hard = callers.call("CACHE.TTL", "k")
    assert hard - soft == 20 * ms
    assert 49_000 < soft <= 50_000
    assert abs(callers.call("PTTL", "k") - hard) < 1000


def test_a_stale_value_is_there_for_get_and_for_fetch_alone(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 20, "GRACE", 60_000)
    becomes_stale(callers)
    assert (callers.call("CACHE.GET", "k"), callers.call("CACHE.MGET", "k")) == (None, [None])
    assert callers.call("GET", "k") == b"v"
    assert callers.call("CACHE.SET", "k", "w", "NX") is None, "the key exists"
    status, value, _ = callers.call("CACHE.FETCH", "k")
    assert (status, value) == (b"REFRESH", b"v")


@pytest.mark.parametrize("write", [("SET", "k", "new"), ("APPEND", "k", "!"), ("SET", "k", "new", "KEEPTTL")])
def test_a_plain_write_ends_the_grace(callers: Callers, write: tuple) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 20, "GRACE", 60_000)
    callers.call(*write)
    written = callers.call("GET", "k")
    # Past the soft expiry of the value that is no more.
    callers.call("CACHE.SET", "clock", "v", "PX", 20, "GRACE", 60_000)
    becomes_stale(callers, "clock")
    assert callers.call("CACHE.GET", "k") == written
    assert callers.call("CACHE.FETCH", "k") == hit(written)
    assert callers.call("CACHE.STALE", "k") == 1, "without a grace it is removed"
    assert callers.call("EXISTS", "k") == 0


def test_expire_and_persist_leave_a_stale_value_stale(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 20, "GRACE", 60_000)
    becomes_stale(callers)
    callers.call("EXPIRE", "k", 1000)
    assert callers.call("CACHE.GET", "k") is None
    callers.call("PERSIST", "k")
    assert callers.call("CACHE.TTL", "k") == [0, -1]
    assert callers.call("CACHE.FETCH", "k")[0] == b"REFRESH"


def test_the_grace_goes_along_with_a_rename_and_not_with_a_copy(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 60_000, "GRACE", 60_000)
    callers.call("CACHE.STALE", "k")
    callers.call("COPY", "k", "copy")
    callers.call("RENAME", "k", "renamed")
    assert callers.call("CACHE.GET", "renamed") is None
    assert callers.call("CACHE.GET", "copy") == b"v"


def test_stale_counts_what_it_changed(callers: Callers) -> None:
    callers.call("CACHE.SET", "graced", "v", "PX", 60_000, "GRACE", 10_000)
    callers.call("CACHE.SET", "graceless", "v", "PX", 60_000)
    callers.call("RPUSH", "list", 1)
    assert callers.call("CACHE.STALE", "graced", "graceless", "list", "missing", "graced") == 3
    assert callers.call("CACHE.STALE", "graced") == 0
    soft, hard = callers.call("CACHE.TTL", "graced")
    assert soft == 0
    assert 9_000 < hard <= 10_000
    assert callers.call("DBSIZE") == 1


def test_stale_never_lengthens_a_life(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 60_000, "GRACE", 50_000)
    callers.call("PEXPIRE", "k", 5_000)
    callers.call("CACHE.STALE", "k")
    assert callers.call("CACHE.TTL", "k")[1] <= 5_000


def test_a_hard_invalidation_is_never_served_again(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 60_000, "GRACE", 60_000, "TAGS", 1, "t")
    callers.call("CACHE.STALETAG", "t")
    assert callers.call("CACHE.INVALIDATETAG", "t") == 1
    assert callers.call("GET", "k") is None
    assert callers.call("CACHE.FETCH", "k")[0] == b"MISS"


def test_early_refresh_follows_the_formula_of_the_paper(callers: Callers) -> None:
    """p = exp(-(time left) / (beta * delta)), measured over many elections around one load time."""
    tries, beta = 400, 2
    expected, elected = 0.0, 0
    token = callers.lease("k")
    begun = time.monotonic()
    time.sleep(0.1)  # The load: its length is what the module measures.
    least = (time.monotonic() - begun) * 1000
    assert callers.call("CACHE.FILL", "k", token, "v", "PX", 60_000) == 1
    most = (time.monotonic() - begun) * 1000
    for number in range(tries):
        # At most points between 0 and 400 ms before the expiry; the command's own time is a fraction of one.
        left = 20 + number
        _, [status, value, token] = callers.first.pipeline([("PEXPIRE", "k", left), ("CACHE.FETCH", "k", "BETA", beta)])
        assert value == b"v"
        if status == b"REFRESH":
            elected += 1
            callers.call("CACHE.FAIL", "k", token)
        expected += math.exp(-left / (beta * (least + most) / 2))
    # Six standard deviations of a sum of independent elections, and what the load's length is not known by.
    slack = 6 * math.sqrt(expected) + expected * (most - least) / least
    assert abs(elected - expected) < slack, (elected, expected)


def test_no_early_refresh_without_beta_or_a_known_load(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 60_000)
    callers.call("PEXPIRE", "k", 500)
    assert all(callers.call("CACHE.FETCH", "k", "BETA", 1000) == hit(b"v") for _ in range(50))
