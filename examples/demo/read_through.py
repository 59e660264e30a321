"""Read-through: readers ask the cache alone, a worker loads for them. A new server starts cold, or warmed with what was hot before."""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

EXAMPLES = Path(__file__).resolve().parent.parent
LOADER = "flights"
WAIT_MS = 30_000
HOTTEST = 1000
PAGE = """
SELECT f.*, airlines.name AS airline, o.name AS origin_name, d.name AS dest_name, manufacturer, model, seats,
    json_array('airline:' || f.carrier, 'airport:' || f.origin, 'airport:' || f.dest, 'day:' || f.day) AS tags
FROM flights f JOIN airlines USING (carrier) LEFT JOIN planes USING (tailnum)
LEFT JOIN airports o ON o.faa = f.origin LEFT JOIN airports d ON d.faa = f.dest
WHERE f.id = :id
"""


@dataclass
class Served:
    """What readers saw."""

    name: str
    warmed: int = 0
    warm_seconds: float = 0.0
    hits: int = 0
    early_hits: int = 0  # among the first hundred
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def hit_ratio(self) -> float:
        return self.hits / max(1, len(self.seconds))


@contextmanager
def loader_process(client: redis.Redis, database: Path, folder: Path) -> Iterator[None]:
    """examples/worker, as anybody would start it."""
    port = client.get_connection_kwargs()["port"]
    command = [sys.executable, "-m", "worker", "--redis", f"redis://127.0.0.1:{port}"]
    command += ["--database", f"sqlite:///{database}", "--loader", LOADER, "flight:{id}", PAGE, "--ttl", "600"]
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=EXAMPLES, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def serve_through(name: str, client: redis.Redis, database: Path, keys: list[str], hot: list[bytes] = ()) -> Served:
    """Warms what was hot, then reads the pages one after the other and compares each with the database."""
    outcome, auditor = Served(name), sqlite3.connect(database)
    auditor.row_factory = sqlite3.Row
    if hot:
        start = time.perf_counter()
        outcome.warmed = client.execute_command("CACHE.WARM", LOADER, *hot)
        _until_all_are_there(client, hot)
        outcome.warm_seconds = time.perf_counter() - start
    for key in keys:
        start = time.perf_counter()
        status, page, _ = client.execute_command("CACHE.READ", key, "LOADER", LOADER)
        outcome.hits += status == b"HIT"
        outcome.early_hits += status == b"HIT" and len(outcome.seconds) < 100
        if status != b"HIT":
            _, page, _ = client.execute_command("CACHE.READ", key, "LOADER", LOADER, "WAIT", WAIT_MS)
        outcome.seconds.append(time.perf_counter() - start)
        right = dict(auditor.execute(PAGE, {"id": key.partition(":")[2]}).fetchone())
        right.pop("tags")
        outcome.wrong += page is None or json.loads(page) != right
    auditor.close()
    return outcome


def hottest(client: redis.Redis) -> list[bytes]:
    return [key for key, _reads in client.execute_command("CACHE.HOT", "COUNT", HOTTEST, "PREFIX", "flight:")]


def _until_all_are_there(client: redis.Redis, keys: list[bytes]) -> None:
    deadline = time.monotonic() + 60
    while client.exists(*keys) < len(keys):
        if time.monotonic() > deadline:
            raise RuntimeError("the loader never came to an end")
        time.sleep(0.005)
