"""What CACHE.CLUSTER costs the node that is asked and those that it asks: the part that grows with the number of shards.

The tag has no keys, so all that is measured is the way there and back. Processor time, less what an idle cluster takes.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import mean

from bench_server import BenchServer, servers
from figures import Figure
from raw_client import Connection, ReplyError
from stalls import processor_time

SLOTS = 16_384
CALLS = 2_000
IDLE_SECONDS = 2.0


def fan_out(flavour: str, shards: tuple[int, ...]) -> Iterator[Figure]:
    for count in shards:
        with ExitStack() as running:
            cluster = [running.enter_context(_node(flavour)) for _ in range(count)]
            _meet(cluster)
            idle = _per_second(cluster)
            plain, _ = _cost(cluster, idle, "CACHE.INVALIDATETAG")
            asked, other = _cost(cluster, idle, "CACHE.CLUSTER", "INVALIDATETAG")
        how = f"{plain:.1f} us for CACHE.INVALIDATETAG on this node alone"
        yield Figure("fan-out", f"{count} shards: the node that is asked, a call", asked, "us", how)
        yield Figure("fan-out", f"{count} shards: each of the others, a call", other, "us")


def _node(flavour: str) -> BenchServer:
    node = BenchServer(flavour, True)
    node.config.append("cluster-enabled yes")
    return node


def _meet(cluster: list[BenchServer]) -> None:
    """The nodes share the slots evenly and know each other."""
    connections = [node.connect() for node in cluster]
    for number, connection in enumerate(connections):
        first, end = (SLOTS * part // len(cluster) for part in (number, number + 1))
        connection.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        connection.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for other in cluster:
            connection.call("CLUSTER", "MEET", "127.0.0.1", other.port)
    servers.eventually(lambda: all(_reaches_all(connection) for connection in connections), timeout=60)


def _reaches_all(connection: Connection) -> bool:
    # With all slots served as this node sees it, it knows everybody that has some.
    if b"cluster_state:ok" not in connection.call("CLUSTER", "INFO"):
        return False
    try:
        return connection.call("CACHE.CLUSTER", "INVALIDATETAG", "nobody") == 0
    except ReplyError:
        return False


def _cost(cluster: list[BenchServer], idle: list[float], *command: str) -> tuple[float, float]:
    """Microseconds a call: on the first node, and on average on the others."""
    connection = Connection(cluster[0].port)
    before, begun = _spent(cluster), time.monotonic()
    for _ in range(CALLS):
        if connection.call(*command, "nobody") != 0:
            raise RuntimeError("a tag without keys had some")
    elapsed = time.monotonic() - begun
    connection.close()
    pairs = zip(_spent(cluster), before, idle, strict=True)
    first, *others = [1e6 * (after - earlier - elapsed * rate) / CALLS for after, earlier, rate in pairs]
    return first, mean(others)


def _spent(cluster: list[BenchServer]) -> list[float]:
    return [processor_time(node.pid) for node in cluster]


def _per_second(cluster: list[BenchServer]) -> list[float]:
    before = _spent(cluster)
    time.sleep(IDLE_SECONDS)
    return [(after - earlier) / IDLE_SECONDS for after, earlier in zip(_spent(cluster), before, strict=True)]
