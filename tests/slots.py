"""Callers of a concurrency limit, for tests: those who enter, and those who wait for it."""

from __future__ import annotations

from contextlib import ExitStack

from raw_client import RawClient, fields
from servers import Server, eventually

# Longer than any test.
LONG = ("EX", 600)


def enter(client, name, limit, *rest, key="slots"):
    return client.execute_command("RATELIMIT.ENTER", key, name, "LIMIT", limit, *(rest or LONG))


def leave(client, *names, key="slots"):
    return client.execute_command("RATELIMIT.LEAVE", key, *names)


def info(client, key="slots"):
    return fields(client.execute_command("RATELIMIT.INFO", key))


def held(client, key="slots"):
    """Who holds a slot, in the order in which the leases end."""
    return [slot[0] for slot in info(client, key).get(b"slots", [])]


class Callers:
    """Connections of one test. Every wait begins before the next step: `wait` returns when the server
    holds the client."""

    def __init__(self, server: Server, protocol: int = 2) -> None:
        self._server, self._protocol = server, protocol
        self._stack = ExitStack()
        self.first = self.connect()

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self) -> RawClient:
        return self._stack.enter_context(RawClient(self._server, self._protocol))

    def call(self, *words: bytes | str | int) -> object:
        return self.first.call(*words)

    def enter(self, name: str, limit: int, *rest: str | int, key: str = "slots") -> object:
        return self.call("RATELIMIT.ENTER", key, name, "LIMIT", limit, *(rest or LONG))

    def leave(self, *names: str, key: str = "slots") -> object:
        return self.call("RATELIMIT.LEAVE", key, *names)

    def wait(self, name: str, limit: int, *rest: str | int, wait_ms: int = 0, key: str = "slots") -> RawClient:
        """A client that waits for a slot; its answer is read() by the test."""
        before = self.waiting()
        client = self.connect()
        client.send("RATELIMIT.ENTER", key, name, "LIMIT", limit, *(rest or LONG), "WAIT", wait_ms)
        eventually(lambda: self.waiting() == before + 1, message="the client does not wait")
        return client

    def waiting(self) -> int:
        return self.metric("waiters")

    def metric(self, name: str) -> int:
        text = self.call("INFO", "keyward_ratelimit")
        assert isinstance(text, bytes)
        lines = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        return int(lines[f"keyward_ratelimit_{name}"])
