"""Random operations on few keys in a few databases: cache commands and plain ones, mixed."""

from __future__ import annotations

import random

from keyspace_model import Operation
from servers import default_flavour

# Server bugs that modules which hear of key events meet: on Valkey 8.1 MOVE and COPY ... DB leave the client on the wrong
# database; on Valkey 9.1, inside MULTI, they name the wrong database to the module.
SERVER_CONFUSES_DATABASES = default_flavour().startswith("valkey")

KEYS = [b"k:%d" % number for number in range(60)]
TAGS = [b"t:%d" % number for number in range(9)]
DATABASES = [0, 1, 2]
DELETE_AND_SET = "redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], ARGV[1]) return 1"


class RandomOperations:
    """Draws operations. `short`: milliseconds after which short-lived keys expire."""

    def __init__(self, draw: random.Random, keys=KEYS, *, size):
        self.draw, self.keys, self.size = draw, keys, size
        self.dump = b""
        self.kinds = [kind for kind, weight in self.WEIGHTS.items() for _ in range(weight)]

    WEIGHTS = {
        "cache_set": 30,
        "cache_set_short": 6,
        "cache_mset": 3,
        "cache_tag": 6,
        "cache_untag": 3,
        "cache_invalidate": 3,
        "cache_invalidatetag": 2,
        "cache_floor": 1,
        "plain_set": 8,
        "delete": 5,
        "expire": 4,
        "rename": 6,
        "move": 3,
        "copy": 4,
        "restore": 3,
        "store": 4,
        "container": 8,
        "script": 2,
        "swap": 1,
    }

    def next(self) -> Operation:
        return getattr(self, "_" + self.draw.choice(self.kinds))(self.draw.choice(DATABASES))

    def _key(self):
        return self.draw.choice(self.keys)

    def _tags(self):
        chosen = self.draw.sample(TAGS, self.draw.choice([1, 1, 2, 3, 5]))
        return ["TAGS", len(chosen), *chosen]

    def _value(self):
        return b"x" * self.draw.randrange(self.size)

    def _one(self, db, key, *words):
        return Operation(db, words, ((db, key),))

    def _cache_set(self, db):
        key = self._key()
        condition = self.draw.choice([[], [], [], ["NX"], ["XX"]])
        chosen = self._tags() if self.draw.random() < 0.9 else []
        expiry = ["EX", 1000] if self.draw.random() < 0.5 else []
        return self._one(db, key, "CACHE.SET", key, self._value(), *condition, *chosen, *expiry)

    def _cache_set_short(self, db):
        key = self._key()
        return self._one(db, key, "CACHE.SET", key, self._value(), "PX", self.draw.randrange(1, 10), *self._tags())

    def _cache_mset(self, db):
        keys = self.draw.sample(self.keys, min(5, len(self.keys)))
        pairs = [word for key in keys for word in (key, self._value())]
        return Operation(db, ("CACHE.MSET", len(keys), *pairs, *self._tags()), tuple((db, key) for key in keys))

    def _cache_tag(self, db):
        key = self._key()
        return self._one(db, key, "CACHE.TAG", key, *self._tags()[2:])

    def _cache_untag(self, db):
        key = self._key()
        return self._one(db, key, "CACHE.UNTAG", key, *self.draw.choice([[], self._tags()[2:]]))

    def _cache_invalidate(self, db):
        key = self._key()
        return self._one(db, key, "CACHE.INVALIDATE", key)

    def _cache_invalidatetag(self, db):
        return Operation(db, ("CACHE.INVALIDATETAG", *self._tags()[2:]))

    def _cache_floor(self, db):
        key = self._key()
        return self._one(db, key, "CACHE.FLOOR", key, self.draw.randrange(1000))

    def _plain_set(self, db):
        key = self._key()
        words = self.draw.choice([("SET", key, self._value()), ("APPEND", key, "x"), ("SETEX", key, 1000, "v")])
        return self._one(db, key, *words)

    def _delete(self, db):
        key = self._key()
        return self._one(db, key, self.draw.choice(["DEL", "UNLINK", "GETDEL"]), key)

    def _expire(self, db):
        key, word = self._key(), self.draw.choice(["PEXPIRE", "PEXPIRE", "PEXPIREAT", "PERSIST"])
        return self._one(db, key, word, key, *([] if word == "PERSIST" else [self.draw.randrange(1, 10)]))

    def _rename(self, db):
        source, target = self._key(), self._key()
        word = self.draw.choice(["RENAME", "RENAMENX"])
        return Operation(db, (word, source, target), ((db, source), (db, target)))

    def _move(self, db):
        if SERVER_CONFUSES_DATABASES:
            return self._rename(db)
        key, to = self._key(), self.draw.choice([other for other in DATABASES if other != db])
        return Operation(db, ("MOVE", key, to), ((db, key), (to, key)))

    def _copy(self, db):
        source, target = self._key(), self._key()
        to = db if SERVER_CONFUSES_DATABASES else self.draw.choice(DATABASES)
        options = [] if to == db else ["DB", to]
        replace = self.draw.choice([[], ["REPLACE"]])
        return Operation(db, ("COPY", source, target, *options, *replace), ((db, source), (to, target)))

    def _restore(self, db):
        key = self._key()
        return self._one(
            db, key, "RESTORE", key, self.draw.choice([0, 0, 5]), self.dump, *self.draw.choice([[], ["REPLACE"]])
        )

    def _store(self, db):
        source, target = self._key(), self._key()
        words = self.draw.choice(
            [
                ("SORT", source, "ALPHA", "STORE", target),
                ("SUNIONSTORE", target, source),
                ("SINTERSTORE", target, source, b"nothing"),
                ("ZUNIONSTORE", target, 1, source),
                ("BITOP", "NOT", target, source),
            ]
        )
        return Operation(db, words, ((db, source), (db, target)))

    def _container(self, db):
        key, other = self._key(), self._key()
        words = self.draw.choice(
            [
                ("HSET", key, "f", self._value()),
                ("HDEL", key, "f"),
                ("RPUSH", key, "a", "b"),
                ("LPOP", key, 2),
                ("LMOVE", key, other, "LEFT", "RIGHT"),
                ("SADD", key, "a", "b"),
                ("SPOP", key, 2),
                ("SMOVE", key, other, "a"),
                ("ZADD", key, 1, "m"),
                ("ZPOPMIN", key),
                ("DEL", key),
            ]
        )
        return Operation(db, words, ((db, key), (db, other)))

    def _script(self, db):
        key = self._key()
        return self._one(db, key, "EVAL", DELETE_AND_SET, 1, key, self._value())

    def _swap(self, db):
        a, b = self.draw.choice(DATABASES), self.draw.choice(DATABASES)
        kind = self.draw.random()
        if kind < 0.6:
            return Operation(db, ("SWAPDB", a, b))
        if kind < 0.9:
            return Operation(db, ("FLUSHDB", self.draw.choice(["SYNC", "ASYNC"])))
        return Operation(db, ("FLUSHALL", self.draw.choice(["SYNC", "ASYNC"])))
