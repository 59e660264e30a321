"""How much each limiter allows. The server does not know it, since it is told in each call; so the page has to be told too."""

from fnmatch import fnmatchcase
from typing import NamedTuple

ALGORITHMS = ("SLIDING", "GCRA", "FIXED")
MS = {"EX": 1000, "PX": 1}


class Limit(NamedTuple):
    algorithm: str
    window_ms: int
    capacity: int


class Limits(NamedTuple):
    """Of the keys under a pattern: what RATELIMIT.CHECK is called with, or the LIMIT of RATELIMIT.ENTER."""

    pattern: bytes
    limits: list[Limit]
    slots: int | None


def parse(pattern: str, words: str) -> Limits:
    """`60 EX 60 GCRA 5 EX 1 BURST 10` or `LIMIT 4`. ValueError tells what is wrong."""
    rest = words.upper().split()
    if len(rest) == 2 and rest[0] == "LIMIT":
        return Limits(pattern.encode(), [], _number(rest[1]))
    limits = []
    while rest:
        limits.append(_limit(rest))
    if not limits:
        raise ValueError("no limit is given")
    return Limits(pattern.encode(), limits, None)


def _limit(rest: list[str]) -> Limit:
    """Takes one limit off the words."""
    algorithm = rest.pop(0) if rest[0] in ALGORITHMS else ALGORITHMS[0]
    if len(rest) < 3 or rest[1] not in MS:
        raise ValueError("a limit is: [SLIDING|GCRA|FIXED] count EX seconds|PX milliseconds [BURST burst]")
    capacity, unit, window = _number(rest.pop(0)), rest.pop(0), _number(rest.pop(0))
    if rest[:1] == ["BURST"]:
        rest.pop(0)
        capacity = _number(rest.pop(0) if rest else "")
    return Limit(algorithm.lower(), window * MS[unit], capacity)


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word)):
        raise ValueError(f"'{word}' is not a number above 0")
    return int(word)


def of_key(known: list[Limits], key: bytes, slots: bool) -> Limits | None:
    """The first whose pattern fits, with * and ? as in a shell."""
    name = key.decode("latin-1")
    fitting = (limits for limits in known if (limits.slots is not None) == slots)
    return next((limits for limits in fitting if fnmatchcase(name, limits.pattern.decode("latin-1"))), None)
