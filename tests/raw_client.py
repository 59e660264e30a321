"""The protocol as it is on the wire, for tests of reply shapes and exact error texts: redis-py cuts
the prefix off errors, and makes one Python type of several RESP types."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Sequence

from servers import Server

Word = bytes | str | int


class ErrorReply(str):
    """An error, with its prefix: `ERR syntax error`."""


class RawClient:
    """One connection. call() answers int, bytes (bulk), str (simple), None, list, and in RESP3 dict,
    set and float; errors are returned as ErrorReply, never raised."""

    def __init__(self, server: Server, protocol: int = 2, db: int = 0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        self._file = self._socket.makefile("rb")
        if protocol != 2:
            assert not isinstance(self.call("HELLO", protocol), ErrorReply)
        if db:
            assert self.call("SELECT", db) == "OK"

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def call(self, *words: Word) -> object:
        return self.pipeline([words])[0]

    def pipeline(self, commands: Iterable[Sequence[Word]]) -> list[object]:
        """Sends all in one write: the server runs what arrives together without a timer between."""
        commands = list(commands)
        self._socket.sendall(b"".join(map(encode, commands)))
        return [self.read() for _ in commands]

    def send(self, *words: Word) -> None:
        """Sends without reading: for a command that waits. read() takes the answer later."""
        self._socket.sendall(encode(words))

    def is_answered(self) -> bool:
        """Has anything arrived that was not read yet?"""
        # Not select(), which knows no descriptor above 1023.
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def read(self) -> object:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest.decode()
            case b"-":
                return ErrorReply(rest.decode(errors="replace"))
            case b":":
                return int(rest)
            case b",":
                return float(rest)
            case b"_":
                return None
            case b"$" | b"*" if rest == b"-1":
                return None
            case b"$":
                return self._file.read(int(rest) + 2)[:-2]
            case b"=":
                return self._file.read(int(rest) + 2)[4:-2]
            case b"*":
                return [self.read() for _ in range(int(rest))]
            case b"~":
                items = [self.read() for _ in range(int(rest))]
                # A set of maps stays a list: Python has no such set.
                return items if any(isinstance(item, dict | list) for item in items) else set(items)
            case b"%":
                return {self.read(): self.read() for _ in range(int(rest))}
        raise AssertionError(f"unexpected {line!r}")


def encode(words: Sequence[Word]) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def fields(reply: object) -> dict:
    """A map reply as a dict, from either protocol."""
    if isinstance(reply, dict):
        return reply
    assert isinstance(reply, list)
    return dict(zip(reply[::2], reply[1::2], strict=True))
