"""What clients do today when somebody else holds the lock they want. Clients of crowd.py: one acquire, one release.

Each is a generous version: nobody dies with a lock in hand, so nobody looks after its expiry while it waits.
"""

import random
from pathlib import Path

LOCK_MS = 600_000
TOKENS = b"tokens"
MESSAGE = b"released"
RELEASE = (Path(__file__).parent / "release_lock.lua").read_bytes()
RELEASE_AND_TELL = (Path(__file__).parent / "release_lock_and_publish.lua").read_bytes()


def poll(lock: bytes, owner: bytes, hold, shortest: float, longest: float):
    """SET NX PX, and again after a pause, as redis-py's Lock has it, and with a random pause redsync."""
    while not (yield "SET", lock, owner, "NX", "PX", LOCK_MS):
        yield random.uniform(shortest, longest)
    yield from hold()
    yield "EVAL", RELEASE, 1, lock, owner


def woken(lock: bytes, owner: bytes, hold, subscription):
    """Try; else subscribe, try again, and try with every message until it succeeds, as Redisson has it.

    What arrives on the subscription is a message or the answer to SUBSCRIBE: after both it is time to try.
    """
    channel = b"channel:" + lock
    subscribed = False
    while not (yield "SET", lock, owner, "NX", "PX", LOCK_MS):
        if not subscribed:
            subscription.send("SUBSCRIBE", channel)
            subscribed = True
        yield subscription
    if subscribed:
        subscription.send("UNSUBSCRIBE", channel)
    yield from hold()
    yield "EVAL", RELEASE_AND_TELL, 2, lock, channel, owner, MESSAGE


def token_list(lock: bytes, _owner: bytes, hold):
    """The lock is a list with one token. Who dies with it takes it along: there is no expiry."""
    yield "BLPOP", TOKENS + lock, 0
    yield from hold()
    yield "RPUSH", TOKENS + lock, MESSAGE
