"""Single flight beside the meta commands of memcached: random sequences of what both can do, on both servers. Every caller is
told the same, with the same value, and the same loads are stored. docs/single-flight.md has the table; where the two differ
is in test_memcached_differences.py.

Time passes on neither: what is old is written as old, and no lease ends by itself. `pytest --hypothesis-seed=N` repeats a run.
"""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from memcached import Memcached, MetaClient
from raw_client import RawClient
from servers import Server, eventually

KEYS = ["a", "b"]
# Most of it happens to one of them, and to its latest load.
ANY_KEY = st.sampled_from(["a", "a", "a", "b"])
BACK = st.sampled_from([0, 0, 0, 1, 2])

# Seconds. A value lives for LIFE; in the last GRACE of them it is old: served, while one caller loads it again.
LIFE, GRACE, LEASE = 3600, 600, 60


class Keyward:
    def __init__(self, server: Server) -> None:
        self.client = RawClient(server)
        self.call = self.client.call

    def fetch(self, key: str, stale_ok: bool) -> list:
        status, value, token = self.call(
            "CACHE.FETCH", key, "LEASE", LEASE * 1000, "STALE", "OK" if stale_ok else "NEVER"
        )
        return [status.decode(), value, token]

    def fill(self, key: str, token: bytes, value: bytes, old: bool) -> int:
        return self._written(key, self.call("CACHE.FILL", key, token, value, *self._life(old)), old)

    def fail(self, key: str, token: bytes) -> int:
        return self.call("CACHE.FAIL", key, token)

    def set(self, key: str, value: bytes, old: bool) -> int:
        return self._written(key, int(self.call("CACHE.SET", key, value, *self._life(old)) == "OK"), old)

    def stale(self, key: str) -> int:
        return self.call("CACHE.STALE", key)

    def invalidate(self, key: str) -> int:
        return self.call("CACHE.INVALIDATE", key)

    def expire(self, key: str) -> None:
        self.call("PEXPIRE", key, 1)
        eventually(lambda: self.call("EXISTS", key) == 0)

    def flush(self) -> None:
        assert self.call("FLUSHALL") == "OK"

    def get(self, key: str) -> bytes | None:
        return self.call("GET", key)

    def _life(self, old: bool) -> tuple[str | int, ...]:
        return ("PX", 1 if old else (LIFE - GRACE) * 1000, "GRACE", GRACE * 1000)

    def _written(self, key: str, stored: int, old: bool) -> int:
        if stored and old:
            eventually(lambda: self.call("CACHE.TTL", key)[0] == 0)
        return stored


class Meta:
    """The same in meta commands."""

    def __init__(self, memcached: Memcached) -> None:
        self.client = MetaClient(memcached)

    def fetch(self, key: str, stale_ok: bool) -> list:
        answer = self.client.call("mg", key, "v", "c", f"N{LEASE}", f"R{GRACE}")
        if not answer.won and not answer.lost:
            return ["HIT", answer.value, None]
        # An empty item was made by N, for a value to come.
        value = answer.value if answer.value and stale_ok else None
        if answer.won:
            return ["REFRESH" if value else "MISS", value, answer.cas]
        return ["STALE" if value else "BUSY", value, None]

    def fill(self, key: str, cas: str, value: bytes, old: bool) -> int:
        return self._done(self.client.store(key, value, f"C{cas}", self._life(old)).code)

    def fail(self, key: str, cas: str) -> int:
        return self._done(self.client.call("md", key, "I", f"C{cas}").code)

    def set(self, key: str, value: bytes, old: bool) -> int:
        return self._done(self.client.store(key, value, self._life(old)).code)

    def stale(self, key: str) -> int:
        return self._done(self.client.call("md", key, "I", f"T{GRACE}").code)

    def invalidate(self, key: str) -> int:
        return self._done(self.client.call("md", key).code)

    def expire(self, key: str) -> None:
        assert self.client.classic("touch", key, -1) in ("TOUCHED", "NOT_FOUND")

    def flush(self) -> None:
        assert self.client.classic("flush_all") == "OK"

    def get(self, key: str) -> bytes | None:
        return self.client.get(key) or None

    def _life(self, old: bool) -> str:
        # Old is what has less left than the R of those who fetch.
        return f"T{GRACE - 10 if old else LIFE}"

    def _done(self, code: str) -> int:
        return {"HD": 1, "EX": 0, "NF": 0}[code]


class Machine(RuleBasedStateMachine):
    def __init__(self, server: Server, memcached: Memcached, seen: set[str]) -> None:
        super().__init__()
        self.ours, self.theirs = Keyward(server), Meta(memcached)
        self.seen = seen
        # Of every load that ever began: a token that was used, or lost, is tried again.
        self.loads: list[tuple[str, bytes, str]] = []
        self.writes = count()
        self.ours.flush()
        self.theirs.flush()

    @rule(key=ANY_KEY, stale_ok=st.lists(st.sampled_from([True, True, False]), min_size=2, max_size=4))
    def fetch(self, key: str, stale_ok: list[bool]) -> None:
        for each in stale_ok:
            *told, token = self.ours.fetch(key, each)
            *told_there, cas = self.theirs.fetch(key, each)
            assert (told, token is None) == (told_there, cas is None)
            self.seen.add(told[0])
            if token:
                self.loads.append((key, token, cas))

    @precondition(lambda self: self.loads)
    @rule(back=BACK, old=st.booleans())
    def fill(self, back: int, old: bool) -> None:
        key, token, cas = self.loads[-1 - back % len(self.loads)]
        row = self.row()
        stored = self.ours.fill(key, token, row, old)
        assert stored == self.theirs.fill(key, cas, row, old)
        self.seen.add("stored" if stored else "refused")

    @rule(key=ANY_KEY, old=st.booleans())
    def fetch_and_fill(self, key: str, old: bool) -> None:
        """A caller that is not disturbed."""
        before = len(self.loads)
        self.fetch(key, [True])
        if len(self.loads) > before:
            self.fill(0, old)

    @precondition(lambda self: self.loads)
    @rule(back=BACK)
    def fail(self, back: int) -> None:
        key, token, cas = self.loads[-1 - back % len(self.loads)]
        assert self.ours.fail(key, token) == self.theirs.fail(key, cas)

    @rule(key=ANY_KEY, old=st.booleans())
    def set(self, key: str, old: bool) -> None:
        row = self.row()
        assert self.ours.set(key, row, old) == self.theirs.set(key, row, old) == 1

    # What memcached counts is items, those without a value and those that are stale already among them.

    @rule(key=ANY_KEY)
    def stale(self, key: str) -> None:
        assert self.ours.stale(key) <= self.theirs.stale(key)

    @rule(key=ANY_KEY, how=st.sampled_from(["invalidate", "invalidate", "expire", "flush"]))
    def lose(self, key: str, how: str) -> None:
        if how == "invalidate":
            assert self.ours.invalidate(key) <= self.theirs.invalidate(key)
        elif how == "expire":
            self.give_up(key)  # There the load would go with the value.
            self.ours.expire(key)
            self.theirs.expire(key)
        else:
            self.ours.flush()
            self.theirs.flush()

    def give_up(self, key: str) -> None:
        for of, token, cas in self.loads:
            if of == key:
                assert self.ours.fail(key, token) == self.theirs.fail(key, cas)

    @invariant()
    def a_plain_get_reads_the_same(self) -> None:
        for key in KEYS:
            assert self.ours.get(key) == self.theirs.get(key)

    def teardown(self) -> None:
        self.ours.client.close()
        self.theirs.client.close()

    def row(self) -> bytes:
        return b"row %d" % next(self.writes)


@pytest.mark.timeout(900)  # Finding the shortest failing sequence takes its time.
def test_both_tell_every_caller_the_same(server: Server) -> None:
    seen: set[str] = set()
    with Memcached() as memcached:
        run_state_machine_as_test(
            lambda: Machine(server, memcached, seen),
            settings=settings(
                max_examples=100,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert seen == {"HIT", "REFRESH", "STALE", "MISS", "BUSY", "stored", "refused"}
