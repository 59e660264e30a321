"""Serves the log through one kind of cache, and compares every answer with the database at that moment.

Everything happens one after the other in one thread, so "at that moment" is exact: no update can slip in between an
answer and its check.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

from origin import Origin
from traffic import Event, Night, Request, Update

LOCK = "lock:nightly"
# The lease of a runner that is going to stall. Long enough for the second one to try meanwhile, on a busy machine too.
STALLED_MS = 500


@dataclass
class Outcome:
    """What happened."""

    name: str
    answered: int = 0
    limited: int = 0
    hits: int = 0
    stale: int = 0
    updates: int = 0
    invalidated: int = 0
    nights: int = 0
    job_runs: int = 0
    refused_late: int = 0
    origin_pages: int = 0
    origin_seconds: float = 0.0
    hit_seconds: list[float] = field(default_factory=list)
    miss_seconds: list[float] = field(default_factory=list)
    server: dict = field(default_factory=dict)

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.answered if self.answered else 0.0

    def median_ms(self, hit: bool) -> float:
        return 1000 * median(self.hit_seconds if hit else self.miss_seconds or [0.0])


def serve(cache, origin: Origin, auditor: Origin, events: Iterable[Event], progress: Callable[[], None]) -> Outcome:
    """`auditor` is a second connection, so that checking does not count as origin queries."""
    outcome = Outcome(cache.name)
    for event in events:
        match event:
            case Request(client, key):
                _answer(cache, origin, auditor, client, key, outcome)
                progress()
            case Update(statement, values, tag):
                origin.update(statement, *values)
                outcome.invalidated += cache.invalidate(tag)
                outcome.updates += 1
            case Night(number, stalls):
                _night(cache, origin, number, stalls, outcome)
    outcome.origin_pages, outcome.origin_seconds = origin.pages, origin.seconds
    outcome.job_runs = origin.job_runs()
    return outcome


def _answer(cache, origin: Origin, auditor: Origin, client: str, key: str, outcome: Outcome) -> None:
    if not cache.allow(client):
        outcome.limited += 1
        return
    start = time.perf_counter()
    body, hit = cache.page(key, lambda: origin.page(key))
    (outcome.hit_seconds if hit else outcome.miss_seconds).append(time.perf_counter() - start)
    outcome.answered += 1
    outcome.hits += hit
    outcome.stale += body != auditor.page(key).body


def _night(cache, origin: Origin, number: int, stalls: bool, outcome: Outcome) -> None:
    """Two machines start the nightly job at once. If `stalls`, the first is paused until its lease has run out."""
    outcome.nights += 1
    first, second = f"app-1:night-{number}", f"app-2:night-{number}"
    grant = cache.acquire(LOCK, first, STALLED_MS if stalls else 30_000)
    if cache.acquire(LOCK, second, 30_000) is not None:
        raise RuntimeError("two runners hold the lock")
    if stalls:
        late, grant = grant, _when_free(cache, second)
        origin.nightly_job(cache.fence(grant))
        # The first wakes up, knows nothing of its lost lock, and writes.
        outcome.refused_late += not origin.nightly_job(cache.fence(late))
        cache.release(LOCK, first)
        cache.release(LOCK, second)
    else:
        origin.nightly_job(cache.fence(grant))
        cache.release(LOCK, first)


def _when_free(cache, owner: str):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if (grant := cache.acquire(LOCK, owner, 30_000)) is not None:
            return grant
        time.sleep(0.005)
    raise RuntimeError("the lock of a stalled runner never became free")
