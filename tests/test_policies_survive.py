"""Policies are saved and replicated; what they made of a write is decided once."""

import pytest
from policies import about, lives, match, policies, set_policy
from propagation import ReplicationStream, aof_commands
from servers import eventually
from tag_view import metric, picture

EVERYTHING = (
    *("PREFIX", "user:", "EX", "100", "JITTER", "10%", "GRACE", "5", "SLIDING", "NEGATIVE", "3", "BETA", "1.5"),
    *("AHEAD", "20%", "LOADER", "users", "PATTERN", "user:{id}", "ENFORCE", "reject"),
)


def fill(client):
    """Some of everything."""
    set_policy(client, "everything", *EVERYTHING)
    set_policy(client, b"odd\x00\xff\r\n", "PREFIX", b"\x00\xff", "PX", 77, "JITTER", 5)
    set_policy(client, "bare")
    set_policy(client, "all", "PREFIX", "")


def words(*items):
    return [item if isinstance(item, bytes) else str(item).encode() for item in items]


# The stream


def test_set_and_delete_are_propagated_as_they_came_and_only_changes_are(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        set_policy(client, "p", *EVERYTHING)
        assert stream.read() == [words("CACHE.POLICY", "SET", "p", *EVERYTHING)]
        set_policy(client, "p", *EVERYTHING)
        for command in (("GET", "p"), ("LIST",), ("MATCH", "user:1"), ("DEL", "none")):
            client.execute_command("CACHE.POLICY", *command)
        assert stream.read() == []
        client.execute_command("CACHE.POLICY", "DEL", "p")
        assert stream.read() == [words("CACHE.POLICY", "DEL", "p")]


def test_what_a_policy_made_of_a_write_is_propagated_in_absolute_terms(make_server):
    server = make_server()
    client = server.client()
    set_policy(client, "p", "PREFIX", "p:", "EX", 1000, "JITTER", "50%", "GRACE", 10, "NEGATIVE", 500)
    token = client.execute_command("CACHE.FETCH", "p:nil")[2]
    with ReplicationStream(server) as stream:
        for options in ((), ("PX", 5000), ("PXAT", 10**13), ("POLICY", "p"), ("TAGS", 1, "t", "VERSION", 9)):
            client.execute_command("CACHE.SET", "p:1", "v", *options)
            soft = client.execute_command("PEXPIRETIME", "p:1") - 10_000
            tail = options if "TAGS" in options else ()
            assert stream.read() == [words("CACHE.SET", "p:1", "v", "PXAT", soft, "GRACE", 10_000, *tail)]
        client.execute_command("CACHE.SET", "elsewhere", "v", "PXAT", 10**13)
        assert stream.read() == [words("CACHE.SET", "elsewhere", "v", "PXAT", 10**13)]
        client.execute_command("CACHE.FILLNIL", "p:nil", token)
        ((*effect, until),) = stream.read()
        assert effect == words("KEYWARD.APPLY", "NEGATIVE", "p:nil")
        assert int(until) > 0


def test_a_refused_write_propagates_nothing(make_server):
    server = make_server()
    client = server.client()
    set_policy(client, "p", "PREFIX", "", "PATTERN", "{a}:{b}", "ENFORCE", "reject")
    with ReplicationStream(server) as stream:
        with pytest.raises(Exception, match="does not match"):
            client.execute_command("CACHE.MSET", 2, "a:b", "v", "ab", "v")
        assert stream.read() == []
    assert client.dbsize() == 0


# Replicas


def test_a_replica_has_the_policies_and_asks_none(make_server):
    """One that is there before they are set, and one that comes after."""
    primary, first, second = make_server(), make_server(), make_server()
    first.replicate_from(primary).wait_until_synced()
    client = primary.client()
    fill(client)
    set_policy(client, "gone", "PREFIX", "gone:")
    client.execute_command("CACHE.POLICY", "DEL", "gone")
    set_policy(second.client(), "stranger", "PREFIX", "user:", "PATTERN", "never", "ENFORCE", "reject")
    second.replicate_from(primary)
    client.execute_command("CACHE.SET", "user:1", "v")
    client.execute_command("CACHE.SET", b"\x00\xff1", "v", "PX", 1_000_000)
    client.execute_command("CACHE.SET", "free", "v")
    for replica in (first, second):
        replica.wait_until_synced()
        assert policies(replica.client()) == policies(client)
        assert match(replica.client(), "user:1") == b"everything"
        assert picture(replica) == picture(primary)
        assert metric(replica, "cache_policy_rejections") == 0
    first.promote()
    first.client().execute_command("CACHE.SET", "user:2", "v")
    assert lives(first.client(), "user:2")[1] > 100_000


def test_a_replica_has_room_for_what_its_primary_has(make_server):
    primary, replica = make_server(), make_server(args=["policies-max", "0"])
    replica.replicate_from(primary).wait_until_synced()
    fill(primary.client())
    replica.wait_until_synced()
    assert metric(replica, "cache_policies") == 4


def test_a_write_on_its_way_is_decided_by_the_primary_alone(make_server):
    """The replica has other policies than the primary had: what it receives is what it stores."""
    primary, replica = make_server(), make_server(config=["replica-read-only no"])
    replica.replicate_from(primary).wait_until_synced()
    set_policy(replica.client(), "own", "PREFIX", "", "EX", 5, "PATTERN", "never", "ENFORCE", "reject")
    client = primary.client()
    client.execute_command("CACHE.SET", "k", "v")
    client.execute_command("CACHE.SET", "l", "v", "PX", 1_000_000)
    replica.wait_until_synced()
    assert lives(replica.client(), "k") == (-1, -1)
    assert about(lives(replica.client(), "l")[1], 1_000_000)


# Restarts


def test_an_rdb_file_brings_them_back_and_nothing_else(make_server):
    server = make_server(config=["save 3600 1"])
    client = server.client()
    fill(client)
    client.execute_command("CACHE.SET", "user:1", "v")
    before, seen = policies(client), picture(server)
    server.restart()
    assert policies(server.client()) == before
    assert picture(server) == seen
    client = server.client()
    set_policy(client, "late", "PREFIX", "late:")
    client.execute_command("DEBUG", "RELOAD", "NOSAVE")
    assert policies(client) == before
    assert match(client, "late:1") == b"all"


def test_the_last_policy_that_goes_is_gone_after_a_restart(make_server):
    server = make_server(config=["save 3600 1"])
    set_policy(server.client(), "p", "PREFIX", "a:")
    server.restart()
    assert server.client().execute_command("CACHE.POLICY", "DEL", "p") == 1
    server.restart()
    assert policies(server.client()) == {}


def test_without_metadata_they_are_not_saved(make_server):
    server = make_server(args=["save-metadata", "no"], config=["save 3600 1"])
    set_policy(server.client(), "p", "PREFIX", "a:")
    server.restart()
    assert policies(server.client()) == {}


@pytest.mark.parametrize("rewritten", [False, True], ids=["commands", "preamble"])
def test_an_aof_brings_them_back(make_server, rewritten):
    server = make_server(config=["appendonly yes"])
    client = server.client()
    fill(client)
    client.execute_command("CACHE.SET", "user:1", "v")
    if rewritten:
        client.bgrewriteaof()
        eventually(lambda: not server.info("persistence")["aof_rewrite_in_progress"], timeout=30)
        eventually(lambda: not aof_commands(server), timeout=30)
    else:
        assert words("CACHE.POLICY", "SET", "everything", *EVERYTHING) in aof_commands(server)
    set_policy(client, "after", "PREFIX", "after:", "EX", 5)
    client.execute_command("CACHE.POLICY", "DEL", "bare")
    before, seen = policies(client), picture(server)
    server.kill9()
    server.start()
    assert policies(server.client()) == before
    assert picture(server) == seen


def test_a_load_is_not_judged_by_the_cap_or_by_patterns(make_server):
    server = make_server(config=["appendonly yes"], args=["policies-max", "9"])
    client = server.client()
    client.execute_command("CACHE.SET", "misnamed", "v")
    fill(client)
    set_policy(client, "strict", "PREFIX", "m", "PATTERN", "never", "ENFORCE", "reject")
    server.args = ["policies-max", "0"]
    server.restart()
    assert metric(server, "cache_policies") == 5
    assert server.client().get("misnamed") == b"v"
