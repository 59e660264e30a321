"""docs/upgrading.md: data of one server on another, and what is done with data of a version to come."""

import re

import pytest
import redis
from propagation import aof_commands
from raw_client import RawClient
from servers import FLAVOURS, REPOSITORY, Server, ServerFailed, default_flavour, eventually
from test_bad_dumps import module_id
from upgrades import Primary, everything, fill_everything, saved

PAGE = (REPOSITORY / "docs" / "upgrading.md").read_text()
# As in the head of the table on the page.
if default_flavour() not in FLAVOURS:
    pytest.skip("the table is of the servers on which all is tested", allow_module_level=True)

NAMES = {"redis-7.0": "Redis 7.0", "redis-8.2": "Redis 8.2", "valkey-8.1": "Valkey 8.1", "valkey-9.1": "Valkey 9.1"}
UNCHECKED = "rdbchecksum no"


def table():
    """From the page: the file of a server -> the servers that load it."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE)
    ]
    head, _, *body = rows[next(i for i, row in enumerate(rows) if row[0] == "a file of") :]
    loads = {}
    for first, *cells in body[: len(NAMES)]:
        loads[first] = {name for name, cell in zip(head[1:], cells, strict=True) if cell == "yes"}
    return loads


def test_the_table_is_about_the_servers_of_the_matrix():
    assert set(table()) == set(NAMES.values())
    assert set(NAMES) | {"redis-6.2"} == set(FLAVOURS)


@pytest.mark.parametrize("source", NAMES)
def test_a_file_with_everything_in_it_loads_where_the_page_says_so(make_server, tmp_path, source):
    target = Server(tmp_path / "target")
    target.folder.mkdir()
    origin = make_server(flavour=source)
    with RawClient(origin) as raw:
        fill_everything(raw)
        before = everything(raw)
        token = raw.call("LOCK.ACQUIRE", "another", "ann", "EX", 5000)
    (target.folder / "dump.rdb").write_bytes(saved(origin))
    try:
        if NAMES[default_flavour()] not in table()[NAMES[source]]:
            with pytest.raises(ServerFailed, match="RDB format version|rong signature"):
                target.start()
            return
        target.start()
        with RawClient(target) as raw:
            assert everything(raw) == before
            eventually(lambda: raw.call("EXISTS", "written") == 0, message="a write under way has an unknown end")
            assert raw.call("CACHE.SET", "floored", "late", "VERSION", 8) is None
            assert raw.call("CACHE.INVALIDATETAG", "tag:4") == 1
            assert raw.call("LOCK.ACQUIRE", "next", "ann", "EX", 5000) > token
        target.check()
    finally:
        target.kill9()


@pytest.mark.parametrize("source", [name for name in NAMES if NAMES[default_flavour()] in table()[NAMES[name]]])
def test_a_server_that_loads_the_file_can_follow_and_take_over(make_server, source):
    primary, replica = make_server(flavour=source), make_server()
    with RawClient(primary) as raw, RawClient(replica) as raw_replica:
        fill_everything(raw)
        replica.replicate_from(primary).wait_until_synced()
        assert raw.call("CACHE.SETTAGGED", "later", "value", "EX", 5000, "TAGS", 1, "tag:6") == "OK"
        token = raw.call("LOCK.ACQUIRE", "another", "ann", "EX", 5000)
        replica.wait_until_synced()
        assert everything(raw_replica) == everything(raw)
        assert raw.call("FAILOVER", "TO", "127.0.0.1", replica.port) == "OK"
        eventually(lambda: raw_replica.call("ROLE")[0] == b"master")
        assert raw_replica.call("CACHE.INVALIDATETAG", "tag:6") == 1
        assert raw_replica.call("LOCK.ACQUIRE", "next", "ann", "EX", 5000) > token
    # It follows the newer one now, and is stopped first.
    primary.primary, replica.primary = replica, None


@pytest.mark.skipif(default_flavour() == "redis-7.0", reason="there is no older server")
def test_an_older_server_cannot_follow_a_newer_primary(make_server):
    assert NAMES["redis-7.0"] not in table()[NAMES[default_flavour()]]
    primary, replica = make_server(), make_server(flavour="redis-7.0")
    replica.client().replicaof("127.0.0.1", primary.port)
    eventually(lambda: re.search("RDB format version|Failed trying to load the MASTER synch", replica.log()), 30)
    assert replica.info("replication")["master_link_status"] == "down"
    replica.client().replicaof("NO", "ONE")


# Data of a version of Keyward to come


def with_a_rule(make_server):
    """The file of a server with tags and a rule, without a checksum, so that it can be changed."""
    server = make_server(config=[UNCHECKED])
    with RawClient(server) as raw:
        assert raw.call("CACHE.SETTAGGED", "k", "v", "EX", 5000, "TAGS", 1, "t") == "OK"
        assert raw.call("CACHE.RULE", "SET", "event", "TAGS", 1, "t") == "OK"
    file = saved(server)
    server.kill9()
    return server, file


def replaced(server, file, old, new):
    assert file.count(old) == 1
    (server.folder / "dump.rdb").write_bytes(file.replace(old, new))


def test_metadata_of_an_unknown_kind_is_left_out_and_the_rest_is_there(make_server):
    server, file = with_a_rule(make_server)
    # An integer, the kind of rules, and a string.
    replaced(server, file, b"\x02\x08\x05", b"\x02\x3f\x05")
    server.start()
    with RawClient(server) as raw:
        assert raw.call("CACHE.RULE", "LIST") == []
        assert raw.call("CACHE.TAGS", "k") == [b"t"]


def test_metadata_in_another_encoding_is_refused(make_server):
    server, file = with_a_rule(make_server)
    replaced(server, file, module_id("kw-meta-1", 0), module_id("kw-meta-1", 1))
    with pytest.raises(ServerFailed, match="kw-meta-1"):
        server.start()


def test_a_value_in_another_encoding_is_refused_and_named(make_server):
    server = make_server(config=[UNCHECKED])
    server.client().execute_command("LOCK.ACQUIRE", "lock", "ann", "EX", 5000)
    file = saved(server)
    server.kill9()
    replaced(server, file, module_id("kw-lock-1", 0), module_id("kw-lock-1", 1))
    with pytest.raises(ServerFailed, match="keyward: a value was written by a newer version"):
        server.start()


NEWER = [
    ("SELECT", 0),
    ("CACHE.SET", "before", "v", "TAGS", 1, "t"),
    ("KEYWARD.APPLY", "SOMETHINGNEW", "k"),
    ("CACHE.SOMETHINGNEW", "k"),
    ("CACHE.SET", "k", "v", "SOMETHINGNEW", 1),
    ("CACHE.SET", "after", "v", "TAGS", 1, "t"),
]


def test_a_replica_leaves_out_effects_that_it_does_not_know_and_says_so(make_server):
    origin, replica = make_server(), make_server()
    with Primary(saved(origin), NEWER) as primary:
        replica.client().replicaof("127.0.0.1", primary.port)
        eventually(lambda: replica.client().exists("after"), 30)
        with RawClient(replica) as raw:
            assert set(raw.call("CACHE.TAGKEYS", "t")[1]) == {b"before", b"after"}
            assert raw.call("EXISTS", "k") == 0
        assert "after processing the command 'keyward.apply'" in replica.log()
        replica.client().replicaof("NO", "ONE")


def test_an_aof_with_effects_that_are_not_known(make_server):
    """One that Keyward does not know is left out; a command that the server does not know stops it."""
    server = make_server(config=["appendonly yes"])
    client = server.client()
    client.execute_command("CACHE.SET", "before", "v", "TAGS", 1, "t")
    assert aof_commands(server)
    server.kill9()
    (file,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    with file.open("ab") as aof:
        aof.write(b"*3\r\n$13\r\nKEYWARD.APPLY\r\n$12\r\nSOMETHINGNEW\r\n$1\r\nk\r\n")
    server.start()
    assert server.client().execute_command("CACHE.TAGS", "before") == [b"t"]
    server.kill9()
    with file.open("ab") as aof:
        aof.write(b"*2\r\n$18\r\nCACHE.SOMETHINGNEW\r\n$1\r\nk\r\n")
    with pytest.raises(ServerFailed, match="(?i)unknown command"):
        server.start()


def test_the_module_cannot_be_unloaded(server):
    with pytest.raises(redis.ResponseError, match="exports one or more module-side data types"):
        server.client().execute_command("MODULE", "UNLOAD", "keyward")
