"""A lock's fencing token beside a database: SQLite here, any SQL database the same.

The lock keeps two workers from doing the same work at once. It cannot stop one that slept past its lease and goes on
writing. The database can: each row remembers the token of the last writer, and takes no smaller one.
"""

import uuid

SCHEMA = "CREATE TABLE report (id TEXT PRIMARY KEY, body TEXT NOT NULL, fence INTEGER NOT NULL DEFAULT 0)"
WAIT_MS = 1_000


class Busy(Exception):
    """Somebody else held the lock for as long as this caller wanted to wait."""


def rewrite(redis, database, report, make_body, lease_ms=30_000):
    """Replaces the body of a report by what `make_body()` says. False: a later holder was there before."""
    lock, owner = f"lock:report:{report}", uuid.uuid4().hex
    fence = redis.execute_command("LOCK.ACQUIRE", lock, owner, "PX", lease_ms, "WAIT", WAIT_MS)
    if fence is None:
        raise Busy(report)
    try:
        return update(database, report, make_body(), fence)
    finally:
        redis.execute_command("LOCK.RELEASE", lock, owner, "TOKEN", fence)  # 0: the lease was over. The row knew.


def update(database, report, body, fence):
    """Whether the row was changed. Not: there is none, or a later holder wrote it."""
    with database:
        changed = database.execute(
            "UPDATE report SET body = ?, fence = ? WHERE id = ? AND fence < ?", (body, fence, report, fence)
        )
    return changed.rowcount == 1


def put(database, report, body, fence):
    """The same for a row that may not be there yet. Two who insert it at once meet in its primary key."""
    with database:
        changed = database.execute(
            """INSERT INTO report (id, body, fence) VALUES (?, ?, ?)
               ON CONFLICT (id) DO UPDATE SET body = excluded.body, fence = excluded.fence
               WHERE report.fence < excluded.fence""",
            (report, body, fence),
        )
    return changed.rowcount == 1
