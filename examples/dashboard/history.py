"""What counters did in the last minutes, second by second."""

from collections import deque
from typing import NamedTuple

SAMPLES = 300
SMOOTHED_S = 10  # the hit ratio of one second alone jumps up and down
SHORTEST_S = 0.5  # a rate over less is chance; what comes sooner is part of the next sample


class Sample(NamedTuple):
    """What was added since the sample before. None: it is not known, the server was away or has started anew."""

    unix_ms: int
    seconds: float
    found: int | None
    reads: int | None
    commands: int | None
    suppressed: int | None
    timeouts: int | None


COUNTED = ("found", "reads", "commands", "suppressed", "timeouts")


class History:
    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._before: dict[str, int] | None = None
        self._before_s = 0.0

    def add(self, unix_ms: int, clock_s: float, info: dict) -> None:
        now = counted(info)
        before, seconds = self._before, clock_s - self._before_s
        if before is not None and seconds < SHORTEST_S:
            return
        self._before, self._before_s = now, clock_s
        if before is None:
            return
        added = {name: now[name] - before[name] for name in COUNTED}
        if min(added.values()) < 0:
            self._samples.append(_gap(unix_ms))
        else:
            self._samples.append(Sample(unix_ms, seconds, **added))

    def gap(self, unix_ms: int) -> None:
        self._samples.append(_gap(unix_ms))
        self._before = None

    def told(self) -> dict:
        rates = {name: [_rate(sample, name) for sample in self._samples] for name in ("reads", "commands")}
        known = [sample for sample in self._samples if sample.reads is not None]
        return {
            "unix_ms": [sample.unix_ms for sample in self._samples],
            "hit_ratio": self._hit_ratios(),
            "hit_ratio_overall": _ratio(known),
            "suppressed": sum(sample.suppressed for sample in known),
            "timeouts": sum(sample.timeouts for sample in known),
        } | rates

    def _hit_ratios(self) -> list[float | None]:
        """At each sample that of the SMOOTHED_S seconds up to it; none where nothing was read."""
        window: deque[Sample] = deque()
        ratios = []
        for sample in self._samples:
            if sample.reads is None:
                window.clear()
            else:
                window.append(sample)
            while window and window[0].unix_ms <= sample.unix_ms - 1000 * SMOOTHED_S:
                window.popleft()
            ratios.append(_ratio(window))
        return ratios


def counted(info: dict) -> dict[str, int]:
    found = sum(info[f"keyward_cache_{name}"] for name in ("hits", "stale_hits", "none_hits"))
    return {
        "found": found,
        "reads": found + info["keyward_cache_misses"],
        "commands": info["total_commands_processed"],
        "suppressed": info["keyward_cache_stampedes_suppressed"],
        "timeouts": info["keyward_cache_lease_timeouts"],
    }


def _gap(unix_ms: int) -> Sample:
    return Sample(unix_ms, 0, **dict.fromkeys(COUNTED))


def _ratio(samples) -> float | None:
    reads = sum(sample.reads for sample in samples)
    return round(sum(sample.found for sample in samples) / reads, 4) if reads else None


def _rate(sample: Sample, name: str) -> float | None:
    added = getattr(sample, name)
    return None if added is None else round(added / sample.seconds, 1)
