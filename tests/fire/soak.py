"""A load of all families for a while: does anything grow that should not? `make soak`, by hand for an hour with SOAK_SECONDS=3600."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from raw_client import RawClient, Word
from servers import REPOSITORY, Server, default_flavour, eventually

from fire.run import Run, start

# How long before the load counts, so that buffers and tables have the size they have under it.
WARM_UP = 5
PROGRESS = 10
BATCH = 2000
SAMPLES = 2000
# More than what fragmentation and the connections of the moment make.
MARGIN = 2_000_000
PROBES: dict[str, tuple[Word, ...]] = {
    "CACHE.SET": ("CACHE.SET", "probe", "v", "EX", 600, "TAGS", 2, "probe:1", "probe:2"),
    "CACHE.GET": ("CACHE.GET", "probe"),
    "CACHE.INVALIDATETAG": ("CACHE.INVALIDATETAG", "probe:1"),
    "LOCK.ACQUIRE": ("LOCK.ACQUIRE", "probe:lock", "ann", "PX", 600_000),
    "RATELIMIT.CHECK": ("RATELIMIT.CHECK", "probe:limit", 1_000_000, "EX", 600),
    "WRITEBEHIND.INCRBY": ("WRITEBEHIND.INCRBY", "probe:queue", "probe:count", 1),
}


def gauges() -> list[str]:
    """All of them, by the page that follows the source; memory apart."""
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    return [name for name in re.findall(r"`keyward_(\w+)` \| gauge", page) if not name.endswith("_bytes")]


class Soak:
    def __init__(self, make: Callable[..., Server], seed: int, say: Callable[[str], None] = print) -> None:
        self.run, self.say = Run(*start(make), seed), say
        # The same server from begin to end.
        self.run.change_roles = lambda: None

    def load(self, seconds: float) -> None:
        end, shown = time.monotonic() + seconds, time.monotonic()
        before = self.run.done["commands"]
        while time.monotonic() < end:
            self.run.run(self.run.done["commands"] + BATCH, batch=BATCH)
            if time.monotonic() - shown > PROGRESS:
                done, took = self.run.done["commands"], time.monotonic() - shown
                rate, memory = (done - before) / took, self.used() / 1e6
                self.say(f"{done} commands, {rate:.0f}/s, {memory:.1f} MB, {self.run.summary()}")
                before, shown = done, time.monotonic()

    def latencies(self) -> str:
        """Round trips of single commands, one after the other, in microseconds."""
        lines = []
        with RawClient(self.run.primary) as raw:
            for name, words in PROBES.items():
                times = []
                for _ in range(SAMPLES):
                    began = time.perf_counter()
                    raw.call(*words)
                    times.append((time.perf_counter() - began) * 1e6)
                times.sort()
                at = [times[int(len(times) * part)] for part in (0.5, 0.99, 0.999)]
                lines.append(f"{name} p50 {at[0]:.0f} p99 {at[1]:.0f} p99.9 {at[2]:.0f} max {times[-1]:.0f}")
            raw.call("FLUSHALL")
        self.run.ledger.flush_all()
        return "; ".join(lines)

    def empty(self) -> None:
        """Takes away all that the load has made."""
        run = self.run
        run.quiet()
        for container in ("CACHE.POLICY", "CACHE.RULE"):
            for name in run.admin.call(container, "LIST"):
                assert run.admin.call(container, "DEL", name) == 1
        run.ledger.values.rules.clear()
        assert run.admin.call("FLUSHALL", "SYNC") == "OK"
        run.ledger.flush_all()

        def nothing_left() -> bool:
            info = run.primary.info("everything")
            left = {name: info[f"keyward_{name}"] for name in gauges() if info[f"keyward_{name}"]}
            assert not left, f"after FLUSHALL there are still {left}"
            return True

        # Failures are remembered for a while, and tables shrink bit by bit.
        eventually(nothing_left, timeout=60)

    def used(self) -> int:
        """Memory without what replication and connections have at the moment."""
        self.run.admin.call("MEMORY", "PURGE")
        info = self.run.primary.info("memory")
        return info["used_memory"] - info["mem_total_replication_buffers"] - info["mem_clients_normal"]

    def soak(self, seconds: float) -> None:
        self.load(min(WARM_UP, seconds))
        self.empty()
        self.say(f"at the beginning, in microseconds: {self.latencies()}")
        self.empty()
        base = self.used()
        self.load(seconds)
        self.empty()
        self.say(f"at the end, in microseconds: {self.latencies()}")
        self.empty()
        eventually(lambda: self.used() < base + MARGIN, timeout=60, message=f"{self.used()} bytes, {base} before")
        self.say(f"memory before {base / 1e6:.2f} MB, after {self.used() / 1e6:.2f} MB, all gauges 0")
        self.run.disconnect()


@contextlib.contextmanager
def servers_in_a_folder() -> Iterator[Callable[..., Server]]:
    number = itertools.count()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def make(**options: object) -> Server:
            server = Server(Path(folder, str(next(number))), **options).start()
            stack.callback(server.kill9)
            return server

        yield make


def main() -> None:
    seconds = float(os.environ.get("SOAK_SECONDS") or 600)
    seed = int(os.environ.get("KEYWARD_SEED") or random.randrange(2**32))
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{default_flavour()} seed {seed}, {time.monotonic() - began:.0f} s: {line}", flush=True)

    with servers_in_a_folder() as make:
        try:
            Soak(make, seed, say).soak(seconds)
        except AssertionError as failure:
            say(f"failed: {failure}")
            sys.exit(1)


if __name__ == "__main__":
    main()
