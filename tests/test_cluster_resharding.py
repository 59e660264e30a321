"""Slots go back and forth between nodes under load, and nothing is read, held, admitted or written that must not be.

Longer: KEYWARD_RESHARD_SECONDS=600. Again: KEYWARD_SEED=<the seed it printed>.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

import pytest
from raw_client import ErrorReply, Word
from servers import default_flavour, eventually, has_atomic_moves
from slot_client import SlotClient
from slot_moves import Move, atomically, doubts_settle, metric
from write_behind import Database, records

SECONDS = float(os.environ.get("KEYWARD_RESHARD_SECONDS", "8"))
SEED = int(os.environ.get("KEYWARD_SEED") or random.randrange(2**32))

# Each part is a hash tag: a slot that moves with all that is in it.
PARTS = [f"part{number}" for number in range(6)]
ROWS = [f"{{{part}}}row:{number}" for part in PARTS for number in range(6)]
TAGS = [f"tag:{number}" for number in range(8)]
LIMIT = 300


def tag_of(row: str) -> str:
    """One tag for rows of many slots."""
    return TAGS[sum(row.encode()) % len(TAGS)]


class Origin:
    """The database: the value of a row is the number of its last write. `sure` is the last write whose invalidation has been
    answered: nobody may read an older value who begins after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.rows: Counter[str] = Counter()
        self.sure: Counter[str] = Counter()

    def write(self, rows: list[str]) -> dict[str, int]:
        with self._lock:
            self.rows.update(rows)
            return {row: self.rows[row] for row in rows}

    def invalidated(self, written: dict[str, int]) -> None:
        with self._lock:
            for row, value in written.items():
                self.sure[row] = max(self.sure[row], value)


class History:
    """What was done lately, each line to a row, a tag or a part: told where something is wrong."""

    def __init__(self) -> None:
        self._lines: deque[tuple[float, str, str]] = deque(maxlen=100_000)

    def note(self, about: str, *words: object) -> None:
        self._lines.append((time.monotonic(), about, " ".join(map(str, (threading.current_thread().name, *words)))))

    def of(self, row: str) -> str:
        concerned = {row, tag_of(row), row[: row.index("}") + 1]}
        lines = [line for line in sorted(self._lines) if line[1] in concerned]
        return "\n".join(f"{at:.6f} {about}: {what}" for at, about, what in lines[-200:])


class Load:
    """Threads that use the cluster until they are told to stop. The first thing that is wrong ends it."""

    def __init__(self, cluster, seed: int) -> None:
        self.cluster, self.seed = cluster, seed
        self.origin, self.database = Origin(), Database()
        self.done: Counter[str] = Counter()
        self.history = History()
        # The row of which a value was read that must not be.
        self.stale: str | None = None
        self.stopping = threading.Event()
        self.wrong: list[BaseException] = []
        self._lock = threading.Lock()
        self._holders: dict[str, str] = {}
        self._tokens: Counter[str] = Counter()
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[SlotClient, random.Random], None]) -> None:
        thread = threading.Thread(target=self._run, args=(name, work), name=name)
        self._threads.append(thread)
        thread.start()

    def _run(self, name: str, work: Callable[[SlotClient, random.Random], None]) -> None:
        try:
            with SlotClient(self.cluster) as client:
                draw = random.Random(f"{self.seed}/{name}")
                while not self.stopping.is_set():
                    work(client, draw)
        except BaseException as failure:
            self.wrong.append(failure)
            self.stopping.set()

    def run(self, seconds: float) -> None:
        self.stopping.wait(seconds)
        self.stopping.set()
        for thread in self._threads:
            thread.join(60)
        if self.stale:
            raise AssertionError(f"{self.wrong[0]}\n{self.history.of(self.stale)}") from self.wrong[0]
        if self.wrong:
            raise self.wrong[0]

    # Caching

    def call(self, client: SlotClient, row: str, command: str, *words: Word) -> object:
        self.history.note(row, command, *words)
        reply = client.call(row, command, row, *words)
        self.history.note(row, command, *words, "said", reply, "by", *client.way)
        return reply

    def check(self, row: str, value: bytes | None, sure: int) -> None:
        """The value was read after the invalidation of every one before `sure` was answered."""
        if value is not None and int(value) < sure:
            self.stale = row
            raise AssertionError(f"{row}: read {value}, {sure} was invalidated before")

    def read(self, client: SlotClient, draw: random.Random) -> None:
        row = draw.choice(ROWS)
        sure = self.origin.sure[row]
        if draw.random() < 0.4:
            value = self.call(client, row, "CACHE.GET")
            self.check(row, value, sure)
            self.done["hits" if value else "misses"] += 1
            return
        wait = ("WAIT", 200) if draw.random() < 0.5 else ()
        status, value, token = self.call(client, row, "CACHE.FETCH", *wait)
        self.check(row, value, sure)
        self.done[status.decode()] += 1
        if token is None:
            return
        loaded = self.origin.rows[row]
        if draw.random() < 0.3:
            time.sleep(draw.random() * 0.02)
        if draw.random() < 0.1:
            filled = self.call(client, row, "CACHE.FILLNIL", token, "EX", 600, "TAGS", 1, tag_of(row))
        else:
            filled = self.call(client, row, "CACHE.FILL", token, loaded, "EX", 600, "TAGS", 1, tag_of(row))
        assert filled in (0, 1), filled
        self.done["filled" if filled else "refused"] += 1

    def change(self, client: SlotClient, draw: random.Random) -> None:
        if draw.random() < 0.5:
            tag = draw.choice(TAGS)
            written = self.origin.write([row for row in ROWS if tag_of(row) == tag])
            self.history.note(tag, "written", written)
            assert all(isinstance(reply, int) for reply in client.everywhere("CACHE.INVALIDATETAG", tag))
            self.history.note(tag, "invalidated")
        else:
            row = draw.choice(ROWS)
            written = self.origin.write([row])
            self.history.note(row, "written", written)
            assert isinstance(self.call(client, row, "CACHE.INVALIDATE"), int)
        self.origin.invalidated(written)
        self.done["invalidations"] += 1
        time.sleep(draw.random() * 0.01)

    # Locks and limits

    def lock(self, client: SlotClient, draw: random.Random) -> None:
        key, owner = f"{{{draw.choice(PARTS)}}}lock", threading.current_thread().name
        token = client.call(key, "LOCK.ACQUIRE", key, owner, "PX", 60_000, "WAIT", 300)
        if token is None:
            return
        with self._lock:
            assert key not in self._holders, f"{key}: {owner} holds it, and so does {self._holders[key]}"
            assert token > self._tokens[key], f"{key}: {token} after {self._tokens[key]}"
            self._holders[key], self._tokens[key] = owner, token
        time.sleep(draw.random() * 0.005)
        assert client.call(key, "LOCK.VALIDATE", key, token) == 1
        with self._lock:
            del self._holders[key]
        assert client.call(key, "LOCK.RELEASE", key, owner) == 1
        self.done["locks"] += 1

    def limit(self, client: SlotClient, draw: random.Random) -> None:
        key = f"{{{draw.choice(PARTS)}}}limit"
        reply = client.call(key, "RATELIMIT.CHECK", key, LIMIT, "EX", 3600)
        with self._lock:
            self.done[f"admitted {key}"] += reply[0]
            assert self.done[f"admitted {key}"] <= LIMIT, f"{key} let more than {LIMIT} through"

    # Write-behind

    def count(self, client: SlotClient, draw: random.Random) -> None:
        part = draw.choice(PARTS)
        queue, key = f"{{{part}}}queue", f"{{{part}}}counter:{draw.randrange(3)}"
        reply = client.call(queue, "WRITEBEHIND.INCRBY", queue, key, 1)
        assert not isinstance(reply, ErrorReply), reply
        with self._lock:
            self.done[key] += 1
        time.sleep(draw.random() * 0.003)

    def work_off(self, client: SlotClient, draw: random.Random) -> None:
        queue, worker = f"{{{draw.choice(PARTS)}}}queue", threading.current_thread().name
        batch = client.call(queue, "WRITEBEHIND.CLAIM", queue, worker, "COUNT", 3, "BLOCK", 20)
        assert not isinstance(batch, ErrorReply), batch
        for record in records(batch):
            with self._lock:
                self.database.write(record)
            time.sleep(draw.random() * 0.005)
            assert client.call(queue, "WRITEBEHIND.ACK", queue, worker, record.key, record.version) in (0, 1)

    def use(self, client: SlotClient, draw: random.Random) -> None:
        uses = [self.read, self.change, self.lock, self.limit, self.count]
        draw.choices(uses, weights=[12, 3, 3, 2, 4])[0](client, draw)

    def check_at_rest(self) -> None:
        nodes = self.cluster.primaries
        doubts_settle(*nodes)
        with SlotClient(self.cluster) as client:
            for queue in (f"{{{part}}}queue" for part in PARTS):
                self._drain(client, queue)
            for key in (f"{{{part}}}counter:{number}" for part in PARTS for number in range(3)):
                assert int(self.database.value(key.encode()) or 0) == self.done[key], key
            for tag in TAGS:
                client.everywhere("CACHE.INVALIDATETAG", tag)
            left = [row for row in ROWS if client.call(row, "EXISTS", row)]
            assert not left, "no tag reaches them"
        assert [metric(node, "cache_ghosts") for node in nodes] == [0] * len(nodes)

    def _drain(self, client: SlotClient, queue: str) -> None:
        def is_clean() -> bool:
            batch = records(client.call(queue, "WRITEBEHIND.CLAIM", queue, "last", "COUNT", 100))
            for record in batch:
                self.database.write(record)
                client.call(queue, "WRITEBEHIND.ACK", queue, "last", record.key, record.version)
            return dict_of(client.call(queue, "WRITEBEHIND.INFO", queue))[b"dirty"] == 0

        eventually(is_clean, timeout=40, message=f"{queue} does not become clean")


def dict_of(flat: list) -> dict:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def step_by_step(load: Load, homes: dict[str, int]) -> Callable[[SlotClient, random.Random], None]:
    """Moves a part to another node as redis-cli does, key by key."""

    def work(_: SlotClient, draw: random.Random) -> None:
        nodes = load.cluster.primaries
        part = draw.choice(PARTS)
        target = draw.choice([number for number in range(len(nodes)) if number != homes[part]])
        with Move(load.cluster, nodes[homes[part]], nodes[target], f"{{{part}}}") as step:
            note = partial(load.history.note, f"{{{part}}}")
            note("begins", nodes[homes[part]].port, "to", nodes[target].port)
            step.begin()
            while keys := step.admin.call("CLUSTER", "GETKEYSINSLOT", step.slot, draw.randint(1, 5)):
                note("takes", *keys)
                assert step.keys(*keys) in ("OK", "NOKEY")
                if draw.random() < 0.3:
                    time.sleep(draw.random() * 0.01)
            note("ends")
            step.end()
            note("has ended")
        homes[part] = target
        load.done["moves"] += 1

    return work


def at_once(load: Load, homes: dict[str, int]) -> Callable[[SlotClient, random.Random], None]:
    """Moves one or two parts to another node as Valkey 9 does by itself."""

    def work(_: SlotClient, draw: random.Random) -> None:
        nodes = load.cluster.primaries
        part = draw.choice(PARTS)
        source = homes[part]
        target = draw.choice([number for number in range(len(nodes)) if number != source])
        neighbours = [other for other in PARTS if other != part and homes[other] == source]
        parts = [part, *draw.sample(neighbours, min(draw.randint(0, 2), len(neighbours)))]
        for part in parts:
            load.history.note(f"{{{part}}}", "goes", nodes[source].port, "to", nodes[target].port)
        atomically(load.cluster, nodes[source], nodes[target], *(f"{{{part}}}" for part in parts))
        for part in parts:
            homes[part] = target
        load.done["moves"] += 1

    return work


@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize("how", [step_by_step, at_once], ids=lambda how: how.__name__)
def test_resharding_back_and_forth_under_load(make_cluster, how, capsys):
    if how is at_once and not has_atomic_moves(default_flavour()):
        pytest.skip("the server has no atomic migration of slots")
    with capsys.disabled():
        print(f"\nKEYWARD_SEED={SEED}")
    cluster = make_cluster(3)
    load = Load(cluster, SEED)
    homes = {part: cluster.part(f"{{{part}}}") for part in PARTS}
    load.start("mover", how(load, homes))
    for number in range(5):
        load.start(f"user {number}", load.use)
    for number in range(2):
        load.start(f"worker {number}", load.work_off)
    load.run(SECONDS)
    load.check_at_rest()
    with capsys.disabled():
        kinds = ("moves", "hits", "HIT", "MISS", "filled", "refused", "invalidations", "locks")
        print({kind: load.done[kind] for kind in kinds})
    assert load.done["moves"] > 3
    assert load.done["filled"] > 0 < load.done["locks"]
