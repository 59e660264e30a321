"""Write-behind queues for tests: the commands, a worker, and a database that refuses what is not newer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from raw_client import fields

QUEUE = "q"


class Record(NamedTuple):
    """One row of a CLAIM's reply."""

    key: bytes
    version: int
    op: bytes
    payload: bytes | None
    attempts: int
    age_ms: int


def put(client, key, value, *options, queue=QUEUE):
    return client.execute_command("WRITEBEHIND.SET", queue, key, value, *options)


def incrby(client, key, by, *options, queue=QUEUE):
    """[value, version]"""
    return client.execute_command("WRITEBEHIND.INCRBY", queue, key, by, *options)


def delete(client, key, queue=QUEUE):
    return client.execute_command("WRITEBEHIND.DEL", queue, key)


def claim(client, count=100, *options, worker="w", queue=QUEUE):
    return records(client.execute_command("WRITEBEHIND.CLAIM", queue, worker, "COUNT", count, *options))


def records(reply):
    return [Record(*row) for row in reply]


def ack(client, *pairs, worker="w", queue=QUEUE):
    return client.execute_command("WRITEBEHIND.ACK", queue, worker, *pairs)


def nack(client, key, version, *options, worker="w", queue=QUEUE):
    return client.execute_command("WRITEBEHIND.NACK", queue, worker, key, version, *options)


def config(client, *options, queue=QUEUE):
    return client.execute_command("WRITEBEHIND.CONFIG", queue, *options)


def info(client, queue=QUEUE):
    reply = fields(client.execute_command("WRITEBEHIND.INFO", queue))
    return {name.decode(): value for name, value in reply.items()}


def dead(client, *options, queue=QUEUE):
    return client.execute_command("WRITEBEHIND.DEAD", queue, *options)


def requeue(client, key, queue=QUEUE):
    return client.execute_command("WRITEBEHIND.REQUEUE", queue, key)


def drop(client, key, queue=QUEUE):
    return client.execute_command("WRITEBEHIND.DROP", queue, key)


def get(client, key):
    return client.execute_command("CACHE.GET", key)


def fetch(client, key, *options):
    """The status and the value, without the token."""
    return client.execute_command("CACHE.FETCH", key, *options)[:2]


@dataclass
class Database:
    """Rows with the version of their last write, changed as an UPDATE … WHERE version < ? changes them."""

    rows: dict[bytes, tuple[bytes | None, int]] = field(default_factory=dict)
    # Every write that was applied, in order.
    applied: list[tuple[bytes, int]] = field(default_factory=list)

    def write(self, record: Record) -> bool:
        value, version = self.rows.get(record.key, (None, 0))
        if version >= record.version:
            return False
        match record.op:
            case b"SET":
                value = record.payload
            case b"INCRBY":
                value = b"%d" % (int(value or 0) + int(record.payload))
            case b"DEL":
                value = None
        self.rows[record.key] = (value, record.version)
        self.applied.append((record.key, record.version))
        return True

    def value(self, key):
        return self.rows.get(key, (None, 0))[0]


def work_off(client, database, worker="w", queue=QUEUE):
    """Claims, writes and acks until nothing is claimable. The number of records."""
    done = 0
    while batch := claim(client, 100, worker=worker, queue=queue):
        for record in batch:
            database.write(record)
        pairs = [word for record in batch for word in (record.key, record.version)]
        assert ack(client, *pairs, worker=worker, queue=queue) == len(batch)
        done += len(batch)
    return done
