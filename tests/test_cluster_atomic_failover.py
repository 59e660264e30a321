"""A node takes over from its primary while slots move atomically: what has not come to its end leaves nothing, and can be done again."""

import pytest
from failovers import fail_over, follows
from raw_client import RawClient
from servers import default_flavour, eventually, has_atomic_moves
from slot_moves import AtomicMove, atomically, doubts_settle, hold_moves, metric

pytestmark = pytest.mark.skipif(
    not has_atomic_moves(default_flavour()), reason="the server has no atomic migration of slots"
)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_failover_meanwhile(make_cluster, side):
    cluster = make_cluster(3, 3, config=["enable-debug-command yes"])
    source, target = cluster.primaries[:2]
    key = cluster.keys(0)[0]
    tagged, plain, lock, late = (f"{{{key}}}{name}" for name in ("tagged", "plain", "lock", "late"))
    with RawClient(source) as here:
        assert here.call("CACHE.SET", tagged, "v", "EX", 600, "TAGS", 1, "t") == "OK"
        assert here.call("SET", plain, "v") == "OK"
        token = here.call("LOCK.ACQUIRE", lock, "ann", "PX", 600_000)
        assert here.call("WAIT", 1, 30_000) == 1
    old = source if side == "source" else target
    heir = next(replica for replica in cluster.replicas if replica.primary is old)
    hold_moves(heir, True)
    with AtomicMove(cluster, source, target, key, hold=True) as step:
        fail_over(heir)
        if side == "source" and heir.flavour.startswith("redis"):
            # Redis begins again by itself, with the node that has the slots now.
            step.cancel()
    follows(old, heir)
    for node in source, heir:
        hold_moves(node, False)
    source, target = (heir, target) if side == "source" else (source, heir)
    # Nothing is left of it at the target, and all is at the source.
    names = ("cache_doubts", "cache_ghosts", "cache_tagged_keys", "lock_locks")
    for node in target, *(replica for replica in (*cluster.replicas, old) if replica.primary is target):
        eventually(lambda node=node: [metric(node, name) for name in names] == [0, 0, 0, 0], timeout=60)
    with RawClient(source) as here, RawClient(target) as there:
        assert here.call("CACHE.GET", tagged) == here.call("CACHE.GET", plain) == b"v"
        assert here.call("LOCK.VALIDATE", lock, token) == 1
        atomically(cluster, source, target, key)
        doubts_settle(target)
        assert [there.call("CACHE.GET", name) for name in (tagged, plain)] == [None, b"v"]
        assert there.call("LOCK.VALIDATE", lock, token) == 1
        # The target knows that nothing is on its way to it any more: what is written is believed at once.
        assert there.call("SET", late, "v") == "OK"
        assert there.call("CACHE.GET", late) == b"v"
        assert metric(target, "cache_doubts") == 0
