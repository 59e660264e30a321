"""Clients that fetch, wait and fill, for the tests of single flight."""

from __future__ import annotations

from contextlib import ExitStack

from raw_client import RawClient
from servers import Server, eventually


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

    def lease(self, key: str, *options: str | int) -> bytes:
        """The token of an election on a missing key."""
        status, value, token = self.call("CACHE.FETCH", key, *options)
        assert (status, value) == (b"MISS", None)
        assert token
        return token

    def wait(self, key: str, *options: str | int, wait_ms: int = 0) -> RawClient:
        """A client that waits for the key; its answer is read() by the test."""
        before = self.waiting()
        client = self.connect()
        client.send("CACHE.FETCH", key, "WAIT", wait_ms, *options)
        eventually(lambda: self.waiting() == before + 1, message="the client does not wait")
        return client

    def waiting(self) -> int:
        return self.info("waiters")

    def info(self, field: str) -> int:
        text = self.call("INFO", "keyward_cache")
        assert isinstance(text, bytes)
        lines = dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)
        return int(lines[f"keyward_cache_{field}"])


def hit(value: bytes) -> list:
    return [b"HIT", value, None]


BUSY = [b"BUSY", None, None]
NONE = [b"NONE", None, None]
