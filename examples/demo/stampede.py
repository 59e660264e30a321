"""The stampede: many callers miss one page at the same moment, and the page takes a query over a whole year.

Three ways, all as short as they can be; examples/cache_aside has the whole function for production.
"""

import random
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Lock

import redis
from origin import Origin
from without import RELEASE

CALLERS = 100
AIRPORT = "EWR"  # the busiest of the three
KEY = f"year:{AIRPORT}"
LOCK = f"lock:{KEY}"
TTL = 600
WAIT_MS = LOCK_MS = 30_000
POLL_SECONDS = 0.05, 0.1


@dataclass(frozen=True)
class Stampede:
    """What it took until every caller had the page."""

    name: str
    queries: int
    commands: int
    wrong: int
    late_seconds: float  # the slowest answer, from the moment the first query had the page


class Caller(redis.Redis):
    """A client that counts what it sends. The server's own count has what modules and scripts call inside it as well."""

    commands = 0

    def execute_command(self, *args, **options):
        self.commands += 1
        return super().execute_command(*args, **options)


class Source:
    """The database, asked by many at once: each query on a connection of its own."""

    def __init__(self, database: Path):
        self._database, self._lock = database, Lock()
        self.queries = 0
        self.first_page: float | None = None

    def year(self) -> bytes:
        with self._lock:
            self.queries += 1
        origin = Origin(self._database)
        page = origin.year(AIRPORT)
        origin.close()
        with self._lock:
            self.first_page = self.first_page or time.perf_counter()
        return page


# A way to get the page. `all_here()` returns when every caller has come so far.
Way = Callable[[Caller, Callable[[], bytes], Callable[[], object]], bytes]


def with_keyward(caller: Caller, load: Callable[[], bytes], all_here: Callable[[], object]) -> bytes:
    """One is elected to load, the others are answered by his FILL."""
    all_here()
    status, page, token = caller.execute_command("CACHE.FETCH", KEY, "WAIT", WAIT_MS)
    if status == b"HIT":
        return page
    page = load()
    if token:
        caller.execute_command("CACHE.FILL", KEY, token, page, "EX", TTL)
    return page


def lock_and_poll(caller: Caller, load: Callable[[], bytes], all_here: Callable[[], object]) -> bytes:
    """Who gets the lock loads. The others look again and again."""
    page = caller.get(KEY)
    all_here()
    owner = secrets.token_hex()
    if caller.set(LOCK, owner, nx=True, px=LOCK_MS):
        page = load()
        caller.setex(KEY, TTL, page)
        caller.eval(RELEASE, 1, LOCK, owner)
    while page is None:
        time.sleep(random.uniform(*POLL_SECONDS))
        page = caller.get(KEY)
    return page


def unprotected(caller: Caller, load: Callable[[], bytes], all_here: Callable[[], object]) -> bytes:
    """Who misses loads."""
    page = caller.get(KEY)
    all_here()
    if page is None:
        page = load()
        caller.setex(KEY, TTL, page)
    return page


def stampede(name: str, way: Way, connection: redis.Redis, database: Path) -> Stampede:
    """All callers at once, on an empty cache. Every answer is compared with the database."""
    port, source = connection.get_connection_kwargs()["port"], Source(database)
    barrier = Barrier(CALLERS, timeout=WAIT_MS / 1000)
    callers = [Caller(port=port, socket_timeout=WAIT_MS / 1000 + 1) for _ in range(CALLERS)]

    def call(caller: Caller) -> tuple[bytes, float]:
        page = way(caller, source.year, barrier.wait)
        answered = time.perf_counter()
        caller.close()
        return page, answered

    with ThreadPoolExecutor(CALLERS) as threads:
        answers = list(threads.map(call, callers))
    right = Source(database).year()
    return Stampede(
        name,
        source.queries,
        sum(caller.commands for caller in callers),
        sum(page != right for page, _ in answers),
        max(answered for _, answered in answers) - source.first_page,
    )
