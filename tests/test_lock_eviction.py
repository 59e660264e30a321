"""Eviction does not free a held lock: the module still knows it, and puts its key back."""

import socket

import pytest
import redis
from locks import Waiters, acquire, acquire_many, all_valid, evict_everything, make_evicting, validate
from raw_client import ErrorReply
from servers import eventually
from tag_view import metric

POLICIES = [
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
]


@pytest.mark.parametrize("policy", POLICIES)
def test_evicted_locks_are_still_held_and_come_back(make_server, policy):
    server = make_evicting(make_server, policy)
    client = server.client()
    locks = acquire_many(client)
    put_backs = metric(server, "lock_evictions_undone")
    checks = [("LOCK.VALIDATE", key, token) for key, token in locks.items()]
    attempts = [("LOCK.ACQUIRE", key, "bob", "PX", 1000) for key in list(locks)[:5]]
    (size, *replies) = evict_everything(server, ("DBSIZE",), *checks, *attempts)
    assert size == 0, "all locks were evicted"
    assert replies == [1] * len(checks) + [None] * len(attempts)
    eventually(lambda: client.exists(*locks) == len(locks), message="the keys did not come back")
    assert all_valid(client, locks)
    assert all(client.pttl(key) > 0 for key in locks)
    assert metric(server, "lock_evictions_undone") == put_backs + len(locks)
    assert metric(server, "lock_limbo") == 0


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"])
def test_no_lock_is_lost_in_a_cache_that_evicts_all_the_time(make_server, policy):
    primary = make_server(config=[f"maxmemory-policy {policy}", "repl-backlog-size 1mb"])
    replica = make_server(config=["maxmemory 0"])
    replica.replicate_from(primary).wait_until_synced()
    client = primary.client()
    locks = acquire_many(client)
    # Room for the replication backlog and some thousand keys.
    client.config_set("maxmemory", primary.info("memory")["used_memory"] + 4_000_000)

    def locks_were_evicted():
        pipeline = client.pipeline(transaction=False)
        for number in range(500):
            pipeline.set(f"fill:{number}:{locks_were_evicted.rounds}", "x" * 2000, px=10_000_000)
        pipeline.execute(raise_on_error=False)
        locks_were_evicted.rounds += 1
        assert all_valid(client, locks)
        return metric(primary, "lock_evictions_undone") >= 5

    locks_were_evicted.rounds = 0
    eventually(locks_were_evicted, timeout=30, message="no lock was ever evicted")
    client.config_set("maxmemory", 0)
    eventually(lambda: client.exists(*locks) == len(locks))
    replica.wait_until_synced()
    copy = replica.client()
    assert all_valid(copy, locks)
    eventually(lambda: copy.exists(*locks) == len(locks))
    assert metric(replica, "lock_limbo") == 0
    replica.promote()
    assert acquire(copy, "lock:0", "bob") is None
    assert acquire(copy, "new", "bob") > max(locks.values())


def test_a_server_full_of_nothing_but_locks_refuses_writes_and_goes_on(make_server):
    server = make_evicting(make_server, "allkeys-lru")
    client = server.client()
    locks = acquire_many(client, 500)
    client.config_set("maxmemory", 1)
    for _ in range(50):
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("k", "v")
    assert all_valid(client, locks)
    client.config_set("maxmemory", 0)
    eventually(lambda: client.exists(*locks) == len(locks))
    assert client.set("k", "v")


def test_the_holder_goes_on_with_an_evicted_lock(make_server):
    server = make_evicting(make_server)
    client = server.client()
    locks = acquire_many(client)
    size, same, extended, released, forced = evict_everything(
        server,
        ("DBSIZE",),
        ("LOCK.ACQUIRE", "lock:0", "ann", "PX", 10, "REENTRANT"),
        ("LOCK.EXTEND", "lock:1", "ann", "PX", 6_000_000),
        ("LOCK.RELEASE", "lock:2", "ann"),
        ("LOCK.FORCE", "lock:3"),
    )
    assert (size, same, extended, released, forced) == (0, locks["lock:0"], 1, 1, 1)
    left = {key: token for key, token in locks.items() if key not in ("lock:2", "lock:3")}
    eventually(lambda: client.dbsize() == len(left))
    assert all_valid(client, left)
    assert client.pttl("lock:1") > 600_000
    assert acquire(client, "lock:2", "bob") > max(locks.values())
    assert acquire(client, "lock:3", "bob") > max(locks.values())


def test_info_of_an_evicted_lock_names_its_holder(make_server):
    server = make_evicting(make_server)
    token = acquire(server.client())
    (told,) = evict_everything(server, ("LOCK.INFO", "lock"))
    assert told[told.index(b"token") + 1] == token
    assert told[told.index(b"holders") + 1][0][0] == b"ann"


def test_an_evicted_lock_is_not_put_over_what_has_its_name_now(make_server):
    """Whoever writes plainly over a lock ends it, evicted or not."""
    server = make_evicting(make_server)
    client = server.client()
    locks = acquire_many(client)
    evict_everything(server, ("SET", "lock:0", "mine"))
    left = {key: token for key, token in locks.items() if key != "lock:0"}
    eventually(lambda: client.exists(*left) == len(left))
    assert client.get("lock:0") == b"mine"
    client.delete("lock:0")
    assert acquire(client, "lock:0", "bob") > max(locks.values())


def test_an_evicted_lock_ends_with_its_lease(make_server):
    server = make_evicting(make_server)
    client = server.client()
    token = acquire(client, px=100)
    evict_everything(server, ("CLIENT", "PAUSE", 100_000, "WRITE"))
    eventually(lambda: validate(client, token) == 0)
    client.client_unpause()
    eventually(lambda: metric(server, "lock_limbo") == 0)
    assert client.exists("lock") == 0
    assert acquire(client, owner="bob") > token


def test_flushing_frees_evicted_locks_too(make_server):
    server = make_evicting(make_server)
    client, other = server.client(), server.client(db=1)
    locks, elsewhere = acquire_many(client), acquire(other)
    evict_everything(server, ("FLUSHDB",))
    eventually(lambda: metric(server, "lock_limbo") == 0)
    assert client.dbsize() == 0
    assert validate(client, locks["lock:0"], "lock:0") == 0
    assert acquire(client, "lock:0", "bob") > max(locks.values())
    assert validate(other, elsewhere) == 1
    eventually(lambda: other.exists("lock") == 1)


def test_swapdb_takes_evicted_locks_along(make_server):
    server = make_evicting(make_server)
    client, other = server.client(), server.client(db=1)
    token = acquire(client)
    evict_everything(server, ("SWAPDB", 0, 1))
    assert validate(client, token) == 0
    assert validate(other, token) == 1
    eventually(lambda: other.exists("lock") == 1)
    assert client.exists("lock") == 0


@pytest.mark.parametrize("aof", [False, True], ids=["rdb", "aof"])
def test_locks_in_limbo_are_saved(make_server, aof):
    """The file is written between the eviction and the put-back; the AOF ends there."""
    server = make_evicting(make_server, "allkeys-random", f"appendonly {'yes' if aof else 'no'}")
    client = server.client()
    locks, elsewhere = acquire_many(client), acquire(server.client(db=2))
    # Under the pause nothing is put back.
    (size, _, *rest) = evict_everything(
        server, ("DBSIZE",), ("CLIENT", "PAUSE", 100_000, "WRITE"), *([] if aof else [("SAVE",)])
    )
    assert size == 0
    assert not [reply for reply in rest if isinstance(reply, ErrorReply)]
    server.kill9()
    server.start()
    client = server.client()
    assert all_valid(client, locks)
    assert validate(server.client(db=2), elsewhere) == 1
    eventually(lambda: client.exists(*locks) == len(locks))
    eventually(lambda: server.client(db=2).exists("lock") == 1)
    assert acquire(client, "new") > max(elsewhere, *locks.values())


def test_a_replica_knows_locks_that_are_evicted_on_the_primary(make_server):
    """Between the eviction, which it sees as a DEL, and the put-back; and also if it is promoted then."""
    primary = make_evicting(make_server)
    replica = make_server()
    replica.replicate_from(primary).wait_until_synced()
    locks = acquire_many(primary.client())
    evict_everything(primary, ("CLIENT", "PAUSE", 100_000, "WRITE"))
    replica.wait_until_synced()
    copy = replica.client()
    assert copy.exists(*locks) == 0
    assert all_valid(copy, locks)
    assert metric(replica, "lock_limbo") == len(locks)
    replica.promote()
    eventually(lambda: copy.exists(*locks) == len(locks))
    assert all_valid(copy, locks)
    assert acquire(copy, "lock:0", "bob") is None
    assert copy.execute_command("LOCK.RELEASE", "lock:0", "ann") == 1


def test_a_full_sync_carries_locks_that_are_evicted(make_server):
    primary = make_evicting(make_server)
    replica = make_server()
    locks = acquire_many(primary.client())
    evict_everything(primary, ("CLIENT", "PAUSE", 100_000, "WRITE"))
    replica.replicate_from(primary).wait_until_synced()
    copy = replica.client()
    assert all_valid(copy, locks)
    primary.client().client_unpause()
    eventually(lambda: primary.client().exists(*locks) == len(locks))
    replica.wait_until_synced()
    assert copy.exists(*locks) == len(locks)
    assert metric(replica, "lock_limbo") == 0


# Several holders, and those who wait


def test_readers_permits_and_locks_that_were_taken_together(make_server):
    server, replica = make_evicting(make_server), make_server()
    replica.replicate_from(server).wait_until_synced()
    with Waiters(server) as waiters, Waiters(replica) as copy:
        readers = [waiters.acquire(name, "SHARED", key="readers") for name in ("ann", "bob")]
        waiters.acquire("ann", "PERMITS", 2, key="semaphore")
        together = waiters.call("LOCK.MACQUIRE", 2, "a", "b", "ann", "PX", 60_000)
        size, *valid, joined, full, again, extended, released, ran = evict_everything(
            server,
            ("DBSIZE",),
            *(("LOCK.VALIDATE", "readers", token) for token in readers),
            ("LOCK.ACQUIRE", "readers", "cy", "PX", 60_000, "SHARED"),
            ("LOCK.ACQUIRE", "semaphore", "bob", "PX", 60_000, "PERMITS", 3),
            ("LOCK.MACQUIRE", 2, "a", "b", "ann", "PX", 600_000),
            ("LOCK.EXTEND", "semaphore", "ann", "PX", 600_000),
            ("LOCK.MRELEASE", 2, "a", "readers", "ann"),
            ("LOCK.EXEC", "b", together, "SET", "k", "v"),
        )
        assert (size, valid, full) == (0, [1, 1], "ERR permits mismatch (is 2)")
        assert joined > together == again
        assert (extended, released, ran) == (1, 2, "OK")
        eventually(lambda: waiters.metric("limbo") == 0)
        assert waiters.owners("readers") == ["bob", "cy"]
        assert (waiters.owners("semaphore"), waiters.owners("a"), waiters.owners("b")) == (["ann"], [], ["ann"])
        assert waiters.call("PTTL", "b") > 60_000
        replica.wait_until_synced()
        assert copy.metric("limbo") == 0
        assert copy.call("DEBUG", "DIGEST") == waiters.call("DEBUG", "DIGEST")


def test_who_waits_for_an_evicted_lock_waits_on(make_server):
    server = make_evicting(make_server)
    with Waiters(server) as waiters:
        waiters.acquire("ann")
        bob, cy = waiters.wait("bob"), waiters.wait("cy")
        evict_everything(server)
        eventually(lambda: waiters.call("EXISTS", "lock") == 1)
        assert not bob.is_answered()
        (released,) = evict_everything(server, ("LOCK.RELEASE", "lock", "ann"))
        assert released == 1
        token = bob.read()
        eventually(lambda: waiters.call("LOCK.VALIDATE", "lock", token) == 1 and waiters.call("EXISTS", "lock") == 1)
        evict_everything(server, ("FLUSHALL",))
        assert cy.read() > token


def test_an_evicted_lock_wakes_those_who_wait_when_its_lease_ends(make_server):
    server = make_evicting(make_server)
    with Waiters(server) as waiters:
        waiters.acquire("ann", px=1000)
        one = waiters.acquire("ann", "PERMITS", 2, key="semaphore", px=1000)
        waiters.acquire("bob", "PERMITS", 2, key="semaphore")
        first = waiters.wait("cy")
        second = waiters.wait("cy", "PERMITS", 2, key="semaphore")
        third = waiters.wait_for_all(["lock", "semaphore"], "dan")
        evict_everything(server)
        assert first.read() > one
        assert second.read() > one
        assert waiters.owners("semaphore") == ["bob", "cy"]
        assert not third.is_answered()


def test_an_evicted_lock_that_is_written_over_tells_those_who_wait(make_server):
    server = make_evicting(make_server)
    with Waiters(server) as waiters:
        for key in ("lock", "other"):
            waiters.acquire("ann", key=key)
        clients = [waiters.wait("bob"), waiters.wait("bob", key="other")]
        evict_everything(server, ("SET", "lock", "value"), ("RPUSH", "list", "x"), ("RENAME", "list", "other"))
        for client in clients:
            assert str(client.read()).startswith("WRONGTYPE ")
        assert waiters.metric("limbo") == 0


def test_nothing_is_copied_of_an_evicted_lock(make_server):
    server = make_evicting(make_server)
    with Waiters(server) as waiters:
        waiters.acquire("ann")
        copied, renamed, expired = evict_everything(
            server, ("COPY", "lock", "copy"), ("RENAME", "lock", "there"), ("PEXPIRE", "lock", 1)
        )
        assert (copied, renamed, expired) == (0, "ERR no such key", 0)
        eventually(lambda: waiters.call("EXISTS", "lock") == 1)
        assert waiters.owners() == ["ann"]


# Tokens


def fill(server, first, count):
    """So many plain keys, numbered from the first on; how many the server took."""
    value = b"x" * 100
    taken = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        replies = connection.makefile("rb")
        for begin in range(first, first + count, 10_000):
            keys = range(begin, begin + 10_000)
            parts = (b"*3\r\n$3\r\nSET\r\n$14\r\nfill:%09d\r\n$100\r\n%b\r\n" % (key, value) for key in keys)
            connection.sendall(b"".join(parts))
            taken += sum(replies.readline() == b"+OK\r\n" for _ in keys)
    return taken


def test_tokens_grow_and_locks_hold_while_a_million_keys_push_each_other_out(make_server):
    server = make_server(config=["maxmemory-policy allkeys-lru"])
    with Waiters(server) as waiters:
        waiters.call("CONFIG", "SET", "maxmemory", server.info("memory")["used_memory"] + 20_000_000)
        tokens, held = [], {}
        for batch in range(10):
            held[f"held:{batch}"] = waiters.acquire("ann", key=f"held:{batch}", px=6_000_000)
            tokens += [held[f"held:{batch}"], waiters.acquire("ann", key="passed on")]
            client = waiters.wait("bob", key="passed on")
            assert fill(server, batch * 100_000, 100_000) == 100_000
            waiters.release("ann", key="passed on")
            tokens.append(client.read())
            waiters.release("bob", key="passed on")
            client.close()
        assert server.info("stats")["evicted_keys"] > 800_000
        assert tokens == sorted(set(tokens))
        assert waiters.metric("evictions_undone") > 0, "locks were evicted, too"
        assert all(waiters.call("LOCK.VALIDATE", key, token) == 1 for key, token in held.items())
        waiters.call("CONFIG", "SET", "maxmemory", 0)
        eventually(lambda: waiters.call("EXISTS", *held) == len(held))
        assert waiters.acquire("bob", key="new") > tokens[-1]
