"""SLIDING: a read sets the time to live back to full, just after it and on the primary alone."""

import os
import signal

import pytest
from policies import about, lives, set_policy
from propagation import ReplicationStream
from raw_client import RawClient
from servers import eventually, upkeep_passes
from single_flight import Callers
from tag_view import at_once, metric, picture

FULL = 1_000_000
HALF = FULL // 2


def sessions(client, *options):
    set_policy(client, "sessions", "PREFIX", "s:", "PX", FULL, "SLIDING", *options)


def store(client, key, ms=HALF, *options):
    assert client.execute_command("CACHE.SET", key, "v", "PX", ms, *options) == b"OK"


def slides(server):
    """Once all that was noted is done."""
    eventually(lambda: metric(server, "cache_slides_pending") == 0)
    return metric(server, "cache_slides")


@pytest.mark.parametrize(
    "words",
    [
        ("CACHE.GET", "s:1"),
        ("CACHE.MGET", "none", "s:1", "s:1"),
        ("CACHE.FETCH", "s:1"),
        ("CACHE.MFETCH", 2, "s:1", "s:1"),
        ("CACHE.READ", "s:1", "LOADER", "l"),
    ],
    ids=lambda words: words[0],
)
def test_a_hit_sets_the_ttl_back_to_full(client, server, words):
    sessions(client)
    store(client, "s:1")
    before = slides(server)
    client.execute_command(*words)
    assert slides(server) == before + 1
    soft, hard = lives(client, "s:1")
    assert about(soft, FULL)
    assert hard == soft


def test_grace_stays_behind_the_new_end(client, server):
    sessions(client, "GRACE", 100_000)
    store(client, "s:1")
    client.execute_command("CACHE.GET", "s:1")
    slides(server)
    soft, hard = lives(client, "s:1")
    assert about(soft, FULL)
    assert hard - soft == 100_000


def test_not_more_than_once_per_tenth(client, server):
    sessions(client)
    store(client, "s:1", FULL - FULL // 20)
    before = slides(server)
    for _ in range(100):
        client.execute_command("CACHE.GET", "s:1")
    upkeep_passes(server)
    assert slides(server) == before
    client.pexpire("s:1", FULL - FULL // 8)
    for _ in range(100):
        client.execute_command("CACHE.GET", "s:1")
    assert slides(server) == before + 1


def test_a_session_lives_as_long_as_it_is_read(client, server):
    set_policy(client, "sessions", "PREFIX", "s:", "PX", 400, "SLIDING")
    client.execute_command("CACHE.SET", "s:read", "v")
    client.execute_command("CACHE.SET", "s:idle", "v")
    eventually(lambda: client.execute_command("CACHE.GET", "s:read") and not client.exists("s:idle"))
    before = slides(server)
    assert before > 1
    eventually(lambda: not client.exists("s:read"))


def test_what_does_not_slide(client, server):
    sessions(client)
    set_policy(client, "others", "PREFIX", "o:", "PX", FULL)
    for key, ms in (("o:1", HALF), ("s:longer", 2 * FULL), ("free", HALF)):
        store(client, key, ms)
    client.set("s:for-ever", "v")
    store(client, "s:plain")
    store(client, "s:invalid", HALF, "TAGS", 1, "t")
    client.execute_command("CACHE.INVALIDATETAG", "t")
    store(client, "s:stale", HALF, "GRACE", HALF)
    client.execute_command("CACHE.STALE", "s:stale")
    before = slides(server)
    for key in ("o:1", "s:longer", "free", "s:for-ever", "s:none", "s:invalid", "s:stale"):
        client.execute_command("CACHE.GET", key)
        client.execute_command("CACHE.FETCH", key)
    client.get("s:plain")
    client.execute_command("CACHE.TTL", "s:plain")
    upkeep_passes(server)
    assert slides(server) == before
    assert client.ttl("s:for-ever") == -1
    assert about(client.pttl("s:plain"), HALF)


def test_a_plain_value_slides_as_well(client, server):
    sessions(client)
    client.set("s:1", "v", px=HALF)
    client.execute_command("CACHE.GET", "s:1")
    slides(server)
    assert about(client.pttl("s:1"), FULL)


def test_a_wish_that_comes_before_the_slide_stays(client, server):
    """In one transaction nothing comes between the read and what follows it."""
    sessions(client)
    for words in (("PEXPIRE", "s:1", 5000), ("CACHE.SET", "s:1", "w", "PX", 5000), ("PERSIST", "s:1")):
        store(client, "s:1")
        before = slides(server)
        at_once(server, ("CACHE.GET", "s:1"), words)
        assert slides(server) == before
        assert client.pttl("s:1") <= 5000


def test_watch_and_client_side_caches_are_not_disturbed(client, server):
    sessions(client)
    store(client, "s:1")
    with RawClient(server, 3) as watcher:
        assert watcher.call("CLIENT", "TRACKING", "ON") == "OK"
        assert watcher.call("WATCH", "s:1") == "OK"
        before = slides(server)
        assert watcher.call("CACHE.GET", "s:1") == b"v"
        assert slides(server) == before + 1
        assert watcher.call("MULTI") == "OK"
        assert watcher.call("GET", "s:1") == "QUEUED"
        assert watcher.call("EXEC") == [b"v"]


def test_reads_in_scripts_slide(client, server):
    sessions(client)
    store(client, "s:1")
    assert client.eval("return redis.call('CACHE.GET', KEYS[1])", 1, "s:1") == b"v"
    slides(server)
    assert about(client.pttl("s:1"), FULL)


def test_in_each_database(client, server):
    sessions(client)
    for db in (0, 3):
        with server.client(db=db) as other:
            store(other, "s:1")
            other.execute_command("CACHE.GET", "s:1")
    slides(server)
    assert about(client.pttl("s:1"), FULL)
    assert about(server.client(db=3).pttl("s:1"), FULL)


# Replication


def test_the_effect_is_absolute_and_for_many_keys_at_once(make_server):
    server = make_server()
    client = server.client()
    sessions(client)
    for number in range(3):
        store(client, f"s:{number}")
    store(client, "s:graced", HALF, "GRACE", 100)
    with ReplicationStream(server) as stream:
        client.execute_command("CACHE.MGET", "s:0", "s:1", "s:2", "s:graced", "s:0")
        slides(server)
        effects = [effect for effect in stream.read() if effect not in ([b"MULTI"], [b"EXEC"])]
        (effect,) = effects
        assert effect[:2] == [b"KEYWARD.APPLY", b"SLIDE"]
        told = {key: (int(soft), int(hard)) for key, soft, hard in zip(*[iter(effect[2:])] * 3, strict=True)}
        assert sorted(told) == [b"s:0", b"s:1", b"s:2", b"s:graced"]
        for key, (soft, hard) in told.items():
            assert client.execute_command("PEXPIRETIME", key) == hard
            assert hard - soft == (100 if key == b"s:graced" else 0)
        client.execute_command("CACHE.MGET", "s:0", "s:1", "s:2", "s:graced")
        upkeep_passes(server)
        assert stream.read() == []


@pytest.fixture
def pair(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary)
    sessions(primary.client())
    replica.wait_until_synced()
    return primary, replica


def ends(server):
    """When each key is gone. To look at it does not slide it."""
    client = server.client()
    return {key: client.execute_command("PEXPIRETIME", key) for key in client.keys("*")}


def test_a_replica_is_equal_and_its_reads_do_not_slide(pair):
    primary, replica = pair
    client = primary.client()
    for number in range(300):
        store(client, f"s:{number}", HALF, *(("GRACE", 1000) if number % 2 else ()))
    replica.wait_until_synced()
    replica.client().execute_command("CACHE.MGET", *(f"s:{number}" for number in range(300)))
    assert metric(replica, "cache_slides_pending") == 0
    client.execute_command("CACHE.MGET", *(f"s:{number}" for number in range(200)))
    assert slides(primary) == 200
    replica.wait_until_synced()
    assert ends(replica) == ends(primary)
    for key, left in (("s:1", FULL), ("s:250", HALF)):
        soft, hard = lives(replica.client(), key)
        assert about(soft, left)
        assert hard - soft == (1000 if key == "s:1" else 0)


def test_slides_wait_for_the_end_of_a_pause(pair):
    primary, replica = pair
    client = primary.client()
    store(client, "s:1")
    store(client, "s:2")
    replica.wait_until_synced()
    client.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")
    client.execute_command("CACHE.MGET", "s:1", "s:2", "s:1")
    upkeep_passes(primary)
    assert metric(primary, "cache_slides_pending") == 2
    assert about(client.pttl("s:1"), HALF)
    client.execute_command("CLIENT", "UNPAUSE")
    assert slides(primary) == 2
    replica.wait_until_synced()
    assert picture(replica) == picture(primary)


def test_a_failover_drops_what_is_noted(pair):
    primary, replica = pair
    client = primary.client()
    store(client, "s:1")
    replica.wait_until_synced()
    os.kill(replica.pid, signal.SIGSTOP)
    try:
        client.set("behind", 1)
        client.execute_command("FAILOVER")
        client.execute_command("CACHE.GET", "s:1")
        upkeep_passes(primary)
        assert metric(primary, "cache_slides_pending") == 1
    finally:
        os.kill(replica.pid, signal.SIGCONT)
    eventually(lambda: primary.info("replication")["role"] == "slave", timeout=30)
    primary.primary, replica.primary = replica, None
    assert (metric(primary, "cache_slides_pending"), metric(primary, "cache_slides")) == (0, 0)
    replica.client().execute_command("CACHE.GET", "s:1")
    assert slides(replica) == 1
    primary.wait_until_synced()
    assert picture(primary) == picture(replica)


def test_notes_are_bounded(make_server):
    server = make_server(args=["slides-max", "2"])
    client = server.client()
    sessions(client)
    for number in range(3):
        store(client, f"s:{number}")
    client.execute_command("CACHE.MGET", "s:0", "s:1", "s:2", "s:0")
    assert slides(server) == 2
    assert metric(server, "cache_slides_dropped") == 1
    client.execute_command("CACHE.GET", "s:2")
    assert slides(server) == 3


def test_shutdown_while_slides_wait(pair):
    """The timer must not write while the server waits for its replica."""
    primary, replica = pair
    client = primary.client()
    store(client, "s:1")
    replica.wait_until_synced()
    with Callers(primary) as callers:
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            client.set("behind", 1)
            callers.connect().send("SHUTDOWN")
            eventually(lambda: callers.call("CACHE.GET", "s:1") == b"v")
            upkeep_passes(primary)
            assert primary.alive()
            callers.call("SHUTDOWN", "ABORT")
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        assert slides(primary) == 1
