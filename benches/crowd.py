"""Many clients in one process and one thread.

A thread or a task for each would take longer to wake up than the server takes to answer. Here one selector tells who has
an answer, and a client is a generator: it yields the words of a command and gets the reply, or yields seconds, as a
float, and goes on after them.
"""

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from selectors import EVENT_READ, DefaultSelector

from raw_client import Connection

Steps = Generator[tuple | float, object, bytes]


@dataclass
class Client:
    """One generator on a connection of its own, and what came of it."""

    connection: Connection
    steps: Steps
    commands: int = 0
    answer: bytes | None = None
    answered: float | None = None  # monotonic seconds; None while it runs

    def advance(self, reply: object) -> float | None:
        """Up to the next command, to the end, or to a pause: the seconds it lasts."""
        try:
            step = self.steps.send(reply)
        except StopIteration as end:
            self.answer, self.answered = end.value, time.monotonic()
            return None
        if isinstance(step, float):
            return step
        self.connection.send(*step)
        self.commands += 1
        return None


def run(connections: list[Connection], steps: list[Steps]) -> list[Client]:
    """All at once, each to its end. `connections` and `steps` are equally many."""
    clients = [Client(connection, generator) for connection, generator in zip(connections, steps, strict=True)]
    pauses, order = [], count()

    def advance(client: Client, reply: object = None) -> None:
        if (pause := client.advance(reply)) is not None:
            heappush(pauses, (time.monotonic() + pause, next(order), client))

    with listening(connections) as selector:
        of = {client.connection: client for client in clients}
        for client in clients:
            advance(client)
        while any(client.answered is None for client in clients):
            for ready, _ in selector.select(pauses[0][0] - time.monotonic() if pauses else None):
                advance(of[ready.fileobj], ready.fileobj.reply())
            while pauses and pauses[0][0] <= time.monotonic():
                advance(heappop(pauses)[2])
    return clients


def listening(connections: Iterable[Connection]) -> DefaultSelector:
    """A selector that says which of them has an answer."""
    selector = DefaultSelector()
    for connection in connections:
        selector.register(connection, EVENT_READ)
    return selector


def replies(selector: DefaultSelector) -> list:
    """One reply of each connection that the selector has, in the order in which they come; each was sent one command."""
    received, all_of_them = [], len(selector.get_map())
    while len(received) < all_of_them:
        received += [ready.fileobj.reply() for ready, _ in selector.select()]
    return received
