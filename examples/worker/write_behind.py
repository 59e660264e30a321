"""Draining a write-behind queue into a table."""

import logging
import socket
import uuid

from redis import Redis

from .table import Record, Table

log = logging.getLogger(__name__)

MOST_OF_A_MESSAGE = 1024  # bytes, as NACK takes them


class Drain:
    def __init__(self, redis: Redis, queue: str, table: Table, *, count=500, lease_ms=30_000, block_ms=1_000):
        """`lease_ms`: longer than the database takes for `count` records. If it is not, work is done twice, no more."""
        self.redis, self.queue, self.table = redis, queue, table
        self.count, self.lease_ms, self.block_ms = count, lease_ms, block_ms
        # Two processes of one name could give back what the other holds.
        self.name = f"{socket.gethostname()}:{uuid.uuid4().hex}"
        self._in_hand: list[Record] = []

    def step(self) -> int:
        """One batch: claims, writes, acks. How many records the database has taken.

        After an error the batch stays in hand, and the next step tries it again; nothing new is claimed while the database or
        Redis is away. It may have come to another worker meanwhile, which does no harm: rows take nothing twice, and an ACK counts
        whoever holds the claim.
        """
        if not self._in_hand:
            self._in_hand = self._claim()
        if not self._in_hand:
            return 0
        refused = self.table.write(self._in_hand)
        taken = [record for record in self._in_hand if record.key not in refused]
        self._settle(taken, [(record, refused[record.key]) for record in self._in_hand if record.key in refused])
        self._in_hand = []
        return len(taken)

    def close(self) -> None:
        """Gives back what is in hand, so that others need not wait for the end of the lease."""
        self._settle([], [(record, "the worker was stopped") for record in self._in_hand], "DELAY", 0)
        self._in_hand = []

    def _claim(self) -> list[Record]:
        options = "COUNT", self.count, "LEASE", self.lease_ms, "BLOCK", self.block_ms
        reply = self.redis.execute_command("WRITEBEHIND.CLAIM", self.queue, self.name, *options)
        return [Record(*fields[: len(Record._fields)]) for fields in reply]

    def _settle(self, taken: list[Record], refused: list[tuple[Record, str]], *options) -> None:
        with self.redis.pipeline(transaction=False) as pipeline:
            if taken:
                versions = [word for record in taken for word in (record.key, record.version)]
                pipeline.execute_command("WRITEBEHIND.ACK", self.queue, self.name, *versions)
            for record, why in refused:
                log.warning("%s: %r, attempt %d: %s", self.queue, record.key, record.attempts, why)
                message = why.encode()[:MOST_OF_A_MESSAGE]
                which = self.queue, self.name, record.key, record.version
                pipeline.execute_command("WRITEBEHIND.NACK", *which, "MSG", message, *options)
            pipeline.execute()
