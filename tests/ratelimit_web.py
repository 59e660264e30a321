"""The application of examples/ratelimit as a process of its own, in either language, and requests to it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import http_sfv
from servers import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "ratelimit"
DRIVERS = {
    "python": [sys.executable, str(REPOSITORY / "tests" / "ratelimit_driver.py")],
    "node": ["node", str(REPOSITORY / "tests" / "ratelimit_driver.mjs")],
}
# A reply of the application comes within this, or never.
SECONDS = 30


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict:
        return json.loads(self.content)

    def field(self, name: str) -> list[tuple[str, dict]]:
        """A structured field that is a list of items: [(item, parameters), ...]."""
        items = http_sfv.List()
        items.parse(self.headers[name.lower()].encode())
        return [(item.value, dict(item.params)) for item in items]

    @property
    def remaining(self) -> int:
        [(_, parameters)] = self.field("RateLimit")
        return parameters["r"]


def send(port: int, method: str = "GET", path: str = "/items", **headers: str) -> HTTPConnection:
    """One request on a connection of its own. headers: x_api_key="..." is X-Api-Key."""
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return connection


def receive(connection: HTTPConnection) -> Response:
    with contextlib.closing(connection):
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, headers, response.read())


class Web:
    """`limits` and `options` are those of the middleware; `timeout_ms` is how long it waits for Redis."""

    def __init__(
        self, language: str, redis_port: int, log: Path, limits: Sequence[dict], timeout_ms: int, options: dict
    ) -> None:
        self._log_file = log
        arguments = [f"redis://127.0.0.1:{redis_port}/0", str(timeout_ms), json.dumps(limits), json.dumps(options)]
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*DRIVERS[language], *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, self.log()
        self.port = int(line)

    def ask(self, method: str = "GET", path: str = "/items", **headers: str) -> Response:
        return receive(send(self.port, method, path, **headers))

    def log(self) -> str:
        return self._log_file.read_text()

    def close(self) -> None:
        alive = self._process.poll() is None
        self._process.terminate()
        try:
            self._process.wait(SECONDS)
        finally:
            self._process.kill()
            assert self._process.stdout
            self._process.stdout.close()
        assert alive, self.log()
