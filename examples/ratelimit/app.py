"""A small API behind the limiter.   uvicorn --factory app:create_app

A hundred units a minute for each customer, or for each address that shows no key of a customer. A write costs ten.
"""

import os
from contextlib import asynccontextmanager

from middleware import Limit, RateLimitMiddleware, client_address, connect
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

LIMITS = (Limit("minute", 100, 60),)
CUSTOMERS = {"key-of-alice": "alice", "key-of-bob": "bob"}


def caller(request):
    if request.url.path == "/health":
        return None
    # Only a key that is known: else each invented one would be a new customer with a full limit.
    customer = CUSTOMERS.get(request.headers.get("x-api-key"))
    return f"customer:{customer}" if customer else f"address:{client_address(request)}"


def cost(request):
    return 1 if request.method in ("GET", "HEAD") else 10


async def answer(request):
    return JSONResponse({"path": request.url.path})


def create_app(redis=None, limits=LIMITS, **options):
    redis = redis or connect(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"))

    @asynccontextmanager
    async def lifespan(app):
        yield
        await redis.aclose()

    limiter = Middleware(RateLimitMiddleware, redis=redis, limits=limits, key=caller, cost=cost, **options)
    routes = [Route("/health", answer), Route("/items", answer, methods=["GET", "POST"])]
    return Starlette(routes=routes, middleware=[limiter], lifespan=lifespan)
