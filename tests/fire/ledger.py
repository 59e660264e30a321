"""What was promised so far, by the replies alone. A broken promise is a `Broken`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

Place = tuple[int, bytes]


class Broken(AssertionError):
    """The module has broken a promise."""


@dataclass(slots=True)
class Value:
    data: bytes | None  # None: any
    tags: frozenset[bytes] = frozenset()
    stale: bool = False


@dataclass(slots=True)
class Work:
    """A load or a database write under way."""

    place: Place
    began: int
    data: bytes


@dataclass
class Values:
    """What CACHE reads of a key may return: the value that was last written, if nothing has ended it since. That it is gone
    already, expired or evicted, is always allowed. Tags are counted on only where they are certain."""

    now: int = 0
    written: int = 0
    at: dict[Place, Value] = field(default_factory=dict)
    loads: dict[bytes, Work] = field(default_factory=dict)
    intents: dict[bytes, Work] = field(default_factory=dict)
    ended: dict[Place, int] = field(default_factory=dict)
    hit: dict[tuple[int, bytes], int] = field(default_factory=dict)
    rules: set[bytes] = field(default_factory=set)
    checked: Counter = field(default_factory=Counter)

    def new(self) -> bytes:
        self.written += 1
        return b"value %d" % self.written

    def put(self, place: Place, data: bytes | None, tags: frozenset[bytes] = frozenset()) -> None:
        self.at[place] = Value(data, tags)
        self.ended[place] = self.now

    def gone(self, place: Place) -> None:
        self.at.pop(place, None)
        self.ended[place] = self.now

    def moved(self, source: Place, target: Place) -> None:
        value = self.at.get(source)
        self.gone(source)
        self.gone(target)
        if value:
            self.at[target] = value

    def tag(self, db: int, tags: frozenset[bytes], *, stale: bool) -> None:
        for tag in tags:
            self.hit[db, tag] = self.now
        for place, value in list(self.at.items()):
            if place[0] == db and value.tags & tags:
                if stale:
                    value.stale = True
                else:
                    # Where the key is gone already, a load of it goes on.
                    del self.at[place]

    def flush(self, db: int | None) -> None:
        for place in list(self.at):
            if db is None or place[0] == db:
                self.gone(place)
        self.forget_work()

    def swap(self, one: int, other: int) -> None:
        swapped = {one: other, other: one}
        self.at = {(swapped.get(db, db), key): value for (db, key), value in self.at.items()}
        self.forget_work()

    def forget_work(self) -> None:
        self.loads.clear()
        self.intents.clear()

    def seen(self, place: Place, data: bytes | None, since: int, *, stale_ok: bool) -> None:
        """A read that was sent at `since` returned this."""
        if data is None or since != self.now:
            return
        self.checked["values"] += 1
        value = self.at.get(place)
        if value is None:
            raise Broken(f"{place}: {data!r} was read, and it had been removed")
        if value.data is not None and data != value.data:
            raise Broken(f"{place}: {data!r} was read, and {value.data!r} had been written")
        if value.stale and not stale_ok:
            raise Broken(f"{place}: {data!r} was read as fresh, and it is stale")
        if any(work.place == place for work in self.intents.values()) and not stale_ok:
            raise Broken(f"{place}: {data!r} was read as fresh while it is written in the database")

    def must_refuse(self, work: Work, tags: frozenset[bytes]) -> bool:
        db, _ = work.place
        return self.ended.get(work.place, 0) > work.began or any(
            self.hit.get((db, tag), 0) > work.began for tag in tags
        )


@dataclass
class Tokens:
    """Fencing tokens and versions come from one source, and only grow."""

    most: int = 0
    owners: dict[int, bytes] = field(default_factory=dict)

    def granted(self, token: int, owner: bytes, *, at_once: bool) -> None:
        # The holder that acquires again gets its token again. Who waited is told when others may have newer ones.
        if at_once and token not in self.owners:
            self.version(token)
        if self.owners.setdefault(token, owner) != owner:
            raise Broken(f"token {token} was granted to {self.owners[token]!r} and to {owner!r}")

    def version(self, version: int) -> None:
        if version <= self.most:
            raise Broken(f"token or version {version} came after {self.most}")
        self.most = version


@dataclass
class Locks:
    """Exclusive locks with leases that outlast the run, touched by LOCK commands and FLUSHALL alone."""

    held: dict[bytes, dict[bytes, int]] = field(default_factory=dict)
    freed: Counter = field(default_factory=Counter)
    all_freed: int = 0

    def granted(self, key: bytes, owner: bytes, token: int) -> None:
        others = {name: has for name, has in self.held.get(key, {}).items() if name != owner}
        if others:
            raise Broken(f"{key!r} was granted to {owner!r} (token {token}) while {others} hold it")
        self.held[key] = {owner: token}

    def free(self, key: bytes, now: int) -> None:
        self.held.pop(key, None)
        self.freed[key] = now

    def free_all(self, now: int) -> None:
        self.held.clear()
        self.all_freed = now

    def certain(self, key: bytes, since: int) -> bool:
        """Who has waited since then cannot have had it and lost it before the answer was read."""
        return max(self.freed[key], self.all_freed) < since


@dataclass
class Limits:
    """Limits with windows and leases that outlast the run. What was found is only a suspicion as long as the limiter may
    have been evicted, which the server counts."""

    used: Counter = field(default_factory=Counter)
    slots: dict[bytes, set[bytes]] = field(default_factory=dict)
    given_back: Counter = field(default_factory=Counter)
    all_given_back: int = 0
    suspicions: list[str] = field(default_factory=list)

    def certain(self, key: bytes, since: int) -> bool:
        """What was given to somebody who has waited since then was not given back before the answer was read."""
        return max(self.given_back[key], self.all_given_back) <= since

    def forget(self, now: int) -> None:
        self.all_given_back = now
        self.used.clear()
        self.slots.clear()
        self.suspicions.clear()


@dataclass
class Sums:
    """What was written behind the cache, and what the database has of it."""

    epoch: int = 0
    counters: Counter = field(default_factory=Counter)
    rows: dict[bytes, bytes | None] = field(default_factory=dict)
    database: dict[bytes, tuple[bytes | None, int]] = field(default_factory=dict)
    owed: list[tuple[bytes, bytes, int]] = field(default_factory=list)

    def forget(self) -> None:
        self.epoch += 1
        for part in (self.counters, self.rows, self.owed):
            part.clear()

    def write(self, queue: bytes, record: list) -> None:
        """As UPDATE … WHERE version < ? does, and the record is to be acked."""
        key, version, op, payload, *_ = record
        value, has = self.database.get(key, (None, 0))
        if version > has:
            if op == b"INCRBY":
                payload = b"%d" % (int(value or 0) + int(payload))
            self.database[key] = (payload if op != b"DEL" else None, version)
        self.owed.append((queue, key, version))

    def compare(self) -> None:
        for key, total in self.counters.items():
            value = int(self.database.get(key, (None, 0))[0] or 0)
            if value != total:
                raise Broken(f"{key!r}: increments of {total} were taken, the database has {value}")
        for key, value in self.rows.items():
            found = self.database.get(key, (None, 0))[0]
            if found != value:
                raise Broken(f"{key!r}: the last write was {value!r}, the database has {found!r}")


@dataclass
class Ledger:
    values: Values = field(default_factory=Values)
    tokens: Tokens = field(default_factory=Tokens)
    locks: Locks = field(default_factory=Locks)
    limits: Limits = field(default_factory=Limits)
    sums: Sums = field(default_factory=Sums)

    def flush_all(self) -> None:
        self.values.flush(None)
        self.locks.free_all(self.values.now)
        self.limits.forget(self.values.now)
        self.sums.forget()
