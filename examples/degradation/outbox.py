"""Invalidations that cannot get lost: they are written with the row, and delivered until the server has said yes."""

import json
import logging
import time

from redis import RedisError

SCHEMA = """
CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY, command TEXT NOT NULL, written REAL NOT NULL, delivered INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX outbox_to_deliver ON outbox (id) WHERE delivered = 0;
CREATE TABLE outbox_server (run_id TEXT NOT NULL);
INSERT INTO outbox_server VALUES ('none yet');
"""
BATCH = 500
KEEP_S = 3_600  # At least the longest TTL with jitter and grace: what is older cannot come back with a snapshot.
BEAT = "outbox:beat"
BEAT_MS = 1_000
PAUSE_S = 0.1

log = logging.getLogger(__name__)


def rename(database, product, name):
    """The row and its invalidation are one transaction. Afterwards wake the relay, or call deliver()."""
    with database:
        database.execute("UPDATE product SET name = ? WHERE id = ?", (name, product))
        put(database, "CACHE.INVALIDATE", f"product:{product}")


def put(database, *command):
    database.execute("INSERT INTO outbox (command, written) VALUES (?, ?)", (json.dumps(command), time.time()))


def deliver(redis, database):
    """Sends what was not yet delivered to this very server process, and then lets its heart beat. How many it sent."""
    sent = 0
    # One connection, without retries: either all of this reaches one process, or there is an error.
    with redis.client() as connection:
        run_id = connection.info("server")["run_id"]
        start_again(database, run_id)
        now_ms = server_ms(connection)
        while rows := pending(database):
            for _, command in rows:
                connection.execute_command(*json.loads(command))
            mark(database, run_id, [number for number, _ in rows])
            sent += len(rows)
            now_ms = server_ms(connection)
        # An absolute time from before the look into the outbox: a beat that was stuck on its way is none.
        connection.set(BEAT, run_id, pxat=now_ms + BEAT_MS)
    return sent


def start_again(database, run_id):
    """Another process may have begun with an old snapshot, or as a replica that lagged behind. It is told everything again."""
    with database:
        known = database.execute("SELECT run_id FROM outbox_server").fetchone()[0]
        if known != run_id:
            database.execute("UPDATE outbox SET delivered = 0 WHERE delivered = 1")
            database.execute("UPDATE outbox_server SET run_id = ?", (run_id,))


def mark(database, run_id, numbers):
    # Not if another relay has met another process meanwhile. In PostgreSQL lock that row before: SELECT … FOR SHARE.
    mine = "UPDATE outbox SET delivered = 1 WHERE id = ? AND EXISTS (SELECT * FROM outbox_server WHERE run_id = ?)"
    with database:
        database.executemany(mine, [(number, run_id) for number in numbers])


def pending(database):
    query = "SELECT id, command FROM outbox WHERE delivered = 0 ORDER BY id LIMIT ?"
    return database.execute(query, (BATCH,)).fetchall()


def server_ms(connection):
    seconds, microseconds = connection.time()
    return seconds * 1000 + microseconds // 1000


def prune(database):
    with database:
        database.execute("DELETE FROM outbox WHERE delivered = 1 AND written < ?", (time.time() - KEEP_S,))


def relay(redis, database, stopped):
    """Runs until `stopped` is set. Two of them do no harm."""
    while not stopped.wait(PAUSE_S):
        try:
            deliver(redis, database)
            prune(database)
        except RedisError as error:
            log.warning("not delivered yet: %s", error)
