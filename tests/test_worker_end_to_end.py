"""examples/worker under load: writers, workers and a table, while workers and the server are killed. In the end the table has the
last value of each key that was set, and the exact sum of each that was added to."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import redis
from databases import Database, WorkerProcess
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Server, default_flavour, eventually
from write_behind import config, dead, info, put

QUEUE = "wb"
WRITERS = 8
WORKERS = 4
KEYS = 5_000
TOGETHER = 50  # writes in a transaction
# All of it on one server. It takes its time, and of the others one has to know only that they do not behave differently.
FULL = default_flavour() == "redis-7.0"
WRITES = 100_000 if FULL else 20_000
DATABASES = ["postgresql", "sqlite"] if FULL else ["postgresql"]
SECONDS = 120
KILLS = 6  # of workers, at least
# Enough for a record whose worker dies, and the next one too, on a machine that is slow.
ATTEMPTS = 7
POISON = 10**9  # greater than any value that is set


class Writer:
    """Sets keys of its own, and adds to keys that all add to; it knows what the table must have in the end."""

    def __init__(self, server: Server, number: int, seed: int) -> None:
        self._server, self._marker, self._random = server, f"writer:{number}", random.Random(seed + number)
        self._own = [f"set:{n}" for n in range(number, KEYS // 2, WRITERS)]
        self.last: dict[str, int | None] = {}
        self.sums: Counter[str] = Counter()
        self.written = 0
        self.interrupted = 0

    def run(self) -> None:
        with self._client() as client:
            for number in range(1, WRITES // WRITERS // TOGETHER + 1):
                commands = [self._write() for _ in range(TOGETHER)]
                self._transaction(client, commands, number)
                self.written += TOGETHER

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self._server.port, retry=Retry(NoBackoff(), 0), socket_timeout=SECONDS)

    def _write(self) -> tuple:
        if self._random.random() < 0.5:
            key, by = f"sum:{self._random.randrange(KEYS // 2)}", self._random.randrange(-50, 100)
            self.sums[key] += by
            return "WRITEBEHIND.INCRBY", QUEUE, key, by
        key = self._random.choice(self._own)
        if self._random.random() < 0.05:
            self.last[key] = None
            return "WRITEBEHIND.DEL", QUEUE, key
        self.last[key] = self._random.randrange(10**9)
        return "WRITEBEHIND.SET", QUEUE, key, self.last[key]

    def _transaction(self, client: redis.Redis, commands: list[tuple], number: int) -> None:
        """Exactly once. If the server dies before it has answered, a marker tells whether it had come so far."""
        while True:
            try:
                with client.pipeline(transaction=True) as pipeline:
                    for command in commands:
                        pipeline.execute_command(*command)
                    pipeline.set(self._marker, number)
                    pipeline.execute()
                return
            except redis.ConnectionError:
                self.interrupted += 1
                if eventually(lambda: self._reached(client), timeout=SECONDS) > number:
                    return

    def _reached(self, client: redis.Redis) -> int | None:
        """The number of the next transaction; None while the server is away."""
        try:
            return int(client.get(self._marker) or 0) + 1
        except redis.ConnectionError:
            return None


@contextmanager
def mortal_workers(start: Callable[[], WorkerProcess], seed: int) -> Iterator[Callable[[], None]]:
    """Workers, of which one is killed every now and then, and another one started. Yields what ends that."""
    draw, enough, kills = random.Random(seed), threading.Event(), 0
    crew = [start() for _ in range(WORKERS)]

    def kill_some() -> None:
        nonlocal kills
        while not enough.wait(draw.uniform(0.5, 2.5)):
            victim = draw.randrange(WORKERS)
            crew[victim].kill9()
            crew[victim] = start()
            kills += 1

    killer = threading.Thread(target=kill_some)

    def stop_killing() -> None:
        enough.set()
        killer.join()

    def let_live() -> None:
        eventually(lambda: kills >= KILLS, timeout=SECONDS)
        stop_killing()

    try:
        killer.start()
        yield let_live
        # One that is just starting has no ear for signals yet.
        eventually(lambda: all("working on" in worker.log() for worker in crew), timeout=SECONDS)
        for worker in crew:
            worker.process.send_signal(signal.SIGTERM)
        assert [worker.process.wait(SECONDS) for worker in crew] == [0] * WORKERS
    finally:
        stop_killing()
        for worker in crew:
            worker.close()


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    postgres = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    database = Database(postgres.url if postgres else f"sqlite:///{tmp_path}/pairs.db?timeout=60", postgres)
    if not postgres:
        database.run("PRAGMA journal_mode = WAL")
    value = f"value BIGINT CHECK (value <> {POISON})"
    database.run(
        "DROP TABLE IF EXISTS counters",
        f"CREATE TABLE counters (key TEXT PRIMARY KEY, {value}, version BIGINT NOT NULL)",
    )
    yield database
    database.close()


@pytest.mark.timeout(2 * SECONDS)
def test_the_table_ends_with_what_was_written(make_server, database, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    # kill -9 leaves what was written to the file, so no command that was answered is lost without an fsync.
    server = make_server(config=["appendonly yes"])
    config(server.client(), "ATTEMPTS", ATTEMPTS, queue=QUEUE)
    put(server.client(), "poison", POISON, queue=QUEUE)
    writers = [Writer(server, number, seed) for number in range(WRITERS)]
    numbers = count()

    def start() -> WorkerProcess:
        options = "--queue", QUEUE, "--table", "counters", "--batch", 200, "--lease", 3000
        return WorkerProcess(server, database, tmp_path / f"worker-{next(numbers)}.log", *options)

    with ThreadPoolExecutor(WRITERS) as pool, mortal_workers(start, seed) as let_live:
        eventually(lambda: info(server.client(), QUEUE)["retries"], timeout=SECONDS)  # they are at work
        writing = [pool.submit(writer.run) for writer in writers]
        for third in (1, 2):
            eventually(lambda third=third: written(writers) >= third * WRITES / 3, timeout=SECONDS)
            server.kill9()
            server.start()
        for future in writing:
            future.result(SECONDS)
        let_live()
        eventually(lambda: remaining(server) == (0, 1), timeout=SECONDS)

    assert sum(writer.interrupted for writer in writers) >= 2, "the server was killed while they wrote"
    assert [row[:1] + row[2:5] for row in dead(server.client(), queue=QUEUE)] == [
        [b"poison", b"SET", b"%d" % POISON, ATTEMPTS]
    ]
    sums: Counter[str] = Counter()
    last: dict[str, int | None] = {}
    for writer in writers:
        sums.update(writer.sums)
        last |= writer.last
    expected = {**last, **sums}
    table = database.pairs()
    wrong = {key: (table.get(key), value) for key, value in expected.items() if table.get(key) != value}
    assert (wrong, len(table)) == ({}, len(expected))


def written(writers: list[Writer]) -> int:
    return sum(writer.written for writer in writers)


def remaining(server: Server) -> tuple[int, int]:
    """Records that wait, and records that were given up."""
    described = info(server.client(), QUEUE)
    return described["dirty"], described["dead"]
