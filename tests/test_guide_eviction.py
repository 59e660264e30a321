"""What docs/guide/eviction.md says of each maxmemory-policy: a cache under pressure, with everything in it that Keyward knows."""

from __future__ import annotations

import pytest
import redis
from locks import evict_everything, make_evicting
from servers import Server, eventually
from tag_view import at_once, cache_get_all, fill_tag, metric, tag_keys
from write_behind import ack, claim

EVICTING = [
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
]
LOCKS = LIMITERS = DIRTY = 50
PLAIN = 100
BATCHES, BATCH = 12, 200
ROOM = 1_000_000


class Cache:
    """Locks, limits, a queue and plain keys, and tagged values of which it is known what was stored last."""

    def __init__(self, server: Server) -> None:
        self.server, self.client = server, server.client()
        self.evicts = self.client.config_get("maxmemory-policy")["maxmemory-policy"] != "noeviction"
        self.values: dict[bytes, bytes] = {}
        run = self.client.execute_command
        self.locks = {f"lock:{n}": run("LOCK.ACQUIRE", f"lock:{n}", "ann", "EX", 6000) for n in range(LOCKS)}
        for number in range(LIMITERS):
            run("RATELIMIT.CHECK", f"limit:{number}", 10, "EX", 6000, "COST", 3)
        self.dirty = {b"dirty:%d" % number: b"new %d" % number for number in range(DIRTY)}
        for key, value in self.dirty.items():
            run("WRITEBEHIND.SET", "q", key, value, "EX", 6000)
        self.client.mset({f"plain:{number}": "x" * 1000 for number in range(PLAIN)})

    def press(self) -> int:
        """Writes three times what there is room for, and invalidates some of it. How many writes were refused."""
        self.client.config_set("maxmemory", self.server.info("memory")["used_memory"] + ROOM)
        refused = 0
        for batch in range(BATCHES):
            pipeline = self.client.pipeline(transaction=False)
            # Half of the keys are new, half were written by the batch before.
            keys = [b"k:%d" % (batch * BATCH // 2 + number) for number in range(BATCH)]
            values = [b"%d " % batch + b"x" * 1500] * BATCH
            for number, (key, value) in enumerate(zip(keys, values, strict=True)):
                tags = "all", f"t{number % 10}"
                pipeline.execute_command("CACHE.SETTAGGED", key, value, "EX", 6000 + number, "TAGS", 2, *tags)
            for key, value, reply in zip(keys, values, pipeline.execute(raise_on_error=False), strict=True):
                if reply == b"OK":
                    self.values[key] = value
                else:
                    assert isinstance(reply, redis.exceptions.OutOfMemoryError)
                    refused += 1
            self.invalidate(f"t{batch % 10}")
            self.nothing_is_old()
            self.locks_are_held()
        self.client.config_set("maxmemory", 0)
        return refused

    def invalidate(self, tag: str) -> None:
        """All that remain are reached, and it is never refused."""
        commands = ("CACHE.TAGKEYS", tag, "COUNT", 10_000), ("CACHE.INVALIDATETAG", tag)
        if self.evicts:
            (cursor, keys), removed = at_once(self.server, *commands)  # Nothing is evicted within a transaction.
        else:
            # A server that cannot evict refuses whatever is sent in a transaction.
            (cursor, keys), removed = (self.client.execute_command(*words) for words in commands)
        assert (cursor, removed) == (b"0", len(keys))
        for key in keys:
            del self.values[key]

    def nothing_is_old(self) -> None:
        keys = [b"k:%d" % number for number in range((BATCHES + 1) * BATCH // 2)]
        for found in (cache_get_all(self.client, keys), self.client.mget(keys)):
            old = [
                key
                for key, value in zip(keys, found, strict=True)
                if value is not None and value != self.values.get(key)
            ]
            assert old == []

    def locks_are_held(self) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for words in self.checks():
            pipeline.execute_command(*words)
        assert pipeline.execute() == [1] * LOCKS

    def checks(self) -> list[tuple]:
        return [("LOCK.VALIDATE", key, token) for key, token in self.locks.items()]

    def what_is_held_comes_back(self) -> None:
        held = [*self.locks, "q"]
        eventually(lambda: self.client.exists(*held) == len(held))
        self.locks_are_held()
        assert self.client.execute_command("LOCK.ACQUIRE", "lock:0", "bob", "EX", 60) is None

    def tags_are_exact(self) -> None:
        there = set(self.client.keys("k:*"))
        assert there == tag_keys(self.client, "all") <= self.values.keys()
        assert self.client.execute_command("CACHE.INVALIDATETAG", "all") == len(there)
        assert self.client.keys("k:*") == []
        assert (metric(self.server, "cache_tagged_keys"), metric(self.server, "cache_ghosts")) == (0, 0)
        assert metric(self.server, "caught_panics") == 0

    def limits(self) -> list[int]:
        """What is left of each: 7 of 10 where the 3 that were taken are known, 10 where it begins afresh."""
        pipeline = self.client.pipeline(transaction=False)
        for number in range(LIMITERS):
            pipeline.execute_command("RATELIMIT.PEEK", f"limit:{number}", 10, "EX", 6000)
        left = [reply[2] for reply in pipeline.execute()]
        assert set(left) <= {7, 10}
        assert metric(self.server, "ratelimit_evicted") == left.count(10)
        return left

    def the_database_gets_all(self) -> None:
        records = claim(self.client)
        assert {record.key: record.payload for record in records} == self.dirty
        assert ack(self.client, *(word for record in records for word in (record.key, record.version))) == DIRTY


@pytest.mark.parametrize("policy", EVICTING)
def test_a_cache_under_pressure(make_server, policy):
    server = make_server(config=[f"maxmemory-policy {policy}"])
    cache = Cache(server)
    assert cache.press() == 0
    assert server.info("stats")["evicted_keys"] > 300
    plain = len(cache.client.keys("plain:*"))
    assert plain == PLAIN if policy.startswith("volatile") else plain < PLAIN
    assert cache_get_all(cache.client, cache.dirty) == list(cache.dirty.values()), "read also without their keys"
    cache.limits()
    cache.what_is_held_comes_back()
    cache.tags_are_exact()
    cache.the_database_gets_all()


@pytest.mark.parametrize("policy", EVICTING)
def test_everything_that_a_policy_lets_go_is_evicted(make_server, policy):
    """The worst that can be, and what is there in that moment: no timer has run yet."""
    server = make_evicting(make_server, policy)
    cache = Cache(server)
    run = cache.client.execute_command
    run("CACHE.POLICY", "SET", "pages", "PREFIX", "page:", "EX", 60)
    run("CACHE.RULE", "SET", "paid", "KEYS", 1, "{key}")
    run("CACHE.FLOOR", "floored", 5)
    run("CACHE.FETCH", "loading")
    run("CACHE.FILLNIL", "nothing", run("CACHE.FETCH", "nothing")[2], "EX", 60)
    run("RATELIMIT.BAN", "limit:0", "EX", 6000)
    fill_tag(cache.client, "all", 200)
    at_once(server, *(("EXPIRE", f"k:{number}", 6000) for number in range(100)))
    keys, tagged, dirty, loading, nothing, floored, policies, rules, *held = evict_everything(
        server,
        ("KEYS", "*"),
        ("CACHE.TAGKEYS", "all", "COUNT", 1000),
        ("CACHE.MGET", *cache.dirty),
        ("CACHE.FETCH", "loading"),
        ("CACHE.FETCH", "nothing"),
        ("CACHE.SET", "floored", "v", "VERSION", 5),
        ("CACHE.POLICY", "LIST"),
        ("CACHE.RULE", "LIST"),
        *cache.checks(),
    )
    lasting = {b"q"} | {b"plain:%d" % n for n in range(PLAIN)} | {b"k:%d" % n for n in range(100, 200)}
    kept = lasting if policy.startswith("volatile") else set()
    assert set(keys) == kept
    assert set(tagged[1]) == {key for key in kept if key.startswith(b"k:")}
    assert dirty == list(cache.dirty.values())
    assert (loading[0], nothing[0], floored, policies, rules) == (b"BUSY", b"NONE", None, [b"pages"], [b"paid"])
    assert held == [1] * LOCKS
    assert cache.limits() == [10] * LIMITERS
    assert run("RATELIMIT.PEEK", "limit:0", 10, "EX", 6000)[0] == 1, "its ban is gone"
    cache.what_is_held_comes_back()
    assert metric(server, "lock_evictions_undone") == LOCKS
    assert metric(server, "writebehind_evictions_undone") == (b"q" not in kept)
    cache.values = dict.fromkeys(kept, b"v")
    cache.tags_are_exact()
    cache.the_database_gets_all()


def test_noeviction_under_pressure(make_server):
    server = make_server(config=["maxmemory-policy noeviction"])
    cache = Cache(server)
    assert cache.press() > 300
    assert server.info("stats")["evicted_keys"] == 0
    assert set(cache.client.keys("k:*")) == cache.values.keys()
    assert len(cache.client.keys("plain:*")) == PLAIN
    assert cache.limits() == [7] * LIMITERS
    cache.what_is_held_comes_back()
    cache.tags_are_exact()
    cache.the_database_gets_all()


def test_what_noeviction_refuses_and_what_it_lets_pass(make_server):
    server = make_server(config=["maxmemory-policy noeviction"])
    client = Cache(server).client
    run = client.execute_command
    for key in ("a", "b", "c", "d"):
        run("CACHE.SET", key, "v", "EX", 60, "GRACE", 60, "TAGS", 1, f"tag:{key}")
    run("CACHE.RULE", "SET", "paid", "KEYS", 1, "{key}")
    run("RATELIMIT.ENTER", "slots", "one", "LIMIT", 2, "EX", 60)
    intents = [run("CACHE.INTENT", key) for key in ("i", "j")]
    tokens = [run("CACHE.FETCH", key)[2] for key in ("filled", "nothing", "failed")]
    client.config_set("maxmemory", 1)

    for words in (
        ("CACHE.SET", "new", "v"),
        ("CACHE.SETTAGGED", "new", "v", "EX", 60, "TAGS", 1, "t"),
        ("CACHE.SETJITTER", "new", "v", "EX", 60, "JITTER", 1),
        ("CACHE.MSET", 1, "new", "v"),
        ("CACHE.TAG", "a", "more"),
        ("CACHE.FILL", "filled", tokens[0], "v", "EX", 60),
        ("CACHE.FILLNIL", "nothing", tokens[1], "EX", 60),
        ("CACHE.COMMIT", "i", intents[0], "v", "EX", 60),
        ("LOCK.ACQUIRE", "lock:new", "ann", "EX", 60),
        ("LOCK.MACQUIRE", 1, "lock:new", "ann", "EX", 60),
        ("RATELIMIT.CHECK", "limit:new", 10, "EX", 60),
        ("RATELIMIT.BAN", "limit:new", "EX", 60),
        ("RATELIMIT.ENTER", "slots", "two", "LIMIT", 2, "EX", 60),
        ("WRITEBEHIND.SET", "q", "new", "v"),
        ("WRITEBEHIND.INCRBY", "q", "new", 1),
        ("WRITEBEHIND.DEL", "q", "new"),
    ):
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            run(*words)
    transaction = client.pipeline(transaction=True)
    transaction.execute_command("CACHE.INVALIDATE", "nothing")
    if server.version < (7, 2):  # Before, the server queues nothing at all while memory is full.
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            transaction.execute()
    else:
        assert transaction.execute() == [0]
    assert client.exists("new", "filled", "lock:new", "limit:new") == 0

    assert run("CACHE.FETCH", "filled")[0] == b"MISS", "a fill that finds memory full ends its lease"
    assert run("CACHE.GET", "a") == b"v"
    assert run("CACHE.ROLLBACK", "new", run("CACHE.INTENT", "new")) == 1
    assert run("CACHE.FAIL", "failed", tokens[2]) == 1
    assert run("CACHE.ROLLBACK", "j", intents[1]) == 1
    assert run("CACHE.STALE", "a") == run("CACHE.STALETAG", "tag:b") == 1
    assert run("CACHE.INVALIDATE", "a") == run("CACHE.INVALIDATETAG", "tag:b") == 1
    assert run("CACHE.FLOOR", "c", 1) == run("CACHE.EMIT", "paid", '{"key": "d"}') == 1
    assert client.exists("a", "b", "c", "d") == 0
    assert run("LOCK.EXTEND", "lock:0", "ann", "EX", 9000) == run("LOCK.RELEASE", "lock:0", "ann") == 1
    assert run("RATELIMIT.CHECK", "limit:0", 10, "EX", 6000)[:3] == [1, 10, 6]
    assert run("RATELIMIT.REFUND", "limit:0", 10, "EX", 6000, "COST", 1)[2] == 7
    assert run("RATELIMIT.LEAVE", "slots", "one") == run("RATELIMIT.RESET", "limit:0") == 1
    first, second = claim(client, 2)
    assert ack(client, first.key, first.version) == 1
    assert run("WRITEBEHIND.NACK", "q", "w", second.key, second.version) == 1


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "volatile-lru", "volatile-lfu"])
def test_what_cache_commands_read_stays(make_server, policy):
    # A large sample, so that what the server draws hardly matters. With the factor 0 every read counts.
    server = make_server(config=[f"maxmemory-policy {policy}", "maxmemory-samples 64", "lfu-log-factor 0"])
    client = server.client()
    names = [b"k:%d" % number for number in range(400)]
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.execute_command("CACHE.SET", name, "x" * 2000, "EX", 6000)
    pipeline.execute()
    read, unread = names[::8], [name for number, name in enumerate(names) if number % 8]
    if policy.endswith("lru"):
        eventually(lambda: client.object("idletime", names[-1]) >= 1, message="the clock of LRU counts seconds")
    for _ in range(20):
        for name in read[::2]:
            pipeline.execute_command("CACHE.GET", name)
            pipeline.execute_command("CACHE.FETCH", name)
        pipeline.execute()
        assert cache_get_all(client, read[1::2]) == [b"x" * 2000] * len(read[1::2])
    client.config_set("maxmemory", server.info("memory")["used_memory"] - 400_000)
    assert client.set("more", "x" * 2000, ex=6000)
    client.config_set("maxmemory", 0)
    assert client.exists(*read) == len(read)
    assert client.exists(*unread) < len(unread) - 100


def test_volatile_ttl_takes_what_ends_soonest_and_a_grace_counts_as_life(make_server):
    server = make_server(config=["maxmemory-policy volatile-ttl", "maxmemory-samples 64"])
    client = server.client()
    pipeline = client.pipeline(transaction=False)
    for number in range(400):
        grace = ("GRACE", 100_000) if number % 8 == 0 else ()
        pipeline.execute_command("CACHE.SET", f"k:{number}", "x" * 2000, "EX", 5000 + number, *grace)
    pipeline.execute()
    client.config_set("maxmemory", server.info("memory")["used_memory"] - 400_000)
    assert client.set("more", "x" * 2000, ex=200_000)
    client.config_set("maxmemory", 0)
    graced, others = range(0, 400, 8), [number for number in range(400) if number % 8]
    assert client.exists(*(f"k:{number}" for number in graced)) == len(graced)
    left = [number for number in others if client.exists(f"k:{number}")]
    assert len(left) < len(others) - 100
    assert sum(left) / len(left) > sum(others) / len(others) + 40, "those that end last are left"
