"""Cluster clients: what a node tells them about where keys are, and that they come to the right node with every command."""

import json
import subprocess
from pathlib import Path

import pytest
from catalogue import EXAMPLES, Key, typed
from raw_client import RawClient
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import ResponseError
from servers import REPOSITORY, default_flavour
from test_cluster_fanout import TAG, fill

# Everything that names keys.
KEYED = [name for name, example in EXAMPLES.items() if example.key_names()]
SEVERAL = [name for name in KEYED if len(EXAMPLES[name].key_names()) > 1]
CLIENT = REPOSITORY / "examples" / "cache_aside"


def call(command, rename):
    """The words of a call that names these keys instead of those of the catalogue."""
    keys = iter(range(100))
    parts = EXAMPLES[command].parts
    return [*typed(command), *(rename(next(keys), part.word) if isinstance(part, Key) else part.word for part in parts)]


def in_slot(tag):
    return lambda _, word: f"{{{tag}}}{word}"


def text(reply):
    return reply if isinstance(reply, str) else ""


# What a node says


def test_a_node_sends_every_keyed_command_to_the_node_that_has_the_slot(cluster):
    (tag,) = cluster.keys(1)
    owner = cluster.primaries[1]
    expected = f"MOVED {key_slot(tag.encode())} 127.0.0.1:{owner.port}"
    with RawClient(cluster.primaries[0]) as stranger, RawClient(owner) as raw:
        for command in KEYED:
            words = call(command, in_slot(tag))
            assert stranger.call(*words) == expected, command
            assert not text(raw.call(*words)).startswith(("MOVED", "CROSSSLOT", "CLUSTERDOWN")), command
            # What clients ask when they do not know the command.
            keys = EXAMPLES[command].key_names()
            assert raw.call("COMMAND", "GETKEYS", *words) == [f"{{{tag}}}{key}".encode() for key in keys], command
        assert stranger.call("DBSIZE") == 0


def test_keys_of_two_slots_are_refused_everywhere(cluster):
    (here,), (there,) = cluster.keys(0), cluster.keys(1)
    also_here = cluster.keys(0, 5)[4]
    assert key_slot(here.encode()) != key_slot(also_here.encode())
    with RawClient(cluster.primaries[0]) as raw:
        for command in SEVERAL:
            for other in (there, also_here):
                words = call(command, lambda position, word, other=other: f"{{{other if position else here}}}{word}")
                assert text(raw.call(*words)).startswith("CROSSSLOT "), (command, other)
        assert raw.call("DBSIZE") == 0


def test_while_a_slot_moves_its_new_node_is_asked_for_keys_that_are_not_here(cluster):
    (tag,) = cluster.keys(0)
    slot = key_slot(tag.encode())
    source, target = cluster.primaries[:2]
    with RawClient(source) as here, RawClient(target) as there:
        assert there.call("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id(source)) == "OK"
        assert here.call("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id(target)) == "OK"
        try:
            for command in KEYED:
                words = call(command, in_slot(tag))
                assert here.call(*words) == f"ASK {slot} 127.0.0.1:{target.port}", command
                assert there.call(*words) == f"MOVED {slot} 127.0.0.1:{source.port}", command
                # With ASKING, several keys that are not all there are to be tried again.
                _, reply = there.pipeline([("ASKING",), words])
                assert not text(reply).startswith(("MOVED", "ASK ", "CROSSSLOT")), command
            assert here.call("DBSIZE") == 0
        finally:
            for raw in (here, there):
                raw.call("CLUSTER", "SETSLOT", slot, "STABLE")
            there.call("FLUSHALL")


# redis-py


@pytest.fixture
def redis_py(cluster, protocol):
    client = RedisCluster(host="127.0.0.1", port=cluster.primaries[0].port, protocol=protocol)
    yield client
    client.close()


def test_redis_py_brings_every_keyed_command_to_its_node(cluster, redis_py):
    """The first node is asked what the keys of a command are; then it goes where they are."""
    for part in range(3):
        (tag,) = cluster.keys(part)
        with RawClient(cluster.primaries[part]) as raw:
            for command in KEYED:
                before = calls(raw, command)
                error = refusal(redis_py, *call(command, in_slot(tag)))
                assert not error.startswith(("MOVED", "ASK", "CROSSSLOT")), (command, error)
                assert calls(raw, command) == before + 1, command


def refusal(client, *words):
    """The error that a command is answered with: the key has not been prepared for it."""
    try:
        client.execute_command(*words)
    except ResponseError as error:
        return str(error)
    return ""


def calls(raw, command):
    stats = raw.call("INFO", "commandstats").decode().lower()
    line = next((line for line in stats.splitlines() if line.startswith(f"cmdstat_{command.lower()}:")), "")
    counts = dict(part.split("=") for part in line.partition(":")[2].split(",") if part)
    return int(counts.get("calls", 0)) + int(counts.get("rejected_calls", 0))


def test_redis_py_reaches_all_shards_when_it_is_told_the_nodes(cluster, redis_py):
    """It does not follow the tips of commands that it does not know, and must be told (docs/clustering.md)."""
    fill(cluster)
    replies = redis_py.execute_command("CACHE.INVALIDATETAG", TAG, target_nodes=redis_py.get_primaries())
    assert sorted(replies.values()) == [2, 2, 2]
    fill(cluster)
    redis_py.command_flags["CACHE.INVALIDATETAG"] = RedisCluster.PRIMARIES
    redis_py.result_callbacks["CACHE.INVALIDATETAG"] = lambda _command, replies: sum(replies.values())
    assert redis_py.execute_command("CACHE.INVALIDATETAG", TAG) == 6
    fill(cluster)
    one = redis_py.get_primaries()[0]
    assert redis_py.execute_command("CACHE.CLUSTER", "INVALIDATETAG", TAG, target_nodes=one) == 6
    fill(cluster)
    redis_py.command_flags["CACHE.CLUSTER INVALIDATETAG"] = RedisCluster.DEFAULT_NODE
    assert redis_py.execute_command("CACHE.CLUSTER", "INVALIDATETAG", TAG) == 6


# Other clients. They are the same whatever the server, which says to each what the tests above look at.
only_here = pytest.mark.skipif(default_flavour() != "redis-7.0", reason="tests a client, not the server")


@only_here
def test_redis_cli_follows_the_redirections_of_every_keyed_command(cluster):
    (tag,) = cluster.keys(2)
    lines = [" ".join(quoted(word) for word in call(command, in_slot(tag))) for command in KEYED]
    command = ["redis-cli", "-c", "-p", str(cluster.primaries[0].port)]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=60, check=True)
    for refusal in ("MOVED", "ASK ", "CROSSSLOT", "CLUSTERDOWN"):
        assert refusal not in done.stdout + done.stderr
    with RawClient(cluster.primaries[2]) as raw:
        assert all(calls(raw, command) for command in KEYED)


@only_here
def test_redis_cli_asks_every_primary(cluster):
    fill(cluster)
    node = f"127.0.0.1:{cluster.primaries[0].port}"
    words = ["redis-cli", "--cluster-only-masters", "--cluster", "call", node, "CACHE.INVALIDATETAG", TAG]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert sorted(line.rsplit(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("127.")) == ["2"] * 3


def quoted(word):
    data = word if isinstance(word, bytes) else str(word).encode()
    return '"' + "".join(f"\\x{byte:02x}" for byte in data) + '"'


@only_here
def test_node_redis_follows_them_and_asks_every_primary(cluster, node_modules):
    node_modules(CLIENT)
    fill(cluster)
    (tag,) = cluster.keys(1)
    commands = [(f"{{{tag}}}", [str(word) for word in call(command, in_slot(tag))]) for command in KEYED]
    commands.append((None, ["CACHE.CLUSTER", "INVALIDATETAG", TAG]))
    request = {"port": cluster.primaries[0].port, "commands": commands}
    *replies, everywhere = run_node(request)
    assert everywhere == 6
    for reply in replies:
        error = reply["error"] if isinstance(reply, dict) else ""
        assert not error.startswith(("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN")), error
    fill(cluster)
    assert run_node({**request, "commands": [], "everywhere": ["CACHE.INVALIDATETAG", TAG]}) == [6]


def run_node(request):
    driver = Path(__file__).with_name("cluster_driver.mjs")
    done = subprocess.run(
        ["node", driver, CLIENT / "package.json"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)
