"""Atomic slot migration of Valkey 9 and Redis 8.4: a snapshot, then what happens meanwhile, then the slot has another owner at once."""

import pytest
from raw_client import ErrorReply, RawClient, fields
from servers import default_flavour, eventually, has_atomic_moves
from single_flight import Callers
from slot_moves import AtomicMove, atomically, doubts_settle, hold_moves, metric

from cluster import running_cluster

pytestmark = pytest.mark.skipif(
    not has_atomic_moves(default_flavour()), reason="the server has no atomic migration of slots"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running_cluster(tmp_path_factory.mktemp("atomic"), 3, 3, config=["enable-debug-command yes"]) as cluster:
        yield cluster


@pytest.fixture
def sides(cluster):
    """Connections to two nodes, and a key whose slot is at the first. Afterwards it is there again, and nothing is in it."""
    source, target = cluster.primaries[:2]
    key = cluster.keys(0)[0]
    cluster.empty()
    with RawClient(source) as here, RawClient(target) as there:
        yield cluster, here, there, key
        hold_moves(source, False)
        cluster.empty()
        if str(here.call("GET", key)).startswith("MOVED"):
            atomically(cluster, target, source, key)


def named(key, *names):
    """Names in the slot of the key."""
    return [f"{{{key}}}{name}" for name in names]


def under_way(cluster, key):
    return AtomicMove(cluster, *cluster.primaries[:2], key, hold=True)


def in_step(cluster):
    """Each replica has what its primary has, and waits for no answer."""
    doubts_settle(*cluster.primaries)
    for replica in cluster.replicas:
        # Redis removes what has gone in its own time, here and there.
        eventually(lambda replica=replica: known(replica) == known(replica.primary))
        assert metric(replica, "cache_doubts") == metric(replica, "cache_ghosts") == 0


def known(node):
    with RawClient(node) as raw:
        return raw.call("DEBUG", "DIGEST"), metric(node, "cache_tagged_keys")


# Cached values


def test_tagged_keys_are_removed_and_plain_ones_stay(sides):
    cluster, here, there, key = sides
    tagged, graced, versioned, plain = named(key, "tagged", "graced", "versioned", "plain")
    here.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t")
    here.call("CACHE.SET", graced, "v", "EX", 600, "GRACE", 60)
    here.call("CACHE.SET", versioned, "v", "EX", 600, "VERSION", 7)
    here.call("SET", plain, "v")
    atomically(cluster, *cluster.primaries[:2], key)
    in_step(cluster)
    assert [there.call("EXISTS", name) for name in (tagged, graced, versioned, plain)] == [0, 0, 0, 1]
    assert there.call("CACHE.GET", plain) == b"v"
    assert there.call("CACHE.SET", versioned, "old", "EX", 600, "VERSION", 7) is None
    assert there.call("CACHE.SET", versioned, "new", "EX", 600, "VERSION", 8) == "OK"
    assert [metric(node, "cache_ghosts") for node in cluster.primaries] == [0, 0, 0]


def test_what_happens_to_values_meanwhile_is_there_afterwards(sides):
    """Whatever was known of a key at any time of the move: it is either as the source left it, or gone."""
    cluster, here, there, key = sides
    names = named(key, "was tagged", "becomes tagged", "becomes plain", "plain", "written", "deleted", "list", "came")
    was_tagged, becomes_tagged, becomes_plain, plain, written, deleted, a_list, came = names
    here.call("CACHE.SET", was_tagged, "v", "EX", 600, "TAGS", 1, "t")
    here.call("CACHE.SET", becomes_plain, "v", "EX", 600, "TAGS", 1, "t")
    for name in (becomes_tagged, plain, written, deleted):
        here.call("SET", name, "v")
    with under_way(cluster, key) as step:
        assert here.call("CACHE.INVALIDATETAG", "t") == 2
        assert here.call("CACHE.SET", becomes_tagged, "new", "EX", 600, "TAGS", 1, "u") == "OK"
        assert here.call("CACHE.SET", becomes_plain, "new", "EX", 600) == "OK"
        assert here.call("SET", written, "new") == "OK"
        assert here.call("UNLINK", deleted) == 1
        assert here.call("RPUSH", a_list, "a", "b") == 2
        assert here.call("COPY", plain, came) == 1
        step.go_on()
    in_step(cluster)
    assert [there.call("CACHE.GET", name) for name in (was_tagged, becomes_tagged, deleted)] == [None] * 3
    assert there.call("CACHE.GET", becomes_plain) in (None, b"new")
    assert [there.call("CACHE.GET", name) for name in (plain, written, came)] == [b"v", b"new", b"v"]
    assert there.call("LRANGE", a_list, 0, -1) == [b"a", b"b"]


def test_a_tag_that_is_invalidated_node_by_node_meanwhile_leaves_nothing(sides):
    """At the target before the value comes there, at the source afterwards; and the other way round."""
    cluster, here, there, key = sides
    first, second = named(key, "first", "second")
    with under_way(cluster, key) as step:
        there.call("CACHE.INVALIDATETAG", "first")
        here.call("CACHE.SET", first, "old", "EX", 600, "TAGS", 1, "first")
        here.call("CACHE.INVALIDATETAG", "first")
        here.call("CACHE.SET", second, "old", "EX", 600, "TAGS", 1, "second")
        here.call("CACHE.INVALIDATETAG", "second")
        there.call("CACHE.INVALIDATETAG", "second")
        step.go_on()
        assert [there.call("CACHE.GET", name) for name in (first, second)] == [None, None]
    in_step(cluster)
    assert [there.call("EXISTS", name) for name in (first, second)] == [0, 0]


def test_loads_and_negative_answers_end(sides):
    cluster, here, there, key = sides
    loading, none = named(key, "loading", "none")
    token = here.call("CACHE.FETCH", loading)[2]
    missing = here.call("CACHE.FETCH", none)[2]
    assert here.call("CACHE.FILLNIL", none, missing, "EX", 600, "TAGS", 1, "t") == 1
    atomically(cluster, *cluster.primaries[:2], key)
    assert str(here.call("CACHE.FILL", loading, token, "old", "EX", 600)).startswith("MOVED")
    assert there.call("CACHE.FILL", loading, token, "old", "EX", 600) == 0
    assert there.call("CACHE.FETCH", none)[0] == b"MISS"


def test_those_who_wait_for_a_load_are_told_where_the_slot_went(sides):
    cluster, here, _, key = sides
    (name,) = named(key, "k")
    assert here.call("CACHE.FETCH", name)[0] == b"MISS"
    with Callers(cluster.primaries[0]) as callers:
        waiting = [callers.wait(name, wait_ms=60_000) for _ in range(5)]
        atomically(cluster, *cluster.primaries[:2], key)
        answers = [client.read() for client in waiting]
        assert all(isinstance(answer, ErrorReply) and answer.startswith("MOVED") for answer in answers), answers


# Values of ours


def test_what_changes_by_itself_meanwhile_goes_along(sides):
    """The server sends on what it propagates for a key, and timers propagate: a lock is handed on, a queue gives up."""
    cluster, here, there, key = sides
    handed_on, taken, limit, queue, row, slots = named(key, "handed on", "taken", "limit", "queue", "row", "slots")
    here.call("RATELIMIT.CHECK", limit, 10, "EX", 600)
    with under_way(cluster, key) as step, RawClient(cluster.primaries[0]) as waiter:
        here.call("LOCK.ACQUIRE", handed_on, "first", "PX", 200)
        waiter.send("LOCK.ACQUIRE", handed_on, "second", "PX", 60_000, "WAIT", 30_000)
        token = waiter.read()
        taken_token = here.call("LOCK.ACQUIRE", taken, "ann", "PX", 60_000)
        for _ in range(4):
            here.call("RATELIMIT.CHECK", limit, 10, "EX", 600)
        here.call("WRITEBEHIND.SET", queue, row, 3)
        assert here.call("RATELIMIT.ENTER", slots, "one", 2, "PX", 60_000)
        step.go_on()
    in_step(cluster)
    assert there.call("LOCK.VALIDATE", handed_on, token) == there.call("LOCK.VALIDATE", taken, taken_token) == 1
    assert there.call("LOCK.ACQUIRE", handed_on, "third", "PX", 1000) is None
    assert there.call("LOCK.RELEASE", handed_on, "second") == 1
    assert there.call("LOCK.ACQUIRE", handed_on, "third", "PX", 1000) > token
    assert there.call("RATELIMIT.PEEK", limit, 10, "EX", 600)[2] == 5
    assert fields(there.call("WRITEBEHIND.INFO", queue))[b"dirty"] == 1
    assert there.call("CACHE.GET", row) == b"3"
    in_step(cluster)


def test_commands_of_several_keys_go_along(sides):
    """Redis looks for the keys of what it sends on, and gives a migration up over a command with keys of several slots."""
    cluster, here, there, key = sides
    first, second, tagged, *locks = named(key, "one", "two", "three", "a", "b", "c")
    elsewhere = cluster.keys(0, 2)[1]
    here.call("SET", first, "old")
    with under_way(cluster, key) as step:
        assert here.call("CACHE.MSET", 2, first, "new", second, "new", "EX", 600) == "OK"
        token = here.call("LOCK.MACQUIRE", 3, *locks, "ann", "PX", 60_000)
        assert here.call("LOCK.MRELEASE", 1, locks[0], "ann") == 1
        for name in (tagged, elsewhere):
            assert here.call("CACHE.SET", name, "v", "EX", 600, "TAGS", 1, "t") == "OK"
        assert here.call("CACHE.INVALIDATETAG", "t") == 2
        step.go_on()
        assert step.retries() == 0
    in_step(cluster)
    assert [there.call("CACHE.GET", name) for name in (first, second, tagged)] == [b"new", b"new", None]
    assert [there.call("LOCK.VALIDATE", lock, token) for lock in locks] == [0, 1, 1]


def test_what_a_worker_has_is_not_mixed_with_later_writes(sides):
    """The claim is not known where the slot went, so every record may have been claimed."""
    cluster, here, there, key = sides
    queue, row = named(key, "queue", "row")
    with under_way(cluster, key) as step:
        here.call("WRITEBEHIND.INCRBY", queue, row, 1)
        ((_, version, *_),) = here.call("WRITEBEHIND.CLAIM", queue, "worker")
        step.go_on()
    there.call("WRITEBEHIND.INCRBY", queue, row, 1)
    ((_, again, op, payload, *_),) = there.call("WRITEBEHIND.CLAIM", queue, "worker")
    assert (again, op, payload) == (version, b"INCRBY", b"1")
    assert there.call("WRITEBEHIND.ACK", queue, "worker", row, version) == 1
    assert there.call("WRITEBEHIND.CLAIM", queue, "worker")[0][3] == b"1"


# Ends


def test_a_migration_that_is_given_up_leaves_everything_where_it_was(sides):
    cluster, here, there, key = sides
    tagged, plain, lock = named(key, "tagged", "plain", "lock")
    here.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t")
    here.call("SET", plain, "v")
    token = here.call("LOCK.ACQUIRE", lock, "ann", "PX", 60_000)
    with under_way(cluster, key) as step:
        step.cancel()
    hold_moves(cluster.primaries[0], False)
    target = cluster.primaries[1]
    # Redis counts no keys of slots that are not here.
    names = ("cache_doubts", "cache_ghosts", "lock_locks")
    eventually(lambda: there.call("DBSIZE") == 0 and not any(metric(target, name) for name in names))
    in_step(cluster)
    assert here.call("CACHE.GET", plain) == b"v"
    assert here.call("LOCK.VALIDATE", lock, token) == 1
    assert here.call("CACHE.INVALIDATETAG", "t") == 1
    # And again, to its end.
    atomically(cluster, *cluster.primaries[:2], key)
    in_step(cluster)
    assert there.call("CACHE.GET", plain) == b"v"


def test_back_and_forth(sides):
    cluster, here, there, key = sides
    tagged, plain = named(key, "tagged", "plain")
    nodes = cluster.primaries[:2]
    here.call("SET", plain, "v")
    for source, raw in (nodes, there), (nodes[::-1], here), (nodes, there):
        atomically(cluster, *source, key)
        in_step(cluster)
        assert raw.call("CACHE.GET", plain) == b"v"
        assert raw.call("CACHE.GET", tagged) is None
        assert raw.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t") == "OK"
    assert [node.call("CACHE.INVALIDATETAG", "t") for node in (here, there)] == [0, 1]
