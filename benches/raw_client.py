"""A client that costs next to nothing: requests are encoded before the clock starts, replies are read in full.

redis-py would spend more time on a command than the server does, and would hide where a pipeline is cut.
Here a pipeline is exactly `depth` requests in one send, and an error reply stops the benchmark.
"""

import socket
from collections.abc import Callable, Iterable
from itertools import islice

DEPTH = 32


class ReplyError(Exception):
    """The server answered with an error, or with something the benchmark did not expect."""


def encode(*words: bytes | str | int) -> bytes:
    """One request as a RESP array of bulk strings."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
    return b"".join(parts)


class Connection:
    """A blocking RESP2 connection over loopback."""

    def __init__(self, port: int, timeout: float = 600.0):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb", buffering=1 << 18)

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def call(self, *words: bytes | str | int):
        """One command, one reply."""
        self.send(*words)
        return self.reply()

    def send(self, *words: bytes | str | int) -> None:
        """One command, whose reply is to be read later."""
        self._socket.sendall(encode(*words))

    def fileno(self) -> int:
        """For a selector: what it says holds as long as one command at a time is under way."""
        return self._socket.fileno()

    def run(self, requests: Iterable[bytes], check: Callable | None = None, depth: int = DEPTH) -> int:
        """Send encoded requests `depth` at a time; `check(reply)` must hold for every reply. Returns how many."""
        requests, done = iter(requests), 0
        while batch := list(islice(requests, depth)):
            self._socket.sendall(b"".join(batch))
            for _ in batch:
                reply = self.reply()
                if check and not check(reply):
                    raise ReplyError(f"unexpected reply: {reply!r:.200}")
            done += len(batch)
        return done

    def load(self, requests: Iterable[bytes], reply: bytes = b"+OK\r\n", depth: int = 512) -> int:
        """Fill the server as fast as it goes: every reply must be the same bytes."""
        requests, done = iter(requests), 0
        while batch := list(islice(requests, depth)):
            self.post(batch)
            self.expect(reply * len(batch))
            done += len(batch)
        return done

    def post(self, batch: list[bytes]) -> None:
        """One pipeline, whose replies are to be read later."""
        self._socket.sendall(b"".join(batch))

    def expect(self, replies: bytes) -> None:
        """What comes next must be these bytes."""
        got = self._reader.read(len(replies))
        if got != replies:
            raise ReplyError(f"unexpected reply: {got!r:.200}")

    def info(self, field: str) -> str:
        for line in self.call("INFO", "everything").decode().splitlines():
            if line.startswith(field + ":"):
                return line.partition(":")[2]
        raise ReplyError(f"INFO has no field {field}")

    def used_memory(self) -> int:
        return int(self.info("used_memory"))

    def reply(self):
        """The next reply, in full."""
        line = self._reader.readline()
        if not line.endswith(b"\r\n"):
            raise ReplyError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._reader.read(size + 2)[:-2]
        if kind == b"*":
            size = int(rest)
            return None if size < 0 else [self.reply() for _ in range(size)]
        raise ReplyError(line.decode(errors="replace").strip())
