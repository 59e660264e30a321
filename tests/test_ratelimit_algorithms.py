"""RATELIMIT.* with GCRA and with fixed windows: what is admitted, and the numbers of the answer."""

import pytest
from ratelimits import MINUTE, check, clock_us, info, peek, used
from raw_client import fields

HOUR = ("EX", 3600)
YEARS = ("EX", 10**9)


def between(client, *question):
    """The server's clock before and after a peek, and the answer."""
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    peek(pipeline, *question)
    pipeline.time()
    before, reply, after = pipeline.execute()
    return clock_us(before), reply, clock_us(after)


# GCRA


def test_a_burst_passes_and_then_one_at_a_time(client):
    """60 an hour is one a minute, five of them at once."""
    limits = ("GCRA", 60, *HOUR, "BURST", 5)
    for left in (4, 3, 2, 1, 0):
        allowed, limit, remaining, retry_after, next_ms, reset_ms, index = check(client, *limits)
        assert (allowed, limit, remaining, retry_after, index) == (1, 5, left, 0, 0)
        assert 59_000 < next_ms <= 60_000, "each is a minute after the other"
        assert (4 - left) * 60_000 + 59_000 < reset_ms <= (5 - left) * 60_000
    allowed, limit, remaining, retry_after, next_ms, *_ = check(client, *limits)
    assert (allowed, limit, remaining) == (0, 5, 0)
    assert 58_000 < retry_after == next_ms <= 60_000
    assert 178_000 < check(client, *limits, "COST", 3)[3] <= 180_000
    assert check(client, *limits, "COST", 6)[3] == -1


def test_without_a_burst_the_count_passes_at_once(client):
    assert check(client, "gcra", 10, *HOUR, "COST", 10)[:3] == [1, 10, 0]
    assert 358_000 < check(client, "GCRA", 10, *HOUR)[3] <= 360_000


def test_a_burst_may_be_larger_or_smaller_than_the_count(client):
    assert check(client, "GCRA", 1, *HOUR, "BURST", 100, "COST", 100)[:3] == [1, 100, 0]
    assert check(client, "GCRA", 100, *HOUR, "BURST", 1, key="other")[:3] == [1, 1, 0]
    assert check(client, "GCRA", 100, *HOUR, "BURST", 1, key="other")[0] == 0


def test_a_trillion_in_a_second(client):
    most = 10**12
    assert check(client, "GCRA", most, "EX", 1, "COST", most)[:2] == [1, most]
    assert check(client, "GCRA", 1, *YEARS, "BURST", most, "COST", most, key="slow")[2] == 0
    # 10^21 milliseconds would be exact; nobody is told less than he would wait in his life.
    assert peek(client, "GCRA", 1, *YEARS, key="slow")[3] >= 10**15


def test_gcra_keeps_the_units_when_the_count_changes(client):
    check(client, "GCRA", 10, *HOUR, "COST", 6)
    assert peek(client, "GCRA", 1000, *HOUR, "BURST", 10)[2] >= 4
    assert check(client, "GCRA", 2, *HOUR, "BURST", 9)[:3] == [1, 9, 2]
    assert check(client, "GCRA", 2, *HOUR, "BURST", 5)[:3] == [0, 5, 0]
    assert used(client) == {("gcra", 3_600_000): 7}


def test_a_lower_rate_waits_no_longer_than_the_key_is_there(client):
    """What was admitted under the old rate flows off by then."""
    check(client, "GCRA", 100, *MINUTE, "COST", 100)
    slower = peek(client, "GCRA", 1, *MINUTE)
    assert slower[0] == 0
    assert slower[3] <= client.pttl("limiter") + 20
    assert check(client, "GCRA", 1, *MINUTE, "COST", 1)[3] <= 60_000


def test_a_bucket_is_gone_when_it_is_empty(client):
    check(client, "GCRA", 100, *HOUR, "COST", 2)
    reset_ms = peek(client, "GCRA", 100, *HOUR)[5]
    assert abs(client.pttl("limiter") - reset_ms) <= 20
    assert 70_000 < reset_ms <= 72_000


def test_info_tells_gcra_at_the_rate_of_the_last_charge(client):
    check(client, "GCRA", 60, *HOUR, "BURST", 5, "COST", 2)
    (limit,) = map(fields, info(client)[b"limits"])
    assert (limit[b"algorithm"], limit[b"used"]) == (b"gcra", 2)
    assert 59_000 < limit[b"next_ms"] <= 60_000
    assert 119_000 < limit[b"reset_ms"] <= 120_000


# FIXED


@pytest.mark.parametrize("seconds", [60, 3600, 86_400])
def test_a_fixed_window_ends_at_a_multiple_of_its_length(client, seconds):
    check(client, "FIXED", 5, "EX", seconds)
    before, (allowed, limit, remaining, _, next_ms, reset_ms, _), after = between(client, "FIXED", 5, "EX", seconds)
    window = seconds * 1_000_000
    if before // window != after // window or remaining == 5:
        return  # It turned just now.
    assert (allowed, limit, remaining) == (1, 5, 4)
    assert next_ms == reset_ms
    end = (before // window + 1) * window
    assert before + reset_ms * 1000 - 1000 < end <= after + reset_ms * 1000


def test_a_fixed_window_admits_its_count(client):
    limits = ("FIXED", 3, *YEARS)
    assert [check(client, *limits)[:3] for _ in range(4)] == [[1, 3, 2], [1, 3, 1], [1, 3, 0], [0, 3, 0]]
    allowed, _, _, retry_after, next_ms, reset_ms, _ = check(client, *limits)
    assert retry_after == next_ms == reset_ms, "all at once"
    assert check(client, "FIXED", 4, *YEARS)[:3] == [1, 4, 0], "what was consumed stays"
    assert check(client, "FIXED", 2, *YEARS)[:3] == [0, 2, 0]
    assert used(client) == {("fixed", 10**12): 4}


def test_limits_of_one_length_turn_over_together(client):
    _, _, _, _, _, first, _ = check(client, "FIXED", 3, *YEARS, key="a")
    _, _, _, _, _, second, _ = check(client, "FIXED", 3, *YEARS, key="b")
    assert 0 <= first - second < 10_000
