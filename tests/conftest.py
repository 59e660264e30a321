"""Fixtures. `server` is shared and emptied before each test; a test that changes configuration,
replication or the process itself takes `make_server`."""
# ruff: noqa: E402

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

# Before they are imported: an assertion in a shared part then says what it compared, as one in a test does.
SHARED = [path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "conftest"]
pytest.register_assert_rewrite(*(name for name in SHARED if not name.startswith("test_")))

import redis
from postgres import Postgres
from servers import BUILT, FLAVOURS, REPOSITORY, Server, default_flavour, end_all, server_version

from cluster import Cluster, running_cluster


def pytest_configure(config: pytest.Config) -> None:
    known = [*FLAVOURS, *BUILT]
    if default_flavour() not in known:
        raise pytest.UsageError(f"KEYWARD_SERVER={default_flavour()} is unknown (known: {', '.join(known)})")


def pytest_report_header() -> str:
    version = ".".join(map(str, server_version(default_flavour())))
    return f"server: {default_flavour()} (version {version})"


class _SharedServer:
    """Started with the first test that wants it, and again after a test that crashed it, so that
    one crash fails one test."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._server: Server | None = None

    def get(self) -> Server:
        if self._server is None or not self._server.alive():
            self._server = Server(self._folders.mktemp("shared", numbered=True)).start()
        return self._server

    def stop(self) -> None:
        if self._server is not None and self._server.alive():
            self._server.stop()


@pytest.fixture(scope="session")
def _shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_SharedServer]:
    shared = _SharedServer(tmp_path_factory)
    yield shared
    shared.stop()


@pytest.fixture
def server(_shared_server: _SharedServer) -> Iterator[Server]:
    """A server with the module, all databases empty. Do not reconfigure it."""
    server = _shared_server.get()
    with server.client() as client:
        client.flushall()
        # Policies and rules are no data, and stay.
        for container in ("CACHE.POLICY", "CACHE.RULE"):
            for name in client.execute_command(container, "LIST"):
                client.execute_command(container, "DEL", name)
    yield server
    server.close_clients()
    server.check()


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def protocol(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def client(server: Server, protocol: int) -> redis.Redis:
    """A client of the shared server, once for each protocol version; replies are bytes."""
    return server.client(protocol)


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """make_server(flavour=, module=, args=, config=, ...) -> a started server of the test's own.

    After the test each is checked for crashes and stopped, whatever the test did.
    """
    servers: list[Server] = []

    def make(**options: object) -> Server:
        server = Server(tmp_path / f"server-{len(servers)}", **options)
        servers.append(server)
        return server.start()

    yield make

    end_all(servers)


@pytest.fixture(scope="module")
def _shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # No node of it is to be taken for dead, however much the machine has to do.
    with running_cluster(tmp_path_factory.mktemp("cluster"), timeout_ms=60_000) as cluster:
        yield cluster


@pytest.fixture
def cluster(_shared_cluster: Cluster) -> Iterator[Cluster]:
    """Three primaries without data, the same for all tests of a file. Do not kill nodes, and leave settings as they were."""
    _shared_cluster.empty()
    yield _shared_cluster
    for node in _shared_cluster.nodes:
        node.close_clients()
        node.check()


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """make_cluster(primaries, replicas, config=, ...) -> a running cluster of the test's own."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(running_cluster(tmp_path, *args, **options))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server. Who uses it drops the tables that he makes, before."""
    server = Postgres()
    try:
        yield server.create().start()
    finally:
        server.remove()


@pytest.fixture(scope="session")
def node_modules() -> Callable[[Path], None]:
    """node_modules(example): installs the packages that the example's lock file names."""

    @functools.cache
    def install(example: Path) -> None:
        target = (example / "node_modules" / ".installed").relative_to(REPOSITORY)
        # Tests run in several processes, and npm must not run twice in one folder.
        with (example / "package-lock.json").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.run(["make", "--silent", target], cwd=REPOSITORY, check=True, timeout=150)

    return install


@pytest.fixture(scope="session")
def debug_module() -> Path:
    """The module built without --release, which has KEYWARD.DEBUG."""
    subprocess.run(["cargo", "build", "--locked", "--quiet"], cwd=REPOSITORY, check=True, timeout=900)
    return REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target") / "debug" / "libkeyward.so"
