"""The names that the random commands use, and what a drawn command is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import catalogue
from raw_client import Word
from servers import default_flavour

from fire.ledger import Ledger

DATABASES = (0, 1, 2)
# Nothing but FLUSHALL empties or swaps this one.
KEPT_DATABASE = 3
VALUES = [b"p:%d" % number for number in range(6)]
MIXED = [b"q:%d" % number for number in range(8)]
TAGS = [b"t:%d" % number for number in range(6)]
EVENTS = [b"e:%d" % number for number in range(3)]
LOCKS = [b"x:lock:%d" % number for number in range(3)]
LIMITS = {b"x:limit:%d" % number: number * 20 + 5 for number in range(3)}
SLOTS = {b"x:slots:%d" % number: number + 2 for number in range(2)}
QUEUES = [b"x:queue:%d" % number for number in range(2)]
OWNERS = [b"o:%d" % number for number in range(3)]
LONG = 100_000  # seconds: longer than any run

# Server bugs with modules that hear of key events (docs/replication.md): on Valkey 8.1 MOVE and COPY ... DB leave the client
# on the wrong database; on Valkey 9.1, inside MULTI and so on replicas too, they name the wrong database to the module.
MOVES = not default_flavour().startswith("valkey")

Told = Callable[[object, int], None]


@dataclass(slots=True)
class Op:
    """`told`: is given the reply, unless it is an error, and when the command was sent."""

    db: int
    words: tuple[Word, ...]
    told: Told | None = None
    error_told: Callable[[], None] | None = None

    @property
    def command(self) -> str:
        name = str(self.words[0])
        return f"{name}|{self.words[1]}" if name in catalogue.CONTAINERS else name


class Draws:
    def __init__(self, draw: random.Random, ledger: Ledger) -> None:
        self.draw, self.ledger = draw, ledger
        # The number of the connection that is to wait.
        self.connection = 0

    def expiry(self) -> list[Word]:
        kind = self.draw.randrange(8)
        if kind < 3:
            return []
        if kind == 3:
            return ["PX", self.draw.randrange(1, 20)]
        options: list[Word] = ["EX", 1000]
        if kind > 5:
            options += ["GRACE", 1000]
        if kind == 7:
            options += ["JITTER", self.draw.choice([5, "10%"])]
        return options
