"""A client of a cluster that goes where it is sent: MOVED, ASK, TRYAGAIN. It repeats what was not done and nothing else."""

from __future__ import annotations

import time

from raw_client import ErrorReply, RawClient, Word
from redis.crc import key_slot

from cluster import Cluster


class SlotClient:
    """One user of the cluster, with a connection to each primary."""

    def __init__(self, cluster: Cluster) -> None:
        self._nodes = {node.port: RawClient(node) for node in cluster.primaries}
        self._ports: dict[int, int] = {}
        self._any = cluster.primaries[0].port
        # Of the last call: who was asked, and what those said who did not answer.
        self.way: list[object] = []

    def __enter__(self) -> SlotClient:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes.values():
            node.close()

    def call(self, key: str, *words: Word, patience: float = 30.0) -> object:
        """A command whose first key this is."""
        slot = key_slot(key.encode())
        deadline = time.monotonic() + patience
        ask = None
        self.way = []
        while True:
            port = self._ports.get(slot, self._any) if ask is None else ask
            reply = self._nodes[port].pipeline([("ASKING",), words] if ask else [words])[-1]
            self.way.append(port)
            ask = None
            if not isinstance(reply, ErrorReply):
                return reply
            self.way.append(reply)
            kind, *rest = reply.split(" ")
            if kind == "MOVED":
                self._ports[slot] = int(rest[1].rpartition(":")[2])
            elif kind == "ASK":
                ask = int(rest[1].rpartition(":")[2])
            elif kind in ("TRYAGAIN", "CLUSTERDOWN"):
                time.sleep(0.002)
            else:
                return reply
            if time.monotonic() > deadline:
                raise AssertionError(f"{words[0]} was sent round for {patience} s: {reply}")

    def everywhere(self, *words: Word) -> list[object]:
        """On every primary, one after the other."""
        return [node.call(*words) for node in self._nodes.values()]
