"""Many clients miss one key at once: what it costs until all have the value, and what handing it over costs.

Wall time is what those who wait feel, so it is measured here although the machine's other work is in it. It contains
the client too: one process that reads all the answers, one after the other.
"""

import time
from collections.abc import Callable, Iterator
from selectors import DefaultSelector
from statistics import median
from typing import NamedTuple

import crowd
from bench_server import BenchServer, CountedServer
from figures import Figure
from instructions import TTL, ratio
from raw_client import Connection, ReplyError
from recipes import lock_and_poll
from stalls import processor_time

KEY = b"product:00000000000000001"
VALUE = b"v" * 1024
ORIGIN_S = 0.2
WAIT_MS = 10_000
LEASE_MS = 60_000  # a server under callgrind takes its time
CHANNEL = b"filled"


class Origin:
    """Takes ORIGIN_S and nothing of the processor, like a database elsewhere."""

    def __init__(self, server: BenchServer):
        self._server = server
        self.calls = 0
        self.ended = self.computed = 0.0  # when it had the value; the server's processor time then

    def load(self) -> crowd.Steps:
        self.calls += 1
        yield ORIGIN_S
        self.computed, self.ended = processor_time(self._server.pid), time.monotonic()
        return VALUE


class Stampede(NamedTuple):
    """One round. Milliseconds count from the moment the value is there and its fill is sent, to the last answer."""

    origin_calls: int
    commands: int  # that clients sent
    most: int  # by one client
    counted: dict[str, int]  # the same as the server counts, with those that scripts and modules call inside it
    wall_ms: float
    server_ms: float


def stampede(flavour: str, clients: int, rounds: int) -> Iterator[Figure]:
    """`clients` miss one key of a slow origin. Counts are the worst of the rounds, times their median."""

    def recipe(number: int, origin: Origin) -> crowd.Steps:
        return lock_and_poll.cached(KEY, b"%d" % number, origin.load, TTL)

    done = _rounds(flavour, True, clients, rounds, lambda _number, origin: _single_flight(origin))
    yield from _figures(f"FETCH by {clients} clients", done, origin_calls=1, commands=2 * clients, most=2)
    computed = [one.server_ms for one in done]
    how = f"from fill to last answer, median of {rounds} rounds; the worst {max(computed):.1f} ms"
    yield Figure(
        "stampede", f"FETCH by {clients} clients, processor time of the server", median(computed), "ms", how, 5
    )
    yield from _figures(
        "  usual recipe, lock and poll", _rounds(flavour, False, clients, rounds, recipe), None, None, None
    )


def _single_flight(origin: Origin) -> crowd.Steps:
    status, value, token = yield "CACHE.FETCH", KEY, "WAIT", WAIT_MS
    if status == b"HIT":
        return value
    _expect(status, b"MISS")
    value = yield from origin.load()
    _expect((yield "CACHE.FILL", KEY, token, value, "EX", TTL), 1)
    return value


def _rounds(flavour: str, module: bool, clients: int, rounds: int, steps: Callable) -> list[Stampede]:
    with BenchServer(flavour, module) as server:
        control, connections = server.connect(), [server.connect() for _ in range(clients)]
        return [_round(server, control, connections, steps) for _ in range(rounds)]


def _round(server: BenchServer, control: Connection, connections: list[Connection], steps: Callable) -> Stampede:
    origin = Origin(server)
    control.call("DEL", KEY)
    control.call("CONFIG", "RESETSTAT")
    done = crowd.run(connections, [steps(number, origin) for number in range(len(connections))])
    server_ms = 1000 * (processor_time(server.pid) - origin.computed)
    for client in done:
        _expect(client.answer, VALUE)
    commands, wall_ms = [client.commands for client in done], 1000 * (max(c.answered for c in done) - origin.ended)
    return Stampede(origin.calls, sum(commands), max(commands), counted_commands(control), wall_ms, server_ms)


def counted_commands(control: Connection) -> dict[str, int]:
    """Calls of each command since RESETSTAT, but those of CONFIG."""
    lines = control.call("INFO", "commandstats").decode().splitlines()[1:]
    stats = (line.removeprefix("cmdstat_").partition(":calls=") for line in lines)
    return {name: int(rest.split(",")[0]) for name, _, rest in sorted(stats) if not name.startswith("config")}


def as_text(counted: dict[str, int]) -> str:
    return ", ".join(f"{name} {calls}" for name, calls in counted.items())


def _figures(name: str, rounds: list[Stampede], origin_calls, commands, most) -> Iterator[Figure]:
    """The last three are the bounds; None for a peer."""
    group, worst, wall = "stampede", max(rounds, key=lambda one: one.commands), [one.wall_ms for one in rounds]
    how = f"each takes {1000 * ORIGIN_S:.0f} ms; most in one of {len(rounds)} rounds"
    yield Figure(group, f"{name}, of the origin", max(one.origin_calls for one in rounds), "calls", how, origin_calls)
    how = f"most in a round; the server counts, with inner calls: {as_text(worst.counted)}"
    yield Figure(group, f"{name}, sent", worst.commands, "commands", how, commands)
    yield Figure(group, f"{name}, sent by one", max(one.most for one in rounds), "commands", "the most", most)
    how = f"wall time from the fill on, median of {len(wall)} rounds; the worst {max(wall):.1f} ms"
    yield Figure(group, f"{name}, last answer after", median(wall), "ms", how)


class HandOver(NamedTuple):
    """One value on its way to all: milliseconds of wall time to the last answer, and of the server's processor."""

    wall_ms: float
    server_ms: float


# Brings everything to where the value goes out, and returns what sends it: called once, it gives each connection a reply.
Prepare = Callable[[Connection, list[Connection]], Callable[[], None]]


def hand_over(flavour: str, waiters: int, rounds: int, counted_rounds: int) -> Iterator[Figure]:
    """One value of 1 KiB goes to `waiters` clients that wait for it. Beside it PUBLISH, and a GET by each of them."""
    group, count = "hand-over", f"{waiters:,}"
    yield _last_answer(f"FILL of 1 KiB to {count} waiters: last answer", _timed(flavour, True, waiters, rounds, _wait))
    peer = _timed(flavour, False, waiters, rounds, _subscribe)
    yield _last_answer(f"  PUBLISH of 1 KiB to {count} subscribers: last message", peer)
    get = _counted(flavour, False, waiters, counted_rounds, _poll)
    fill = _counted(flavour, True, waiters, counted_rounds, _wait)
    publish = _counted(flavour, False, waiters, counted_rounds, _subscribe)
    yield ratio(group, "FILL, for each waiter / GET", fill, get, "GET of 1 KiB, each on its connection")
    yield ratio(group, "  PUBLISH, for each subscriber / GET", publish, get, "the same GET")


def _wait(control: Connection, connections: list[Connection]) -> Callable[[], None]:
    control.call("DEL", KEY)
    _, _, token = control.call("CACHE.FETCH", KEY, "LEASE", LEASE_MS)
    for connection in connections:
        connection.send("CACHE.FETCH", KEY, "WAIT", 0)
    while int(control.info("keyward_cache_waiters")) < len(connections):
        time.sleep(0.01)
    return lambda: _expect(control.call("CACHE.FILL", KEY, token, VALUE, "EX", TTL), 1)


def _subscribe(control: Connection, connections: list[Connection]) -> Callable[[], None]:
    for connection in connections:
        connection.call("SUBSCRIBE", CHANNEL)
    return lambda: _expect(control.call("PUBLISH", CHANNEL, VALUE), len(connections))


def _poll(control: Connection, connections: list[Connection]) -> Callable[[], None]:
    def gets() -> None:
        for connection in connections:
            connection.send("GET", KEY)

    control.call("SET", KEY, VALUE, "EX", TTL)
    return gets


def _expect(reply: object, expected: object) -> None:
    if reply != expected:
        raise ReplyError(f"unexpected reply: {reply!r:.200}")


def _receive(selector: DefaultSelector) -> None:
    for reply in crowd.replies(selector):
        if VALUE not in reply:  # itself, or one of the words of an array
            raise ReplyError(f"unexpected reply: {reply!r:.200}")


def _timed(flavour: str, module: bool, waiters: int, rounds: int, prepare: Prepare) -> list[HandOver]:
    done = []
    with BenchServer(flavour, module) as server:
        control, connections = server.connect(), [server.connect() for _ in range(waiters)]
        for _ in range(rounds):
            send = prepare(control, connections)
            with crowd.listening(connections) as selector:
                computed, start = processor_time(server.pid), time.monotonic()
                send()
                _receive(selector)
                wall, computed = time.monotonic() - start, processor_time(server.pid) - computed
            done.append(HandOver(1000 * wall, 1000 * computed))
    return done


def _last_answer(name: str, rounds: list[HandOver]) -> Figure:
    wall, server = [one.wall_ms for one in rounds], [one.server_ms for one in rounds]
    how = f"wall time, median of {len(rounds)} rounds; the worst {max(wall):.1f} ms"
    return Figure("hand-over", name, median(wall), "ms", f"{how}; processor time of the server {median(server):.1f} ms")


def _counted(flavour: str, module: bool, waiters: int, rounds: int, prepare: Prepare) -> float:
    """Median instructions of the whole server for each that gets the value. What the server does by the clock falls into
    few of the rounds, which are short, so the median leaves it out; to take its mean off would be wrong in every round."""
    costs = []
    with CountedServer(flavour, module) as server:
        control, connections = server.connect(), [server.connect() for _ in range(waiters)]
        with crowd.listening(connections) as selector:
            for _ in range(rounds):
                send = prepare(control, connections)
                counted, _ = server.count_instructions(lambda go=send: (go(), _receive(selector)))
                costs.append(counted / waiters)
    return median(costs)
