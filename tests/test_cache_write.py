"""CACHE.SET and its kin: options, replies, errors, versions. Every value is an ordinary Redis value."""

import time

import pytest
import redis
from servers import eventually
from tag_view import metric, set_tagged, tag_keys, tags

LONG_MS = 10_000_000  # a TTL that no test lives to see the end of
INVALID = r"invalid expire time in 'cache\.set' command"


def state_of(client, key):
    """All there is to know of a key."""
    kind = client.type(key)
    value = client.get(key) if kind == b"string" else client.dump(key)
    return kind, value, client.execute_command("PEXPIRETIME", key), tags(client, key)


# The value is a plain string


def test_a_cached_value_is_an_ordinary_string(client):
    assert client.execute_command("CACHE.SET", "k", "10", "EX", "100", "TAGS", "1", "t") == b"OK"
    assert client.type("k") == b"string"
    assert client.get("k") == b"10"
    assert 99 <= client.ttl("k") <= 100
    assert client.incr("k") == 11
    assert client.append("k", "x") == 3
    assert client.getrange("k", 0, -1) == b"11x"
    assert client.object("encoding", "k") == b"raw"
    assert client.memory_usage("k") > 0
    assert client.scan(match="k")[1] == [b"k"]
    assert client.persist("k") == 1
    assert client.delete("k") == 1


def test_bytes_are_taken_as_they_are(client):
    odd = bytes(range(256)) + b"\r\n$-1\r\n"
    key, value, tag = b"k" + odd, b"v" + odd, b"t" + odd
    assert client.execute_command("CACHE.SET", key, value, "TAGS", 1, tag) == b"OK"
    assert client.get(key) == value
    assert client.execute_command("CACHE.GET", key) == value
    assert tags(client, key) == {tag}
    assert tag_keys(client, tag) == {key}
    assert client.execute_command("CACHE.INVALIDATETAG", tag) == 1


def test_empty_key_and_empty_value(client):
    assert client.execute_command("CACHE.SET", "", "", "TAGS", 1, "t") == b"OK"
    assert client.execute_command("CACHE.GET", "") == b""
    assert tag_keys(client, "t") == {b""}


@pytest.mark.parametrize(
    "make", [lambda c: c.hset("k", "f", "v"), lambda c: c.rpush("k", 1), lambda c: c.xadd("k", {"f": 1})]
)
def test_any_type_is_overwritten_as_by_set(client, make):
    make(client)
    client.execute_command("CACHE.TAG", "k", "old")
    assert client.execute_command("CACHE.SET", "k", "v", "TAGS", 1, "new") == b"OK"
    assert client.get("k") == b"v"
    assert tags(client, "k") == {b"new"}
    assert tag_keys(client, "old") == set()


def test_set_events_fire(make_server):
    server = make_server(config=["notify-keyspace-events KEA"])
    client, pubsub = server.client(), server.client().pubsub()
    pubsub.psubscribe("__keyevent@0__:*")
    assert pubsub.get_message(timeout=10)["type"] == "psubscribe"
    client.execute_command("CACHE.SET", "k", "v", "EX", 100, "TAGS", 1, "t")
    client.execute_command("CACHE.MSET", 2, "a", "1", "b", "2")
    client.execute_command("CACHE.SET", "k", "w", "NX")
    client.delete("a")
    heard = []
    while not heard or heard[-1][0] != b"del":
        message = pubsub.get_message(timeout=10)
        heard.append((message["channel"].split(b":")[1], message["data"]))
    written = [(event, key) for key in (b"k", b"a", b"b") for event in (b"set", b"cache.set")]
    assert heard == [*written, (b"del", b"a")]


# Expiry


@pytest.mark.parametrize("unit", ["EX", "PX", "EXAT", "PXAT"])
def test_every_form_of_expiry(client, unit):
    before = int(time.time() * 1000)
    amount = {"EX": 1000, "PX": 1_000_000, "EXAT": before // 1000 + 1000, "PXAT": before + 1_000_000}[unit]
    assert client.execute_command("CACHE.SET", "k", "v", unit.lower(), amount) == b"OK"
    after = int(time.time() * 1000)
    at = client.execute_command("PEXPIRETIME", "k")
    if unit == "EXAT":
        assert at == amount * 1000
    elif unit == "PXAT":
        assert at == amount
    else:
        assert before + 1_000_000 - 5 <= at <= after + 1_000_000 + 5


def test_without_an_expiry_an_old_one_is_gone(client):
    client.set("k", "v", ex=100)
    client.execute_command("CACHE.SET", "k", "w")
    assert client.ttl("k") == -1


def test_a_moment_that_is_over_is_an_expiry_like_any_other(client):
    """As SET does it: EXAT in the past is no error, the key is just not there."""
    set_tagged(client, "k", "t")
    assert client.execute_command("CACHE.SET", "k", "v", "PXAT", 1, "TAGS", 1, "t") == b"OK"
    assert client.execute_command("CACHE.GET", "k") is None
    assert client.exists("k") == 0
    assert tag_keys(client, "t") == set()


@pytest.mark.parametrize(
    "options",
    [
        ("EX", 0),
        ("PX", 0),
        ("EXAT", 0),
        ("PXAT", 0),
        ("EX", -1),
        ("PX", -(2**63)),
        ("EX", 2**63 - 1),  # times 1000 overflows
        ("EX", (2**63 - 1) // 1000),  # plus now overflows
        ("EXAT", (2**63 - 1) // 1000 + 1),
        ("PX", 2**63 - 1),
        ("PXAT", 2**63 - 1, "JITTER", 1),
        ("EX", 1, "JITTER", 2**63 - 1),
        ("EX", 1, "JITTER", (2**63 - 1) // 1000),
    ],
    ids=str,
)
def test_an_expiry_that_is_not_ahead_or_not_in_range_is_refused(client, options):
    set_tagged(client, "k", "t")
    before = state_of(client, "k")
    with pytest.raises(redis.ResponseError, match=INVALID):
        client.execute_command("CACHE.SET", "k", "new", *options)
    assert state_of(client, "k") == before


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("CACHE.SETTAGGED", "k", "v", "EX", 0, "TAGS", 1, "t"), "cache.settagged"),
        (("CACHE.SETJITTER", "k", "v", "EX", 0, "JITTER", 1), "cache.setjitter"),
        (("CACHE.MSET", 1, "k", "v", "EX", 0), "cache.mset"),
    ],
)
def test_the_error_names_the_command(client, words, command):
    with pytest.raises(redis.ResponseError, match=rf"^invalid expire time in '{command}' command"):
        client.execute_command(*words)
    assert client.exists("k") == 0


# Jitter


def deadlines(client, count, *options):
    """The expiry of each of `count` keys of one MSET."""
    keys = [f"j:{number}" for number in range(count)]
    assert client.execute_command("CACHE.MSET", count, *[w for key in keys for w in (key, "v")], *options) == b"OK"
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.execute_command("PEXPIRETIME", key)
    return pipeline.execute()


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (("EX", 10_000, "JITTER", 1000), 1_000_000),
        (("PX", LONG_MS, "JITTER", 1_000_000), 1_000_000),
        (("jitter", "10%", "EX", 10_000), 1_000_000),
        (("PX", LONG_MS, "JITTER", "100%"), LONG_MS),
    ],
    ids=str,
)
def test_jitter_lengthens_by_a_uniform_amount_of_milliseconds(client, options, most):
    before = int(time.time() * 1000)
    drawn = deadlines(client, 600, *options)
    after = int(time.time() * 1000)
    lengths = [at - LONG_MS for at in drawn]
    assert before - 5 <= min(lengths)
    assert max(lengths) <= after + most + 5
    # Each key its own, in milliseconds; the odds against a healthy draw failing here are beyond 10^20.
    assert len(set(lengths)) > 500
    assert sum(length % 1000 != 0 for length in lengths) > 500
    tenths = [
        sum(before + i * most // 10 <= length < before + (i + 1) * most // 10 for length in lengths) for i in range(10)
    ]
    assert all(10 <= tenth <= 150 for tenth in tenths), tenths


def test_jitter_of_absolute_expiries_is_in_their_unit(client):
    now = int(time.time())
    client.execute_command("CACHE.SET", "s", "v", "EXAT", now + 10_000, "JITTER", 5000)
    client.execute_command("CACHE.SET", "ms", "v", "PXAT", (now + 10_000) * 1000, "JITTER", 5000)
    client.execute_command("CACHE.SET", "percent", "v", "EXAT", now + 10_000, "JITTER", "50%")
    late = [client.execute_command("PEXPIRETIME", key) - (now + 10_000) * 1000 for key in ("s", "ms", "percent")]
    assert 0 <= late[0] <= 5_000_000
    assert 0 <= late[1] <= 5000
    assert 0 <= late[2] <= 5_000_000


def test_no_jitter_at_all(client):
    for options in (("JITTER", 0), ("JITTER", "0%")):
        client.execute_command("CACHE.SET", "k", "v", "PXAT", 10**14, *options)
        assert client.execute_command("PEXPIRETIME", "k") == 10**14


def test_setjitter(client):
    before = int(time.time() * 1000)
    assert client.execute_command("CACHE.SETJITTER", "k", "v", "EX", 1000, "JITTER", "10%", "TAGS", 1, "t") == b"OK"
    at = client.execute_command("PEXPIRETIME", "k")
    assert before + 1_000_000 - 5 <= at <= int(time.time() * 1000) + 1_100_000 + 5
    assert tags(client, "k") == {b"t"}
    assert client.execute_command("CACHE.SETJITTER", "k", "w", "NX", "JITTER", 5, "PX", 1000) is None
    assert client.get("k") == b"v"


# Options


def test_options_in_any_order_and_case(client):
    assert (
        client.execute_command("cache.set", "k", "v", "nX", "version", 3, "tAgs", 2, "a", "b", "Px", LONG_MS) == b"OK"
    )
    assert tags(client, "k") == {b"a", b"b"}
    assert (
        client.execute_command("CACHE.SET", "k", "w", "TAGS", 1, "c", "Version", 4, "xx", "jitter", "1%", "ex", 100)
        == b"OK"
    )
    assert tags(client, "k") == {b"c"}
    assert client.get("k") == b"w"


def test_a_tag_may_look_like_an_option(client):
    client.execute_command("CACHE.SET", "k", "v", "TAGS", 4, "NX", "TAGS", "2", "EX", "EX", 100)
    assert tags(client, "k") == {b"NX", b"TAGS", b"2", b"EX"}
    assert client.ttl("k") > 0


@pytest.mark.parametrize(
    "options",
    [
        ("FOO",),
        ("EX",),
        ("EX", 1, "EX", 2),
        ("EX", 1, "PX", 2),
        ("PX", 1, "EXAT", 2),
        ("NX", "XX"),
        ("NX", "NX"),
        ("JITTER", 5),
        ("JITTER", "5%"),
        ("EX", 5, "JITTER"),
        ("EX", 5, "JITTER", 1, "JITTER", 1),
        ("TAGS",),
        ("TAGS", 2, "a"),
        ("TAGS", 1, "a", "b"),
        ("TAGS", 1, "a", "TAGS", 1, "b"),
        ("VERSION",),
        ("VERSION", 1, "VERSION", 2),
        ("KEEPTTL",),
        ("GET",),
        (b"\xff\x00",),
        ("",),
    ],
    ids=str,
)
def test_unknown_repeated_and_conflicting_options(client, options):
    set_tagged(client, "k", "t")
    before = state_of(client, "k")
    with pytest.raises(redis.ResponseError, match="^syntax error$"):
        client.execute_command("CACHE.SET", "k", "new", *options)
    assert state_of(client, "k") == before


@pytest.mark.parametrize("number", ["+1", " 1", "1 ", "01", "1.0", "0x1", "", "a", "-", "-0", "9223372036854775808"])
@pytest.mark.parametrize(
    "option", [("EX",), ("PXAT",), ("EX", 1, "JITTER"), ("VERSION",), ("TAGS",)], ids=lambda o: o[-1]
)
def test_integers_follow_the_rules_of_redis(client, option, number):
    set_tagged(client, "k", "t")
    before = state_of(client, "k")
    with pytest.raises(redis.ResponseError, match="^value is not an integer or out of range$"):
        client.execute_command("CACHE.SET", "k", "new", *option, number, *(["t"] if option == ("TAGS",) else []))
    assert state_of(client, "k") == before


@pytest.mark.parametrize(
    "command", ["CACHE.SET", "CACHE.SETTAGGED", "CACHE.SETJITTER", "CACHE.MSET", "CACHE.TAG", "CACHE.FLOOR"]
)
def test_too_few_arguments(client, command):
    with pytest.raises(redis.ResponseError, match=rf"wrong number of arguments for '{command.lower()}' command"):
        client.execute_command(command, "k")


# NX and XX


def test_nx_stores_only_a_missing_key(client):
    assert client.execute_command("CACHE.SET", "k", "v", "NX", "TAGS", 1, "t", "EX", 100) == b"OK"
    before = state_of(client, "k")
    assert client.execute_command("CACHE.SET", "k", "w", "NX", "TAGS", 1, "u") is None
    assert state_of(client, "k") == before
    client.hset("h", "f", "v")
    assert client.execute_command("CACHE.SET", "h", "w", "NX") is None
    assert client.type("h") == b"hash"


def test_xx_stores_only_an_existing_key(client):
    assert client.execute_command("CACHE.SET", "k", "v", "XX", "TAGS", 1, "t") is None
    assert client.exists("k") == 0
    assert tag_keys(client, "t") == set()
    client.set("k", "plain")
    assert client.execute_command("CACHE.SET", "k", "v", "XX", "TAGS", 1, "t") == b"OK"
    assert client.get("k") == b"v"
    assert tags(client, "k") == {b"t"}


def test_a_refused_write_disturbs_no_watcher(client, server):
    client.set("k", "v")
    with server.client(decode=True).pipeline() as watcher:
        watcher.watch("k")
        assert client.execute_command("CACHE.SET", "k", "w", "NX") is None
        watcher.multi()
        watcher.get("k")
        assert watcher.execute() == ["v"]
        watcher.watch("k")
        assert client.execute_command("CACHE.SET", "k", "w", "XX") == b"OK"
        watcher.multi()
        watcher.get("k")
        with pytest.raises(redis.WatchError):
            watcher.execute()


# Tags


def test_tags_replace_the_old_ones(client):
    set_tagged(client, "k", "a", "b")
    set_tagged(client, "k", "b", "c")
    assert tags(client, "k") == {b"b", b"c"}
    assert tag_keys(client, "a") == set()
    assert tag_keys(client, "b") == tag_keys(client, "c") == {b"k"}


def test_without_tags_the_key_ends_untagged(client):
    set_tagged(client, "k", "a", "b")
    client.execute_command("CACHE.SET", "k", "v", "EX", 100)
    assert tags(client, "k") == set()
    assert tag_keys(client, "a") == set()
    assert client.execute_command("CACHE.INVALIDATETAG", "a") == 0
    assert client.get("k") == b"v"


def test_duplicate_tags_count_once(client):
    set_tagged(client, "k", "a", "b", "a", "a")
    assert sorted(client.execute_command("CACHE.TAGS", "k")) == [b"a", b"b"]
    # 65 words, 64 tags.
    many = [f"t{number}" for number in range(64)]
    set_tagged(client, "k", *many, "t0")
    assert len(tags(client, "k")) == 64
    assert client.execute_command("CACHE.TAG", "k", "t1", "t2") == 0
    assert client.execute_command("CACHE.INVALIDATETAG", "t0", "t1", "t0") == 1


@pytest.mark.parametrize(
    ("tag_words", "message"),
    [
        ((0, "t"), "tags must be 1 to 64"),
        ((-1, "t"), "tags must be 1 to 64"),
        ((65, *(f"t{number}" for number in range(65))), "1 to 64"),
        ((1, ""), "1 to 512 bytes"),
        ((1, "x" * 513), "1 to 512 bytes"),
        ((3, "a", "b", "x" * 513), "1 to 512 bytes"),
    ],
    ids=["zero", "negative", "65", "empty", "513 bytes", "the last one"],
)
@pytest.mark.parametrize("command", ["CACHE.SET", "CACHE.SETTAGGED", "CACHE.MSET"])
def test_bounds_of_tags(client, command, tag_words, message):
    set_tagged(client, "k", "t")
    before = state_of(client, "k")
    words = (1, "k", "new") if command == "CACHE.MSET" else ("k", "new")
    with pytest.raises(redis.ResponseError, match=message):
        client.execute_command(command, *words, "EX", 100, "TAGS", *tag_words)
    assert state_of(client, "k") == before


def test_the_longest_tag_and_the_most_tags(client):
    many = [b"%03d" % number + b"x" * 509 for number in range(64)]
    set_tagged(client, "k", *many)
    assert tags(client, "k") == set(many)
    assert client.execute_command("CACHE.INVALIDATETAG", many[-1]) == 1


def test_settagged_wants_tags_and_an_expiry(client):
    assert client.execute_command("CACHE.SETTAGGED", "k", "v", "TAGS", 2, "a", "b", "XX", "EX", 100) is None
    assert client.execute_command("CACHE.SETTAGGED", "k", "v", "TAGS", 2, "a", "b", "NX", "EX", 100) == b"OK"
    assert tags(client, "k") == {b"a", b"b"}
    assert 0 < client.ttl("k") <= 100
    before = state_of(client, "k")
    for options in (("EX", 100, "NX"), ("TAGS", 2, "a", "b"), ("VERSION", 1, "EX", 5)):
        with pytest.raises(redis.ResponseError, match="^(syntax error|wrong number of arguments)"):
            client.execute_command("CACHE.SETTAGGED", "k", "w", *options)
    assert state_of(client, "k") == before


def test_setjitter_wants_a_jitter_and_an_expiry_of_its_own(client):
    for options in (("EX", 100), ("JITTER", 5), ("EXAT", 10**10, "JITTER", 5), ("PXAT", 10**13, "JITTER", 5)):
        with pytest.raises(redis.ResponseError, match="^(syntax error|wrong number of arguments)"):
            client.execute_command("CACHE.SETJITTER", "k", "w", *options)
    assert client.exists("k") == 0


def test_tag_adds_to_any_type(client):
    client.set("string", "v")
    client.hset("hash", "f", "v")
    client.rpush("list", 1)
    client.sadd("set", 1)
    client.zadd("zset", {"m": 1})
    client.xadd("stream", {"f": "v"})
    kinds = [b"string", b"hash", b"list", b"set", b"zset", b"stream"]
    for key in kinds:
        assert client.execute_command("CACHE.TAG", key, "a", "b", "a") == 2
        assert client.execute_command("CACHE.TAG", key, "b", "c") == 1
        assert client.execute_command("CACHE.TAG", key, "c") == 0
        assert tags(client, key) == {b"a", b"b", b"c"}
        assert client.type(key) == key
    assert tag_keys(client, "b") == set(kinds)
    assert client.execute_command("CACHE.INVALIDATETAG", "b") == 6
    assert client.dbsize() == 0


def test_tag_of_a_missing_key_is_nothing(client):
    assert client.execute_command("CACHE.TAG", "k", "t") == 0
    assert tags(client, "k") == set()
    assert tag_keys(client, "t") == set()
    client.set("k", "v")
    assert tags(client, "k") == set()


def test_tag_leaves_value_and_ttl_alone(client):
    client.set("k", "v", ex=100)
    at = client.execute_command("PEXPIRETIME", "k")
    client.execute_command("CACHE.TAG", "k", "t")
    client.execute_command("CACHE.UNTAG", "k", "t")
    assert client.get("k") == b"v"
    assert client.execute_command("PEXPIRETIME", "k") == at


def test_a_key_carries_at_most_64_tags(client):
    set_tagged(client, "k", *(f"t{number}" for number in range(63)))
    with pytest.raises(redis.ResponseError, match="at most 64"):
        client.execute_command("CACHE.TAG", "k", "one", "two")
    assert len(tags(client, "k")) == 63
    assert tag_keys(client, "one") == set()
    assert client.execute_command("CACHE.TAG", "k", "one", "t0") == 1
    assert len(tags(client, "k")) == 64


@pytest.mark.parametrize("bad", ["", "x" * 513], ids=["empty", "long"])
def test_tag_and_untag_check_all_tags_first(client, bad):
    set_tagged(client, "k", "a")
    for command in ("CACHE.TAG", "CACHE.UNTAG"):
        with pytest.raises(redis.ResponseError, match="1 to 512 bytes"):
            client.execute_command(command, "k", "a", "b", bad)
    assert tags(client, "k") == {b"a"}


def test_untag_removes_some_or_all(client):
    set_tagged(client, "k", "a", "b", "c", "d")
    assert client.execute_command("CACHE.UNTAG", "k", "a", "x", "a") == 1
    assert client.execute_command("CACHE.UNTAG", "k", "a") == 0
    assert tags(client, "k") == {b"b", b"c", b"d"}
    assert tag_keys(client, "a") == set()
    assert client.execute_command("CACHE.UNTAG", "k") == 3
    assert client.execute_command("CACHE.UNTAG", "k") == 0
    assert tags(client, "k") == set()
    assert client.execute_command("CACHE.UNTAG", "nothing") == 0
    assert client.get("k") == b"v"


def test_databases_are_apart(server, client):
    other = server.client(db=1)
    set_tagged(client, "k", "t")
    set_tagged(other, "k", "t", "u")
    assert tags(client, "k") == {b"t"}
    assert tags(other, "k") == {b"t", b"u"}
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == 1
    assert other.get("k") == b"v"
    assert tag_keys(other, "t") == {b"k"}
    assert tag_keys(client, "t") == set()


# MSET


def test_mset_stores_all_with_the_same_options(client):
    reply = client.execute_command("CACHE.MSET", 3, "a", "1", "b", "2", "c", "3", "EX", 100, "TAGS", 2, "t", "u")
    assert reply == b"OK"
    assert client.mget("a", "b", "c") == [b"1", b"2", b"3"]
    assert tag_keys(client, "t") == tag_keys(client, "u") == {b"a", b"b", b"c"}
    assert all(0 < client.ttl(key) <= 100 for key in "abc")
    assert client.execute_command("CACHE.MSET", 1, "a", "new") == b"OK"
    assert client.ttl("a") == -1
    assert tag_keys(client, "t") == {b"b", b"c"}


def test_mset_of_a_key_twice_keeps_the_last(client):
    assert client.execute_command("CACHE.MSET", 2, "a", "1", "a", "2", "TAGS", 1, "t") == b"OK"
    assert client.get("a") == b"2"
    assert client.execute_command("CACHE.TAGKEYS", "t") == [b"0", [b"a"]]


def test_mset_values_may_look_like_options(client):
    assert client.execute_command("CACHE.MSET", 2, "EX", "TAGS", "NX", "5", "PX", LONG_MS) == b"OK"
    assert client.mget("EX", "NX") == [b"TAGS", b"5"]


@pytest.mark.parametrize(
    "words",
    [
        (2, "a", "new", "b"),
        (2, "a", "new"),
        (1, "a", "new", "NX"),
        (1, "a", "new", "XX"),
        (1, "a", "new", "VERSION", 1),
        (1, "a", "new", "b", "new"),
        (2, "a", "new", "b", "new", "EX", 0),
        (2, "a", "new", "b", "new", "EX", 10, "TAGS", 1, ""),
        (0, "a", "new"),
        (-1, "a", "new"),
        ("x", "a", "new"),
        (2**62, "a", "new"),
        (2**63 - 1, "a", "new"),
    ],
    ids=str,
)
def test_mset_is_all_or_nothing(client, words):
    set_tagged(client, "a", "t", value="old")
    with pytest.raises(redis.ResponseError):
        client.execute_command("CACHE.MSET", *words)
    assert state_of(client, "a") == (b"string", b"old", -1, {b"t"})
    assert client.dbsize() == 1


# VERSION and FLOOR


def write(client, version, key="k", value="v"):
    return client.execute_command("CACHE.SET", key, value, "VERSION", version)


def test_only_a_newer_version_is_stored(client):
    assert write(client, 0, value="a") == b"OK"
    assert write(client, 0, value="b") is None
    assert write(client, 5, value="c") == b"OK"
    before = state_of(client, "k")
    assert client.execute_command("CACHE.SET", "k", "d", "VERSION", 4, "EX", 100, "TAGS", 1, "t") is None
    assert client.execute_command("CACHE.SET", "k", "d", "VERSION", 5, "XX") is None
    assert state_of(client, "k") == before
    assert write(client, 2**63 - 1, value="e") == b"OK"
    assert write(client, 2**63 - 1) is None
    assert client.get("k") == b"e"


@pytest.mark.parametrize("version", ["-1", "9223372036854775808", "1.5"])
def test_versions_out_of_range(client, version):
    with pytest.raises(redis.ResponseError, match="integer"):
        write(client, version)
    assert client.exists("k") == 0


def test_a_write_without_version_keeps_the_floor(client):
    write(client, 10)
    client.set("k", "plain")
    assert write(client, 10) is None
    client.execute_command("CACHE.SET", "k", "v")
    assert write(client, 9) is None
    assert write(client, 11) == b"OK"


def test_nx_and_version_must_both_be_met(client):
    write(client, 10)
    assert client.execute_command("CACHE.SET", "k", "w", "NX", "VERSION", 11) is None
    assert write(client, 11) == b"OK", "the refused write raised the floor"
    client.delete("k")
    assert client.execute_command("CACHE.SET", "k", "w", "NX", "VERSION", 11) is None
    assert client.execute_command("CACHE.SET", "k", "w", "NX", "VERSION", 12) == b"OK"


def expire_lazily(client):
    client.execute_command("CACHE.SET", "k", "v", "PX", 1, "VERSION", 11)
    eventually(lambda: client.exists("k") == 0)


@pytest.mark.parametrize(
    "remove",
    [
        lambda c: c.delete("k"),
        lambda c: c.unlink("k"),
        lambda c: c.getdel("k"),
        lambda c: c.execute_command("CACHE.INVALIDATE", "k"),
        lambda c: c.execute_command("CACHE.INVALIDATETAG", "t"),
        lambda c: c.rename("k", "elsewhere"),
        expire_lazily,
    ],
    ids=["DEL", "UNLINK", "GETDEL", "INVALIDATE", "INVALIDATETAG", "RENAME", "expiry"],
)
def test_the_floor_outlives_the_key(client, remove):
    client.execute_command("CACHE.SET", "k", "v", "VERSION", 10, "TAGS", 1, "t")
    remove(client)
    assert client.exists("k") == 0
    assert write(client, 10) is None
    assert client.exists("k") == 0
    assert write(client, 12) == b"OK"


def test_rename_carries_the_version(client):
    write(client, 10, "old")
    client.rename("old", "new")
    assert write(client, 10, "new") is None
    assert write(client, 11, "new") == b"OK"


def test_the_floor_ends_after_version_floor_ms(make_server):
    server = make_server(args=["version-floor-ms", "50"])
    client = server.client()
    write(client, 10)
    client.delete("k")
    eventually(lambda: write(client, 1) == b"OK", message="the floor never ended")
    # While the key lives its floor does, however long that takes.
    write(client, 10, "kept")
    eventually(lambda: client.execute_command("PTTL", "kept") == -1 and server.info("server")["uptime_in_seconds"] >= 1)
    assert write(client, 10, "kept") is None


def test_flush_drops_the_floors(client):
    write(client, 10)
    client.execute_command("CACHE.FLOOR", "other", 10)
    client.flushdb()
    assert write(client, 1) == b"OK"
    assert write(client, 1, "other") == b"OK"


def test_floors_belong_to_their_database(server, client):
    write(client, 10)
    assert write(server.client(db=1), 1) == b"OK"


def test_floors_follow_swapdb(server, client):
    write(client, 10)
    client.execute_command("CACHE.FLOOR", "gone", 10)
    client.swapdb(0, 1)
    assert write(client, 1) == write(client, 1, "gone") == b"OK"
    assert write(server.client(db=1), 10) is None
    assert write(server.client(db=1), 10, "gone") is None


def test_floor_removes_the_key_and_refuses_older_rows(client):
    client.execute_command("CACHE.SET", "k", "v", "VERSION", 3, "TAGS", 1, "t")
    assert client.execute_command("CACHE.FLOOR", "k", 5) == 1
    assert client.exists("k") == 0
    assert tag_keys(client, "t") == set()
    assert client.execute_command("CACHE.FLOOR", "k", 5) == 0
    assert client.execute_command("CACHE.FLOOR", "k", 4) == 0
    assert write(client, 5) is None
    assert write(client, 6) == b"OK"
    assert client.execute_command("CACHE.FLOOR", "k", 6) == 0
    assert client.get("k") == b"v", "the floor was there already: nothing is removed"


def test_floor_before_the_fill(client):
    """An update event came before the fill of the row it makes old."""
    assert client.execute_command("CACHE.FLOOR", "k", 7) == 1
    assert client.execute_command("CACHE.SET", "k", "old row", "VERSION", 6) is None
    assert client.execute_command("CACHE.SET", "k", "new row", "VERSION", 8) == b"OK"


@pytest.mark.parametrize("version", ["-1", "x", "9223372036854775808", ""])
def test_floor_checks_its_version(client, version):
    client.set("k", "v")
    with pytest.raises(redis.ResponseError, match="integer"):
        client.execute_command("CACHE.FLOOR", "k", version)
    assert client.get("k") == b"v"


def test_lingering_floors_are_bounded(make_server):
    server = make_server(args=["version-floors-max", "100"])
    client = server.client()

    def a_later_millisecond():
        start = client.time()
        eventually(lambda: client.time() > (start[0], start[1] + 2000))

    assert client.execute_command("CACHE.FLOOR", "oldest", 5) == 1
    a_later_millisecond()
    pipeline = client.pipeline(transaction=False)
    for number in range(300):
        pipeline.execute_command("CACHE.FLOOR", f"k{number}", 5)
    assert pipeline.execute() == [1] * 300
    a_later_millisecond()
    assert client.execute_command("CACHE.FLOOR", "newest", 5) == 1
    eventually(lambda: metric(server, "cache_version_floors_lingering") <= 100)
    assert metric(server, "cache_version_floors_dropped") == 202
    assert write(client, 5, "newest") is None
    assert write(client, 5, "oldest") == b"OK"


# Transactions, scripts, full memory


def test_in_transactions_and_scripts(client):
    pipeline = client.pipeline(transaction=True)
    pipeline.execute_command("CACHE.SET", "a", "1", "TAGS", 1, "t")
    pipeline.execute_command("CACHE.GET", "a")
    pipeline.execute_command("CACHE.TAGS", "a")
    pipeline.execute_command("CACHE.INVALIDATETAG", "t")
    pipeline.execute_command("CACHE.GET", "a")
    replies = pipeline.execute()
    replies[2] = list(replies[2])
    assert replies == [b"OK", b"1", [b"t"], 1, None]
    script = """
        redis.call('CACHE.SET', KEYS[1], ARGV[1], 'TAGS', 1, 't')
        local read = redis.call('CACHE.GET', KEYS[1])
        local removed = redis.call('CACHE.INVALIDATETAG', 't')
        return {read, removed, redis.call('CACHE.GET', KEYS[1])}
    """
    assert client.eval(script, 1, "k", "v") == [b"v", 1, None]


def test_full_memory_refuses_what_adds_data_and_nothing_else(make_server):
    server = make_server()
    client = server.client()
    for key in "abcd":
        client.execute_command("CACHE.SET", key, "v", "TAGS", 1, "tag-" + key, "VERSION", 1)
    client.config_set("maxmemory", 1)
    for words in (
        ("CACHE.SET", "k", "v"),
        ("CACHE.SETTAGGED", "k", "v", "EX", 1, "TAGS", 1, "t"),
        ("CACHE.SETJITTER", "k", "v", "EX", 1, "JITTER", 1),
        ("CACHE.MSET", 1, "k", "v"),
        ("CACHE.TAG", "a", "more"),
    ):
        with pytest.raises(redis.ResponseError, match="OOM|not allowed when used memory"):
            client.execute_command(*words)
    assert client.execute_command("CACHE.GET", "a") == b"v"
    assert client.execute_command("CACHE.INVALIDATE", "a") == 1
    assert client.execute_command("CACHE.INVALIDATETAG", "tag-b") == 1
    assert client.execute_command("CACHE.UNTAG", "c") == 1
    assert client.dbsize() == 2
