"""What LOCK.* propagates: the lock as it stands, in absolute terms, once; and what a replica makes of it."""

import pytest
import redis
from propagation import ReplicationStream, aof_commands
from raw_client import fields
from servers import eventually


def acquire(client, key="lock", owner="ann", *options, px=60_000):
    return client.execute_command("LOCK.ACQUIRE", key, owner, "PX", px, *options)


def deadline(client, key="lock"):
    return client.execute_command("PEXPIRETIME", key)


def lock_effect(key, owner, token, deadline_ms, holds=1):
    words = ["KEYWARD.APPLY", "LOCK", key, owner, token, deadline_ms, holds]
    return [word if isinstance(word, bytes) else str(word).encode() for word in words]


def without_transaction(commands):
    return [command for command in commands if command[0] not in (b"MULTI", b"EXEC")]


@pytest.fixture
def primary(make_server):
    """A server that has granted a token, so that its reserve is known already."""
    server = make_server()
    client = server.client()
    acquire(client, "first")
    client.execute_command("LOCK.RELEASE", "first", "ann")
    return server


def test_the_first_grant_makes_a_reserve_known_before_the_token_is_used(make_server):
    server = make_server()
    with ReplicationStream(server) as stream:
        token = acquire(server.client())
        multi, reserve, grant, exec_ = stream.read()
        assert (multi, exec_) == ([b"MULTI"], [b"EXEC"])
        assert reserve[:2] == [b"KEYWARD.APPLY", b"RESERVE"]
        assert token < int(reserve[2]) <= token + 60_000_000
        assert grant == lock_effect("lock", "ann", token, deadline(server.client()))


def test_a_grant_is_one_command_with_the_deadline_as_unix_time(primary):
    client = primary.client()
    with ReplicationStream(primary) as stream:
        token = acquire(client, b"lock\x00\xff", b"ann\r\n\xff")
        ends = deadline(client, b"lock\x00\xff")
        seconds, _ = client.time()
        assert abs(ends - (seconds * 1000 + 60_000)) < 5_000
        assert stream.read() == [lock_effect(b"lock\x00\xff", b"ann\r\n\xff", token, ends)]


def test_every_change_is_one_command(primary):
    client = primary.client()
    with ReplicationStream(primary) as stream:
        token = acquire(client)
        stream.read()
        acquire(client, "lock", "ann", "REENTRANT")
        assert stream.read() == [lock_effect("lock", "ann", token, deadline(client), 2)]
        client.execute_command("LOCK.EXTEND", "lock", "ann", "EX", 6000)
        assert stream.read() == [lock_effect("lock", "ann", token, deadline(client), 2)]
        acquire(client, px=60_000_000)
        assert stream.read() == [lock_effect("lock", "ann", token, deadline(client), 2)]
        client.execute_command("LOCK.RELEASE", "lock", "ann", "TOKEN", token)
        assert len(without_transaction(stream.read())) == 1
        client.execute_command("LOCK.RELEASE", "lock", "ann")
        assert len(without_transaction(stream.read())) == 1
        token = acquire(client)
        stream.read()
        client.execute_command("LOCK.FORCE", "lock")
        assert len(without_transaction(stream.read())) == 1


def test_what_changes_nothing_propagates_nothing(primary):
    client = primary.client()
    token = acquire(client, px=600_000)
    client.set("string", "value")
    calls = [
        ("LOCK.ACQUIRE", "lock", "bob", "PX", 1000),
        ("LOCK.ACQUIRE", "lock", "bob", "PX", 1000, "REENTRANT"),
        ("LOCK.ACQUIRE", "lock", "ann", "PX", 1000),
        ("LOCK.EXTEND", "lock", "ann", "PX", 1000),
        ("LOCK.EXTEND", "lock", "bob", "PX", 1000),
        ("LOCK.EXTEND", "lock", "ann", "PX", 6_000_000, "TOKEN", token + 1),
        ("LOCK.EXTEND", "no such lock", "ann", "PX", 1000),
        ("LOCK.RELEASE", "lock", "bob"),
        ("LOCK.RELEASE", "lock", "ann", "TOKEN", token + 1),
        ("LOCK.RELEASE", "no such lock", "ann"),
        ("LOCK.FORCE", "no such lock"),
        ("LOCK.VALIDATE", "lock", token),
        ("LOCK.VALIDATE", "lock", token + 1),
        ("LOCK.INFO", "lock"),
        ("LOCK.INFO", "no such lock"),
        ("LOCK.ACQUIRE", "string", "ann", "PX", 1000),
        ("LOCK.ACQUIRE", "new", "", "PX", 1000),
        ("LOCK.ACQUIRE", "new", "ann", "PX", 0),
    ]
    before = primary.info("replication")["master_repl_offset"]
    with ReplicationStream(primary) as stream:
        for call in calls:
            try:
                client.execute_command(*call)
            except redis.ResponseError:
                continue
        assert stream.read() == []
    # The stream itself may have moved the offset from 0.
    assert primary.info("replication")["master_repl_offset"] - before < 50
    assert client.execute_command("LOCK.VALIDATE", "lock", token) == 1


def test_the_reserve_is_renewed_now_and_then_and_not_for_every_grant(primary):
    """It is ten seconds ahead, and renewed at half of that."""
    client = primary.client()
    with ReplicationStream(primary) as stream:
        for number in range(200):
            acquire(client, f"lock:{number}")
        reserves = [command for command in stream.read() if command[:2] == [b"KEYWARD.APPLY", b"RESERVE"]]
        assert len(reserves) <= 2


def test_expiry_reaches_the_replica_as_a_removal(primary):
    client = primary.client()
    with ReplicationStream(primary) as stream:
        acquire(client, px=20)
        eventually(lambda: client.exists("lock") == 0)
        # All in one, for on a busy machine the lease may end before its grant is read.
        grant = ([b"RESERVE"], [b"LOCK"])
        removal = [command for command in without_transaction(stream.read()) if command[1:2] not in grant]
        assert [command[0].upper() in (b"DEL", b"UNLINK") for command in removal].count(True) == 1
        assert all(command[1:2] in ([b"lock"], [b"FORGET"]) for command in removal)


def test_a_delete_is_told_apart_from_an_eviction(primary):
    client = primary.client()
    with ReplicationStream(primary) as stream:
        token = acquire(client)
        stream.read()
        client.delete("lock")
        forget = [b"KEYWARD.APPLY", b"FORGET", b"lock", str(token).encode()]
        assert sorted(without_transaction(stream.read())) == [[b"DEL", b"lock"], forget]


def test_effects_of_a_script_and_of_a_transaction_arrive_together(primary):
    client = primary.client()
    with ReplicationStream(primary) as stream:
        client.eval("redis.call('LOCK.ACQUIRE', 'a', 'x', 'PX', 60000) redis.call('LOCK.RELEASE', 'a', 'x')", 0)
        pipeline = client.pipeline(transaction=True)
        acquire(pipeline, "b")
        acquire(pipeline, "b", "bob")
        pipeline.execute()
        first, second = [], []
        commands = stream.read()
        end = commands.index([b"EXEC"])
        first, second = commands[: end + 1], commands[end + 1 :]
        assert [command[1] for command in without_transaction(first)] == [b"LOCK", b"a"]
        # A single effect needs no transaction round it; which servers add one is theirs to say.
        assert [command[:4] for command in without_transaction(second)] == [[b"KEYWARD.APPLY", b"LOCK", b"b", b"ann"]]


def locks_of(client, keys):
    """What a client can see of locks, without what shrinks while one looks."""
    seen = {}
    for key in keys:
        told = fields(client.execute_command("LOCK.INFO", key))
        holders = [holder[:3] for holder in told[b"holders"]]
        seen[key] = (told[b"token"], holders, deadline(client, key), client.dump(key))
    return seen


def test_a_replica_has_the_same_locks(primary, make_server):
    replica = make_server()
    client = primary.client()
    keys = [f"lock:{number}" for number in range(10)]
    for key in keys[:5]:
        acquire(client, key)
    replica.replicate_from(primary).wait_until_synced()
    for key in keys[5:]:
        acquire(client, key, "ann", "REENTRANT")
        acquire(client, key, "ann", "REENTRANT", px=100_000)
    for key in keys[:2]:
        client.execute_command("LOCK.RELEASE", key, "ann")
    client.execute_command("LOCK.EXTEND", keys[2], "ann", "PX", 1_000_000)
    client.execute_command("LOCK.FORCE", keys[3])
    acquire(client, keys[3], "bob")
    client.execute_command("LOCK.RELEASE", keys[5], "ann")
    replica.wait_until_synced()
    assert locks_of(replica.client(), keys) == locks_of(client, keys)
    for name in ("lock_locks", "lock_limbo", "lock_bytes"):
        metric = f"keyward_{name}"
        assert replica.info("everything")[metric] == primary.info("everything")[metric]


def test_a_replica_answers_reads_and_refuses_the_rest(primary, make_server):
    replica = make_server()
    replica.replicate_from(primary).wait_until_synced()
    token = acquire(primary.client())
    replica.wait_until_synced()
    copy = replica.client()
    assert copy.execute_command("LOCK.VALIDATE", "lock", token) == 1
    assert copy.execute_command("LOCK.VALIDATE", "lock", token + 1) == 0
    assert fields(copy.execute_command("LOCK.INFO", "lock"))[b"token"] == token
    for call in (
        ("LOCK.ACQUIRE", "lock", "bob", "PX", 1000),
        ("LOCK.RELEASE", "lock", "ann"),
        ("LOCK.EXTEND", "lock", "ann", "PX", 1000),
        ("LOCK.FORCE", "lock"),
    ):
        with pytest.raises(redis.ReadOnlyError):
            copy.execute_command(*call)


def test_a_replica_says_by_its_clock_when_a_lease_is_over(primary, make_server):
    """As TTL does."""
    replica = make_server()
    replica.replicate_from(primary).wait_until_synced()
    # The first commands after a full sync may wait for the replica's next acknowledgement.
    acquire(primary.client(), "warm-up")
    replica.wait_until_synced()
    token = acquire(primary.client(), px=1000)
    replica.wait_until_synced()
    copy = replica.client()
    assert copy.execute_command("LOCK.VALIDATE", "lock", token) == 1
    eventually(lambda: copy.execute_command("LOCK.VALIDATE", "lock", token) == 0)
    assert fields(copy.execute_command("LOCK.INFO", "lock"))[b"holders"] == []


def test_the_aof_holds_effects_and_nothing_else(make_server):
    server = make_server(config=["appendonly yes"])
    client = server.client()
    token = acquire(client)
    for _ in range(100):
        acquire(client, owner="bob")
        client.execute_command("LOCK.VALIDATE", "lock", token)
    commands = without_transaction(aof_commands(server))
    assert [command[:3] for command in commands] == [
        [b"KEYWARD.APPLY", b"RESERVE", commands[0][2]],
        [b"KEYWARD.APPLY", b"LOCK", b"lock"],
    ]


HELD = {
    "lock": ("LOCK.ACQUIRE", "k", "ann", "PX", 600_000),
    "queue": ("WRITEBEHIND.SET", "k", "row", "v"),
}


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize(
    "overwrite",
    [
        ("SET", "k", "v"),
        ("SET", "k", "v", "PX", 600_000),
        ("SUNIONSTORE", "k", "set"),
        ("EVAL", "redis.call('SET', KEYS[1], 'v') return redis.call('SET', 'other', 1)", 1, "k"),
    ],
    ids=lambda words: f"{words[0]} of {len(words)} words",
)
def test_what_is_written_over_keeps_its_tags_on_a_replica_too(make_server, kind, overwrite):
    """While plain writes are heard of, FORGET comes before the write in the stream. It must not take the key."""
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    client = primary.client()
    client.sadd("set", 1)
    # They are, while a value that is there is being loaded anew.
    client.execute_command("CACHE.SET", "stale", "v", "EX", 600, "GRACE", 600)
    client.execute_command("CACHE.STALE", "stale")
    assert client.execute_command("CACHE.FETCH", "stale")[0] == b"REFRESH"
    client.execute_command(*HELD[kind])
    assert client.execute_command("CACHE.TAG", "k", "t", "u") == 2
    client.execute_command(*overwrite)
    replica.wait_until_synced()
    for server in (primary, replica):
        assert set(server.client().execute_command("CACHE.TAGS", "k")) == {b"t", b"u"}
        assert server.client().type("k") in (b"string", b"set")
    replica.promote()
    assert replica.client().execute_command("CACHE.INVALIDATETAG", "t") == 1
    info = replica.info("everything")
    assert info["keyward_lock_locks"] == info["keyward_lock_limbo"] == info["keyward_writebehind_queues"] == 0
