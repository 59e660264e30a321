"""LOCK.EXEC: a command under a fencing token, as the calling user and under the rules of scripts."""

import pytest
from locks import Waiters, is_error, make_evicting
from propagation import ReplicationStream
from raw_client import ErrorReply, RawClient
from servers import eventually

FENCED = "FENCED token is stale"


@pytest.fixture
def waiters(server, protocol):
    with Waiters(server, protocol) as waiters:
        yield waiters


@pytest.fixture
def token(waiters):
    return waiters.acquire("ann")


def run(waiters, token, *command, key="lock"):
    return waiters.call("LOCK.EXEC", key, token, *command)


# The token


def test_a_current_token_runs_the_command(waiters, token):
    assert run(waiters, token, "SET", "k", "v") == "OK"
    assert waiters.call("GET", "k") == b"v"


def test_any_other_token_runs_nothing(waiters, token):
    for stale in (token - 1, token + 1, 0, -1):
        assert run(waiters, stale, "SET", "k", "v") == FENCED
    assert run(waiters, token, "SET", "k", "v", key="no such lock") == FENCED
    assert waiters.call("EXISTS", "k") == 0


def test_a_holder_that_slept_past_its_lease_changes_nothing(waiters):
    token = waiters.acquire("ann", px=50)
    eventually(lambda: waiters.call("LOCK.VALIDATE", "lock", token) == 0)
    assert run(waiters, token, "SET", "k", "v") == FENCED
    newer = waiters.acquire("ann")
    assert run(waiters, token, "SET", "k", "v") == FENCED
    assert run(waiters, newer, "SET", "k", "v") == "OK"


@pytest.mark.parametrize(
    "end", [("LOCK.RELEASE", "lock", "ann"), ("LOCK.FORCE", "lock"), ("DEL", "lock"), ("FLUSHALL",)]
)
def test_a_token_ends_with_its_lock(waiters, token, end):
    waiters.call(*end)
    assert run(waiters, token, "SET", "k", "v") == FENCED


def test_each_reader_s_and_each_permit_s_token_is_current(waiters):
    tokens = [waiters.acquire(name, "SHARED") for name in ("ann", "bob")]
    assert [run(waiters, token, "INCR", "n") for token in tokens] == [1, 2]
    waiters.release("ann")
    assert run(waiters, tokens[0], "INCR", "n") == FENCED
    token = waiters.call("LOCK.MACQUIRE", 2, "a", "b", "cy", "PX", 60_000)
    assert [run(waiters, token, "INCR", "n", key=key) for key in "ab"] == [3, 4]


def test_an_evicted_lock_is_current(make_server):
    server = make_evicting(make_server)
    with RawClient(server) as raw:
        token = raw.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        *_, exists, reply = raw.pipeline(
            [
                ("CONFIG", "SET", "maxmemory", 1),
                ("SET", "big", "x"),
                ("CONFIG", "SET", "maxmemory", 0),
                ("EXISTS", "lock"),
                ("LOCK.EXEC", "lock", token, "SET", "k", "v"),
            ]
        )
        assert (exists, reply) == (0, "OK")


# The reply


def test_replies_of_every_kind_pass_through(waiters, token, protocol):
    commands = [
        ("ECHO", b"\x00\xff\r\n"),
        ("SET", "s", "1"),
        ("INCR", "s"),
        ("GET", "no such key"),
        ("RPUSH", "l", "a", "b"),
        ("LRANGE", "l", 0, -1),
        ("LRANGE", "no such key", 0, -1),
        ("HSET", "h", "f", "v"),
        ("HGETALL", "h"),
        ("SADD", "m", "x"),
        ("SMEMBERS", "m"),
        ("ZADD", "z", "1.5", "x"),
        ("EVALSHA", "no such script", 0),
        ("CACHE.SET", "c", "v", "PX", 60_000, "TAGS", 2, "t1", "t2"),
        ("CACHE.TAGS", "c"),
        ("CACHE.TTL", "no such key"),
        ("LOCK.VALIDATE", "lock", token),
    ]
    # RawClient knows no doubles, hence no ZSCORE: that one has a test below.
    for command in commands:
        reply = run(waiters, token, *command)
        if command[0] in ("LRANGE", "HGETALL", "SMEMBERS", "ECHO", "GET", "CACHE.TAGS", "CACHE.TTL", "LOCK.VALIDATE"):
            plain = waiters.call(*command)
            assert (reply, type(reply)) == (plain, type(plain)), command
    assert waiters.call("GET", "s") == b"2"
    assert isinstance(run(waiters, token, "HGETALL", "h"), list if protocol == 2 else dict)
    assert isinstance(run(waiters, token, "SMEMBERS", "m"), list if protocol == 2 else set)


def test_a_double_is_one_in_resp3(server):
    for protocol, kind in ((2, (str, bytes)), (3, float)):
        client = server.client(protocol)
        token = client.execute_command("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        client.zadd("z", {"x": 1.5})
        assert isinstance(client.execute_command("LOCK.EXEC", "lock", token, "ZSCORE", "z", "x"), kind)


def test_errors_of_the_command_pass_through(waiters, token):
    waiters.call("SET", "text", "value")
    for command, error in [
        (("INCR", "text"), "ERR value is not an integer or out of range"),
        (("LPUSH", "text", "x"), "WRONGTYPE "),
        (("GET",), "ERR wrong number of arguments for 'get' command"),
        (("NO.SUCH.COMMAND", "x"), "ERR unknown command"),
        (("LOCK.ACQUIRE", "text", "ann", "PX", 1), "WRONGTYPE "),
        (("CACHE.SET", "k"), "ERR wrong number of arguments for 'cache.set' command"),
        (("XADD", "text"), "ERR "),
    ]:
        reply = run(waiters, token, *command)
        assert is_error(reply, error), (command, reply)
        assert waiters.call("ECHO", "next") == b"next"


def test_bad_arguments(waiters, token):
    waiters.call("SET", "text", "value")
    assert run(waiters, "x", "PING") == "ERR value is not an integer or out of range"
    assert is_error(run(waiters, token, "PING", key="text"), "WRONGTYPE ")
    assert waiters.call("LOCK.EXEC", "lock", token) == "ERR wrong number of arguments for 'lock.exec' command"
    assert is_error(run(waiters, token, b"GE\x00T", "k"), "ERR ")
    assert is_error(run(waiters, token, b""), "ERR ")


# The rules of scripts


@pytest.mark.parametrize(
    "command",
    [
        ("MULTI",),
        ("EVAL", "return 1", 0),
        ("SUBSCRIBE", "channel"),
        ("MONITOR",),
        ("SHUTDOWN",),
        ("DEBUG", "SLEEP", 0),
        ("CLIENT", "KILL", "ID", 1),
        ("AUTH", "x", "y"),
        ("SAVE",),
        ("CONFIG", "SET", "maxmemory", 1),
        ("REPLICAOF", "127.0.0.1", 1),
        ("PSYNC", "?", -1),
        ("WATCH", "k"),
        ("HELLO", 3),
        ("RESET",),
    ],
    ids=lambda command: command[0],
)
def test_what_scripts_may_not_call_is_refused(server, waiters, token, command):
    reply = run(waiters, token, *command)
    assert isinstance(reply, ErrorReply), reply
    assert waiters.call("ECHO", "next") == b"next"
    assert server.alive()
    assert waiters.call("LOCK.VALIDATE", "lock", token) == 1


@pytest.mark.parametrize(
    "command",
    [
        ("BLPOP", "list", 0),
        ("BRPOPLPUSH", "list", "other", 0),
        ("BZPOPMIN", "set", 0),
        ("XREAD", "BLOCK", 0, "STREAMS", "stream", "$"),
        ("LOCK.ACQUIRE", "busy", "ann", "PX", 1000, "WAIT", 0),
        ("LOCK.MACQUIRE", 2, "busy", "free", "ann", "PX", 1000, "WAIT", 0),
        ("CACHE.FETCH", "loading", "WAIT", 0),
        ("WAIT", 1, 0),
    ],
    ids=lambda command: command[0],
)
def test_nothing_waits(waiters, token, command):
    """Redis 7.0 does not let scripts call some of these; the others answer as if there were no time to wait."""
    waiters.acquire("bob", key="busy")
    waiters.call("CACHE.FETCH", "loading", "LEASE", 60_000)
    reply = run(waiters, token, *command)
    assert reply in (None, 0, [b"BUSY", None, None]) or is_error(reply, "ERR "), reply
    assert waiters.call("ECHO", "next") == b"next"


def test_no_exec_within_exec(waiters, token):
    other = waiters.acquire("ann", key="other")
    nested = "ERR LOCK.EXEC cannot run within LOCK.EXEC"
    assert run(waiters, token, "LOCK.EXEC", "lock", token, "SET", "k", "v") == nested
    assert run(waiters, token, "lock.exec", "other", other, "SET", "k", "v") == nested
    assert waiters.call("EXISTS", "k") == 0
    assert run(waiters, token, "SET", "k", "v") == "OK", "and it is over then"


def test_select_is_its_own(waiters, token):
    assert run(waiters, token, "SELECT", 1) == "OK"
    waiters.call("SET", "k", "v")
    assert waiters.connect(db=1).call("EXISTS", "k") == 0


def test_full_memory_refuses_what_adds_data_and_nothing_else(make_server):
    server = make_server(config=["maxmemory-policy noeviction"])
    with Waiters(server) as waiters:
        token = waiters.acquire("ann")
        waiters.call("SET", "k", "v")
        waiters.call("CONFIG", "SET", "maxmemory", 1)
        assert is_error(run(waiters, token, "SET", "new", "v"), "OOM ")
        assert run(waiters, token, "GET", "k") == b"v"
        assert run(waiters, token, "DEL", "k") == 1
        assert run(waiters, token, "LOCK.RELEASE", "lock", "ann") == 1


def test_it_may_free_its_own_lock_and_those_who_wait_get_it(waiters, token):
    bob = waiters.wait("bob")
    assert run(waiters, token, "LOCK.RELEASE", "lock", "ann") == 1
    newer = bob.read()
    assert run(waiters, token, "SET", "k", "v") == FENCED
    cy = waiters.wait("cy")
    assert run(waiters, newer, "DEL", "lock") == 1
    assert cy.read() > newer


# In transactions, scripts and functions

FUNCTION = """#!lua name=exec
redis.register_function('set', function(keys, args) return redis.call('LOCK.EXEC', keys[1], args[1], 'SET', keys[2], 'f') end)
"""


def test_in_a_transaction(waiters, token):
    commands = [
        ("MULTI",),
        ("LOCK.EXEC", "lock", token, "SET", "k", "v"),
        ("LOCK.EXEC", "lock", token - 1, "SET", "k", "w"),
        ("LOCK.EXEC", "lock", token, "GET", "k"),
        ("LOCK.RELEASE", "lock", "ann"),
        ("LOCK.EXEC", "lock", token, "SET", "k", "w"),
        ("EXEC",),
    ]
    assert waiters.admin.pipeline(commands)[-1] == ["OK", FENCED, b"v", 1, FENCED]
    assert waiters.call("GET", "k") == b"v"


def test_in_a_script_and_a_function(waiters, token):
    script = "return redis.call('LOCK.EXEC', KEYS[1], ARGV[1], 'SET', KEYS[2], ARGV[2])"
    assert waiters.call("EVAL", script, 2, "lock", "k", token, "v") == "OK"
    assert waiters.call("EVAL", script, 2, "lock", "k", token - 1, "w").startswith(FENCED)
    assert waiters.call("GET", "k") == b"v"
    assert waiters.call("FUNCTION", "LOAD", "REPLACE", FUNCTION) == b"exec"
    assert waiters.call("FCALL", "set", 2, "lock", "k", token) == "OK"
    assert waiters.call("GET", "k") == b"f"
    waiters.call("FUNCTION", "DELETE", "exec")


# The calling user


@pytest.fixture
def alice(make_server, protocol):
    """(Waiters of a new server, a connection of a user with few rights, the token of `mine:lock`)"""
    server = make_server()
    with Waiters(server, protocol) as waiters:
        token = waiters.acquire("ann", key="mine:lock")
        rights = ["~mine:*", "%R~read:*", "+@all", "-incr", "-config"]
        waiters.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", *rights)
        client = waiters.connect()
        assert client.call("AUTH", "alice", "secret") == "OK"
        yield waiters, client, token


def denied(reply):
    return is_error(reply, "NOPERM ")


def test_the_user_s_rights_are_those_of_the_command(alice):
    waiters, client, token = alice
    waiters.call("SET", "read:k", "v")
    exec_ = ("LOCK.EXEC", "mine:lock", token)
    assert client.call(*exec_, "SET", "mine:k", "v") == "OK"
    assert client.call(*exec_, "GET", "read:k") == b"v"
    for command in (
        ("SET", "theirs:k", "v"),
        ("GET", "theirs:k"),
        ("SET", "read:k", "w"),
        ("MSET", "mine:k", "w", "theirs:k", "w"),
        ("INCR", "mine:n"),
        ("CACHE.SET", "theirs:k", "v"),
        ("CACHE.INVALIDATETAG", "theirs:t"),
        ("LOCK.ACQUIRE", "theirs:lock", "ann", "PX", 1000),
        ("RENAME", "mine:k", "theirs:k"),
    ):
        reply = client.call(*exec_, *command)
        assert denied(reply), (command, reply)
    assert waiters.call("EXISTS", "theirs:k", "mine:n", "theirs:lock") == 0
    assert waiters.call("MGET", "mine:k", "read:k") == [b"v", b"v"], "nothing was done"


def test_the_lock_itself_must_be_readable(alice):
    waiters, client, _ = alice
    theirs = waiters.acquire("ann", key="theirs:lock")
    readable = waiters.acquire("ann", key="read:lock")
    assert denied(client.call("LOCK.EXEC", "theirs:lock", theirs, "SET", "mine:k", "v"))
    assert client.call("LOCK.EXEC", "read:lock", readable, "SET", "mine:k", "v") == "OK"


def test_it_is_the_same_user_in_transactions_and_scripts(alice):
    waiters, client, token = alice
    exec_ = ("LOCK.EXEC", "mine:lock", token)
    replies = client.pipeline(
        [
            ("MULTI",),
            (*exec_, "SET", "theirs:k", "v"),
            (*exec_, "INCR", "mine:n"),
            (*exec_, "SET", "mine:k", "v"),
            ("EXEC",),
        ]
    )[-1]
    assert denied(replies[0])
    assert denied(replies[1])
    assert replies[2] == "OK"
    script = "return redis.call('LOCK.EXEC', KEYS[1], ARGV[1], 'SET', ARGV[2], 'v')"
    assert denied(client.call("EVAL", script, 1, "mine:lock", token, "theirs:k"))
    assert client.call("EVAL", script, 1, "mine:lock", token, "mine:other") == "OK"
    assert waiters.call("EXISTS", "theirs:k", "mine:n") == 0


# Replication


def test_replicated_is_what_the_command_replicates(make_server):
    server = make_server()
    with Waiters(server) as waiters, ReplicationStream(server) as stream:
        token = waiters.acquire("ann")
        waiters.call("SADD", "set", "x")
        stream.read()
        run(waiters, token, "SET", "k", "v")
        assert stream.read() == [[b"SET", b"k", b"v"]]
        run(waiters, token, "SPOP", "set")
        assert [command[:2] for command in stream.read()] in ([[b"DEL", b"set"]], [[b"SREM", b"set"]])
        run(waiters, token, "CACHE.SET", "c", "v", "PX", 60_000)
        assert [command[:3] for command in stream.read()] == [[b"CACHE.SET", b"c", b"v"]]
        waiters.admin.pipeline([("MULTI",), ("LOCK.EXEC", "lock", token, "INCR", "n"), ("INCR", "n"), ("EXEC",)])
        assert stream.read() == [[b"MULTI"], [b"INCR", b"n"], [b"INCR", b"n"], [b"EXEC"]]
        for command in (("GET", "k"), ("DEL", "no such key"), ("INCR", "k"), ("NO.SUCH.COMMAND",), ("MULTI",)):
            run(waiters, token, *command)
        run(waiters, token - 1, "SET", "k", "w")
        run(waiters, token, "LOCK.EXEC", "lock", token, "SET", "k", "w")
        run(waiters, "x", "SET", "k", "w")
        assert stream.read() == []


def test_the_aof_has_it(make_server):
    server = make_server(config=["appendonly yes"])
    with RawClient(server) as raw:
        token = raw.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        for _ in range(5):
            raw.call("LOCK.EXEC", "lock", token, "INCR", "n")
    server.kill9()
    server.start()
    with RawClient(server) as raw:
        assert raw.call("GET", "n") == b"5"
        assert raw.call("LOCK.EXEC", "lock", token, "INCR", "n") == 6


def test_a_replica_has_the_result_and_runs_none_itself(make_server):
    """It is flagged as a write, whatever the command is."""
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    with RawClient(primary) as raw, RawClient(replica) as copy:
        token = raw.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        assert raw.call("LOCK.EXEC", "lock", token, "SET", "k", "v") == "OK"
        replica.wait_until_synced()
        assert copy.call("GET", "k") == b"v"
        for command in (("SET", "k", "w"), ("GET", "k")):
            assert is_error(copy.call("LOCK.EXEC", "lock", token, *command), "READONLY ")
        assert copy.call("LOCK.VALIDATE", "lock", token) == 1


def test_it_waits_for_the_end_of_a_pause(server, waiters, token):
    waiters.call("CLIENT", "PAUSE", 100_000, "WRITE")
    client = waiters.connect()
    client.send("LOCK.EXEC", "lock", token, "SET", "k", "v")
    eventually(lambda: server.info("clients")["blocked_clients"] >= 1)
    assert waiters.call("EXISTS", "k") == 0
    waiters.call("CLIENT", "UNPAUSE")
    assert client.read() == "OK"
