"""Single flight by the contract alone: what every caller is told, and when. The module is compared with it, reply by reply.
Time does not pass here: expiry, eviction and the end of a lease are steps of their own.
"""

from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

Tags = frozenset[str]


@dataclass(eq=False)
class Load:  # stands for the token of a lease
    key: str
    began: int
    revoked: int | None = None


@dataclass(eq=False)
class Waiter:
    key: str
    came: int
    stale_ok: bool


class Reply(NamedTuple):
    status: str
    value: bytes | None = None
    load: Load | None = None


@dataclass(frozen=True)
class Value:
    data: bytes
    tags: Tags
    grace: bool
    stale: bool = False


@dataclass
class Key:
    value: Value | None = None
    negative: Tags | None = None
    live: Load | None = None
    revoked: list[Load] = field(default_factory=list)
    failure: bytes | None = None
    queue: list[Waiter] = field(default_factory=list)

    def loads(self) -> list[Load]:
        return [load for load in (self.live, *self.revoked) if load]


class SingleFlightModel:
    def __init__(self, keys: list[str]) -> None:
        self.keys = {key: Key() for key in keys}
        self.answers: dict[Waiter, Reply] = {}  # to those who waited until this step
        self._tick = count(1).__next__
        self._invalidated: dict[str, tuple[int, int]] = {}  # first and last, while a load is out

    def fetch(self, key: str, *, wait: bool, stale_ok: bool) -> Reply | Waiter:
        at = self.keys[key]
        held = at.live or at.failure is not None
        if at.value and not at.value.stale:
            return Reply("HIT", at.value.data)
        if at.value and stale_ok:
            return Reply("STALE", at.value.data) if held else Reply("REFRESH", at.value.data, self._elect(key))
        if at.negative is not None:
            return Reply("NONE")
        if at.live and wait:
            at.queue.append(Waiter(key, self._tick(), stale_ok))
            return at.queue[-1]
        if held:
            return Reply("BUSY") if at.live else Reply("ERROR", at.failure)
        return Reply("MISS", None, self._elect(key))

    def fill(self, load: Load, value: Value | None, tags: Tags) -> int:
        """FILL, or FILLNIL where the value is None."""
        at = self.keys[load.key]
        if load not in at.loads():
            return 0
        refused = [when for when in (load.revoked, *(self._hit(load, tag) for tag in tags)) if when is not None]
        self._end(at, load)
        told = Reply("HIT", value.data) if value else Reply("NONE")
        if refused:
            self._answer(at, told, lambda waiter: waiter.came < min(refused))
            self._settle(load.key)
        else:
            self._store(at, value, None if value else tags, told)
        return int(not refused)

    def fail(self, load: Load, message: bytes | None = None) -> int:
        """FAIL. With a message nobody is to try again until a value comes. Without: also the end of a lease's time."""
        at = self.keys[load.key]
        if load not in at.loads():
            return 0
        self._end(at, load)
        at.failure = message if load.revoked is None else at.failure
        self._settle(load.key)
        return int(load.revoked is None)

    def leave(self, waiter: Waiter) -> None:
        """His connection closes, or somebody unblocks him."""
        self.keys[waiter.key].queue.remove(waiter)
        self._tidy(self.keys[waiter.key])

    def set(self, key: str, value: Value) -> None:
        """CACHE.SET"""
        self._store(self.keys[key], value, None, Reply("HIT", value.data))

    def plain_set(self, key: str, data: bytes) -> None:
        """SET keeps the tags. (Not of a key that is missing while it is loaded: when that is noticed is left open.)"""
        was = self.keys[key].value
        self._change(self.keys[key], Value(data, was.tags if was else frozenset(), grace=False))

    def remove(self, key: str, *, by_name: bool = True) -> int:
        """CACHE.INVALIDATE (by name), which counts where there is no key, or DEL, which does not."""
        was = self.keys[key].value
        if was or by_name:
            self._change(self.keys[key], None)
        return int(was is not None)

    def stale(self, key: str) -> int:
        was = self.keys[key].value
        self._change(self.keys[key], replace(was, stale=True) if was and was.grace else None)
        return int(was is not None and not was.stale)

    def tag(self, tag: str, *, stale: bool) -> int:
        """CACHE.STALETAG or CACHE.INVALIDATETAG"""
        now = self._tick()
        if any(at.loads() for at in self.keys.values()):
            self._invalidated[tag] = (self._invalidated.get(tag, (now, now))[0], now)
        for at in self.keys.values():
            at.negative = None if at.negative and tag in at.negative else at.negative
        carrying = [key for key, at in self.keys.items() if at.value and tag in at.value.tags]
        return sum([self.stale(key) if stale else self.remove(key) for key in carrying])

    def vanish(self, keys: list[str]) -> None:
        """Expiry and eviction end no lease."""
        for key in keys:
            self.keys[key].value = None

    def flush(self) -> None:
        for key, at in self.keys.items():
            self._change(at, None)
            at.failure = None
            self._settle(key)

    def _elect(self, key: str) -> Load:
        at = self.keys[key]
        assert at.live is None, "at most one live lease"
        at.live, at.failure = Load(key, self._tick()), None
        return at.live

    def _change(self, at: Key, value: Value | None) -> None:
        at.value, at.negative = value, None
        if at.live:
            at.live.revoked = self._tick()
            at.revoked, at.live = [*at.revoked, at.live], None
        self._tidy(at)

    def _hit(self, load: Load, tag: str) -> int | None:
        """When the tag was first invalidated since the load began; where that is not known, at its beginning."""
        first, last = self._invalidated.get(tag, (0, 0))
        return None if last < load.began else max(first, load.began)

    def _end(self, at: Key, load: Load) -> None:
        at.live, at.revoked = at.live if at.live is not load else None, [one for one in at.revoked if one is not load]

    def _store(self, at: Key, value: Value | None, negative: Tags | None, told: Reply) -> None:
        at.value, at.negative, at.live, at.failure = value, negative, None, None
        self._answer(at, told, lambda waiter: True)

    def _answer(self, at: Key, told: Reply, wanted) -> None:
        self.answers |= {waiter: told for waiter in at.queue if wanted(waiter)}
        at.queue = [waiter for waiter in at.queue if not wanted(waiter)]
        self._tidy(at)

    def _settle(self, key: str) -> None:
        """A load has brought nothing for those who still wait: they get what is there, or the oldest is elected."""
        at = self.keys[key]
        if at.queue and not at.live:
            stale = at.value.data if at.value and at.value.stale else None
            if at.negative is not None or (at.value and not stale):
                self._answer(at, Reply("HIT", at.value.data) if at.value else Reply("NONE"), lambda waiter: True)
            elif at.failure is None:
                first = at.queue.pop(0)
                shown = stale if first.stale_ok else None
                self.answers[first] = Reply("REFRESH" if shown else "MISS", shown, self._elect(key))
            self._answer(at, Reply("STALE", stale), lambda waiter: stale is not None and waiter.stale_ok)
            if at.failure is not None:
                self._answer(at, Reply("ERROR", at.failure), lambda waiter: True)
        self._tidy(at)

    def _tidy(self, at: Key) -> None:
        """A revoked load matters only to those who wait, and an invalidation only to loads that are older."""
        at.revoked = at.revoked if at.queue else []
        oldest = min((load.began for at in self.keys.values() for load in at.loads()), default=self._tick())
        self._invalidated = {tag: times for tag, times in self._invalidated.items() if times[1] >= oldest}
