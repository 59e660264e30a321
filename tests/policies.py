"""Policies as the tests set and see them."""

from __future__ import annotations

import redis
from raw_client import Word, fields

FIELDS = (
    "prefix",
    "ttl_ms",
    "jitter_ms",
    "jitter_percent",
    "grace_ms",
    "sliding",
    "negative_ms",
    "beta",
    "ahead_percent",
    "loader",
    "pattern",
    "enforce",
)


def set_policy(client: redis.Redis, name: Word, *options: Word) -> None:
    assert client.execute_command("CACHE.POLICY", "SET", name, *options) == b"OK"


def get_policy(client: redis.Redis, name: Word) -> dict[str, object] | None:
    """What the policy says, in order."""
    reply = client.execute_command("CACHE.POLICY", "GET", name)
    return None if reply is None else {field.decode(): value for field, value in fields(reply).items()}


def policies(client: redis.Redis) -> dict[bytes, dict[str, object] | None]:
    return {name: get_policy(client, name) for name in client.execute_command("CACHE.POLICY", "LIST")}


def match(client: redis.Redis, key: Word) -> bytes | None:
    return client.execute_command("CACHE.POLICY", "MATCH", key)


def lives(client: redis.Redis, key: Word) -> tuple[int, int]:
    """Milliseconds until the value is stale, and until it is gone."""
    soft, hard = client.execute_command("CACHE.TTL", key)
    return soft, hard


def about(ms: int, expected: int, off: int = 5000) -> bool:
    """A time that was just set; the tests may be slow."""
    return expected - off <= ms <= expected
