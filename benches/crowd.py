"""Many clients in one process and one thread.

A thread or a task for each would take longer to wake up than the server takes to answer. Here one selector tells who has
an answer, and a client is a generator: it yields the words of a command and gets the reply, or yields seconds, as a
float, and goes on after them, or yields a `Subscription` and goes on when something has arrived there.
"""

import socket
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from selectors import EVENT_READ, DefaultSelector

from raw_client import Connection, encode

PAGE = 1 << 16


class Subscription:
    """A second connection of a client, for SUBSCRIBE. What arrives is not read word by word: it is a sign to look again."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=600)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.commands = 0

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, *words: bytes) -> None:
        self._socket.sendall(encode(*words))
        self.commands += 1

    def drain(self) -> None:
        """Takes what has arrived. Call it only when something has."""
        if not self._socket.recv(PAGE):
            raise ConnectionError("the server closed the connection")


Steps = Generator[tuple | float | Subscription, object, bytes]


@dataclass
class Client:
    """One generator on a connection of its own, and what came of it."""

    connection: Connection
    steps: Steps
    commands: int = 0
    answer: bytes | None = None
    answered: float | None = None  # monotonic seconds; None while it runs

    def advance(self, reply: object) -> float | Subscription | None:
        """Up to the next command, to the end, or to what it waits for: seconds, or a subscription."""
        try:
            step = self.steps.send(reply)
        except StopIteration as end:
            self.answer, self.answered = end.value, time.monotonic()
            return None
        if isinstance(step, float | Subscription):
            return step
        self.connection.send(*step)
        self.commands += 1
        return None


def run(connections: list[Connection], steps: list[Steps]) -> list[Client]:
    """All at once, each to its end. `connections` and `steps` are equally many."""
    clients = [Client(connection, generator) for connection, generator in zip(connections, steps, strict=True)]
    pauses, order = [], count()

    def advance(client: Client, reply: object = None) -> None:
        step = client.advance(reply)
        if isinstance(step, float):
            heappush(pauses, (time.monotonic() + step, next(order), client))
        elif step is not None:
            selector.register(step, EVENT_READ, client)

    with listening(connections) as selector:
        of = {client.connection: client for client in clients}
        for client in clients:
            advance(client)
        while any(client.answered is None for client in clients):
            for ready, _ in selector.select(pauses[0][0] - time.monotonic() if pauses else None):
                if ready.data is None:
                    advance(of[ready.fileobj], ready.fileobj.reply())
                    continue
                selector.unregister(ready.fileobj)
                ready.fileobj.drain()
                advance(ready.data)
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
