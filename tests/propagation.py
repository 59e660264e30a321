"""What a server propagates, command by command: to a replica, and into its AOF.

with ReplicationStream(server) as stream:
    client.execute_command("CACHE.INVALIDATE", "k")
    assert stream.read() == [[b"UNLINK", b"k"]]
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from servers import Server

Command = list[bytes]

# Upkeep of the link, not an effect of any command.
_UPKEEP = {b"PING", b"REPLCONF"}


class ReplicationStream:
    """Connects as a replica would, skips the RDB, and reads the commands that follow.

    read() gives everything propagated since the last read, and waits for nothing else: the
    primary's own replication offset says where to stop. So an empty list means "propagated
    nothing", without a pause and without a marker command.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._db = 0
        self._buffer = b""
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        # No "capa eof": the server then sends a sized RDB, which is easy to skip.
        self._send(b"REPLCONF", b"listening-port", b"1")
        assert self._line() == b"+OK"
        self._send(b"PSYNC", b"?", b"-1")
        answer = self._line()
        assert answer.startswith(b"+FULLRESYNC"), answer
        self._offset = int(answer.split()[2])
        size = self._line()
        assert size.startswith(b"$"), size
        self._take(int(size[1:]))

    def __enter__(self) -> ReplicationStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def read(self) -> list[Command]:
        """The commands propagated since the last read. MULTI and EXEC are among them, SELECT is
        not: see read_with_db."""
        return [command for _, command in self.read_with_db()]

    def read_with_db(self) -> list[tuple[int, Command]]:
        """The same, each with the number of the database it acts on."""
        target = self._server.info("replication")["master_repl_offset"]
        while self._offset + len(self._buffer) < target:
            self._fill()
        # The buffer may hold more than that by now, and its end may be half a command.
        commands, used = parse_commands(self._buffer)
        self._buffer = self._buffer[used:]
        self._offset += used
        # An acknowledgement now and then, or the primary takes the replica for dead.
        self._send(b"REPLCONF", b"ACK", b"%d" % self._offset)
        effects = [command for command in commands if command[0].upper() not in _UPKEEP]
        with_db, self._db = split_databases(effects, self._db)
        return with_db

    def _send(self, *words: bytes) -> None:
        parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)]
        self._socket.sendall(b"".join(parts))

    def _fill(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the primary closed the replication link")
        self._buffer += data

    def _line(self) -> bytes:
        # Empty lines are what the primary sends to keep the link alive while it saves.
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if not end:
                self._fill()
                continue
            self._buffer = rest
            if line.strip():
                return line.strip()

    def _take(self, size: int) -> None:
        while len(self._buffer) < size:
            self._fill()
        self._buffer = self._buffer[size:]


def aof_commands(server: Server, *, base: bool = False) -> list[Command]:
    """The commands in the server's incremental AOF files, oldest first, without SELECT.

    `base`: those of the base file instead, which has some only with aof-use-rdb-preamble no.
    """
    folder = server.folder / "appendonlydir"
    commands: list[Command] = []
    for line in (folder / "appendonly.aof.manifest").read_text().splitlines():
        words = line.split()
        entry = dict(zip(words[::2], words[1::2], strict=True))
        if entry["type"] == ("b" if base else "i"):
            data = (folder / entry["file"]).read_bytes()
            assert not data.startswith((b"REDIS", b"VALKEY")), "the base file is an RDB"
            parsed, used = parse_commands(data)
            assert used == len(data), "the AOF ends in half a command"
            commands += parsed
    return [command for _, command in split_databases(commands, 0)[0]]


def split_databases(commands: list[Command], db: int) -> tuple[list[tuple[int, Command]], int]:
    """Takes the SELECTs out of a stream: [(db, command)], and the db selected at its end."""
    out = []
    for command in commands:
        if command[0].upper() == b"SELECT":
            db = int(command[1])
        else:
            out.append((db, command))
    return out, db


def parse_commands(data: bytes) -> tuple[list[Command], int]:
    """Whole RESP commands at the start of `data`, and how many bytes they take."""
    commands: list[Command] = []
    used = 0
    for command, end in _commands(data):
        used = end
        if command:
            commands.append(command)
    return commands, used


def _commands(data: bytes) -> Iterator[tuple[Command, int]]:
    at = 0

    def line() -> bytes | None:
        nonlocal at
        end = data.find(b"\n", at)
        if end < 0:
            return None
        text, at = data[at:end].rstrip(b"\r"), end + 1
        return text

    while (head := line()) is not None:
        if not head or head.startswith(b"#"):
            yield [], at  # keep-alive newline, or an AOF annotation
            continue
        assert head.startswith(b"*"), head
        words: Command = []
        for _ in range(int(head[1:])):
            size = line()
            if size is None:
                return
            assert size.startswith(b"$"), size
            end = at + int(size[1:])
            if end + 2 > len(data):
                return
            words.append(data[at:end])
            at = end + 2
        yield words, at
