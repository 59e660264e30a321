"""Bytes: how much used_memory grows, on fresh servers, divided by what was put in."""

import time
from collections.abc import Callable, Iterator

from bench_server import BenchServer
from figures import Figure
from instructions import MINUTE_US, RECIPES, TTL, VALUE, key, set_ex
from raw_client import Connection, encode


def entry_bytes(flavour: str, entries: int) -> Iterator[Figure]:
    """What two tags cost beside the value, with 100 members in every tag."""

    def first_tag(n: int) -> bytes:
        return b"category:%d" % (n // 100)

    def second_tag(n: int) -> bytes:
        return b"vendor:%d" % (n % (entries // 100))

    def tagged(connection: Connection) -> None:
        connection.load(
            encode("CACHE.SETTAGGED", key(n), VALUE, "EX", TTL, "TAGS", 2, first_tag(n), second_tag(n))
            for n in range(entries)
        )

    def plain(connection: Connection) -> None:
        connection.load(set_ex(n) for n in range(entries))

    def with_sets(connection: Connection) -> None:
        plain(connection)
        for tag in (first_tag, second_tag):
            connection.load((encode("SADD", b"tag:" + tag(n), key(n)) for n in range(entries)), reply=b":1\r\n")

    def growth(module: bool, fill: Callable[[Connection], None]) -> float:
        with BenchServer(flavour, module) as server:
            return _growth(server.connect(), fill) / entries

    bare = growth(False, plain)
    how = f"{entries:,} entries, beyond SET ... EX on a server without the module ({bare:.1f} bytes)"
    yield Figure("entry-bytes", "metadata of an entry with 2 tags", growth(True, tagged) - bare, "bytes", how, 80)
    yield Figure("entry-bytes", "  usual recipe, tag sets", growth(False, with_sets) - bare, "bytes", how)


def limiter_bytes(flavour: str, seconds: int) -> Iterator[Figure]:
    """A limiter that has seen 1000 requests, spread over its whole window, so that every tick holds some."""
    limiters, requests = 200, 1000

    def spread(connection: Connection) -> None:
        checks = [encode("RATELIMIT.CHECK", b"client:%018d" % n, requests, "EX", seconds) for n in range(limiters)]
        start = time.monotonic()
        for turn in range(requests):
            # The window is real time; the last request must come before the first one leaves it.
            time.sleep(max(0.0, start + turn * seconds * 0.95 / requests - time.monotonic()))
            connection.run(checks, lambda reply: reply[0] == 1)

    def sorted_set(connection: Connection) -> None:
        sha = connection.call("SCRIPT", "LOAD", (RECIPES / "sliding_window.lua").read_bytes())
        for n in range(limiters):
            name = b"client:%018d" % n
            connection.run(
                (encode("EVALSHA", sha, 1, name, requests, MINUTE_US, f"request:{i}") for i in range(requests)),
                (1).__eq__,
            )

    how = f"{limiters} limiters, 1000 requests each over {seconds} s; key and name included"
    with BenchServer(flavour, True) as server:
        yield Figure(
            "limiter-bytes", "limiter of 1000", _growth(server.connect(), spread) / limiters, "bytes", how, 1536
        )
    with BenchServer(flavour, False) as server:
        size = _growth(server.connect(), sorted_set) / limiters
        yield Figure(
            "limiter-bytes", "  usual recipe, sorted set", size, "bytes", f"{limiters} limiters, 1000 requests each"
        )


def throttle_bytes(flavour: str, limiters: int, redis_cell: str | None) -> Iterator[Figure]:
    """A limit of CL.THROTTLE in use: its key, its string and its expiry."""

    def called(connection: Connection) -> None:
        calls = [encode("CL.THROTTLE", b"client:%018d" % n, 100, 1, 3600) for n in range(limiters)]
        for _ in range(2):
            connection.run(calls, lambda reply: reply[0] == 0)

    how = f"{limiters:,} limits, called twice each; key and name included"
    with BenchServer(flavour, True) as server:
        yield Figure("throttle", "limit of CL.THROTTLE", _growth(server.connect(), called) / limiters, "bytes", how)
    if redis_cell:
        with BenchServer(flavour, False, peer=redis_cell) as server:
            yield Figure("throttle", "  redis-cell", _growth(server.connect(), called) / limiters, "bytes", how)


def _growth(connection: Connection, fill: Callable[[Connection], None]) -> int:
    before = connection.used_memory()
    fill(connection)
    return connection.used_memory() - before
