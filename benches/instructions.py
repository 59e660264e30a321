"""Instructions per command, counted by callgrind for the whole server.

Times on shared machines contradict themselves; instructions do not. Each cost is the median of some rounds, and each
ratio compares two servers of the same binary in the same run: one with the module, one without.
Both hold the same number of keys (tagged where there is a module), so that hash tables are equally full.

What a server does by the clock, asked or not (its cron, the module's timers), is counted once while it is idle, shown as a
figure of its own, and taken off the other counts: callgrind makes a server some fifty times slower, so work that comes ten
times a second would weigh fifty times too much on each command.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from statistics import median

from bench_server import CountedServer
from figures import Figure
from raw_client import Connection, encode

RECIPES = Path(__file__).parent / "recipes"
VALUE = b"v" * 100
TTL = 3600
IDLE_SECONDS = 5
SEEDS = 5


def key(number: int) -> bytes:
    """25 bytes, like a real cache key."""
    return b"product:%017d" % number


def tags(number: int) -> tuple[bytes, bytes]:
    """Two tags: one with 100 neighbours, one with 100 keys from all over."""
    return b"category:%d" % (number // 100), b"vendor:%d" % (number % 1000 + number // 100_000 * 1000)


def settagged(number: int) -> bytes:
    return encode("CACHE.SETTAGGED", key(number), VALUE, "EX", TTL, "TAGS", 2, *tags(number))


def set_ex(number: int) -> bytes:
    return encode("SET", key(number), VALUE, "EX", TTL)


def ok(reply) -> bool:
    return reply == b"OK"


class Laboratory:
    """The counted servers of one run, started when first needed and all holding the fixture."""

    def __init__(self, flavour: str, requests: int, rounds: int, fixture: int, peer: str | None = None):
        self._flavour, self._rounds, self._peer = flavour, rounds, peer
        self.requests, self.fixture = requests, fixture
        self._servers: dict[tuple[bool, bool], CountedServer] = {}
        self._connections: dict[tuple[bool, bool], Connection] = {}
        self._background: dict[tuple[bool, bool], float] = {}
        self._running = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self._running.close()

    def anew(self, peer: str | None = None) -> "Laboratory":
        """Other servers of the same kind; those without the module have the library `peer` loaded."""
        return Laboratory(self._flavour, self.requests, self._rounds, self.fixture, peer)

    def connection(self, with_module: bool, aof: bool = False) -> Connection:
        self._started(with_module, aof)
        return self._connections[with_module, aof]

    def background(self, with_module: bool, aof: bool = False) -> float:
        """Instructions per second of a server that nobody asks for anything."""
        self._started(with_module, aof)
        return self._background[with_module, aof]

    def cost(
        self,
        with_module: bool,
        build: Callable[[int], list[bytes]],
        check: Callable | None = None,
        prepare: Callable[[Connection, int], None] | None = None,
        aof: bool = False,
        operations: int | None = None,
    ) -> float:
        """Median instructions per operation of the requests that `build(round)` makes, after `prepare` (not counted)."""
        server, connection = self._started(with_module, aof), self.connection(with_module, aof)
        background, costs = self.background(with_module, aof), []
        for turn in range(self._rounds):
            if prepare:
                prepare(connection, turn)
            requests = build(turn)
            counted, seconds = server.count_instructions(lambda batch=requests: connection.run(batch, check))
            costs.append((counted - background * seconds) / (operations or len(requests)))
        return median(costs)

    def _started(self, with_module: bool, aof: bool) -> CountedServer:
        which = with_module, aof
        if which not in self._servers:
            server = self._running.enter_context(CountedServer(self._flavour, with_module, aof, self._peer))
            connection = server.connect()
            self._servers[which], self._connections[which] = server, connection
            entry = settagged if with_module else set_ex
            connection.load(entry(n) for n in range(self.fixture))
            # Reading every key finishes the hash tables' stepwise growth, which would blur the next figures.
            connection.run((encode("GET", key(n)) for n in range(self.fixture)), depth=512)
            counted, seconds = server.count_instructions(lambda: time.sleep(IDLE_SECONDS))
            self._background[which] = counted / seconds
        return self._servers[which]


def ratio(group: str, name: str, cost: float, base: float, what: str, bound: float | None = None) -> Figure:
    return Figure(group, name, cost / base, "x", f"{cost:,.0f} against {base:,.0f} ({what})", bound)


def plain_commands(lab: Laboratory) -> Iterator[Figure]:
    """What a user of plain GET and SET pays for the module being there.

    A server draws a hash seed when it starts. An unlucky one puts GET behind another name in the command table, which
    costs as much as the bound allows for. So several servers are started, and the medians with and without are compared.
    """
    group, names = "plain", [b"plain:%019d" % n for n in range(lab.requests)]
    gets = [encode("GET", name) for name in names]
    sets = [encode("SET", name, VALUE) for name in names]
    get, set_, background = ({True: [], False: []} for _ in range(3))
    for _ in range(SEEDS):
        with lab.anew() as pair:
            for with_module in (True, False):
                set_[with_module].append(pair.cost(with_module, lambda _: sets, ok, sent(sets)))
                get[with_module].append(pair.cost(with_module, lambda _: gets, VALUE.__eq__))
                background[with_module].append(pair.background(with_module))
    where = f"the same without the module; {lab.fixture:,} tagged keys in place"
    yield ratio(group, "GET with the module loaded / GET", median(get[True]), median(get[False]), where, 1.01)
    yield ratio(group, "SET with the module loaded / SET", median(set_[True]), median(set_[False]), where, 1.02)
    idle = median(background[True]) - median(background[False])
    yield Figure(group, "background work of the module", idle, "instr/s", "while nobody asks for anything")


def cache_reads(lab: Laboratory) -> Iterator[Figure]:
    group, keys = "cache-get", [b"plain:%019d" % n for n in range(lab.requests)]

    written = sent([encode("SET", k, VALUE) for k in keys])
    get = lab.cost(False, lambda _: [encode("GET", k) for k in keys], VALUE.__eq__, written)
    cache_get = lab.cost(True, lambda _: [encode("CACHE.GET", k) for k in keys], VALUE.__eq__, written)
    yield ratio(group, "CACHE.GET of a plain value / GET", cache_get, get, "GET", 1.25)
    tagged = [key(n) for n in range(min(lab.requests, lab.fixture))]
    cache_get = lab.cost(True, lambda _: [encode("CACHE.GET", k) for k in tagged], VALUE.__eq__)
    yield ratio(group, "CACHE.GET of a tagged value / GET", cache_get, get, "GET")


def fetches(lab: Laboratory) -> Iterator[Figure]:
    """FETCH of values that are there, against GET of the same: what single flight costs while nobody misses."""
    group, keys = "fetch", [b"plain:%019d" % n for n in range(lab.requests)]

    def is_hit(reply) -> bool:
        return reply == [b"HIT", VALUE, None]

    def fill(connection: Connection, _turn: int) -> None:
        for k in keys:
            connection.call("DEL", k)
            token = connection.call("CACHE.FETCH", k)[2]
            connection.call("CACHE.FILL", k, token, VALUE, "EX", TTL)

    get, fetch = [encode("GET", k) for k in keys], [encode("CACHE.FETCH", k) for k in keys]
    written, expiring = (
        sent([encode("SET", k, VALUE) for k in keys]),
        sent([encode("SET", k, VALUE, "EX", TTL) for k in keys]),
    )
    graced = sent([encode("CACHE.SET", k, VALUE, "EX", TTL, "GRACE", TTL) for k in keys])
    costs = defaultdict(list)
    # As for the plain commands, several seeds: an unlucky one costs FETCH or GET 3 in 100 more.
    for _ in range(SEEDS):
        with lab.anew() as pair:
            for what, prepare in {"plain": written, "expiring": expiring}.items():
                costs[what].append(pair.cost(False, lambda _: get, VALUE.__eq__, prepare))
            for what, prepare in {"a plain value": written, "a filled one": fill, "one with a grace": graced}.items():
                costs[what].append(pair.cost(True, lambda _: fetch, is_hit, prepare))
    base, base_expiring = median(costs["plain"]), median(costs["expiring"])
    yield ratio(group, "FETCH of a plain value / GET", median(costs["a plain value"]), base, "GET", 1.4)
    yield ratio(group, "FETCH of a filled value / GET", median(costs["a filled one"]), base_expiring, "GET", 1.4)
    yield ratio(group, "FETCH of a value with a grace / GET", median(costs["one with a grace"]), base_expiring, "GET")


def policies(lab: Laboratory) -> Iterator[Figure]:
    """Writes and reads of keys under a policy, with few policies and with many beside it."""
    group, keys = "policies", [b"plain:%019d" % n for n in range(lab.requests)]
    writes = [encode("CACHE.SET", k, VALUE, "EX", TTL) for k in keys]
    reads = [encode("CACHE.GET", k) for k in keys]
    with lab.anew() as alone:

        def costs() -> tuple[float, float]:
            return alone.cost(True, lambda _: writes, ok, sent(writes)), alone.cost(True, lambda _: reads, VALUE.__eq__)

        base_write, base_read = costs()
        connection, there = alone.connection(True), 0
        for count in (1, 100, 10_000):
            named = [(b"p%d" % n, b"kind:%05d:" % n if n else b"plain:") for n in range(there, count)]
            connection.run([encode("CACHE.POLICY", "SET", name, "PREFIX", prefix, "EX", TTL) for name, prefix in named])
            there, (write, read) = count, costs()
            yield ratio(group, f"CACHE.SET under one of {count:,} policies / none", write, base_write, "no policy")
            yield ratio(group, f"CACHE.GET under one of {count:,} policies / none", read, base_read, "no policy")


def tagged_writes(lab: Laboratory, aof: bool) -> Iterator[Figure]:
    """SETTAGGED of new keys (a fill after a miss) and of keys that are there, against SET ... EX and the usual recipes."""
    group, bound = ("settagged-aof", 1.4) if aof else ("settagged", 1.6)
    suffix = ", AOF on" if aof else ""
    fresh = range(lab.fixture, lab.fixture + lab.requests)

    def removed(connection: Connection, _turn: int) -> None:
        # With what the recipes keep in the keyspace, else their second round would find its tag sets filled.
        connection.run((encode("DEL", key(n), *(b"tag:" + tag for tag in tags(n))) for n in fresh), depth=512)

    def both(entry: Callable[[int], bytes], with_module: bool, check=ok) -> tuple[float, float]:
        requests = [entry(n) for n in fresh]
        inserts = lab.cost(with_module, lambda _: requests, check, removed, aof)
        return inserts, lab.cost(with_module, lambda _: requests, check, None, aof)

    base_insert, base_overwrite = both(set_ex, False)
    insert, overwrite = both(settagged, True)
    against = "SET ... EX" + suffix
    yield ratio(group, f"CACHE.SETTAGGED 2 tags, new key / SET EX{suffix}", insert, base_insert, against, bound)
    yield ratio(group, f"CACHE.SETTAGGED 2 tags, overwrite / SET EX{suffix}", overwrite, base_overwrite, against, bound)
    yield from _tagged_write_recipes(lab, aof, group, suffix, fresh, removed, base_insert)


def _tagged_write_recipes(lab, aof, group, suffix, fresh, removed, base) -> Iterator[Figure]:
    lines = [
        line for line in (RECIPES / "set_with_tags.pipeline").read_text().splitlines() if line[:1] not in ("", "#")
    ]

    def pipeline(number: int) -> list[bytes]:
        first, second = tags(number)
        words = {
            "{key}": key(number),
            "{value}": VALUE,
            "{ttl}": TTL,
            "{tag1}": b"tag:" + first,
            "{tag2}": b"tag:" + second,
        }
        return [encode(*(words.get(word, word) for word in line.split())) for line in lines]

    requests = [request for number in fresh for request in pipeline(number)]
    cost = lab.cost(False, lambda _: requests, None, removed, aof, operations=len(fresh))
    yield ratio(group, f"  usual recipe, pipeline of {len(lines)}{suffix} / SET EX", cost, base, "SET ... EX")

    sha = lab.connection(False, aof).call("SCRIPT", "LOAD", (RECIPES / "set_with_tags.lua").read_bytes())
    scripts = [encode("EVALSHA", sha, 3, key(n), *(b"tag:" + tag for tag in tags(n)), VALUE, TTL) for n in fresh]
    cost = lab.cost(False, lambda _: scripts, ok, removed, aof)
    yield ratio(group, f"  usual recipe, Lua{suffix} / SET EX", cost, base, "SET ... EX")


def locks(lab: Laboratory) -> Iterator[Figure]:
    group, owner, base = "lock", b"worker-1:0123456789abcdef", plain_set(lab)
    names = [b"lock:%020d" % n for n in range(lab.requests)]

    def pair(lock: bytes) -> list[bytes]:
        return [encode("LOCK.ACQUIRE", lock, owner, "PX", 30_000), encode("LOCK.RELEASE", lock, owner)]

    requests = [request for lock in names for request in pair(lock)]
    cost = lab.cost(True, lambda _: requests, lambda reply: isinstance(reply, int) and reply > 0, operations=len(names))
    yield ratio(group, "LOCK.ACQUIRE + LOCK.RELEASE / SET", cost, base, "SET", 3.2)

    sha = lab.connection(False).call("SCRIPT", "LOAD", (RECIPES / "release_lock.lua").read_bytes())

    def usual(lock: bytes) -> list[bytes]:
        return [encode("SET", lock, owner, "NX", "PX", 30_000), encode("EVALSHA", sha, 1, lock, owner)]

    requests = [request for lock in names for request in usual(lock)]
    cost = lab.cost(False, lambda _: requests, lambda reply: reply in (b"OK", 1), operations=len(names))
    yield ratio(group, "  usual recipe, SET NX + release script / SET", cost, base, "SET")


@cache
def plain_set(lab: Laboratory) -> float:
    """What SET costs, overwriting a value."""
    requests = [encode("SET", b"plain:%019d" % n, VALUE) for n in range(lab.requests)]
    return lab.cost(False, lambda _: requests, ok, sent(requests))


def sent(requests: list[bytes]) -> Callable[[Connection, int], None]:
    """A preparation: the same requests once before they are counted, so that they find their keys there."""
    return lambda connection, _turn: connection.load(requests)
