#!/usr/bin/env python3
"""Walks the path of somebody who has just found the project: a clone, and then what README.md tells a newcomer to type.

The commands and the answers come out of README.md; this adds no more than a port that is free, and a shorter demo. The
environment is empty but for HOME and PATH. CARGO_* are passed on: with CARGO_TARGET_DIR what is built there is used again.

    scripts/stranger.py
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT / "tests"))

from documented_examples import steps, typed  # noqa: E402

ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name in ("HOME", "PATH") or name.startswith("CARGO_")
}
KEPT = ["CACHE.SETTAGGED", "kept", "yes", "EX", "3000", "TAGS", "1", "stranger"]


class Lost(Exception):
    """Where a newcomer would stand and not know what to do."""


class Foreground:
    """A command in a terminal of its own, which goes on until somebody stops it."""

    def __init__(self, command: str, clone: Path, output: Path, answers: Callable[[], bool]) -> None:
        self._command = command
        self._clone = clone
        self._output = output
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._output.open("ab") as output:
            # A session of its own: what Ctrl-C would reach can be signalled together.
            self._process = subprocess.Popen(
                ["bash", "-c", self._command],
                cwd=self._clone,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait(lambda: self._ended() or self._answers(), 900, f"`{self._command}`: nothing answers")
        if self._ended():
            raise Lost(f"`{self._command}` ended\n{self._output.read_text()[-3000:]}")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            if not self._ended():
                os.killpg(self._process.pid, number)
            self._process.wait(30)
            wait(lambda: not self._answers(), 30, f"`{self._command}` goes on")
            self._process = None

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None


def redis_cli(port: int, *words: str) -> str:
    done = subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True, timeout=10)
    return done.stdout.strip()


def free_port() -> int:
    """Below the range of outgoing connections, so that it stays free while the server restarts."""
    while True:
        port = random.randrange(11000, 22000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Lost(complaint)
        time.sleep(0.05)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    begun = time.monotonic()
    print(f"stranger: {text}", flush=True)
    yield
    print(f"stranger:   {time.monotonic() - begun:.1f} s", flush=True)


def run(command: str, clone: Path) -> None:
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=clone,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise Lost(f"`{command}` failed\n{output[-3000:]}")


def beginning(readme: str) -> tuple[str, str]:
    """The first thing to type, and the section that says so."""
    section = re.search(r"^## A minute to start\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    command = section and re.search(r"^```sh\n(.+)\n```", section[1], re.MULTILINE)
    if not section or not command or len(steps(section[1])) < 3:
        raise Lost("README.md does not begin with a command that starts a server, and three to type then")
    return command[1], section[1]


def walk(folder: Path) -> None:
    clone = folder / "keyward"
    with step(f"git clone {CHECKOUT}"):
        run(f"git clone --quiet '{CHECKOUT}' '{clone}'", folder)
    readme = (clone / "README.md").read_text()
    command, section = beginning(readme)
    port = free_port()
    server = Foreground(
        f"{command} PORT={port}", clone, folder / "server.log", lambda: redis_cli(port, "PING") == "PONG"
    )
    try:
        with step(f"{command}: builds the module and starts a server"):
            server.start()
        with step("the first commands of README.md"):
            for words, answer, alike in typed(section, port):
                print(f"stranger:   > {words}\n{answer.rstrip()}", flush=True)
                if not alike:
                    raise Lost("README.md shows another answer")
        with step(f"Ctrl-C, and {command}: what was there is there, with its tag"):
            redis_cli(port, *KEPT)
            server.interrupt()
            server.start()
            expect(port, "yes", "CACHE.GET", "kept")
        with step(f"kill -9, and {command}: what was saved is there, and its tag finds it"):
            server.kill()
            server.start()
            expect(port, "1", "CACHE.INVALIDATETAG", "stranger")
        look_at_the_dashboard(readme, port, clone, folder / "dashboard.log")
    finally:
        server.kill()
    if "`make demo`" not in readme:
        raise Lost("README.md does not name the demo")
    with step("make demo, of 2500 requests"):
        run("make demo DEMO_ARGS='--requests 2500'", clone)


def look_at_the_dashboard(readme: str, port: int, clone: Path, output: Path) -> None:
    if "`make dashboard`" not in readme:
        raise Lost("README.md does not name the dashboard")
    page_port = free_port()
    command = f"make dashboard PORT={port} DASHBOARD_PORT={page_port}"
    page = Foreground(command, clone, output, lambda: b"Keyward" in fetched(page_port, "/"))
    with step("make dashboard, and its page and what it shows"):
        try:
            page.start()
            json.loads(fetched(page_port, "/state"))
            page.interrupt()
        finally:
            page.kill()


def fetched(port: int, path: str) -> bytes:
    """Nothing, if nobody listens yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.read()
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return b""
        raise


def expect(port: int, expected: str, *words: str) -> None:
    answer = redis_cli(port, *words)
    if answer != expected:
        raise Lost(f"{' '.join(words)} answers {answer!r} rather than {expected!r}")


def main() -> int:
    # As Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="keyward-stranger-"))
    try:
        walk(folder)
    except Lost as lost:
        print(f"stranger: {lost}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    print(f"stranger: arrived after {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
