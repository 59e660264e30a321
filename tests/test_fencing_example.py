"""examples/locks/fencing.py: a holder that slept past its lease changes nothing in the database."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import REPOSITORY

sys.path.append(str(REPOSITORY / "examples" / "locks"))

import fencing

LEASE_MS = 200
SECONDS = 30


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """As any number of workers see it: each opens it for itself."""
    with connect(tmp_path) as connection:
        connection.execute(fencing.SCHEMA)
        connection.execute("INSERT INTO report (id, body) VALUES ('nightly', 'old')")
    yield connection
    connection.close()


def connect(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "reports.db", check_same_thread=False)


def rows(database: sqlite3.Connection) -> list[tuple]:
    return database.execute("SELECT id, body FROM report ORDER BY id").fetchall()


def test_a_holder_that_pauses_past_its_lease_writes_nothing(server, client, database, tmp_path):
    woken, asleep = threading.Event(), threading.Event()

    def slept() -> str:
        asleep.set()
        assert woken.wait(SECONDS)
        return "by A, who slept"

    def first() -> bool:
        connection = connect(tmp_path)
        try:
            return fencing.rewrite(server.client(), connection, "nightly", slept, LEASE_MS)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        try:
            a = pool.submit(first)
            assert asleep.wait(SECONDS)
            # B waits in the queue, and has the lock when the lease of A is over.
            assert fencing.rewrite(client, database, "nightly", lambda: "by B")
        finally:
            woken.set()
        assert a.result(SECONDS) is False
    assert rows(database) == [("nightly", "by B")]


def test_without_the_check_it_would_have(client, database):
    """The scene is a real one: the lock alone does not save the row."""
    fence = client.execute_command("LOCK.ACQUIRE", "lock:report:nightly", "A", "PX", 1)
    assert fencing.rewrite(client, database, "nightly", lambda: "by B")
    with database:
        database.execute("UPDATE report SET body = ? WHERE id = ?", ("by A, who slept", "nightly"))
    assert rows(database) == [("nightly", "by A, who slept")]
    assert not fencing.update(database, "nightly", "by A, fenced", fence)


def test_holders_in_turn_all_write(client, database):
    assert all(fencing.rewrite(client, database, "nightly", lambda n=n: f"number {n}") for n in range(10))
    assert rows(database) == [("nightly", "number 9")]


def test_the_lock_is_free_afterwards_also_after_an_error(client, database):
    with pytest.raises(ZeroDivisionError):
        fencing.rewrite(client, database, "nightly", lambda: 1 / 0)
    assert not client.exists("lock:report:nightly")
    assert rows(database) == [("nightly", "old")]


def test_who_waits_in_vain_is_told(client, database, monkeypatch):
    monkeypatch.setattr(fencing, "WAIT_MS", 20)
    client.execute_command("LOCK.ACQUIRE", "lock:report:nightly", "somebody", "EX", 60)
    with pytest.raises(fencing.Busy):
        fencing.rewrite(client, database, "nightly", lambda: "mine")
    assert rows(database) == [("nightly", "old")]


def test_a_row_that_is_not_there_is_not_updated(database):
    assert not fencing.update(database, "weekly", "new", 1)


def test_a_new_row_is_put_by_the_later_of_two(client, database):
    early, late = (client.execute_command("LOCK.ACQUIRE", f"lock:{n}", "me", "EX", 60) for n in range(2))
    assert fencing.put(database, "weekly", "late", late)
    assert not fencing.put(database, "weekly", "early", early)
    assert not fencing.put(database, "weekly", "late again", late), "one token writes a row once"
    assert rows(database) == [("nightly", "old"), ("weekly", "late")]
