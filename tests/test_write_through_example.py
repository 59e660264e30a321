"""examples/write_through: the row and its cached value, whoever dies or crosses, beside a real SQLite database."""

from __future__ import annotations

import re
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from cache_aside import python_example
from servers import REPOSITORY, Server, eventually

sys.path.append(str(REPOSITORY / "examples" / "write_through"))

import write_through

SECONDS = 30
cached = python_example().cached
KEY = "product:7"


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[], sqlite3.Connection]]:
    """connect() -> a connection of its own to a database with one product."""
    opened: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(tmp_path / "shop.db", timeout=SECONDS, check_same_thread=False)
        opened.append(connection)
        return connection

    with connect() as database:
        database.execute(write_through.SCHEMA)
        database.execute("INSERT INTO product (id, name) VALUES (7, 'blue chair')")
    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def database(connect: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
    return connect()


def row(database: sqlite3.Connection) -> bytes | None:
    found = database.execute("SELECT name FROM product WHERE id = 7").fetchone()
    database.rollback()
    return found and found[0].encode()


def read(client: redis.Redis, database: sqlite3.Connection) -> bytes | None:
    return cached(client, KEY, lambda: row(database))


def test_the_functions_stand_in_the_documentation() -> None:
    page = (REPOSITORY / "docs" / "write-through.md").read_text()
    source = (REPOSITORY / "examples" / "write_through" / "write_through.py").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    assert all(block in source for block in blocks)


def test_the_row_and_the_cache_change_together(client: redis.Redis, database: sqlite3.Connection) -> None:
    assert read(client, database) == b"blue chair"
    assert write_through.rename(client, database, 7, "red chair")
    assert client.execute_command("CACHE.GET", KEY) == b"red chair" == row(database)


def test_during_the_write_nobody_takes_the_old_value_for_fresh(
    client: redis.Redis, database: sqlite3.Connection
) -> None:
    read(client, database)
    seen = []

    def change() -> tuple[str, int]:
        seen.append(client.execute_command("CACHE.GET", KEY))
        seen.append(client.execute_command("CACHE.FETCH", KEY))
        return database.execute("UPDATE product SET name = 'red chair' RETURNING name, version").fetchone()

    assert write_through.write_through(client, database, KEY, change) == ("red chair", 1)
    assert seen == [None, [b"STALE", b"blue chair", None]]


def test_a_change_that_fails_leaves_both_as_they_were(client: redis.Redis, database: sqlite3.Connection) -> None:
    read(client, database)
    with pytest.raises(sqlite3.IntegrityError):
        write_through.rename(client, database, 7, None)
    assert client.execute_command("CACHE.GET", KEY) == b"blue chair" == row(database)


def test_a_row_that_is_not_there_leaves_nothing_in_the_cache(client: redis.Redis, database: sqlite3.Connection) -> None:
    read(client, database)
    with database:
        database.execute("DELETE FROM product")
    assert not write_through.rename(client, database, 7, "red chair")
    assert client.exists(KEY) == 0
    assert read(client, database) is None


class Broken:
    """A database whose COMMIT ends in an error: after it was done, or instead."""

    def __init__(self, database: sqlite3.Connection, *, done: bool) -> None:
        self._database, self._done = database, done
        self.execute, self.rollback = database.execute, database.rollback

    def commit(self) -> None:
        if self._done:
            self._database.commit()
        else:
            self._database.rollback()  # As any database does when the connection is lost.
        raise ConnectionError("the connection broke")


@pytest.mark.parametrize("done", [True, False])
def test_when_it_is_not_known_whether_the_row_was_written(
    client: redis.Redis, database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    monkeypatch.setattr(write_through, "INTENT_MS", 200)
    read(client, database)
    with pytest.raises(ConnectionError):
        write_through.rename(client, Broken(database, done=done), 7, "red chair")
    assert client.execute_command("CACHE.GET", KEY) is None
    eventually(lambda: client.exists(KEY) == 0, message="the intent runs out")
    assert read(client, database) == row(database)


def test_a_cache_that_is_gone_at_the_end_costs_no_write(
    make_server: Callable[..., Server], database: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server(config=["appendonly yes", "appendfsync always"])
    client = server.client()
    read(client, database)

    def change() -> tuple[str, int]:
        updated = database.execute("UPDATE product SET name = 'red chair' RETURNING name, version").fetchone()
        server.kill9()
        return updated

    assert write_through.write_through(client, database, KEY, change) == ("red chair", 1)
    assert "CACHE.COMMIT" in caplog.text
    server.start()
    client = server.client()
    assert client.execute_command("CACHE.GET", KEY) is None, "it knows that a write was under way"
    eventually(lambda: client.exists(KEY) == 0)
    assert read(client, database) == b"red chair"


def test_without_the_cache_nothing_is_written(make_server: Callable[..., Server], database: sqlite3.Connection) -> None:
    server = make_server()
    client = server.client()
    server.kill9()
    with pytest.raises(redis.ConnectionError):
        write_through.rename(client, database, 7, "red chair")
    assert row(database) == b"blue chair"


def test_crossing_writers_and_readers_end_with_the_row(
    server: Server, connect: Callable[[], sqlite3.Connection]
) -> None:
    """Rows have versions, so that the last write stays in the cache also where several were under way."""
    writers, readers, rounds = 3, 3, 40
    over = threading.Event()

    def write(number: int) -> None:
        client, database = server.client(), connect()
        for turn in range(rounds):
            assert write_through.rename(client, database, 7, f"chair {number} {turn}")

    def look() -> None:
        client, database = server.client(), connect()
        while not over.is_set():
            assert read(client, database)

    with ThreadPoolExecutor(writers + readers) as pool:
        try:
            looking = [pool.submit(look) for _ in range(readers)]
            for writing in [pool.submit(write, number) for number in range(writers)]:
                writing.result(SECONDS)
        finally:
            over.set()
        for looked in looking:
            looked.result(SECONDS)
    client, database = server.client(), connect()
    assert client.execute_command("CACHE.GET", KEY) in (None, row(database))
    assert read(client, database) == row(database)
