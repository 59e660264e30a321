"""Data of every kind that Keyward saves, and how it looks: the same on every server that has it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence

from catalogue import WORLD, make_world
from raw_client import ErrorReply, RawClient, Word, fields
from servers import Server

EXPIRY = ("EX", 5000)


def fill_everything(raw: RawClient) -> None:
    """A key of each kind (catalogue.py), and one of each thing that lies beside keys."""
    make_world(raw)
    token = raw.call("CACHE.FETCH", "nothing")[2]
    for command in (
        ("CACHE.SET", "graced", "value", *EXPIRY, "GRACE", 600, "VERSION", 7, "TAGS", 1, "tag:4"),
        ("CACHE.FILLNIL", "nothing", token, *EXPIRY, "TAGS", 1, "tag:4"),
        ("CACHE.FLOOR", "floored", 9),
        ("CACHE.SETTAGGED", "invalidated", "value", *EXPIRY, "TAGS", 1, "tag:5"),
        ("CACHE.INVALIDATETAG", "tag:5"),
        ("CACHE.SET", "written", "value", *EXPIRY),
        ("CACHE.INTENT", "written", "PX", 600_000),
        ("CACHE.POLICY", "SET", "people", "PREFIX", "user:", "EX", 60, "JITTER", "10%", "GRACE", 5),
        ("CACHE.RULE", "SET", "sold", "KEYS", 1, "stock:{id}", "TAGS", 1, "product:{id}"),
        ("RATELIMIT.CHECK", "several", "GCRA", 10, "EX", 5000, "FIXED", 10, "EX", 86_400, 10, "EX", 5000, "COST", 3),
        ("RATELIMIT.BAN", "banned", "EX", 5000),
        ("WRITEBEHIND.INCRBY", "queue", "sum", 5),
    ):
        reply = raw.call(*command)
        assert not isinstance(reply, ErrorReply), (command, reply)


def everything(raw: RawClient) -> dict[str, object]:
    """What a client sees of it, but for what runs with the clock. A dump ends with the version of the server's format and a
    checksum."""
    seen: dict[str, object] = {key: raw.call("DUMP", key)[:-10] for key in (*WORLD, "several", "banned")}
    seen |= {f"expiry of {key}": raw.call("PEXPIRETIME", key) for key in (*WORLD, "graced", "several", "banned")}
    seen |= {f"tags of {key}": set(raw.call("CACHE.TAGS", key)) for key in ("string", "graced", "invalidated")}
    for key in ("graced", "nothing", "floored"):
        told = fields(raw.call("CACHE.EXPLAIN", key))
        seen[f"what is known of {key}"] = told[b"state"], set(told[b"tags"]), told[b"version"]
    soft, hard = raw.call("CACHE.TTL", "graced")
    seen["the grace"] = hard - soft
    told = fields(raw.call("CACHE.TAGINFO", "tag:5"))
    seen["the invalidation"] = {name: value for name, value in told.items() if name != b"bytes"}
    seen["policies"] = [(name, raw.call("CACHE.POLICY", "GET", name)) for name in raw.call("CACHE.POLICY", "LIST")]
    seen["rules"] = [(name, raw.call("CACHE.RULE", "GET", name)) for name in raw.call("CACHE.RULE", "LIST")]
    seen["the token"] = fields(raw.call("LOCK.INFO", "lock"))[b"token"]
    seen["dirty"] = raw.call("CACHE.GET", "row"), fields(raw.call("WRITEBEHIND.INFO", "queue"))[b"dirty"]
    return seen


class Primary:
    """A primary of a version to come, as far as a replica can tell: it hands over a file and sends `effects`, whatever they are."""

    def __init__(self, file: bytes, effects: Sequence[Sequence[Word]]) -> None:
        self._file = file
        self._effects = effects
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Primary:
        return self

    def __exit__(self, *_: object) -> None:
        # So that a thread which waits for a replica is woken.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError:
            return
        with link, link.makefile("rb") as lines:
            while words := _command(lines.readline):
                match words[0].upper():
                    case b"PING":
                        link.sendall(b"+PONG\r\n")
                    case b"PSYNC" | b"SYNC":
                        link.sendall(b"+FULLRESYNC %s 0\r\n$%d\r\n" % (b"0" * 40, len(self._file)) + self._file)
                        link.sendall(b"".join(map(_encoded, self._effects)))
                    case _ if words[:2] != [b"REPLCONF", b"ACK"]:
                        link.sendall(b"+OK\r\n")


def _command(read_line: Callable[[], bytes]) -> list[bytes]:
    """The next command of a replica; none when the link is closed."""
    head = read_line()
    if not head.startswith(b"*"):
        return head.split()
    return [(read_line(), read_line().rstrip(b"\r\n"))[1] for _ in range(int(head[1:]))]


def _encoded(words: Sequence[Word]) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def saved(server: Server) -> bytes:
    """Its RDB file, now."""
    server.client().save()
    return (server.folder / "dump.rdb").read_bytes()
