"""A redis-server of our own, for as long as the demo runs."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def module_path() -> Path:
    return Path(os.environ.get("KEYWARD_MODULE", REPOSITORY / "target" / "release" / "libkeyward.so")).resolve()


@contextmanager
def redis_server(folder: Path, maxmemory: str, module: bool) -> Iterator[redis.Redis]:
    """Starts redis-server on a free loopback port as a cache, yields a client, stops it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    command += ["--maxmemory", maxmemory, "--maxmemory-policy", "allkeys-lru"]
    if module:
        command += ["--loadmodule", str(module_path())]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield _connected(port, process, folder / "redis.log")
    finally:
        process.terminate()
        process.wait()


def _connected(port: int, process: subprocess.Popen, log: Path) -> redis.Redis:
    client = redis.Redis(port=port)
    deadline = time.monotonic() + 20
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"redis-server did not start:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            client.ping()
            return client
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
