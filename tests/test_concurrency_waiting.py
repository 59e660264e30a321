"""RATELIMIT.ENTER with WAIT: one queue for each key, first come first served, each answered once by the event that concerns
him."""

import pytest
from raw_client import ErrorReply, RawClient, fields
from servers import eventually
from slots import LONG, Callers


@pytest.fixture
def callers(server, protocol):
    with Callers(server, protocol) as callers:
        yield callers


GRANTED = [1, 1, 1, 0]


def test_waiters_get_a_slot_in_the_order_of_their_arrival(callers):
    callers.enter("a", 1)
    waiters = {name: callers.wait(name, 1) for name in ("b", "c", "d")}
    holder = "a"
    for name, waiter in waiters.items():
        assert not waiter.is_answered()
        assert callers.leave(holder) == 1
        assert waiter.read() == GRANTED
        assert waiter.call("ECHO", "next") == b"next", "and nothing came between"
        holder = name
    assert callers.waiting() == 0


def test_several_slots_that_are_freed_at_once_go_to_several_who_wait(callers):
    for name in ("a", "b", "c"):
        callers.enter(name, 3)
    waiters = [callers.wait(name, 3) for name in ("d", "e", "f")]
    assert callers.leave("a", "c") == 2
    assert waiters[0].read() == [1, 2, 3, 0]
    assert waiters[1].read() == [1, 3, 3, 0]
    assert not waiters[2].is_answered()


def test_a_newcomer_overtakes_nobody(callers):
    callers.enter("a", 1)
    waiter = callers.wait("b", 1)
    assert callers.enter("c", 9)[:3] == [0, 1, 9], "he would have room"
    assert callers.enter("a", 1) == GRANTED, "who has a slot renews it"
    # In one write: nothing comes between them.
    left, newcomer = callers.first.pipeline(
        [("RATELIMIT.LEAVE", "slots", "a"), ("RATELIMIT.ENTER", "slots", "c", "LIMIT", 1, *LONG)]
    )
    assert left == 1
    assert newcomer[:3] == [0, 1, 1]
    assert waiter.read() == GRANTED


def test_the_end_of_a_lease_wakes(callers):
    callers.enter("a", 1, "PX", 300)
    waiters = [callers.connect() for _ in range(3)]
    for number, waiter in enumerate(waiters):
        waiter.send("RATELIMIT.ENTER", "slots", number, "LIMIT", 1, "PX", 100, "WAIT", 0)
    assert [waiter.read() for waiter in waiters] == [GRANTED] * 3


def test_a_lease_that_was_renewed_to_less_wakes_at_its_new_end(callers):
    callers.enter("a", 1)
    waiter = callers.wait("b", 1)
    callers.enter("a", 1, "PX", 100)
    assert waiter.read() == GRANTED


def test_the_lease_begins_when_the_slot_is_given(callers):
    callers.enter("a", 1)
    waiter = callers.wait("b", 1, "PX", 60_000)
    callers.call("PEXPIRE", "slots", 50)
    assert waiter.read() == GRANTED
    assert 50_000 < callers.call("PTTL", "slots") <= 60_000


@pytest.mark.parametrize(
    "event",
    [
        [("DEL", "slots")],
        [("UNLINK", "slots")],
        [("FLUSHALL",)],
        [("FLUSHDB", "ASYNC")],
        [("RATELIMIT.RESET", "slots")],
        [("RENAME", "slots", "away")],
        [("PEXPIRE", "slots", 1)],
        [("SWAPDB", 0, 1)],
        [("SET", "slots", "text"), ("DEL", "slots")],
        [("RATELIMIT.ENTER", "other", "x", "LIMIT", 9, *LONG), ("RENAME", "other", "slots")],
        [("MULTI",), ("RATELIMIT.LEAVE", "slots", "a"), ("EXEC",)],
        [("EVAL", "return redis.call('RATELIMIT.LEAVE', KEYS[1], 'a')", 1, "slots")],
    ],
    ids=lambda event: event[-1][0] if event[0][0] != "MULTI" else "MULTI",
)
def test_whatever_makes_room_wakes(callers, event):
    callers.enter("a", 2)
    callers.enter("b", 2)
    waiter = callers.wait("c", 2)
    for command in event:
        assert not isinstance(callers.call(*command), ErrorReply)
    allowed, in_use, limit, retry_after = waiter.read()
    assert (allowed, limit, retry_after) == (1, 2, 0)
    assert in_use <= 2
    assert callers.waiting() == 0
    if event[0][0] == "SWAPDB":
        callers.call("SWAPDB", 0, 1)


def test_a_key_that_has_become_something_else_is_an_error_for_who_waits(callers):
    callers.enter("a", 1)
    waiter = callers.wait("b", 1)
    callers.call("SET", "slots", "text")
    assert waiter.read() == "WRONGTYPE Operation against a key holding the wrong kind of value"
    assert callers.call("GET", "slots") == b"text"


def test_a_wait_runs_out(callers):
    callers.enter("a", 1)
    client = callers.connect()
    assert client.call("RATELIMIT.ENTER", "slots", "b", "LIMIT", 1, *LONG, "WAIT", 50)[:3] == [0, 1, 1]
    assert callers.waiting() == 0
    assert callers.leave("a") == 1
    assert callers.call("EXISTS", "slots") == 0


@pytest.mark.parametrize("how", ["TIMEOUT", "ERROR"])
def test_client_unblock(callers, how):
    callers.enter("a", 1)
    client = callers.connect()
    number = client.call("CLIENT", "ID")
    client.send("RATELIMIT.ENTER", "slots", "b", "LIMIT", 1, *LONG, "WAIT", 0)
    eventually(lambda: callers.waiting() == 1)
    behind = callers.wait("c", 1)
    callers.enter("a", 1, "EX", 6000)
    assert callers.call("CLIENT", "UNBLOCK", number, how) == 1
    reply = client.read()
    if how == "ERROR":
        assert reply.startswith("UNBLOCKED ")
    else:
        assert reply[:3] == [0, 1, 1]
        assert 1 <= reply[3] <= 600_000, "as things stood when the wait began"
    callers.leave("a")
    assert behind.read() == GRANTED


def test_who_hangs_up_is_passed_over(callers):
    callers.enter("a", 1)
    gone, killed = callers.wait("b", 1), callers.connect()
    number = killed.call("CLIENT", "ID")
    killed.send("RATELIMIT.ENTER", "slots", "c", "LIMIT", 1, *LONG, "WAIT", 0)
    eventually(lambda: callers.waiting() == 2)
    alive = callers.wait("d", 1)
    gone.close()
    eventually(lambda: callers.waiting() == 2)
    callers.first.pipeline([("CLIENT", "KILL", "ID", number), ("RATELIMIT.LEAVE", "slots", "a")])
    assert alive.read() == GRANTED
    assert callers.waiting() == 0


def test_a_big_limit_behind_a_small_one_waits_for_its_turn(callers):
    for name in ("a", "b"):
        callers.enter(name, 2)
    small, big = callers.wait("c", 1), callers.wait("d", 9)
    callers.leave("a")
    assert not small.is_answered()
    assert not big.is_answered()
    callers.leave("b")
    assert small.read() == [1, 1, 1, 0]
    assert big.read() == [1, 2, 9, 0]


def test_queues_of_different_keys_and_databases_are_apart(server, callers):
    callers.enter("a", 1)
    callers.enter("a", 1, key="other")
    first, second = callers.wait("b", 1), callers.wait("b", 1, key="other")
    with RawClient(server, db=1) as elsewhere:
        assert elsewhere.call("RATELIMIT.ENTER", "slots", "z", "LIMIT", 1, *LONG) == GRANTED
        assert elsewhere.call("RATELIMIT.LEAVE", "slots", "z") == 1
    callers.leave("a", key="other")
    assert second.read() == GRANTED
    assert not first.is_answered()


# Where nobody can wait


@pytest.mark.parametrize("place", ["MULTI", "Lua", "function"])
def test_in_transactions_and_scripts_wait_is_as_if_it_were_not_there(callers, place):
    callers.enter("a", 1)
    words = ("RATELIMIT.ENTER", "slots", "b", "LIMIT", 1, *LONG, "WAIT", 0)
    if place == "MULTI":
        *_, (reply,) = callers.first.pipeline([("MULTI",), words, ("EXEC",)])
    elif place == "Lua":
        reply = callers.call("EVAL", "return redis.call(unpack(ARGV))", 0, *words)
    else:
        library = "#!lua name=slots\nredis.register_function('call', function(_, a) return redis.call(unpack(a)) end)"
        callers.call("FUNCTION", "LOAD", "REPLACE", library)
        reply = callers.call("FCALL", "call", 0, *words)
        callers.call("FUNCTION", "FLUSH")
    assert reply[:3] == [0, 1, 1]
    assert callers.waiting() == 0


@pytest.mark.parametrize(("total", "per_key"), [(2, 100), (100, 2)])
def test_too_many_waiters(make_server, total, per_key):
    server = make_server(args=["waiters-max", str(total), "waiters-per-key-max", str(per_key)])
    with Callers(server) as callers:
        callers.enter("a", 1)
        waiters = [callers.wait(name, 1) for name in ("b", "c")]
        assert callers.enter("d", 1, *LONG, "WAIT", 0) == "ERR too many waiters"
        assert callers.enter("d", 1)[0] == 0
        assert callers.metric("waits_refused") == 1
        assert callers.metric("waits") == 2
        # Locks and limits have one bound.
        callers.call("LOCK.ACQUIRE", "lock", "ann", *LONG)
        if total == 2:
            assert callers.call("LOCK.ACQUIRE", "lock", "bob", *LONG, "WAIT", 0) == "ERR too many waiters"
        callers.leave("a")
        assert waiters[0].read() == GRANTED


def test_five_hundred_wait_and_each_gets_his_turn(callers):
    """Through one slot, one after the other."""
    callers.enter("first", 1)
    clients = [callers.connect() for _ in range(500)]
    for number, client in enumerate(clients):
        client.send("RATELIMIT.ENTER", "slots", number, "LIMIT", 1, *LONG, "WAIT", 0)
    eventually(lambda: callers.waiting() == 500)
    holder, left = "first", set(range(500))
    while left:
        assert callers.leave(str(holder)) == 1
        ((name, _, _),) = fields(callers.call("RATELIMIT.INFO", "slots"))[b"slots"]
        holder = int(name)
        assert clients[holder].read() == GRANTED
        left.remove(holder)
