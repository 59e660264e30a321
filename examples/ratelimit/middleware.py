"""RATELIMIT.CHECK before each request of a Starlette or FastAPI application: redis-py, asyncio.

The same for Express is middleware.mjs: the same names in the same order.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from math import ceil
from typing import NamedTuple

from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"

log = logging.getLogger(__name__)


class Limit(NamedTuple):
    name: str  # Clients read it. Plain words, each name once.
    count: int
    seconds: int  # Whole seconds: RateLimit-Policy has no finer ones.
    algorithm: str = "SLIDING"
    burst: int | None = None  # With GCRA only.

    def words(self):
        return [self.algorithm, self.count, "EX", self.seconds, *(["BURST", self.burst] if self.burst else [])]


def connect(url: str, timeout: float = 0.5) -> Redis:
    # A pool whose connections are waited for: the usual one raises at the hundred-and-first request at once, and
    # would let it pass. Nothing is retried: a CHECK whose reply was lost has been charged.
    pool = BlockingConnectionPool.from_url(
        url, timeout=timeout, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )
    return Redis.from_pool(pool)


def client_address(request: Request) -> str:
    """The address of the peer; of IPv6 its /64, since one customer has at least all of that."""
    host = request.client.host
    with suppress(ValueError):  # No address: the name that a test client goes by.
        if (address := ip_address(host)).version == 6:
            return str(address.ipv4_mapped or ip_network((address.packed, 64), strict=False))
    return host


class RateLimitMiddleware:
    def __init__(
        self,
        app,
        redis: Redis,
        limits: Sequence[Limit],
        key: Callable[[Request], str | None] = client_address,  # Who is counted; None is not limited.
        cost: Callable[[Request], int] = lambda request: 1,
        fail_open: bool = True,
    ):
        self.app, self.redis, self.limits, self.key, self.cost = app, redis, limits, key, cost
        self.fail_open = fail_open
        self.words = [word for limit in limits for word in limit.words()]
        self.policy = ", ".join(f'"{limit.name}";q={limit.count};w={limit.seconds}' for limit in limits)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        key = self.key(request)
        if key is None:
            return await self.app(scope, receive, send)
        cost = self.cost(request)
        try:
            reply = await self.redis.execute_command("RATELIMIT.CHECK", f"ratelimit:{key}", *self.words, "COST", cost)
        except (RedisError, OSError) as error:
            log.warning("RATELIMIT.CHECK: %s", error)
            answer = self.app if self.fail_open else problem(503, "Service Unavailable")
            return await answer(scope, receive, send)

        allowed, _, remaining, retry_after_ms, next_ms, _, index, *_ = reply
        if retry_after_ms == -1:  # However long it waits: it must ask for less.
            answer = problem(413, "Content Too Large", {"RateLimit-Policy": self.policy})
            return await answer(scope, receive, send)
        fields = {"RateLimit-Policy": self.policy}
        name = self.limits[index].name if index >= 0 else None  # -1: banned, by no limit.
        if name is not None:
            fields["RateLimit"] = f'"{name}";r={remaining};t={ceil(next_ms / 1000)}'
        if not allowed:
            fields["Retry-After"] = str(ceil(retry_after_ms / 1000))
            violated = [] if name is None else [name]
            answer = problem(429, "Quota Exceeded", fields, type=QUOTA_EXCEEDED, **{"violated-policies": violated})
            return await answer(scope, receive, send)

        async def send_with_fields(message):
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for field, value in fields.items():
                    headers.append(field, value)  # They are lists: a second limiter adds its own.
            await send(message)

        return await self.app(scope, receive, send_with_fields)


def problem(status: int, title: str, fields: dict | None = None, **members) -> JSONResponse:
    """RFC 9457."""
    content = {"title": title, "status": status, **members}
    return JSONResponse(content, status, fields, media_type="application/problem+json")
