"""What the server's own tools say of the module's commands: SLOWLOG, LATENCY and the statistics in INFO."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import pytest
from catalogue import EXAMPLES, make_world, typed
from raw_client import ErrorReply, RawClient
from servers import eventually

EVERYTHING = ["slowlog-log-slower-than 0", "slowlog-max-len 1000"]
# For how long clients wait, and what is taken for a wait that was counted; in microseconds.
WAITED = 1_000_000
MUCH = WAITED // 2


class Entry(NamedTuple):
    microseconds: int
    words: list[bytes]
    client_name: bytes


def slow_log(raw):
    """From the first to the last."""
    return [Entry(entry[2], entry[3], entry[5]) for entry in reversed(raw.call("SLOWLOG", "GET", -1))]


def pairs(flat):
    return dict(zip(flat[::2], flat[1::2], strict=True))


@pytest.fixture
def server(make_server):
    return make_server(config=EVERYTHING)


@pytest.fixture
def raw(server):
    with RawClient(server) as raw:
        yield raw


# Every command


def test_every_command_is_shown_under_its_name(server, raw):
    client = server.client(decode=True)
    for command, example in EXAMPLES.items():
        raw.call("FLUSHALL")
        make_world(raw)
        call = [*typed(command), *example.words()]
        for reset in (("SLOWLOG", "RESET"), ("CONFIG", "RESETSTAT")):
            assert raw.call(*reset) == "OK"
        raw.call(*call)
        logged = [entry.words for entry in slow_log(raw)]
        assert [str(word).encode() for word in call] in logged, command
        # The server's way with subcommands: cache.policy|set.
        name = command.lower()
        assert client.info("commandstats")[f"cmdstat_{name}"]["calls"] == 1
        histogram = pairs(raw.call("LATENCY", "HISTOGRAM", name))
        assert pairs(histogram[name.encode()])[b"calls"] == 1
        assert f"latency_percentiles_usec_{name}" in client.info("latencystats")


def test_the_histogram_of_a_container_has_its_subcommands(raw):
    raw.call("CACHE.POLICY", "SET", "p", "PREFIX", "p:", "EX", 10)
    raw.call("CACHE.POLICY", "LIST")
    assert set(pairs(raw.call("LATENCY", "HISTOGRAM", "cache.policy"))) == {b"cache.policy|set", b"cache.policy|list"}


def test_a_refused_command_is_counted_as_failed(server, raw):
    assert isinstance(raw.call("CACHE.SET", "k", "v", "EX", 0), ErrorReply)
    counted = server.client(decode=True).info("commandstats")["cmdstat_cache.set"]
    assert (counted["calls"], counted["failed_calls"]) == (1, 1)


def invalidate_giant(server, raw):
    fill = server.client().pipeline(transaction=False)
    for n in range(5000):
        fill.execute_command("CACHE.SETTAGGED", f"k{n}", "v", "EX", 1000, "TAGS", 1, "giant")
    fill.execute()
    assert raw.call("CACHE.INVALIDATETAG", "giant") == 5000


def test_a_slow_command_is_a_latency_event(make_server):
    """Five thousand keys take longer than a millisecond to remove, wherever this runs."""
    server = make_server(config=["latency-monitor-threshold 1", "slowlog-log-slower-than 1000"])
    with RawClient(server) as raw:
        invalidate_giant(server, raw)
        assert b"command" in [event[0] for event in raw.call("LATENCY", "LATEST")]
        assert [b"CACHE.INVALIDATETAG", b"giant"] in [entry.words for entry in slow_log(raw)]


def test_long_work_that_no_command_does_is_a_latency_event(make_server):
    """Tags that are larger than what is removed at once: the rest goes in slices, which end when a millisecond is over."""
    server = make_server(args=["invalidate-sync-keys", "1"])
    with RawClient(server) as raw:
        for threshold in (0, 1, 10_000_000):
            raw.call("CONFIG", "SET", "latency-monitor-threshold", threshold)
            raw.call("LATENCY", "RESET")
            invalidate_giant(server, raw)
            eventually(lambda: server.info("keyward")["keyward_cache_reclaim_backlog"] == 0)
            told = {event[0] for event in raw.call("LATENCY", "LATEST")}
            assert told == set() if threshold != 1 else b"keyward-reclaim" in told


# Commands that wait

# Prepares, waits (with a time to wait in the end), and ends the wait.
WAITS = {
    "CACHE.FETCH": (
        [("CACHE.FETCH", "load", "LEASE", 60_000)],
        ("CACHE.FETCH", "load", "WAIT"),
        ("CACHE.SET", "load", "v", "EX", 100),
    ),
    "CACHE.READ": (
        [],
        ("CACHE.READ", "read", "LOADER", "one", "WAIT"),
        ("CACHE.SET", "read", "v", "EX", 100),
    ),
    "CACHE.LOADS": (
        [],
        ("CACHE.LOADS", "two", "BLOCK"),
        ("CACHE.READ", "wanted", "LOADER", "two"),
    ),
    "LOCK.ACQUIRE": (
        [("LOCK.ACQUIRE", "lock", "ann", "EX", 100)],
        ("LOCK.ACQUIRE", "lock", "bob", "EX", 100, "WAIT"),
        ("LOCK.RELEASE", "lock", "ann"),
    ),
    "LOCK.MACQUIRE": (
        [("LOCK.ACQUIRE", "lock:2", "ann", "EX", 100)],
        ("LOCK.MACQUIRE", 2, "lock:1", "lock:2", "bob", "EX", 100, "WAIT"),
        ("LOCK.RELEASE", "lock:2", "ann"),
    ),
    "RATELIMIT.CHECK": (
        [("RATELIMIT.CHECK", "limit", 1, "EX", 100)],
        ("RATELIMIT.CHECK", "limit", 1, "EX", 100, "WAIT"),
        ("RATELIMIT.RESET", "limit"),
    ),
    "RATELIMIT.ENTER": (
        [("RATELIMIT.ENTER", "slots", "ann", "LIMIT", 1, "EX", 100)],
        ("RATELIMIT.ENTER", "slots", "bob", "LIMIT", 1, "EX", 100, "WAIT"),
        ("RATELIMIT.LEAVE", "slots", "ann"),
    ),
    "WRITEBEHIND.CLAIM": (
        [],
        ("WRITEBEHIND.CLAIM", "queue", "ann", "BLOCK"),
        ("WRITEBEHIND.SET", "queue", "dirty", "v"),
    ),
}
# Told as such, for what it does for clients; it never waits.
NEVER_WAITS = {"CACHE.MFETCH"}


def test_these_are_the_commands_that_wait(raw):
    names = [command for command in EXAMPLES if "|" not in command]
    infos = zip(names, raw.call("COMMAND", "INFO", *names), strict=True)
    assert {name for name, info in infos if "blocking" in info[2]} == set(WAITS) | NEVER_WAITS


def clock(raw):
    seconds, microseconds = map(int, raw.call("TIME"))
    return seconds * 1_000_000 + microseconds


@pytest.fixture
def waiting(server, raw):
    """waiting(command, most_ms): a client that has asked for what it has to wait for."""
    with ExitStack() as clients:

        def wait(command, most_ms):
            prepare, words, _ = WAITS[command]
            for call in prepare:
                assert not isinstance(raw.call(*call), ErrorReply)
            client = clients.enter_context(RawClient(server))
            client.call("CLIENT", "SETNAME", "waiter")
            client.send(*words, most_ms)
            return client

        yield wait


def assert_not_slow(server, raw, commands):
    entries = [entry for entry in slow_log(raw) if entry.client_name == b"waiter"]
    logged = [entry.words[0].decode() for entry in entries if entry.words]
    # In the order in which they end.
    assert sorted(command for command in logged if command != "CLIENT") == sorted(commands)
    assert max(entry.microseconds for entry in entries) < MUCH
    client = server.client(decode=True)
    statistics = client.info("commandstats")
    for command in commands:
        name = command.lower()
        assert statistics[f"cmdstat_{name}"]["usec"] < MUCH
        assert client.info("latencystats")[f"latency_percentiles_usec_{name}"]["p99.9"] < MUCH


def test_a_wait_that_is_answered_is_not_slow(server, raw, waiting):
    clients = [waiting(command, 200_000) for command in WAITS]
    eventually(lambda: server.info("clients")["blocked_clients"] == len(clients))
    begun = clock(raw)
    eventually(lambda: clock(raw) > begun + WAITED)
    for _, _, end in WAITS.values():
        assert not isinstance(raw.call(*end), ErrorReply)
    assert [reply for reply in (client.read() for client in clients) if isinstance(reply, ErrorReply)] == []
    assert_not_slow(server, raw, list(WAITS))
    # Redis 7.0 takes whoever is answered for a failure, and logs him once more, without a word: both is CLIENT UNBLOCK's doing.
    odd = server.version < (7, 2)
    statistics = server.client(decode=True).info("commandstats")
    failed = [statistics[f"cmdstat_{command.lower()}"]["failed_calls"] for command in WAITS]
    assert failed == [int(odd)] * len(WAITS)
    assert len([entry for entry in slow_log(raw) if not entry.words]) == (len(WAITS) if odd else 0)


def test_a_wait_that_runs_out_is_not_slow(server, raw, waiting):
    # This one knows at once that no wait is long enough.
    commands = [command for command in WAITS if command != "RATELIMIT.CHECK"]
    begun = clock(raw)
    clients = [waiting(command, WAITED // 1000) for command in commands]
    assert [reply for reply in (client.read() for client in clients) if isinstance(reply, ErrorReply)] == []
    assert clock(raw) >= begun + WAITED
    assert_not_slow(server, raw, commands)
