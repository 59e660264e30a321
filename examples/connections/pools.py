"""Two pools, one for commands that answer at once and one for those that wait; and a connection that is a lock's own."""

import uuid
from contextlib import contextmanager

from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry


class NotHeld(Exception):
    """Somebody else has the lock."""


def answering(url, name, size=20):
    """For all that answers at once. Who finds no connection free waits for one, half a second at most."""
    return Redis(connection_pool=pool(url, f"{name}:answering", size, read_s=1.0, queue_s=0.5))


def waiting(url, name, callers, wait_ms):
    """For WAIT and BLOCK: a connection for each caller, and a read time-out that outlasts the longest wait."""
    return Redis(connection_pool=pool(url, f"{name}:waiting", callers, read_s=wait_ms / 1000 + 1, queue_s=0.5))


def pool(url, name, size, read_s, queue_s):
    return BlockingConnectionPool.from_url(
        url,
        max_connections=size,
        timeout=queue_s,
        socket_connect_timeout=1.0,
        socket_timeout=read_s,
        # A command whose reply was lost may have been done: it is for the caller to know whether twice does harm.
        retry=Retry(NoBackoff(), 0),
        client_name=name,  # In CLIENT LIST, and so in the answer to "who is it?".
    )


@contextmanager
def held(url, lock, lease_s, wait_ms):
    """A lock that goes with this process, on a connection that nobody else uses. Yields token and client."""
    redis = Redis.from_url(
        url,
        single_connection_client=True,
        socket_timeout=wait_ms / 1000 + 1,
        retry=Retry(NoBackoff(), 0),
        client_name=f"lock:{lock}",
    )
    owner = str(uuid.uuid4())
    try:
        redis.client_no_evict("ON")  # maxmemory-clients would close it, and so give the lock away.
        token = redis.execute_command("LOCK.ACQUIRE", lock, owner, "EX", lease_s, "WAIT", wait_ms, "SESSION")
        if token is None:
            raise NotHeld(lock)
        yield token, redis
    finally:
        redis.close()  # That releases it, whatever happened.
