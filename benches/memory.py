"""Bytes: how much used_memory grows, on fresh servers, divided by what was put in."""

import time
from collections.abc import Callable, Iterator

from bench_server import BenchServer
from figures import Figure
from instructions import RECIPES, TTL, VALUE, key, set_ex
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
    """What one limiter takes, key and name included."""
    many = 12_000
    yield _limiter(flavour, True, "limiter, GCRA of 100", many, _asked("GCRA", many), 160)
    yield _limiter(flavour, True, "limiter, FIXED of 100", many, _asked("FIXED", many))
    yield _limiter(
        flavour, False, "  usual recipe, GCRA in Lua", many, _scripted("gcra.lua", many, 1, 10_000_000_000, 100)
    )
    few = 200
    for limit, bound in ((100, None), (1000, 1536)):
        spread = _in_steady_use(few, limit, seconds)
        how = f"each asked {2 * limit:,} times, evenly for two windows of {seconds} s"
        yield _limiter(flavour, True, f"limiter, SLIDING of {limit}", few, spread, bound, how)
    for limit in (100, 1000):
        log = _scripted("sliding_window.lua", few, limit, limit, 3_600_000_000)
        yield _limiter(flavour, False, f"  usual recipe, sorted set of {limit}", few, log, how=f"{limit} members each")


def _limiter(flavour, module, name, limiters, fill, bound=None, how="each asked once") -> Figure:
    with BenchServer(flavour, module) as server:
        size = _growth(server.connect(), fill) / limiters
    return Figure("limiter-bytes", name, size, "bytes", f"{limiters:,} limiters, {how}; key and name included", bound)


def _client(number: int) -> bytes:
    return b"client:%018d" % number


def _asked(algorithm: str, limiters: int) -> Callable[[Connection], None]:
    checks = [encode("RATELIMIT.CHECK", _client(n), algorithm, 100, "EX", 1_000_000) for n in range(limiters)]

    def fill(connection: Connection) -> None:
        connection.run(checks, lambda reply: reply[0] == 1)

    return fill


def _in_steady_use(limiters: int, limit: int, seconds: int) -> Callable[[Connection], None]:
    """At the rate of the limit, so that every tick holds some and old ones leave; some few are denied."""
    checks = [encode("RATELIMIT.CHECK", _client(n), limit, "EX", seconds) for n in range(limiters)]

    def fill(connection: Connection) -> None:
        start = time.monotonic()
        for turn in range(2 * limit):
            time.sleep(max(0.0, start + turn * seconds / limit - time.monotonic()))
            connection.run(checks, depth=limiters)

    return fill


def _scripted(recipe: str, limiters: int, requests: int, *arguments: int) -> Callable[[Connection], None]:
    def fill(connection: Connection) -> None:
        sha = connection.call("SCRIPT", "LOAD", (RECIPES / recipe).read_bytes())
        for n in range(limiters):
            asked = [encode("EVALSHA", sha, 1, _client(n), *arguments, f"request:{i}") for i in range(requests)]
            connection.run(asked, (1).__eq__)

    return fill


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
