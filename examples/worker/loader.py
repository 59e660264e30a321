"""Loading what readers miss: jobs of CACHE.READ, answered from the database."""

import json
import logging
import re
from collections.abc import Callable
from typing import NamedTuple

from redis import Redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    value: bytes
    tags: list[str] = []


# A key -> what the origin has for it, or None. ValueError: the key is none of these.
Load = Callable[[str], Loaded | None]


class Loader:
    def __init__(
        self,
        redis: Redis,
        name: str,
        load: Load,
        *,
        ttl_s=300,
        grace_s=0,
        nothing_s=30,
        lease_ms=10_000,
        block_ms=1_000,
    ):
        """`lease_ms`: longer than a query takes. If it is not, another loader gets the job too."""
        self.redis, self.name, self.load = redis, name, load
        self.ttl_s, self.grace_s, self.nothing_s = ttl_s, grace_s, nothing_s
        self.lease_ms, self.block_ms = lease_ms, block_ms

    def step(self) -> bool:
        """One job. One at a time, so that none waits behind a slow query while another loader is idle."""
        jobs = self.redis.execute_command("CACHE.LOADS", self.name, "LEASE", self.lease_ms, "BLOCK", self.block_ms)
        for key, token, *_ in jobs:
            self._serve(key, token)
        return bool(jobs)

    def _serve(self, key: bytes, token: bytes) -> None:
        call = self.redis.execute_command
        try:
            loaded = self.load(key.decode())
        except ValueError as error:
            log.warning("%s: %r: %s", self.name, key, error)
            call("CACHE.FAIL", key, token, "MSG", "there is no query for this key")
        except SQLAlchemyError as error:
            # Not for the readers' eyes. They are told at once, and get what is stale if they take it.
            log.warning("%s: %r: %s", self.name, key, getattr(error, "orig", None) or error)
            call("CACHE.FAIL", key, token, "MSG", "the database did not answer")
        else:
            # 0: what was read was invalidated meanwhile. Whoever still waits for it makes a new job.
            if loaded is None:
                call("CACHE.FILLNIL", key, token, "EX", self.nothing_s)
            else:
                call("CACHE.FILL", key, token, loaded.value, *self._options(loaded))

    def _options(self, loaded: Loaded) -> list:
        options = ["EX", self.ttl_s]
        if self.grace_s:
            options += ["GRACE", self.grace_s]
        if loaded.tags:
            options += ["TAGS", len(loaded.tags), *loaded.tags]
        return options


def by_query(engine: Engine, pattern: str, query: str) -> Load:
    """Loads keys of a pattern by a query: `flight:{id}` gives it the parameter `:id`.

    The value is the only column of the first row, or all its columns as JSON. A column `tags` has the tags, as an array or as JSON.
    """
    statement, keys = text(query), pattern_of(pattern)

    def load(key: str) -> Loaded | None:
        if not (found := keys.fullmatch(key)):
            raise ValueError(f"the key is not like {pattern}")
        with engine.connect() as connection:
            row = connection.execute(statement, found.groupdict()).mappings().first()
        if row is None:
            return None
        columns = dict(row)
        tags = columns.pop("tags", None) or []
        value = next(iter(columns.values())) if len(columns) == 1 else columns
        return None if value is None else Loaded(as_bytes(value), json.loads(tags) if isinstance(tags, str) else tags)

    return load


def pattern_of(pattern: str) -> re.Pattern[str]:
    """`board:{airport}:{day}` as a regular expression; a field ends at the next colon."""
    fields = re.split(r"\{(\w+)\}", pattern)
    parts = (f"(?P<{part}>[^:]+)" if at % 2 else re.escape(part) for at, part in enumerate(fields))
    return re.compile("".join(parts))


def as_bytes(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return value.encode()
        case _:
            return json.dumps(value, default=str).encode()
