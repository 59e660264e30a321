"""One lock that many want: how long it lies there between two holders, and how many commands that takes.

Wall time is what those who wait feel. It contains the client too: one process that plays all clients (crowd.py).
"""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from math import ceil
from statistics import median
from typing import NamedTuple

import crowd
from bench_server import BenchServer
from figures import Figure
from raw_client import Connection, ReplyError
from recipes import contended_locks
from stampede import as_text, counted_commands

GROUP = "lock-hand-over"
LOCK = b"lock:report:nightly"
LEASE_MS = 600_000  # No lease ends while something is measured.
HOLD_S = 0.002
AT_ONCE = 0.01, 0.01
OVER_100_MS = 0.01, 0.11
SETTLED_S = 0.02  # After the last has asked, until the first holder lets go.
SESSION_BOUND_MS = 50


class Lock:
    """One lock in one round: who holds it, and since when nobody does."""

    def __init__(self):
        self._held, self._released = False, None
        self.hand_overs_ms: list[float] = []

    def hold(self, seconds: float) -> crowd.Steps:
        """What a client does between its grant and its release."""
        if self._held:
            raise RuntimeError("two clients hold one lock")
        self._held = True
        if self._released is not None:
            self.hand_overs_ms.append(1000 * (time.monotonic() - self._released))
        yield seconds
        self._held, self._released = False, time.monotonic()


class Contest(NamedTuple):
    """All rounds of one way to lock."""

    hand_overs_ms: list[float]
    holds: int
    commands: int  # that clients sent
    counted: dict[str, int]  # the same as the server counts, with those that scripts and modules call inside it


class Contender(NamedTuple):
    """One acquire and one release."""

    steps: crowd.Steps
    subscription: crowd.Subscription | None = None


# (owner, hold, port, stack) -> what one client does; the stack closes what it opens.
Locking = Callable[[bytes, Callable[[], crowd.Steps], int, ExitStack], Contender]


def lock_hand_over(flavour: str, clients: int, rounds: int) -> Iterator[Figure]:
    """`clients` want one lock, each holds it for HOLD_S and lets go, once a round. From release sent to next grant read."""
    contest = partial(_contest, flavour, clients=clients, rounds=rounds)
    yield from _figures("LOCK.ACQUIRE WAIT", contest(True, _wait), 3)
    slow, quick = partial(_poll, 0.1, 0.1), partial(_poll, 0.005, 0.015)
    yield from _figures("  usual recipe, SET NX every 100 ms", contest(False, slow))
    spread = contest(False, slow, arrival_s=OVER_100_MS)
    yield from _figures("  usual recipe, the same, clients come within 100 ms", spread)
    yield from _figures("  usual recipe, SET NX every 5 to 15 ms", contest(False, quick))
    yield from _figures("  usual recipe, pub/sub wakes up", contest(False, _woken))
    yield from _figures("  usual recipe, BLPOP of a token", contest(False, _token_list))


def _wait(owner: bytes, hold: Callable, _port: int, _stack: ExitStack) -> Contender:
    def steps() -> crowd.Steps:
        token = yield "LOCK.ACQUIRE", LOCK, owner, "PX", LEASE_MS, "WAIT", 0
        if not isinstance(token, int):
            raise ReplyError(f"unexpected reply: {token!r:.200}")
        yield from hold()
        yield "LOCK.RELEASE", LOCK, owner

    return Contender(steps())


def _poll(shortest: float, longest: float, owner: bytes, hold: Callable, _port: int, _stack: ExitStack) -> Contender:
    return Contender(contended_locks.poll(LOCK, owner, hold, shortest, longest))


def _woken(owner: bytes, hold: Callable, port: int, stack: ExitStack) -> Contender:
    subscription = crowd.Subscription(port)
    stack.callback(subscription.close)
    return Contender(contended_locks.woken(LOCK, owner, hold, subscription), subscription)


def _token_list(owner: bytes, hold: Callable, _port: int, _stack: ExitStack) -> Contender:
    return Contender(contended_locks.token_list(LOCK, owner, hold))


def _contest(flavour: str, module: bool, locking: Locking, clients: int, rounds: int, arrival_s=AT_ONCE) -> Contest:
    hand_overs, commands = [], 0
    with BenchServer(flavour, module) as server:
        control, connections = server.connect(), [server.connect() for _ in range(clients)]
        control.call("RPUSH", contended_locks.TOKENS + LOCK, "token")
        control.call("CONFIG", "RESETSTAT")
        for turn in range(rounds):
            lock = Lock()
            with ExitStack() as stack:
                crew = []
                for number in range(clients):
                    seconds = HOLD_S if number else arrival_s[1] + SETTLED_S
                    hold, owner = partial(lock.hold, seconds), b"worker-%d:%016d" % (number, turn)
                    crew.append(locking(owner, hold, server.port, stack))
                # The first asks before all others, and holds the lock until they wait for it.
                steps = [_arriving(random.uniform(*arrival_s) if n else 0.0, c.steps) for n, c in enumerate(crew)]
                done = crowd.run(connections, steps)
                commands += sum(client.commands for client in done)
                commands += sum(client.subscription.commands for client in crew if client.subscription)
            if len(lock.hand_overs_ms) != clients - 1:
                raise RuntimeError(f"{len(lock.hand_overs_ms)} hand-overs, not {clients - 1}")
            hand_overs += lock.hand_overs_ms
        return Contest(hand_overs, clients * rounds, commands, counted_commands(control))


def _arriving(after_s: float, steps: crowd.Steps) -> crowd.Steps:
    yield after_s
    yield from steps


def _figures(name: str, contest: Contest, commands: int | None = None) -> Iterator[Figure]:
    """`commands` is the bound; None for a peer."""
    spent = sorted(contest.hand_overs_ms)
    how = f"wall time from release sent to grant read, {len(spent)} hand-overs; the worst {spent[-1]:.1f} ms"
    yield Figure(GROUP, f"{name}, p50", median(spent), "ms", how)
    yield Figure(GROUP, f"{name}, p99", spent[ceil(0.99 * len(spent)) - 1], "ms", "the same")
    how = f"per acquire and release; clients send {contest.commands / contest.holds:.1f}; {as_text(contest.counted)}"
    in_all = sum(contest.counted.values()) / contest.holds
    yield Figure(GROUP, f"{name}, in all", in_all, "commands", how, commands)


def lock_session(flavour: str, rounds: int) -> Iterator[Figure]:
    """The process that holds the lock is killed, and the next in the queue gets it."""
    with BenchServer(flavour, True) as server:
        waiter, control = server.connect(), server.connect()
        spent = [_killed(server.port, waiter, control, b"%d" % turn) for turn in range(rounds)]
    name = "SESSION, kill -9 of the holder to the next grant"
    how = f"wall time, {rounds} processes killed"
    yield Figure(GROUP, f"{name}, median", median(spent), "ms", how)
    yield Figure(GROUP, f"{name}, worst", max(spent), "ms", "the same", SESSION_BOUND_MS)


def _killed(port: int, waiter: Connection, control: Connection, owner: bytes) -> float:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    holder = multiprocessing.Process(target=_hold_until_killed, args=(port, sender), daemon=True)
    holder.start()
    sender.close()  # Its copy is the last one: should it fail, this end hears of it.
    receiver.recv()
    waiter.send("LOCK.ACQUIRE", LOCK, owner, "PX", LEASE_MS, "WAIT", 0)
    while not _waiters(control):
        time.sleep(0.001)
    start = time.monotonic()
    holder.kill()
    token = waiter.reply()
    spent = 1000 * (time.monotonic() - start)
    holder.join()
    if not isinstance(token, int) or waiter.call("LOCK.RELEASE", LOCK, owner) != 1:
        raise ReplyError(f"unexpected reply: {token!r:.200}")
    return spent


def _waiters(control: Connection) -> list:
    description = control.call("LOCK.INFO", LOCK)
    return description[description.index(b"waiters") + 1]


def _hold_until_killed(port: int, sender) -> None:
    connection = Connection(port)
    sender.send(connection.call("LOCK.ACQUIRE", LOCK, "holder", "PX", LEASE_MS, "SESSION"))
    connection.reply()  # None comes.
