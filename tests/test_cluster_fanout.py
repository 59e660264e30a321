"""CACHE.CLUSTER: one node is asked, and every shard has done it, or those that have not are named."""

import json

import pytest
from raw_client import ErrorReply, RawClient, fields
from servers import eventually
from test_acl import denied, user

TAG = "chairs"
OPTIONS = ("EX", 600, "GRACE", 600, "TAGS", 1)


def fill(cluster, tag=TAG, count=2):
    """So many keys with the tag on each shard."""
    for part, node in enumerate(cluster.primaries):
        with RawClient(node) as raw:
            for key in cluster.keys(part, count, f"{tag}:"):
                assert raw.call("CACHE.SET", key, "v", *OPTIONS, tag) == "OK"


def left(cluster, tag=TAG, nodes=None):
    """How many keys carry the tag, on each shard."""
    counts = []
    for node in nodes or cluster.primaries:
        with RawClient(node) as raw:
            counts.append(fields(raw.call("CACHE.TAGINFO", tag))[b"keys"])
    return counts


def metrics(node):
    return {name: value for name, value in node.info("everything").items() if name.startswith("keyward_cluster_")}


def metric(node, name):
    return metrics(node)[f"keyward_cluster_{name}"]


def set_wait(cluster, ms):
    for node in cluster.primaries:
        with RawClient(node) as raw:
            assert raw.call("CONFIG", "SET", "keyward.cluster-wait-ms", ms) == "OK"


@pytest.fixture
def patient(cluster):
    """The cluster, whose clients wait longer than any test."""
    set_wait(cluster, 60_000)
    yield cluster
    set_wait(cluster, 5000)


def waiting(node, *words):
    """A client that waits for other shards; its answer is read() by the test."""
    before = metric(node, "waiters")
    raw = RawClient(node)
    raw.send(*words)
    eventually(lambda: metric(node, "waiters") == before + 1, message="the client does not wait")
    return raw


# What it does


@pytest.mark.parametrize("asked", range(3))
def test_one_node_is_asked_and_all_have_done_it(patient, asked, protocol):
    fill(patient)
    with RawClient(patient.primaries[asked], protocol) as raw:
        assert raw.call("CACHE.CLUSTER", "INVALIDATETAG", TAG, "other") == 6
        assert raw.call("cache.cluster", "invalidatetag", TAG) == 0
    for node in patient.primaries:
        assert node.client().dbsize() == 0


def test_staletag_makes_the_values_of_all_shards_stale(patient):
    fill(patient)
    with RawClient(patient.primaries[0]) as raw:
        assert raw.call("CACHE.CLUSTER", "STALETAG", TAG) == 6
    for part, node in enumerate(patient.primaries):
        with RawClient(node) as raw:
            (key,) = patient.keys(part, 1, f"{TAG}:")
            assert raw.call("CACHE.FETCH", key)[:2] == [b"REFRESH", b"v"]


def test_an_event_is_made_into_names_where_it_is_emitted(patient):
    """The others need no rule of their own, and know the event when they are asked why a key went."""
    fill(patient, "shop:5", 1)
    with RawClient(patient.primaries[1]) as raw:
        assert raw.call("CACHE.RULE", "SET", "paid", "KEYS", 1, "user:{ids[]}", "TAGS", 1, "shop:{shop}") == "OK"
        keys = [patient.keys(part, 1, "user:")[0] for part in range(3)]
        for key in keys:
            patient.primaries[patient.part(key)].client().set(key, "v")
        data = json.dumps({"ids": [key.removeprefix("user:") for key in keys], "shop": 5})
        assert raw.call("CACHE.CLUSTER", "EMIT", "paid", data) == 6
        assert raw.call("CACHE.CLUSTER", "EMIT", "paid", data) == 0
        assert raw.call("CACHE.CLUSTER", "EMIT", "unknown", "{}") == 0
        assert raw.call("CACHE.CLUSTER", "EMIT", "paid", "{") == ErrorReply(
            "ERR data of an event must be valid JSON, nested at most 127 deep"
        )
    for part, node in enumerate(patient.primaries):
        with RawClient(node) as raw:
            assert raw.call("DBSIZE") == 0
            for key in (keys[part], *patient.keys(part, 1, "shop:5:")):
                assert fields(raw.call("CACHE.EXPLAIN", key))[b"last_gone"] == b"event paid"


def test_a_load_that_began_before_is_refused_on_every_shard(patient):
    """The fence holds there as it does here."""
    tokens = []
    keys = [patient.keys(part)[0] for part in range(3)]
    for key, node in zip(keys, patient.primaries, strict=True):
        with RawClient(node) as raw:
            tokens.append(raw.call("CACHE.FETCH", key)[2])
    with RawClient(patient.primaries[0]) as raw:
        assert raw.call("CACHE.CLUSTER", "INVALIDATETAG", TAG) == 0
    for key, token, node in zip(keys, tokens, patient.primaries, strict=True):
        with RawClient(node) as raw:
            assert raw.call("CACHE.FILL", key, token, "old", "EX", 600, "TAGS", 1, TAG) == 0


def test_much_goes_in_one_piece(patient):
    """A megabyte of JSON, two of tags."""
    fill(patient)
    with RawClient(patient.primaries[0]) as raw:
        raw.call("CACHE.RULE", "SET", "big", "KEYS", 1, "{ids[]}", "TAGS", 1, "{tag}")
        raw.call("CONFIG", "SET", "keyward.emit-max-keys", 100_000)
        ids = [f"{number:060}" for number in range(16_000)]
        assert raw.call("CACHE.CLUSTER", "EMIT", "big", json.dumps({"ids": ids, "tag": TAG})) == 6
        raw.call("CONFIG", "SET", "keyward.emit-max-keys", 1000)
        fill(patient)
        tags = [f"{number:0512}" for number in range(4000)]
        assert raw.call("CACHE.CLUSTER", "INVALIDATETAG", *tags, TAG) == 6
    assert left(patient) == [0, 0, 0]


def test_two_who_ask_at_once_have_the_keys_between_them(patient):
    fill(patient, count=20)
    clients = [RawClient(patient.primaries[number % 3]) for number in range(9)]
    for raw in clients:
        raw.send("CACHE.CLUSTER", "INVALIDATETAG", TAG)
    assert sum(raw.read() for raw in clients) == 60
    for raw in clients:
        raw.close()
    assert left(patient) == [0, 0, 0]


def test_without_a_cluster_it_is_the_plain_command(client):
    client.execute_command("CACHE.SET", "k", "v", *OPTIONS, TAG)
    assert client.execute_command("CACHE.CLUSTER", "STALETAG", TAG) == 1
    assert client.execute_command("CACHE.CLUSTER", "INVALIDATETAG", TAG) == 1
    assert client.execute_command("CACHE.CLUSTER", "EMIT", "e", "{}") == 0


# Who may, and where


def test_the_rights_are_those_of_the_user_who_asks(patient):
    fill(patient)
    node = patient.primaries[0]
    with RawClient(node) as raw:
        raw.call("CACHE.RULE", "SET", "e", "KEYS", 1, "{key}", "TAGS", 1, TAG)
    rights = ("+@all", "~allowed:*")
    with user(node, *rights) as alice:
        assert denied(alice.call("CACHE.CLUSTER", "INVALIDATETAG", "allowed:t", TAG))
        assert denied(alice.call("CACHE.CLUSTER", "STALETAG", TAG))
        assert denied(alice.call("CACHE.CLUSTER", "EMIT", "e", '{"key": "allowed:k"}'))
        assert alice.call("CACHE.CLUSTER", "INVALIDATETAG", "allowed:t") == 0
    with user(node, "+@all", "-cache.cluster", "~*") as alice:
        assert denied(alice.call("CACHE.CLUSTER", "INVALIDATETAG", TAG))
    with user(node, "+cache.cluster|staletag", f"~{TAG}") as alice:
        assert denied(alice.call("CACHE.CLUSTER", "INVALIDATETAG", TAG))
        assert alice.call("CACHE.CLUSTER", "STALETAG", TAG) == 6
    assert left(patient) == [2, 2, 2]


def test_where_nobody_can_wait_nothing_is_done(patient):
    fill(patient)
    with RawClient(patient.primaries[0]) as raw:
        for command in (("INVALIDATETAG", TAG), ("STALETAG", TAG), ("EMIT", "e", "{}")):
            assert raw.call("MULTI") == "OK"
            assert raw.call("CACHE.CLUSTER", *command) == "QUEUED"
            (reply,) = raw.call("EXEC")
            assert reply.startswith("ERR 'cache.cluster|")
            assert "waits for other nodes" in reply
            script = "return redis.call('CACHE.CLUSTER', unpack(ARGV))"
            assert "waits for other nodes" in raw.call("EVAL", script, 0, *command)
    assert left(patient) == [2, 2, 2]


# Nodes that do not answer


def test_a_shard_that_does_not_answer_is_named_and_the_others_have_done_it(patient):
    fill(patient)
    asked, other, silent = patient.primaries
    with RawClient(asked) as raw:
        raw.call("CONFIG", "SET", "keyward.cluster-wait-ms", 400)
        patient.pause(silent)
        try:
            reply = raw.call("CACHE.CLUSTER", "INVALIDATETAG", TAG)
            name = f"{patient.id(silent)} at 127.0.0.1:{silent.port}"
            expected = f"ERR 1 of 3 shards not reached: {name}; what the others did (4 keys) stays done"
            assert reply == ErrorReply(expected)
            assert left(patient, nodes=(asked, other)) == [0, 0]
        finally:
            patient.resume(silent)
    # What was on its way arrives, and does what it would have done.
    eventually(lambda: left(patient) == [0, 0, 0])
    assert metric(asked, "waiters") == metric(asked, "unanswered") == 0


def test_a_shard_that_answers_late_is_counted_once(patient):
    fill(patient)
    asked, _, late = patient.primaries
    patient.pause(late)
    try:
        raw = waiting(asked, "CACHE.CLUSTER", "INVALIDATETAG", TAG)
        # Asked again and again, and each question is answered when it goes on.
        eventually(lambda: metric(asked, "asked_again") >= 3)
        assert not raw.is_answered()
    finally:
        patient.resume(late)
    assert raw.read() == 6
    eventually(lambda: metric(late, "duplicates") >= 1)
    raw.close()


def test_a_paused_node_does_it_after_the_pause(patient):
    fill(patient)
    asked, paused, _ = patient.primaries
    with RawClient(paused) as admin:
        assert admin.call("CLIENT", "PAUSE", 60_000, "WRITE") == "OK"
        raw = waiting(asked, "CACHE.CLUSTER", "INVALIDATETAG", TAG)
        eventually(lambda: metric(paused, "requests_waiting") == 1)
        eventually(lambda: left(patient) == [0, 2, 0])
        assert not raw.is_answered()
        assert admin.call("CLIENT", "UNPAUSE") == "OK"
    assert raw.read() == 6
    raw.close()


def test_a_client_that_is_sent_away_is_told_what_is_missing(patient):
    fill(patient)
    asked, _, silent = patient.primaries
    with RawClient(asked) as admin:
        patient.pause(silent)
        try:
            clients = [waiting(asked, "CACHE.CLUSTER", "INVALIDATETAG", TAG) for _ in range(3)]
            ids = [int(line.split()[0].removeprefix(b"id=")) for line in blocked(admin)]
            eventually(lambda: metric(asked, "unanswered") == len(clients), message="the third node has not answered")
            assert admin.call("CLIENT", "UNBLOCK", ids[0]) == 1
            assert clients[0].read().startswith(f"ERR 1 of 3 shards not reached: {patient.id(silent)}")
            assert admin.call("CLIENT", "UNBLOCK", ids[1], "ERROR") == 1
            assert clients[1].read().startswith("UNBLOCKED")
            clients[2].close()
            eventually(lambda: metric(asked, "waiters") == 0)
            assert metric(asked, "unanswered") == 0
        finally:
            patient.resume(silent)
    for raw in clients:
        raw.close()
    eventually(lambda: left(patient) == [0, 0, 0])


def blocked(raw):
    lines = sorted(raw.call("CLIENT", "LIST").splitlines(), key=lambda line: int(line.split()[0].removeprefix(b"id=")))
    return [line for line in lines if b"cmd=cache.cluster" in line and b"flags=b" in line]


def test_a_promoted_replica_is_reached_in_the_place_of_its_primary(make_cluster):
    # With full coverage required the server itself sends every client away that waits, while a shard has no primary.
    config = ["keyward.cluster-wait-ms 60000", "cluster-require-full-coverage no"]
    cluster = make_cluster(3, 3, config=config, timeout_ms=2000)
    fill(cluster)
    asked, _, dying = cluster.primaries
    heir = cluster.replicas[2]
    for replica in cluster.replicas:
        replica.wait_until_synced()
    with RawClient(heir) as raw:
        assert raw.call("CACHE.CLUSTER", "INVALIDATETAG", TAG).startswith("READONLY ")
    dying.kill9()
    raw = waiting(asked, "CACHE.CLUSTER", "INVALIDATETAG", TAG)
    assert raw.read() == 6
    raw.close()
    assert heir.info("replication")["role"] == "master"
    assert left(cluster, nodes=[asked, heir]) == [0, 0]
    # What a node does for another one reaches its replicas as if a client had asked.
    for replica in cluster.replicas[:2]:
        eventually(lambda replica=replica: left(cluster, nodes=[replica]) == [0])
        assert replica.client().dbsize() == 0
    # The clients of a node that becomes a replica are sent away, whatever they wait for: Valkey 9 does not do it itself here.
    cluster.settle()
    (key,) = cluster.keys(0)
    with RawClient(asked) as ann:
        assert ann.call("LOCK.ACQUIRE", key, "ann", "EX", 600)
    bob = RawClient(asked)
    bob.send("LOCK.ACQUIRE", key, "bob", "EX", 600, "WAIT", 0)
    eventually(lambda: asked.info("everything")["keyward_lock_waiters"] == 1)
    cluster.pause(heir)
    raw = waiting(asked, "CACHE.CLUSTER", "INVALIDATETAG", TAG)
    with RawClient(cluster.replicas[0]) as successor:
        assert successor.call("CLUSTER", "FAILOVER") == "OK"
    for client in (raw, bob):
        assert client.read().startswith("UNBLOCKED")
        client.close()
    eventually(lambda: asked.info("replication")["role"] == "slave")
    assert metric(asked, "waiters") == metric(asked, "unanswered") == 0
