"""examples/degradation: Redis is killed, or hangs, and comes back; readers go on, the database is spared, no old row survives.

What is tested is the client, so one server is enough: redis-7.0. What the others do when they are killed is tested elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from guide_pages import EXAMPLES, assert_shows_its_example
from servers import Server, default_flavour, eventually

sys.path.append(str(EXAMPLES / "degradation"))

import outbox
import resilient
import without_redis

pytestmark = pytest.mark.skipif(default_flavour() != "redis-7.0", reason="the client is tested, not the server")
SECONDS = 30
READERS = 16


class Database:
    """SQLite with ten products, and what its readers see of it. `slow_s`: how long a row takes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._here = threading.local()
        self._counting = threading.Lock()
        self.asked = self.at_once = self.most_at_once = 0
        self.slow_s = 0.0
        self.down = False
        with self.connection() as connection:
            connection.executescript("PRAGMA journal_mode = WAL;" + outbox.SCHEMA)
            connection.executemany("INSERT INTO product VALUES (?, ?)", [(n, f"chair {n}") for n in range(10)])

    def connection(self) -> sqlite3.Connection:
        if not hasattr(self._here, "connection"):
            self._here.connection = sqlite3.connect(self._path, timeout=SECONDS)
        return self._here.connection

    def load(self, key: str) -> bytes | None:
        with self._counting:
            self.asked += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.down:
                raise sqlite3.OperationalError("the database is down")
            if self.slow_s:
                time.sleep(self.slow_s)  # what a query takes
            query = "SELECT name FROM product WHERE id = ?"
            row = self.connection().execute(query, (key.partition(":")[2],)).fetchone()
            return row and row[0].encode()
        finally:
            with self._counting:
                self.at_once -= 1


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "shop.db")


@pytest.fixture
def server(make_server: Callable[..., Server], request: pytest.FixtureRequest) -> Server:
    return make_server(config=getattr(request, "param", []))


# What it replied is in the file: so it comes back from a kill with what it had, and without what it was not told.
remembers = pytest.mark.parametrize("server", [["appendonly yes"]], ids=["aof"], indirect=True)


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], redis.Redis]]:
    """connect() -> a client as the example makes it."""
    clients: list[redis.Redis] = []

    def connect() -> redis.Redis:
        clients.append(resilient.connect(f"redis://127.0.0.1:{server.port}"))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@contextlib.contextmanager
def away(server: Server, how: str) -> Iterator[None]:
    """Gone, or there and silent, as long as the block lasts."""
    if how == "killed":
        server.kill9()
        yield
        server.start()
        return
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def relaying(connect: Callable[[], redis.Redis], database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A relay; and all is shorter, so that the test is."""
    monkeypatch.setattr(outbox, "BEAT_MS", 300)
    monkeypatch.setattr(resilient, "LOCAL_S", 0.2)
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: outbox.relay(connect(), database.connection(), stopped))
        yield
        stopped.set()
        running.result(SECONDS)


def elapsed(seconds: float) -> bool:
    begun = time.monotonic()
    return eventually(lambda: time.monotonic() - begun > seconds, seconds + 10)


def test_the_page_shows_the_example():
    assert_shows_its_example("degradation.md", "degradation")


# Reading on


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_readers_are_served_and_the_database_is_spared(server, connect, database, how, monkeypatch):
    """Many readers at once, before, meanwhile and after."""
    monkeypatch.setattr(resilient, "LOCAL_S", 0.3)
    monkeypatch.setattr(resilient, "ORIGIN_WAIT_S", SECONDS)
    cache = resilient.Cache(connect(), database.load)
    keys = [f"product:{n}" for n in range(10)]
    rows = [f"chair {n}".encode() for n in range(10)]
    with ThreadPoolExecutor(READERS) as pool:

        def read_all(times: int) -> None:
            assert list(pool.map(cache.get, keys * times, timeout=SECONDS)) == rows * times

        read_all(10)
        assert database.asked == 10
        database.asked = database.most_at_once = 0
        database.slow_s = 0.01
        with away(server, how):
            begun, times = time.monotonic(), 0
            while (passed := time.monotonic() - begun) < 1:
                read_all(10)
                times += 1
            assert 0 < database.asked <= len(keys) * (passed / resilient.LOCAL_S + 1)
            assert database.asked < times * 10 * len(keys) / 2, "most are answered from what is known"
            assert database.most_at_once <= resilient.ORIGIN_CALLS
        eventually(lambda: cache.get(keys[0]) == rows[0] and cache.breaker._failures == 0)
        database.asked = 0
        read_all(10)
        assert database.asked <= 10, "the cache is used again; each key is loaded once, if it was lost"
        asked = database.asked
        read_all(10)
        assert database.asked == asked
        hits = server.info("keyward_cache")["keyward_cache_hits"]
        read_all(1)
        assert server.info("keyward_cache")["keyward_cache_hits"] == hits + 10


def test_a_server_that_hangs_costs_few_callers_their_time(server, connect, database):
    cache = resilient.Cache(connect(), database.load, breaker=resilient.Breaker(open_s=600))
    asked_redis = []
    command = cache.redis.execute_command
    cache.redis.execute_command = lambda *words: asked_redis.append(words) or command(*words)
    with away(server, "hangs"):
        assert [cache.get("product:1") for _ in range(100)] == [b"chair 1"] * 100
    assert len(asked_redis) == 3, "then the breaker is open"


def test_when_the_database_is_down_too_the_last_known_value_is_served(server, connect, database, monkeypatch):
    cache = resilient.Cache(connect(), database.load)
    assert cache.get("product:1") == b"chair 1"
    database.down = True
    monkeypatch.setattr(resilient, "LOCAL_S", 0)
    with away(server, "killed"):
        assert cache.get("product:1") == b"chair 1"
        with pytest.raises(resilient.Unavailable):
            cache.get("product:2")
        monkeypatch.setattr(resilient, "LAST_KNOWN_S", 0)
        with pytest.raises(resilient.Unavailable):
            cache.get("product:1")


def test_a_database_that_fails_under_a_lease_is_left_alone_by_all(connect, database):
    cache = resilient.Cache(connect(), database.load)
    database.down = True
    for _ in range(5):
        with pytest.raises(resilient.Unavailable):
            cache.get("product:1")
    assert database.asked == 1


def test_back_with_an_empty_cache_a_fleet_loads_each_key_once(server, connect, database):
    fleet = [resilient.Cache(connect(), database.load) for _ in range(READERS)]
    database.slow_s = 0.05
    with away(server, "killed"):
        pass
    database.asked = 0
    with ThreadPoolExecutor(READERS) as pool:
        assert set(pool.map(lambda cache: cache.get("product:1"), fleet)) == {b"chair 1"}
    assert database.asked == 1


def test_the_breaker_lets_one_try_at_a_time():
    now = 0.0
    breaker = resilient.Breaker(failures=2, open_s=10, clock=lambda: now)
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now = 15.0
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.failed()
    assert not breaker.allows()
    now = 30.0
    assert breaker.allows()
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True] * 3


# No old row survives


@remembers
@pytest.mark.parametrize("how", ["killed", "hangs"])
@pytest.mark.usefixtures("relaying")
def test_what_was_updated_meanwhile_is_not_served_afterwards(server, connect, database, how):
    """The server comes back with the old row. No read that begins a certain time after the update sees it."""
    writer = resilient.Cache(connect(), database.load, beat=outbox.BEAT)
    reader = resilient.Cache(connect(), database.load, beat=outbox.BEAT)
    eventually(lambda: server.client().exists(outbox.BEAT))
    assert eventually(lambda: reader.get("product:1") == b"chair 1" == server.client().get("product:1"))
    bound = outbox.BEAT_MS / 1000 + resilient.CHECK_S + resilient.LOCAL_S
    with away(server, how):
        outbox.rename(database.connection(), 1, "red chair")
        writer.forget("product:1")
        elapsed(bound)
        assert reader.get("product:1") == b"red chair" == writer.get("product:1")

    def used_again() -> bool:
        assert reader.get("product:1") == b"red chair"
        return server.client().get("product:1") == b"red chair"

    deadline = time.monotonic() + SECONDS
    while not used_again():
        assert time.monotonic() < deadline
    assert reader.get("product:1") == b"red chair"


@remembers
@pytest.mark.usefixtures("relaying")
def test_under_load_and_through_outages_no_read_is_older_than_promised(server, connect, database):
    """Readers and a writer go on while the server is killed and hangs in turn. Names are numbered, so each read can be dated."""
    bound = outbox.BEAT_MS / 1000 + resilient.CHECK_S + resilient.LOCAL_S
    stopped = threading.Event()
    written = [(0.0, 0)]  # when a number was certainly there, and the number

    def write() -> None:
        while not stopped.wait(0.05):
            number = written[-1][1] + 1
            outbox.rename(database.connection(), 1, str(number))
            written.append((time.monotonic(), number))

    def read() -> None:
        breaker = resilient.Breaker(open_s=0.1)
        cache = resilient.Cache(connect(), database.load, beat=outbox.BEAT, breaker=breaker)
        while not stopped.is_set():
            due = time.monotonic() - bound
            at_least = max(number for when, number in written if when <= due)
            assert int(cache.get("product:1")) >= at_least

    outbox.rename(database.connection(), 1, "0")
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write), *(pool.submit(read) for _ in range(3))]
        try:
            for how in ("killed", "hangs", "killed", "hangs"):
                with away(server, how):
                    elapsed(0.8)
                hits = server.info("keyward_cache")["keyward_cache_hits"]
                eventually(lambda hits=hits: server.info("keyward_cache")["keyward_cache_hits"] > hits, SECONDS)
        finally:
            stopped.set()
        for each in running:
            each.result(SECONDS)
    outbox.deliver(connect(), database.connection())
    assert server.client().execute_command("CACHE.GET", "product:1") in (None, str(written[-1][1]).encode())


@remembers
@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_without_an_outbox_the_old_row_stays(server, connect, database, how):
    """The scene is a real one."""
    cache = resilient.Cache(connect(), database.load)
    assert cache.get("product:1") == b"chair 1"
    with away(server, how):
        with database.connection() as connection:
            connection.execute("UPDATE product SET name = 'red chair' WHERE id = 1")
        if how == "killed":
            with pytest.raises(redis.ConnectionError):
                connect().execute_command("CACHE.INVALIDATE", "product:1")
    assert server.client().execute_command("CACHE.GET", "product:1") == b"chair 1"


def test_after_an_old_snapshot_everything_is_told_again(server, connect, database):
    """What was delivered before the crash is not in the snapshot that the server starts with."""
    client = connect()
    client.execute_command("CACHE.SET", "product:1", "chair 1", "EX", 300)
    client.save()
    outbox.rename(database.connection(), 1, "red chair")
    assert outbox.deliver(client, database.connection()) == 1
    assert outbox.deliver(client, database.connection()) == 0
    assert client.get("product:1") is None
    with away(server, "killed"):
        pass
    assert server.client().get("product:1") == b"chair 1"
    assert outbox.deliver(connect(), database.connection()) == 1
    assert server.client().get("product:1") is None


def test_row_and_invalidation_are_one_transaction(database):
    with pytest.raises(sqlite3.IntegrityError):
        outbox.rename(database.connection(), 1, None)
    assert outbox.pending(database.connection()) == []


def test_a_relay_that_dies_before_it_made_its_mark_sends_it_once_more(connect, database, monkeypatch):
    outbox.rename(database.connection(), 1, "red chair")
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "mark", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            outbox.deliver(connect(), database.connection())
    assert outbox.deliver(connect(), database.connection()) == 1


def test_a_relay_that_comes_late_does_not_mark_for_another_process(database):
    connection = database.connection()
    outbox.rename(connection, 1, "red chair")
    ((number, _),) = outbox.pending(connection)
    outbox.start_again(connection, "old process")
    outbox.start_again(connection, "new process")
    outbox.mark(connection, "old process", [number])
    assert len(outbox.pending(connection)) == 1
    outbox.mark(connection, "new process", [number])
    assert outbox.pending(connection) == []


def test_what_is_old_and_delivered_is_pruned(connect, database, monkeypatch):
    connection = database.connection()
    outbox.rename(connection, 1, "red chair")
    monkeypatch.setattr(outbox, "KEEP_S", -1)
    outbox.prune(connection)
    assert len(outbox.pending(connection)) == 1, "it was not delivered"
    outbox.deliver(connect(), connection)
    outbox.prune(connection)
    assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


def test_a_fill_that_was_stuck_in_a_hanging_server_does_no_harm(server, connect, database):
    """It is executed when the server wakes up, though its sender has long given up. Its lease ends with the invalidation."""
    client = connect()
    _, _, token = client.execute_command("CACHE.FETCH", "product:1")
    with away(server, "hangs"):
        with pytest.raises(redis.TimeoutError):
            client.execute_command("CACHE.FILL", "product:1", token, "chair 1", "EX", 300)
        outbox.rename(database.connection(), 1, "red chair")
    eventually(lambda: server.info("commandstats").get("cmdstat_cache.fill"))
    outbox.deliver(server.client(), database.connection())
    assert server.client().execute_command("CACHE.GET", "product:1") is None
    assert server.client().execute_command("CACHE.FILL", "product:1", token, "chair 1", "EX", 300) == 0


def test_a_write_that_was_stuck_is_refused_by_the_floor(server, connect, database):
    """The other way, for programs that write with VERSION: a floor, and then an invalidation, since the write may come before the floor."""
    client, connection = connect(), database.connection()
    assert client.ping(), "connected"
    with away(server, "hangs"):
        with pytest.raises(redis.TimeoutError):
            client.execute_command("CACHE.SET", "product:1", "chair 1", "EX", 300, "VERSION", 1)
        with connection:
            connection.execute("UPDATE product SET name = 'red chair' WHERE id = 1")
            outbox.put(connection, "CACHE.FLOOR", "product:1", 1)
            outbox.put(connection, "CACHE.INVALIDATE", "product:1")
    outbox.deliver(server.client(), connection)
    eventually(lambda: server.info("commandstats").get("cmdstat_cache.set"))
    client = server.client()
    assert client.get("product:1") is None
    assert client.execute_command("CACHE.SET", "product:1", "chair 1", "EX", 300, "VERSION", 1) is None
    assert client.execute_command("CACHE.SET", "product:1", "red chair", "EX", 300, "VERSION", 2) == b"OK"


def test_a_beat_that_comes_late_is_none(server, connect, database, monkeypatch):
    """Its time counts from before the look into the outbox: what was updated since then it does not vouch for."""
    look = outbox.pending
    monkeypatch.setattr(outbox, "BEAT_MS", 200)
    monkeypatch.setattr(outbox, "pending", lambda database: [look(database), elapsed(0.3)][0])
    outbox.deliver(connect(), database.connection())
    assert not server.client().exists(outbox.BEAT)
    monkeypatch.setattr(outbox, "BEAT_MS", 600_000)
    outbox.deliver(connect(), database.connection())
    assert server.client().exists(outbox.BEAT)


def test_without_a_beat_redis_is_not_trusted(server, connect, database):
    server.client().execute_command("CACHE.SET", "product:1", "an old chair", "EX", 300)
    cache = resilient.Cache(connect(), database.load, beat=outbox.BEAT)
    assert cache.get("product:1") == b"chair 1"


# Limits and locks


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_limits_and_locks_without_redis(server, connect, how, monkeypatch):
    monkeypatch.setattr(resilient, "READ_S", 0.2)
    client = connect()
    local = without_redis.LocalLimit(2, 600)
    assert [without_redis.allowed(client, "user:1", 3, 600, local) for _ in range(4)] == [True, True, True, False]
    with without_redis.only_one(client, "report", 600) as token:
        assert server.client().execute_command("LOCK.VALIDATE", "report", token) == 1
        with pytest.raises(without_redis.NotHeld), without_redis.only_one(connect(), "report", 600):
            raise AssertionError("somebody has it")
    assert not server.client().exists("report")
    with away(server, how):
        assert [without_redis.allowed(client, "user:2", 3, 600, local) for _ in range(4)] == [True, True, False, False]
        assert not without_redis.allowed(client, "user:2", 3, 600, without_redis.refuse)
        with pytest.raises(without_redis.NotHeld), without_redis.only_one(client, "report", 600):
            raise AssertionError("nobody knows")


def test_work_is_done_although_the_lock_cannot_be_released(server, connect):
    done = []
    with without_redis.only_one(connect(), "report", 600):
        server.kill9()
        done.append("report")
    server.start()
    assert done == ["report"]
