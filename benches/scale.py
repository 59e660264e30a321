"""What grows with the number of entries and what does not: the same measurements on servers of several sizes.

Every size is measured twice, with the module and without it, one after the other. Times are processor time of the server,
read before and after, for wall time on a shared machine is mostly the machine's; where nothing else says so. Values are
random bytes, which no RDB file compresses.
"""

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench_server import BenchServer
from figures import Figure
from instructions import key, ok
from raw_client import DEPTH, Connection, encode
from stalls import bystander, processor_time

GIANT = b"giant"
SHARED_BY = 100
TTL = 86_400
ROUNDS = 7
REQUESTS = 10_000
# The time to load tens of millions, to remove them, to copy them to a replica.
PATIENCE = 1800.0
POOL = random.Random(1).randbytes(1 << 20)


class Measured(NamedTuple):
    value: float
    unit: str
    detail: str = ""
    bound: float | None = None
    # Of the cost without the module, what stands in for the command.
    plain: str = ""


class Subject(NamedTuple):
    """What is asked of a server: with the module, or the nearest thing without it."""

    module: bool
    entry: Callable[[int], bytes]
    reads: dict[str, tuple[str, Callable]]
    remove: Callable[[int], bytes]


def value(number: int) -> bytes:
    start = number * 37 % (len(POOL) - 100)
    return POOL[start : start + 100]


def _template(*words: bytes | str | int) -> bytes:
    """An encoded request with places for a key, a value and a tag: encoding each anew would take longer than serving it."""
    places = {b"K" * 25: b"product:%017d", b"V" * 100: b"%b", b"T" * 17: b"category:%08d"}
    request = encode(*words)
    for mark, place in places.items():
        request = request.replace(mark, place)
    return request


TAGGED = _template("CACHE.SETTAGGED", b"K" * 25, b"V" * 100, "EX", TTL, "TAGS", 2, GIANT, b"T" * 17)
PLAIN = _template("SET", b"K" * 25, b"V" * 100, "EX", TTL)


def _neighbours(category: int) -> range:
    return range(category * SHARED_BY, (category + 1) * SHARED_BY)


WITH_MODULE = Subject(
    module=True,
    entry=lambda n: TAGGED % (n, value(n), n // SHARED_BY),
    reads={
        "GET": ("GET", lambda reply: len(reply) == 100),
        "CACHE.GET": ("CACHE.GET", lambda reply: len(reply) == 100),
        "CACHE.FETCH, hit": ("CACHE.FETCH", lambda reply: reply[0] == b"HIT"),
    },
    remove=lambda category: encode("CACHE.INVALIDATETAG", b"category:%08d" % category),
)
WITHOUT = Subject(
    module=False,
    entry=lambda n: PLAIN % (n, value(n)),
    reads={"GET": ("GET", lambda reply: len(reply) == 100)},
    remove=lambda category: encode("UNLINK", *map(key, _neighbours(category))),
)


def scale(flavour: str, sizes: list[int]) -> Iterator[Figure]:
    """The figures of each size: with the module, beside them those without it, and how they compare with the first size."""
    first: dict[str, float] = {}
    for entries in sizes:
        ours = list(_progress(_measured(flavour, entries, WITH_MODULE), entries, "with the module"))
        plain = dict(_progress(_measured(flavour, entries, WITHOUT), entries, "without the module"))
        for name, found in ours:
            parts = [found.detail] if found.detail else []
            if beside := plain.get(found.plain or name):
                parts.append(f"without the module {beside.value:,.2f}")
            if name in first and first[name]:
                parts.append(f"{found.value / first[name]:.2f}x of {sizes[0]:,} entries")
            first.setdefault(name, found.value)
            group = f"scale {entries}"
            yield Figure(group, f"{entries / 1e6:g} M: {name}", found.value, found.unit, "; ".join(parts), found.bound)


def _progress(found: Iterator[tuple[str, Measured]], entries: int, what: str) -> Iterator[tuple[str, Measured]]:
    """Says at once what was found: a run takes long, and may be cut short."""
    for name, measured in found:
        line = f"  {entries:,} entries, {what}: {name} {measured.value:,.3f} {measured.unit}; {measured.detail}"
        print(line, file=sys.stderr, flush=True)
        yield name, measured


def _measured(flavour: str, entries: int, subject: Subject) -> Iterator[tuple[str, Measured]]:
    with BenchServer(flavour, subject.module) as server:
        connection = server.connect()
        yield from _loading(server, connection, entries, subject)
        yield from _operations(server, connection, entries, subject)
        yield from _saving(server, connection)
        connection.close()
        yield from _restart(server)
        connection = server.connect()
        if connection.call("DBSIZE") != entries:
            raise RuntimeError("keys are missing after the restart")
        yield from _full_sync(server, connection, flavour, subject)
        yield from _eviction(server, connection, entries, subject)
        if subject.module:
            yield from _giant_tag(server, connection)
            if ghosts := int(connection.info("keyward_cache_ghosts")):
                raise RuntimeError(f"{ghosts} records without a key")


# Loading, bytes


def _loading(server: BenchServer, connection: Connection, entries: int, subject: Subject):
    before, begun = connection.used_memory(), time.monotonic()
    spent = _load(server, connection, map(subject.entry, range(entries)))
    how = f"of {len(spent):,} pipelines of {DEPTH}; the median takes {1000 * median(spent):.2f} ms"
    yield "longest insert", Measured(_dearest(spent), "ms", how)
    yield "loading", Measured(time.monotonic() - begun, "s", "wall time, one client")
    yield "bytes for each entry", Measured((connection.used_memory() - before) / entries, "bytes")
    if subject.module:
        size = int(connection.info("keyward_cache_metadata_bytes"))
        yield "of these the module's index", Measured(size / entries, "bytes")
    yield "resident memory", Measured(_resident(server, "VmRSS") / 1e9, "GB")


def _load(server: BenchServer, connection: Connection, requests: Iterator[bytes]) -> list[float]:
    """As `_spent`, and faster: the next pipeline is put together while the server is busy with this one."""
    spent, batch = [], list(islice(requests, DEPTH))
    while batch:
        start = processor_time(server.pid)
        connection.post(batch)
        following = list(islice(requests, DEPTH))
        connection.expect(b"+OK\r\n" * len(batch))
        spent.append(processor_time(server.pid) - start)
        batch = following
    return spent


def _spent(server: BenchServer, requests: Iterable[bytes], send, depth=DEPTH) -> list[float]:
    """Processor time of the server for each pipeline, in seconds."""
    requests, spent = iter(requests), []
    while batch := list(islice(requests, depth)):
        start = processor_time(server.pid)
        send(batch)
        spent.append(processor_time(server.pid) - start)
    return spent


def _dearest(spent: list[float]) -> float:
    """Milliseconds: the dearest pipeline, less what one usually takes."""
    return 1000 * (max(spent) - median(spent))


def _resident(server: BenchServer, field: str) -> int:
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc has no {field}")


# The cost of a command


def _operations(server: BenchServer, connection: Connection, entries: int, subject: Subject):
    draw, pipelines = random.Random(2), []

    def cost(name: str, send: Callable, build: Callable[[int], list[bytes]], after: Callable[[int], None], depth=DEPTH):
        costs, spent = [], []
        for turn in range(ROUNDS):
            requests = build(turn)
            took = _spent(server, requests, send, depth)
            costs.append(sum(took) / len(requests))
            spent += took
            after(turn)
        pipelines.append((_dearest(spent), name))
        return Measured(1e6 * median(costs), "us", f"lowest {1e6 * min(costs):.2f}, greatest {1e6 * max(costs):.2f}")

    def somewhere(_turn: int) -> list[int]:
        return [draw.randrange(entries) for _ in range(REQUESTS)]

    def nothing(_turn: int) -> None:
        pass

    for name, (command, check) in subject.reads.items():
        found = cost(
            name,
            lambda batch, check=check: connection.run(batch, check),
            lambda turn, command=command: [encode(command, key(n)) for n in somewhere(turn)],
            nothing,
        )
        yield name, found._replace(plain="GET")

    yield (
        "overwrite",
        cost("overwrite", connection.load, lambda turn: list(map(subject.entry, somewhere(turn))), nothing),
    )

    def fresh(_turn: int) -> list[bytes]:
        return [subject.entry(entries + n) for n in range(REQUESTS)]

    def take_back(_turn: int) -> None:
        connection.run(encode("UNLINK", key(entries + n)) for n in range(REQUESTS))

    yield "new key", cost("new key", connection.load, fresh, take_back)

    each = max(1, min(REQUESTS // SHARED_BY, entries // SHARED_BY // ROUNDS))
    chosen = draw.sample(range(entries // SHARED_BY), ROUNDS * each)

    def of(turn: int) -> list[int]:
        return chosen[turn * each : (turn + 1) * each]

    found = cost(
        "tag of 100",
        lambda batch: connection.run(batch, SHARED_BY.__eq__),
        lambda turn: list(map(subject.remove, of(turn))),
        lambda turn: connection.load(subject.entry(n) for category in of(turn) for n in _neighbours(category)),
        depth=1,
    )
    yield "tag of 100 invalidated", found._replace(detail=f"{found.detail}; without: UNLINK of 100 names")
    yield "invalidations per second", Measured(1e6 / found.value, "", "tags of 100 keys, of processor time")
    longest, name = max(pipelines)
    yield "longest in steady state", Measured(longest, "ms", f"a pipeline of: {name}")


def _eviction(server: BenchServer, connection: Connection, entries: int, subject: Subject):
    connection.call("CONFIG", "SET", "maxmemory", connection.used_memory(), "maxmemory-policy", "allkeys-lru")
    before = int(connection.info("evicted_keys"))
    # Few beside what is there: the backlog that the replica left behind grows meanwhile, at the cost of entries.
    written = min(5 * REQUESTS, entries // 10)
    requests = map(subject.entry, range(2 * entries, 2 * entries + written))
    spent = _spent(server, requests, connection.load)
    evicted = int(connection.info("evicted_keys")) - before
    connection.call("CONFIG", "SET", "maxmemory", 0)
    yield (
        "new key, memory full",
        Measured(1e6 * sum(spent) / written, "us", f"{evicted:,} evicted, {written:,} written"),
    )
    yield "longest, memory full", Measured(_dearest(spent), "ms")


# Files and replicas


def _saving(server: BenchServer, connection: Connection):
    start, begun = processor_time(server.pid), time.monotonic()
    if not ok(connection.call("SAVE")):
        raise RuntimeError("SAVE failed")
    computed, wall = processor_time(server.pid) - start, time.monotonic() - begun
    yield "SAVE", Measured(computed, "s", f"wall time {wall:.1f} s")
    yield "RDB file", Measured((server.folder / "dump.rdb").stat().st_size / 1e9, "GB")


def _restart(server: BenchServer):
    server.kill9()
    begun = time.monotonic()
    server.start(PATIENCE)
    wall = time.monotonic() - begun
    yield "restart", Measured(processor_time(server.pid), "s", f"wall time {wall:.1f} s")
    most, now = _resident(server, "VmHWM"), _resident(server, "VmRSS")
    yield "most memory during the load", Measured(most / 1e9, "GB", f"after it {now / 1e9:.2f} GB")


def _full_sync(server: BenchServer, connection: Connection, flavour: str, subject: Subject):
    # A load takes no more memory than what it leaves; the rest is for the fork and the buffers between the two.
    needed = 1.2 * _resident(server, "VmRSS")
    if _available() < needed:
        print(f"  no full sync: a second server would need {needed / 1e9:.0f} GB", file=sys.stderr, flush=True)
        return
    (server.folder / "dump.rdb").unlink()
    with BenchServer(flavour, subject.module) as replica:
        other = replica.connect()
        for each in (connection, other):
            # The replication cron goes by it; with 1 the figure would be rounded up to seconds.
            each.call("CONFIG", "SET", "hz", 10)
        begun = time.monotonic()
        other.call("REPLICAOF", "127.0.0.1", server.port)
        while other.info("master_link_status") != "up":
            if time.monotonic() - begun > PATIENCE:
                raise TimeoutError("the replica did not catch up")
            time.sleep(0.05)
        wall, computed = time.monotonic() - begun, processor_time(replica.pid)
        if other.call("DBSIZE") != connection.call("DBSIZE"):
            raise RuntimeError("keys are missing on the replica")
        if subject.module and (tagged := int(other.info("keyward_cache_tagged_keys"))) != other.call("DBSIZE"):
            raise RuntimeError(f"only {tagged} keys have tags on the replica")
        yield "full sync", Measured(wall, "s", f"wall time; processor time of the replica {computed:.1f} s")
        fork = int(connection.info("latest_fork_usec")) / 1000
        yield "fork for it", Measured(fork, "ms", "wall time")
        connection.call("CONFIG", "SET", "hz", 1)


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


# A tag on everything


def _giant_tag(server: BenchServer, connection: Connection):
    keys = connection.call("DBSIZE")
    with bystander(server) as longest:
        start, computed = time.monotonic(), processor_time(server.pid)
        connection.call("CACHE.INVALIDATETAG", GIANT)
        reply = 1000 * (processor_time(server.pid) - computed)
        while connection.call("DBSIZE"):
            if time.monotonic() - start > PATIENCE:
                raise TimeoutError("keys are still there")
            time.sleep(0.05)
        gone = time.monotonic()
        time.sleep(0.05)
    wait, wall = longest(start, gone)
    yield "giant tag invalidated, reply", Measured(reply, "ms", f"{keys:,} keys")
    yield "giant tag, longest wait of another", Measured(wait, "ms", f"wall time {wall:.1f} ms")
    yield "giant tag, until all keys are gone", Measured(gone - start, "s", "wall time")
