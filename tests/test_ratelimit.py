"""RATELIMIT.* with one sliding limit: what it admits, what it answers, what the key is. Also what all of them refuse."""

import pytest
from ratelimits import MINUTE, TICKS, check, info, peek, used
from raw_client import ErrorReply, RawClient, fields
from servers import eventually

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
    assert used(client) == {("sliding", 60_000): 3}, "what is denied costs nothing"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("command", ["RATELIMIT.CHECK", "RATELIMIT.PEEK", "RATELIMIT.REFUND"])
@pytest.mark.parametrize("limits", [(1, *MINUTE), ("GCRA", 1, *MINUTE, "FIXED", 1, *MINUTE)], ids=["one", "two"])
def test_the_reply_is_seven_integers_in_both_protocols(server, protocol, command, limits):
    with RawClient(server, protocol) as raw:
        for _ in range(2):
            reply = raw.call(command, "limiter", *limits, "COST", 1)
            assert isinstance(reply, list)
            assert [type(item) for item in reply] == [int] * 7


def test_sliding_is_the_default_and_words_are_read_in_any_case(client):
    assert check(client, "SLIDING", 5, *MINUTE)[2] == 4
    assert check(client, "sliding", 5, "ex", 60)[2] == 3
    assert check(client, 5, "Px", 60_000, "cost", 2)[2] == 1
    assert used(client) == {("sliding", 60_000): 4}


def test_ex_and_px_name_the_same_window(client):
    check(client, 5, "EX", 60)
    assert check(client, 5, "PX", 60_000)[2] == 3
    assert used(client) == {("sliding", 60_000): 2}


def test_cost_takes_several_units_or_none(client):
    assert check(client, 10, *MINUTE, "COST", 7)[:3] == [1, 10, 3]
    assert check(client, 10, *MINUTE, "COST", 4)[:3] == [0, 10, 3]
    assert check(client, 10, *MINUTE, "COST", 3)[:3] == [1, 10, 0]
    assert used(client) == {("sliding", 60_000): 10}


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
    assert used(client) == {("sliding", 60_000): most}


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
    assert used(client) == {("sliding", 60_000): 8}


def test_windows_of_one_key_are_separate(client):
    assert check(client, 1, *MINUTE)[0] == 1
    assert check(client, 1, "EX", 3600)[0] == 1
    assert check(client, 1, *MINUTE)[0] == 0
    assert check(client, 2, "EX", 3600)[0] == 1
    assert used(client) == {("sliding", 60_000): 1, ("sliding", 3_600_000): 2}


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
    assert used(client)["sliding", 60_000] >= 990
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


def test_info_tells_each_state_and_a_ban(client, protocol):
    reply = client.execute_command("RATELIMIT.INFO", "limiter")
    assert isinstance(reply, list if protocol == 2 else dict)
    assert fields(reply) == {b"limits": [], b"banned_ms": 0, b"waiters": []}
    check(client, 10, *MINUTE, "GCRA", 6, *MINUTE, "BURST", 9, "FIXED", 10, "EX", 86_400 * 365, "COST", 4)
    check(client, 10, "EX", 3600)
    client.execute_command("RATELIMIT.BAN", "limiter", "EX", 100)
    told = info(client)
    assert 99_000 < told[b"banned_ms"] <= 100_000
    limits = [fields(limit) for limit in told[b"limits"]]
    assert [list(limit) for limit in limits] == [[b"algorithm", b"window_ms", b"used", b"next_ms", b"reset_ms"]] * 4
    assert used(client) == {
        ("sliding", 60_000): 4,
        ("gcra", 60_000): 4,
        ("fixed", 86_400_000 * 365): 4,
        ("sliding", 3_600_000): 1,
    }
    for limit in limits:
        assert 0 < limit[b"next_ms"] <= limit[b"reset_ms"] <= limit[b"window_ms"] * (1 + 1 / TICKS) + 2


# Errors


@pytest.mark.parametrize(
    "command",
    [
        ("RATELIMIT.CHECK", 5, *MINUTE),
        ("RATELIMIT.PEEK", 5, *MINUTE),
        ("RATELIMIT.REFUND", 5, *MINUTE, "COST", 1),
        ("RATELIMIT.BAN", "EX", 60),
        ("RATELIMIT.RESET",),
        ("RATELIMIT.INFO",),
    ],
    ids=lambda command: command[0],
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
        ((5, "PX", 1000, "COST", 1, "COST", 1), SYNTAX),
        ((5, "PX", 1000, "NONSENSE"), SYNTAX),
        ((5, "PXAT", 1000), SYNTAX),
        (("SLIDING", "SLIDING", 5, "PX", 1000), SYNTAX),
        ((5, "PX", 1000, 5, "EX", 1), SYNTAX),
        (("GCRA", 5, "PX", 1000, "GCRA", 6, "PX", 1000, "BURST", 7), SYNTAX),
        ((5, "PX", 1000, "BURST", 5), SYNTAX),
        (("FIXED", 5, "PX", 1000, "BURST", 5), SYNTAX),
        (("GCRA", 5, "PX", 1000, "BURST", 5, "BURST", 5), SYNTAX),
        ((5, "PX", 1000, "RESERVE", 1, "RESERVE", 1), SYNTAX),
        ((5, "PX", 1000, "COST", 1, 5, "PX", 2000), SYNTAX),
        ((5, "PX", 1000, "COST", 1, "RESERVE", 1), SYNTAX),
        ((5, "PX", 1000, "TOKENBUCKET", 5, "PX", 1000), SYNTAX),
        ([word for ms in range(1, 10) for word in (5, "PX", ms)], "ERR a call can name at most 8 limits"),
        (("GCRA", 5, "PX", 1000, "BURST", 0), "ERR BURST must be an integer from 1 to 1000000000000"),
        (("GCRA", 5, "PX", 1000, "BURST", 10**12 + 1), "ERR BURST must be an integer from 1 to 1000000000000"),
        (("GCRA", 5, "PX", 1000, "BURST", "5.5"), NOT_AN_INTEGER),
        ((5, "PX", 1000, "RESERVE", -1), "ERR RESERVE must be an integer from 0 to 1000000000000"),
        ((5, "PX", 1000, "RESERVE", 10**12 + 1), "ERR RESERVE must be an integer from 0 to 1000000000000"),
        ((5, "PX", 1000, "FIXED", 0, "PX", 1000), "ERR count must be an integer from 1 to 1000000000000"),
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
@pytest.mark.parametrize("command", ["RATELIMIT.CHECK", "RATELIMIT.PEEK", "RATELIMIT.REFUND"])
def test_bad_arguments_are_refused_by_name(server, command, words, error):
    with RawClient(server) as raw:
        if command == "RATELIMIT.REFUND" and "COST" not in words:
            words = (*words, "COST", 1)
        reply = raw.call(command, "limiter", *words)
        assert isinstance(reply, ErrorReply)
        assert reply == error.format(command.lower())
        assert raw.call("EXISTS", "limiter") == 0


@pytest.mark.parametrize("words", [(5, "PX", 1000, "COST"), ("GCRA", 5, "PX", 1000, "BURST")], ids=str)
@pytest.mark.parametrize("command", ["RATELIMIT.CHECK", "RATELIMIT.PEEK"])
def test_an_option_without_its_value_is_refused(server, command, words):
    with RawClient(server) as raw:
        assert raw.call(command, "limiter", *words) == SYNTAX
        assert raw.call("EXISTS", "limiter") == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("EX", 1, "x"), "ERR wrong number of arguments for '{}' command"),
        (("PXAT", 1), SYNTAX),
        (("EX", "1.5"), NOT_AN_INTEGER),
        (("EX", 0), "ERR invalid expire time in '{}' command"),
        (("PX", -1), "ERR invalid expire time in '{}' command"),
        (("PX", 2**63 - 1), "ERR invalid expire time in '{}' command"),
        (("EX", 2**63 // 1000), "ERR invalid expire time in '{}' command"),
    ],
    ids=str,
)
def test_bad_bans_are_refused_by_name(server, words, error):
    with RawClient(server) as raw:
        reply = raw.call("RATELIMIT.BAN", "limiter", *words)
        assert isinstance(reply, ErrorReply)
        assert reply.lower() == error.format("ratelimit.ban").lower()
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
        for key in ("limiter", "new"):
            assert raw.call("RATELIMIT.BAN", key, "EX", 60).startswith("OOM ")
        assert raw.call("RATELIMIT.REFUND", "limiter", 3, *MINUTE, "COST", 1)[2] == 1
        assert raw.call("RATELIMIT.CHECK", "limiter", "GCRA", 3, *MINUTE)[0] == 1
        assert raw.call("RATELIMIT.RESET", "limiter") == 1


def test_evictions_of_limiters_that_were_not_full_are_counted(make_server):
    server = make_server(config=["maxmemory-policy allkeys-random", "maxmemory-eviction-tenacity 100"])
    client = server.client()
    for number in range(8):
        check(client, 3, *MINUTE, key=f"limiter:{number}")
    check(client, "GCRA", 3, *MINUTE, "FIXED", 3, "EX", 86_400 * 365, key="several")
    client.execute_command("RATELIMIT.BAN", "banned", "EX", 100)
    with RawClient(server) as raw:
        raw.pipeline([("CONFIG", "SET", "maxmemory", 1), ("SET", "x", "y"), ("CONFIG", "SET", "maxmemory", 0)])
    assert client.dbsize() == 0
    assert server.info("everything")["keyward_ratelimit_evicted"] == 10
