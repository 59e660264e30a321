"""RATELIMIT.REFUND and BAN: what was charged comes back, and who is banned is out."""

import pytest
from ratelimits import MINUTE, ask, ban, check, info, peek, refund, used
from raw_client import ErrorReply, RawClient

HOUR = ("EX", 3600)
YEARS = ("EX", 10**9)

LIMITS = {"sliding": (10, *HOUR), "gcra": ("GCRA", 10, *HOUR), "fixed": ("FIXED", 10, *YEARS)}
each_algorithm = pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)


@each_algorithm
def test_a_refund_gives_back_what_was_charged(client, limit):
    check(client, *limit, "COST", 7)
    allowed, count, remaining, retry_after, _, reset_ms, index = refund(client, *limit, "COST", 3)
    assert (allowed, count, remaining, retry_after, index) == (1, 10, 6, 0, 0)
    assert reset_ms > 0
    assert list(used(client).values()) == [4]
    assert check(client, *limit, "COST", 6)[:3] == [1, 10, 0]


@each_algorithm
def test_a_refund_never_fills_above_the_limit_and_leaves_no_key(client, limit):
    check(client, *limit, "COST", 3)
    assert refund(client, *limit, "COST", 10**12)[1:3] == [10, 10]
    assert client.exists("limiter") == 0
    assert refund(client, *limit, "COST", 5) == [1, 10, 10, 0, 0, 0, 0]
    assert client.exists("limiter") == 0, "nothing was charged, so there is nothing to give back"


@each_algorithm
def test_allowed_says_whether_the_cost_would_pass_now(client, limit):
    check(client, *limit, "COST", 10)
    assert refund(client, *limit, "COST", 4)[:3] == [1, 10, 4]
    check(client, *limit, "COST", 4)
    assert refund(client, *limit, "COST", 11)[:4] == [0, 10, 10, -1]


def test_the_newest_units_come_back(client):
    """What is left after a refund is what was there before the charge: it leaves when it would have left."""
    check(client, 10, "PX", 300_000, "COST", 2)
    # As a primary would tell it: two more that were admitted two minutes ago, and are the older ones.
    seconds, _ = client.time()
    moment = (seconds - 120) * 1_000_000
    client.execute_command("KEYWARD.APPLY", "CHARGE", "older", "SLIDING", 300_000, moment, 2)
    check(client, 10, "PX", 300_000, "COST", 3, key="older")
    before = peek(client, 10, "PX", 300_000, key="older")
    after = refund(client, 10, "PX", 300_000, "COST", 3, key="older")
    assert (before[2], after[2]) == (5, 8)
    assert 0 <= before[4] - after[4] < 10_000
    assert after[5] == after[4] < 181_500
    assert client.pttl("older") <= 181_500, "and the key is gone with them"


def test_a_refund_names_its_limits(client):
    limits = (10, *MINUTE, "GCRA", 8, *HOUR, "FIXED", 9, *YEARS)
    check(client, *limits, "COST", 5)
    assert refund(client, *limits[:3], "COST", 5)[2] == 10
    assert used(client) == {("gcra", 3_600_000): 5, ("fixed", 10**12): 5}
    reply = refund(client, *limits, "COST", 2)
    assert (reply[1:3], reply[6]) == ([8, 5], 1), "the one with least left"
    assert used(client) == {("gcra", 3_600_000): 3, ("fixed", 10**12): 3}


def test_peek_after_a_charge_and_its_refund_is_as_before(client):
    limits = (10, *YEARS, "GCRA", 8, *YEARS, "FIXED", 9, *YEARS)
    check(client, *limits, "COST", 2)
    before = peek(client, *limits)
    check(client, *limits, "COST", 5)
    refund(client, *limits, "COST", 5)
    after = peek(client, *limits)
    assert after[:4] == before[:4]
    assert all(0 <= earlier - later < 10_000 for earlier, later in zip(before[4:6], after[4:6], strict=True))


def test_a_refund_needs_a_cost_and_nothing_else(server):
    with RawClient(server) as raw:
        raw.call("RATELIMIT.CHECK", "limiter", 5, *HOUR)
        for words in (
            (5, *HOUR),
            (5, *HOUR, "COST"),
            (5, *HOUR, "COST", 1, "COST", 1),
            (5, *HOUR, "COST", 1, "WAIT", 1),
        ):
            reply = raw.call("RATELIMIT.REFUND", "limiter", *words)
            assert isinstance(reply, ErrorReply)
            assert reply in ("ERR syntax error", "ERR wrong number of arguments for 'ratelimit.refund' command")
        assert raw.call("RATELIMIT.PEEK", "limiter", 5, *HOUR)[2] == 4


# BAN


def test_a_ban_denies_whatever_the_limits_say(client):
    assert ban(client, "EX", 100) in ("OK", b"OK")
    assert client.type("limiter") == b"kw-limit1"
    assert 99_000 < client.pttl("limiter") <= 100_000
    for limits in ((5, *MINUTE), ("GCRA", 5, *HOUR), ("FIXED", 5, *YEARS, 10**12, "EX", 1), (5, *MINUTE, "COST", 6)):
        for question in (check, peek):
            allowed, limit, remaining, retry_after, next_ms, reset_ms, index = question(client, *limits)
            assert (allowed, limit, remaining, index) == (0, 5, 0, -1)
            assert 90_000 < retry_after == next_ms == reset_ms <= 100_000
    assert used(client) == {}, "who is banned is charged nothing"
    assert 90_000 < info(client)[b"banned_ms"] <= 100_000


def test_a_ban_keeps_what_was_counted(client):
    check(client, 5, *HOUR, "COST", 4)
    before = client.pttl("limiter")
    ban(client, "PX", 5000)
    assert used(client) == {("sliding", 3_600_000): 4}
    assert before - 10_000 < client.pttl("limiter") <= before
    assert check(client, 5, *HOUR)[0] == 0
    assert refund(client, 5, *HOUR, "COST", 1)[6] == -1
    assert used(client) == {("sliding", 3_600_000): 3}, "what is given back counts after the ban"
    refund(client, 5, *HOUR, "COST", 3)
    assert 0 < client.pttl("limiter") <= 5000, "the ban is all that is left"


def test_another_ban_takes_the_place_of_the_first(client):
    for words, most in ((("EX", 100), 100_000), (("px", 5000), 5000), (("ex", 300), 300_000)):
        ban(client, *words)
        assert most - 4000 < info(client)[b"banned_ms"] <= most
        assert most - 4000 < client.pttl("limiter") <= most


@pytest.mark.parametrize("way", ["RESET", "DEL"])
def test_a_ban_is_lifted_with_the_key(client, way):
    ban(client, "EX", 100)
    assert (client.delete("limiter") if way == "DEL" else ask(client, "RESET", "limiter")) == 1
    assert check(client, 5, *MINUTE)[:3] == [1, 5, 4]


def test_a_ban_counts_as_a_denial(server, client):
    before = server.info("keyward")["keyward_ratelimit_denied"]
    ban(client, "EX", 100)
    check(client, 5, *MINUTE)
    peek(client, 5, *MINUTE)
    assert server.info("keyward")["keyward_ratelimit_denied"] == before + 1


def test_a_ban_of_a_thousand_years(client):
    ban(client, "EX", 86_400 * 365_000)
    assert check(client, 5, *MINUTE)[3] > 86_400_000 * 364_999
