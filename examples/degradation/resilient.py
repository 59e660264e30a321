"""A cache that may go away: short time-outs, a circuit breaker, last known values, and a limit on what reaches the database."""

import logging
import random
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future

from redis import ConnectionError, ReadOnlyError, Redis, RedisError, TimeoutError
from redis.backoff import NoBackoff
from redis.retry import Retry

CONNECT_S = 0.2
WAIT_MS = 200  # Waiting for somebody else's load. The read time-out has to outlast it.
READ_S = 0.5  # A server that hangs costs a caller no more than this.
RETRY_MS = 1_000  # A database that failed is left alone for so long.
ORIGIN_CALLS = 4  # Of this process at once. All processes together: what the database bears.
ORIGIN_WAIT_S = 1.0  # For a place among them, by who has no other answer or was elected.
LOCAL_S = 1.0  # Without Redis a key is asked for once in so long.
LAST_KNOWN_S = 600  # Older values are not served, whatever happens.
LAST_KNOWN_KEYS = 10_000
BEAT = "outbox:beat"  # See outbox.py: there while invalidations arrive.
CHECK_S = 0.2

# A server that is away, hangs, loads its data, or is just a replica. Any other error is a mistake in the program.
DOWN = (ConnectionError, TimeoutError, ReadOnlyError)

log = logging.getLogger(__name__)


class Unavailable(Exception):
    """Neither Redis nor the database can answer, and nothing is known from before."""


def connect(url):
    return Redis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=READ_S, retry=Retry(NoBackoff(), 0))


class Breaker:
    """Opens after some failures in a row. Then one caller tries now and again, and the others do not wait for him."""

    def __init__(self, failures=3, open_s=1.0, clock=time.monotonic):
        self._failures_to_open, self._open_s, self._clock = failures, open_s, clock
        self._lock = threading.Lock()
        self._failures = 0
        self._try_at = 0.0

    def allows(self):
        with self._lock:
            if self._failures < self._failures_to_open:
                return True
            if self._clock() < self._try_at:
                return False
            self._pause()
            return True

    def succeeded(self):
        with self._lock:
            self._failures = 0

    def failed(self):
        with self._lock:
            self._failures += 1
            self._pause()

    def _pause(self):
        # At random, so that a hundred processes do not come back in the same moment.
        self._try_at = self._clock() + self._open_s * random.uniform(0.5, 1.5)


class Cache:
    def __init__(self, redis, load, *, ttl=300, beat=None, breaker=None):
        """`load(key)` asks the database: bytes, or None if it has nothing. `beat`: trust Redis only while that key is there."""
        self.redis, self.load, self.ttl, self.beat = redis, load, ttl, beat
        self.breaker = breaker or Breaker()
        self._lock = threading.Lock()
        self._local = OrderedDict()  # key -> (value, when it was asked for)
        self._flights = {}  # key -> the load under way
        self._origin = threading.BoundedSemaphore(ORIGIN_CALLS)
        self._check_at = 0.0

    def get(self, key):
        """The value from wherever it can be had: bytes, or None if the database has nothing."""
        begun = time.monotonic()
        status, value, token = self._fetch(key)
        if status in (b"HIT", b"STALE", b"NONE"):
            return self._keep(key, value, begun)
        if status == b"ERROR":  # The database failed a moment ago, for somebody else.
            return self._last_known(key)
        if token is None:
            return self._without_redis(key, begun)
        try:
            fresh = self._load(key, ORIGIN_WAIT_S)  # MISS or REFRESH: elected.
        except Unavailable:  # Too busy here: the next one is elected, maybe of another process.
            self._settle("CACHE.FAIL", key, token)
            return value if status == b"REFRESH" else self._last_known(key)
        except Exception:
            self._settle("CACHE.FAIL", key, token, "MSG", "the database did not answer", "RETRY", RETRY_MS)
            return value if status == b"REFRESH" else self._last_known(key)
        if fresh is None:
            self._settle("CACHE.FILLNIL", key, token, "EX", 30)
        else:
            self._settle("CACHE.FILL", key, token, fresh, "EX", self.ttl, "JITTER", "10%", "GRACE", self.ttl)
        return self._keep(key, fresh, begun)

    def forget(self, key):
        """After an update by this process."""
        with self._lock:
            self._local.pop(key, None)

    def _fetch(self, key):
        if self.breaker.allows():
            try:
                self._check_beat()
                answer = self.redis.execute_command("CACHE.FETCH", key, "WAIT", WAIT_MS)
            except DOWN as error:
                log.warning("without Redis: %s", error)
                self.breaker.failed()
            else:
                self.breaker.succeeded()
                return answer
        return b"DOWN", None, None

    def _check_beat(self):
        now = time.monotonic()
        if self.beat and now >= self._check_at:
            if not self.redis.exists(self.beat):
                raise ConnectionError("invalidations do not arrive")
            self._check_at = now + CHECK_S

    def _without_redis(self, key, begun):
        with self._lock:
            value, asked = self._local.get(key, (None, None))
        if asked is not None and begun - asked < LOCAL_S:
            return value
        patience = ORIGIN_WAIT_S if asked is None else 0
        try:
            return self._keep(key, self._load(key, patience), begun)
        except Exception as error:
            log.warning("the database: %r", error)
            return self._last_known(key)

    def _load(self, key, patience):
        """Asks the database: once for all callers of a key, and for ORIGIN_CALLS keys at once."""
        with self._lock:
            flight = self._flights.get(key)
            if mine := flight is None:
                flight = self._flights[key] = Future()
        if mine:
            try:
                flight.set_result(self._load_limited(key, patience))
            except BaseException as error:
                flight.set_exception(error)
            finally:
                with self._lock:
                    del self._flights[key]
        return flight.result()

    def _load_limited(self, key, patience):
        if not self._origin.acquire(timeout=patience):
            raise Unavailable("too many loads at once")
        try:
            return self.load(key)
        finally:
            self._origin.release()

    def _keep(self, key, value, asked):
        with self._lock:
            self._local[key] = value, asked
            self._local.move_to_end(key)
            if len(self._local) > LAST_KNOWN_KEYS:
                self._local.popitem(last=False)
        return value

    def _last_known(self, key):
        with self._lock:
            value, asked = self._local.get(key, (None, None))
        if asked is None or time.monotonic() - asked > LAST_KNOWN_S:
            raise Unavailable(key)
        return value

    def _settle(self, *command):
        """Ends a lease. The answer is known by now, so no trouble here may cost it; a lease that stays ends by itself."""
        try:
            self.redis.execute_command(*command)
        except DOWN:
            self.breaker.failed()
        except RedisError as error:
            log.warning("%s: %s", command[0], error)
