"""RATELIMIT.* with several limits at once, and with a reserve: all allow or none is charged, and one is named."""

import pytest
from ratelimits import MINUTE, ban, check, peek, used
from raw_client import ErrorReply, RawClient

HOUR = ("EX", 3600)
# So long that it does not turn while a test runs.
YEARS = ("EX", 10**9)


def test_all_limits_are_charged_or_none(client):
    limits = (10, *MINUTE, "GCRA", 5, *HOUR, "FIXED", 7, *YEARS)
    assert check(client, *limits, "COST", 3)[0] == 1
    assert set(used(client).values()) == {3}
    before = client.dump("limiter")
    for _ in range(3):
        assert check(client, *limits, "COST", 3)[0] == 0, "GCRA has two"
    assert client.dump("limiter") == before
    assert check(client, *limits, "COST", 2)[0] == 1
    assert set(used(client).values()) == {5}


def test_the_reply_is_of_the_limit_with_least_left(client):
    reply = check(client, 10, *MINUTE, 6, *HOUR, "FIXED", 20, *YEARS)
    assert (reply[:4], reply[6]) == ([1, 6, 5, 0], 1)
    assert 3_600_000 <= reply[5] <= 3_600_000 * 257 / 256 + 1, "its times, too"
    assert check(client, 10, *MINUTE, 20, *HOUR)[6] == 0
    reply = check(client, 5, "EX", 1000, 5, "EX", 2000)
    assert (reply[2], reply[6]) == (4, 0), "of two alike the first"


def test_the_reply_is_of_the_limit_that_denies_for_longest(client):
    limits = (2, *MINUTE, 2, *HOUR, "FIXED", 9, *YEARS)
    check(client, *limits, "COST", 2)
    for question in (check, peek):
        allowed, limit, remaining, retry_after, _, _, index = question(client, *limits)
        assert (allowed, limit, remaining, index) == (0, 2, 0, 1)
        assert 3_590_000 < retry_after <= 3_600_000 * 257 / 256 + 1
        assert question(client, *limits[3:], *limits[:3])[6] == 0
    assert check(client, *limits[:3], "FIXED", 9, *YEARS)[6] == 0
    # Never is the longest of all.
    allowed, limit, remaining, retry_after, *_, index = check(client, *limits, "COST", 3)
    assert (allowed, limit, remaining, retry_after, index) == (0, 2, 0, -1, 0)
    assert check(client, "FIXED", 9, *YEARS, 2, *HOUR, "COST", 9)[3:7:3] == [-1, 1]


def test_a_call_touches_only_the_limits_it_names(client):
    check(client, 5, *MINUTE, "COST", 5)
    assert check(client, 5, *HOUR)[0] == 1
    assert check(client, 5, *MINUTE, 5, *HOUR)[:1] == [0]
    assert used(client) == {("sliding", 60_000): 5, ("sliding", 3_600_000): 1}


def test_the_algorithm_and_the_window_name_the_state(client):
    for algorithm in ("SLIDING", "GCRA", "FIXED"):
        assert check(client, algorithm, 3, *YEARS, "COST", 2)[:3] == [1, 3, 1]
    assert used(client) == {(name, 10**12): 2 for name in ("sliding", "gcra", "fixed")}
    # Whatever the counts, and in whatever unit the window is written.
    assert check(client, "fixed", 50, "PX", 10**12, "gcra", 100, "PX", 10**12, "BURST", 9, "COST", 1)[:3] == [1, 9, 6]
    assert used(client) == {("sliding", 10**12): 2, ("gcra", 10**12): 3, ("fixed", 10**12): 3}


def test_eight_limits_in_one_call(client):
    limits = [word for seconds in range(1000, 1008) for word in (10, "EX", seconds)]
    assert check(client, *limits, "COST", 4)[:3] == [1, 10, 6]
    assert check(client, *limits, "COST", 7)[:3] == [0, 10, 6]
    assert list(used(client).values()) == [4] * 8


def test_a_key_holds_sixteen_states_at_once_and_a_ban_beside(server):
    with RawClient(server) as raw:
        for first in (1000, 1008):
            limits = [word for seconds in range(first, first + 8) for word in (10, "EX", seconds)]
            assert raw.call("RATELIMIT.CHECK", "limiter", *limits)[0] == 1
        before = raw.call("DUMP", "limiter")
        for limits in ((10, "EX", 2000), (10, "EX", 1000, "GCRA", 10, "EX", 1000)):
            reply = raw.call("RATELIMIT.CHECK", "limiter", *limits)
            assert isinstance(reply, ErrorReply)
            assert reply == "ERR a key can hold at most 16 limits of different windows"
            assert raw.call("RATELIMIT.PEEK", "limiter", *limits)[0] == 1, "a peek stores nothing"
        assert raw.call("DUMP", "limiter") == before
        assert raw.call("RATELIMIT.CHECK", "limiter", 10, "EX", 1000)[0] == 1
        assert raw.call("RATELIMIT.BAN", "limiter", "EX", 60) == "OK"
        assert raw.call("RATELIMIT.CHECK", "limiter", 10, "EX", 1000)[6] == -1


def test_several_limits_take_little_memory(client):
    """A few bytes for each fixed one and for GCRA, whatever the counts."""
    check(client, "GCRA", 10**12, *HOUR, "FIXED", 10**12, *YEARS, "COST", 10**11)
    assert client.memory_usage("limiter") < 512


@pytest.mark.parametrize("way", ["transaction", "script"])
def test_inside_of_something_else(client, way):
    limits = (10, *MINUTE, "GCRA", 5, *HOUR)
    if way == "transaction":
        pipeline = client.pipeline(transaction=True)
        check(pipeline, *limits, "COST", 3)
        check(pipeline, *limits, "COST", 3)
        replies = pipeline.execute()
    else:
        line = ", ".join(f"'{word}'" for word in (*limits, "COST", 3))
        call = f"redis.call('RATELIMIT.CHECK', KEYS[1], {line})"
        replies = client.eval(f"return {{{call}, {call}}}", 1, "limiter")
    assert [reply[:3] for reply in replies] == [[1, 5, 2], [0, 5, 2]]


# RESERVE


def test_a_reserve_is_left_to_others(client):
    """Shedding by priority: bulk work leaves ten for users."""
    bulk, users = (15, *MINUTE, "RESERVE", 10), (15, *MINUTE)
    assert [check(client, *bulk)[0] for _ in range(7)] == [1] * 5 + [0] * 2
    allowed, limit, remaining, retry_after, *_ = check(client, *bulk)
    assert (allowed, limit, remaining) == (0, 15, 10), "what is reserved is left all the same"
    assert retry_after >= 1
    assert [check(client, *users)[0] for _ in range(12)] == [1] * 10 + [0] * 2
    assert peek(client, *bulk)[:3] == [0, 15, 0]


def test_a_reserve_of_everything_lets_nothing_through_ever(client):
    for limits in ((5, *MINUTE, "RESERVE", 5), ("GCRA", 9, *MINUTE, "BURST", 5, "RESERVE", 10**12)):
        assert check(client, *limits)[:4] == [0, 5, 5, -1]
    assert check(client, 5, *MINUTE, "RESERVE", 2, "COST", 4)[3] == -1
    assert client.exists("limiter") == 0


def test_each_limit_has_a_reserve_of_its_own(client):
    limits = (10, *MINUTE, "RESERVE", 8, "GCRA", 10, *HOUR, "reserve", 0)
    assert check(client, *limits, "COST", 2)[0] == 1
    allowed, limit, remaining, retry_after, *_, index = check(client, *limits)
    assert (allowed, limit, remaining, index) == (0, 10, 8, 0)
    assert retry_after >= 1
    assert used(client) == {("sliding", 60_000): 2, ("gcra", 3_600_000): 2}


def test_a_ban_goes_before_all_limits(client):
    limits = (10, *MINUTE, 4, *HOUR)
    check(client, *limits)
    ban(client, "EX", 100)
    allowed, limit, remaining, retry_after, next_ms, reset_ms, index = check(client, *limits)
    assert (allowed, limit, remaining, index) == (0, 4, 0, -1)
    assert 99_000 < retry_after <= 100_000
    assert next_ms == retry_after
    assert reset_ms > 3_590_000, "what is counted is counted"
