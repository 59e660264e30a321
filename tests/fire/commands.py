"""Draws commands: those whose replies the ledger can judge, and all others of the catalogue and of the server on keys of
any type."""

from __future__ import annotations

import random

import catalogue
from catalogue import EXAMPLES, Bounded, Command, Data, Key, Number, Option, Text
from raw_client import Word

from fire.kept import KeptCommands
from fire.ledger import Ledger
from fire.op import DATABASES, MIXED, MOVES, TAGS, Op, Told
from fire.values import ValueCommands


class Commands(ValueCommands, KeptCommands):
    def __init__(self, draw: random.Random, ledger: Ledger) -> None:
        super().__init__(draw, ledger)
        self.kinds = [getattr(self, name) for name, weight in WEIGHTS.items() for _ in range(weight)]
        self.waiting_kinds = [getattr(self, name) for name, weight in WAITING.items() for _ in range(weight)]
        # Intents that run out remove their key, at a reload as well: those here are short ones.
        self.names = [name for name in EXAMPLES if name not in ("KEYWARD.APPLY", "CACHE.INTENT")]
        self.dump = b""

    def one(self) -> Op:
        """A command that does not wait."""
        return self.draw.choice(self.kinds)()

    def waiting(self, waiter: int) -> Op:
        self.connection = waiter
        return self.draw.choice(self.waiting_kinds)()

    # All others, on keys of any type

    def any_command(self) -> Op:
        name = self.draw.choice(self.names)
        words = [self._word(part) for part in EXAMPLES[name].parts]
        chance = self.draw.random()
        if chance < 0.1:
            words = words[: self.draw.randrange(len(words) + 1)]
        elif chance < 0.15 and words:
            words[self.draw.randrange(len(words))] = self.draw.choice([b"", -1, b"\xff\x00", 2**63, "EX", "TAGS"])
        return Op(self.draw.choice(DATABASES), (*catalogue.typed(name), *words), self._tokens_of(name, words))

    def _word(self, part: object) -> Word:
        match part:
            case Key():
                return self.draw.choice(MIXED)
            case Text(word) if word == catalogue.TOKEN.word:
                return self.draw.choice([word, *list(self.ledger.values.loads)[:3]])
            case Text(word) | Data(word) | Option(word) | Command(word):
                return word
            case Bounded(word):
                return self.draw.choice([word, b"n:%d" % self.draw.randrange(3)])
            case Number(word):
                # Mostly counts of what follows.
                return word if self.draw.random() < 0.8 else self.draw.choice([1, 2, 5, 20])
        raise AssertionError(part)

    def _tokens_of(self, name: str, words: list[Word]) -> Told | None:
        tokens = self.ledger.tokens
        owner = {"LOCK.ACQUIRE": 1, "LOCK.MACQUIRE": 3}.get(name)
        if owner is not None and len(words) > owner:
            who = words[owner] if isinstance(words[owner], bytes) else str(words[owner]).encode()
            return lambda reply, _: tokens.granted(reply, who, at_once=True) if reply else None
        if name in ("WRITEBEHIND.SET", "WRITEBEHIND.DEL"):
            return lambda reply, _: tokens.version(reply)
        if name == "WRITEBEHIND.INCRBY":
            return lambda reply, _: tokens.version(reply[1])
        return None

    def plain_command(self) -> Op:
        key, other = self.draw.choice(MIXED), self.draw.choice(MIXED)
        choices: list[tuple[Word, ...]] = [
            *[("SET", key, b"v"), ("SET", key, 5, "PX", 5), ("APPEND", key, b"x"), ("INCR", key), ("GET", key)],
            *[("DEL", key), ("UNLINK", key, other), ("PEXPIRE", key, 5), ("PERSIST", key), ("EXPIRE", key, 0)],
            *[("RENAME", key, other), ("RENAMENX", key, other), ("COPY", key, other, "REPLACE"), ("TOUCH", key)],
            *[("HSET", key, b"f", b"v"), ("HDEL", key, b"f"), ("SADD", key, b"a", b"b"), ("SPOP", key)],
            *[("RPUSH", key, b"a"), ("LPOP", key), ("LMOVE", key, other, "LEFT", "RIGHT"), ("ZADD", key, 1, b"m")],
            *[("ZPOPMIN", key), ("SORT", key, "ALPHA", "STORE", other), ("SUNIONSTORE", other, key)],
            *[("BITOP", "NOT", other, key), ("RESTORE", key, 0, self.dump, "REPLACE"), ("DUMP", key)],
            *[("MEMORY", "USAGE", key), ("OBJECT", "ENCODING", key), ("TYPE", key), ("SCAN", 0)],
            *[("CACHE.TAG", key, *self.draw.sample(TAGS, 2)), ("CACHE.SET", key, b"7", "TAGS", 1, TAGS[0])],
            *[("LOCK.EXEC", key, self.some_token(), "SET", other, b"x"), ("CACHE.EXPLAIN", key)],
            *[("LOCK.ACQUIRE", key, b"shared", "PX", 30, "SHARED"), ("LOCK.RELEASE", key, b"shared")],
            *[("RATELIMIT.CHECK", key, 5, "PX", 100, "GCRA", 3, "EX", 1, "BURST", 9), ("CL.THROTTLE", key, 2, 5, 1)],
            *[("CACHE.SET", key, b"v", "VERSION", self.draw.randrange(50)), ("CACHE.FLOOR", key, 20)],
            *[("CACHE.INTENT", key, "PX", 5)],
        ]
        words = self.draw.choice(choices)
        if MOVES and words[0] == "TOUCH":
            words = ("MOVE", key, self.draw.choice(DATABASES))
        name = str(words[0])
        return Op(self.draw.choice(DATABASES), words, self._tokens_of(name, list(words[1:])))

    def some_token(self) -> int:
        return max(self.ledger.tokens.most - self.draw.randrange(3), 1)

    def swap_or_flush(self) -> Op:
        values, kind = self.ledger.values, self.draw.random()
        one, other = self.draw.sample(DATABASES, 2)
        if kind < 0.6:
            return Op(one, ("SWAPDB", one, other), lambda _, __: values.swap(one, other))
        if kind < 0.95:
            words = ("FLUSHDB", self.draw.choice(["SYNC", "ASYNC"]))
            return Op(one, words, lambda _, __: values.flush(one))
        return Op(one, ("FLUSHALL", self.draw.choice(["SYNC", "ASYNC"])), lambda _, __: self.ledger.flush_all())

    # Those that wait

    def wait_ms(self) -> int:
        return self.draw.choice([0, 0, 2, 20, 2000])

    def waits_fetch(self) -> Op:
        return self.fetch("WAIT", self.wait_ms())

    def waits_read(self) -> Op:
        return self.read("WAIT", self.wait_ms())

    def waits_loads(self) -> Op:
        return self.loads("BLOCK", self.wait_ms())

    def waits_acquire(self) -> Op:
        return self.acquire("WAIT", self.wait_ms())

    def waits_check(self) -> Op:
        return self.check("WAIT", self.wait_ms())

    def waits_enter(self) -> Op:
        return self.enter("WAIT", self.wait_ms())

    def waits_claim(self) -> Op:
        return self.claim("BLOCK", self.wait_ms())

    def waits_mixed(self) -> Op:
        """On keys that are deleted, renamed, overwritten. The owner is its own: tokens are told when they are old."""
        key, wait, owner = self.draw.choice(MIXED), self.wait_ms(), b"w:%d" % self.connection
        words = self.draw.choice(
            [
                ("LOCK.ACQUIRE", key, owner, "PX", 30, "WAIT", wait, *self.draw.choice([[], ["SHARED"], ["SESSION"]])),
                ("LOCK.ACQUIRE", key, owner, "PX", 30, "WAIT", wait, "PERMITS", 2),
                ("RATELIMIT.CHECK", key, 2, "PX", 20, "WAIT", wait),
                ("RATELIMIT.ENTER", key, owner, "LIMIT", 2, "PX", 30, "WAIT", wait, "SESSION"),
                ("WRITEBEHIND.CLAIM", key, owner, "BLOCK", wait),
                ("CACHE.FETCH", key, "WAIT", wait),
                ("CACHE.READ", key, "LOADER", b"other", "WAIT", wait),
                ("CACHE.LOADS", b"other", "BLOCK", wait),
                ("BLPOP", key, 0.02),
            ]
        )
        tokens = self.ledger.tokens
        told: Told | None = None
        if words[0] == "LOCK.ACQUIRE":
            told = lambda reply, _: tokens.granted(reply, owner, at_once=False) if reply else None  # noqa: E731
        return Op(self.draw.choice(DATABASES), words, told)


WEIGHTS = {
    "set_value": 30,
    "set_values": 4,
    "set_plain": 6,
    "get_value": 30,
    "fetch": 20,
    "fetch_many": 3,
    "read": 4,
    "loads": 3,
    "warm": 2,
    "fill": 22,
    "end_load": 6,
    "intent": 4,
    "commit": 5,
    "rollback": 1,
    "invalidate": 5,
    "invalidate_tag": 5,
    "stale": 4,
    "tag": 6,
    "floor": 1,
    "rule": 2,
    "emit": 3,
    "policy": 2,
    "delete": 5,
    "expire": 4,
    "rename": 5,
    "move": 3,
    "copy": 2,
    "acquire": 12,
    "release": 8,
    "validate": 4,
    "check": 10,
    "refund": 3,
    "enter": 8,
    "leave": 6,
    "write_behind": 16,
    "claim": 8,
    "ack": 12,
    "rest": 1,
    "any_command": 60,
    "plain_command": 50,
    "swap_or_flush": 1,
}
WAITING = {
    "waits_fetch": 4,
    "waits_read": 2,
    "waits_loads": 2,
    "waits_acquire": 4,
    "waits_check": 2,
    "waits_enter": 3,
    "waits_claim": 3,
    "waits_mixed": 6,
}


def in_script(op: Op) -> Op:
    """The same from Lua. What a script cannot tell apart from nil is not judged."""
    return Op(op.db, ("EVAL", "return redis.call(unpack(ARGV))", 0, *op.words), op.told, op.error_told)
