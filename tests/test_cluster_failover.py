"""A replica takes over from its primary: what was replicated goes on as it was."""

import pytest
from failovers import fail_over, follows, takes_over, takes_over_alone
from locks import is_error
from raw_client import RawClient
from redis.crc import key_slot
from servers import eventually
from slot_moves import Move, doubts_settle, metric


class Life:
    """Something of everything on one shard, and what must be true of it after each change of the primary."""

    def __init__(self, cluster, part):
        key = cluster.keys(part)[0]
        self.names = {
            name: f"{{{key}}}{name}" for name in ("row", "graced", "lock", "limit", "gate", "queue", "counter")
        }
        self.slot = key_slot(key.encode())
        self.tokens, self.counted, self.used, self.version = [], 0, 0, 0

    def use(self, primary):
        """One round of work on the primary. It is with the replica when this returns."""
        n = self.names
        with RawClient(primary) as raw:
            self.version += 1
            assert (
                raw.call("CACHE.SET", n["row"], self.version, "EX", 600, "TAGS", 1, "t", "VERSION", self.version)
                == "OK"
            )
            assert raw.call("CACHE.SET", n["graced"], "v", "EX", 600, "GRACE", 60) == "OK"
            assert raw.call("CACHE.STALE", n["graced"]) == 1
            self.tokens.append(raw.call("LOCK.ACQUIRE", n["lock"], "ann", "PX", 600_000))
            assert raw.call("RATELIMIT.CHECK", n["limit"], 10, "EX", 600)[0] == 1
            self.used += 1
            assert raw.call("RATELIMIT.ENTER", n["gate"], "ann", "LIMIT", 1, "EX", 600)[0] == 1
            self.counted += 1
            assert raw.call("CACHE.SET", n["counter"], self.counted - 1, "EX", 600) == "OK"
            raw.call("WRITEBEHIND.INCRBY", n["queue"], n["counter"], 1)
            assert raw.call("WAIT", 1, 30_000) >= 1

    def goes_on(self, primary):
        n = self.names
        with RawClient(primary) as raw:
            # Versions and their floor, and what was stale.
            assert raw.call("CACHE.GET", n["row"]) == b"%d" % self.version
            assert raw.call("CACHE.SET", n["row"], "late", "EX", 600, "VERSION", self.version) is None
            assert raw.call("CACHE.GET", n["graced"]) is None
            assert raw.call("CACHE.FETCH", n["graced"])[:2] == [b"REFRESH", b"v"]
            # The lock is held under its token, and the next one is greater.
            token = self.tokens[-1]
            assert raw.call("LOCK.VALIDATE", n["lock"], token) == 1
            assert raw.call("LOCK.ACQUIRE", n["lock"], "bob", "PX", 60_000) is None
            assert raw.call("LOCK.RELEASE", n["lock"], "ann") == 1
            assert raw.call("LOCK.ACQUIRE", n["lock"], "bob", "PX", 60_000) > token
            assert raw.call("LOCK.RELEASE", n["lock"], "bob") == 1
            # What was consumed stays consumed, and who is in is in.
            assert raw.call("RATELIMIT.PEEK", n["limit"], 10, "EX", 600)[2] == 10 - self.used
            assert raw.call("RATELIMIT.ENTER", n["gate"], "bob", "LIMIT", 1, "EX", 600)[0] == 0
            # What was written behind is still to be written, once.
            rows = raw.call("WRITEBEHIND.CLAIM", n["queue"], "w", "COUNT", 9)
            assert [(row[0], row[2], row[3]) for row in rows] == [(n["counter"].encode(), b"INCRBY", b"1")]
            assert raw.call("WRITEBEHIND.ACK", n["queue"], "w", rows[0][0], rows[0][1]) == 1
            # The tag reaches its keys, and its floor outlives them.
            assert raw.call("CACHE.INVALIDATETAG", "t") == 1
            assert raw.call("EXISTS", n["row"]) == 0
            assert raw.call("CACHE.SET", n["row"], "late", "EX", 600, "VERSION", self.version) is None


def test_a_failover_by_hand(make_cluster):
    cluster = make_cluster(3, 1, timeout_ms=2000)
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    life = Life(cluster, 0)
    for how in ((), ("FORCE",), ("TAKEOVER",)):
        life.use(primary)
        fail_over(replica, *how)
        follows(primary, replica)
        life.goes_on(replica)
        primary, replica = replica, primary


def test_a_primary_that_dies(make_cluster):
    cluster = make_cluster(3, 1, timeout_ms=1500)
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    life = Life(cluster, 0)
    life.use(primary)
    primary.kill9()
    takes_over(replica)
    life.goes_on(replica)


def test_those_who_wait_are_sent_away(make_cluster):
    """The connection lives on, to a server that is a replica now."""
    cluster = make_cluster(3, 1, timeout_ms=2000)
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    key = cluster.keys(0)[0]
    with RawClient(primary) as ann, RawClient(primary) as bob, RawClient(primary) as cy:
        ann.call("LOCK.ACQUIRE", key, "ann", "PX", 600_000)
        fetched = f"{{{key}}}fetched"
        ann.call("CACHE.FETCH", fetched, "LEASE", 60_000)
        bob.send("LOCK.ACQUIRE", key, "bob", "PX", 60_000, "WAIT", 0)
        cy.send("CACHE.FETCH", fetched, "WAIT", 0)
        eventually(lambda: primary.info("clients")["blocked_clients"] == 2)
        assert ann.call("WAIT", 1, 30_000) >= 1
        fail_over(replica)
        for waiter in (bob, cy):
            assert is_error(waiter.read(), "UNBLOCKED ")
        with RawClient(replica) as raw:
            assert raw.call("LOCK.ACQUIRE", key, "bob", "PX", 60_000) is None
            # A lease is not replicated: the load that was under way is not stored.
            status, _, token = raw.call("CACHE.FETCH", fetched)
            assert status == b"MISS"
            assert raw.call("CACHE.FILL", fetched, token, "v", "EX", 60) == 1
        follows(primary, replica)


@pytest.mark.parametrize("confirmed", [True, False])
def test_wait_says_whether_an_invalidation_survives(make_cluster, confirmed):
    """What a replica has not received is lost with its primary. WAIT tells, and the writer can send the invalidation again."""
    cluster = make_cluster(3, 1, timeout_ms=1500)
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    key = cluster.keys(0)[0]
    with RawClient(primary) as raw:
        raw.call("CACHE.SET", key, "v", "EX", 600, "TAGS", 1, "t")
        assert raw.call("WAIT", 1, 30_000) == 1
        if not confirmed:
            cluster.pause(replica)
        assert raw.call("CACHE.INVALIDATETAG", "t") == 1
        assert raw.call("WAIT", 1, 30_000 if confirmed else 50) == int(confirmed)
        primary.kill9()
    if not confirmed:
        cluster.resume(replica)
    takes_over(replica)
    with RawClient(replica) as raw:
        assert raw.call("CACHE.GET", key) is None or not confirmed
        assert raw.call("CACHE.INVALIDATETAG", "t") in (0, 1)
        assert raw.call("CACHE.GET", key) is None


def test_a_value_in_doubt_stays_in_doubt_where_a_replica_takes_over(make_cluster):
    """The node that a slot comes to dies before it was told whether the value had tags."""
    cluster = make_cluster(2, 2, timeout_ms=5000)
    source, target, replica = *cluster.primaries, cluster.replicas[1]
    key = cluster.keys(0)[0]
    tagged, plain = f"{{{key}}}tagged", f"{{{key}}}plain"
    with Move(cluster, source, target, key) as step:
        step.admin.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t")
        step.admin.call("SET", plain, "v")
        payload = step.admin.call("DUMP", plain)
        step.begin()
        cluster.pause(source)
        try:
            for name in (tagged, plain):
                assert step.other.call("RESTORE-ASKING", name, 0, payload) == "OK"
            assert step.other.call("WAIT", 1, 30_000) == 1
            assert metric(replica, "cache_doubts") == 2
            target.kill9()
            with RawClient(replica) as raw:
                assert raw.call("CLUSTER", "FAILOVER", "TAKEOVER") == "OK"
            takes_over_alone(replica)
            assert metric(replica, "cache_doubts") == 2
        finally:
            cluster.resume(source)
        doubts_settle(replica)
        with RawClient(replica) as raw:
            assert raw.call("DBSIZE") == 1
