"""RATELIMIT.* with one sliding limit: what it admits, what it answers, how long it says to wait."""

import time

import pytest
from raw_client import ErrorReply, RawClient, fields
from servers import eventually

MINUTE = ("PX", 60_000)
# One entry leaves with its whole tick, which is 1/256 of the window: so much later than exact.
TICKS = 256


def check(client, count, *rest, key="limiter", command="RATELIMIT.CHECK"):
    return client.execute_command(command, key, count, *rest)


def peek(client, count, *rest, key="limiter"):
    return check(client, count, *rest, key=key, command="RATELIMIT.PEEK")


def used(client, key="limiter"):
    """window_ms -> units counted."""
    limits = fields(client.execute_command("RATELIMIT.INFO", key))[b"limits"]
    return {told[b"window_ms"]: told[b"used"] for told in map(fields, limits)}


# Replies


def test_checks_are_allowed_up_to_the_limit_and_then_denied(client):
    for left in (2, 1, 0):
        allowed, limit, remaining, retry_after, next_ms, reset_ms, index = check(client, 3, *MINUTE)
        assert (allowed, limit, remaining, retry_after, index) == (1, 3, left, 0, 0)
        assert 0 < next_ms <= reset_ms <= 60_000 + 60_000 // TICKS + 1
    for _ in range(3):
        allowed, limit, remaining, retry_after, next_ms, reset_ms, index = check(client, 3, *MINUTE)
        assert (allowed, limit, remaining, index) == (0, 3, 0, 0)
        assert 1 <= retry_after <= next_ms <= reset_ms
    assert used(client) == {60_000: 3}, "what is denied costs nothing"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("command", ["RATELIMIT.CHECK", "RATELIMIT.PEEK"])
def test_the_reply_is_seven_integers_in_both_protocols(server, protocol, command):
    with RawClient(server, protocol) as raw:
        for _ in range(2):
            reply = raw.call(command, "limiter", 1, *MINUTE)
            assert isinstance(reply, list)
            assert [type(item) for item in reply] == [int] * 7


def test_sliding_is_the_default_and_words_are_read_in_any_case(client):
    assert check(client, "SLIDING", 5, *MINUTE)[2] == 4
    assert check(client, "sliding", 5, "ex", 60)[2] == 3
    assert check(client, 5, "Px", 60_000, "cost", 2)[2] == 1
    assert used(client) == {60_000: 4}


def test_ex_and_px_name_the_same_window(client):
    check(client, 5, "EX", 60)
    assert check(client, 5, "PX", 60_000)[2] == 3
    assert used(client) == {60_000: 2}


def test_cost_takes_several_units_or_none(client):
    assert check(client, 10, *MINUTE, "COST", 7)[:3] == [1, 10, 3]
    assert check(client, 10, *MINUTE, "COST", 4)[:3] == [0, 10, 3]
    assert check(client, 10, *MINUTE, "COST", 3)[:3] == [1, 10, 0]
    assert used(client) == {60_000: 10}


def test_a_cost_that_never_fits_is_denied_with_minus_one(client):
    for question in (check, peek):
        allowed, limit, remaining, retry_after, next_ms, reset_ms, _ = question(client, 10, *MINUTE, "COST", 11)
        assert (allowed, limit, remaining, retry_after, next_ms, reset_ms) == (0, 10, 10, -1, 0, 0)
    assert client.exists("limiter") == 0
    check(client, 10, *MINUTE, "COST", 4)
    assert check(client, 10, *MINUTE, "COST", 11)[:4] == [0, 10, 6, -1]


def test_a_trillion_units(client):
    most = 10**12
    assert check(client, most, *MINUTE, "COST", most)[:4] == [1, most, 0, 0]
    assert check(client, most, *MINUTE)[0] == 0
    assert used(client) == {60_000: most}


def test_requests_in_one_instant_are_distinct(client):
    """The mistake of a sorted set scored by time: all that share a timestamp count once."""
    pipeline = client.pipeline(transaction=True)
    for _ in range(1000):
        check(pipeline, 100, *MINUTE)
    assert sum(reply[0] for reply in pipeline.execute()) == 100


def test_peek_tells_and_changes_nothing(client):
    assert peek(client, 2, *MINUTE) == [1, 2, 2, 0, 0, 0, 0]
    assert client.exists("limiter") == 0
    check(client, 2, *MINUTE)
    before = client.dump("limiter")
    for _ in range(10):
        allowed, limit, remaining, retry_after, next_ms, reset_ms, index = peek(client, 2, *MINUTE)
        assert (allowed, limit, remaining, retry_after, index) == (1, 2, 1, 0, 0)
        assert 0 < next_ms <= reset_ms
    allowed, _, remaining, retry_after, *_ = peek(client, 2, *MINUTE, "COST", 2)
    assert (allowed, remaining) == (0, 1)
    assert retry_after >= 1
    assert client.dump("limiter") == before


def test_keys_and_databases_have_limits_of_their_own(server, client):
    assert check(client, 1, *MINUTE)[0] == 1
    assert check(client, 1, *MINUTE)[0] == 0
    assert check(client, 1, *MINUTE, key=b"limiter\x00\xff")[0] == 1
    assert check(server.client(db=1), 1, *MINUTE)[0] == 1


# The count may change from call to call; the window names the state


def test_a_new_count_keeps_what_was_consumed(client):
    check(client, 10, *MINUTE, "COST", 6)
    assert check(client, 8, *MINUTE)[:3] == [1, 8, 1]
    assert check(client, 100, *MINUTE)[:3] == [1, 100, 92]
    allowed, limit, remaining, retry_after, *_ = check(client, 3, *MINUTE)
    assert (allowed, limit, remaining) == (0, 3, 0), "never below 0"
    assert retry_after >= 1
    assert check(client, 3, *MINUTE, "COST", 4)[:4] == [0, 3, 0, -1]
    assert used(client) == {60_000: 8}


def test_windows_of_one_key_are_separate(client):
    assert check(client, 1, *MINUTE)[0] == 1
    assert check(client, 1, "EX", 3600)[0] == 1
    assert check(client, 1, *MINUTE)[0] == 0
    assert check(client, 2, "EX", 3600)[0] == 1
    assert used(client) == {60_000: 1, 3_600_000: 2}


def test_a_key_holds_sixteen_windows_at_once(server):
    with RawClient(server) as raw:
        for seconds in range(100, 116):
            assert raw.call("RATELIMIT.CHECK", "limiter", 10, "EX", seconds)[0] == 1
        before = raw.call("DUMP", "limiter")
        reply = raw.call("RATELIMIT.CHECK", "limiter", 10, "EX", 200)
        assert isinstance(reply, ErrorReply)
        assert reply.startswith("ERR ")
        assert raw.call("DUMP", "limiter") == before
        assert raw.call("RATELIMIT.CHECK", "limiter", 10, "EX", 100)[0] == 1


# Time, by really waiting


def test_retry_after_is_kept_to_the_millisecond(client):
    """PEEK denies while a wait is left and allows when it is over, by the server's own clock, which the
    same transaction reads before and after. Whole milliseconds were told, so one may be missing."""
    question = (3, "PX", 250)

    def look(charges=0):
        pipeline = client.pipeline(transaction=True)
        for _ in range(charges):
            check(pipeline, *question)
        pipeline.time()
        peek(pipeline, *question)
        pipeline.time()
        before, reply, after = pipeline.execute()[charges:]
        return *((seconds * 1000 + us / 1000) for seconds, us in (before, after)), reply

    before, after, (allowed, _, _, retry_after, *_) = look(charges=3)
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
    assert check(client, *question)[0] == 1


def test_next_and_reset_are_kept(client):
    check(client, 5, "PX", 600, "COST", 2)
    first = peek(client, 5, "PX", 600)
    eventually(lambda: peek(client, 5, "PX", 600)[4] < first[4] - 150)
    check(client, 5, "PX", 600)
    _, _, remaining, _, next_ms, reset_ms, _ = peek(client, 5, "PX", 600)
    assert remaining == 2
    assert 0 < next_ms < reset_ms <= 600 + 600 / TICKS + 2
    begun = time.monotonic()
    eventually(lambda: peek(client, 5, "PX", 600)[2] == 4)
    assert time.monotonic() - begun >= (next_ms - 2) / 1000, "remaining grew before it was told"
    assert peek(client, 5, "PX", 600)[4] <= reset_ms
    eventually(lambda: peek(client, 5, "PX", 600)[2] == 5)
    assert time.monotonic() - begun >= (reset_ms - 2) / 1000, "full before it was told"
    assert peek(client, 5, "PX", 600) == [1, 5, 5, 0, 0, 0, 0]


def test_no_window_ever_admits_more_than_the_limit(client):
    """Hammered for several windows. Admissions are timed by the server between two readings of its
    clock, so a span that is shorter than the window for sure must not hold more than the limit."""
    limit, window = 20, 100
    admitted = []
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        pipeline = client.pipeline(transaction=True)
        pipeline.time()
        for _ in range(5):
            check(pipeline, limit, "PX", window)
        pipeline.time()
        before, *replies, after = pipeline.execute()
        allowed = sum(reply[0] for reply in replies)
        admitted += [(before[0] * 1_000_000 + before[1], after[0] * 1_000_000 + after[1])] * allowed
    assert len(admitted) > 2 * limit, "and it goes on admitting"
    for first, last in zip(admitted, admitted[limit:], strict=False):
        assert last[1] - first[0] >= window * 1000


def test_denied_requests_do_not_put_off_the_next_allowed_one(client):
    """A client at ten times the rate gets what it is due."""
    admitted = 0
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        admitted += check(client, 2, "PX", 50)[0]
    # Of 20 that a client with perfect timing gets; 2 if what is denied were counted.
    assert admitted >= 6


# The key


def test_a_limiter_is_gone_when_it_is_full_again(client):
    check(client, 5, "PX", 5000)
    assert client.type("limiter") == b"kw-limit1"
    assert 0 < client.pttl("limiter") <= 5000 + 5000 // TICKS + 2
    check(client, 5, "EX", 100)
    assert 99_000 < client.pttl("limiter") <= 100_000 + 100_000 // TICKS + 2
    check(client, 5, "PX", 50, key="short")
    eventually(lambda: client.exists("short") == 0)
    assert peek(client, 5, "PX", 50, key="short") == [1, 5, 5, 0, 0, 0, 0]


def test_the_ttl_lasts_until_full_and_not_longer(client):
    check(client, 5, *MINUTE)
    reset_ms = peek(client, 5, *MINUTE)[5]
    assert abs(client.pttl("limiter") - reset_ms) <= 20


@pytest.mark.parametrize("windows", [1, 2])
def test_a_limiter_of_a_thousand_a_minute_takes_less_than_a_kilobyte_and_a_half(server, windows):
    """Filled as badly as can be: spread over all ticks. Effects carry their moment, so a minute need
    not be waited for. The issue's bound is for one window."""
    client = server.client()
    seconds, _ = client.time()
    begin = (seconds - 59) * 1_000_000
    pipeline = client.pipeline(transaction=False)
    for number in range(1000):
        moment = begin + number * 59_000
        pipeline.execute_command("KEYWARD.APPLY", "CHARGE", "limiter", "SLIDING", 60_000, moment, 1)
    pipeline.execute()
    if windows == 2:
        check(client, 1000, "EX", 1)
    assert used(client)[60_000] >= 990
    assert client.memory_usage("limiter") < 1536


def test_memory_does_not_grow_with_the_count(client):
    for number in range(3000):
        check(client, 10**12, "EX", 1, "COST", 10**6 + number)
    assert client.memory_usage("limiter") < 2048


def test_memory_returns_when_all_limiters_are_gone(make_server):
    client = make_server().client()

    def fill_and_empty():
        pipeline = client.pipeline(transaction=False)
        for number in range(5000):
            check(pipeline, 10, *MINUTE, "COST", 3, key=f"limiter:{number}")
        pipeline.execute()
        client.flushall(asynchronous=False)
        return client.info("memory")["used_memory_dataset"]

    base = fill_and_empty()
    for _ in range(4):
        fill_and_empty()
    # Freed in the background on some servers.
    eventually(lambda: client.info("memory")["used_memory_dataset"] - base < 200_000)


# RESET


def test_reset_forgets_and_counts_what_was_there(client):
    for key in ("a", "b"):
        check(client, 1, *MINUTE, key=key)
    assert client.execute_command("RATELIMIT.RESET", "a", "b", "no such key") == 2
    assert client.exists("a", "b") == 0
    assert check(client, 1, *MINUTE, key="a")[0] == 1
    assert client.execute_command("RATELIMIT.RESET", "b") == 0
    assert client.execute_command("RATELIMIT.RESET", "a", "a") == 1


def test_reset_of_a_key_of_another_type_does_nothing_at_all(server):
    with RawClient(server) as raw:
        raw.call("RATELIMIT.CHECK", "a", 1, *MINUTE)
        raw.call("SET", "string", "value")
        raw.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        for other in ("string", "lock"):
            reply = raw.call("RATELIMIT.RESET", "a", other)
            assert isinstance(reply, ErrorReply)
            assert reply.startswith("WRONGTYPE ")
        assert raw.call("EXISTS", "a", "string", "lock") == 3
        assert raw.call("RATELIMIT.CHECK", "a", 1, *MINUTE)[0] == 0


# INFO


def test_info_tells_each_window(client, protocol):
    reply = client.execute_command("RATELIMIT.INFO", "limiter")
    assert isinstance(reply, list if protocol == 2 else dict)
    assert fields(reply) == {b"limits": []}
    check(client, 10, *MINUTE, "COST", 4)
    check(client, 10, "EX", 3600)
    limits = [fields(told) for told in fields(client.execute_command("RATELIMIT.INFO", "limiter"))[b"limits"]]
    assert [list(told) for told in limits] == [[b"algorithm", b"window_ms", b"used", b"next_ms", b"reset_ms"]] * 2
    assert {(told[b"algorithm"], told[b"window_ms"], told[b"used"]) for told in limits} == {
        (b"sliding", 60_000, 4),
        (b"sliding", 3_600_000, 1),
    }
    for told in limits:
        assert 0 < told[b"next_ms"] <= told[b"reset_ms"] <= told[b"window_ms"] * (1 + 1 / TICKS) + 2


# Errors


@pytest.mark.parametrize(
    "command",
    [("RATELIMIT.CHECK", 5, *MINUTE), ("RATELIMIT.PEEK", 5, *MINUTE), ("RATELIMIT.RESET",), ("RATELIMIT.INFO",)],
)
@pytest.mark.parametrize("kind", ["string", "hash", "lock"])
def test_a_key_of_another_type_is_refused_and_left_alone(server, command, kind):
    with RawClient(server) as raw:
        match kind:
            case "string":
                raw.call("SET", b"key\xff", "value")
            case "hash":
                raw.call("HSET", b"key\xff", "field", "value")
            case "lock":
                raw.call("LOCK.ACQUIRE", b"key\xff", "ann", "PX", 60_000)
        before = raw.call("DUMP", b"key\xff")
        reply = raw.call(command[0], b"key\xff", *command[1:])
        assert isinstance(reply, ErrorReply)
        assert reply == "WRONGTYPE Operation against a key holding the wrong kind of value"
        assert raw.call("DUMP", b"key\xff") == before


SYNTAX = "ERR syntax error"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((5, "PX", 1000, "COST"), SYNTAX),
        ((5, "PX", 1000, "COST", 1, "COST", 1), SYNTAX),
        ((5, "PX", 1000, "NONSENSE"), SYNTAX),
        ((5, "PXAT", 1000), SYNTAX),
        (("SLIDING", "SLIDING", 5, "PX", 1000), "ERR"),
        ((5, "PX", 1000, 5, "PX", 1000), SYNTAX),
        (("+5", "PX", 1000), NOT_AN_INTEGER),
        (("05", "PX", 1000), NOT_AN_INTEGER),
        ((" 5", "PX", 1000), NOT_AN_INTEGER),
        ((2**63, "PX", 1000), NOT_AN_INTEGER),
        ((5, "PX", "1e3"), NOT_AN_INTEGER),
        ((5, "PX", 1000, "COST", "x"), NOT_AN_INTEGER),
        ((0, "PX", 1000), "ERR count must be an integer from 1 to 1000000000000"),
        ((-1, "PX", 1000), "ERR count must be an integer from 1 to 1000000000000"),
        ((10**12 + 1, "PX", 1000), "ERR count must be an integer from 1 to 1000000000000"),
        ((5, "PX", 1000, "COST", 0), "ERR COST must be an integer from 1 to 1000000000000"),
        ((5, "PX", 1000, "COST", -1), "ERR COST must be an integer from 1 to 1000000000000"),
        ((5, "PX", 1000, "COST", 10**12 + 1), "ERR COST must be an integer from 1 to 1000000000000"),
        ((5, "PX", 0), "ERR invalid expire time in '{}' command"),
        ((5, "EX", -1), "ERR invalid expire time in '{}' command"),
        ((5, "EX", 2**63 - 1), "ERR invalid expire time in '{}' command"),
        ((5, "PX", 2**63 - 1), "ERR invalid expire time in '{}' command"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["RATELIMIT.CHECK", "RATELIMIT.PEEK"])
def test_bad_arguments_are_refused_by_name(server, command, words, error):
    with RawClient(server) as raw:
        reply = raw.call(command, "limiter", *words)
        assert isinstance(reply, ErrorReply)
        assert reply == error.format(command.lower()) if error != "ERR" else reply.startswith("ERR ")
        assert raw.call("EXISTS", "limiter") == 0


# Memory


def test_when_memory_is_full_known_limiters_go_on_and_new_ones_are_refused(make_server):
    server = make_server(config=["maxmemory-policy noeviction"])
    client = server.client()
    check(client, 3, *MINUTE)
    client.config_set("maxmemory", 1)
    with RawClient(server) as raw:
        assert raw.call("RATELIMIT.CHECK", "limiter", 3, *MINUTE)[0] == 1
        assert raw.call("RATELIMIT.CHECK", "limiter", 3, *MINUTE)[0] == 1
        assert raw.call("RATELIMIT.CHECK", "limiter", 3, *MINUTE)[0] == 0
        reply = raw.call("RATELIMIT.CHECK", "new", 3, *MINUTE)
        assert isinstance(reply, ErrorReply)
        assert reply.startswith("OOM ")
        assert raw.call("EXISTS", "new") == 0
        assert raw.call("RATELIMIT.PEEK", "new", 3, *MINUTE)[0] == 1
        assert raw.call("RATELIMIT.RESET", "limiter") == 1


def test_evictions_of_limiters_that_were_not_full_are_counted(make_server):
    server = make_server(config=["maxmemory-policy allkeys-random", "maxmemory-eviction-tenacity 100"])
    client = server.client()
    for number in range(10):
        check(client, 3, *MINUTE, key=f"limiter:{number}")
    with RawClient(server) as raw:
        raw.pipeline([("CONFIG", "SET", "maxmemory", 1), ("SET", "x", "y"), ("CONFIG", "SET", "maxmemory", 0)])
    assert client.dbsize() == 0
    assert server.info("everything")["keyward_ratelimit_evicted"] == 10
