"""What can be seen of a server's data, in one transaction, so that two looks can be compared, and a look with itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from raw_client import ErrorReply, RawClient, Word, fields

from fire.op import DATABASES, KEPT_DATABASE, LIMITS, LOCKS, MIXED, QUEUES, SLOTS, TAGS, VALUES

ALL_TAGS = [*TAGS, b"tag:1", b"tag:2", *[b"n:%d" % number for number in range(3)]]
KEYS = {db: [*VALUES, *MIXED] for db in DATABASES} | {KEPT_DATABASE: [*LOCKS, *LIMITS, *SLOTS, *QUEUES]}
OWN_TYPES = ("kw-lock-1", "kw-limit1", "kw-slots1", "kw-queue1")


@dataclass
class Seen:
    """A key: its type, its tags, what its value is, when it expires."""

    kind: str
    tags: frozenset[bytes]
    value: object
    expires: int
    state: bytes


NO_DIGEST = ["0" * 40]
NOTHING = Seen("none", frozenset(), NO_DIGEST, -2, b"missing")


@dataclass
class Look:
    keys: dict[tuple[int, bytes], Seen] = field(default_factory=dict)
    tag_keys: dict[tuple[int, bytes], frozenset[bytes]] = field(default_factory=dict)
    queues: dict[tuple[int, bytes], dict[bytes, int]] = field(default_factory=dict)
    lists: tuple[frozenset[bytes], ...] = ()
    info: dict[str, int] = field(default_factory=dict)
    time_ms: int = 0

    def tags_differ(self) -> list[str]:
        """By key and by tag is the same."""
        found = []
        for (db, tag), keys in self.tag_keys.items():
            carried = {key for (at, key), seen in self.keys.items() if at == db and tag in seen.tags}
            if carried != keys:
                found.append(f"db {db}, tag {tag!r}: the keys say {sorted(carried)}, TAGKEYS says {sorted(keys)}")
        return found

    def gauges_differ(self) -> list[str]:
        """What INFO says is what can be counted."""
        of_queues = [{name.decode(): number for name, number in queue.items()} for queue in self.queues.values()]
        counted = {
            "cache_tagged_keys": sum(1 for seen in self.keys.values() if seen.tags),
            "cache_tags": len({(db, tag) for (db, _), seen in self.keys.items() for tag in seen.tags}),
            "cache_policies": len(self.lists[0]),
            "cache_rules": len(self.lists[1]),
            "lock_locks": sum(1 for seen in self.keys.values() if seen.kind == "kw-lock-1"),
            "writebehind_queues": len(self.queues),
            **{
                f"writebehind_{name}": sum(queue[name] for queue in of_queues)
                for name in ("dirty", "in_flight", "dead")
            },
        }
        nothing = (
            *("cache_waiters", "lock_waiters", "ratelimit_waiters", "writebehind_waiters", "cache_waiting_loaders"),
            *("cache_ghosts", "caught_panics", "lock_limbo", "writebehind_limbo", "cache_reclaim_backlog"),
        )
        counted |= dict.fromkeys(nothing, 0)
        return [
            f"{name}: INFO says {self.info[f'keyward_{name}']}, counted are {number}"
            for name, number in counted.items()
            if self.info[f"keyward_{name}"] != number
        ]

    def differs_from(self, other: Look) -> list[str]:
        found = []
        for place, seen in self.keys.items():
            theirs = other.keys.get(place, NOTHING)
            mine = (seen.kind, seen.tags, seen.value, seen.expires)
            if mine != (theirs.kind, theirs.tags, theirs.value, theirs.expires):
                found.append(f"{place}: {seen} and {theirs}")
        if self.lists != other.lists:
            found.append(f"{self.lists} and {other.lists}")
        return found

    def lost_by_a_reload(self, after: Look) -> list[str]:
        """As differs_from, but what a restart ends may be gone: what expires now, what was written in the database."""
        found = []
        for place, seen in self.keys.items():
            ends = 0 <= seen.expires <= after.time_ms or seen.state in (b"writing", b"invalidated", b"stale")
            theirs = after.keys.get(place, NOTHING)
            mine = (seen.kind, seen.tags, seen.value, seen.expires)
            if not ends and mine != (theirs.kind, theirs.tags, theirs.value, theirs.expires):
                found.append(f"{place}: {seen} before, {theirs} after")
        if self.lists != after.lists:
            found.append(f"{self.lists} before, {after.lists} after")
        return found


def look(raw: RawClient) -> Look:
    """One consistent look at everything that there is, and at what should be there."""
    found = raw.pipeline([words for db in KEYS for words in (("SELECT", db), ("KEYS", "*"))])[1::2]
    keys = {db: sorted({*KEYS[db], *names}) for db, names in zip(KEYS, found, strict=True)}
    places = [(db, key) for db, names in keys.items() for key in names]
    commands: list[tuple[Word, ...]] = []
    for db, key in places:
        # The first one notices that a key has expired.
        commands += [("SELECT", db), ("TYPE", key), ("CACHE.TAGS", key), ("PEXPIRETIME", key), ("DUMP", key)]
        commands += [("DEBUG", "DIGEST-VALUE", key), ("CACHE.EXPLAIN", key), ("WRITEBEHIND.INFO", key)]
    for db in KEYS:
        commands += [("SELECT", db), *[("CACHE.TAGKEYS", tag, "COUNT", 1000) for tag in ALL_TAGS]]
    commands += [("CACHE.POLICY", "LIST"), ("CACHE.RULE", "LIST"), ("INFO", "keyward"), ("TIME",)]
    *queued, replies = raw.pipeline([("MULTI",), *commands, ("EXEC",)])
    assert isinstance(replies, list), [reply for reply in queued if isinstance(reply, ErrorReply)]
    return _seen(places, iter(replies))


def _seen(places: list[tuple[int, bytes]], replies) -> Look:
    seen = Look()
    for place in places:
        _, kind, tags, expires, dump, digest, explained, queue = [next(replies) for _ in range(8)]
        # A replica may keep what has expired as long as it likes, and the digest shows that.
        value = dump if kind in OWN_TYPES else NO_DIGEST if kind == "none" else digest
        seen.keys[place] = Seen(str(kind), frozenset(tags), value, expires, fields(explained)[b"state"])
        if kind == "kw-queue1":
            seen.queues[place] = fields(queue)
    for db in KEYS:
        next(replies)
        for tag in ALL_TAGS:
            seen.tag_keys[db, tag] = frozenset(next(replies)[1])
    seen.lists = frozenset(next(replies)), frozenset(next(replies))
    lines = next(replies).decode().splitlines()
    seen.info = {name: int(value) for name, value in (line.split(":", 1) for line in lines if ":" in line)}
    seconds, microseconds = map(int, next(replies))
    seen.time_ms = seconds * 1000 + microseconds // 1000
    return seen
