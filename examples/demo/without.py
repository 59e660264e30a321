"""The same without a module, as caching guides write it: pipelines, tag sets, a sorted set, SET NX."""

import time
from collections.abc import Callable

import redis
from origin import Page

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Without:
    name = "without"

    def __init__(self, client: redis.Redis, ttl: int, limit: int, window: int):
        self._redis = client
        self._ttl, self._limit, self._window = ttl, limit, window
        self._release = client.register_script(RELEASE)

    def page(self, key: str, load: Callable[[], Page]) -> tuple[bytes, bool]:
        """The page, and whether it came from the cache."""
        body = self._redis.get(key)
        if body is not None:
            return body, True
        page = load()
        pipe = self._redis.pipeline()
        pipe.setex(key, self._ttl, page.body)
        for tag in page.tags:
            pipe.sadd(f"tag:{tag}", key)
            pipe.expire(f"tag:{tag}", self._ttl)
        pipe.execute()
        return page.body, False

    def invalidate(self, tag: str) -> int:
        members = self._redis.smembers(f"tag:{tag}")
        pipe = self._redis.pipeline()
        for key in members:
            pipe.delete(key)
        pipe.delete(f"tag:{tag}")
        return sum(pipe.execute()[:-1])

    def allow(self, client: str) -> bool:
        key, now = f"limit:{client}", time.time()
        pipe = self._redis.pipeline()
        pipe.zremrangebyscore(key, 0, now - self._window)
        pipe.zadd(key, {str(now): now})
        pipe.zcard(key)
        pipe.expire(key, self._window)
        return pipe.execute()[2] <= self._limit

    def acquire(self, lock: str, owner: str, lease_ms: int) -> bool | None:
        return self._redis.set(lock, owner, nx=True, px=lease_ms)

    def fence(self, grant: bool) -> int | None:
        """SET NX says yes or no; there is no token that the database could compare."""
        return None

    def release(self, lock: str, owner: str) -> bool:
        return self._release(keys=[lock], args=[owner]) == 1
