"""Lock and poll, as caching tutorials have it: who gets the lock loads, the others look again until the value is there.

A client of crowd.py. It is a generous version: it neither looks once more after it got the lock, nor asks for the lock
again while it polls, which saves commands as long as nobody dies with the lock in hand.
"""

import random
from pathlib import Path

LOCK_MS = 10_000
POLL_S = 0.05, 0.1
RELEASE = (Path(__file__).parent / "release_lock.lua").read_bytes()


def cached(key: bytes, owner: bytes, load, ttl: int):
    value = yield "GET", key
    if value is not None:
        return value
    lock = b"lock:" + key
    if (yield "SET", lock, owner, "NX", "PX", LOCK_MS):
        value = yield from load()
        yield "SET", key, value, "EX", ttl
        yield "EVAL", RELEASE, 1, lock, owner
        return value
    while value is None:
        yield random.uniform(*POLL_S)
        value = yield "GET", key
    return value
