"""Replicas of a cluster that take over from their primaries."""

from __future__ import annotations

import contextlib

from raw_client import RawClient
from servers import Server, eventually


def takes_over_alone(replica: Server) -> None:
    eventually(lambda: replica.info("replication")["role"] == "master", timeout=60)
    replica.primary = None


def takes_over(replica: Server) -> None:
    takes_over_alone(replica)

    def serves():
        with RawClient(replica) as raw:
            return b"cluster_state:ok" in raw.call("CLUSTER", "INFO")

    eventually(serves, timeout=60)


def fail_over(replica: Server, *how: str) -> None:
    """The others do not vote again so soon after an election, and the server gives up after 5 s."""

    def is_primary():
        with RawClient(replica) as raw:
            raw.call("CLUSTER", "FAILOVER", *how)
        with contextlib.suppress(AssertionError):
            eventually(lambda: replica.info("replication")["role"] == "master", timeout=5.5)
        return replica.info("replication")["role"] == "master"

    eventually(is_primary, timeout=60)
    takes_over(replica)


def follows(server: Server, primary: Server) -> None:
    server.primary = primary

    def in_step():
        state = server.info("replication")
        return state["role"] == "slave" and state["master_link_status"] == "up"

    eventually(in_step, timeout=60)
