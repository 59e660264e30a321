"""What becomes of keys and of those who wait for them when a slot moves to another node."""

import pytest
from raw_client import ErrorReply, RawClient, fields
from redis.crc import key_slot
from servers import eventually
from single_flight import Callers
from slot_moves import Move, doubts_settle, metric, move


@pytest.fixture
def sides(cluster):
    """Two nodes, and the slot of `{part}` names goes from the first to the second. Afterwards it is where it was."""
    source, target = cluster.primaries[:2]
    key = cluster.keys(0)[0]
    yield cluster, source, target, key
    slot = key_slot(key.encode())
    for node in cluster.primaries:
        with RawClient(node) as raw:
            raw.call("CLUSTER", "SETSLOT", slot, "STABLE")
            raw.call("FLUSHALL")
    with RawClient(target) as raw:
        if slot in owned(raw):
            move(cluster, target, source, key)


def owned(raw):
    me = raw.call("CLUSTER", "MYID")
    ranges = [entry for entry in raw.call("CLUSTER", "SLOTS") if entry[2][2] == me]
    return {slot for first, last, *_ in ranges for slot in range(first, last + 1)}


def named(key, *names):
    """Names in the slot of the key."""
    return [f"{{{key}}}{name}" for name in names]


def asking(raw, *words):
    return raw.pipeline([("ASKING",), words])[1]


# Lets so many milliseconds pass within the server, which does nothing else meanwhile.
BUSY = """
local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end
local over = now() + ARGV[1]
while now() < over do end
"""


# Tags


def test_tagged_keys_are_removed_and_plain_ones_stay(sides):
    cluster, source, target, key = sides
    tagged, graced, versioned, plain = named(key, "tagged", "graced", "versioned", "plain")
    with Move(cluster, source, target, key) as step:
        here, there = step.admin, step.other
        here.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t")
        here.call("CACHE.SET", graced, "v", "EX", 600, "GRACE", 60)
        here.call("CACHE.SET", versioned, "v", "EX", 600, "VERSION", 7)
        here.call("SET", plain, "v")
        step.whole()
        doubts_settle(target)
        assert [there.call("EXISTS", name) for name in (tagged, graced, versioned, plain)] == [0, 0, 0, 1]
        assert there.call("CACHE.GET", plain) == b"v"
        # The floor has come along.
        assert there.call("CACHE.SET", versioned, "old", "EX", 600, "VERSION", 7) is None
        assert there.call("CACHE.SET", versioned, "new", "EX", 600, "VERSION", 8) == "OK"
        assert metric(source, "cache_tagged_keys") == 0
        assert metric(source, "cache_ghosts") == metric(target, "cache_ghosts") == 0


def test_a_value_is_not_read_before_it_is_known_whether_it_was_tagged(sides):
    """The node it comes from does not answer as long as MIGRATE waits for this one; then it does."""
    cluster, source, target, key = sides
    tagged, plain = named(key, "tagged", "plain")
    with Move(cluster, source, target, key) as step:
        step.admin.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t")
        step.admin.call("SET", plain, "v")
        step.begin()
        cluster.pause(source)
        # What a MIGRATE brings, by hand: the source does not hear the question.
        try:
            payloads = []
            with RawClient(cluster.primaries[2]) as third:
                slotless = cluster.keys(2)[0]
                third.call("SET", slotless, "v")
                payloads = third.call("DUMP", slotless)
            for name in (tagged, plain):
                assert step.other.call("RESTORE-ASKING", name, 0, payloads) == "OK"
                assert asking(step.other, "GET", name) == b"v"
                assert asking(step.other, "CACHE.GET", name) is None
                assert asking(step.other, "CACHE.TTL", name) == [-2, -2]
            assert metric(target, "cache_doubts") == 2
            # Nor after a restart from a file that was written now.
            assert step.other.call("DEBUG", "RELOAD") == "OK"
            assert metric(target, "cache_doubts") == 2
            assert [asking(step.other, "CACHE.GET", name) for name in (tagged, plain)] == [None, None]
        finally:
            cluster.resume(source)
        doubts_settle(target)
        assert asking(step.other, "EXISTS", tagged) == 0
        assert asking(step.other, "CACHE.GET", plain) == b"v"


def test_a_key_that_comes_after_its_slot_is_in_doubt_too(sides):
    """Valkey may give a slot to the node that it goes to before the keys are there, and that one takes them as its own then."""
    cluster, source, target, key = sides
    tagged, plain = named(key, "tagged", "plain")
    with Move(cluster, source, target, key) as step:
        step.admin.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t")
        step.admin.call("SET", plain, "v")
        payload = step.admin.call("DUMP", plain)
        # Whatever the epochs were before: the slot comes with a new one.
        step.admin.call("CLUSTER", "BUMPEPOCH")
        step.whole()
        doubts_settle(target)
        assert step.other.call("EXISTS", tagged) == 0
        for name in (tagged, plain):
            restored = ("RESTORE-ASKING", name, 0, payload, "REPLACE")
            assert step.other.pipeline([restored, ("GET", name), ("CACHE.GET", name)]) == ["OK", b"v", None]
        doubts_settle(target)
        assert step.other.call("EXISTS", tagged) == 0
        assert step.other.call("CACHE.GET", plain) == b"v"


def test_what_is_loaded_while_the_old_value_is_in_doubt_stays(sides):
    cluster, source, target, key = sides
    name, other = named(key, "k", "other")
    with Move(cluster, source, target, key) as step:
        step.admin.call("CACHE.SET", name, "old", "EX", 600, "TAGS", 1, "t")
        payload = step.admin.call("DUMP", name)
        step.begin()
        cluster.pause(source)
        try:
            for key_ in (name, other):
                assert asking(step.other, "RESTORE", key_, 0, payload) == "OK"
            token = asking(step.other, "CACHE.FETCH", name)[2]
            late = asking(step.other, "CACHE.FETCH", other)[2]
            assert asking(step.other, "CACHE.FILL", name, token, "new", "EX", 600) == 1
            assert asking(step.other, "CACHE.GET", name) == b"new"
        finally:
            cluster.resume(source)
        doubts_settle(target)
        assert asking(step.other, "CACHE.GET", name) == b"new"
        # The other had nothing known of it at the source, so it is a value like any other, and was there before the load.
        assert asking(step.other, "CACHE.FILL", other, late, "new", "EX", 600) == 0


def test_an_invalidation_between_leaving_and_arriving_is_not_lost(sides):
    cluster, source, target, key = sides
    names = named(key, *range(50))
    with Move(cluster, source, target, key) as step:
        for name in names:
            step.admin.call("CACHE.SET", name, "v", "EX", 600, "TAGS", 1, f"tag:{name}")
        step.begin()
        for name in names:
            assert step.keys(name) == "OK"
            for node in (step.admin, step.other):
                node.call("CACHE.INVALIDATETAG", f"tag:{name}")
            assert asking(step.other, "CACHE.GET", name) is None
        step.end()
        doubts_settle(target)
        assert [step.other.call("EXISTS", name) for name in names] == [0] * len(names)


def test_an_invalidation_after_a_migrate_that_failed_half_way_is_not_lost(sides):
    """The value is at both nodes when its tag is invalidated, and the source has not looked at its slots since they begin to move."""
    cluster, source, target, key = sides
    with Move(cluster, source, target, key) as step:
        step.admin.call("CACHE.SET", key, "v", "EX", 600, "TAGS", 1, "t")
        assert step.other.call("CLUSTER", "SETSLOT", step.slot, "IMPORTING", cluster.id(source)) == "OK"
        replies = step.admin.pipeline(
            [
                ("CLUSTER", "SETSLOT", step.slot, "MIGRATING", cluster.id(target)),
                ("EVAL", BUSY, 0, 50),
                ("MIGRATE", "127.0.0.1", target.port, "", 0, 30_000, "COPY", "KEYS", key),
                ("CACHE.INVALIDATETAG", "t"),
            ]
        )
        assert replies == ["OK", None, "OK", 1]
        assert step.other.call("CACHE.INVALIDATETAG", "t") == 0
        doubts_settle(target)
        assert asking(step.other, "CACHE.GET", key) is None


def test_a_value_goes_on_while_it_is_in_doubt(sides):
    """The node in the middle has looked at its slots just before this one became its own, and left again."""
    cluster, source, target, key = sides
    third = cluster.primaries[2]
    other = cluster.keys(1)[0]
    tagged, plain = named(key, "tagged", "plain")
    with Move(cluster, source, target, key) as step, RawClient(third) as last:
        step.admin.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t")
        step.admin.call("SET", plain, "v")
        step.begin()
        assert last.call("CLUSTER", "SETSLOT", step.slot, "IMPORTING", cluster.id(target)) == "OK"
        # The source does not hear the question before it stands still.
        step.admin.call("MULTI")
        step.admin.call("MIGRATE", "127.0.0.1", target.port, "", 0, 30_000, "KEYS", tagged, plain)
        step.admin.call("EVAL", BUSY, 0, 2000)
        step.admin.send("EXEC")
        eventually(lambda: metric(target, "cache_doubts") == 2)
        cluster.pause(source)
        try:
            replies = step.other.pipeline(
                [
                    ("CACHE.FETCH", other),
                    ("CLUSTER", "SETSLOT", step.slot, "NODE", cluster.id(target)),
                    ("CLUSTER", "SETSLOT", step.slot, "MIGRATING", cluster.id(third)),
                    ("MIGRATE", "127.0.0.1", third.port, "", 0, 30_000, "KEYS", tagged, plain),
                ]
            )
            assert replies[1:] == ["OK"] * 3
            # Neither of the two that can be asked knows.
            assert metric(third, "cache_doubts") == 2
            assert [asking(last, "CACHE.GET", name) for name in (tagged, plain)] == [None, None]
        finally:
            cluster.resume(source)
        doubts_settle(third)
        assert asking(last, "EXISTS", tagged) == 0
        assert asking(last, "CACHE.GET", plain) == b"v"


def test_a_value_that_comes_back_at_once_is_in_doubt(sides):
    """The node has looked at its slots just before this one left it."""
    cluster, source, target, key = sides
    other = cluster.keys(0, 2)[1]
    with Move(cluster, source, target, key) as step:
        step.admin.call("CACHE.SET", other, "v")
        payload = step.admin.call("DUMP", other)
        step.begin()
        # A slot without keys is given away at once.
        replies = step.admin.pipeline(
            [
                ("CACHE.FETCH", f"{{{other}}}missing"),
                ("CLUSTER", "SETSLOT", step.slot, "NODE", cluster.id(target)),
                ("CLUSTER", "SETSLOT", step.slot, "IMPORTING", cluster.id(target)),
                ("ASKING",),
                ("RESTORE", key, 0, payload),
                ("ASKING",),
                ("CACHE.GET", key),
            ]
        )
        assert replies[1:] == ["OK"] * 5 + [None]
        assert step.other.call("CLUSTER", "SETSLOT", step.slot, "NODE", cluster.id(target)) == "OK"


# Loads


def test_a_load_for_a_slot_that_comes_ends_with_its_coming(sides):
    """Also where the epoch of the node does not grow, since it is the greatest, and the slot is on its way there again."""
    cluster, source, target, key = sides
    with Move(cluster, source, target, key) as step:
        step.other.call("CLUSTER", "BUMPEPOCH")
        step.begin()
        late = asking(step.other, "CACHE.FETCH", key)[2]
        step.end()
    move(cluster, target, source, key)
    with Move(cluster, source, target, key) as step:
        # The other node does not hear of it.
        step.admin.call("CACHE.INVALIDATE", key)
        step.begin()
        status, _, token = asking(step.other, "CACHE.FETCH", key)
        assert status == b"MISS", "nobody waits for the old load"
        assert asking(step.other, "CACHE.FILL", key, late, "old", "EX", 60) == 0
        assert asking(step.other, "CACHE.FILL", key, token, "new", "EX", 60) == 1


def test_a_fill_whose_slot_moved_is_refused(sides):
    cluster, source, target, key = sides
    with Callers(source) as here, Callers(target) as there:
        token = here.lease(key)
        move(cluster, source, target, key)
        assert here.call("CACHE.FILL", key, token, "v", "EX", 60).startswith("MOVED ")
        assert there.call("CACHE.FILL", key, token, "v", "EX", 60) == 0
        # And when it has come back at once, whatever was invalidated meanwhile.
        there.call("CACHE.INVALIDATE", key)
        move(cluster, target, source, key)
        assert here.call("CACHE.FILL", key, token, "v", "EX", 60) == 0
        assert here.call("EXISTS", key) == 0


def test_a_negative_answer_does_not_outlast_a_move(sides):
    cluster, source, target, key = sides
    with Callers(source) as here, Callers(target) as there:
        assert here.call("CACHE.FILLNIL", key, here.lease(key), "EX", 600) == 1
        assert here.call("CACHE.FETCH", key)[0] == b"NONE"
        move(cluster, source, target, key)
        there.call("CACHE.INVALIDATE", key)
        move(cluster, target, source, key)
        assert here.call("CACHE.FETCH", key)[0] == b"MISS"


def test_an_intent_does_not_outlast_a_move(sides):
    cluster, source, target, key = sides
    with Callers(source) as here:
        token = here.call("CACHE.INTENT", key, "PX", 60_000)
        move(cluster, source, target, key)
        move(cluster, target, source, key)
        assert here.call("CACHE.COMMIT", key, token, "v", "EX", 60) == 0
        assert here.call("EXISTS", key) == 0


# Those who wait


def test_those_who_wait_are_told_where_the_slot_went(sides):
    """As the server tells its own: BLPOP of the same slot is answered with the same words."""
    cluster, source, target, key = sides
    fetched, lock, gate, limit, queue, lists = named(key, "fetched", "lock", "gate", "limit", "queue", "list")
    with Callers(source) as here:
        here.lease(fetched)
        here.call("LOCK.ACQUIRE", lock, "ann", "PX", 600_000)
        here.call("RATELIMIT.ENTER", gate, "ann", "LIMIT", 1, "EX", 600)
        here.call("RATELIMIT.CHECK", limit, 1, "EX", 600)
        waiting = {
            "BLPOP": ("BLPOP", lists, 0),
            "FETCH": ("CACHE.FETCH", fetched, "WAIT", 0),
            "LOCK": ("LOCK.ACQUIRE", lock, "bob", "PX", 60_000, "WAIT", 0),
            "MACQUIRE": ("LOCK.MACQUIRE", 1, lock, "cy", "PX", 60_000, "WAIT", 0),
            "ENTER": ("RATELIMIT.ENTER", gate, "bob", "LIMIT", 1, "EX", 600, "WAIT", 0),
            "CHECK": ("RATELIMIT.CHECK", limit, 1, "EX", 600, "WAIT", 10_000_000),
            "CLAIM": ("WRITEBEHIND.CLAIM", queue, "w", "BLOCK", 0),
        }
        clients = {}
        for name, words in waiting.items():
            blocked = source.info("clients")["blocked_clients"]
            clients[name] = here.connect()
            clients[name].send(*words)
            eventually(lambda blocked=blocked: source.info("clients")["blocked_clients"] > blocked)
        move(cluster, source, target, key)
        slot, address = key_slot(key.encode()), f"127.0.0.1:{target.port}"
        answers = {name: client.read() for name, client in clients.items()}
        assert all(isinstance(answer, ErrorReply) for answer in answers.values()), answers
        assert answers["BLPOP"] == answers["FETCH"] == answers["CLAIM"] == f"MOVED {slot} {address}", answers
        for name, answer in answers.items():
            assert answer in (f"MOVED {slot} {address}", f"ASK {slot} {address}"), (name, answer)
        assert source.info("clients")["blocked_clients"] == 0


def test_who_waits_is_told_also_where_a_command_saw_first_that_the_slot_has_gone(sides):
    cluster, source, target, key = sides
    other = cluster.keys(0, 2)[1]
    assert key_slot(other.encode()) != key_slot(key.encode())
    fetched, queue = named(key, "fetched", "queue")
    with Callers(source) as here:
        here.lease(fetched, "LEASE", 60_000)
        clients = []
        for words in (("WRITEBEHIND.CLAIM", queue, "w", "BLOCK", 0), ("CACHE.FETCH", fetched, "WAIT", 0)):
            blocked = source.info("clients")["blocked_clients"]
            clients.append(here.connect())
            clients[-1].send(*words)
            eventually(lambda blocked=blocked: source.info("clients")["blocked_clients"] > blocked)
        move(cluster, source, target, key)
        here.lease(other)
        assert all(client.read().split()[0] in ("MOVED", "ASK") for client in clients)


def test_a_loader_gets_no_job_of_a_slot_that_is_away(sides):
    cluster, source, target, key = sides
    with Callers(source) as here:
        assert here.call("CACHE.WARM", "loader", key) == 1
        move(cluster, source, target, key)
        assert here.call("CACHE.LOADS", "loader") == []


# What moves with its value


def test_locks_limiters_and_queues_move_with_their_value(sides):
    cluster, source, target, key = sides
    lock, gate, limit, queue, counter, row = named(key, "lock", "gate", "limit", "queue", "counter", "row")
    with Move(cluster, source, target, key) as step:
        here, there = step.admin, step.other
        token = here.call("LOCK.ACQUIRE", lock, "ann", "PX", 600_000)
        here.call("RATELIMIT.ENTER", gate, "ann", "LIMIT", 1, "EX", 600)
        here.call("RATELIMIT.CHECK", limit, 10, "EX", 600, "COST", 7)
        here.call("CACHE.SET", counter, 100, "EX", 600)
        assert here.call("WRITEBEHIND.INCRBY", queue, counter, 5)[0] == 105
        version = here.call("WRITEBEHIND.SET", queue, row, "dirty")
        claimed = here.call("WRITEBEHIND.CLAIM", queue, "w", "COUNT", 1)
        step.whole()
        assert there.call("LOCK.VALIDATE", lock, token) == 1
        assert there.call("LOCK.ACQUIRE", lock, "bob", "PX", 60_000) is None
        assert there.call("RATELIMIT.ENTER", gate, "bob", "LIMIT", 1, "EX", 600)[0] == 0
        assert there.call("RATELIMIT.CHECK", limit, 10, "EX", 600, "COST", 4)[0] == 0
        assert fields(there.call("WRITEBEHIND.INFO", queue))[b"dirty"] == 2
        assert there.call("CACHE.GET", row) == b"dirty"
        # What was claimed is claimable, as after a failover, and tokens go on growing.
        rows = there.call("WRITEBEHIND.CLAIM", queue, "w", "COUNT", 9)
        assert {(row_[0], row_[1]) for row_ in rows} >= {(claimed[0][0], claimed[0][1])}
        assert len(rows) == 2
        assert there.call("WRITEBEHIND.SET", queue, row, "newer") > version
        assert there.call("LOCK.RELEASE", lock, "ann") == 1
        assert there.call("LOCK.ACQUIRE", lock, "bob", "PX", 60_000) > token
        assert here.call("DBSIZE") == 0


def test_who_waited_waits_on_where_the_lock_went(sides):
    """ASK while the slot is on its way: the other node has the lock, and one queue for all who ask there."""
    cluster, source, target, key = sides
    with Move(cluster, source, target, key) as step:
        step.admin.call("LOCK.ACQUIRE", key, "ann", "PX", 600_000)
        with RawClient(source) as bob, RawClient(target) as again:
            bob.send("LOCK.ACQUIRE", key, "bob", "PX", 60_000, "WAIT", 0)
            eventually(lambda: metric(source, "lock_waiters") == 1)
            step.begin()
            step.keys(key)
            assert bob.read() == f"ASK {step.slot} 127.0.0.1:{target.port}"
            again.send("ASKING")
            assert again.read() == "OK"
            again.send("LOCK.ACQUIRE", key, "bob", "PX", 60_000, "WAIT", 0)
            eventually(lambda: metric(target, "lock_waiters") == 1)
            step.end()
            assert not again.is_answered()
            assert step.other.call("LOCK.RELEASE", key, "ann") == 1
            assert isinstance(again.read(), int)


# Lost slots


def test_what_was_known_of_a_lost_slot_is_forgotten(sides):
    """Another node takes the slot over with everything in it, as after a failover that this node missed."""
    cluster, source, target, key = sides
    names = named(key, *range(300))
    with Move(cluster, source, target, key) as step:
        for name in names:
            step.admin.call("CACHE.SET", name, "v", "EX", 600, "TAGS", 1, "t")
        step.other.call("CLUSTER", "SETSLOT", step.slot, "IMPORTING", cluster.id(source))
        step.other.call("CLUSTER", "SETSLOT", step.slot, "NODE", cluster.id(target))
        eventually(lambda: step.admin.call("DBSIZE") == 0)
        eventually(lambda: metric(source, "cache_tagged_keys") == 0)
        assert metric(source, "cache_ghosts") == 0
        assert step.admin.call("CACHE.INVALIDATETAG", "t") == 0
