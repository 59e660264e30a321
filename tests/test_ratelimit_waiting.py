"""RATELIMIT.CHECK with WAIT: one queue for each key, first come first served, charged at the grant, each answered once."""

import pytest
from propagation import ReplicationStream
from raw_client import ErrorReply, RawClient, fields
from servers import eventually, upkeep_passes
from slots import Callers

# One at a time, and a new one each 300 ms.
SLOW = ("GCRA", 1, "PX", 300)
# Nothing comes back while a test looks.
DAY = (1, "EX", 86_400)


@pytest.fixture
def callers(server, protocol):
    with Callers(server, protocol) as callers:
        yield callers


def check(callers, *limit, key="limiter"):
    return callers.call("RATELIMIT.CHECK", key, *limit)


def wait(callers, *limit, wait_ms=0, key="limiter"):
    """A client that waits; its answer is read() by the test."""
    before = callers.waiting()
    client = callers.connect()
    client.send("RATELIMIT.CHECK", key, *limit, "WAIT", wait_ms)
    eventually(lambda: callers.waiting() == before + 1, message="the client does not wait")
    return client


def moments_of_charges(stream):
    return [int(effect[-2]) for effect in stream.read() if effect[1:2] == [b"CHARGE"]]


def test_who_waits_is_admitted_when_the_limit_says_so(callers):
    assert check(callers, *SLOW)[0] == 1
    waiter = wait(callers, *SLOW, wait_ms=5000)
    assert waiter.read()[:4] == [1, 1, 0, 0]
    assert waiter.call("ECHO", "next") == b"next", "and nothing came between"
    assert callers.waiting() == 0


def test_waiters_are_admitted_in_the_order_of_their_arrival_and_not_faster_than_the_limit(server, callers):
    with ReplicationStream(server) as stream:
        check(callers, *SLOW)
        waiters = [wait(callers, *SLOW) for _ in range(4)]
        for number, waiter in enumerate(waiters):
            assert waiter.read()[0] == 1
            assert not any(later.is_answered() for later in waiters[number + 2 :])
        moments = moments_of_charges(stream)
    assert len(moments) == 5
    assert all(later - earlier >= 300_000 for earlier, later in zip(moments, moments[1:], strict=False))


def test_a_wait_that_would_be_too_long_is_denied_at_once(callers):
    limit = ("GCRA", 1, "EX", 60)
    assert check(callers, *limit)[0] == 1
    denied = check(callers, *limit, "WAIT", 50_000)
    assert denied[0] == 0
    assert 50_000 < denied[3] <= 60_000
    wait(callers, *limit, wait_ms=60_000)
    # There is somebody before him, who takes the next one.
    denied = check(callers, *limit, "WAIT", 110_000)
    assert denied[0] == 0
    # Each admission is foretold for a whole millisecond, so a queue is foretold a little too long rather than too short.
    assert 110_000 < denied[3] <= 120_002
    wait(callers, *limit, wait_ms=120_100)
    assert 170_000 < check(callers, *limit, "WAIT", 1)[3] <= 180_003


def test_a_cost_that_can_never_fit_is_denied_at_once(callers):
    assert check(callers, *DAY, "COST", 2, "WAIT", 0)[:4] == [0, 1, 1, -1]


def test_a_newcomer_overtakes_nobody(callers):
    limit = (10, "EX", 86_400)
    assert check(callers, *limit, "COST", 5)[0] == 1
    large = wait(callers, *limit, "COST", 6)
    small = check(callers, *limit)
    assert small[:3] == [0, 10, 5], "there is room for it, and somebody before it"
    assert small[3] > 80_000_000
    large.close()
    eventually(lambda: callers.waiting() == 0)
    assert check(callers, *limit)[:3] == [1, 10, 4]


@pytest.mark.parametrize(
    "event",
    [
        [("RATELIMIT.REFUND", "limiter", *DAY, "COST", 1)],
        [("RATELIMIT.RESET", "limiter")],
        [("DEL", "limiter")],
        [("FLUSHALL",)],
        [("RENAME", "limiter", "away")],
        [("PEXPIRE", "limiter", 1)],
        [("SET", "limiter", "text"), ("DEL", "limiter")],
        [("MULTI",), ("RATELIMIT.RESET", "limiter"), ("EXEC",)],
        [("EVAL", "return redis.call('RATELIMIT.RESET', KEYS[1])", 1, "limiter")],
    ],
    ids=lambda event: event[-1][0] if event[0][0] != "MULTI" else "MULTI",
)
def test_whatever_makes_room_wakes(callers, event):
    assert check(callers, *DAY)[0] == 1
    first, second = wait(callers, *DAY), wait(callers, *DAY)
    # In one packet: who waits is not to see what is there in between.
    assert not any(isinstance(reply, ErrorReply) for reply in callers.first.pipeline(event))
    assert first.read()[:4] == [1, 1, 0, 0]
    assert not second.is_answered()
    assert callers.waiting() == 1


def test_a_key_that_has_become_something_else_is_an_error_for_who_waits(callers):
    check(callers, *DAY)
    waiter = wait(callers, *DAY)
    callers.call("SET", "limiter", "text")
    assert waiter.read() == "WRONGTYPE Operation against a key holding the wrong kind of value"


def test_a_ban_is_waited_for(callers):
    limit = (5, "EX", 60)
    assert callers.call("RATELIMIT.BAN", "limiter", "PX", 300) == "OK"
    assert check(callers, *limit)[6] == -1
    assert check(callers, *limit, "WAIT", 10)[6] == -1
    waiter = wait(callers, *limit, wait_ms=60_000)
    assert waiter.read()[:3] == [1, 5, 4]


def test_unblocked_as_if_the_wait_ran_out_and_with_an_error(callers):
    check(callers, *DAY)
    for reason, expected in (("TIMEOUT", [0, 1, 0]), ("ERROR", "UNBLOCKED client unblocked via CLIENT UNBLOCK")):
        with_id = callers.connect()
        client_id = with_id.call("CLIENT", "ID")
        with_id.send("RATELIMIT.CHECK", "limiter", *DAY, "WAIT", 0)
        eventually(lambda: callers.waiting() == 1)
        assert callers.call("CLIENT", "UNBLOCK", client_id, reason) == 1
        answer = with_id.read()
        assert (answer if isinstance(answer, str) else answer[:3]) == expected
        assert callers.waiting() == 0


def test_never_waits_in_a_transaction_or_a_script(callers):
    check(callers, *DAY)
    command = ("RATELIMIT.CHECK", "limiter", *DAY, "WAIT", 0)
    callers.call("MULTI")
    assert callers.call(*command) == "QUEUED"
    assert callers.call("EXEC")[0][0] == 0
    script = "return redis.call('RATELIMIT.CHECK', KEYS[1], 1, 'EX', 86400, 'WAIT', 0)"
    assert callers.call("EVAL", script, 1, "limiter")[0] == 0


def test_info_shows_who_waits(callers):
    check(callers, 5, "EX", 86_400, "COST", 5)
    wait(callers, 5, "EX", 86_400, "COST", 3)
    wait(callers, 5, "EX", 86_400, "COST", 2)
    waiters = fields(callers.call("RATELIMIT.INFO", "limiter"))[b"waiters"]
    assert [cost for cost, _ in waiters] == [3, 2]
    assert all(waited >= 0 for _, waited in waiters)


def test_too_many_waiters(make_server):
    server = make_server(args=["waiters-per-key-max", "1"])
    with Callers(server) as callers:
        check(callers, *DAY)
        wait(callers, *DAY)
        assert check(callers, *DAY, "WAIT", 0) == "ERR too many waiters"
        assert check(callers, *DAY)[0] == 0


def test_waiting_propagates_nothing_and_the_grant_one_charge(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    with Callers(primary) as callers:
        check(callers, *DAY)
        with ReplicationStream(primary) as stream:
            waiter = wait(callers, *DAY)
            assert stream.read() == []
            callers.call("RATELIMIT.REFUND", "limiter", *DAY, "COST", 1)
            assert waiter.read()[0] == 1
            effects = [effect for effect in stream.read() if effect[0] not in (b"MULTI", b"EXEC")]
            assert [effect[1] for effect in effects] == [b"REFUND", b"CHARGE"]
        replica.wait_until_synced()
        assert replica.client().dump("limiter") == primary.client().dump("limiter")


def test_a_change_of_role_sends_the_waiters_away(make_server):
    server, other = make_server(), make_server()
    with Callers(server) as callers:
        check(callers, *DAY)
        waiter = wait(callers, *DAY)
        server.replicate_from(other)
        assert waiter.read().startswith("UNBLOCKED")


def test_under_a_pause_nobody_is_admitted(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    with Callers(primary) as callers:
        check(callers, *SLOW)
        waiter = wait(callers, *SLOW)
        callers.call("CLIENT", "PAUSE", 100_000, "WRITE")
        upkeep_passes(primary)
        upkeep_passes(primary)
        assert not waiter.is_answered()
        callers.call("CLIENT", "UNPAUSE")
        assert waiter.read()[0] == 1


def test_a_crowd_is_admitted_at_the_rate(server):
    """100 in 100 ms, one at a time: each is admitted, in order, and never two in the same millisecond."""
    limit = ("GCRA", 100, "PX", 100, "BURST", 1)
    with RawClient(server) as control, ReplicationStream(server) as stream:
        clients = [RawClient(server) for _ in range(200)]
        for client in clients:
            client.send("RATELIMIT.CHECK", "limiter", *limit, "WAIT", 0)
        assert all(client.read()[0] == 1 for client in clients)
        moments = moments_of_charges(stream)
        for client in clients:
            client.close()
        assert control.call("PING") == "PONG"
    assert len(moments) == 200
    assert [b - a for a, b in zip(moments, moments[1:], strict=False) if b - a < 1000] == []
