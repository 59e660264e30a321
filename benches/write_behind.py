"""Write-behind: what a write costs, and how long it takes to find what the database lacks."""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

from bench_server import BenchServer
from figures import Figure
from instructions import RECIPES, TTL, VALUE, Laboratory, key, ratio, set_ex
from raw_client import Connection, ReplyError, encode
from stalls import bystander, processor_time

QUEUE, WORKER, DIRTY = b"wb", b"worker-1", b"dirty"
BATCH = 1000
FIND_BOUND_MS = 1


def put(number: int) -> bytes:
    return encode("WRITEBEHIND.SET", QUEUE, key(number), VALUE, "EX", TTL)


def is_version(reply) -> bool:
    return isinstance(reply, int) and reply > 0


def claim(connection: Connection) -> list[list]:
    return connection.call("WRITEBEHIND.CLAIM", QUEUE, WORKER, "COUNT", BATCH, "LEASE", 3_600_000)


def ack(connection: Connection, records: list[list]) -> None:
    pairs = [word for record in records for word in record[:2]]
    if connection.call("WRITEBEHIND.ACK", QUEUE, WORKER, *pairs) != len(records):
        raise ReplyError("not all were acked")


def drain(connection: Connection, _turn: int = 0) -> None:
    while records := claim(connection):
        ack(connection, records)


def writes(lab: Laboratory) -> Iterator[Figure]:
    """Writes of keys that are cached: clean before, so that a record is made, and dirty, so that the write joins one."""
    group, numbers = "writebehind", range(min(lab.requests, lab.fixture))
    against = "SET ... EX of a key that is there"
    base = lab.cost(False, lambda _: [set_ex(n) for n in numbers])
    requests = [put(n) for n in numbers]
    clean = lab.cost(True, lambda _: requests, is_version, drain)
    dirty = lab.cost(True, lambda _: requests, is_version)
    yield ratio(group, "WRITEBEHIND.SET of a clean key / SET EX", clean, base, against)
    yield ratio(group, "WRITEBEHIND.SET of a dirty key / SET EX", dirty, base, against)

    def made_dirty(connection: Connection, _turn: int) -> None:
        connection.call("DEL", QUEUE)
        connection.run(requests, is_version)

    claims = [encode("WRITEBEHIND.CLAIM", QUEUE, WORKER, "COUNT", BATCH)] * (len(numbers) // BATCH)
    cost = lab.cost(True, lambda _: claims, lambda reply: len(reply) == BATCH, made_dirty, operations=len(numbers))
    yield ratio(group, f"WRITEBEHIND.CLAIM of {BATCH:,}, each record / SET EX", cost, base, against)
    yield from _write_recipes(lab, group, numbers, base, against)


def _write_recipes(lab: Laboratory, group: str, numbers: Iterable[int], base: float, against: str) -> Iterator[Figure]:
    lines = [line for line in (RECIPES / "dirty_flag.pipeline").read_text().splitlines() if line[:1] not in ("", "#")]

    def flagged(number: int) -> list[bytes]:
        words = {"{key}": b"flagged:" + key(number), "{value}": VALUE, "{ttl}": TTL}
        return [encode(*(words.get(word, word) for word in line.split())) for line in lines]

    def cleaned(connection: Connection, _turn: int) -> None:
        connection.run((encode("HSET", b"flagged:" + key(n), "dirty", 0) for n in numbers), depth=512)

    requests = [request for number in numbers for request in flagged(number)]
    cost = lab.cost(False, lambda _: requests, None, cleaned, operations=len(numbers))
    yield ratio(group, f"  usual recipe, dirty flag in a hash, pipeline of {len(lines)} / SET EX", cost, base, against)

    connection = lab.connection(False)
    sha = connection.call("SCRIPT", "LOAD", (RECIPES / "dirty_set.lua").read_bytes())
    scripts = [encode("EVALSHA", sha, 2, key(n), DIRTY, VALUE, TTL) for n in numbers]

    def emptied(connection: Connection, _turn: int) -> None:
        connection.call("DEL", DIRTY)

    how = "  usual recipe, dirty set, Lua"
    yield ratio(group, f"{how}, clean key / SET EX", lab.cost(False, lambda _: scripts, None, emptied), base, against)
    yield ratio(group, f"{how}, dirty key / SET EX", lab.cost(False, lambda _: scripts), base, against)


class Search(NamedTuple):
    """One way to find what is dirty: `prepare` is not measured."""

    name: str
    where: str
    find: Callable[[Connection], list]
    prepare: Callable[[Connection], object] = lambda _connection: None


class Found(NamedTuple):
    """Milliseconds of the server's processor time; moments."""

    spent: float
    start: float
    end: float


def next_dirty(flavour: str, keys: int, rounds: int) -> Iterator[Figure]:
    """The next thousand that the database lacks: where a thousand of `keys` cached keys are dirty, and where all of them are."""
    few, all_of_them = f"{BATCH:,} of {keys:,} keys are dirty", f"all of {keys:,} keys are dirty"
    dirty = range(0, keys, keys // BATCH)
    with BenchServer(flavour, True) as server:
        connection = server.connect()
        connection.load(set_ex(n) for n in range(keys))

        def make_dirty(connection: Connection) -> None:
            connection.call("DEL", QUEUE)
            connection.run((put(n) for n in dirty), is_version)

        yield from _searched(
            server, connection, Search("WRITEBEHIND.CLAIM", few, claim, make_dirty), rounds, FIND_BOUND_MS
        )
        connection.run((put(n) for n in range(keys)), is_version, depth=512)
        yield from _searched(server, connection, Search("WRITEBEHIND.CLAIM", all_of_them, claim), rounds, FIND_BOUND_MS)
    with BenchServer(flavour, False) as server:
        connection = server.connect()
        connection.load(set_ex(n) for n in range(keys))
        connection.load(encode("SET", b"dirty:" + key(n), 1) for n in dirty)
        yield from _searched(server, connection, Search("  usual recipe, KEYS dirty:*", few, _by_keys), min(rounds, 3))
        yield from _searched(
            server, connection, Search("  usual recipe, SCAN dirty:* COUNT 1000", few, _by_scan), min(rounds, 3)
        )
        connection.run((encode("SADD", DIRTY, key(n)) for n in range(keys)), depth=512)
        sha = connection.call("SCRIPT", "LOAD", (RECIPES / "take_dirty.lua").read_bytes())
        take = Search("  usual recipe, dirty set, Lua", all_of_them, partial(_by_script, sha))
        yield from _searched(server, connection, take, rounds)


def _searched(
    server: BenchServer, connection: Connection, search: Search, rounds: int, bound: float | None = None
) -> Iterator[Figure]:
    """Half of the rounds alone, for a bystander costs the server time as well; half with one, who tells how long others wait."""
    alone = [_found(server, connection, search) for _ in range(rounds)]
    with bystander(server) as longest:
        watched = [_found(server, connection, search) for _ in range(rounds)]
    spent, wall = [found.spent for found in alone], [1000 * (found.end - found.start) for found in alone]
    how = f"{search.where}; the worst of {rounds} {max(spent):.2f} ms; wall time {median(wall):.1f} ms"
    yield Figure("next-dirty", f"{search.name}: the next {BATCH:,}", median(spent), "ms", how, bound)
    wait = max(longest(found.start, found.end) for found in watched)
    how = f"processor time of the server; wall time {wait[1]:.1f} ms"
    yield Figure("next-dirty", f"{search.name}: longest wait of another", wait[0], "ms", how)


def _found(server: BenchServer, connection: Connection, search: Search) -> Found:
    search.prepare(connection)
    start, computed = time.monotonic(), processor_time(server.pid)
    found = search.find(connection)
    spent, end = 1000 * (processor_time(server.pid) - computed), time.monotonic()
    if len(found) != BATCH:
        raise ReplyError(f"{search.name} found {len(found)}, not {BATCH}")
    return Found(spent, start, end)


def _by_keys(connection: Connection) -> list:
    return connection.call("KEYS", "dirty:*")


def _by_scan(connection: Connection) -> list:
    found, cursor = [], b"0"
    while True:
        cursor, batch = connection.call("SCAN", cursor, "MATCH", "dirty:*", "COUNT", BATCH)
        found += batch
        if cursor == b"0":
            return found


def _by_script(sha: bytes, connection: Connection) -> list:
    return connection.call("EVALSHA", sha, 1, DIRTY, BATCH)[0]
