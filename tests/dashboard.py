"""examples/dashboard as a process of its own, and what its page is told."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlencode

from servers import REPOSITORY, Server, eventually

EXAMPLE = REPOSITORY / "examples" / "dashboard"
SECONDS = 30


class Dashboard:
    def __init__(self, server: Server, log: Path, *options: str, login: str = "") -> None:
        self.server = server
        self.log = log
        url = f"redis://{login}127.0.0.1:{server.port}/0"
        command = [sys.executable, EXAMPLE / "dashboard.py", "--url", url, "--port", "0", *options]
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert self._process.stdout
        self.url = self._process.stdout.readline().rpartition(" ")[2].strip()
        assert self.url.startswith("http://127.0.0.1:"), log.read_text()
        self.port = int(self.url.strip("/").rpartition(":")[2])

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def state(self, tag: str | None = None) -> dict:
        status, _, body = self.get("/state" + (f"?{urlencode({'tag': tag})}" if tag else ""))
        assert status == 200
        return json.loads(body)

    def once(self, condition: Callable[[dict], object], tag: str | None = None) -> dict:
        """The first state of which the condition is true. One that was asked for keeps the lists fresh."""

        def met() -> dict | None:
            state = self.state(tag)
            return state if "locks" in state and condition(state) else None

        return eventually(met, SECONDS)

    def row(self, part: str, key: str, condition: Callable[[dict], object] = bool) -> dict:
        def found(state: dict) -> list[dict]:
            return [row for row in state[part]["rows"] if key in (row.get("key"), row.get("tag")) and condition(row)]

        return found(self.once(found))[0]

    def close(self) -> None:
        self._process.terminate()
        try:
            assert self._process.wait(SECONDS) == 0
            assert "Traceback" not in self.log.read_text(), self.log.read_text()
        finally:
            self._process.kill()
            self._process.stdout.close()


def limits(*pairs: Sequence[str]) -> list[str]:
    """limits(("api:*", "10 EX 60"), ...)"""
    return [word for pattern, limit in pairs for word in ("--limit", pattern, limit)]
