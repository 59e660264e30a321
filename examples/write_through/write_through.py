"""Write-through: a row and its cached value change together. SQLite here, any SQL database the same."""

import logging

from redis import RedisError

SCHEMA = "CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1)"
INTENT_MS = 10_000  # Longer than the database lets a transaction last.

log = logging.getLogger(__name__)


def rename(redis, database, product, name):
    """Gives a product another name, and the cache with it. Whether there is such a product."""

    def change():
        updated = database.execute(
            "UPDATE product SET name = ?, version = version + 1 WHERE id = ? RETURNING name, version", (name, product)
        )
        return updated.fetchone()

    return write_through(redis, database, f"product:{product}", change) is not None


def write_through(redis, database, key, change, ttl=300):
    """Changes a row: `change()` does it, and answers the new value and its version, or None if there is no row (any more)."""
    token = redis.execute_command("CACHE.INTENT", key, "PX", INTENT_MS)
    try:
        new = change()
    except BaseException:
        database.rollback()
        settle(redis, "CACHE.ROLLBACK", key, token)
        raise
    # An error here says nothing of the row. The intent stays, and when it runs out the key is removed.
    database.commit()
    if new is None:
        settle(redis, "CACHE.COMMIT", key, token)
    else:
        value, version = new
        settle(redis, "CACHE.COMMIT", key, token, value, "EX", ttl, "VERSION", version)
    return new


def settle(redis, *command):
    """Ends an intent. The row is what counts, so no trouble here may cost it; an intent that stays runs out by itself."""
    try:
        redis.execute_command(*command)  # 0: the cache could not tell which write was the last. Nothing to do.
    except RedisError as error:
        log.warning("%s: %s", command[0], error)
