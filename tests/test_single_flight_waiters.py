"""Clients that wait for a load: each is answered once, by the event that concerns it."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator

import pytest
from raw_client import ErrorReply, RawClient
from servers import Server, eventually
from single_flight import BUSY, NONE, Callers, hit


@pytest.fixture
def callers(server: Server, protocol: int) -> Iterator[Callers]:
    with Callers(server, protocol) as callers:
        yield callers


def test_a_fill_answers_everybody_once(callers: Callers) -> None:
    token = callers.lease("k")
    waiters = [callers.wait("k") for _ in range(5)]
    assert callers.call("CACHE.FILL", "k", token, "v", "EX", 60) == 1
    for waiter in waiters:
        assert waiter.read() == hit(b"v")
        assert waiter.call("ECHO", "next") == b"next", "and nothing came between"
    assert callers.info("leases") == 0
    assert callers.waiting() == 0


@pytest.mark.parametrize(
    "write",
    [("CACHE.SET", "k", "v"), ("CACHE.MSET", 1, "k", "v"), ("CACHE.SETTAGGED", "k", "v", "EX", 9, "TAGS", 1, "t")],
)
def test_a_cache_write_by_anybody_answers(callers: Callers, write: tuple) -> None:
    token = callers.lease("k")
    waiter = callers.wait("k")
    assert callers.call(*write) in (b"OK", "OK")
    assert waiter.read() == hit(b"v")
    assert callers.call("CACHE.FILL", "k", token, "old") == 0


def test_a_negative_answer_is_for_all(callers: Callers) -> None:
    token = callers.lease("k")
    waiter = callers.wait("k")
    assert callers.call("CACHE.FILLNIL", "k", token, "EX", 60) == 1
    assert waiter.read() == NONE


def test_a_failure_with_a_message_is_told_to_all_and_keeps_others_from_trying(callers: Callers) -> None:
    token = callers.lease("k")
    waiters = [callers.wait("k") for _ in range(2)]
    assert callers.call("CACHE.FAIL", "k", token, "MSG", "database down", "RETRY", 60_000) == 1
    failed = [b"ERROR", b"database down", None]
    assert [waiter.read() for waiter in waiters] == [failed, failed]
    assert callers.call("CACHE.FETCH", "k") == failed
    callers.call("CACHE.SET", "k", "v")
    assert callers.call("CACHE.FETCH", "k") == hit(b"v")


def test_after_the_retry_time_the_next_is_elected(callers: Callers) -> None:
    callers.call("CACHE.FAIL", "k", callers.lease("k"), "MSG", "down", "RETRY", 30)
    eventually(lambda: callers.call("CACHE.FETCH", "k")[0] == b"MISS")


def test_a_failure_with_a_stale_value_is_hidden_by_it(callers: Callers) -> None:
    callers.call("CACHE.SET", "k", "v", "PX", 60_000, "GRACE", 60_000)
    callers.call("CACHE.STALE", "k")
    token = callers.call("CACHE.FETCH", "k")[2]
    strict = callers.wait("k", "STALE", "NEVER")
    assert callers.call("CACHE.FAIL", "k", token, "MSG", "down") == 1
    assert strict.read() == [b"ERROR", b"down", None]
    assert callers.call("CACHE.FETCH", "k") == [b"STALE", b"v", None]


def test_giving_up_promotes_the_oldest_alone(callers: Callers) -> None:
    token = callers.lease("k")
    first, second, third = (callers.wait("k") for _ in range(3))
    assert callers.call("CACHE.FAIL", "k", token) == 1
    status, _, token = first.read()
    assert status == b"MISS"
    assert not second.is_answered()
    assert not third.is_answered()
    assert callers.call("CACHE.FILL", "k", token, "v") == 1
    assert second.read() == third.read() == hit(b"v")


def test_a_lease_that_runs_out_promotes_the_oldest_who_lives(callers: Callers) -> None:
    callers.lease("k", "LEASE", 200)
    dead, alive, last = (callers.wait("k", "LEASE", 60_000) for _ in range(3))
    dead.close()
    eventually(lambda: callers.waiting() == 2)
    assert alive.read()[0] == b"MISS"
    assert not last.is_answered()


def test_a_killed_client_is_never_promoted(callers: Callers) -> None:
    token = callers.lease("k")
    killed = callers.connect()
    number = killed.call("CLIENT", "ID")
    killed.send("CACHE.FETCH", "k", "WAIT", 0)
    eventually(lambda: callers.waiting() == 1)
    alive = callers.wait("k")
    callers.first.pipeline([("CLIENT", "KILL", "ID", number), ("CACHE.FAIL", "k", token)])
    assert alive.read()[0] == b"MISS"


def test_waits_end(callers: Callers) -> None:
    callers.lease("k")
    assert callers.wait("k", wait_ms=200).read() == BUSY
    for how, answer in (
        ("TIMEOUT", lambda reply: reply == BUSY),
        ("ERROR", lambda reply: str(reply).startswith("UNBLOCKED")),
    ):
        client = callers.connect()
        number = client.call("CLIENT", "ID")
        client.send("CACHE.FETCH", "k", "WAIT", 0)
        eventually(lambda: callers.waiting() == 1)
        assert callers.call("CLIENT", "UNBLOCK", number, how) == 1
        assert answer(client.read())
    eventually(lambda: callers.waiting() == 0)


@pytest.mark.parametrize("event", [("FLUSHALL",), ("SWAPDB", 0, 1)], ids=lambda words: words[0])
def test_when_all_keys_go_the_oldest_is_promoted(callers: Callers, event: tuple) -> None:
    token = callers.lease("k")
    first, second = callers.wait("k"), callers.wait("k")
    callers.call(*event)
    assert first.read()[0] == b"MISS"
    assert callers.call("CACHE.FILL", "k", token, "seen before") == 0
    assert second.read() == hit(b"seen before"), "it asked before"


def test_an_invalidation_decides_who_is_answered(callers: Callers) -> None:
    old = callers.lease("k")
    before = callers.wait("k")
    callers.call("CACHE.INVALIDATE", "k")
    new = callers.lease("k")
    after = callers.wait("k")
    assert callers.call("CACHE.FILL", "k", old, "old") == 0
    assert before.read() == hit(b"old")
    assert not after.is_answered()
    assert callers.call("CACHE.FILL", "k", new, "new") == 1
    assert after.read() == hit(b"new")


def test_a_revoked_load_that_never_ends_leaves_nobody_behind(callers: Callers) -> None:
    callers.lease("k", "LEASE", 100)
    waiter = callers.wait("k")
    callers.call("CACHE.INVALIDATE", "k")
    assert waiter.read()[0] == b"MISS"


def test_a_plain_set_is_found_when_the_fill_is_refused(callers: Callers) -> None:
    token = callers.lease("k")
    waiter = callers.wait("k")
    callers.call("SET", "k", "plain")
    assert callers.call("CACHE.FILL", "k", token, "old") == 0
    assert waiter.read() == hit(b"plain")


def test_nothing_waits_in_transactions_and_scripts(callers: Callers) -> None:
    callers.lease("k")
    callers.call("MULTI")
    callers.call("CACHE.FETCH", "k", "WAIT", 0)
    assert callers.call("EXEC") == [BUSY]
    script = "return redis.call('CACHE.FETCH', KEYS[1], 'WAIT', '0')"
    assert callers.call("EVAL", script, 1, "k")[0] == b"BUSY"
    library = "#!lua name=l\nredis.register_function('f', function(keys) return redis.call('CACHE.FETCH', keys[1], 'WAIT', '0') end)"
    callers.call("FUNCTION", "LOAD", "REPLACE", library)
    assert callers.call("FCALL", "f", 1, "k")[0] == b"BUSY"
    callers.call("FUNCTION", "DELETE", "l")


def test_scripts_fill_fail_and_write(callers: Callers) -> None:
    for script, answer in (
        ("return redis.call('CACHE.FILL', KEYS[1], ARGV[1], 'v')", hit(b"v")),
        ("return redis.call('CACHE.SET', KEYS[1], 'v')", hit(b"v")),
        ("return redis.call('CACHE.FAIL', KEYS[1], ARGV[1], 'MSG', 'down', 'RETRY', '0')", [b"ERROR", b"down", None]),
    ):
        token = callers.lease("k")
        waiter = callers.wait("k")
        assert not isinstance(callers.call("EVAL", script, 1, "k", token), ErrorReply)
        assert waiter.read() == answer
        callers.call("DEL", "k")


def test_only_those_whom_a_load_served_count_as_spared(callers: Callers) -> None:
    before = callers.info("stampedes_suppressed")
    token = callers.lease("k")
    waiter = callers.wait("k")
    callers.call("CACHE.FAIL", "k", token, "MSG", "down", "RETRY", 0)
    assert waiter.read()[0] == b"ERROR"
    token = callers.lease("k")
    waiter = callers.wait("k")
    callers.call("CACHE.FILL", "k", token, "v")
    assert waiter.read() == hit(b"v")
    assert callers.info("stampedes_suppressed") == before + 1


def test_mfetch_looks_each_key_up_once(server: Server) -> None:
    with Callers(server) as callers:
        for key in "abc":
            callers.call("SET", key, key)
        before = server.info("stats")["keyspace_hits"]
        assert callers.call("CACHE.MFETCH", 3, "a", "b", "c") == [hit(b"a"), hit(b"b"), hit(b"c")]
        assert server.info("stats")["keyspace_hits"] - before == 3
        callers.call("RPUSH", "list", 1)
        reply = callers.call("CACHE.MFETCH", 2, "missing", "list")
        assert str(reply).startswith("WRONGTYPE")
        assert callers.call("CACHE.FETCH", "missing")[0] == b"MISS", "nobody was elected"


def test_a_fill_in_a_transaction_answers(callers: Callers) -> None:
    token = callers.lease("k")
    waiter = callers.wait("k")
    callers.call("MULTI")
    callers.call("CACHE.FILL", "k", token, "v")
    assert callers.call("EXEC") == [1]
    assert waiter.read() == hit(b"v")


def test_the_caps_answer_busy(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["waiters-per-key-max", "2", "waiters-max", "3", "leases-max", "2"])
    with Callers(server) as callers:
        callers.lease("a")
        callers.lease("b")
        assert callers.call("CACHE.FETCH", "c") == [b"MISS", None, None], "too many leases"
        callers.wait("a")
        callers.wait("a")
        assert callers.call("CACHE.FETCH", "a", "WAIT", 0) == BUSY
        callers.wait("b")
        assert callers.call("CACHE.FETCH", "b", "WAIT", 0) == BUSY
        assert (callers.info("waits_refused"), callers.info("leases_full")) == (2, 1)


def test_those_who_left_free_their_seats(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["waiters-per-key-max", "2"])
    with Callers(server) as callers:
        token = callers.lease("k", "LEASE", 60_000)
        for _ in range(10):
            assert callers.call("CACHE.FETCH", "k", "WAIT", 1) == BUSY
        assert callers.info("waits") == 10
        assert callers.waiting() == 0
        waiter = callers.wait("k")
        assert callers.call("CACHE.FILL", "k", token, "v") == 1
        assert waiter.read() == hit(b"v")


def test_no_negative_pushes_out_data(make_server: Callable[..., Server]) -> None:
    server = make_server(args=["negatives-max", "10"])
    with Callers(server) as callers:
        for number in range(30):
            callers.call("CACHE.FILLNIL", f"k{number}", callers.lease(f"k{number}"), "EX", 60)
        assert (callers.info("negatives"), callers.info("negatives_dropped")) == (10, 20)
        assert callers.call("CACHE.FETCH", "k29") == NONE
        assert callers.call("CACHE.FETCH", "k0")[0] == b"MISS"


def test_a_pause_puts_the_promotion_off(callers: Callers) -> None:
    callers.lease("k", "LEASE", 50)
    waiter = callers.wait("k")
    callers.call("CLIENT", "PAUSE", 300, "WRITE")
    assert waiter.read()[0] == b"MISS"


def test_the_wrong_type_is_told_to_all(callers: Callers) -> None:
    token = callers.lease("k")
    waiter = callers.wait("k")
    callers.call("RPUSH", "k", "item")
    assert callers.call("CACHE.FILL", "k", token, "v") == 0
    reply = waiter.read()
    assert isinstance(reply, ErrorReply)
    assert reply.startswith("WRONGTYPE")


def test_ten_thousand_are_answered_by_one_fill(make_server: Callable[..., Server]) -> None:
    count = 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 1000:
        pytest.skip(f"this system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 1000, hard))
    server = make_server(config=[f"maxclients {count + 100}"])
    with Callers(server) as callers:
        token = callers.lease("k", "LEASE", 60_000)
        waiters: list[RawClient] = [callers.connect() for _ in range(count)]
        for waiter in waiters:
            waiter.send("CACHE.FETCH", "k", "WAIT", 0)
        eventually(lambda: callers.waiting() == count, timeout=60)
        assert callers.call("CACHE.FILL", "k", token, "v") == 1
        assert b"\nblocked_clients:0\r" in callers.call("INFO", "clients"), "all in the turn of the fill"
        assert callers.waiting() == 0
        assert all(waiter.read() == hit(b"v") for waiter in waiters)
