"""Runs random commands of all families against a primary with a replica, and looks at everything between."""

from __future__ import annotations

import random
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raw_client import ErrorReply, RawClient, Word, fields
from servers import Server, default_flavour, eventually, upkeep_passes

from fire.commands import Commands, in_script
from fire.ledger import Broken, Ledger
from fire.look import Look, look
from fire.op import DATABASES, KEPT_DATABASE, QUEUES, VALUES, Op
from fire.shapes import problem

WORKERS, WAITERS = 6, 6
SETTINGS = {
    "invalidate-sync-keys": (1, 2),
    "version-floor-ms": (0, 5),
    "version-floors-max": (0, 3),
    "tag-history-max": (0, 2),
    "lease-max-ms": (50_000, 86_400_000),
    "leases-max": (0, 2),
    "waiters-max": (0, 2),
    "waiters-per-key-max": (0, 1),
    "jobs-max": (1, 3),
    "negatives-max": (0, 2),
    "fence-tags-max": (0, 1),
    "intents-max": (0, 1),
    "policies-max": (0, 1),
    "rules-max": (0, 1),
    "emit-max-keys": (1, 2),
    "explain-history-max": (0, 5),
    "slides-max": (0, 1),
    "save-metadata": ("yes", "no"),
    "cl-throttle": ("auto", "no"),
    "cluster-wait-ms": (1, 10_000),
}
EVICTION = (
    *("allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru"),
    *("volatile-lfu", "volatile-random", "volatile-ttl", "noeviction"),
)


@dataclass
class Waiter:
    """A connection that waits, or could."""

    number: int
    raw: RawClient
    id: int
    op: Op | None = None
    since: int = 0


@dataclass
class Worker:
    raw: RawClient
    id: int
    db: int | None = 0


@dataclass
class Run:
    primary: Server
    replica: Server
    seed: int
    draw: random.Random = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)
    done: Counter = field(default_factory=Counter)
    history: deque = field(default_factory=lambda: deque(maxlen=20_000))

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.commands = Commands(self.draw, self.ledger)
        with RawClient(self.primary) as raw:
            known = raw.call("CONFIG", "GET", "keyward.*")[::2]
            assert {name.decode().removeprefix("keyward.") for name in known} == set(SETTINGS), "a new setting"
            raw.call("RPUSH", "list", "a")
            self.commands.dump = raw.call("DUMP", "list")
            raw.call("DEL", "list")
        self.replica.replicate_from(self.primary).wait_until_synced()
        self.connect()
        self.set_queues_up()

    # Connections

    def connect(self) -> None:
        self.admin = RawClient(self.primary)
        self.watcher = RawClient(self.replica)
        self.workers = [self.worker(2 + number % 2) for number in range(WORKERS)]
        self.waiters = [self.waiter(number) for number in range(WAITERS)]

    def worker(self, protocol: int = 2) -> Worker:
        raw = RawClient(self.primary, protocol)
        return Worker(raw, raw.call("CLIENT", "ID"))

    def waiter(self, number: int) -> Waiter:
        raw = RawClient(self.primary, 2 + number % 2)
        return Waiter(number, raw, raw.call("CLIENT", "ID"))

    def disconnect(self) -> None:
        for raw in (self.admin, self.watcher, *[each.raw for each in (*self.workers, *self.waiters)]):
            raw.close()

    # Running

    def run(self, commands: int, batch: int = 1000, say=lambda line: None) -> None:
        try:
            while self.done["commands"] < commands:
                self.batch(batch)
                self.done["batches"] += 1
                if self.done["batches"] % 50 == 0:
                    say(f"{self.done['commands']} commands, {self.summary()}")
        except (Broken, AssertionError, ConnectionError) as failure:
            raise AssertionError(self.report(failure)) from failure

    def summary(self) -> str:
        names = ("evicted", "reloads", "role changes", "kills", "waits", "errors", "values", "drains")
        done = self.done | Counter(values=self.ledger.values.checked["values"])
        return ", ".join(f"{name} {done[name]}" for name in names)

    def batch(self, commands: int) -> None:
        self.change_settings()
        target = self.done["commands"] + commands
        while self.done["commands"] < target:
            self.move_waiters()
            self.chunk(self.draw.choice(self.workers), self.draw.randrange(1, 60))
            if self.draw.random() < 0.02:
                self.disturb()
        self.quiet()
        self.check()

    def change_settings(self) -> None:
        self.changed = self.draw.sample(sorted(SETTINGS), self.draw.choice([0, 0, 1, 3]))
        for name in self.changed:
            reply = self.admin.call("CONFIG", "SET", f"keyward.{name}", self.draw.choice(SETTINGS[name]))
            assert reply == "OK" or problem("CONFIG", reply) is None, reply
        # Lists are short, and tags of keys stay in cohorts that are unlinked by and by.
        if "invalidate-sync-keys" not in self.changed:
            self.admin.call("CONFIG", "SET", "keyward.invalidate-sync-keys", self.draw.choice([1, 3, 5000]))
        if self.draw.random() < 0.4:
            used = self.number("memory", "used_memory")
            self.admin.call("CONFIG", "SET", "maxmemory-policy", self.draw.choice(EVICTION))
            self.admin.call("CONFIG", "SET", "maxmemory", used + self.draw.choice([-100_000, 0, 3000, 20_000]))

    def number(self, section: str, name: str) -> int:
        lines = self.admin.call("INFO", section).decode().splitlines()
        return int(dict(line.split(":", 1) for line in lines if ":" in line)[name])

    def chunk(self, worker: Worker, size: int) -> None:
        """Some commands in one write: from the first to the last nothing comes between but timers and those who wait."""
        groups: list[tuple[str, list[Op]]] = []
        wire: list[tuple[Word, ...]] = []
        while size > 0:
            kind = self.draw.choices(["plain", "script", "transaction"], [85, 8, 7])[0]
            ops = [self.commands.one() for _ in range(self.draw.randrange(1, 8) if kind == "transaction" else 1)]
            if kind == "transaction":
                wire.append(("MULTI",))
            for op in ops:
                if kind == "transaction" or op.db != worker.db:
                    wire.append(("SELECT", op.db))
                    worker.db = op.db
                wire.append(in_script(op).words if kind == "script" else op.words)
            if kind == "transaction":
                wire.append(("EXEC",))
                # It may be refused.
                worker.db = None
            groups.append((kind, ops))
            size -= len(ops)
        replies = iter(zip(wire, worker.raw.pipeline(wire), strict=True))
        for kind, ops in groups:
            if kind == "transaction":
                self.judge_transaction(ops, replies)
                continue
            for op in ops:
                words, reply = next(replies)
                if words[0] == "SELECT":
                    words, reply = next(replies)
                self.judge(op, reply)

    def judge_transaction(self, ops: list[Op], replies) -> None:
        queued = [next(replies)[1] for _ in range(1 + 2 * len(ops))]
        _, together = next(replies)
        if isinstance(together, ErrorReply):
            refused = [reply for reply in queued if isinstance(reply, ErrorReply)]
            assert refused or "OOM" in together, together
            for reply in refused:
                if found := problem("MULTI", reply):
                    raise Broken(found)
            return
        for op, reply in zip(ops, together[1::2], strict=True):
            self.judge(op, reply)

    def judge(self, op: Op, reply: object, since: int | None = None) -> None:
        values = self.ledger.values
        self.done["commands"] += 1
        if since is None:
            values.now += 1
        self.history.append((values.now, since, op.db, op.words, reply))
        if isinstance(reply, ErrorReply):
            self.done["errors"] += 1
            if op.error_told and not reply.startswith("EXECABORT"):
                op.error_told()
        if found := problem(op.command, reply):
            raise Broken(found)
        if op.told and not isinstance(reply, ErrorReply):
            op.told(reply, values.now if since is None else since)

    # Those who wait

    def move_waiters(self) -> None:
        for waiter in self.waiters:
            if waiter.op is None:
                if self.draw.random() < 0.3:
                    op = self.commands.waiting(waiter.number)
                    waiter.op, waiter.since = op, self.ledger.values.now
                    assert waiter.raw.call("SELECT", op.db) == "OK"
                    waiter.raw.send(*op.words)
                    self.done["waits"] += 1
            elif waiter.raw.is_answered():
                self.answered(waiter)

    def answered(self, waiter: Waiter) -> None:
        op, waiter.op = waiter.op, None
        self.judge(op, waiter.raw.read(), waiter.since)
        if waiter.raw.is_answered():
            raise Broken(f"{op.words} was answered twice: {waiter.raw.read()!r}")

    def disturb(self) -> None:
        """Somebody is killed, hangs up, is unblocked; or the server pauses."""
        kind = self.draw.randrange(6)
        self.done["kills"] += kind < 4
        number = self.draw.randrange(WAITERS)
        waiter = self.waiters[number]
        if kind == 0:
            number = self.draw.randrange(WORKERS)
            self.admin.call("CLIENT", "KILL", "ID", self.workers[number].id)
            self.workers[number].raw.close()
            self.workers[number] = self.worker(2 + number % 2)
        elif kind < 3:
            if kind == 1:
                self.admin.call("CLIENT", "KILL", "ID", waiter.id)
            waiter.raw.close()
            self.waiters[number] = self.waiter(number)
        elif kind == 3:
            self.admin.call("CLIENT", "UNBLOCK", waiter.id, self.draw.choice(["TIMEOUT", "ERROR"]))
        elif kind == 4:
            self.admin.call("CLIENT", "PAUSE", self.draw.randrange(1, 10), "WRITE")

    def quiet(self) -> None:
        """Nobody waits any more: each who did has been answered, once."""
        for waiter in self.waiters:
            if waiter.op is not None:
                # It may not be waiting yet, while writes are paused.
                eventually(lambda waiter=waiter: self.unblock(waiter) or waiter.raw.is_answered())
                self.answered(waiter)
            if waiter.raw.call("ECHO", b"once") != b"once":
                raise Broken("somebody was answered twice")

    def unblock(self, waiter: Waiter) -> None:
        self.admin.call("CLIENT", "UNBLOCK", waiter.id)

    # Looking

    def check(self) -> None:
        for name, value in (("maxmemory", 0), ("maxmemory-policy", "noeviction")):
            assert self.admin.call("CONFIG", "SET", name, value) == "OK"
        for name in self.changed:
            if name in self.defaults:
                self.admin.call("CONFIG", "SET", f"keyward.{name}", self.defaults[name])
        self.look_at(self.admin)
        self.judge_limits()
        kind = self.done["batches"] % 10
        if kind in (2, 7):
            self.drain()
        self.compare_replica()
        if kind in (3, 8):
            self.reload()
        if kind == 9:
            self.change_roles()
        for server in (self.primary, self.replica):
            server.check()

    @property
    def defaults(self) -> dict[str, Word]:
        if not hasattr(self, "_defaults"):
            self._defaults = {}
            reply = self.watcher.call("CONFIG", "GET", "keyward.*")
            for name, value in zip(reply[::2], reply[1::2], strict=True):
                self._defaults[name.decode().removeprefix("keyward.")] = value
        return self._defaults

    def look_at(self, raw: RawClient, *, gauges: bool = True) -> Look:
        """Eventually: keys expire, evicted locks are put back, giant tags are unlinked meanwhile."""

        def sound() -> Look:
            seen = look(raw)
            differences = seen.tags_differ() + (seen.gauges_differ() if gauges else [])
            assert not differences, "; ".join(differences)
            return seen

        return eventually(sound)

    def judge_limits(self) -> None:
        evicted = self.number("keyward_ratelimit", "keyward_ratelimit_evicted")
        limits = self.ledger.limits
        if evicted != self.done["limiters evicted"]:
            self.done["limiters evicted"] = evicted
            limits.forget(self.ledger.values.now)
        if limits.suspicions:
            raise Broken("; ".join(limits.suspicions))
        self.done["evicted"] += self.number("stats", "evicted_keys") - self.done["evicted here"]
        self.done["evicted here"] = self.number("stats", "evicted_keys")

    def compare_replica(self) -> None:
        """Writes to it are refused, reads are right, and it has what the primary has."""
        for _ in range(30):
            op = self.draw.choice([self.commands.any_command, self.commands.plain_command, self.commands.set_value])()
            reply = self.watcher.call(*op.words)
            if found := problem(op.command, reply):
                raise Broken(f"on a replica: {op.words}: {found}")
        self.watcher.call("SELECT", 0)

        def same() -> bool:
            self.replica.wait_until_synced()
            differences = look(self.admin).differs_from(look(self.watcher))
            assert not differences, "primary and replica differ: " + "; ".join(differences[:5])
            return True

        eventually(same, timeout=20)
        now = self.ledger.values.now
        for db in DATABASES:
            _, found = self.watcher.pipeline([("SELECT", db), ("CACHE.MGET", *VALUES)])
            for key, data in zip(VALUES, found, strict=True):
                self.ledger.values.seen((db, key), data, now, stale_ok=False)
        self.done["comparisons"] += 1

    def drain(self) -> None:
        """The database gets everything that was written behind, and has the sums."""
        sums = self.ledger.sums
        self.admin.call("SELECT", KEPT_DATABASE)

        def empty() -> bool:
            dirty = 0
            for queue in QUEUES:
                claimed = self.admin.call("WRITEBEHIND.CLAIM", queue, b"works", "COUNT", 100)
                for record in claimed:
                    sums.write(queue, record)
                for _, key, version in [owed for owed in sums.owed if owed[0] == queue]:
                    self.admin.call("WRITEBEHIND.ACK", queue, b"works", key, version)
                info = fields(self.admin.call("WRITEBEHIND.INFO", queue))
                dirty += info[b"dirty"] + info[b"dead"]
            sums.owed.clear()
            return dirty == 0

        eventually(empty, message="records stay dirty")
        sums.compare()
        self.admin.call("SELECT", 0)
        self.done["drains"] += 1

    def set_queues_up(self) -> None:
        """Again whenever they may be gone."""
        self.admin.call("SELECT", KEPT_DATABASE)
        for queue in QUEUES:
            assert self.admin.call("WRITEBEHIND.CONFIG", queue, "ATTEMPTS", 1_000_000) == "OK"
        self.admin.call("SELECT", 0)

    def reload(self) -> None:
        # Short intents have run out by then.
        self.look_at(self.admin)
        upkeep_passes(self.primary)
        before = self.look_at(self.admin)
        assert self.admin.call("DEBUG", "RELOAD") == "OK"
        lost = before.lost_by_a_reload(look(self.admin))
        if lost:
            raise Broken("DEBUG RELOAD: " + "; ".join(lost[:5]))
        self.ledger.values.forget_work()
        self.look_at(self.admin)
        self.done["reloads"] += 1

    def change_roles(self) -> None:
        """The replica takes over, by FAILOVER or by hand."""
        self.replica.wait_until_synced()
        self.disconnect()
        old, new = self.primary, self.replica
        with RawClient(old) as raw:
            if self.draw.random() < 0.5:
                assert raw.call("FAILOVER") == "OK"
                eventually(lambda: new.info("replication")["role"] == "master", timeout=30)
                new.primary, old.primary = None, new
            else:
                new.promote()
                old.replicate_from(new)
        eventually(lambda: old.info("replication")["role"] == "slave")
        old.wait_until_synced()
        self.primary, self.replica = new, old
        self.connect()
        self.ledger.values.forget_work()
        self.done["limiters evicted"] = self.number("keyward_ratelimit", "keyward_ratelimit_evicted")
        self.done["evicted here"] = self.number("stats", "evicted_keys")
        self.look_at(self.admin)
        self.done["role changes"] += 1

    def report(self, failure: Exception) -> str:
        """How to see it again, and what led to it."""
        text = str(failure)
        everything = Path(tempfile.gettempdir()) / f"keyward-fire-{default_flavour()}-{self.seed}.log"
        everything.write_text("\n".join(map(str, self.history)))
        words = {word for *_, op_words, _ in self.history for word in op_words if isinstance(word, bytes)}
        named = {word for word in words if repr(word) in text}
        entries = [entry for entry in self.history if named & set(entry[3])][-60:] or list(self.history)[-20:]
        return "\n".join(
            [
                f"KEYWARD_SERVER={default_flavour()} KEYWARD_SEED={self.seed}: batch {self.done['batches']}, "
                f"after {self.done['commands']} commands: {text}",
                f"changed settings: {self.changed}. Commands (number, sent at, db, words, reply), all are in {everything}:",
                *[f"  {entry}" for entry in entries],
            ]
        )


def start(make: Callable[..., Server]) -> tuple[Server, Server]:
    """A primary and what becomes its replica. More cycles a second: more happens between two commands."""
    config = ["hz 50", "repl-backlog-size 10mb"]
    return make(config=config), make(config=config)
