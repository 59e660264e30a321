"""Cache-aside with single flight, stale-while-revalidate, tags and negative answers: redis-py.

The same in JavaScript is cache_aside.mjs, in Go cache_aside.go: the same names in the same order.
"""

import logging

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

WAIT_MS = 5_000  # Longer than a load takes: who waited in vain asks the origin.
RETRY_MS = 5_000  # An origin that failed is left alone for so long.
NEGATIVE_S = 30  # That the origin has nothing is remembered for so long.
MESSAGE_BYTES = 1_024  # The longest MSG that CACHE.FAIL takes.

log = logging.getLogger(__name__)


class OriginDown(Exception):
    """Somebody else's load failed moments ago, and there is nothing stale to serve."""


def connect(url):
    # The read timeout must outlast WAIT. A retry would queue behind the lease that the lost reply may have carried.
    return Redis.from_url(url, socket_timeout=WAIT_MS / 1000 + 1, retry=Retry(NoBackoff(), 0))


def cached(redis, key, load, ttl=300, tags=()):
    """The value of key: bytes, or None if the origin has nothing. `load()` asks the origin and answers the same."""
    status, value, token = redis.execute_command("CACHE.FETCH", key, "WAIT", WAIT_MS)
    if status in (b"HIT", b"STALE"):
        return value
    if status == b"NONE":
        return None
    if status == b"ERROR":
        raise OriginDown(value.decode(errors="replace"))
    if status == b"BUSY":
        return load()  # Waited in vain: answer this request, and leave the cache alone.

    try:
        fresh = load()  # MISS or REFRESH: this caller was elected.
    except Exception as error:
        if token:
            message = str(error).encode(errors="replace")[:MESSAGE_BYTES]
            settle(redis, "CACHE.FAIL", key, token, "MSG", message, "RETRY", RETRY_MS)
        if status == b"REFRESH":
            return value
        raise
    tagged = ("TAGS", len(tags), *tags) if tags else ()
    if token and fresh is None:
        settle(redis, "CACHE.FILLNIL", key, token, "EX", NEGATIVE_S, *tagged)
    elif token:  # Without one too many loads are under way: nothing to fill.
        settle(redis, "CACHE.FILL", key, token, fresh, "EX", ttl, "GRACE", ttl, *tagged)
    return fresh


def settle(redis, *command):
    """Ends a lease. The answer is known by now, so no trouble here may cost it; a lease that stays ends by itself."""
    try:
        redis.execute_command(*command)  # 0: the lease was lost, to an update for instance. Nothing to do.
    except RedisError as error:
        log.warning("%s: %s", command[0], error)
