"""RATELIMIT.ENTER and LEAVE: so many at once, each for the time of a lease."""

from contextlib import nullcontext

import pytest
import redis
from raw_client import ErrorReply, RawClient, fields
from servers import eventually
from slots import LONG, Callers, enter, held, info, leave


@pytest.fixture
def callers(server, protocol):
    with Callers(server, protocol) as callers:
        yield callers


# Slots


def test_as_many_as_the_limit_get_in_and_the_next_when_one_leaves(client):
    assert [enter(client, name, 3) for name in "abc"] == [[1, n, 3, 0] for n in (1, 2, 3)]
    allowed, in_use, limit, retry_after = enter(client, "d", 3)
    assert (allowed, in_use, limit) == (0, 3, 3)
    assert 1 <= retry_after <= 600_000
    assert leave(client, "b") == 1
    assert enter(client, "d", 3) == [1, 3, 3, 0]
    assert sorted(held(client)) == [b"a", b"c", b"d"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_reply_is_four_integers_in_both_protocols(server, protocol):
    with RawClient(server, protocol) as raw:
        for name in "ab":
            reply = raw.call("ratelimit.enter", "slots", name, "px", 60_000, "limit", 1)
            assert isinstance(reply, list)
            assert [type(item) for item in reply] == [int] * 4
        assert raw.call("RATELIMIT.LEAVE", "slots", "a") == 1


def test_the_same_id_renews_its_slot(client):
    enter(client, "a", 1, "PX", 1000)
    assert client.pttl("slots") <= 1000
    assert enter(client, "a", 1, "EX", 600) == [1, 1, 1, 0]
    assert client.pttl("slots") > 1000
    assert enter(client, "a", 1, "PX", 2000) == [1, 1, 1, 0]
    assert client.pttl("slots") <= 2000, "the lease is the one of the last call"


def test_who_holds_a_slot_keeps_it_when_the_limit_is_lowered(client):
    for name in "abc":
        enter(client, name, 3)
    assert enter(client, "a", 1) == [1, 3, 1, 0]
    assert enter(client, "d", 2)[:3] == [0, 3, 2]
    leave(client, "a", "b")
    assert enter(client, "d", 2) == [1, 2, 2, 0]


def test_retry_after_says_when_enough_leases_have_ended(client):
    for name, seconds in (("a", 100), ("b", 200), ("c", 300)):
        enter(client, name, 3, "EX", seconds)
    for limit, least in ((3, 90_000), (2, 190_000), (1, 290_000)):
        assert least < enter(client, "d", limit)[3] <= least + 10_000


def test_a_slot_is_free_when_its_lease_is_over(client):
    enter(client, "a", 2, "PX", 40)
    enter(client, "b", 2)
    assert eventually(lambda: enter(client, "c", 2)[0])
    assert held(client) == [b"b", b"c"]
    assert leave(client, "a") == 0


def test_the_key_expires_with_the_last_lease(client):
    enter(client, "a", 2, "PX", 40)
    enter(client, "b", 2, "PX", 60)
    eventually(lambda: client.exists("slots") == 0)
    assert enter(client, "c", 1) == [1, 1, 1, 0]


def test_the_key_goes_with_the_last_slot(client):
    enter(client, "a", 2)
    enter(client, "b", 2)
    assert leave(client, "a", "none", "b", "a") == 2
    assert client.exists("slots") == 0
    assert leave(client, "a") == 0


def test_ids_are_bytes_up_to_512(client):
    for name in (b"\x00\xff", b"x" * 512):
        assert enter(client, name, 2)[0] == 1
    assert sorted(held(client)) == [b"\x00\xff", b"x" * 512]
    assert leave(client, b"\x00\xff", b"x" * 512) == 2


def test_a_thousand_slots_under_one_key(client):
    pipeline = client.pipeline(transaction=False)
    for number in range(1001):
        enter(pipeline, number, 1000)
    *allowed, denied = pipeline.execute()
    assert allowed == [[1, number + 1, 1000, 0] for number in range(1000)]
    assert denied[:3] == [0, 1000, 1000]
    assert leave(client, *range(0, 1001, 2)) == 500
    assert enter(client, "next", 1000) == [1, 501, 1000, 0]


def test_persist_and_expire_do_not_change_a_lease(client):
    enter(client, "a", 1, "PX", 40)
    client.persist("slots")
    assert eventually(lambda: enter(client, "b", 1)[0])
    client.pexpire("slots", 10)
    eventually(lambda: client.exists("slots") == 0)
    assert enter(client, "c", 1) == [1, 1, 1, 0]


def test_info_lists_who_holds_and_who_waits(callers, client, protocol):
    callers.enter("a", 2)
    callers.enter("b", 2, "EX", 300, "SESSION")
    waiter = callers.wait("c", 2)
    reply = client.execute_command("RATELIMIT.INFO", "slots")
    assert isinstance(reply, list if protocol == 2 else dict)
    told = fields(reply)
    assert list(told) == [b"in_use", b"slots", b"waiters"]
    assert told[b"in_use"] == 2
    (first, first_ttl, session), (second, second_ttl, none) = told[b"slots"]
    assert (first, second, session, none) == (b"b", b"a", callers.call("CLIENT", "ID"), 0)
    assert 0 < first_ttl <= 300_000 < second_ttl <= 600_000
    ((waiting, waited_ms),) = told[b"waiters"]
    assert waiting == b"c"
    assert waited_ms >= 0
    callers.leave("a")
    assert waiter.read() == [1, 2, 2, 0]


def test_reset_frees_all_slots_and_resets_limiters_as_well(client):
    enter(client, "a", 1)
    client.execute_command("RATELIMIT.CHECK", "limiter", 1, "EX", 600)
    client.set("text", "v")
    with pytest.raises(Exception, match="WRONGTYPE|wrong kind"):
        client.execute_command("RATELIMIT.RESET", "slots", "limiter", "text")
    assert client.execute_command("RATELIMIT.RESET", "slots", "limiter", "none") == 2
    assert enter(client, "b", 1) == [1, 1, 1, 0]


def test_the_two_kinds_of_limiters_do_not_share_a_key(server):
    wrong_type = "WRONGTYPE Operation against a key holding the wrong kind of value"
    with RawClient(server) as raw:
        raw.call("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, *LONG)
        raw.call("RATELIMIT.CHECK", "limiter", 5, *LONG)
        raw.call("SET", "text", "v")
        before = [raw.call("DUMP", key) for key in ("slots", "limiter", "text")]
        for key in ("limiter", "text"):
            assert raw.call("RATELIMIT.ENTER", key, "a", "LIMIT", 1, *LONG) == wrong_type
            assert raw.call("RATELIMIT.LEAVE", key, "a") == wrong_type
        for command in ("RATELIMIT.CHECK", "RATELIMIT.PEEK"):
            assert raw.call(command, "slots", 5, *LONG) == wrong_type
        assert raw.call("LOCK.ACQUIRE", "slots", "a", *LONG) == wrong_type
        assert raw.call("GET", "slots") == wrong_type
        assert [raw.call("DUMP", key) for key in ("slots", "limiter", "text")] == before
        assert raw.call("TYPE", "slots") == "kw-slots1"


def test_a_plain_write_puts_an_end_to_the_slots(client):
    enter(client, "a", 1, "PX", 60_000, "SESSION")
    client.set("slots", "text")
    with pytest.raises(Exception, match="WRONGTYPE|wrong kind"):
        enter(client, "a", 1)
    assert client.info("everything")["keyward_ratelimit_sessions"] == 0


def test_watch_sees_slots_change_and_denials_not(server, client):
    other = server.client()
    changes = [(lambda: enter(other, "a", 1), True), (lambda: enter(other, "b", 1), False)]
    changes += [(lambda: enter(other, "a", 1), True), (lambda: leave(other, "b"), False)]
    changes += [(lambda: leave(other, "a"), True)]
    for change, changed in changes:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.watch("slots")
            change()
            pipeline.multi()
            pipeline.ping()
            with pytest.raises(redis.WatchError) if changed else nullcontext():
                pipeline.execute()


# SESSION


def test_a_closed_connection_frees_its_slots(server, callers):
    others = callers.connect()
    for name in ("a", "b"):
        others.call("RATELIMIT.ENTER", "slots", name, "LIMIT", 3, *LONG, "SESSION")
    others.call("RATELIMIT.ENTER", "slots", "stays", "LIMIT", 3, *LONG)
    assert callers.enter("c", 3)[0] == 0
    assert callers.metric("sessions") == 2
    others.close()
    eventually(lambda: callers.metric("sessions") == 0)
    assert callers.metric("sessions_closed") >= 2
    assert callers.enter("c", 3) == [1, 2, 3, 0]


def test_a_killed_client_frees_its_slot_for_the_one_who_waits(callers):
    holder = callers.connect()
    number = holder.call("CLIENT", "ID")
    assert holder.call("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, *LONG, "SESSION") == [1, 1, 1, 0]
    waiter = callers.wait("b", 1)
    callers.call("CLIENT", "KILL", "ID", number)
    assert waiter.read() == [1, 1, 1, 0]


def test_who_renews_with_session_takes_the_slot_over(callers):
    first, second = callers.connect(), callers.connect()
    ask = ("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, *LONG)
    first.call(*ask, "SESSION")
    second.call(*ask, "SESSION")
    first.close()
    number = callers.call("CLIENT", "ID")
    eventually(lambda: callers.call("CLIENT", "LIST", "ID", number, number) is not None)
    assert callers.metric("sessions") == 1
    assert second.call(*ask) == [1, 1, 1, 0], "without the word nothing changes"
    second.close()
    eventually(lambda: callers.metric("sessions") == 0)
    assert callers.enter("b", 1) == [1, 1, 1, 0]


def test_a_waiter_with_session_binds_what_he_is_given(callers):
    callers.enter("a", 1)
    waiter = callers.wait("b", 1, *LONG, "SESSION")
    callers.leave("a")
    assert waiter.read() == [1, 1, 1, 0]
    assert callers.metric("sessions") == 1
    waiter.close()
    eventually(lambda: callers.enter("c", 1)[0])


@pytest.mark.parametrize("way", ["rename", "move"])
def test_a_session_follows_its_slot_to_another_name(server, callers, way):
    if way == "move" and server.flavour == "valkey-8.1":
        pytest.skip("MOVE leaves the client on the wrong database on Valkey 8.1, see docs/replication.md")
    holder = callers.connect()
    holder.call("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, *LONG, "SESSION")
    if way == "rename":
        callers.call("RENAME", "slots", "there")
    else:
        assert callers.call("MOVE", "slots", 1) == 1
    assert callers.metric("sessions") == 1
    holder.close()
    eventually(lambda: callers.metric("sessions") == 0)
    with RawClient(server, db=1 if way == "move" else 0) as there:
        assert there.call("EXISTS", "slots", "there") == 0


@pytest.mark.parametrize(
    "end",
    [("DEL", "slots"), ("UNLINK", "slots"), ("FLUSHDB",), ("FLUSHALL", "ASYNC"), ("RATELIMIT.RESET", "slots")]
    + [("RATELIMIT.LEAVE", "slots", "a"), ("PEXPIRE", "slots", 1), ("SET", "slots", "v")],
)
def test_a_slot_that_is_gone_is_no_longer_the_connections(callers, end):
    callers.enter("a", 1, *LONG, "SESSION")
    assert callers.metric("sessions") == 1
    callers.call(*end)
    eventually(lambda: callers.metric("sessions") == 0)


def test_a_copy_does_not_end_with_the_connection(callers):
    holder = callers.connect()
    holder.call("RATELIMIT.ENTER", "slots", "a", "LIMIT", 1, *LONG, "SESSION")
    callers.call("COPY", "slots", "copy")
    holder.close()
    eventually(lambda: callers.call("EXISTS", "slots") == 0)
    assert callers.enter("b", 1, key="copy")[0] == 0


def test_session_needs_a_connection(client):
    script = "return redis.call('RATELIMIT.ENTER', KEYS[1], 'a', 'LIMIT', 1, 'EX', 60, 'SESSION')"
    with pytest.raises(Exception, match="SESSION needs a connection"):
        client.eval(script, 1, "slots")
    assert client.exists("slots") == 0
    pipeline = client.pipeline(transaction=True)
    enter(pipeline, "a", 1, *LONG, "SESSION")
    assert pipeline.execute() == [[1, 1, 1, 0]], "a transaction has one"


# Errors


def test_when_memory_is_full_slots_are_renewed_and_left_and_not_given(make_server):
    server = make_server(config=["maxmemory-policy noeviction"])
    client = server.client()
    enter(client, "a", 3)
    enter(client, "b", 3)
    client.config_set("maxmemory", 1)
    with RawClient(server) as raw:
        for key, name, *rest in (("slots", "c"), ("new", "c"), ("slots", "c", "WAIT", 0)):
            reply = raw.call("RATELIMIT.ENTER", key, name, "LIMIT", 2 if rest else 3, *LONG, *rest)
            assert isinstance(reply, ErrorReply)
            assert reply.startswith("OOM "), reply
    assert enter(client, "c", 2)[:3] == [0, 2, 2], "a no is no error"
    assert enter(client, "a", 2) == [1, 2, 2, 0]
    assert leave(client, "b") == 1
    assert leave(client, "a") == 1
    assert client.dbsize() == 0


def test_errors(server):
    with RawClient(server) as raw:
        for words, error in (
            (("k", "a", "LIMIT", 0, *LONG), "ERR LIMIT must be an integer from 1 to 1000000"),
            (("k", "a", "LIMIT", 1_000_001, *LONG), "ERR LIMIT must be an integer from 1 to 1000000"),
            (("k", "a", "LIMIT", "x", *LONG), "ERR value is not an integer or out of range"),
            (("k", "a", "LIMIT", 1, "EX", 0), "ERR invalid expire time in 'ratelimit.enter' command"),
            (("k", "a", "LIMIT", 1, *LONG, "NX"), "ERR syntax error"),
            (("k", "", "LIMIT", 1, *LONG), "ERR id must be 1 to 512 bytes"),
            (("k", b"x" * 513, "LIMIT", 1, *LONG), "ERR id must be 1 to 512 bytes"),
            (("k", "a", "LIMIT", 1), "ERR wrong number of arguments for 'ratelimit.enter' command"),
        ):
            assert raw.call("RATELIMIT.ENTER", *words) == error
        assert raw.call("RATELIMIT.LEAVE", "k", "a", "") == "ERR id must be 1 to 512 bytes"
        assert raw.call("DBSIZE") == 0


def test_eviction_frees_the_slots_and_is_counted(make_server):
    server = make_server(config=["maxmemory-policy allkeys-random", "maxmemory-eviction-tenacity 100"])
    client = server.client()
    with Callers(server) as callers:
        callers.enter("a", 1, *LONG, "SESSION")
        client.set("later", "x")
        client.config_set("maxmemory", 1)
        with pytest.raises(Exception, match="OOM|maxmemory"):
            client.set("big", "x")
        client.config_set("maxmemory", 0)
        assert client.dbsize() == 0
        assert callers.metric("evicted") == 1
        assert callers.metric("sessions") == 0
        assert callers.enter("b", 1) == [1, 1, 1, 0]


def test_what_a_slots_key_takes_of_memory_grows_with_the_slots(client):
    enter(client, 0, 10_000)
    few = client.memory_usage("slots")
    pipeline = client.pipeline(transaction=False)
    for number in range(1, 1000):
        enter(pipeline, number, 10_000)
    pipeline.execute()
    many = client.memory_usage("slots")
    assert few < 1000
    assert 50_000 < many < 200_000
    assert info(client)[b"in_use"] == 1000
