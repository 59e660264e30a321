"""Which key carries which tags, by the contract alone: what the module is compared with.

A model is told of every command and its reply, and of which keys were there before and after it (a key may have expired
or been evicted meanwhile). It knows nothing of how the module finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Place = tuple[int, bytes]
Words = Sequence[bytes | str | int]


@dataclass(frozen=True)
class Operation:
    """A command to be run in a database, and the keys whose life it may change (db, key)."""

    db: int
    words: Words
    keys: tuple[Place, ...] = ()


@dataclass
class KeyspaceModel:
    tags: dict[Place, set[bytes]] = field(default_factory=dict)

    def there(self, keys: dict[Place, bool]) -> None:
        """Whether keys exist now: what is gone has no tags any more."""
        for place, exists in keys.items():
            if not exists:
                self.tags.pop(place, None)

    def ran(self, operation: Operation, reply: object) -> None:
        """The operation was run and not refused. To be followed by there()."""
        db, (name, *words) = operation.db, operation.words
        act = getattr(self, "_" + str(name).lower().replace(".", "_"), None)
        if act is not None:
            act(db, words, reply)

    # Every command that is not here is a plain one: it keeps the tags of a key that is there afterwards.

    def _cache_set(self, db: int, words: Words, reply: object) -> None:
        if reply is not None:
            self.tags[db, words[0]] = _tags_option(words)

    def _cache_mset(self, db: int, words: Words, reply: object) -> None:
        count = int(words[0])
        for key in words[1 : 1 + 2 * count : 2]:
            self.tags[db, key] = _tags_option(words[1 + 2 * count :])

    def _cache_tag(self, db: int, words: Words, reply: object) -> None:
        carried = self.tags.setdefault((db, words[0]), set())
        before = len(carried)
        carried.update(words[1:])
        # There() takes them off again if the key is not there.
        assert reply in (0, len(carried) - before), (words, reply)

    def _cache_untag(self, db: int, words: Words, reply: object) -> None:
        carried = self.tags.get((db, words[0]), set())
        gone = carried & set(words[1:]) if len(words) > 1 else set(carried)
        carried -= gone
        assert reply == len(gone), (words, reply)

    def _cache_invalidatetag(self, db: int, words: Words, reply: object) -> None:
        for place in [place for place, carried in self.tags.items() if place[0] == db and carried & set(words)]:
            del self.tags[place]

    def _rename(self, db: int, words: Words, reply: object) -> None:
        source, target = (db, words[0]), (db, words[1])
        if source != target:
            self.tags[target] = self.tags.pop(source, set())

    def _renamenx(self, db: int, words: Words, reply: object) -> None:
        if reply == 1:
            self._rename(db, words, reply)

    def _move(self, db: int, words: Words, reply: object) -> None:
        if reply == 1:
            self.tags[int(words[1]), words[0]] = self.tags.pop((db, words[0]), set())

    def _copy(self, db: int, words: Words, reply: object) -> None:
        if reply == 1:
            target = int(words[words.index("DB") + 1]) if "DB" in words else db
            self.tags[target, words[1]] = set()

    def _restore(self, db: int, words: Words, reply: object) -> None:
        self.tags[db, words[0]] = set()

    def _eval(self, db: int, words: Words, reply: object) -> None:
        # The only script in use deletes its key and sets it again.
        self.tags[db, words[2]] = set()

    def _flushdb(self, db: int, words: Words, reply: object) -> None:
        self.tags = {place: carried for place, carried in self.tags.items() if place[0] != db}

    def _flushall(self, db: int, words: Words, reply: object) -> None:
        self.tags = {}

    def _swapdb(self, db: int, words: Words, reply: object) -> None:
        a, b = map(int, words)
        swapped = {a: b, b: a}
        self.tags = {(swapped.get(at, at), key): carried for (at, key), carried in self.tags.items()}


def _tags_option(words: Words) -> set[bytes]:
    if "TAGS" not in words:
        return set()
    at = words.index("TAGS")
    return set(words[at + 2 : at + 2 + int(words[at + 1])])
