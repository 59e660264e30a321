"""Page counters: every view of a page counts in the database. Three ways, with a worker that dies now and then at the worst moment."""

import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import redis
import sqlalchemy

sys.path.append(str(Path(__file__).resolve().parent.parent))

from worker.table import Table
from worker.write_behind import Drain

QUEUE, DIRTY, COUNTS = "wb:views", "dirty", "views"
SCHEMA = "CREATE TABLE page_views (key TEXT PRIMARY KEY, value INTEGER NOT NULL, version INTEGER NOT NULL)"
ADD = "INSERT INTO page_views VALUES (?, ?, 0) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value"
TURNS = 8  # of the worker, while views are counted
DIES_EVERY = 2  # turns
BATCH = 1000
LEASE_MS = 50  # short, so that the demo does not wait long for what a dead worker had


@dataclass
class Counted:
    """What became of the views."""

    name: str
    views: int = 0
    rows_sent: int = 0
    deaths: int = 0
    wrong: int = 0
    lost: int = 0
    view_seconds: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        return 1000 * median(self.view_seconds or [0.0])


class WriteBehind:
    """Increments add up in a queue. Rows take only what is newer, so a worker that dies after its commit does no harm."""

    name = "with Keyward"

    def __init__(self, client: redis.Redis, path: Path):
        self._client = client
        self._table = Table(sqlalchemy.create_engine(f"sqlite:///{path}"), "page_views")
        self._worker = self._new_worker()

    def _new_worker(self) -> Drain:
        return Drain(self._client, QUEUE, self._table, count=BATCH, lease_ms=LEASE_MS, block_ms=1)

    def view(self, page: str) -> None:
        self._client.execute_command("WRITEBEHIND.INCRBY", QUEUE, page, 1)

    def work(self, dies: bool) -> int:
        """One batch; how many rows the database was sent, for the second time perhaps. If the worker dies, it is between its commit and its ACK."""
        worker = self._worker
        if dies:
            worker._settle = lambda *_: None
            self._worker = self._new_worker()
        return worker.step()

    def is_done(self) -> bool:
        return self._client.execute_command("WRITEBEHIND.INFO", QUEUE)[b"keys"] == 0


class DirtySet:
    """The usual recipe: a counter in the cache, a set of dirty pages, and a job that moves what they have to the database."""

    name = "dirty set"

    def __init__(self, client: redis.Redis, path: Path):
        self._client, self._database = client, sqlite3.connect(path)

    def view(self, page: str) -> None:
        with self._client.pipeline() as pipe:
            pipe.hincrby(COUNTS, page, 1).sadd(DIRTY, page).execute()

    def work(self, dies: bool) -> int:
        """If the job dies, it is between the counters, which it has taken, and its commit."""
        pages = self._client.spop(DIRTY, BATCH)
        if not pages:
            return 0
        with self._client.pipeline() as pipe:
            pipe.hmget(COUNTS, pages).hdel(COUNTS, *pages)
            counts, _ = pipe.execute()
        if not dies:
            with self._database:
                self._database.executemany(
                    ADD, [(page.decode(), int(n)) for page, n in zip(pages, counts, strict=True)]
                )
        return len(pages)

    def is_done(self) -> bool:
        return not self._client.exists(DIRTY)


class AtOnce:
    """No cache between: every view is a transaction."""

    name = "at once"

    def __init__(self, _client: redis.Redis, path: Path):
        self._database = sqlite3.connect(path)
        self.rows_sent = 0

    def view(self, page: str) -> None:
        with self._database:
            self._database.execute(ADD, (page, 1))
        self.rows_sent += 1

    def work(self, dies: bool) -> int:
        written, self.rows_sent = self.rows_sent, 0
        return written

    def is_done(self) -> bool:
        return self.rows_sent == 0


def count_views(kind: type, client: redis.Redis, path: Path, pages: Sequence[str]) -> Counted:
    """Counts them all, lets the worker have its turn every now and then, and compares with a count of our own."""
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(SCHEMA)
    every = max(1, len(pages) // TURNS)
    way, outcome, right = kind(client, path), Counted(kind.name), Counter()
    for number, page in enumerate(pages, 1):
        start = time.perf_counter()
        way.view(page)
        outcome.view_seconds.append(time.perf_counter() - start)
        right[page] += 1
        if number % every == 0:
            dies = kind is not AtOnce and number // every % DIES_EVERY == 0
            outcome.deaths += dies
            outcome.rows_sent += way.work(dies)
    deadline = time.monotonic() + 60
    while not way.is_done():
        if time.monotonic() > deadline:
            raise RuntimeError("the worker never came to an end")
        outcome.rows_sent += way.work(dies=False)
    with sqlite3.connect(path) as database:
        found = dict(database.execute("SELECT key, value FROM page_views"))
    outcome.views = right.total()
    outcome.wrong = sum(found.get(page, 0) != views for page, views in right.items())
    outcome.lost = right.total() - sum(found.values())
    return outcome
