"""The table that a queue is written to: a row for each key, with the version of its last write.

Every write takes only what is newer than the row. So a record that comes a second time changes nothing, whoever died when, and an
increment counts once.
"""

import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import sqlalchemy
from sqlalchemy import JSON, Column, Connection, Engine, MetaData, bindparam, func
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

# The values of a row, as the statements name them. Not as columns are named: those are the user's.
ROW = KEY, VALUE, VERSION = "new_key", "new_value", "new_version"
Row = dict[str, object]

OVERTAKEN = "the row has a later version"


class Record(NamedTuple):
    """What a worker gets of a queue."""

    key: bytes
    version: int
    op: bytes
    payload: bytes | None
    attempts: int
    age_ms: int


def adds(record: Record) -> bool:
    return record.op == b"INCRBY"


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
        self._types = _python_type(table.c[key]), _python_type(table.c[value])
        row = [
            bindparam(name, type_=table.c[column].type) for name, column in zip(ROW, (key, value, version), strict=True)
        ]
        new_key, new_value, new_version = row
        insert = INSERT[engine.dialect.name](table).values(dict(zip((key, value, version), row, strict=True)))
        excluded = insert.excluded

        def statements(result):
            update = sqlalchemy.update(table).where(table.c[key] == new_key, table.c[version] < new_version)
            upsert = insert.on_conflict_do_update(
                index_elements=[key],
                set_={value: result(excluded[value]), version: excluded[version]},
                where=table.c[version] < excluded[version],
            )
            return update.values({value: result(new_value), version: new_version}), upsert

        results = [lambda new: new]
        if self._types[1] in NUMBERS:
            results.append(lambda new: func.coalesce(table.c[value], 0) + new)
        # The first of each for SET and DEL, the second for INCRBY.
        self._updates, self._upserts = zip(*map(statements, results), strict=True)
        keys = bindparam("keys", expanding=True, type_=table.c[key].type)
        self._versions = sqlalchemy.select(table.c[key], table.c[version]).where(table.c[key].in_(keys))

    def write(self, records: Iterable[Record]) -> dict[bytes, str]:
        """Writes records of different keys. Which of them the table does not have now, and why.

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

    def _row(self, record: Record) -> Row:
        if not record.key.startswith(self._prefix):
            raise ValueError(f"the key does not begin with {self._prefix.decode()}")
        if adds(record) and self._types[1] not in NUMBERS:
            raise ValueError("an increment for a column that holds no numbers")
        of_key, of_value = self._types
        key = CONVERT[of_key](record.key.removeprefix(self._prefix))
        # A deleted row stays, with its version: nothing older must bring it back.
        value = None if record.payload is None else CONVERT[of_value](record.payload)
        return dict(zip(ROW, (key, value, record.version), strict=True))

    def _halve(self, rows: list[tuple[Record, Row]], refused: dict[bytes, str]) -> None:
        """All in one transaction. If that fails for a row, halves of it: the bad ones end up alone."""
        if not rows:
            return
        try:
            with self._engine.begin() as connection:
                overtaken = self._transaction(connection, rows)
        except (StatementError, OverflowError) as error:
            if not is_the_rows_fault(error):
                raise
            if len(rows) == 1:
                refused[rows[0][0].key] = str(getattr(error, "orig", error))
                return
            middle = len(rows) // 2
            self._halve(rows[:middle], refused)
            self._halve(rows[middle:], refused)
        else:
            refused.update((record.key, OVERTAKEN) for record in overtaken)

    def _transaction(self, connection: Connection, rows: list[tuple[Record, Row]]) -> list[Record]:
        """Updates what is there, then inserts what is not. Not by INSERT … ON CONFLICT alone: it looks at the constraints of the row
        that would be inserted first, and so refuses -1 for a stock of 7 that must not fall below 0.

        Returns increments that came too late: their row has a later version. They may be in it or not. An increment is given up
        before a later one is written, so it must not be acked, and stays where somebody can look at it.
        """
        self._execute(connection, self._updates, rows)
        versions = self._versions_of(connection, rows)
        missing = [(record, row) for record, row in rows if row[KEY] not in versions]
        # By ON CONFLICT nevertheless: somebody may have inserted it in the meantime.
        self._execute(connection, self._upserts, missing)
        versions |= self._versions_of(connection, missing)
        return [record for record, row in rows if adds(record) and versions.get(row[KEY], 0) > record.version]

    def _execute(self, connection: Connection, statements: tuple, rows: list[tuple[Record, Row]]) -> None:
        for adding, statement in enumerate(statements):
            if chosen := [row for record, row in rows if adds(record) == adding]:
                connection.execute(statement, chosen)

    def _versions_of(self, connection: Connection, rows: list[tuple[Record, Row]]) -> dict[object, int]:
        return dict(connection.execute(self._versions, {"keys": [row[KEY] for _, row in rows]}).all()) if rows else {}


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
