"""The harness itself, on servers without the module: what the other tests lean on."""

import os
import signal

import pytest
import redis
from propagation import ReplicationStream, aof_commands, parse_commands
from servers import FLAVOURS, ServerFailed, eventually, server_version


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_is_the_version_it_says(flavour):
    if flavour == "redis-7.0":
        # Whatever the machine has on PATH, as long as it is a supported one.
        assert server_version(flavour) >= (7, 0)
    else:
        named = tuple(map(int, flavour.partition("-")[2].split(".")))
        assert server_version(flavour)[:2] == named


def test_clients_speak_the_protocol_asked_for(make_server, protocol):
    client = make_server(module=False).client(protocol)
    client.hset("h", "field", "value")
    reply = client.execute_command("HGETALL", "h")
    assert client.execute_command("CLIENT", "INFO")
    assert reply == {b"field": b"value"}
    assert client.connection_pool.get_connection().protocol == protocol


def test_restart_keeps_folder_port_and_saved_data(make_server):
    server = make_server(module=False, config=["save 3600 1"])
    port, client = server.port, server.client(decode=True)
    client.set("k", "v")
    server.restart()
    assert server.port == port
    assert client.get("k") == "v"


def test_kill9_loses_what_was_not_saved(make_server):
    server = make_server(module=False)
    client = server.client()
    client.set("k", "v")
    server.kill9()
    assert not server.alive()
    server.start()
    assert client.get("k") is None


def test_aof_survives_kill9(make_server):
    server = make_server(module=False, config=["appendonly yes"])
    server.client().set("k", "v")
    server.kill9()
    assert server.start().client().get("k") == b"v"


def test_a_bad_configuration_is_reported_with_the_log(make_server):
    with pytest.raises(ServerFailed, match="no-such-setting"):
        make_server(module=False, config=["no-such-setting 1"])


def test_a_crash_is_noticed(make_server):
    server = make_server(module=False)
    os.kill(server.pid, signal.SIGSEGV)
    eventually(lambda: not server.alive())
    with pytest.raises(ServerFailed, match="BUG REPORT|crashed by signal"):
        server.check()


def test_a_death_without_a_word_is_noticed(make_server):
    server = make_server(module=False)
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.alive())
    with pytest.raises(ServerFailed, match="died with status -9"):
        server.check()


def test_a_replica_catches_up_and_can_be_promoted(make_server):
    primary, replica = make_server(module=False), make_server(module=False)
    replica.replicate_from(primary)
    primary.client().set("k", "v")
    replica.wait_until_synced()
    assert replica.client().get("k") == b"v"
    with pytest.raises(redis.ReadOnlyError):
        replica.client().set("k", "w")
    replica.promote()
    assert replica.client().set("k", "w")


def test_stream_shows_exactly_what_is_propagated(make_server):
    server = make_server(module=False)
    client = server.client()
    client.set("before", "the stream")
    with ReplicationStream(server) as stream:
        assert stream.read() == []
        client.set("k", b"\r\n*1\r\n\x00\xff")
        client.get("k")
        client.delete("nothing")
        assert stream.read() == [[b"SET", b"k", b"\r\n*1\r\n\x00\xff"]]
        assert stream.read() == []
        client.pipeline(transaction=True).rpush("l", 1).rpush("l", 2).execute()
        assert stream.read() == [[b"MULTI"], [b"RPUSH", b"l", b"1"], [b"RPUSH", b"l", b"2"], [b"EXEC"]]


def test_stream_names_the_database(make_server):
    server = make_server(module=False)
    with ReplicationStream(server) as stream:
        server.client(db=3).set("k", "v")
        server.client(db=0).set("k", "v")
        command = [b"SET", b"k", b"v"]
        assert stream.read_with_db() == [(3, command), (0, command)]


def test_stream_reads_large_bursts_whole(make_server):
    server = make_server(module=False)
    with ReplicationStream(server) as stream:
        pipeline = server.client().pipeline(transaction=False)
        for number in range(2000):
            pipeline.set(f"k{number}", "x" * 500)
        pipeline.execute()
        assert [command[1] for command in stream.read()] == [b"k%d" % n for n in range(2000)]


def test_aof_commands_are_those_since_the_last_rewrite(make_server):
    server = make_server(module=False, config=["appendonly yes", "aof-use-rdb-preamble no"])
    client = server.client()
    client.set("old", "1")
    client.bgrewriteaof()
    eventually(lambda: not server.info("persistence")["aof_rewrite_in_progress"])
    assert aof_commands(server) == []
    client.set("new", "2")
    assert aof_commands(server) == [[b"SET", b"new", b"2"]]
    assert aof_commands(server, base=True) == [[b"SET", b"old", b"1"]]


def test_parser_leaves_half_a_command():
    whole = b"#TS:1700000000\r\n*1\r\n$4\r\nPING\r\n"
    half = b"*2\r\n$3\r\nGET\r\n$1\r\nk"
    assert parse_commands(whole + half) == ([[b"PING"]], len(whole))
    assert parse_commands(half + b"\r\n") == ([[b"GET", b"k"]], len(half) + 2)


def test_eventually_raises_the_last_failed_assertion():
    def never():
        assert 1 == 2, "still one"

    with pytest.raises(AssertionError, match="still one"):
        eventually(never, timeout=0.01)
