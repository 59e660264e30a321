"""The wall clock of the server is set forward and back. libfaketime stands between the server and the clock."""

import os
from pathlib import Path

import pytest
from ratelimits import check
from raw_client import RawClient
from servers import Server, default_flavour, eventually
from tag_view import metric

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
pytestmark = [
    pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed (scripts/setup.sh clock)"),
    pytest.mark.skipif(
        default_flavour() != "redis-8.2",
        reason="Debian's redis-server 7.0 hangs under libfaketime, before it begins; Valkey loads modules with "
        "RTLD_DEEPBIND, so that they go on reading the true clock",
    ),
]
HOUR = 3600


class Clockwork(Server):
    """A server whose wall clock can be set; the steady clock goes on as it is."""

    def __init__(self, folder, **options):
        super().__init__(folder, **options)
        self.offset = folder.with_name(f"{folder.name}.offset")

    def _spawn(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(LIBRARIES[0]))
            patch.setenv("FAKETIME_TIMESTAMP_FILE", str(self.offset))
            patch.setenv("FAKETIME_NO_CACHE", "1")
            patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            super()._spawn()

    def clock(self):
        with RawClient(self) as raw:
            return int(raw.call("TIME")[0])

    def set_clock(self, seconds):
        """So many seconds off the real time, from now on."""
        before = self.clock()
        new = self.offset.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        os.replace(new, self.offset)
        eventually(lambda: abs(self.clock() - before) > HOUR / 2)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server.offset").write_text("+0\n")
    server = Clockwork(tmp_path / "server").start()
    yield server
    server.check()
    assert metric(server, "caught_panics") == metric(server, "cache_ghosts") == 0
    server.stop()


@pytest.fixture
def raw(server):
    with RawClient(server) as raw:
        yield raw


def waiting(server, *words):
    client = RawClient(server)
    before = server.info("clients")["blocked_clients"]
    client.send(*words)
    eventually(lambda: server.info("clients")["blocked_clients"] == before + 1)
    return client


def test_forward_everything_that_has_a_time_is_over(server, raw):
    raw.call("CACHE.SETTAGGED", "value", "v", "EX", 600, "TAGS", 1, "t")
    raw.call("CACHE.SET", "stale", "v", "EX", 600, "GRACE", 10 * HOUR)
    raw.call("CACHE.FETCH", "key", "LEASE", 60_000)
    token = raw.call("LOCK.ACQUIRE", "lock", "ann", "EX", 600)
    assert check(server.client(), 1, "EX", 600)[0] == 1
    raw.call("RATELIMIT.ENTER", "slots", "ann", "LIMIT", 1, "EX", 600)
    raw.call("WRITEBEHIND.SET", "queue", "row", "v")
    raw.call("WRITEBEHIND.CLAIM", "queue", "ann", "LEASE", 600_000)
    waiters = [
        waiting(server, "CACHE.FETCH", "key", "WAIT", 0),
        waiting(server, "LOCK.ACQUIRE", "lock", "bob", "EX", 600, "WAIT", 0),
        waiting(server, "RATELIMIT.ENTER", "slots", "bob", "LIMIT", 1, "EX", 600, "WAIT", 0),
        waiting(server, "WRITEBEHIND.CLAIM", "queue", "bob", "BLOCK", 0),
    ]
    server.set_clock(HOUR)
    fetched, granted, entered, claimed = [client.read() for client in waiters]
    assert fetched[0] == b"MISS"
    assert granted > token
    assert entered[0] == 1
    assert claimed[0][0] == b"row"
    assert raw.call("CACHE.GET", "value") is None
    assert raw.call("CACHE.GET", "stale") is None
    assert raw.call("CACHE.FETCH", "stale", "WAIT", 1)[:2] == [b"REFRESH", b"v"]
    assert check(server.client(), 1, "EX", 600)[0] == 1
    eventually(lambda: metric(server, "cache_tagged_keys") == 0)


def test_back_nothing_is_granted_twice(server, raw):
    """Tokens grow, what is held stays held, what was admitted stays counted."""
    client = server.client()
    token = raw.call("LOCK.ACQUIRE", "lock", "ann", "EX", 600)
    version = raw.call("WRITEBEHIND.SET", "queue", "row", "v")
    assert [check(client, 3, "EX", 600)[0] for _ in range(4)] == [1, 1, 1, 0]
    raw.call("RATELIMIT.ENTER", "slots", "ann", "LIMIT", 1, "EX", 600)
    raw.call("CACHE.SETTAGGED", "value", "v", "EX", 600, "TAGS", 1, "t")
    load = raw.call("CACHE.FETCH", "key", "LEASE", 60_000)[2]
    server.set_clock(-HOUR)
    assert raw.call("LOCK.VALIDATE", "lock", token) == 1
    assert raw.call("LOCK.ACQUIRE", "lock", "bob", "EX", 600) is None
    assert raw.call("LOCK.ACQUIRE", "other", "bob", "EX", 600) > token
    assert raw.call("WRITEBEHIND.SET", "queue", "row", "w") > version
    allowed, _, remaining, retry_after, *_ = check(client, 3, "EX", 600)
    assert (allowed, remaining) == (0, 0)
    assert 0 < retry_after <= 2 * HOUR * 1000
    assert raw.call("RATELIMIT.ENTER", "slots", "bob", "LIMIT", 1, "EX", 600)[0] == 0
    assert raw.call("CACHE.INVALIDATETAG", "t") == 1
    assert raw.call("CACHE.FILL", "key", load, "old", "EX", 60, "TAGS", 1, "t") == 0, "invalidated since the load began"
    assert raw.call("CACHE.GET", "value") is None
    # Forward to where it was: no window has begun anew.
    server.set_clock(0)
    assert check(client, 3, "EX", 600)[0] == 0


def test_back_and_a_restart(server, raw):
    """Tokens are above those from before the restart, whose clock was an hour ahead."""
    raw.call("CONFIG", "SET", "save", "3600 1")
    token = raw.call("LOCK.ACQUIRE", "lock", "ann", "EX", 10 * HOUR)
    version = raw.call("WRITEBEHIND.SET", "queue", "row", "v")
    server.set_clock(-HOUR)
    server.restart()
    with RawClient(server) as raw:
        assert raw.call("LOCK.VALIDATE", "lock", token) == 1
        assert raw.call("LOCK.ACQUIRE", "other", "bob", "EX", 600) > version > token


@pytest.mark.parametrize("hours", [1, -1])
def test_waits_are_not_lost(server, raw, hours):
    """Whoever waits is answered when what he waits for comes, whatever the clock says."""
    raw.call("LOCK.ACQUIRE", "lock", "ann", "EX", 100 * HOUR)
    raw.call("CACHE.FETCH", "key", "LEASE", 60_000)
    lock = waiting(server, "LOCK.ACQUIRE", "lock", "bob", "EX", 600, "WAIT", 0)
    claim = waiting(server, "WRITEBEHIND.CLAIM", "queue", "bob", "BLOCK", 0)
    server.set_clock(hours * HOUR)
    assert raw.call("LOCK.RELEASE", "lock", "ann") == 1
    assert lock.read() > 0
    assert raw.call("WRITEBEHIND.SET", "queue", "row", "v") > 0
    assert claim.read()[0][0] == b"row"
    # Waits that begin now run out.
    assert raw.call("LOCK.ACQUIRE", "lock", "cy", "EX", 600, "WAIT", 20) is None
