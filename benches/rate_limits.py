"""Instructions for each check of a rate limit: the module's algorithms beside the usual scripts, CL.THROTTLE beside redis-cell."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from figures import Figure
from instructions import RECIPES, TTL, Laboratory, plain_set, ratio
from raw_client import Connection, encode

SECOND_US = 1_000_000


@dataclass(frozen=True)
class Limit:
    units: int
    seconds: int
    used: int  # before counting starts


# So much is used that it has not flowed off before counting ends; and what is full stays so.
OPEN, FULL = Limit(100, 60, used=60), Limit(5, 86_400, used=5)


@dataclass(frozen=True)
class Way:
    """A way to ask, on a server with the module or without."""

    with_module: bool
    request: Callable[[bytes, Limit], bytes]
    is_allowed: Callable[[object], bool]


def check(*algorithm: str, others: tuple[str, ...] = ()) -> Way:
    def request(limiter: bytes, limit: Limit) -> bytes:
        return encode("RATELIMIT.CHECK", limiter, *algorithm, limit.units, "EX", limit.seconds, *others)

    return Way(True, request, lambda reply: reply[0] == 1)


def script(lab: Laboratory, recipe: str, arguments: Callable[[Limit], tuple]) -> Way:
    sha = lab.connection(False).call("SCRIPT", "LOAD", (RECIPES / recipe).read_bytes())

    def request(limiter: bytes, limit: Limit) -> bytes:
        return encode("EVALSHA", sha, 1, limiter, *arguments(limit))

    return Way(False, request, (1).__eq__)


def sorted_set(lab: Laboratory) -> Way:
    members = count()
    return script(
        lab,
        "sliding_window.lua",
        lambda limit: (limit.units, limit.seconds * SECOND_US, b"request:%d" % next(members)),
    )


def gcra_script(lab: Laboratory) -> Way:
    return script(lab, "gcra.lua", lambda limit: (limit.seconds * SECOND_US // limit.units, limit.units))


def rate_limits(lab: Laboratory) -> Iterator[Figure]:
    """A thousand limiters of 100 per minute with room left, and as many of 5 that are full, asked in turn."""
    base, kinds = plain_set(lab), count()

    def figures(name: str, way: Way, bounds=(None, None), lab: Laboratory = lab) -> Iterator[Figure]:
        allowed = cost(lab, way, next(kinds), OPEN, way.is_allowed)
        yield ratio("ratelimit", f"{name}, allowed / SET", allowed, base, "SET", bounds[0])
        denied = cost(lab, way, next(kinds), FULL, lambda reply: not way.is_allowed(reply))
        yield ratio("ratelimit", f"{name}, denied / SET", denied, base, "SET", bounds[1])

    yield from figures("RATELIMIT.CHECK SLIDING", check(), (2.0, 1.2))
    yield from figures("RATELIMIT.CHECK GCRA", check("GCRA"), (1.9, 1.2))
    yield from figures("RATELIMIT.CHECK FIXED", check("FIXED"))
    three = check(others=("1000", "EX", "1", "10000", "EX", "3600"))
    yield from figures("RATELIMIT.CHECK, three SLIDING limits", three)
    yield from figures("  usual recipe, sorted set in Lua", sorted_set(lab))
    yield from figures("  usual recipe, GCRA in Lua", gcra_script(lab))


def throttles(lab: Laboratory, redis_cell: str | None) -> Iterator[Figure]:
    """CL.THROTTLE on limits with room left and on limits that are full, and the same calls of redis-cell if it is there."""
    group, base = "throttle", plain_set(lab)
    limiters = max(1, min(1000, lab.requests // 10))
    turns = [n % limiters for n in range(lab.requests)]

    def called(lab: Laboratory, with_module: bool, kind: bytes, burst: int, limited: int) -> float:
        def call(turn: int, number: int) -> bytes:
            return encode("CL.THROTTLE", b"limit:%s:%d:%012d" % (kind, turn, number), burst, 1, TTL)

        def opened(connection: Connection, turn: int) -> None:
            connection.run(call(turn, n) for n in range(limiters))

        return lab.cost(with_module, lambda turn: [call(turn, n) for n in turns], lambda r: r[0] == limited, opened)

    def both(lab: Laboratory, with_module: bool, name: str) -> Iterator[Figure]:
        allowed = called(lab, with_module, b"open", lab.requests, 0)
        yield ratio(group, f"{name}, allowed / SET", allowed, base, "SET")
        denied = called(lab, with_module, b"full", 0, 1)
        yield ratio(group, f"{name}, denied / SET", denied, base, "SET")

    yield from both(lab, True, "CL.THROTTLE")
    if redis_cell:
        with lab.anew(redis_cell) as peers:
            yield from both(peers, False, "  redis-cell")


def cost(lab: Laboratory, way: Way, kind: int, limit: Limit, good: Callable) -> float:
    limiters = max(1, min(1000, lab.requests // 10))

    def requests(turn: int, each: int) -> list[bytes]:
        names = [b"limit:%03d:%02d:%012d" % (kind, turn, n) for n in range(limiters)]
        return [way.request(name, limit) for _ in range(each) for name in names]

    def opened(connection: Connection, turn: int) -> None:
        connection.run(requests(turn, limit.used))

    return lab.cost(way.with_module, lambda turn: requests(turn, lab.requests // limiters), good, opened)
