"""CL.THROTTLE: redis-cell's five integers and its state, and where redis-cell is wrong, what is right."""

import os
import random
import re
import threading
from pathlib import Path

import pytest
import redis
from propagation import ReplicationStream, aof_commands
from raw_client import ErrorReply, RawClient
from servers import ServerFailed, eventually, module_path

DAY = 86_400
NOT_AN_INTEGER = "ERR value is not an integer or out of range"


def throttle(client, *numbers, key="limit"):
    return client.execute_command("CL.THROTTLE", key, *numbers)


def now_us(client):
    seconds, microseconds = client.time()
    return seconds * 1_000_000 + microseconds


# Sets a state so many milliseconds ahead of now, and calls at once: no time passes in between that could be seen.
SET_AND_CALL = """
local time = redis.call('TIME')
local tat = time[1] * 1000000 + time[2] + ARGV[1] * 1000
redis.call('SET', KEYS[1], string.format('%.0f', tat) .. '000')
return redis.call('CL.THROTTLE', KEYS[1], unpack(ARGV, 2))
"""


def throttle_ahead(client, ahead_ms, *numbers, key="limit"):
    return client.eval(SET_AND_CALL, 1, key, ahead_ms, *numbers)


# The same integers


# Its own table, for a burst of 4 and 1 per second: how far ahead the rows before left the state, in milliseconds, and the
# quantity; limited, remaining, reset, retry.
TABLE = [
    (0, 6, 1, 5, 0, -1),
    (0, 1, 0, 4, 1, -1),
    (1000, 1, 0, 3, 2, -1),
    (2000, 1, 0, 2, 3, -1),
    (3000, 1, 0, 1, 4, -1),
    (4000, 1, 0, 0, 5, -1),
    (5000, 1, 1, 0, 5, 1),
    (2000, 1, 0, 2, 3, -1),  # at 3000 ms
    (2900, 1, 0, 1, 4, -1),  # at 3100 ms
    (3000, 1, 0, 1, 4, -1),  # at 4000 ms
    (0, 1, 0, 4, 1, -1),  # at 8000 ms
    (-500, 1, 0, 4, 1, -1),  # at 9500 ms
    (1000, 0, 0, 4, 1, -1),
    (1000, 2, 0, 2, 3, -1),
    (3000, 5, 1, 2, 3, 3),
]


def test_the_table_of_redis_cell(client):
    for ahead_ms, quantity, limited, remaining, reset, retry in TABLE:
        told = throttle_ahead(client, ahead_ms, 4, 1, 1, quantity)
        assert told == [limited, 5, remaining, retry, reset], (ahead_ms, quantity)


@pytest.mark.parametrize(
    "calls",
    [
        [((15, 30, 60), [0, 16, 15, -1, 2]), ((15, 30, 60, 0), [0, 16, 15, -1, 2])],
        [((0, 1, 10), [0, 1, 0, -1, 10]), ((0, 1, 10), [1, 1, 0, 10, 10]), ((0, 1, 10, 2), [1, 1, 0, -1, 10])],
        [((5, 1, 10, 3), [0, 6, 3, -1, 30]), ((5, 1, 10, -1), [0, 6, 4, -1, 20])],
        [((10, 2000, 1), [0, 11, 10, -1, 0])],
    ],
    ids=str,
)
def test_rows_measured_on_redis_cell(client, calls):
    for numbers, told in calls:
        assert throttle(client, *numbers) == told


def test_three_per_second_without_a_burst(client):
    """A third of a second is told as 1."""
    script = "local a = redis.call(unpack(ARGV)) local b = redis.call(unpack(ARGV)) return {a, b}"
    first, second = client.eval(script, 1, "limit", "CL.THROTTLE", "limit", 0, 3, 1)
    assert (first, second) == ([0, 1, 0, -1, 1], [1, 1, 0, 1, 1])


def test_quantity_0_looks_and_creates_nothing(client):
    assert throttle(client, 15, 30, 60, 0) == [0, 16, 16, -1, 0]
    assert client.exists("limit") == 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_reply_is_five_integers_in_both_protocols(server, protocol):
    with RawClient(server, protocol) as raw:
        reply = raw.call("CL.THROTTLE", "limit", 0, 1, 10)
        assert reply == [0, 1, 0, -1, 10]
        assert [type(item) for item in reply] == [int] * 5


def test_the_words_of_the_name_are_read_in_any_case(client):
    assert client.execute_command("cl.Throttle", "limit", 4, 1, 10)[0] == 0


# The same state


def test_the_state_is_a_string_of_nanoseconds_that_expires(client):
    before = now_us(client)
    throttle(client, 15, 30, 60)
    after = now_us(client)
    assert client.type("limit") == b"string"
    tat = int(client.get("limit"))
    assert before * 1000 <= tat - 2_000_000_000 <= after * 1000
    expiry = client.execute_command("PEXPIRETIME", "limit")
    assert expiry == -(-tat // 1_000_000), "rounded up"


def test_a_state_that_redis_cell_wrote_is_gone_on_with(client):
    """Its number has nanoseconds, and an expiry of its own, or none."""
    tat = now_us(client) * 1000 + 30_000_000_123
    client.set("limit", tat, px=29_999)
    limited, limit, remaining, retry, reset = throttle(client, 5, 1, 10)
    assert (limited, limit, remaining, retry) == (0, 6, 2, -1)
    assert reset in (39, 40)
    assert int(client.get("limit")) == tat + 10_000_000_000
    client.set("limit", tat)
    assert throttle(client, 2, 1, 10)[0] == 1
    assert client.get("limit") == str(tat).encode(), "a denial changes nothing"


def test_the_value_decides_and_not_the_expiry(client):
    throttle(client, 0, 10, 1)
    client.persist("limit")
    assert throttle(client, 0, 10, 1)[0] == 1
    eventually(lambda: throttle(client, 0, 10, 1, 0)[2] == 1)
    assert client.exists("limit") == 1, "it has drained, and nothing removed it"
    assert throttle(client, 0, 1, 100) == [0, 1, 0, -1, 100]
    assert 0 < client.pttl("limit") <= 100_001


def test_del_resets(client):
    assert throttle(client, 0, 1, 100)[0] == 0
    assert throttle(client, 0, 1, 100)[0] == 1
    client.delete("limit")
    assert throttle(client, 0, 1, 100)[0] == 0


def test_keys_and_databases_have_limits_of_their_own(server, client):
    assert throttle(client, 0, 1, 100)[0] == 0
    assert throttle(client, 0, 1, 100, key="other")[0] == 0
    assert throttle(server.client(db=1), 0, 1, 100)[0] == 0


def test_an_admission_is_a_change_to_those_who_watch_and_a_denial_is_none(server, client):
    other = server.client()
    for changed in (True, False):
        with client.pipeline() as pipeline:
            pipeline.watch("limit")
            assert throttle(other, 0, 1, 100)[0] == (0 if changed else 1)
            pipeline.multi()
            pipeline.ping()
            if changed:
                with pytest.raises(redis.WatchError):
                    pipeline.execute()
            else:
                assert pipeline.execute() == [True]


# Where redis-cell is wrong


@pytest.mark.parametrize("make", [("RPUSH", "limit", "x"), ("HSET", "limit", "a", "1"), ("SADD", "limit", "1")])
def test_a_key_of_another_type(server, make):
    with RawClient(server) as raw:
        raw.call(*make)
        assert raw.call("CL.THROTTLE", "limit", 1, 1, 1).startswith("WRONGTYPE ")
        assert raw.call("TYPE", "limit") != "string"


@pytest.mark.parametrize(
    "text", [b"", b"text", b"-5", b"1.5", b" 1", b"01", b"\xff\x00", b"1" * 25, str(2**64 - 1).encode()]
)
def test_a_string_that_is_no_state(server, text):
    with RawClient(server) as raw:
        raw.call("SET", "limit", text)
        for quantity in (1, 0, -1):
            assert raw.call("CL.THROTTLE", "limit", 1, 1, 1, quantity) == NOT_AN_INTEGER
        assert raw.call("GET", "limit") == text


@pytest.mark.parametrize("key", [b"\xff\xfe\x00", b"", b"%s%n\r\n"])
def test_a_key_of_any_bytes(client, key):
    assert throttle(client, 4, 1, 100, key=key) == [0, 5, 4, -1, 100]
    assert int(client.get(key)) > 0


def test_remaining_is_never_above_the_limit(client):
    assert throttle_ahead(client, -10_000, 4, 1, 1, 0) == [0, 5, 5, -1, 0]
    assert throttle_ahead(client, -10_000, 4, 1, 1, 9) == [1, 5, 5, -1, 0]
    # Microseconds would be too coarse here.
    assert throttle(client, 10, 600_000, 1, key="fast")[2] <= 11


def test_a_denial_is_never_told_to_come_back_at_once(client):
    """Half a millisecond is left; in one script, so that it is not over before it is seen."""
    reply = throttle_ahead(client, 1000, 0, 2000, 1)
    assert reply[0] == 1
    assert reply[3] >= 1


def test_a_refund_beyond_full_leaves_no_key(client):
    throttle(client, 5, 1, 10, 3)
    assert throttle(client, 5, 1, 10, -4) == [0, 6, 6, -1, 0]
    assert client.exists("limit") == 0
    assert throttle(client, 5, 1, 10, -4) == [0, 6, 6, -1, 0]
    assert client.exists("limit") == 0
    assert throttle(client, 5, 1, 10, 7)[0] == 1, "nothing was saved up"


@pytest.mark.parametrize("rate", [(0, 1500, 1), (3, 700, 1)])
def test_no_more_than_the_rate_gets_through(client, rate):
    """Expiries that are rounded down let 1.27 times the first one through."""
    burst, count, period = rate
    admitted, begun = 0, now_us(client)
    while (ended := now_us(client)) - begun < 500_000:
        pipeline = client.pipeline(transaction=False)
        for _ in range(100):
            throttle(pipeline, *rate)
        admitted += sum(reply[0] == 0 for reply in pipeline.execute())
    ended = now_us(client)
    most = burst + 1 + (ended - begun) * count / period / 1_000_000
    assert burst + 1 < admitted <= most


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ((1, 0, 1), "ERR zero rates are not supported"),
        ((1, 1, 0), "ERR zero rates are not supported"),
        ((-1, 1, 1), "ERR max_burst out of range (0 or more)"),
        ((1, -1, 1), "ERR count out of range (1 or more)"),
        ((1, 1, -1), "ERR period out of range (1 or more)"),
        ((-(2**63), -(2**63), -(2**63), -(2**63)), "ERR max_burst out of range"),
        ((1, 10**9 + 1, 1), "ERR count out of range (at most 1000000000 a second)"),
        ((1, 2**63 - 1, 1), "ERR count out of range"),
        ((2**63 - 1, 1, 1), "ERR max_burst, count and period out of range (at most 4611686018 seconds to drain)"),
        ((0, 1, 2**63 - 1), "ERR max_burst, count and period out of range"),
        ((2**63 - 1, 2**63 - 1, 2**63 - 1, 2**63 - 1), "ERR max_burst, count and period out of range"),
        ((1, 1, 1, 2**63 - 1), "ERR quantity out of range (at most 4611686018 seconds to drain)"),
        ((1, 1, 1, -(2**63)), "ERR quantity out of range"),
        ((2**63, 1, 1), NOT_AN_INTEGER),
        ((1, 1, 1, -(2**63) - 1), NOT_AN_INTEGER),
        (("+1", 1, 1), NOT_AN_INTEGER),
        ((1, "01", 1), NOT_AN_INTEGER),
        ((1, 1, "1.5"), NOT_AN_INTEGER),
        ((1, 1, 1, ""), NOT_AN_INTEGER),
        ((1, 1), "ERR wrong number of arguments for 'cl.throttle' command"),
        ((1, 1, 1, 1, 1), "ERR wrong number of arguments for 'cl.throttle' command"),
    ],
    ids=str,
)
def test_numbers_that_overflow_or_are_none(server, numbers, error):
    with RawClient(server) as raw:
        for state in (None, "5", str(2**63 - 1)):
            if state:
                raw.call("SET", "limit", state)
            reply = raw.call("CL.THROTTLE", "limit", *numbers)
            assert isinstance(reply, ErrorReply)
            assert reply.startswith(error)
            assert raw.call("GET", "limit") == (state.encode() if state else None)


def test_the_greatest_numbers_that_fit(client):
    assert throttle(client, 2**32 - 1, 1, 1) == [0, 2**32, 2**32 - 1, -1, 1]
    assert throttle(client, 2**32 - 1, 1, 1, 2**32) == [1, 2**32, 2**32 - 1, 1, 1]
    assert throttle(client, 0, 10**9, 1, key="fast")[:2] == [0, 1]
    assert throttle(client, 0, 1, 4_611_686_018, key="slow") == [0, 1, 0, -1, 4_611_686_018]


def test_a_state_far_ahead_denies_for_one_drain_and_is_stored_so_once(make_server):
    """As after a clock that was set back across a restart, or written by hand."""
    server = make_server()
    client = server.client()
    for tat in (now_us(client) * 1000 + 3600 * 10**9, 2**63 - 1):
        client.set("limit", tat)
        with ReplicationStream(server) as stream:
            assert throttle(client, 4, 1, 10, 0) == [0, 5, 0, -1, 50]
            assert stream.read() == []
            assert throttle(client, 4, 1, 10) == [1, 5, 0, 10, 50]
            ((name, key, stored, *_),) = stream.read()
            assert (name, key) == (b"SET", b"limit")
            assert int(stored) < tat
            assert throttle(client, 4, 1, 10)[:3] == [1, 5, 0]
            assert stream.read() == []


def test_callers_with_different_bursts_share_what_is_consumed(make_server):
    """A stricter one is denied for as long as redis-cell says, and does not cut down what the other has used."""
    client = make_server().client()
    assert throttle(client, 99, 1, 10, 100)[0] == 0
    for _ in range(3):
        assert throttle(client, 0, 1, 10)[:4] == [1, 1, 0, 1000]
        assert throttle(client, 99, 1, 10)[:3] == [1, 100, 0]


# Many at once


def test_ten_clients_at_once_are_admitted_exactly_the_limit(server):
    admitted = []

    def hammer():
        with RawClient(server) as raw:
            replies = [raw.call("CL.THROTTLE", "limit", 99, 1, DAY) for _ in range(50)]
            admitted.extend(reply[0] == 0 for reply in replies)

    threads = [threading.Thread(target=hammer) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 500
    assert sum(admitted) == 100


def test_what_is_admitted_and_denied_is_counted(client):
    def counted():
        report = client.info("keyward_ratelimit")
        return report["keyward_ratelimit_allowed"], report["keyward_ratelimit_denied"]

    allowed, denied = counted()
    for quantity in (1, 1, 1, 0, -1):
        throttle(client, 1, 1, DAY, quantity)
    assert counted() == (allowed + 2, denied + 1)


# Replication and persistence


def without_transaction(commands):
    return [command for command in commands if command[0] not in (b"MULTI", b"EXEC")]


def effect_of(client, key=b"limit"):
    return [b"SET", key, client.get(key), b"PXAT", b"%d" % client.execute_command("PEXPIRETIME", key)]


def test_an_admission_is_one_set_with_absolute_times(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        throttle(client, 4, 1, DAY, key=b"k\x00\xff")
        assert stream.read() == [effect_of(client, b"k\x00\xff")]
        throttle(client, 4, 1, DAY, -1, key=b"k\x00\xff")
        (removal,) = without_transaction(stream.read())
        assert removal == [b"UNLINK", b"k\x00\xff"]


def test_what_changes_nothing_propagates_not_a_byte(make_server):
    server = make_server(config=["appendonly yes"])
    client = server.client()
    throttle(client, 0, 1, DAY)
    with ReplicationStream(server) as stream:
        offset, size = server.info("replication")["master_repl_offset"], len(aof_commands(server))
        pipeline = client.pipeline(transaction=False)
        for quantity in (1, 0, 2, 5) * 250:
            throttle(pipeline, 0, 1, DAY, quantity)
        throttle(pipeline, 0, 1, DAY, -5, key="none")
        throttle(pipeline, 0, 1, DAY, 5, key="none")
        pipeline.execute()
        assert stream.read() == []
        assert server.info("replication")["master_repl_offset"] == offset
        assert len(aof_commands(server)) == size


def test_effects_of_scripts_and_transactions(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        client.eval("for i = 1, 5 do redis.call('CL.THROTTLE', KEYS[1], 2, 1, 86400) end", 1, "script")
        pipeline = client.pipeline(transaction=True)
        for _ in range(5):
            throttle(pipeline, 2, 1, DAY, key="transaction")
        assert [reply[0] for reply in pipeline.execute()] == [0, 0, 0, 1, 1]
        effects = without_transaction(stream.read())
        assert [effect[:2] for effect in effects] == [[b"SET", b"script"]] * 3 + [[b"SET", b"transaction"]] * 3


def fill(client):
    for number in range(20):
        throttle(client, 30, 1, DAY, number % 3 + 1, key=f"limit:{number % 4}")
    throttle(client, 5, 1, DAY, 3, key="refunded")
    throttle(client, 5, 1, DAY, -2, key="refunded")
    throttle(client, 5, 1, DAY, 3, key="full")
    throttle(client, 5, 1, DAY, -3, key="full")


def seen(client):
    return {key: (client.get(key), client.execute_command("PEXPIRETIME", key)) for key in client.scan_iter()}


def test_a_replica_has_the_same_states_and_goes_on_when_promoted(make_server):
    primary, replica = make_server(), make_server()
    client = primary.client()
    fill(client)
    replica.replicate_from(primary).wait_until_synced()
    fill(client)
    replica.wait_until_synced()
    copy = replica.client()
    assert seen(copy) == seen(client)
    digests = [server.execute_command("DEBUG", "DIGEST") for server in (client, copy)]
    assert digests[0] == digests[1]
    with pytest.raises(redis.ReadOnlyError):
        throttle(copy, 5, 1, DAY, key="refunded")
    replica.promote()
    assert throttle(copy, 5, 1, DAY, 4, key="refunded")[:3] == throttle(client, 5, 1, DAY, 4, key="refunded")[:3]


@pytest.mark.parametrize("way", ["rdb", "aof", "rewritten-no-preamble"])
def test_a_restarted_server_has_the_same_states(make_server, way):
    config = ["save 3600 1"] if way == "rdb" else ["appendonly yes"]
    if way == "rewritten-no-preamble":
        config.append("aof-use-rdb-preamble no")
    server = make_server(config=config)
    client = server.client()
    fill(client)
    if way == "rdb":
        client.save()
    elif way != "aof":
        client.bgrewriteaof()
        eventually(lambda: not server.info("persistence")["aof_rewrite_in_progress"])
    before = seen(client)
    assert b"full" not in before
    server.kill9()
    server.start()
    assert seen(server.client()) == before


def test_an_aof_written_by_redis_cell_loads(make_server):
    """It has the commands, which are decided anew, as redis-cell does."""
    server = make_server(config=["appendonly yes"])
    server.stop()
    (incremental,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    words = (b"CL.THROTTLE", b"limit", b"4", b"1", b"86400")
    with incremental.open("ab") as file:
        for command in ((b"SELECT", b"0"), words, words):
            file.write(b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command))
    server.start()
    assert throttle(server.client(), 4, 1, DAY, 0)[:3] == [0, 5, 3]


# Memory


def test_when_memory_is_full_known_keys_go_on_and_new_ones_are_refused(make_server):
    client = make_server(config=["maxmemory-policy noeviction"]).client()
    throttle(client, 2, 1, DAY)
    client.config_set("maxmemory", 1)
    assert throttle(client, 2, 1, DAY)[:3] == [0, 3, 1]
    assert throttle(client, 2, 1, DAY)[:3] == [0, 3, 0]
    assert throttle(client, 2, 1, DAY)[0] == 1
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        throttle(client, 2, 1, DAY, key="new")
    assert throttle(client, 2, 1, DAY, 0, key="new") == [0, 3, 3, -1, 0]
    assert client.exists("new") == 0
    assert throttle(client, 2, 1, DAY, -3) == [0, 3, 3, -1, 0]


# Who has the name

# A command of the server's own under this name stands in for another module that has it.
TAKEN = "rename-command SUBSTR cl.throttle"


def commands(server):
    return server.client(decode=True).command_list(module="keyward")


def said(server, level):
    return re.findall(rf" {re.escape(level)} <(?:keyward|module)> (.*)", server.log())


def test_by_default_it_is_there(server):
    assert "cl.throttle" in commands(server)
    assert server.client(decode=True).config_get("keyward.cl-throttle") == {"keyward.cl-throttle": "auto"}


@pytest.mark.parametrize("way", ["argument", "redis.conf", "loadex", "loadex argument"])
def test_no_leaves_it_out(make_server, way):
    match way:
        case "argument":
            server = make_server(args=["cl-throttle", "NO"])
        case "redis.conf":
            server = make_server(config=["keyward.cl-throttle no"])
        case _:
            server = make_server(module=False)
            words = ("CONFIG", "keyward.cl-throttle", "no") if way == "loadex" else ("ARGS", "cl-throttle", "no")
            load = ("MODULE", "LOADEX", str(module_path()), *words)
            assert server.client().execute_command(*load) == b"OK"
    with pytest.raises(redis.ResponseError, match="unknown command"):
        throttle(server.client(), 1, 1, 1)
    assert "cl.throttle" not in commands(server)
    assert "ratelimit.check" in commands(server)
    assert server.client(decode=True).config_get("keyward.cl-throttle") == {"keyward.cl-throttle": "no"}
    with pytest.raises(redis.ResponseError):
        server.client().config_set("keyward.cl-throttle", "yes")


@pytest.mark.parametrize("setting", [[], ["keyward.cl-throttle auto"]])
def test_auto_leaves_a_name_that_is_taken_alone_and_says_so(make_server, setting):
    server = make_server(config=[TAKEN, *setting])
    client = server.client()
    client.set("k", "value")
    assert client.execute_command("CL.THROTTLE", "k", 0, 1) == b"va"
    assert "cl.throttle" not in commands(server)
    assert "ratelimit.check" in commands(server)
    (line,) = (line for line in said(server, "*") if "CL.THROTTLE" in line)
    assert "already" in line


def test_yes_takes_the_name_or_fails_the_load(make_server):
    assert "cl.throttle" in commands(make_server(config=["keyward.cl-throttle yes"]))
    for options in (
        {"config": [TAKEN, "keyward.cl-throttle yes"]},
        {"config": [TAKEN], "args": ["cl-throttle", "yes"]},
    ):
        with pytest.raises(ServerFailed, match=r"<(keyward|module)> .*CL\.THROTTLE already"):
            make_server(**options)


def test_a_load_that_fails_for_the_name_leaves_the_server_as_it_was(make_server):
    server = make_server(module=False, config=[TAKEN])
    client = server.client()
    load = ("MODULE", "LOADEX", str(module_path()), "CONFIG", "keyward.cl-throttle")
    with pytest.raises(redis.ResponseError):
        client.execute_command(*load, "yes")
    assert client.config_get("keyward.*") == {}
    client.set("k", "value")
    client.bgrewriteaof()
    assert client.execute_command(*load, "no") == b"OK"
    assert client.execute_command("CACHE.GET", "k") == b"value"


# Beside the real one


def test_redis_cell_answers_the_same_and_each_reads_what_the_other_wrote(make_server):
    path = os.environ.get("KEYWARD_REDIS_CELL")
    if not path:
        pytest.skip("KEYWARD_REDIS_CELL names no libredis_cell.so")
    load_cell = f"loadmodule {Path(path).resolve()}"
    cell_server = make_server(module=False, config=[load_cell])
    cell, ours = cell_server.client(), make_server().client()
    both = make_server(module=False, config=[load_cell, f"loadmodule {module_path()}"])
    assert "cl.throttle" not in commands(both)
    assert throttle(both.client(), 4, 1, 100)[:3] == [0, 5, 4]

    # Intervals so long that the moments of the two calls make no difference but in the seconds.
    draw = random.Random(0)
    for number in range(30):
        key = f"limit:{number}"
        count, period = draw.choice([(1, 1000), (3, 9000), (2, 999)])
        for _ in range(3):
            for _ in range(8):
                burst = draw.choice([0, 4, 4, 4, 15])
                consumed = throttle(ours, burst, count, period, 0, key=key)
                # Refunds beyond full are one of the differences.
                back = min(2, consumed[1] - consumed[2] - 1)
                quantity = draw.choice([1, 1, 1, 2, 3, burst + 1, burst + 2, 0, -max(0, back)])
                told, theirs = (throttle(client, burst, count, period, quantity, key=key) for client in (ours, cell))
                assert told[:3] == theirs[:3], (burst, count, period, quantity)
                for second, their_second in zip(told[3:], theirs[3:], strict=True):
                    assert abs(second - their_second) <= 1
                    assert (second == -1) == (their_second == -1)
            state, their_state = ours.get(key), cell.get(key)
            assert (state is None) == (their_state is None)
            if state is not None:
                assert re.fullmatch(rb"\d{19}", state)
                assert re.fullmatch(rb"\d{19}", their_state)
                # Each goes on from the other's.
                ours.set(key, their_state, keepttl=True)
                cell.set(key, state, keepttl=True)

    # The way over, with no restart of the primary.
    replica = make_server().replicate_from(cell_server)
    replica.wait_until_synced()
    assert throttle(cell, 4, 1, DAY, key="last")[0] == 0
    replica.wait_until_synced()
    assert replica.client().dbsize() == cell.dbsize()
    replica.promote()
    assert throttle(replica.client(), 4, 1, DAY, key="last")[:3] == [0, 5, 3]
