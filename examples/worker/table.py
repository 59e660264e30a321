"""The table that a queue is written to: a row for each key, with the version of its last write.

Every write is an upsert that takes only what is newer than the row. So a record that comes a second time changes nothing, whoever
died when, and an increment counts once.
"""

import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import sqlalchemy
from sqlalchemy import JSON, Column, Engine, MetaData, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError, StatementError

# Those that know ON CONFLICT … DO UPDATE … WHERE.
INSERT = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}

# From the bytes in Redis to what a column of this Python type takes.
CONVERT: dict[type, Callable[[bytes], object]] = {
    bytes: bytes,
    str: bytes.decode,
    int: int,
    float: float,
    Decimal: lambda text: Decimal(text.decode()),
    UUID: lambda text: UUID(text.decode()),
    dict: json.loads,
}
NUMBERS = (int, float, Decimal)

# Classes of SQLSTATE that say nothing of the row: the connection, a read-only standby, rights, the schema, deadlocks, no room,
# locks, a shutdown. All else is taken for the row's own fault, so that a row can never hold up the others.
NOT_THE_ROW = ("08", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "XX")


class Record(NamedTuple):
    """What a worker gets of a queue."""

    key: bytes
    version: int
    op: bytes
    payload: bytes | None
    attempts: int
    age_ms: int


class Table:
    def __init__(self, engine: Engine, name: str, key="key", value="value", version="version", prefix=""):
        """Looks the table up. `prefix` is cut off the keys: `page:` makes 7 of `page:7`."""
        schema, _, plain = name.rpartition(".")
        table = sqlalchemy.Table(plain, MetaData(), schema=schema or None, autoload_with=engine)
        for column in (key, value, version):
            if column not in table.c:
                raise LookupError(f"table {name} has no column {column}")
        if engine.dialect.name not in INSERT:
            raise LookupError(f"{engine.dialect.name} is not supported, only {' and '.join(INSERT)}")
        self._engine, self._prefix = engine, prefix.encode()
        self._names = key, value, version
        self._key, self._value = CONVERT[_python_type(table.c[key])], CONVERT[_python_type(table.c[value])]
        insert = INSERT[engine.dialect.name](table)
        new = insert.excluded

        def upsert(result):
            newer = table.c[version] < new[version]
            changes = {value: result, version: new[version]}
            return insert.on_conflict_do_update(index_elements=[key], set_=changes, where=newer)

        self._overwrite = upsert(new[value])
        counts = _python_type(table.c[value]) in NUMBERS
        self._add = upsert(func.coalesce(table.c[value], 0) + new[value]) if counts else None

    def write(self, records: Iterable[Record]) -> dict[bytes, str]:
        """Writes records of different keys. Which the database refused, and why.

        Raises what the database says if the fault is not a row's: it is away, or full, or the table is not what it was.
        """
        refused, rows = {}, []
        for record in records:
            try:
                rows.append((record, self._row(record)))
            except (ValueError, ArithmeticError) as error:
                refused[record.key] = str(error)
        # Workers that write the same rows, since a lease ran out, lock them in the same order.
        rows.sort(key=lambda row: row[0].key)
        self._halve(rows, refused)
        return refused

    def _row(self, record: Record) -> dict[str, object]:
        if not record.key.startswith(self._prefix):
            raise ValueError(f"the key does not begin with {self._prefix.decode()}")
        if record.op == b"INCRBY" and self._add is None:
            raise ValueError("an increment for a column that holds no numbers")
        key = self._key(record.key.removeprefix(self._prefix))
        # A deleted row stays, with its version: nothing older must bring it back.
        value = None if record.payload is None else self._value(record.payload)
        return dict(zip(self._names, (key, value, record.version), strict=True))

    def _halve(self, rows: list[tuple[Record, dict]], refused: dict[bytes, str]) -> None:
        """All in one transaction. If that fails for a row, halves of it: the bad ones end up alone."""
        try:
            self._transaction(rows)
        except (StatementError, OverflowError) as error:
            if not is_the_rows_fault(error):
                raise
            if len(rows) == 1:
                refused[rows[0][0].key] = str(getattr(error, "orig", error))
                return
            middle = len(rows) // 2
            self._halve(rows[:middle], refused)
            self._halve(rows[middle:], refused)

    def _transaction(self, rows: list[tuple[Record, dict]]) -> None:
        adding = [row for record, row in rows if record.op == b"INCRBY"]
        others = [row for record, row in rows if record.op != b"INCRBY"]
        with self._engine.begin() as connection:
            if others:
                connection.execute(self._overwrite, others)
            if adding:
                connection.execute(self._add, adding)


def _python_type(column: Column) -> type:
    try:
        python_type = dict if isinstance(column.type, JSON) else column.type.python_type
    except NotImplementedError:
        python_type = None
    if python_type not in CONVERT:
        raise LookupError(f"column {column.name} is of a type that is not supported: {column.type}")
    return python_type


def is_the_rows_fault(error: Exception) -> bool:
    if not isinstance(error, DBAPIError):
        return True
    if error.connection_invalidated:
        return False
    if state := getattr(error.orig, "sqlstate", None):
        return state[:2] not in NOT_THE_ROW
    return not isinstance(error, (OperationalError, InterfaceError, ProgrammingError))
