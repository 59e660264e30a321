"""Draws commands on values: what CACHE reads of these keys may return is known."""

from __future__ import annotations

from raw_client import Word

from fire.ledger import Broken, Work
from fire.op import DATABASES, EVENTS, LONG, MOVES, TAGS, VALUES, Draws, Op


class ValueCommands(Draws):
    def place(self) -> tuple[int, bytes]:
        return self.draw.choice(DATABASES), self.draw.choice(VALUES)

    def tags(self) -> tuple[frozenset[bytes], list[Word]]:
        chosen = self.draw.sample(TAGS, self.draw.choice([0, 1, 1, 2, 3]))
        return frozenset(chosen), ["TAGS", len(chosen), *chosen] if chosen else []

    def set_value(self) -> Op:
        place, data, (tags, options) = self.place(), self.ledger.values.new(), self.tags()
        condition = self.draw.choice([[], [], [], [], ["NX"], ["XX"]])

        def told(reply: object, _: int) -> None:
            if reply == "OK":
                self.ledger.values.put(place, data, tags)

        words = ("CACHE.SET", place[1], data, *self.expiry(), *options, *condition)
        return Op(place[0], words, told)

    def set_values(self) -> Op:
        db, (tags, options) = self.draw.choice(DATABASES), self.tags()
        pairs = [(key, self.ledger.values.new()) for key in self.draw.sample(VALUES, 3)]

        def told(_: object, __: int) -> None:
            for key, data in pairs:
                self.ledger.values.put((db, key), data, tags)

        words = ("CACHE.MSET", 3, *[word for pair in pairs for word in pair], *self.expiry(), *options)
        return Op(db, words, told)

    def set_plain(self) -> Op:
        (db, key), data = self.place(), self.ledger.values.new()
        words = self.draw.choice([("SET", key, data), ("SETEX", key, 1000, data), ("GETSET", key, data)])
        return Op(db, words, lambda _, __: self.ledger.values.put((db, key), data))

    def get_value(self) -> Op:
        db = self.draw.choice(DATABASES)
        keys = self.draw.sample(VALUES, self.draw.choice([1, 3]))

        def told(reply: object, since: int) -> None:
            for key, data in zip(keys, reply if isinstance(reply, list) else [reply], strict=True):
                self.ledger.values.seen((db, key), data, since, stale_ok=False)

        return Op(db, ("CACHE.GET" if len(keys) == 1 else "CACHE.MGET", *keys), told)

    def fetched(self, place: tuple[int, bytes], reply: list, since: int) -> None:
        status, data, token = reply
        if status != b"ERROR":
            self.ledger.values.seen(place, data, since, stale_ok=status != b"HIT")
        if token is not None:
            self.began(place, token)

    def began(self, place: tuple[int, bytes], token: bytes) -> None:
        values = self.ledger.values
        if token in values.loads:
            raise Broken(f"token {token!r} was handed out twice")
        values.loads[token] = Work(place, values.now, values.new())

    def fetch(self, *wait: Word) -> Op:
        place = self.place()
        options = self.draw.choice([[], [], ["STALE", "NEVER"], ["BETA", 3], ["LEASE", 5], ["LEASE", 50_000]])
        words = ("CACHE.FETCH", place[1], *wait, *options)
        return Op(place[0], words, lambda reply, since: self.fetched(place, reply, since))

    def fetch_many(self) -> Op:
        db, keys = self.draw.choice(DATABASES), self.draw.sample(VALUES, 3)

        def told(reply: object, since: int) -> None:
            for key, one in zip(keys, reply, strict=True):
                self.fetched((db, key), one, since)

        return Op(db, ("CACHE.MFETCH", 3, *keys), told)

    def read(self, *wait: Word) -> Op:
        place = self.place()
        words = ("CACHE.READ", place[1], "LOADER", b"loader", *wait)
        return Op(place[0], words, lambda reply, since: self.fetched(place, reply, since))

    def loads(self, *wait: Word) -> Op:
        db = self.draw.choice(DATABASES)

        def told(reply: object, _: int) -> None:
            for key, token, *_ in reply:
                self.began((db, key), token)

        return Op(db, ("CACHE.LOADS", b"loader", "COUNT", 3, *wait), told)

    def warm(self) -> Op:
        return Op(self.draw.choice(DATABASES), ("CACHE.WARM", b"loader", *self.draw.sample(VALUES, 2)))

    def _work(self, under_way: dict[bytes, Work]) -> tuple[bytes, Work]:
        """A load or write under way, mostly; else one that nobody knows."""
        if under_way and self.draw.random() < 0.95:
            return self.draw.choice(list(under_way.items()))
        return b"0123456789abcdef-1", Work(self.place(), self.ledger.values.now, self.ledger.values.new())

    def fill(self) -> Op:
        values = self.ledger.values
        token, work = self._work(values.loads)
        tags, options = self.tags()

        def told(reply: object, _: int) -> None:
            if reply:
                if token in values.loads and values.must_refuse(work, tags):
                    raise Broken(f"{work}: filled with {tags}, after what was loaded had been invalidated")
                values.put(work.place, work.data, tags)
            values.loads.pop(token, None)

        words = ("CACHE.FILL", work.place[1], token, work.data, *self.expiry(), *options)
        return Op(work.place[0], words, told, lambda: values.loads.pop(token, None))

    def end_load(self) -> Op:
        values = self.ledger.values
        token, work = self._work(values.loads)
        kind = self.draw.randrange(4)
        words = (
            ("CACHE.FILLNIL", work.place[1], token, "PX", 5000, *self.tags()[1]),
            ("CACHE.FAIL", work.place[1], token),
            ("CACHE.FAIL", work.place[1], token, "MSG", b"no", "RETRY", 5),
            ("CACHE.RENEW", work.place[1], token, "LEASE", 50_000),
        )[kind]

        def told(reply: object, _: int) -> None:
            if kind == 0 and reply:
                values.gone(work.place)
            if kind < 3:
                values.loads.pop(token, None)

        return Op(work.place[0], words, told)

    def intent(self) -> Op:
        place, px = self.place(), self.draw.choice([5, LONG * 1000])
        values, data = self.ledger.values, self.ledger.values.new()

        def told(reply: object, _: int) -> None:
            values.ended[place] = values.now
            if px > 5:
                values.intents[reply] = Work(place, values.now, data)

        return Op(place[0], ("CACHE.INTENT", place[1], "PX", px), told)

    def commit(self) -> Op:
        values = self.ledger.values
        token, work = self._work(values.intents)
        (tags, options), with_value = self.tags(), self.draw.random() < 0.8

        def told(reply: object, _: int) -> None:
            if reply and with_value and token in values.intents and values.must_refuse(work, tags):
                raise Broken(f"{work}: committed with {tags}, though something had come between")
            values.intents.pop(token, None)
            values.gone(work.place)
            if reply and with_value:
                values.put(work.place, work.data, tags)

        def refused() -> None:
            values.intents.pop(token, None)
            values.gone(work.place)

        words = ("CACHE.COMMIT", work.place[1], token)
        if with_value:
            words += (work.data, *self.expiry(), *options)
        return Op(work.place[0], words, told, refused)

    def rollback(self) -> Op:
        values = self.ledger.values
        token, work = self._work(values.intents)
        return Op(
            work.place[0],
            ("CACHE.ROLLBACK", work.place[1], token),
            lambda _, __: values.intents.pop(token, None),
        )

    def invalidate(self) -> Op:
        db, keys = self.draw.choice(DATABASES), self.draw.sample(VALUES, self.draw.choice([1, 2]))
        return Op(db, ("CACHE.INVALIDATE", *keys), lambda _, __: [self.ledger.values.gone((db, key)) for key in keys])

    def invalidate_tag(self) -> Op:
        db, tags = self.draw.choice(DATABASES), self.draw.sample(TAGS, self.draw.choice([1, 1, 2]))
        return Op(
            db,
            ("CACHE.INVALIDATETAG", *tags),
            lambda _, __: self.ledger.values.tag(db, frozenset(tags), stale=False),
        )

    def stale(self) -> Op:
        (db, key), tag = self.place(), self.draw.choice(TAGS)
        values = self.ledger.values
        if self.draw.random() < 0.5:
            return Op(db, ("CACHE.STALETAG", tag), lambda _, __: values.tag(db, frozenset([tag]), stale=True))

        def told(_: object, __: int) -> None:
            if value := values.at.get((db, key)):
                value.stale = True

        return Op(db, ("CACHE.STALE", key), told)

    def tag(self) -> Op:
        place, tag = self.place(), self.draw.choice(TAGS)
        values, adds = self.ledger.values, self.draw.random() < 0.6

        def told(reply: object, _: int) -> None:
            if value := values.at.get(place):
                value.tags = value.tags - {tag}
                if adds and reply == 1:
                    value.tags = value.tags | {tag}

        return Op(place[0], ("CACHE.TAG" if adds else "CACHE.UNTAG", place[1], tag), told)

    def floor(self) -> Op:
        place = self.place()
        return Op(
            place[0],
            ("CACHE.FLOOR", place[1], self.draw.randrange(1000)),
            lambda reply, _: self.ledger.values.gone(place) if reply else None,
        )

    def rule(self) -> Op:
        event, rules = self.draw.choice(EVENTS), self.ledger.values.rules
        if self.draw.random() < 0.2:
            return Op(0, ("CACHE.RULE", "DEL", event), lambda _, __: rules.discard(event))
        words = ("CACHE.RULE", "SET", event, "KEYS", 1, "p:{id}", "TAGS", 1, "t:{id}")
        return Op(0, words, lambda _, __: rules.add(event))

    def emit(self) -> Op:
        db, event, number = self.draw.choice(DATABASES), self.draw.choice(EVENTS), self.draw.randrange(6)

        def told(_: object, __: int) -> None:
            if event in self.ledger.values.rules:
                self.ledger.values.gone((db, b"p:%d" % number))
                self.ledger.values.tag(db, frozenset([b"t:%d" % number]), stale=False)

        return Op(db, ("CACHE.EMIT", event, f'{{"id": {number}}}'), told)

    def policy(self) -> Op:
        name = self.draw.choice([b"policy:p", b"policy:q"])
        if self.draw.random() < 0.3:
            return Op(0, ("CACHE.POLICY", "DEL", name))
        options = [
            *self.draw.choice([[], ["EX", 1000], ["PX", 5000], ["EX", 1000, "JITTER", 5, "GRACE", 1000]]),
            *self.draw.choice([[], ["SLIDING"]]),
            *self.draw.choice([[], ["BETA", 1]]),
            *self.draw.choice([[], ["AHEAD", "50%", "LOADER", b"loader"]]),
            *self.draw.choice([[], ["PATTERN", "p:{id}", "ENFORCE", self.draw.choice(["off", "warn", "reject"])]]),
        ]
        return Op(0, ("CACHE.POLICY", "SET", name, "PREFIX", name[-1:] + b":", *options))

    def delete(self) -> Op:
        place, values = self.place(), self.ledger.values
        words = self.draw.choice([("DEL",), ("UNLINK",), ("GETDEL",), ("PEXPIRE", -1)])

        def told(reply: object, _: int) -> None:
            if reply in (0, None):
                return
            if words[0] == "PEXPIRE":
                # Valkey says that it expired, which ends no load.
                values.at.pop(place, None)
            else:
                values.gone(place)

        return Op(place[0], (words[0], place[1], *words[1:]), told)

    def expire(self) -> Op:
        db, key = self.place()
        words = self.draw.choice([("PEXPIRE", key, 5), ("EXPIRE", key, 1000), ("PERSIST", key), ("GETEX", key)])
        return Op(db, words)

    def rename(self) -> Op:
        db, values = self.draw.choice(DATABASES), self.ledger.values
        source, target = self.draw.sample(VALUES, 2)
        word = self.draw.choice(["RENAME", "RENAME", "RENAMENX"])

        def told(reply: object, _: int) -> None:
            if reply != 0:
                self._without_intents((db, source), (db, target))
                values.moved((db, source), (db, target))

        return Op(db, (word, source, target), told)

    def _without_intents(self, *places: tuple[int, bytes]) -> None:
        intents = self.ledger.values.intents
        for token in [token for token, work in intents.items() if work.place in places]:
            del intents[token]

    def move(self) -> Op:
        if not MOVES:
            return self.rename()
        (db, key), values = self.place(), self.ledger.values
        to = self.draw.choice([other for other in DATABASES if other != db])

        def told(reply: object, _: int) -> None:
            if reply:
                self._without_intents((db, key), (to, key))
                values.moved((db, key), (to, key))

        return Op(db, ("MOVE", key, to), told)

    def copy(self) -> Op:
        (db, source), (to, target), values = self.place(), self.place(), self.ledger.values
        to = to if MOVES else db

        def told(reply: object, _: int) -> None:
            if reply:
                # Plain commands see what is retired and not unlinked yet, so that it may be any value.
                values.put((to, target), None)

        return Op(db, ("COPY", source, target, *(["DB", to] if to != db else []), "REPLACE"), told)
