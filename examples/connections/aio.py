"""The waiting pool for asyncio: a thousand callers wait in one thread, each with a connection."""

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def waiting(url, name, callers, wait_ms):
    return Redis(
        connection_pool=BlockingConnectionPool.from_url(
            url,
            max_connections=callers,
            timeout=0.5,
            socket_timeout=wait_ms / 1000 + 1,
            retry=Retry(NoBackoff(), 0),
            client_name=f"{name}:waiting",
        )
    )


async def fetch(redis, key, wait_ms):
    """Cancel it, or put it under asyncio.timeout(): the connection is closed, and the server forgets that somebody waits."""
    return await redis.execute_command("CACHE.FETCH", key, "WAIT", wait_ms)
