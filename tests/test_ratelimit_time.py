"""RATELIMIT.* while time really passes: waits come true, and no window holds too much, however hard it is hammered."""

import threading
import time

import pytest
from propagation import aof_commands
from ratelimits import TICKS, ban, check, clock_us, info, peek
from raw_client import RawClient
from servers import eventually

# Windows of a quarter of a second; three units are all that there are.
SHORT = {
    "sliding": (3, "PX", 250),
    "gcra": ("GCRA", 3, "PX", 250),
    "gcra burst": ("GCRA", 12, "PX", 1000, "BURST", 3),
    "fixed": ("FIXED", 3, "PX", 250),
    "reserve": ("GCRA", 20, "PX", 1000, "BURST", 5, "RESERVE", 2),
    "several": (3, "PX", 250, "GCRA", 300, "PX", 1000, "FIXED", 100, "PX", 100),
}


@pytest.mark.parametrize("limits", SHORT.values(), ids=SHORT)
def test_retry_after_is_kept_to_the_millisecond(client, limits):
    """PEEK denies while a wait is left and allows when it is over, by the server's own clock, which is
    read just before and after; not in a transaction, where newer servers stop it. Whole milliseconds were
    told, so one may be missing."""

    def look(charges=0):
        pipeline = client.pipeline(transaction=False)
        for _ in range(charges):
            check(pipeline, *limits)
        pipeline.time()
        peek(pipeline, *limits)
        pipeline.time()
        before, reply, after = pipeline.execute()[charges:]
        return *(clock_us(reply) / 1000 for reply in (before, after)), reply

    # A fixed window may turn between the charges.
    before, after, (allowed, _, _, retry_after, *_) = look(charges=6)
    assert allowed == 0
    earliest, latest = before + retry_after - 1, after + retry_after + 1
    while not allowed:
        before, after, (allowed, _, _, retry_after, *_) = look()
        if allowed:
            assert after >= earliest, "allowed before the wait was over"
        else:
            assert before <= latest, "denied although the wait is over"
            assert earliest <= after + retry_after, "told a shorter wait than before"
            assert before + retry_after <= latest + 1, "told a longer wait than before"
    assert check(client, *limits)[0] == 1


def test_next_and_reset_are_kept(client):
    check(client, 5, "PX", 600, "COST", 2)
    first = peek(client, 5, "PX", 600)
    eventually(lambda: peek(client, 5, "PX", 600)[4] < first[4] - 150)
    check(client, 5, "PX", 600)
    begun = time.monotonic()
    _, _, remaining, _, next_ms, reset_ms, _ = peek(client, 5, "PX", 600)
    assert remaining == 2
    assert 0 < next_ms < reset_ms <= 600 + 600 / TICKS + 2
    eventually(lambda: peek(client, 5, "PX", 600)[2] >= 4)
    assert time.monotonic() - begun >= (next_ms - 2) / 1000, "remaining grew before it was told"
    assert peek(client, 5, "PX", 600)[4] <= reset_ms
    eventually(lambda: peek(client, 5, "PX", 600)[2] == 5)
    assert time.monotonic() - begun >= (reset_ms - 2) / 1000, "full before it was told"
    assert peek(client, 5, "PX", 600) == [1, 5, 5, 0, 0, 0, 0]


def test_a_bucket_fills_evenly(client):
    """One unit each 100 ms, and not five after half a second."""
    limits = ("GCRA", 10, "PX", 1000, "BURST", 5)
    begun = time.monotonic()
    check(client, *limits, "COST", 5)
    for left in range(1, 6):
        told = eventually(lambda left=left: (reply := peek(client, *limits))[2] >= left and reply)
        assert time.monotonic() - begun >= left * 0.1 - 0.002
        assert told[2] == 5 or told[4] <= 100
    assert peek(client, *limits) == [1, 5, 5, 0, 0, 0, 0]


def test_a_ban_ends_by_itself(client):
    check(client, 2, "EX", 60)
    begun = time.monotonic()
    ban(client, "PX", 150)
    assert check(client, 2, "EX", 60)[6] == -1
    eventually(lambda: peek(client, 2, "EX", 60)[0] == 1)
    assert time.monotonic() - begun >= 0.148
    assert info(client)[b"banned_ms"] == 0
    assert check(client, 2, "EX", 60)[:3] == [1, 2, 0], "what was consumed before it stays"
    ban(client, "PX", 50, key="nothing else")
    eventually(lambda: client.exists("nothing else") == 0)


def test_denied_requests_do_not_put_off_the_next_allowed_one(client):
    """A client at ten times the rate gets what it is due."""
    admitted = 0
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        admitted += check(client, 2, "PX", 50)[0]
    # Of 20 that a client with perfect timing gets; 2 if what is denied were counted.
    assert admitted >= 6


# Ten clients, each as fast as it can, for five windows

LIMIT, WINDOW, WINDOWS, CLIENTS = 20, 500, 5, 10


def hammer(server, *limits):
    """How many requests were made and allowed, and the longest time (in microseconds, by the server's clock) in which no
    answer came."""
    asked, allowed, moments = [], [], []
    with RawClient(server) as raw:
        end = clock_us(raw.call("TIME")) + WINDOWS * WINDOW * 1000

    def run():
        with RawClient(server) as raw:
            now = 0
            while now < end:
                *replies, time_now = raw.pipeline([("RATELIMIT.CHECK", "limiter", *limits)] * 4 + [("TIME",)])
                now = clock_us(time_now)
                moments.append(now)
                asked.append(len(replies))
                allowed.append(sum(reply[0] for reply in replies))

    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moments.sort()
    gap = max(after - before for before, after in zip(moments, moments[1:], strict=False))
    return sum(asked), sum(allowed), gap


@pytest.mark.parametrize("algorithm", ["SLIDING", "GCRA", "FIXED"])
def test_ten_clients_that_hammer_get_the_limit_of_each_window_and_no_more(make_server, algorithm):
    """The AOF tells what was admitted, and when to the microsecond."""
    server = make_server(config=["appendonly yes"])
    asked, allowed, gap = hammer(server, algorithm, LIMIT, "PX", WINDOW)
    charges = [command for command in aof_commands(server) if command[:2] == [b"KEYWARD.APPLY", b"CHARGE"]]
    log = [(int(command[-2]), int(command[-1])) for command in charges]
    moments = [moment for moment, _ in log]
    assert {units for _, units in log} == {1}
    assert moments == sorted(moments)
    assert len(log) == allowed
    assert asked >= 10 * LIMIT * WINDOWS, "ten times the limit, or this is no hammering"

    window = WINDOW * 1000
    # That long after something is free somebody has asked for it.
    late = 2 * gap
    end = moments[0] + WINDOWS * window - late
    match algorithm:
        case "SLIDING":
            assert all(last - first > window for first, last in zip(moments, moments[LIMIT:], strict=False))
            cycle = window + window // TICKS + 257 + late
            least = LIMIT * (1 + (end - moments[0] - late) // cycle)
        case "GCRA":
            for first in range(len(moments)):
                for last in range(first, len(moments)):
                    assert (last - first + 1 - LIMIT) * window <= (moments[last] - moments[first]) * LIMIT
            # Unless the bucket ran over meanwhile, which takes a window.
            least = LIMIT + (end - moments[0]) * LIMIT // window - 1 if late < window else 0
        case "FIXED":
            turns = [moment // window for moment in moments]
            assert max(map(turns.count, turns)) == LIMIT
            # The first and the last may be cut short.
            least = LIMIT * ((end - moments[0]) // window - 1) if late < window else 0
    assert allowed >= least, (allowed, gap)
    if gap < window // 20:
        assert allowed >= 0.9 * LIMIT * WINDOWS
