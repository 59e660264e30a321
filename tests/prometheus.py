"""Debian's Prometheus and its exporter for Redis, as processes of the tests: on loopback, on free ports, ended by their pid."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from servers import REPOSITORY, eventually, free_port

EXAMPLE = REPOSITORY / "examples" / "monitoring"
PAGE = REPOSITORY / "docs" / "monitoring.md"
SECONDS = 30
# How often is scraped, and a span that has some scrapes in it.
INTERVAL = "500ms"
SOME_SCRAPES = "5s"


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        return response.read().decode()


class _Process:
    def __init__(self, folder: Path, name: str, command: list[str | Path], environment: Mapping[str, str]) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, url: str) -> None:
        def answers() -> bool:
            assert self._process.poll() is None, self.log.read_text()
            try:
                get(url)
            except urllib.error.URLError:
                return False
            return True

        eventually(answers, SECONDS)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)


class Exporter(_Process):
    """Started as docs/monitoring.md says, with a user of its own or without."""

    def __init__(self, folder: Path, *, user: bool) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        page = PAGE.read_text()
        plain, with_user = re.findall(r'ARGS="(.*)"', page)
        arguments = with_user if user else plain
        arguments = arguments.replace("/etc/prometheus", str(EXAMPLE)).replace("127.0.0.1:9121", self.address)
        variables = dict(re.findall(r"^(REDIS_\w+)=(.*)$", page, re.MULTILINE)) if user else {}
        super().__init__(folder, "exporter", ["prometheus-redis-exporter", *arguments.split()], variables)
        self.wait_for(f"http://{self.address}/health")

    def scrape(self, port: int) -> str:
        return get(f"http://{self.address}/scrape?target=127.0.0.1:{port}")


class Prometheus(_Process):
    """Runs a configuration beside the rules of the example."""

    def __init__(self, folder: Path, config: str) -> None:
        folder.mkdir()
        (folder / "prometheus.yml").write_text(config)
        (folder / "alerts.yml").symlink_to(EXAMPLE / "alerts.yml")
        self._url = f"http://127.0.0.1:{free_port()}"
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self._url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        super().__init__(folder, "prometheus", command, {})
        self.wait_for(f"{self._url}/-/ready")

    def query(self, expression: str) -> list[dict]:
        """The series that a query gives now; a query that is wrong raises."""
        return self._api("query", query=expression)["result"]

    def rules(self) -> list[dict]:
        return [rule for group in self._api("rules")["groups"] for rule in group["rules"]]

    def _api(self, what: str, **parameters: str) -> dict:
        answer = json.loads(get(f"{self._url}/api/v1/{what}?{urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]
