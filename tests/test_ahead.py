"""AHEAD: a read in the last part of the time to live queues the key for its loader."""

import pytest
from policies import about, lives, set_policy
from propagation import ReplicationStream
from servers import eventually
from single_flight import Callers
from tag_view import metric

TTL = 1_000_000
# In the last fifth.
LATE = 100_000


@pytest.fixture
def client(client):
    set_policy(client, "p", "PREFIX", "k", "PX", TTL, "AHEAD", "20%", "LOADER", "l")
    return client


def store(client, key, ms=LATE, *options):
    assert client.execute_command("CACHE.SET", key, "old", "PX", ms, *options) == b"OK"


def jobs(client):
    return client.execute_command("CACHE.LOADS", "l", "COUNT", 10)


@pytest.mark.parametrize(
    "words",
    [
        ("CACHE.GET", "k"),
        ("CACHE.MGET", "k", "none", "k"),
        ("CACHE.FETCH", "k"),
        ("CACHE.MFETCH", 1, "k"),
        ("CACHE.READ", "k", "LOADER", "other"),
    ],
    ids=lambda words: words[0],
)
def test_a_late_read_queues_the_key_once(client, words):
    store(client, "k")
    for _ in range(3):
        client.execute_command(*words)
    ((key, token, reason, left),) = jobs(client)
    assert (key, reason) == (b"k", b"AHEAD")
    assert about(left, LATE)
    client.execute_command(*words)
    assert jobs(client) == [], "it is being loaded"
    assert client.execute_command("CACHE.FILL", "k", token, "new") == 1
    assert about(lives(client, "k")[0], TTL)
    assert client.execute_command("CACHE.GET", "k") == b"new"
    assert jobs(client) == []


def test_an_early_read_does_not(client):
    store(client, "k", TTL)
    store(client, "other")
    for key in ("k", "other", "none"):
        client.execute_command("CACHE.GET", key)
    client.get("k")
    assert jobs(client) == []


def test_it_is_the_soft_expiry_that_counts(client):
    store(client, "k", LATE, "GRACE", 5 * TTL)
    client.execute_command("CACHE.GET", "k")
    ((_, _, _, left),) = jobs(client)
    assert about(left, LATE)


def test_a_loader_that_waits_is_given_it_by_the_read_itself(client, server, protocol):
    store(client, "k")
    with Callers(server, protocol) as callers:
        loader = callers.connect()
        loader.send("CACHE.LOADS", "l", "BLOCK", 0)
        eventually(lambda: server.info("clients")["blocked_clients"] == 1)
        for _ in range(2):
            assert callers.call("CACHE.GET", "k") == b"old"
        ((key, token, reason, _),) = loader.read()
        assert (key, reason) == (b"k", b"AHEAD")
        assert callers.call("CACHE.FILL", "k", token, "new") == 1


def test_a_job_that_nobody_fills_is_given_again(client, server):
    store(client, "k")
    client.execute_command("CACHE.GET", "k")
    before = metric(server, "cache_lease_timeouts")
    assert len(client.execute_command("CACHE.LOADS", "l", "LEASE", 1)) == 1
    ((key, _, reason, _),) = eventually(lambda: jobs(client))
    assert (key, reason) == (b"k", b"AHEAD")
    assert metric(server, "cache_lease_timeouts") == before + 1


def test_what_was_written_meanwhile_needs_no_load(client):
    for words in (("CACHE.SET", "k", "new"), ("CACHE.INVALIDATE", "k"), ("PEXPIRE", "k", TTL)):
        store(client, "k")
        client.execute_command("CACHE.GET", "k")
        client.execute_command(*words)
        assert [job for job in jobs(client) if job[2] == b"AHEAD"] == [], words
        client.execute_command("CACHE.INVALIDATE", "k")


def test_without_a_loader_or_a_ttl_nothing_happens(client):
    for options in (
        ("PX", TTL, "AHEAD", "100%"),
        ("AHEAD", "100%", "LOADER", "l"),
        ("PX", TTL, "AHEAD", "0%", "LOADER", "l"),
    ):
        set_policy(client, "p", "PREFIX", "k", *options)
        store(client, "k")
        client.execute_command("CACHE.GET", "k")
        assert jobs(client) == []


def test_a_sliding_key_is_prolonged_and_loaded(client):
    set_policy(client, "p", "PREFIX", "k", "PX", TTL, "AHEAD", "20%", "LOADER", "l", "SLIDING")
    store(client, "k")
    client.execute_command("CACHE.GET", "k")
    eventually(lambda: client.pttl("k") > LATE)
    assert jobs(client) == [], "by now it is far from its end"


def test_nothing_is_propagated_and_a_replica_queues_nothing(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary)
    client = primary.client()
    set_policy(client, "p", "PREFIX", "k", "PX", TTL, "AHEAD", "20%", "LOADER", "l")
    store(client, "k")
    replica.wait_until_synced()
    assert replica.client().execute_command("CACHE.GET", "k") == b"old"
    assert metric(replica, "cache_jobs") == 0
    with ReplicationStream(primary) as stream:
        client.execute_command("CACHE.GET", "k")
        assert len(jobs(client)) == 1
        assert stream.read() == []
