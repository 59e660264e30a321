"""Servers for the benchmarks: the test harness's own, and the same under callgrind, where instructions can be counted."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# At the end, so that a file of the tests never takes the place of one of ours.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import servers
from raw_client import Connection

# Background work would blur a figure: a slow cron, no saving, no rewriting of the AOF.
CONFIG = ["hz 1", "dynamic-hz no", "auto-aof-rewrite-percentage 0"]


class BenchServer(servers.Server):
    """A server in a temporary folder; use it in a `with` block."""

    start_timeout = 30.0

    def __init__(self, flavour: str, module: bool, aof: bool = False, peer: str | None = None):
        """`peer`: the library of another module, which a server without ours loads."""
        folder = Path(tempfile.mkdtemp(prefix="keyward-bench-"))
        loaded = [f"loadmodule {peer}"] if peer and not module else []
        super().__init__(
            folder, flavour=flavour, module=module, config=[*CONFIG, f"appendonly {'yes' if aof else 'no'}", *loaded]
        )
        self._connections: list[Connection] = []

    def __enter__(self):
        try:
            self.start(self.start_timeout)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_exc):
        for connection in self._connections:
            connection.close()
        try:
            self.stop()
        finally:
            self._remove()

    def connect(self) -> Connection:
        connection = Connection(self.port)
        self._connections.append(connection)
        return connection

    def _remove(self) -> None:
        self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)


class CountedServer(BenchServer):
    """The same server under callgrind. Counting is off until `count_instructions`, so fixtures load at a bearable speed."""

    start_timeout = 120.0

    def __init__(self, flavour: str, module: bool, aof: bool = False, peer: str | None = None):
        super().__init__(flavour, module, aof, peer)
        out = self.folder / "callgrind.out"
        valgrind = f"valgrind -q --tool=callgrind --instr-atstart=no --callgrind-out-file={out}"
        wrapped, self.binary = self.binary, self.folder / "under-callgrind"
        # exec keeps the process id, by which the server is stopped and counting is switched.
        self.binary.write_text(f'#!/bin/sh\nexec {valgrind} {wrapped} "$@"\n')
        self.binary.chmod(0o755)

    def count_instructions(self, action: Callable[[], object]) -> tuple[int, float]:
        """User-space instructions of the whole server, all its threads, while `action()` runs; and the seconds that took."""
        self._monitor("instrumentation on")
        self._monitor("zero")
        start = time.monotonic()
        action()
        elapsed = time.monotonic() - start
        before = set(self.folder.glob("callgrind.out.*"))
        self._monitor("dump")
        self._monitor("instrumentation off")
        (dump,) = set(self.folder.glob("callgrind.out.*")) - before
        totals = [line for line in dump.read_text().splitlines() if line.startswith("totals:")]
        dump.unlink()
        return int(totals[-1].split()[1]), elapsed

    def _monitor(self, command: str) -> None:
        subprocess.run(["vgdb", f"--pid={self.pid}", *command.split()], check=True, capture_output=True, timeout=120)
