"""Waits: how long a command holds everybody else up.

Wall time on a shared machine is mostly the machine's: a server that was preempted for 50 ms has not stalled anybody by
itself. So a wait is what the server computed while somebody waited, in processor time; wall time stands beside it.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import median
from typing import NamedTuple

import redis
from bench_server import BenchServer
from figures import Figure
from instructions import RECIPES, TTL, VALUE, key, set_ex
from raw_client import DEPTH, Connection, encode

GIANT = b"giant"
PING_PAUSE = 0.0003


class Wait(NamedTuple):
    """One PING of the bystander: when it was sent and answered, and how long the server computed in between."""

    start: float
    end: float
    server: float


class Bystander:
    """Another client, in a process of its own: it PINGs all the time and remembers every wait over a millisecond."""

    def __init__(self, server: BenchServer):
        self._stop = multiprocessing.Event()
        self._receiver, sender = multiprocessing.Pipe(duplex=False)
        arguments = server.port, server.pid, self._stop, sender
        self._process = multiprocessing.Process(target=_ping_until, args=arguments, daemon=True)
        self._process.start()
        self._receiver.recv()  # it is connected

    def finish(self) -> list[Wait]:
        self._stop.set()
        waits = self._receiver.recv()
        self._process.join()
        return waits


def _ping_until(port: int, pid: int, stop, sender) -> None:
    connection, waits = Connection(port), []
    sender.send("ready")
    while not stop.is_set():
        start, computed = time.monotonic(), processor_time(pid)
        connection.call("PING")
        end = time.monotonic()
        if end - start > 0.001:
            waits.append(Wait(start, end, processor_time(pid) - computed))
        time.sleep(PING_PAUSE)
    sender.send(waits)


@contextmanager
def bystander(server: BenchServer) -> Iterator[Callable[[float, float], tuple[float, float]]]:
    """Inside the block another client is waiting; after it, `longest(since, until)` gives its longest wait in
    milliseconds: of the server's processor time, and of wall time."""
    other, waits = Bystander(server), []

    def longest(since: float, until: float) -> tuple[float, float]:
        within = [wait for wait in waits if wait.end >= since and wait.start <= until]
        computed = max((wait.server for wait in within), default=0.001)
        return 1000 * computed, 1000 * max((wait.end - wait.start for wait in within), default=0.001)

    try:
        yield longest
    finally:
        waits += other.finish()


class Invalidation(NamedTuple):
    """One tag gone. Milliseconds, processor time of the server and wall; seconds until no key was left."""

    removed: int
    reply: tuple[float, float]
    longest_wait: tuple[float, float]
    gone: float
    stale: int


def invalidate_tag(flavour: str, keys: int, rounds: int) -> Iterator[Figure]:
    """A tag of `keys` keys goes: the reply, what others wait, whether reads are right at once, when memory is free."""
    runs = [_invalidate_once(flavour, keys) for _ in range(rounds)]
    reply, wait = max(run.reply for run in runs), max(run.longest_wait for run in runs)
    how = f"{keys:,} keys; the reply said {runs[0].removed:,}"
    yield Figure("invalidate", "INVALIDATETAG, reply", reply[0], "ms", f"{how}; {_wall(reply)}", 15)
    yield Figure("invalidate", "longest wait of another client", wait[0], "ms", _wall(wait), 15)
    yield Figure("invalidate", "stale CACHE.GET right after the reply", sum(run.stale for run in runs), "values", "", 0)
    yield Figure("invalidate", "until all keys are gone", max(run.gone for run in runs), "s", "wall time", 10)
    yield from _invalidate_recipe(flavour, keys, "one script", _by_script)
    yield from _invalidate_recipe(flavour, keys, "pipeline (redis-py)", _by_pipeline)


def _wall(wait: tuple[float, float]) -> str:
    return f"processor time of the server; wall time {wait[1]:,.1f} ms"


def _invalidate_once(flavour: str, keys: int) -> Invalidation:
    with BenchServer(flavour, True) as server:
        connection = server.connect()
        connection.load(
            encode("CACHE.SETTAGGED", key(n), VALUE, "EX", TTL, "TAGS", 2, GIANT, b"category:%d" % (n // 100))
            for n in range(keys)
        )
        reads = [encode("CACHE.GET", key(n)) for n in range(0, keys, max(1, keys // 1000))]
        values = []
        with bystander(server) as longest:
            start, computed = time.monotonic(), processor_time(server.pid)
            removed = connection.call("CACHE.INVALIDATETAG", GIANT)
            reply = 1000 * (processor_time(server.pid) - computed), 1000 * (time.monotonic() - start)
            connection.run(reads, lambda value: values.append(value) is None)
            gone = _wait_until_empty(connection)
            time.sleep(0.05)
        stale = sum(value is not None for value in values)
        return Invalidation(removed, reply, longest(start, gone), gone - start, stale)


def _wait_until_empty(connection: Connection, limit: float = 120.0) -> float:
    deadline = time.monotonic() + limit
    while connection.call("DBSIZE"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"keys are still there after {limit:.0f} s")
        time.sleep(0.005)
    return time.monotonic()


def _invalidate_recipe(flavour: str, keys: int, name: str, invalidate: Callable) -> Iterator[Figure]:
    with BenchServer(flavour, False) as server:
        connection = server.connect()
        connection.load(set_ex(n) for n in range(keys))
        connection.load((encode("SADD", GIANT, key(n)) for n in range(keys)), reply=b":1\r\n")
        with bystander(server) as longest:
            start = time.monotonic()
            invalidate(server.port, connection)
            end = time.monotonic()
            time.sleep(0.05)
        if connection.call("DBSIZE"):
            raise RuntimeError(f"{name} left keys behind")
        yield Figure("invalidate", f"  usual recipe, {name}", end - start, "s", "until all keys are gone")
        wait = longest(start, end)
        yield Figure("invalidate", f"  usual recipe, {name}: longest wait of another", wait[0], "ms", _wall(wait))


def _by_script(_port: int, connection: Connection) -> None:
    connection.call("EVAL", (RECIPES / "invalidate_tag.lua").read_bytes(), 1, GIANT)


def _by_pipeline(port: int, _connection: Connection) -> None:
    """As caching guides write it: read the set, DEL each member in a pipeline, drop the set."""
    with redis.Redis(port=port) as client:
        pipe = client.pipeline()
        for member in client.smembers(GIANT):
            pipe.delete(member)
        pipe.delete(GIANT)
        pipe.execute()


def big_insert(flavour: str, entries: int) -> Iterator[Figure]:
    """The longest single insert while `entries` go in, in processor time of the server.

    The slow log would not do: it counts wall time, and the longest of five million is the one preempted longest.
    """

    def tagged(n: int) -> bytes:
        return encode("CACHE.SETTAGGED", key(n), VALUE, "EX", TTL, "TAGS", 2, GIANT, b"category:%d" % (n // 100))

    bare, ours = _longest_insert(flavour, False, set_ex, entries), _longest_insert(flavour, True, tagged, entries)
    how = f"{entries:,} entries, one tag on all of them: {ours:.1f} ms; SET ... EX without the module: {bare:.1f} ms"
    yield Figure("big-insert", "longest insert, beyond SET ... EX", max(0.0, ours - bare), "ms", how, 10)


def _longest_insert(flavour: str, module: bool, entry: Callable[[int], bytes], entries: int) -> float:
    """Milliseconds: the dearest pipeline of DEPTH inserts, less what a pipeline usually takes."""
    with BenchServer(flavour, module) as server:
        connection, requests, spent = server.connect(), (entry(n) for n in range(entries)), []
        while batch := list(islice(requests, DEPTH)):
            start = processor_time(server.pid)
            connection.load(batch)
            spent.append(processor_time(server.pid) - start)
        return 1000 * (max(spent) - median(spent))


def processor_time(pid: int) -> float:
    """Seconds a process has spent on a processor; the clock id is that of clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)
