"""Real clusters for the tests: primaries that share the slots evenly, and replicas, on loopback.

`cluster` (in conftest.py) is shared by the tests of a file and emptied before each: three primaries. A test that kills nodes, moves
slots or has replicas takes `make_cluster`.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from raw_client import RawClient
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot
from servers import Server, end_all, eventually

# A node that is silent for so long counts as failing. Long enough for a machine with much to do.
NODE_TIMEOUT_MS = 5000


class Cluster:
    """`primaries[i]` owns the i-th part of the slots; `replicas` follow them in turn."""

    def __init__(self, primaries: list[Server], replicas: list[Server]) -> None:
        self.primaries, self.replicas = primaries, replicas
        self._stopped: set[int] = set()
        # Names by port, so that a node that stands still need not be asked.
        self.ids: dict[int, str] = {}

    @property
    def nodes(self) -> list[Server]:
        return self.primaries + self.replicas

    # Life

    def meet(self) -> Cluster:
        """Makes one cluster of the nodes, and waits until each of them says that it is one."""
        parts = [SLOTS * part // len(self.primaries) for part in range(len(self.primaries) + 1)]
        for epoch, node in enumerate(self.nodes, 1):
            with RawClient(node) as raw:
                self.ids[node.port] = raw.call("CLUSTER", "MYID").decode()
                assert raw.call("CLUSTER", "SET-CONFIG-EPOCH", epoch) == "OK"
                if node in self.primaries:
                    first, end = parts[epoch - 1 : epoch + 1]
                    assert raw.call("CLUSTER", "ADDSLOTSRANGE", first, end - 1) == "OK"
        # Everybody to everybody: gossip would find them as well, in its own time.
        for node, other in itertools.permutations(self.nodes, 2):
            with RawClient(node) as raw:
                assert raw.call("CLUSTER", "MEET", "127.0.0.1", other.port) == "OK"
        for node in self.nodes:
            eventually(lambda node=node: self._knows_all(node), timeout=60)
        for number, replica in enumerate(self.replicas):
            primary = self.primaries[number % len(self.primaries)]
            replica.primary = primary
            with RawClient(replica) as raw:
                assert raw.call("CLUSTER", "REPLICATE", self.id(primary)) == "OK"
        self.settle()
        return self

    def settle(self) -> None:
        """Waits until every living node sees all slots served, and every replica is in step."""
        for node in self.nodes:
            if node.alive() and node.port not in self._stopped:
                eventually(lambda node=node: self.says(node, b"cluster_state:ok"), timeout=60)
        for replica in self.replicas:
            if replica.alive() and replica.info("replication")["role"] == "slave":
                eventually(lambda replica=replica: self._in_step(replica), timeout=60)

    def says(self, node: Server, *lines: bytes) -> bool:
        with RawClient(node) as raw:
            told = raw.call("CLUSTER", "INFO")
        return isinstance(told, bytes) and all(line in told for line in lines)

    def _in_step(self, replica: Server) -> bool:
        """It has its primary's data, and everybody knows whose replica it is; or it was promoted meanwhile."""
        state = replica.info("replication")
        if state["role"] != "slave":
            return True
        others = [node for node in self.nodes if node.alive() and node.port not in self._stopped]
        return state["master_link_status"] == "up" and all("slave" in self.flags(node, replica) for node in others)

    def _knows_all(self, node: Server) -> bool:
        if not self.says(node, b"cluster_known_nodes:%d\r" % len(self.nodes), b"cluster_state:ok"):
            return False
        with RawClient(node) as raw:
            lines = str(raw.call("CLUSTER", "NODES"))
        return "handshake" not in lines and "noaddr" not in lines and " disconnected" not in lines

    def pause(self, node: Server) -> None:
        """Stops the process where it stands; it goes on with `resume`, or when the cluster ends."""
        self._stopped.add(node.port)
        node.signal(signal.SIGSTOP)

    def resume(self, node: Server) -> None:
        node.signal(signal.SIGCONT)
        self._stopped.discard(node.port)

    def empty(self) -> None:
        """No keys, policies or rules, as a test expects to find it."""
        for node in self.primaries:
            with RawClient(node) as raw:
                raw.call("FLUSHALL")
                for container in ("CACHE.POLICY", "CACHE.RULE"):
                    for name in raw.call(container, "LIST"):
                        raw.call(container, "DEL", name)

    def end(self) -> None:
        for node in self.nodes:
            if node.port in self._stopped:
                self.resume(node)
        end_all(self.nodes)

    # Who is who

    def id(self, node: Server) -> str:
        return self.ids[node.port]

    def flags(self, asked: Server, of: Server) -> list[str]:
        """What one node thinks of another: master, slave, fail? and the like."""
        with RawClient(asked) as raw:
            lines = raw.call("CLUSTER", "NODES").decode().splitlines()
        fields = next((line.split() for line in lines if line.startswith(self.id(of))), None)
        return fields[2].split(",") if fields else []

    def part(self, key: str | bytes) -> int:
        """Which of the primaries, as they were at the beginning, has the key."""
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        return next(part for part in range(len(self.primaries)) if slot < SLOTS * (part + 1) // len(self.primaries))

    def keys(self, part: int, count: int = 1, prefix: str = "key:") -> list[str]:
        """Names of keys that the i-th primary has."""
        names = (f"{prefix}{number}" for number in itertools.count())
        return list(itertools.islice((name for name in names if self.part(name) == part), count))


@contextmanager
def running_cluster(
    folder: Path,
    primaries: int = 3,
    replicas: int = 0,
    *,
    config: Iterable[str] = (),
    timeout_ms: int = NODE_TIMEOUT_MS,
    **options: object,
) -> Iterator[Cluster]:
    """A cluster that is there for the block. `options` are those of Server."""
    lines = [
        "cluster-enabled yes",
        f"cluster-node-timeout {timeout_ms}",
        "cluster-replica-validity-factor 0",
        # At the end nobody waits for a replica that lags behind.
        "shutdown-timeout 0",
        *config,
    ]
    nodes = [Server(folder / f"node-{number}", config=lines, **options) for number in range(primaries + replicas)]
    cluster = Cluster(nodes[:primaries], nodes[primaries:])
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.end)
        with ThreadPoolExecutor(len(nodes)) as threads:
            list(threads.map(Server.start, nodes))
        yield cluster.meet()
