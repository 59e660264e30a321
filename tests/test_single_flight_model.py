"""Random interleavings of many clients, and of everything that happens to keys, against the reference model. Every reply and
every answer to a waiter must be the model's. Besides, by no model at all: no read that starts after an invalidation has
replied returns an older version of the row.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from raw_client import ErrorReply, RawClient
from servers import Server, eventually
from single_flight_model import Load, Reply, SingleFlightModel, Value, Waiter

# The rows of the origin, and the tags under which what was read from them is cached.
ROWS = {"a": frozenset({"t"}), "b": frozenset({"t", "u"}), "c": frozenset()}
# Most of it happens to one of them.
ANY_ROW = st.sampled_from(["b", "b", "b", "a", "c"])
SOME = st.integers(0, 1000)
LONG = 600_000


class Machine(RuleBasedStateMachine):
    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.control = RawClient(server)
        self.idle: list[RawClient] = []
        self.ids: dict[RawClient, int] = {}
        self.waiting: dict[Waiter, tuple[RawClient, int]] = {}
        self.loads: list[Load] = []
        self.tokens: dict[Load, bytes] = {}
        self.read: dict[Load, bytes] = {}
        self.model = SingleFlightModel(sorted(ROWS))
        self.versions = dict.fromkeys(ROWS, 0)
        self.floors = dict.fromkeys(ROWS, 0)
        self.writes = count()
        assert self.control.call("FLUSHALL") == "OK"

    # Callers

    @rule(key=ANY_ROW, wait=st.booleans(), stale_ok=st.booleans())
    def fetch(self, key: str, wait: bool, stale_ok: bool) -> None:
        client = self.idle.pop() if self.idle else self.connect()
        expected = self.model.fetch(key, wait=wait, stale_ok=stale_ok)
        options = ("WAIT", LONG) if wait else ()
        client.send("CACHE.FETCH", key, *options, "LEASE", LONG // 10, "STALE", "OK" if stale_ok else "NEVER")
        if isinstance(expected, Waiter):
            self.waiting[expected] = (client, self.floors[key])
            self.waiters_are_as_expected()
            assert not client.is_answered()
        else:
            self.told(client, key, self.floors[key], expected)

    @rule(key=ANY_ROW, stale_ok=st.lists(st.booleans(), min_size=2, max_size=5))
    def crowd(self, key: str, stale_ok: list[bool]) -> None:
        for one in stale_ok:
            self.fetch(key, True, one)

    @precondition(lambda self: self.loads)
    @rule(which=SOME)
    def fill(self, which: int) -> None:
        load = self.taken(which)
        value, tags = Value(self.read[load], ROWS[load.key], grace=True), ROWS[load.key]
        words = ("CACHE.FILL", load.key, self.tokens[load], value.data, "PX", LONG, "GRACE", LONG, *tags_option(tags))
        self.replies(self.model.fill(load, value, tags), *words)

    @precondition(lambda self: self.loads)
    @rule(which=SOME)
    def fill_nil(self, which: int) -> None:
        load = self.taken(which)
        tags = ROWS[load.key]
        words = ("CACHE.FILLNIL", load.key, self.tokens[load], "PX", LONG, *tags_option(tags))
        self.replies(self.model.fill(load, None, tags), *words)

    @precondition(lambda self: self.loads)
    @rule(which=SOME, message=st.sampled_from([None, b"", b"down"]))
    def fail(self, which: int, message: bytes | None) -> None:
        load = self.taken(which)
        options = () if message is None else ("MSG", message, "RETRY", LONG)
        self.replies(self.model.fail(load, message), "CACHE.FAIL", load.key, self.tokens[load], *options)

    @precondition(lambda self: self.loads)
    @rule(which=SOME)
    def lease_runs_out(self, which: int) -> None:
        load = self.loads[which % len(self.loads)]
        is_live = self.model.keys[load.key].live is load
        ended = self.info("lease_timeouts")
        self.replies(int(is_live), "CACHE.RENEW", load.key, self.tokens[load], "LEASE", 1)
        if is_live:
            eventually(lambda: self.info("lease_timeouts") == ended + 1)
            self.model.fail(load)
            self.collect()

    @precondition(lambda self: self.waiting)
    @rule(which=SOME, how=st.sampled_from(["TIMEOUT", "ERROR", "close"]))
    def leave(self, which: int, how: str) -> None:
        waiter = list(self.waiting)[which % len(self.waiting)]
        client, _ = self.waiting.pop(waiter)
        self.model.leave(waiter)
        if how == "close":
            client.close()
            self.waiters_are_as_expected()
            return
        self.replies(1, "CLIENT", "UNBLOCK", self.ids[client], how)
        reply = client.read()
        assert str(reply).startswith("UNBLOCKED") if how == "ERROR" else reply == [b"BUSY", None, None]
        self.idle.append(client)

    # Writers: the row changes, and the cache is told, or not

    @rule(key=ANY_ROW)
    def change_and_tell_nobody(self, key: str) -> None:
        self.versions[key] += 1

    @rule(key=ANY_ROW)
    def change_and_invalidate(self, key: str) -> None:
        self.versions[key] += 1
        self.replies(self.model.remove(key), "CACHE.INVALIDATE", key)
        self.floors[key] = self.versions[key]

    @rule(key=ANY_ROW)
    def change_and_delete(self, key: str) -> None:
        self.versions[key] += 1
        there = self.model.remove(key, by_name=False)
        self.replies(there, "DEL", key)
        if there:
            self.floors[key] = self.versions[key]

    @rule(tag=st.sampled_from("tu"))
    def change_and_invalidate_tag(self, tag: str) -> None:
        rows = [key for key, tags in ROWS.items() if tag in tags]
        # A plain SET wrote what has no tags: the tag cannot reach it.
        reached = [key for key in rows if (value := self.model.keys[key].value) is None or tag in value.tags]
        for key in rows:
            self.versions[key] += 1
        self.replies(self.model.tag(tag, stale=False), "CACHE.INVALIDATETAG", tag)
        self.floors |= {key: self.versions[key] for key in reached}

    @rule(key=ANY_ROW)
    def change_and_make_stale(self, key: str) -> None:
        self.versions[key] += 1
        self.replies(self.model.stale(key), "CACHE.STALE", key)

    @rule(tag=st.sampled_from("tu"))
    def make_tag_stale(self, tag: str) -> None:
        self.replies(self.model.tag(tag, stale=True), "CACHE.STALETAG", tag)

    @rule(key=ANY_ROW, grace=st.booleans())
    def write_through(self, key: str, grace: bool) -> None:
        self.versions[key] += 1
        data, tags = self.row(key), ROWS[key]
        self.model.set(key, Value(data, tags, grace))
        options = ("GRACE", LONG) if grace else ()
        self.replies("OK", "CACHE.SET", key, data, "PX", LONG, *options, *tags_option(tags))
        self.floors[key] = self.versions[key]

    @rule(key=ANY_ROW)
    def write_with_plain_set(self, key: str) -> None:
        if self.model.keys[key].value or not self.model.keys[key].live:
            self.versions[key] += 1
            data = self.row(key)
            self.model.plain_set(key, data)
            self.replies("OK", "SET", key, data)
            self.floors[key] = self.versions[key]

    # The server

    @rule(key=ANY_ROW)
    def expire(self, key: str) -> None:
        there = self.model.keys[key].value is not None
        self.model.vanish([key])
        self.replies(int(there), "PEXPIRE", key, 1)
        eventually(lambda: self.control.call("EXISTS", key) == 0)

    @rule()
    def evict_everything(self) -> None:
        self.model.vanish(sorted(ROWS))
        self.replies("OK", "CONFIG", "SET", "maxmemory", 1)
        eventually(lambda: self.control.call("DBSIZE") == 0)
        self.replies("OK", "CONFIG", "SET", "maxmemory", 0)

    @rule(command=st.sampled_from(["FLUSHDB", "FLUSHALL"]))
    def flush(self, command: str) -> None:
        self.model.flush()
        self.replies("OK", command)

    # What must hold

    @invariant()
    def leases_are_as_expected(self) -> None:
        keys = self.model.keys.values()
        out = sum(len(key.loads()) + (key.failure is not None) for key in keys)
        assert self.info("leases") == out
        assert out > 0 or self.info("fence_tags") == 0

    @invariant()
    def waiters_are_as_expected(self) -> None:
        eventually(lambda: self.info("waiters") == len(self.waiting))
        assert not any(client.is_answered() for client, _ in self.waiting.values())

    def teardown(self) -> None:
        """Everybody who still waits is answered by a value, and nothing is left."""
        for key in ROWS:
            self.write_through(key, grace=False)
        assert not self.waiting
        self.leases_are_as_expected()
        for client in [self.control, *self.idle]:
            client.close()

    # How

    def connect(self) -> RawClient:
        client = RawClient(self.server)
        self.ids[client] = client.call("CLIENT", "ID")
        return client

    def row(self, key: str) -> bytes:
        # No two writes of the same bytes: a plain SET is told from the value before by its bytes.
        return b"%d/%d" % (self.versions[key], next(self.writes))

    def taken(self, which: int) -> Load:
        return self.loads.pop(which % len(self.loads))

    def info(self, field: str) -> int:
        text = self.control.call("INFO", "keyward_cache")
        return int(text.split(b"keyward_cache_%b:" % field.encode())[1].split()[0])

    def replies(self, expected: object, *words: bytes | str | int) -> None:
        assert self.control.call(*words) == expected, words
        self.collect()

    def collect(self) -> None:
        """Everybody whom the last step answers, in the model, has his answer."""
        answers, self.model.answers = self.model.answers, {}
        for waiter, expected in answers.items():
            client, floor = self.waiting.pop(waiter)
            self.told(client, waiter.key, floor, expected)

    def told(self, client: RawClient, key: str, floor: int, expected: Reply) -> None:
        reply = client.read()
        self.idle.append(client)
        assert not isinstance(reply, ErrorReply), reply
        status, value, token = reply
        assert (status.decode(), value, token is not None) == (
            expected.status,
            expected.value,
            expected.load is not None,
        )
        if expected.load:
            assert token not in self.tokens.values(), "a token is unique for ever"
            self.tokens[expected.load] = token
            self.read[expected.load] = self.row(key)
            self.loads.append(expected.load)
        if value is not None and expected.status != "ERROR":
            assert int(value.split(b"/")[0]) >= floor, "older than what an invalidation has replied to"


def tags_option(tags: frozenset[str]) -> tuple[str | int, ...]:
    return ("TAGS", len(tags), *sorted(tags)) if tags else ()


@pytest.mark.timeout(900)  # Finding the shortest failing sequence takes its time.
def test_every_answer_is_the_models(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["maxmemory-policy allkeys-random"])
    run_state_machine_as_test(
        lambda: Machine(server),
        settings=settings(
            max_examples=400,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
