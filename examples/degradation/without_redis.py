"""Limits and locks when Redis does not answer: let through, or refuse. It is decided for each use, beforehand."""

import threading
import time
import uuid
from contextlib import contextmanager, suppress

from redis import ConnectionError, ReadOnlyError, TimeoutError

DOWN = (ConnectionError, TimeoutError, ReadOnlyError)


class NotHeld(Exception):
    """Somebody else has the lock, or nobody can say who has it."""


def allowed(redis, key, limit, window_s, when_down):
    """Whether a request passes. `when_down(key)` decides when Redis does not."""
    try:
        return redis.execute_command("RATELIMIT.CHECK", key, limit, "EX", window_s)[0] == 1
    except DOWN:
        return when_down(key)


def refuse(key):
    """Fail closed: log-ins, one-time codes, whatever an attacker would take Redis down for."""
    return False


class LocalLimit:
    """Fail open, not wide open: each process counts for itself, and lets its share through."""

    def __init__(self, limit, window_s, clock=time.monotonic):
        self._limit, self._window_s, self._clock = limit, window_s, clock
        self._lock = threading.Lock()
        self._window, self._counts = None, {}

    def __call__(self, key):
        window = self._clock() // self._window_s
        with self._lock:
            if window != self._window:
                self._window, self._counts = window, {}
            self._counts[key] = self._counts.get(key, 0) + 1
            return self._counts[key] <= self._limit


@contextmanager
def only_one(redis, lock, lease_s):
    """Fails closed: without an answer nobody holds the lock. Yields the fencing token."""
    owner = str(uuid.uuid4())
    try:
        token = redis.execute_command("LOCK.ACQUIRE", lock, owner, "EX", lease_s)
    except DOWN as error:
        # The reply may have been the only thing that was lost. Nobody knows this owner, so the lease ends the lock.
        raise NotHeld(lock) from error
    if token is None:
        raise NotHeld(lock)
    try:
        yield token
    finally:
        release(redis, lock, owner)


def release(redis, lock, owner):
    # Else the lease ends it. The work is done, and its token guards what it wrote.
    with suppress(DOWN):
        redis.execute_command("LOCK.RELEASE", lock, owner)
