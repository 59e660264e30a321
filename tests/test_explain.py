"""CACHE.EXPLAIN and CACHE.STATS: what is known of a key, why it went, and how the cache does."""

import pytest
from raw_client import RawClient, fields
from servers import eventually
from tag_view import fill_tag, metric, set_tagged
from test_acl import denied, user

FIELDS = ["state", "tags", "policy", "soft_ms", "hard_ms", "version", "lease", "waiters", "last_gone", "last_gone_ms"]
STATS = [
    "hits",
    "stale_hits",
    "misses",
    "none_hits",
    "hit_ratio",
    "leases",
    "lease_timeouts",
    "waiters",
    "stampedes_suppressed",
    "fills",
    "fills_refused",
    "invalidations",
]


def explain(client, key):
    told = {name.decode(): value for name, value in fields(client.execute_command("CACHE.EXPLAIN", key)).items()}
    assert list(told) == FIELDS
    return told


def why(client, key):
    return explain(client, key)["last_gone"]


def test_a_key_of_which_nothing_is_known(client):
    assert explain(client, "none") == {
        "state": b"missing",
        "tags": [] if isinstance(client.execute_command("CACHE.TAGS", "none"), list) else set(),
        "policy": None,
        "soft_ms": -2,
        "hard_ms": -2,
        "version": None,
        "lease": None,
        "waiters": 0,
        "last_gone": None,
        "last_gone_ms": None,
    }


def test_what_is_known_is_told(client):
    client.execute_command("CACHE.POLICY", "SET", "p", "PREFIX", "k:")
    client.execute_command("CACHE.SET", "k:1", "v", "PX", 900_000, "GRACE", 100_000, "TAGS", 2, "t", "u", "VERSION", 7)
    told = explain(client, "k:1")
    assert (told["state"], set(told["tags"]), told["policy"], told["version"]) == (b"fresh", {b"t", b"u"}, b"p", 7)
    assert 800_000 < told["soft_ms"] <= 900_000 < told["hard_ms"] <= 1_000_000
    client.execute_command("CACHE.STALE", "k:1")
    assert (explain(client, "k:1")["state"], explain(client, "k:1")["soft_ms"]) == (b"stale", 0)
    client.rpush("list", 1)
    assert explain(client, "list")["state"] == b"other"


def test_leases_and_those_who_wait_are_told(server, client):
    client.execute_command("CACHE.FETCH", "k", "LEASE", 50_000)
    with RawClient(server) as waiter:
        waiter.send("CACHE.FETCH", "k", "WAIT", 0)
        eventually(lambda: explain(client, "k")["waiters"] == 1)
        told = explain(client, "k")
        assert told["state"] == b"missing"
        assert 0 < told["lease"] <= 50_000
        client.execute_command("CACHE.INVALIDATE", "k")
        assert (explain(client, "k")["lease"], explain(client, "k")["waiters"]) == (None, 1)
        client.execute_command("CACHE.SET", "k", "v")
        assert waiter.read()[1] == b"v"
    assert explain(client, "k")["waiters"] == 0


def test_negative_answers_and_database_writes_are_states(client):
    token = client.execute_command("CACHE.FETCH", "k")[2]
    client.execute_command("CACHE.FILLNIL", "k", token, "EX", 100)
    assert explain(client, "k")["state"] == b"none"
    client.set("l", "v")
    token = client.execute_command("CACHE.INTENT", "l")
    assert explain(client, "l")["state"] == b"writing"
    client.execute_command("CACHE.ROLLBACK", "l", token)
    assert explain(client, "l")["state"] == b"fresh"


def test_why_a_key_went(make_server, protocol):
    server = make_server()
    client = server.client(protocol)
    client.set("k", "v", px=1)
    eventually(lambda: not client.exists("k"))
    told = explain(client, "k")
    assert told["last_gone"] == b"expired"
    seconds, _ = client.time()
    assert abs(told["last_gone_ms"] / 1000 - seconds) < 60
    for remove in (("DEL", "k"), ("UNLINK", "k"), ("CACHE.INVALIDATE", "k"), ("CACHE.FLOOR", "k", 1)):
        client.set("k", "v", px=1)
        eventually(lambda: why(client, "k") == b"expired")
        client.set("k", "v")
        client.execute_command(*remove)
        assert why(client, "k") == b"deleted", remove
    set_tagged(client, "k", "t", b"\x00u")
    client.execute_command("CACHE.INVALIDATETAG", b"\x00u")
    assert why(client, "k") == b"tag \x00u"
    client.set("k", "v")
    assert (explain(client, "k")["state"], why(client, "k")) == (b"fresh", b"tag \x00u")
    client.execute_command("CACHE.RULE", "SET", "e", "KEYS", 1, "k", "TAGS", 1, "t")
    set_tagged(client, "l", "t")
    client.execute_command("CACHE.EMIT", "e", "{}")
    assert (why(client, "k"), why(client, "l")) == (b"event e", b"event e")
    client.set("m", "v")
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", 1)
    client.execute_command("PING")
    eventually(lambda: why(client, "m") == b"evicted")


def test_a_giant_tag_explains_keys_before_and_after_they_go(make_server):
    server = make_server(args=["invalidate-sync-keys", "10"])
    client = server.client()
    keys = fill_tag(client, "t", 500)
    with RawClient(server) as raw:
        *_, replies = raw.pipeline(
            [("MULTI",), ("CACHE.INVALIDATETAG", "t"), *(("CACHE.EXPLAIN", k) for k in keys), ("EXEC",)]
        )
    states = [fields(reply)[b"state"] for reply in replies[1:]]
    assert (states.count(b"invalidated"), states.count(b"missing")) == (490, 10)
    eventually(lambda: client.dbsize() == 0)
    assert {why(client, key) for key in keys} == {b"tag t"}


def test_a_replica_knows_of_tags_and_takes_the_rest_for_deleted(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    client = primary.client()
    set_tagged(client, "tagged", "t")
    client.set("expiring", "v", px=1)
    client.execute_command("CACHE.INVALIDATETAG", "t")
    eventually(lambda: not client.exists("expiring"))
    replica.wait_until_synced()
    assert why(replica.client(), "tagged") == b"tag t"
    assert why(replica.client(), "expiring") == b"deleted"


def test_how_much_is_remembered(make_server):
    server = make_server(args=["explain-history-max", "3"])
    client = server.client()
    client.mset({f"k{i}": "v" for i in range(5)})
    client.delete(*(f"k{i}" for i in range(5)))
    assert [why(client, f"k{i}") for i in range(5)] == [None, None, b"deleted", b"deleted", b"deleted"]
    assert metric(server, "cache_departures") == 3
    client.config_set("keyward.explain-history-max", 0)
    assert why(client, "k4") is None
    client.set("k", "v")
    client.delete("k")
    assert (why(client, "k"), metric(server, "cache_departures"), metric(server, "cache_departures_bytes")) == (
        None,
        0,
        0,
    )


def test_databases_are_apart_and_follow_swapdb_and_flushdb(make_server):
    server = make_server()
    client, other = server.client(), server.client(db=1)
    client.set("k", "v")
    client.delete("k")
    assert (why(client, "k"), why(other, "k")) == (b"deleted", None)
    client.execute_command("SWAPDB", 0, 1)
    assert (why(client, "k"), why(other, "k")) == (None, b"deleted")
    other.flushdb()
    assert why(other, "k") is None


def test_the_right_to_the_key_is_needed(make_server):
    server = make_server()
    with user(server, "+@all", "~allowed:*") as alice:
        assert denied(alice.call("CACHE.EXPLAIN", "denied:k"))
        assert not denied(alice.call("CACHE.EXPLAIN", "allowed:k"))


# CACHE.STATS


def stats(client, policy=None):
    words = [] if policy is None else ["POLICY", policy]
    return {name.decode(): value for name, value in fields(client.execute_command("CACHE.STATS", *words)).items()}


def test_stats_are_those_of_info_and_a_ratio(make_server, protocol):
    server = make_server()
    client = server.client(protocol)
    assert list(stats(client))[: len(STATS)] == STATS
    assert float(stats(client)["hit_ratio"]) == 0
    client.execute_command("CACHE.SET", "k", "v", "PX", 100_000, "GRACE", 100_000, "TAGS", 1, "t")
    for key in ("k", "k", "k", "none", "none"):
        client.execute_command("CACHE.GET", key)
    client.execute_command("CACHE.STALE", "k")
    token = client.execute_command("CACHE.FETCH", "k")[2]
    client.execute_command("CACHE.FILL", "k", token, "w")
    token = client.execute_command("CACHE.FETCH", "nil")[2]
    client.execute_command("CACHE.FILLNIL", "nil", token, "EX", 100)
    client.execute_command("CACHE.FETCH", "nil")
    client.execute_command("CACHE.INVALIDATE", "k")
    told = stats(client)
    assert (told["hits"], told["stale_hits"], told["misses"], told["none_hits"]) == (3, 1, 3, 1)
    assert float(told["hit_ratio"]) == 5 / 8
    assert isinstance(told["hit_ratio"], float if protocol == 3 else bytes)
    assert (told["fills"], told["leases_granted"], told["invalidations"], told["negatives"]) == (2, 2, 2, 1)
    for name, value in told.items():
        if name != "hit_ratio":
            assert metric(server, f"cache_{name}") == value, name


@pytest.mark.parametrize("words", [("x",), ("POLICY",), ("POLICY", "p", "q"), ("", "")])
def test_stats_take_one_policy_and_nothing_else(client, words):
    client.execute_command("CACHE.POLICY", "SET", "p")
    with pytest.raises(Exception, match="syntax error"):
        client.execute_command("CACHE.STATS", *words)


def test_a_policy_has_the_stats_of_its_keys(make_server, protocol):
    server = make_server()
    client = server.client(protocol)
    with pytest.raises(Exception, match="no such policy"):
        stats(client, "users")
    client.execute_command(
        "CACHE.POLICY", "SET", "users", "PREFIX", "u:", "EX", 100, "PATTERN", "u:{id}", "ENFORCE", "reject"
    )
    client.execute_command("CACHE.POLICY", "SET", "sessions", "PREFIX", "u:s:", "EX", 100)
    assert list(stats(client, "users"))[: len(STATS)] == STATS
    client.execute_command("CACHE.MSET", 2, "u:1", "v", "u:s:1", "v", "TAGS", 1, "t")
    with pytest.raises(Exception, match="does not match"):
        client.execute_command("CACHE.SET", "u:1:x", "v")
    client.execute_command("CACHE.MGET", "u:1", "u:1", "u:2", "u:s:1", "other")
    token = client.execute_command("CACHE.FETCH", "u:3")[2]
    with RawClient(server) as waiter:
        waiter.send("CACHE.FETCH", "u:3", "WAIT", 0)
        eventually(lambda: stats(client, "users")["waiters"] == 1)
        assert stats(client, "users")["leases"] == 1
        client.execute_command("CACHE.FILL", "u:3", token, "w", "TAGS", 1, "t")
        assert waiter.read()[:2] == [b"HIT", b"w"]
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == 3
    client.execute_command("CACHE.FETCH", "u:4", "LEASE", 1)
    eventually(lambda: stats(client, "users")["lease_timeouts"] == 1)
    told = stats(client, "users")
    assert (told["hits"], told["misses"], told["sets"]) == (2, 4, 2)
    assert (told["leases"], told["leases_granted"], told["waiters"], told["waits"]) == (0, 2, 0, 1)
    assert (told["fills"], told["stampedes_suppressed"], told["invalidations"]) == (1, 1, 2)
    assert (told["policy_warnings"], told["policy_rejections"]) == (0, 1)
    told = stats(client, "sessions")
    assert (told["hits"], told["misses"], told["sets"], told["invalidations"]) == (1, 0, 1, 1)
    client.execute_command("CACHE.POLICY", "DEL", "users")
    with pytest.raises(Exception, match="no such policy"):
        stats(client, "users")


# CACHE.DOCTOR


def doctor(client):
    """The first line, and the marks by check."""
    head, _, *lines = client.execute_command("CACHE.DOCTOR").decode().splitlines()
    checks = [line for line in lines if not line.startswith("   To do: ")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert line.startswith("!!") == following.startswith("   To do: "), line
    return head, {line[3:].split(":")[0]: line[:2] for line in checks}


HEALTHY = ["maxmemory 100mb", "maxmemory-policy allkeys-lru"]


def test_a_new_server_that_is_set_up_well_is_well(make_server, protocol):
    server = make_server(config=HEALTHY)
    head, checks = doctor(server.client(protocol))
    assert head == "14 checks, nothing to complain about."
    assert len(checks) == 14
    assert "!!" not in checks.values()


def test_what_is_wrong_with_a_server_is_found(make_server):
    server = make_server(
        config=["maxclients 20", "appendonly yes", "aof-use-rdb-preamble no"], args=["invalidate-sync-keys", "10"]
    )
    client = server.client()
    fill_tag(client, "t", 100)
    client.execute_command("CACHE.MGET", *(f"none:{n}" for n in range(2000)))
    client.execute_command("WRITEBEHIND.CONFIG", "queue", "ATTEMPTS", 1)
    version = client.execute_command("WRITEBEHIND.SET", "queue", "row", "v")
    client.execute_command("WRITEBEHIND.CLAIM", "queue", "ann")
    client.execute_command("WRITEBEHIND.NACK", "queue", "ann", "row", version)
    crowd = [RawClient(server) for _ in range(16)]
    for one in crowd:
        one.call("PING")
    head, checks = doctor(client)
    for one in crowd:
        one.close()
    wrong = {name for name, mark in checks.items() if mark == "!!"}
    assert wrong == {
        "memory limit",
        "eviction policy",
        "hit ratio",
        "keys without expiry",
        "giant tags",
        "persistence",
        "write-behind",
        "connections",
    }
    assert head == "14 checks, 8 to look at."


def test_keys_that_expire_together_and_the_prefixes_that_hold_most(make_server):
    server = make_server(config=HEALTHY)
    client = server.client()
    at = client.time()[0] + 1000
    for n in range(200):
        client.set(f"big:{n}", "x" * 1000, exat=at)
        client.set(f"small:{n}\n", "x", exat=at + n)
    assert doctor(client)[1]["jitter"] == "!!"
    text = client.execute_command("CACHE.DOCTOR").decode()
    (line,) = (line for line in text.splitlines() if "biggest prefixes" in line)
    assert line.startswith("ok biggest prefixes: big 8") or line.startswith("ok biggest prefixes: big 9"), line


def test_the_doctor_is_for_operators_and_disturbs_nothing(make_server):
    server = make_server(config=HEALTHY)
    client = server.client()
    client.set("k", "v")
    before = client.info("stats")
    doctor(client)
    after = client.info("stats")
    assert [after[name] for name in ("keyspace_hits", "keyspace_misses")] == [
        before[name] for name in ("keyspace_hits", "keyspace_misses")
    ]
    if server.version >= (7, 2):
        with user(server, "+@all", "-@admin", "~*") as alice:
            assert denied(alice.call("CACHE.DOCTOR"))
    assert client.eval("return redis.call('CACHE.DOCTOR')", 0).startswith(b"14 checks")
