"""A real memcached and its meta protocol, for the tests that compare single flight with it."""

from __future__ import annotations

import select
import shutil
import socket
import subprocess
from typing import NamedTuple

from servers import eventually, free_port


class MetaError(Exception):
    """What memcached answers to a command that it does not take."""


class Answer(NamedTuple):
    """A return code, the flags with what follows each, and the data block of a VA."""

    code: str
    flags: dict[str, str]
    value: bytes | None

    @property
    def won(self) -> bool:
        return "W" in self.flags

    @property
    def lost(self) -> bool:
        return "Z" in self.flags

    @property
    def stale(self) -> bool:
        return "X" in self.flags

    @property
    def cas(self) -> str:
        return self.flags["c"]


class Memcached:
    """One process on a free port of the loopback."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Memcached:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        binary = shutil.which("memcached")
        if binary is None:
            raise FileNotFoundError("memcached is not on PATH: run `make setup`")
        self.port = free_port()
        # As root it asks for the user to become.
        where = ["-l", "127.0.0.1", "-p", str(self.port), "-u", "nobody", "-t", "1"]
        self._process = subprocess.Popen([binary, *where, *self._options], stdin=subprocess.DEVNULL)
        try:
            eventually(self._answers, message="memcached does not answer")
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        died = self._end()
        assert died is None, f"memcached died by itself, with status {died}"

    def _end(self) -> int | None:
        assert self._process
        status = self._process.poll()
        self._process.terminate()
        self._process.wait(10)
        return status

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, "memcached did not start"
        try:
            with MetaClient(self) as client:
                return client.call("mn").code == "MN"
        except ConnectionError:
            return False


class MetaClient:
    """One connection."""

    def __init__(self, memcached: Memcached) -> None:
        self._socket = socket.create_connection(("127.0.0.1", memcached.port), timeout=60)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> MetaClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def call(self, *words: str | int) -> Answer:
        return self._exchange(" ".join(map(str, words)).encode() + b"\r\n")

    def store(self, key: str, value: bytes, *flags: str) -> Answer:
        """ms"""
        return self._exchange(b"%b\r\n%b\r\n" % (" ".join(["ms", key, str(len(value)), *flags]).encode(), value))

    def classic(self, *words: str | int) -> str:
        """A command of before the meta commands, that answers one line."""
        self._socket.sendall(" ".join(map(str, words)).encode() + b"\r\n")
        return self._line()

    def get(self, key: str) -> bytes | None:
        """The classic `get`, which knows nothing of leases and staleness."""
        self._socket.sendall(b"get %b\r\n" % key.encode())
        line = self._line()
        if line == "END":
            return None
        value = self._file.read(int(line.split()[3]) + 2)[:-2]
        assert self._line() == "END"
        return value

    def is_answered(self) -> bool:
        """Has anything arrived that was not read yet?"""
        return bool(select.select([self._socket], [], [], 0)[0])

    def _exchange(self, request: bytes) -> Answer:
        self._socket.sendall(request)
        line = self._line()
        code, *flags = line.split()
        if code.endswith("ERROR"):
            raise MetaError(line)
        value = self._file.read(int(flags.pop(0)) + 2)[:-2] if code == "VA" else None
        return Answer(code, {flag[0]: flag[1:] for flag in flags}, value)

    def _line(self) -> str:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("memcached closed the connection")
        return line[:-2].decode()
