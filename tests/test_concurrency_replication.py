"""What RATELIMIT.ENTER and LEAVE propagate, and that slots are the same wherever they arrive."""

import pytest
from propagation import ReplicationStream, aof_commands
from raw_client import RawClient
from servers import eventually
from slots import LONG, Callers, enter, held, info, leave

APPLY = b"KEYWARD.APPLY"


def without_transaction(commands):
    return [command for command in commands if command[0] not in (b"MULTI", b"EXEC")]


def fill(client, key="slots"):
    for number in range(100):
        enter(client, number, 1000, "EX", 600 + number * 7 % 100, key=key)
    enter(client, b"\x00\xff", 1000, key=key)
    leave(client, *range(0, 100, 3), key=key)
    return key


def seen(client, key="slots"):
    """All that a client can see, but for times that shrink while one looks."""
    told = info(client, key)
    names = [slot[0] for slot in told[b"slots"]]
    return told[b"in_use"], names, client.execute_command("PEXPIRETIME", key), client.dump(key)


def digest(server):
    return server.client().execute_command("DEBUG", "DIGEST")


# The stream


def test_an_enter_is_one_effect_with_absolute_times(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        before = client.time()
        enter(client, b"\x00\xff", 1, "PX", 60_000, key=b"k\xff")
        after = client.time()
        (effect,) = stream.read()
        assert effect[:4] == [APPLY, b"ENTER", b"k\xff", b"\x00\xff"]
        deadline, moment = map(int, effect[4:])
        assert before[0] * 1000 + before[1] // 1000 <= moment <= after[0] * 1000 + after[1] // 1000
        assert deadline == moment + 60_000
        enter(client, b"\x00\xff", 1, "PX", 50_000, key=b"k\xff")
        (renewal,) = stream.read()
        assert renewal[:4] == effect[:4]
        leave(client, "none", b"\x00\xff", key=b"k\xff")
        assert stream.read() == [[b"RATELIMIT.LEAVE", b"k\xff", b"none", b"\x00\xff"]]


def test_what_changes_nothing_propagates_nothing(make_server):
    server = make_server(config=["appendonly yes"])
    client = server.client()
    enter(client, "a", 2)
    enter(client, "over", 2, "PX", 20)
    eventually(lambda: held(client) == [b"a"])
    dump = client.dump("slots")
    with ReplicationStream(server) as stream:
        for _ in range(1000):
            assert enter(client, "b", 1)[0] == 0
        client.execute_command("RATELIMIT.INFO", "slots")
        assert leave(client, "none", "over") == 0
        assert leave(client, "a", key="none") == 0
        assert enter(client, "b", 1, *LONG, "WAIT", 10)[0] == 0
        assert stream.read() == []
    assert client.dump("slots") == dump
    assert len(aof_commands(server)) == 2


def test_who_leaves_and_who_gets_the_slot_are_one_transaction(make_server):
    server = make_server()
    with Callers(server) as callers, ReplicationStream(server) as stream:
        callers.enter("a", 1)
        waiter = callers.wait("b", 1)
        stream.read()
        callers.leave("a")
        assert waiter.read() == [1, 1, 1, 0]
        begin, left, entered, end = stream.read()
        assert (begin, end) == ([b"MULTI"], [b"EXEC"])
        assert left == [b"RATELIMIT.LEAVE", b"slots", b"a"]
        assert entered[:4] == [APPLY, b"ENTER", b"slots", b"b"]


def test_a_closed_connection_leaves_by_an_effect(make_server):
    server = make_server()
    with Callers(server) as callers, ReplicationStream(server) as stream:
        holder = callers.connect()
        for name in ("a", "b"):
            holder.call("RATELIMIT.ENTER", "slots", name, "LIMIT", 2, *LONG, "SESSION")
        waiter = callers.wait("c", 2)
        stream.read()
        holder.close()
        assert waiter.read()[0] == 1
        eventually(lambda: callers.metric("sessions") == 0)
        effects = without_transaction(stream.read())
        assert [effect[1:4] for effect in effects if effect[1] == b"LEFT"] == [
            [b"LEFT", b"slots", b"a"],
            [b"LEFT", b"slots", b"b"],
        ]
        assert [effect[3] for effect in effects if effect[1] == b"ENTER"] == [b"c"]


def test_effects_of_scripts_and_transactions(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        script = "for i = 1, 5 do redis.call('RATELIMIT.ENTER', KEYS[1], i, 'LIMIT', 3, 'EX', 600) end"
        client.eval(script, 1, "script")
        pipeline = client.pipeline(transaction=True)
        for number in range(5):
            enter(pipeline, number, 3, key="transaction")
        pipeline.execute()
        effects = without_transaction(stream.read())
        assert [effect[2] for effect in effects] == [b"script"] * 3 + [b"transaction"] * 3


# Replicas


def test_a_replica_has_the_same_slots(make_server):
    primary, replica = make_server(), make_server()
    client = primary.client()
    synced = fill(client)
    replica.replicate_from(primary).wait_until_synced()
    streamed = fill(client, "streamed")
    enter(client, "late", 1000)
    replica.wait_until_synced()
    copy = replica.client()
    for key in (synced, streamed):
        assert seen(copy, key) == seen(client, key)
    assert digest(replica) == digest(primary)
    with pytest.raises(Exception, match="read only replica"):
        enter(copy, "x", 1000)
    with pytest.raises(Exception, match="read only replica"):
        leave(copy, "late")
    replica.promote()
    in_use = info(copy)[b"in_use"]
    assert enter(copy, "x", 1000) == [1, in_use + 1, 1000, 0]
    assert enter(copy, "late", 1)[:2] == [1, in_use + 1]


def test_slots_that_end_are_dropped_alike(make_server):
    """Little by little, and by the primary's clock alone."""
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    client = primary.client()
    enter(client, "stays", 1000)
    pipeline = client.pipeline(transaction=False)
    for number in range(300):
        enter(pipeline, number, 1000, "PX", 40)
    pipeline.execute()
    eventually(lambda: info(client)[b"in_use"] == 1)
    assert held(client) == [b"stays"]
    size = len(client.dump("slots"))
    for number in range(300, 315):
        assert enter(client, number, 1000)[1] == 2 + number - 300
        replica.wait_until_synced()
        assert digest(replica) == digest(primary)
    assert leave(client, 310, 7, "stays") == 2
    replica.wait_until_synced()
    assert digest(replica) == digest(primary)
    assert len(client.dump("slots")) < size / 10
    assert replica.client().pexpiretime("slots") == client.pexpiretime("slots")


def test_slots_that_are_left_and_have_run_out_go_on_the_replica_too(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    client = primary.client()
    enter(client, "a", 2, "PX", 40)
    enter(client, "b", 2)
    eventually(lambda: held(client) == [b"b"])
    leave(client, "b")
    eventually(lambda: client.dbsize() == 0)
    replica.wait_until_synced()
    assert replica.client().dbsize() == 0


def test_a_promoted_replica_keeps_slots_to_the_end_of_their_lease(make_server):
    """Connections are the old primary's."""
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    with RawClient(primary) as holder:
        holder.call("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, *LONG, "SESSION")
        replica.wait_until_synced()
        replica.promote()
    copy = replica.client()
    assert enter(copy, "b", 1)[0] == 0
    assert replica.info("everything")["keyward_ratelimit_sessions"] == 0


def test_a_primary_that_becomes_a_replica_sends_its_waiters_away(make_server):
    primary, replica = make_server(), make_server()
    with Callers(primary) as callers:
        holder = callers.connect()
        holder.call("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, *LONG, "SESSION")
        waiter = callers.wait("b", 1)
        primary.replicate_from(replica)
        assert waiter.read().startswith("UNBLOCKED ")
        assert callers.waiting() == 0
        assert callers.metric("sessions") == 0
        primary.wait_until_synced()
        holder.close()
        primary.promote()
        assert callers.enter("c", 1) == [1, 1, 1, 0]


# Files


@pytest.mark.parametrize("way", ["rdb", "aof", "rewritten", "rewritten-no-preamble"])
def test_a_restarted_server_has_the_same_slots(make_server, way):
    config = ["save 3600 1"] if way == "rdb" else ["appendonly yes"]
    if way == "rewritten-no-preamble":
        config.append("aof-use-rdb-preamble no")
    server = make_server(config=config)
    client = server.client()
    fill(client)
    # Not one that closes before the server is killed.
    holder = RawClient(server)
    holder.call("RATELIMIT.ENTER", "slots", "with a connection", "LIMIT", 1000, *LONG, "SESSION")
    if way == "rdb":
        client.save()
    elif way.startswith("rewritten"):
        client.bgrewriteaof()
        eventually(lambda: not server.info("persistence")["aof_rewrite_in_progress"])
        enter(client, "after", 1000)
    before = seen(client)
    server.kill9()
    holder.close()
    server.start()
    client = server.client()
    assert seen(client) == before
    assert enter(client, "with a connection", 1000)[:2] == [1, before[0]]


def test_what_ended_while_the_server_was_down_is_over(make_server):
    server = make_server(config=["appendonly yes"])
    client = server.client()
    enter(client, "a", 2, "PX", 50)
    enter(client, "b", 2)
    server.kill9()
    server.start()
    client = server.client()
    eventually(lambda: held(client) == [b"b"])
    assert enter(client, "c", 2) == [1, 2, 2, 0]


def test_debug_reload_keeps_slots(server):
    client = server.client()
    fill(client)
    before = seen(client)
    client.execute_command("DEBUG", "RELOAD")
    assert seen(client) == before


@pytest.mark.parametrize("way", ["copy", "rename", "restore", "dump-to-another-server"])
def test_slots_are_the_same_under_another_name(make_server, way):
    server = make_server()
    client = there = server.client()
    fill(client)
    before = seen(client)
    match way:
        case "copy":
            client.copy("slots", "there")
        case "rename":
            client.rename("slots", "there")
        case "restore" | "dump-to-another-server":
            if way != "restore":
                there = make_server().client()
            there.restore("there", client.execute_command("PEXPIRETIME", "slots"), client.dump("slots"), absttl=True)
    assert seen(there, "there") == before
    assert enter(there, "new", 1000, key="there")[1] == before[0] + 1
    if way != "rename":
        assert seen(client) == before, "the copy is one of its own"
