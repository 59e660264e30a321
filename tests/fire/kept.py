"""Draws commands on locks, limits and queues whose promises are kept account of."""

from __future__ import annotations

from collections.abc import Sequence

from raw_client import Word

from fire.ledger import Broken
from fire.op import KEPT_DATABASE, LIMITS, LOCKS, LONG, OWNERS, QUEUES, SLOTS, Draws, Op, Told


class KeptCommands(Draws):
    def _granted(self, keys: Sequence[bytes], owner: bytes) -> Told:
        locks = self.ledger.locks

        def told(token: object, since: int) -> None:
            if token is None:
                return
            at_once = since == self.ledger.values.now
            self.ledger.tokens.granted(token, owner, at_once=at_once)
            for key in keys:
                if at_once or locks.certain(key, since):
                    locks.granted(key, owner, token)

        return told

    def acquire(self, *wait: Word) -> Op:
        owner = b"w:%d" % self.connection if wait else self.draw.choice(OWNERS)
        if self.draw.random() < 0.8:
            key = self.draw.choice(LOCKS)
            words = ("LOCK.ACQUIRE", key, owner, "EX", LONG, *wait)
            return Op(KEPT_DATABASE, words, self._granted([key], owner))
        keys = self.draw.sample(LOCKS, 2)
        return Op(KEPT_DATABASE, ("LOCK.MACQUIRE", 2, *keys, owner, "EX", LONG, *wait), self._granted(keys, owner))

    def _holder(self) -> tuple[bytes, bytes, int]:
        key = self.draw.choice(LOCKS)
        for owner, token in self.ledger.locks.held.get(key, {}).items():
            return key, owner, token
        return key, self.draw.choice(OWNERS), 1

    def release(self) -> Op:
        key, owner, _ = self._holder()
        locks = self.ledger.locks

        def told(reply: object, _: int) -> None:
            holds = owner in locks.held.get(key, {})
            if holds and not reply:
                raise Broken(f"{key!r} is held by {owner!r}, and was not released")
            if reply:
                locks.free(key, self.ledger.values.now)

        if self.draw.random() < 0.1:
            force = lambda _, __: locks.free(key, self.ledger.values.now)  # noqa: E731
            return Op(KEPT_DATABASE, ("LOCK.FORCE", key), force)
        return Op(KEPT_DATABASE, ("LOCK.RELEASE", key, owner), told)

    def validate(self) -> Op:
        key, owner, token = self._holder()

        def told(reply: object, _: int) -> None:
            if not reply and self.ledger.locks.held.get(key, {}).get(owner) == token:
                raise Broken(f"{key!r} is held by {owner!r} under {token}, and its token is not valid")

        words = self.draw.choice([("LOCK.VALIDATE", key, token), ("LOCK.EXTEND", key, owner, "EX", LONG)])
        return Op(KEPT_DATABASE, words, told)

    def check(self, *wait: Word) -> Op:
        key, limits = self.draw.choice(list(LIMITS)), self.ledger.limits
        cost, most = self.draw.randrange(1, 4), LIMITS[key]

        def told(reply: object, since: int) -> None:
            if reply[0] and limits.certain(key, since):
                limits.used[key] += cost
                if limits.used[key] > most:
                    limits.suspicions.append(f"{key!r}: {limits.used[key]} of {most} were let through")

        return Op(KEPT_DATABASE, ("RATELIMIT.CHECK", key, most, "EX", LONG, "COST", cost, *wait), told)

    def refund(self) -> Op:
        key, limits = self.draw.choice(list(LIMITS)), self.ledger.limits

        def reset(_: object, __: int) -> None:
            limits.used[key] = 0
            limits.given_back[key] = self.ledger.values.now

        def refunded(_: object, __: int) -> None:
            limits.used[key] = max(limits.used[key] - 3, 0)
            limits.given_back[key] = self.ledger.values.now

        if self.draw.random() < 0.3:
            return Op(KEPT_DATABASE, ("RATELIMIT.RESET", key), reset)
        return Op(KEPT_DATABASE, ("RATELIMIT.REFUND", key, LIMITS[key], "EX", LONG, "COST", 3), refunded)

    def enter(self, *wait: Word) -> Op:
        key, limits = self.draw.choice(list(SLOTS)), self.ledger.limits
        name, most = (b"w:%d" % self.connection if wait else b"i:%d" % self.draw.randrange(8)), SLOTS[key]

        def told(reply: object, since: int) -> None:
            held = limits.slots.setdefault(key, set())
            if not reply[0] and name in held and since == self.ledger.values.now:
                limits.suspicions.append(f"{key!r}: {name!r} has a slot, and it was not renewed")
            if reply[0] and limits.certain(key, since):
                held.add(name)
                if len(held) > most:
                    limits.suspicions.append(f"{key!r}: {held} hold {most} slots")

        return Op(KEPT_DATABASE, ("RATELIMIT.ENTER", key, name, "LIMIT", most, "EX", LONG, *wait), told)

    def leave(self) -> Op:
        key, limits = self.draw.choice(list(SLOTS)), self.ledger.limits
        held = limits.slots.get(key) or {b"i:0"}
        name = self.draw.choice(sorted(held))

        def told(_: object, __: int) -> None:
            limits.slots.get(key, set()).discard(name)
            limits.given_back[key] = self.ledger.values.now

        return Op(KEPT_DATABASE, ("RATELIMIT.LEAVE", key, name), told)

    def write_behind(self) -> Op:
        sums, queue = self.ledger.sums, self.draw.choice(QUEUES)
        epoch = sums.epoch
        mark = b"%s:%d" % (queue[-1:], epoch)
        if self.draw.random() < 0.6:
            key, by = b"x:count:%s:%d" % (mark, self.draw.randrange(3)), self.draw.randrange(-50, 100)

            def added(reply: object, _: int) -> None:
                self.ledger.tokens.version(reply[1])
                if epoch == sums.epoch:
                    sums.counters[key] += by

            return Op(KEPT_DATABASE, ("WRITEBEHIND.INCRBY", queue, key, by, *self.expiry()), added)
        key = b"x:row:%s:%d" % (mark, self.draw.randrange(3))
        value = self.ledger.values.new() if self.draw.random() < 0.8 else None

        def written(reply: object, _: int) -> None:
            self.ledger.tokens.version(reply)
            if epoch == sums.epoch:
                sums.rows[key] = value

        if value is None:
            return Op(KEPT_DATABASE, ("WRITEBEHIND.DEL", queue, key), written)
        return Op(KEPT_DATABASE, ("WRITEBEHIND.SET", queue, key, value, *self.expiry()), written)

    def claim(self, *wait: Word) -> Op:
        """By a worker that writes and acks, or by one that dies of it, or gives back."""
        queue, sums = self.draw.choice(QUEUES), self.ledger.sums
        dies = self.draw.random() < 0.3
        worker, lease = (b"dies", 3) if dies else (b"works", 300)

        def told(reply: object, _: int) -> None:
            for record in [] if dies else reply:
                sums.write(queue, record)

        words = ("WRITEBEHIND.CLAIM", queue, worker, "COUNT", self.draw.choice([1, 5]), "LEASE", lease, *wait)
        return Op(KEPT_DATABASE, words, told)

    def ack(self) -> Op:
        sums = self.ledger.sums
        if not sums.owed:
            return self.claim()
        queue, key, version = sums.owed.pop(self.draw.randrange(len(sums.owed)))
        return Op(KEPT_DATABASE, ("WRITEBEHIND.ACK", queue, b"works", key, version))

    def rest(self) -> Op:
        """How long records rest. Claims may end as often as they like: what a database has must not be given up."""
        rest = self.draw.choice([0, 0, 2])
        words = ("DELAY", rest, "MAXDELAY", rest * 2, "ATTEMPTS", 1_000_000)
        return Op(KEPT_DATABASE, ("WRITEBEHIND.CONFIG", self.draw.choice(QUEUES), *words))
