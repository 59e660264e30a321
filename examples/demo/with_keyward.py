"""Cache, rate limit and lock with Keyward: one command for each step."""

from collections.abc import Callable

import redis
from origin import Page


class WithKeyward:
    name = "with Keyward"

    def __init__(self, client: redis.Redis, ttl: int, limit: int, window: int):
        self._call = client.execute_command
        self._ttl, self._limit, self._window = ttl, limit, window

    def page(self, key: str, load: Callable[[], Page]) -> tuple[bytes, bool]:
        """The page, and whether it came from the cache."""
        body = self._call("CACHE.GET", key)
        if body is not None:
            return body, True
        page = load()
        expiry = ("EX", self._ttl, "JITTER", "10%")
        self._call("CACHE.SETTAGGED", key, page.body, *expiry, "TAGS", len(page.tags), *page.tags)
        return page.body, False

    def invalidate(self, tag: str) -> int:
        """Every page made from this row is gone when this returns."""
        return self._call("CACHE.INVALIDATETAG", tag)

    def allow(self, client: str) -> bool:
        allowed, *_ = self._call("RATELIMIT.CHECK", f"limit:{client}", self._limit, "EX", self._window)
        return allowed == 1

    def acquire(self, lock: str, owner: str, lease_ms: int) -> int | None:
        """A fencing token, greater than any before, or None while somebody else holds the lock."""
        return self._call("LOCK.ACQUIRE", lock, owner, "PX", lease_ms)

    def fence(self, grant: int) -> int | None:
        return grant

    def release(self, lock: str, owner: str) -> bool:
        return self._call("LOCK.RELEASE", lock, owner) == 1
