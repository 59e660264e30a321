"""Waits: how long a command holds everybody else up. These are times, so they wobble; each comes with its noise floor."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import median

import redis
from bench_server import BenchServer
from figures import Figure
from instructions import RECIPES, TTL, VALUE, key, set_ex
from raw_client import DEPTH, Connection, encode

GIANT = b"giant"
PING_PAUSE = 0.0003


class Bystander:
    """Another client, in a process of its own: it PINGs all the time and remembers every wait over a millisecond."""

    def __init__(self, port: int):
        self._stop = multiprocessing.Event()
        self._receiver, sender = multiprocessing.Pipe(duplex=False)
        self._process = multiprocessing.Process(target=_ping_until, args=(port, self._stop, sender), daemon=True)
        self._process.start()
        self._receiver.recv()  # it is connected

    def finish(self) -> list[tuple[float, float]]:
        """The (start, end) of every long wait, on the clock of time.monotonic."""
        self._stop.set()
        waits = self._receiver.recv()
        self._process.join()
        return waits


def _ping_until(port: int, stop, sender) -> None:
    connection, waits = Connection(port), []
    sender.send("ready")
    while not stop.is_set():
        start = time.monotonic()
        connection.call("PING")
        end = time.monotonic()
        if end - start > 0.001:
            waits.append((start, end))
        time.sleep(PING_PAUSE)
    sender.send(waits)


@contextmanager
def bystander(port: int) -> Iterator[Callable[[float, float], float]]:
    """Inside the block another client is waiting; after it, `longest(since, until)` is its longest wait in milliseconds."""
    other, waits = Bystander(port), []

    def longest(since: float, until: float) -> float:
        return max((1000 * (end - start) for start, end in waits if end >= since and start <= until), default=1.0)

    try:
        yield longest
    finally:
        waits += other.finish()


def invalidate_tag(flavour: str, keys: int) -> Iterator[Figure]:
    """A tag of `keys` keys goes: the reply, what others wait, whether reads are right at once, when memory is free."""
    group = "invalidate"
    with BenchServer(flavour, True) as server:
        connection = server.connect()
        connection.load(
            encode("CACHE.SETTAGGED", key(n), VALUE, "EX", TTL, "TAGS", 2, GIANT, b"category:%d" % (n // 100))
            for n in range(keys)
        )
        sample = range(0, keys, max(1, keys // 1000))
        reads = [encode("CACHE.GET", key(n)) for n in sample]
        stale = []
        with bystander(server.port) as longest:
            idle = time.monotonic()
            time.sleep(2)
            start = time.monotonic()
            removed = connection.call("CACHE.INVALIDATETAG", GIANT)
            replied = time.monotonic()
            connection.run(reads, lambda reply: stale.append(reply) is None if reply is not None else True)
            gone = _wait_until_empty(connection)
            time.sleep(0.05)
        how = f"{keys:,} keys; the reply said {removed:,}"
        noise = longest(idle, start)
        yield Figure(group, "INVALIDATETAG, reply", 1000 * (replied - start), "ms", how, 15)
        yield Figure(group, "longest wait of another client", longest(start, gone), "ms", f"idle: {noise:.1f} ms", 15)
        yield Figure(group, "stale CACHE.GET right after the reply", len(stale), f"of {len(reads)}", "", 0)
        yield Figure(group, "until all keys are gone", gone - start, "s", "", 5)
    yield from _invalidate_recipe(flavour, keys, "one script", _by_script)
    yield from _invalidate_recipe(flavour, keys, "pipeline (redis-py)", _by_pipeline)


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
        with bystander(server.port) as longest:
            start = time.monotonic()
            invalidate(server.port, connection)
            end = time.monotonic()
            time.sleep(0.05)
        if connection.call("DBSIZE"):
            raise RuntimeError(f"{name} left keys behind")
        yield Figure("invalidate", f"  usual recipe, {name}", end - start, "s", "until all keys are gone")
        yield Figure("invalidate", f"  usual recipe, {name}: longest wait of another", longest(start, end), "ms")


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

    The slow log would not do: it counts wall time, and on a busy machine the longest of five million commands is the one
    that was preempted longest.
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
            start = _processor_time(server.pid)
            connection.load(batch)
            spent.append(_processor_time(server.pid) - start)
        return 1000 * (max(spent) - median(spent))


def _processor_time(pid: int) -> float:
    """Seconds a process has spent on a processor; the clock id is that of clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)
