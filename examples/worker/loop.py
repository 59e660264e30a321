"""Going on until one is told to stop, whatever is away meanwhile."""

import logging
import random
import threading
from collections.abc import Callable
from typing import TypeVar

from redis import Redis, RedisError
from redis.exceptions import ReadOnlyError
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0

log = logging.getLogger(__name__)


def patiently(action: Callable[[], T], stopping: threading.Event, redis: Redis) -> T | None:
    """What `action()` returns. While Redis or the database is away it is tried again, after longer and longer pauses; None if the
    worker is to stop before."""
    pause = FIRST_PAUSE_S
    while not stopping.is_set():
        try:
            return action()
        except (RedisError, DBAPIError) as error:
            log.warning("trying again: %s", getattr(error, "orig", None) or error)
            if isinstance(error, ReadOnlyError):
                # A failover. Whoever is the primary now may have to be looked up.
                redis.connection_pool.disconnect(inuse_connections=False)
        # Workers that lost their database together do not come back together.
        stopping.wait(random.uniform(pause / 2, pause))
        pause = min(2 * pause, LONGEST_PAUSE_S)
    return None


def keep_going(step: Callable[[], object], stopping: threading.Event, redis: Redis) -> None:
    while not stopping.is_set():
        patiently(step, stopping, redis)
