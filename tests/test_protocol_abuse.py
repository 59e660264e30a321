"""Clients that send garbage, vanish, never read, come in thousands; memory that is full under every policy; a server that
stalls. Others are served all the while, nothing is left behind, and who waits is answered once."""

import random
import resource
import socket
from contextlib import ExitStack

import pytest
from catalogue import EXAMPLES, assert_clear, make_world, see_world, typed
from raw_client import ErrorReply, RawClient, encode, fields
from servers import Server, eventually
from tag_view import fill_tag, metric

CROWD = 10_000
# With the connections of the test itself, and those that the server keeps for itself.
DESCRIPTORS = CROWD + 200


@pytest.fixture
def raw(server):
    with RawClient(server) as raw:
        yield raw


def is_well(server):
    """It answers, and the module has met nothing that it does not know."""
    with RawClient(server) as raw:
        assert raw.call("CACHE.SET", "well", "v") == "OK"
        assert raw.call("CACHE.GET", "well") == b"v"
        assert raw.call("DEL", "well") == 1
    assert metric(server, "caught_panics") == 0
    assert metric(server, "cache_ghosts") == 0


def unread(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


# Garbage


@pytest.mark.parametrize("seed", range(3))
def test_pipelines_of_garbage(server, raw, seed):
    """Bytes that are no protocol, and commands of the module with words and lengths that are wrong."""
    make_world(raw)
    before = see_world(raw)
    draw = random.Random(seed)
    for _ in range(150):
        name = draw.choice(sorted(EXAMPLES))
        data = bytearray(encode((*typed(name), *EXAMPLES[name].words())))
        kind = draw.randrange(4)
        if kind == 0:
            data = bytearray(draw.randbytes(draw.randrange(1, 400)))
        elif kind == 1:
            # The number of words.
            data[1:2] = draw.choice([b"-1", b"9999999999", b"0", b"x", b"1048577"])
        elif kind == 2:
            # The length of the name, so that what follows is out of step.
            at = data.index(b"$")
            data[at + 1 : at + 2] = draw.choice([b"-1", b"536870913", b"y", b""])
        else:
            # Words that are too few, said to be right.
            data = data[: draw.randrange(1, len(data))] + b"\r\n" + data
        with unread(server) as client:
            client.sendall(bytes(data) * draw.randrange(1, 20))
    # Some of it was commands in good order, behind what was not.
    eventually(lambda: server.info("clients")["connected_clients"] < 10)
    is_well(server)
    for command in EXAMPLES:
        assert raw.call(*typed(command), "x" * 20, "-", "+") is not None
    raw.call("FLUSHALL")
    make_world(raw)
    after = see_world(raw)
    assert after.keys() == before.keys()


@pytest.mark.parametrize("command", sorted(EXAMPLES))
def test_clients_that_vanish_in_mid_command(server, raw, command):
    """A command that has not arrived to its last byte has not been called."""
    make_world(raw)
    before = see_world(raw)
    data = encode((*typed(command), *EXAMPLES[command].words()))
    for end in {1, len(data) // 3, len(data) // 2, len(data) - 3, len(data) - 1}:
        with unread(server) as client:
            client.sendall(data[:end])
    eventually(lambda: server.info("clients")["connected_clients"] < 10)
    assert see_world(raw) == before


# Crowds


WAITS = {
    "CACHE.FETCH": ("key", "WAIT", 0),
    "LOCK.ACQUIRE": ("lock", "{n}", "PX", 600_000, "WAIT", 0),
    "RATELIMIT.CHECK": ("limiter", 1, "EX", 600, "WAIT", 0),
    "RATELIMIT.ENTER": ("slots", "{n}", "LIMIT", 1, "EX", 600, "WAIT", 0),
    "WRITEBEHIND.CLAIM": ("queue", "{n}", "BLOCK", 0),
    "CACHE.LOADS": ("loader", "BLOCK", 0),
}


def occupy(raw):
    """So that everybody else has to wait."""
    for words in (
        ("CACHE.FETCH", "key", "LEASE", 60_000),
        ("LOCK.ACQUIRE", "lock", "first", "PX", 600_000),
        ("RATELIMIT.CHECK", "limiter", 1, "EX", 600),
        ("RATELIMIT.ENTER", "slots", "first", "LIMIT", 1, "EX", 600),
    ):
        assert not isinstance(raw.call(*words), ErrorReply), words


GAUGES = (
    *("cache_waiters", "lock_waiters", "ratelimit_waiters", "writebehind_waiters", "cache_waiting_loaders"),
    *("lock_sessions", "ratelimit_sessions"),
)


def test_ten_thousand_waiting_clients_are_gone_at_once(make_server):
    """Half of them are killed by one command, half hang up in one go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"{DESCRIPTORS} open files are not allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    server = make_server(config=[f"maxclients {CROWD + 50}"])
    names = list(WAITS)
    with RawClient(server) as raw, ExitStack() as stack:
        # The server keeps some memory for connections it has had: a first crowd makes it so.
        occupy(raw)
        assert raw.call("ACL", "SETUSER", "crowd", "on", "nopass", "~*", "+@all") == "OK"
        for half in (0, 1):
            for number in range(half, CROWD, 2):
                name = names[number // 2 % len(names)]
                words = [str(word).replace("{n}", str(number)) for word in WAITS[name]]
                client = stack.enter_context(unread(server))
                who = encode(("AUTH", "crowd", "x")) if half else b""
                client.sendall(who + encode((name, *words)))
        eventually(lambda: server.info("clients")["blocked_clients"] == CROWD, timeout=60)
        assert sum(metric(server, name) for name in GAUGES) == CROWD
        assert raw.call("CLIENT", "KILL", "USER", "crowd") == CROWD // 2
        assert raw.call("PING") == "PONG"
        stack.close()
        eventually(lambda: server.info("clients")["blocked_clients"] == 0, timeout=60)
        assert {name: metric(server, name) for name in GAUGES} == dict.fromkeys(GAUGES, 0)
        assert raw.call("LOCK.RELEASE", "lock", "first") == 1
        assert raw.call("LOCK.ACQUIRE", "lock", "next", "PX", 1000) > 0, "nobody who is gone was granted it"
    is_well(server)


def test_maxclients_reached(make_server):
    """Those who wait are all the server takes: others are refused, and they are answered."""
    server = make_server(config=["maxclients 40"])
    with RawClient(server) as raw, ExitStack() as stack:
        occupy(raw)
        waiting = []
        for number in range(60):
            client = RawClient.__new__(RawClient)
            client._socket = stack.enter_context(unread(server))
            client._file = client._socket.makefile("rb")
            client.send("LOCK.ACQUIRE", "lock", f"owner:{number}", "PX", 600_000, "WAIT", 0)
            waiting.append(client)
        taken = eventually(lambda: (raw.call("PING"), number_waiting(raw))[1] >= 30 and number_waiting(raw))
        refused = 0
        for client in waiting[taken:]:
            try:
                refused += isinstance(client.read(), ErrorReply)
            except (ConnectionError, OSError):
                refused += 1
        assert refused == 60 - taken
        assert raw.call("DEL", "lock") == 1
        token = waiting[0].read()
        assert token > 0
        for number in range(taken - 1):
            assert raw.call("LOCK.RELEASE", "lock", f"owner:{number}") == 1
            granted = waiting[number + 1].read()
            assert granted > token
            token = granted
    is_well(server)


def number_waiting(raw):
    return len(fields(raw.call("LOCK.INFO", "lock"))[b"waiters"])


# Those who never read


def test_a_reader_that_never_reads(make_server):
    """Thousands of replies of TAGKEYS pile up for it; others are served, and the memory comes back."""
    server = make_server(config=["client-output-buffer-limit normal 0 0 0"])
    client = server.client()
    fill_tag(client, "t", 2000)
    before = server.info("memory")["used_memory"]
    with unread(server) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(encode(("CACHE.TAGKEYS", "t", "COUNT", 2000)) * 1000)
        eventually(lambda: server.info("memory")["mem_clients_normal"] > 10_000_000, timeout=60)
        assert client.execute_command("CACHE.INVALIDATETAG", "t") == 2000
        is_well(server)
    eventually(lambda: server.info("memory")["mem_clients_normal"] < 2_000_000)
    eventually(lambda: server.info("memory")["used_memory"] < before + 2_000_000)


def test_output_buffer_limits(make_server):
    """Who reads too slowly is thrown out, and what it held with its connection is given up."""
    server = make_server(config=["client-output-buffer-limit normal 1mb 0 0"])
    client = server.client()
    fill_tag(client, "t", 1000)
    for words in (("CACHE.TAGKEYS", "t", "COUNT", 1000), ("CACHE.MGET", *[f"k:{at}" for at in range(1000)])):
        with unread(server) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(encode(("LOCK.ACQUIRE", "lock", "slow", "EX", 600, "SESSION")))
            eventually(lambda: metric(server, "lock_sessions") == 1)
            slow.setblocking(False)
            data = encode(words) * 3000
            # It is thrown out while it still sends.
            eventually(lambda data=data, slow=slow: refuses(slow, data) or metric(server, "lock_sessions") == 0)
            eventually(lambda: metric(server, "lock_sessions") == 0)
    assert client.execute_command("LOCK.ACQUIRE", "lock", "next", "EX", 600) > 0
    assert client.execute_command("CACHE.TAGINFO", "t")[1] == 1000
    is_well(server)


def refuses(client, data):
    try:
        client.send(data)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


# Memory


POLICIES = (
    *("noeviction", "allkeys-lru", "allkeys-lfu", "allkeys-random"),
    *("volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Its replica is told of everything that is evicted and put back."""
    servers = [Server(tmp_path_factory.mktemp("small")).start() for _ in range(2)]
    servers[1].replicate_from(servers[0]).wait_until_synced()
    yield servers
    for server in reversed(servers):
        server.check()
        server.stop()


@pytest.mark.parametrize("policy", POLICIES)
def test_out_of_memory_under_every_policy(small, policy):
    """Every command is answered, either way, whatever was evicted before it; what holds comes back."""
    server, replica = small
    with RawClient(server) as raw:
        raw.call("CONFIG", "SET", "maxmemory-policy", policy)
        for command, example in EXAMPLES.items():
            raw.call("CONFIG", "SET", "maxmemory", 0)
            raw.call("FLUSHALL")
            make_world(raw)
            raw.call("CONFIG", "SET", "maxmemory", 1)
            reply = raw.call(*typed(command), *example.words())
            if example.deny_oom:
                assert_clear(reply)
                assert reply.startswith("OOM "), command
            elif isinstance(reply, ErrorReply):
                # What it is about was evicted.
                assert_clear(reply)
        raw.call("CONFIG", "SET", "maxmemory", 0)
        for limbo in ("lock_limbo", "writebehind_limbo"):
            eventually(lambda limbo=limbo: metric(server, limbo) == 0)
        replica.wait_until_synced()
        assert sorted(server.client().keys("*")) == sorted(replica.client().keys("*"))
    is_well(server)


# A server that stalls


def test_leases_that_end_while_the_server_sleeps(server, raw, protocol):
    """All end in the same turn, and each waiter gets what came free, once."""
    assert raw.call("WRITEBEHIND.SET", "queue", "row", "value") > 0
    with ExitStack() as stack:
        clients = {name: stack.enter_context(RawClient(server, protocol)) for name in WAITS}
        raw.call("CACHE.FETCH", "key", "LEASE", 100)
        raw.call("LOCK.ACQUIRE", "lock", "first", "PX", 100)
        raw.call("RATELIMIT.CHECK", "limiter", 1, "PX", 100)
        raw.call("RATELIMIT.ENTER", "slots", "first", "LIMIT", 1, "PX", 100)
        raw.call("WRITEBEHIND.CLAIM", "queue", "first", "LEASE", 100)
        for name, words in WAITS.items():
            words = list(words)
            if name == "RATELIMIT.CHECK":
                words[2:4] = "PX", 100
            if name == "CACHE.LOADS":
                words[-1] = 100
            clients[name].send(name, *words)
        eventually(lambda: server.info("clients")["blocked_clients"] == len(WAITS))
        assert raw.call("DEBUG", "SLEEP", 0.3) == "OK"
        replies = {name: client.read() for name, client in clients.items()}
        assert all(client.call("ECHO", "next") == b"next" for client in clients.values())
    assert replies["CACHE.FETCH"][0] == b"MISS"
    assert replies["LOCK.ACQUIRE"] > 0
    assert replies["RATELIMIT.CHECK"][0] == 1
    assert replies["RATELIMIT.ENTER"][0] == 1
    [[key, _, _, payload, attempts, _]] = replies["WRITEBEHIND.CLAIM"]
    assert (key, payload, attempts) == (b"row", b"value", 2)
    assert replies["CACHE.LOADS"] == []
    is_well(server)
