"""Limiters for tests: each command as a function, and what is counted under a key."""

from raw_client import fields

MINUTE = ("PX", 60_000)
# What a sliding window admits leaves with its whole tick, which is 1/256 of the window: so much later than exact.
TICKS = 256


def ask(client, command, key, *words):
    return client.execute_command(f"RATELIMIT.{command}", key, *words)


def check(client, *words, key="limiter"):
    return ask(client, "CHECK", key, *words)


def peek(client, *words, key="limiter"):
    return ask(client, "PEEK", key, *words)


def refund(client, *words, key="limiter"):
    return ask(client, "REFUND", key, *words)


def ban(client, *words, key="limiter"):
    return ask(client, "BAN", key, *words)


def info(client, key="limiter"):
    return fields(ask(client, "INFO", key))


def used(client, key="limiter"):
    """(algorithm, window_ms) -> units counted."""
    told = map(fields, info(client, key)[b"limits"])
    return {(limit[b"algorithm"].decode(), limit[b"window_ms"]): limit[b"used"] for limit in told}


def clock_us(reply):
    """The reply of TIME as one number."""
    seconds, microseconds = reply
    return int(seconds) * 1_000_000 + int(microseconds)
