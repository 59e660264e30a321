"""Slots of a cluster that move from node to node, step by step, as redis-cli --cluster reshard moves them."""

from __future__ import annotations

from contextlib import ExitStack

from raw_client import RawClient, fields
from redis.crc import key_slot
from servers import Server, eventually

from cluster import Cluster


def agreed(cluster: Cluster, owner: Server, slots: list[int]) -> None:
    """Waits until every node says that these slots are the owner's."""

    def says(node: Server) -> bool:
        with RawClient(node) as raw:
            ranges = raw.call("CLUSTER", "SLOTS")
        return all(any(low <= slot <= high and at[1] == owner.port for low, high, at, *_ in ranges) for slot in slots)

    for node in cluster.primaries:
        if node.alive():
            eventually(lambda node=node: says(node), timeout=30)


class Move:
    """The slot of a key on its way from one node to another. `admin` and `other` are connections to the two."""

    def __init__(self, cluster: Cluster, source: Server, target: Server, key: str) -> None:
        self.slot = key_slot(key.encode())
        self._cluster, self._source, self._target = cluster, source, target
        self._ids = cluster.id(source), cluster.id(target)
        self.admin, self.other = RawClient(source), RawClient(target)

    def __enter__(self) -> Move:
        return self

    def __exit__(self, *_: object) -> None:
        self.admin.close()
        self.other.close()

    def begin(self) -> Move:
        """Both nodes must agree whose the slot is, which may take a moment after the move before: until then one of them refuses."""
        self._agreed(self.other, "IMPORTING", self._ids[0])
        self._agreed(self.admin, "MIGRATING", self._ids[1])
        return self

    def _agreed(self, node: RawClient, state: str, other: str) -> None:
        replies = []

        def is_done() -> bool:
            replies.append(node.call("CLUSTER", "SETSLOT", self.slot, state, other))
            return replies[-1] == "OK"

        eventually(
            is_done, message=lambda: f"{state} of slot {self.slot}: {replies[-1]}, {node.call('CLUSTER', 'NODES')}"
        )

    def keys(self, *keys: str | bytes) -> object:
        """Takes these keys to the target; without any, all there are."""
        keys = keys or self.admin.call("CLUSTER", "GETKEYSINSLOT", self.slot, 1_000_000)
        if not keys:
            return "NOKEY"
        return self.admin.call("MIGRATE", "127.0.0.1", self._target.port, "", 0, 30_000, "REPLACE", "KEYS", *keys)

    def end(self) -> None:
        # First where the slot goes to: it would otherwise be nobody's for a moment.
        for node in (self.other, self.admin):
            assert node.call("CLUSTER", "SETSLOT", self.slot, "NODE", self._ids[1]) == "OK"
        others = [node for node in self._cluster.primaries if node not in (self._source, self._target) and node.alive()]
        with ExitStack() as stack:
            raws = [stack.enter_context(RawClient(node)) for node in others]
            for raw in raws:
                raw.call("CLUSTER", "SETSLOT", self.slot, "NODE", self._ids[1])
            # Who does not know of the epoch yet by which the slot is the target's could take the slot back without a greater one,
            # and the two would quarrel about it.
            for raw in (self.admin, *raws):
                eventually(lambda raw=raw: self._epoch(raw) == self._epoch(self.other))
        agreed(self._cluster, self._target, [self.slot])

    def _epoch(self, raw: RawClient) -> bytes:
        """Of the target, as this node knows it."""
        lines = raw.call("CLUSTER", "NODES").splitlines()
        return next(line.split()[6] for line in lines if line.startswith(self._ids[1].encode()))

    def whole(self) -> None:
        """From begin to end, with all keys."""
        self.begin()
        while self.keys() != "NOKEY":
            pass
        self.end()


def move(cluster: Cluster, source: Server, target: Server, key: str) -> None:
    with Move(cluster, source, target, key) as step:
        step.whole()


def atomically(cluster: Cluster, source: Server, target: Server, *keys: str) -> None:
    """Moves the slots of the keys as the server does it by itself, and waits until everybody knows."""
    with AtomicMove(cluster, source, target, *keys) as step:
        step.done()


class AtomicMove:
    """Slots that the server moves at once, under way. `hold`: not to its end before `go_on`; the server must allow DEBUG.

    Valkey is told at the source and Redis at the target.
    """

    def __init__(self, cluster: Cluster, source: Server, target: Server, *keys: str, hold: bool = False) -> None:
        self._cluster, self._source, self._target, self._held = cluster, source, target, hold
        self._slots = sorted({key_slot(key.encode()) for key in keys})
        self._is_valkey = source.flavour.startswith("valkey")
        self._raw = RawClient(source if self._is_valkey else target)
        if hold:
            hold_moves(source, True)
        # Until the nodes agree whose the slots are, one of them refuses.
        eventually(self._begins, timeout=60)

    def _begins(self) -> bool:
        ranges = [word for slot in self._slots for word in (slot, slot)]
        if self._is_valkey:
            wanted, self._id = b"waiting-to-pause", self._cluster.id(self._target)
            reply = self._raw.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ranges, "NODE", self._id)
            assert reply == "OK", reply
        else:
            wanted, self._id = b"wait-stream-eof", self._raw.call("CLUSTER", "MIGRATION", "IMPORT", *ranges)
            assert isinstance(self._id, bytes), self._id
        return not self._held or self._becomes(wanted, b"failed") != b"failed"

    def _becomes(self, *wanted: bytes) -> bytes:
        def reached() -> bytes | None:
            state = self._state()
            return state if state in wanted else None

        return eventually(reached, timeout=60, message=lambda: f"the move is {self._state()}")

    def _state(self) -> bytes:
        return self._status()[b"state"]

    def _status(self) -> dict[bytes, object]:
        status = ("GETSLOTMIGRATIONS",) if self._is_valkey else ("MIGRATION", "STATUS", "ID", self._id)
        return fields(self._raw.call("CLUSTER", *status)[0])

    def retries(self) -> int:
        """How often it was given up and begun again; only Redis does that."""
        return self._status().get(b"retries", 0)

    def __enter__(self) -> AtomicMove:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def go_on(self) -> None:
        hold_moves(self._source, False)
        self.done()

    def done(self) -> None:
        self._becomes(b"success", b"completed")
        agreed(self._cluster, self._target, self._slots)

    def cancel(self) -> None:
        if self._is_valkey:
            assert self._raw.call("CLUSTER", "CANCELSLOTMIGRATIONS") == "OK"
        else:
            assert self._raw.call("CLUSTER", "MIGRATION", "CANCEL", "ID", self._id) == 1


def hold_moves(source: Server, hold: bool) -> None:
    """Slots that move from here at once get as far as their last step, and wait."""
    with RawClient(source) as raw:
        if source.flavour.startswith("valkey"):
            assert raw.call("DEBUG", "SLOTMIGRATION", "PREVENT-PAUSE", int(hold)) == "OK"
        else:
            point = ("migrate-main-channel", "handoff-prep") if hold else ("", "")
            assert raw.call("DEBUG", "ASM-FAILPOINT", *point) == "OK"


def metric(node: Server, name: str) -> int:
    family = name.partition("_")[0]
    return int(node.info(f"keyward_{family}")[f"keyward_{name}"])


def doubts_settle(*nodes: Server) -> None:
    for node in nodes:
        eventually(lambda node=node: metric(node, "cache_doubts") == 0, message="values stay in doubt")
