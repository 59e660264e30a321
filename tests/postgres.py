"""A PostgreSQL server for tests: Debian's package, in a temporary folder, on loopback and a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
from servers import eventually, free_port

# Nothing here has to survive the machine, and every commit would wait for the disk.
SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "max_connections": "50"}


def binaries() -> Path:
    """Debian keeps them off the PATH, a folder for each version."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise FileNotFoundError("postgres is not there: run `make setup`")
    return versions[-1].parent


class Postgres:
    def __init__(self) -> None:
        # Not pytest's folder: it is closed to the user that the server runs as.
        self.folder = Path(tempfile.mkdtemp(prefix="keyward-postgres-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._as_user: dict[str, object] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://keyward@127.0.0.1:{self.port}/postgres"

    def create(self) -> Postgres:
        command = [binaries() / "initdb", "--no-sync", "--auth=trust", "--username=keyward", "--encoding=UTF8"]
        command += ["--locale=C", "--pgdata", self.folder / "data"]
        subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=self.folder, **self._as_user)
        return self

    def start(self) -> Postgres:
        settings = [f"--{name}={value}" for name, value in (SETTINGS | {"port": str(self.port)}).items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.folder / "data", *settings],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **self._as_user,
            )
        eventually(self._answers, timeout=60)
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text(errors='replace')}")
        try:
            psycopg.connect(host="127.0.0.1", port=self.port, user="keyward", dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """At once: connections are cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
