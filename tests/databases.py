"""Databases for the tests of examples/worker, and the worker as a process."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from postgres import Postgres
from servers import REPOSITORY, Server
from sqlalchemy import Connection, text

EXAMPLES = REPOSITORY / "examples"
SECONDS = 30


class Database:
    """Tables in PostgreSQL or SQLite, and what is in them."""

    def __init__(self, url: str, postgres: Postgres | None = None) -> None:
        self.url, self.postgres = url, postgres
        self.engine = sqlalchemy.create_engine(url)

    def run(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def pairs(self, table: str = "counters") -> dict:
        """Key -> value of all rows."""
        with self.engine.connect() as connection:
            return dict(connection.execute(text(f"SELECT key, value FROM {table}")).all())

    @contextmanager
    def locked(self, table: str = "counters") -> Iterator[Connection]:
        """Nobody else writes to the table inside the block."""
        with self.engine.connect() as connection:
            if self.postgres:
                connection.execute(text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
            else:
                connection.execute(text(f"UPDATE {table} SET version = version"))
            yield connection
            connection.rollback()

    def close(self) -> None:
        """Its connections; a new one is made when it is asked again."""
        self.engine.dispose()


class WorkerProcess:
    """`python -m worker` as anybody would start it."""

    def __init__(self, server: Server, database: Database, log: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "worker", "--redis", f"redis://127.0.0.1:{server.port}/0"]
        command += ["--database", database.url, *map(str, arguments)]
        self._path = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=EXAMPLES, stdout=output, stderr=subprocess.STDOUT)

    def log(self) -> str:
        return self._path.read_text(errors="replace")

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As a supervisor does. Its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.kill9()
