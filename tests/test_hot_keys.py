"""CACHE.HOT: the most read keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from raw_client import RawClient
from servers import Server, upkeep_passes


@pytest.fixture
def raw(server: Server, protocol: int) -> Iterator[RawClient]:
    with RawClient(server, protocol) as raw:
        yield raw


def test_every_kind_of_cache_read_counts_and_the_most_read_come_first(server, raw):
    raw.call("CACHE.SET", "hot", "v")
    raw.call("CACHE.SET", "warm", "v")
    upkeep_passes(server)
    raw.pipeline([("CACHE.GET", "hot")] * 3 + [("CACHE.MGET", "hot", "warm"), ("CACHE.FETCH", "hot")])
    raw.pipeline([("CACHE.MFETCH", 2, "hot", "warm"), ("CACHE.READ", "hot", "LOADER", "l"), ("GET", "hot")])
    raw.call("CACHE.GET", "missing")
    assert raw.call("CACHE.HOT") == [[b"hot", 7], [b"warm", 2], [b"missing", 1]]
    assert raw.call("CACHE.HOT", "COUNT", 1) == [[b"hot", 7]]
    assert raw.call("CACHE.HOT", "PREFIX", "wa", "COUNT", 5) == [[b"warm", 2]]
    assert raw.call("CACHE.HOT", "PREFIX", "none") == []


def test_each_database_has_its_own_which_go_along_with_swapdb(server, raw):
    upkeep_passes(server)
    raw.call("CACHE.GET", "zero")
    with RawClient(server, db=5) as five:
        five.call("CACHE.GET", "five")
        assert five.call("CACHE.HOT") == [[b"five", 1]]
        raw.call("SWAPDB", 0, 5)
        assert five.call("CACHE.HOT") == [[b"zero", 1]]
    raw.call("FLUSHDB")
    assert raw.call("CACHE.HOT") == []


def test_a_million_reads_of_many_keys_leave_a_bounded_list_with_the_hot_ones_first(make_server):
    server = make_server()
    with RawClient(server) as raw:
        for round_ in range(100):
            once = [("CACHE.GET", f"once:{round_}:{i}") for i in range(500)]
            hot = [("CACHE.GET", f"hot:{i}") for i in range(5)] * 100
            raw.pipeline(once + hot)
        found = raw.call("CACHE.HOT", "COUNT", 1_000_000)
        assert len(found) <= 2048
        assert {key for key, _ in found[:5]} == {b"hot:%d" % i for i in range(5)}
        # One in 16 reads was counted: the deviation of 10 000 reads is below 400, and ten of those never come.
        assert all(6_000 <= reads <= 14_000 for _, reads in found[:5])
        assert server.info("keyward_cache")["keyward_cache_hot_keys"] == len(found)


def test_keys_that_the_caller_may_not_read_are_passed_over(make_server):
    server = make_server()
    with RawClient(server) as raw:
        upkeep_passes(server)
        raw.pipeline([("CACHE.GET", "secret")] * 3 + [("CACHE.GET", "mine:1")])
        raw.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", "+@all", "~mine:*")
        raw.call("AUTH", "alice", "secret")
        assert raw.call("CACHE.HOT", "COUNT", 1) == [[b"mine:1", 1]]


@pytest.mark.parametrize("options", [("COUNT", 0), ("COUNT", -1)])
def test_a_count_below_one_is_refused(raw, options):
    assert raw.call("CACHE.HOT", *options) == "ERR COUNT must be an integer from 1 to 9223372036854775807"


def test_unknown_and_repeated_options_are_refused(raw):
    for options in (("MATCH", "x"), ("COUNT", 1, "COUNT", 1), ("PREFIX",)):
        assert raw.call("CACHE.HOT", *options) == "ERR syntax error"
