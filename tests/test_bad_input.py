"""Whatever a client sends: a clear error, nothing changed, nothing propagated, and the server lives."""

import random
import re

import pytest
import redis
from catalogue import (
    CONTAINERS,
    EXAMPLES,
    MARKER,
    NO_INTEGERS,
    UNLISTED,
    VERSION_OF_ROW,
    Bounded,
    Key,
    Number,
    Option,
    Text,
    assert_clear,
    assert_refused,
    make_world,
    see_world,
    too_short,
    typed,
)
from propagation import ReplicationStream
from raw_client import ErrorReply, RawClient
from servers import eventually

MEGABYTE = 1024 * 1024

every_command = pytest.mark.parametrize("command", EXAMPLES)
every_write = pytest.mark.parametrize("command", [name for name, example in EXAMPLES.items() if example.writes])


@pytest.fixture
def raw(server):
    with RawClient(server) as raw:
        make_world(raw)
        yield raw


def with_word(command, position, word):
    words = EXAMPLES[command].words()
    words[position] = word
    return (*typed(command), *words)


def positions(command, *kinds):
    return [at for at, part in enumerate(EXAMPLES[command].parts) if isinstance(part, kinds)]


def test_the_catalogue_is_complete(server):
    with RawClient(server) as raw:
        listed = raw.call("COMMAND", "LIST", "FILTERBY", "MODULE", "keyward")
    assert {name.decode().upper() for name in listed} - UNLISTED - CONTAINERS == set(EXAMPLES)


@every_command
def test_the_example_of_the_catalogue_succeeds(raw, command):
    """Or the errors below would prove nothing."""
    assert not isinstance(raw.call(*typed(command), *EXAMPLES[command].words()), ErrorReply)


@every_command
def test_too_few_or_too_many_words(server, raw, command):
    example = EXAMPLES[command]
    words = example.words()
    (info,) = raw.call("COMMAND", "INFO", command)
    arity = info[1]
    name = typed(command)
    calls = [(*name, *words[: count - len(name)]) for count in range(len(name), abs(arity))]
    if not example.open_ended:
        calls.append((*name, *words, MARKER))
        calls.append((*name, *words, ""))
        calls.append((*name, *words, *(words or [MARKER])))
    assert_refused(server, raw, calls)
    for call in calls[: abs(arity) - len(name)]:
        assert raw.call(*call).startswith("ERR wrong number of arguments")


@every_command
def test_repeated_conflicting_and_unknown_options(server, raw, command):
    example = EXAMPLES[command]
    calls = [(*typed(command), *example.words(), *option) for option in example.once]
    calls += [with_word(command, at, MARKER) for at in positions(command, Option)]
    assert_refused(server, raw, calls)


@every_command
def test_words_cut_off_at_the_end(server, raw, command):
    """An option without its value, a list shorter than its count: an error, or a call that stands on its
    own. Never half of it."""
    words = EXAMPLES[command].words()
    for count in range(len(words)):
        before = see_world(raw)
        reply = raw.call(*typed(command), *words[:count])
        if isinstance(reply, ErrorReply):
            assert_clear(reply)
            assert see_world(raw) == before
        raw.call("FLUSHALL")
        make_world(raw)


@every_command
def test_numbers_that_are_none_or_out_of_range(server, raw, command):
    calls = []
    for at in positions(command, Number):
        number = EXAMPLES[command].parts[at]
        refused = (*NO_INTEGERS, number.integers_end, 10**40, *number.refused)
        calls += [with_word(command, at, word) for word in refused]
    assert_refused(server, raw, calls)


@every_command
def test_tags_and_owners_of_no_or_too_many_bytes(server, raw, command):
    """Only where they would be stored: to look for one that cannot be is no error."""
    calls = []
    for at in positions(command, Bounded):
        most = EXAMPLES[command].parts[at].most
        calls += [with_word(command, at, word) for word in (b"", b"x" * (most + 1), b"x" * 64 * MEGABYTE)]
    before = see_world(raw)
    with ReplicationStream(server) as stream:
        for call in calls:
            reply = raw.call(*call)
            if EXAMPLES[command].deny_oom or command.startswith(("LOCK", "RATELIMIT")):
                assert_clear(reply, call[0])
        if EXAMPLES[command].deny_oom or command.startswith(("LOCK", "RATELIMIT")):
            assert stream.read() == []
            assert see_world(raw) == before


@pytest.mark.parametrize(
    ("command", "kind"), [(command, kind) for command, example in EXAMPLES.items() for kind in example.refuses]
)
def test_keys_of_another_type(server, raw, command, kind):
    for at in positions(command, Key):
        assert_refused(server, raw, [with_word(command, at, kind)])
        assert raw.call(*with_word(command, at, kind)).startswith("WRONGTYPE ")


def taken(reply):
    """No error, but where the answer to another key is that there is no such lock."""
    return not isinstance(reply, ErrorReply) or reply == "FENCED token is stale"


@every_command
def test_any_bytes_are_fine_where_bytes_are_wanted(server, raw, command):
    """Keys, values, tags, owners. Nothing of them has to be text."""
    for at in positions(command, Key, Text, Bounded):
        for word in (b"\xff\xfe\x00", b"\r\n$5\r\n", b"%s%n%d", "\u0100\u20ac".encode(), b"\x00"):
            assert taken(raw.call(*with_word(command, at, word)))
            raw.call("FLUSHALL")
            make_world(raw)


@every_command
def test_empty_strings(server, raw, command):
    """A key and a value may be empty."""
    for at in positions(command, Key, Text):
        assert taken(raw.call(*with_word(command, at, b"")))
        raw.call("FLUSHALL")
        make_world(raw)


@every_command
def test_words_of_64_megabytes(server, raw, command):
    """As any word: taken where it may be so long, refused elsewhere, and given back when it is gone."""
    huge = b"x" * 64 * MEGABYTE
    for at in positions(command, Key, Text, Number, Option)[:2]:
        reply = raw.call(*with_word(command, at, huge))
        if isinstance(reply, ErrorReply):
            assert_clear(reply)
    raw.call("FLUSHALL", "SYNC")
    eventually(lambda: server.info("memory")["used_memory_dataset"] < 32 * MEGABYTE)


def test_ten_thousand_tags(server, raw):
    tags = [f"tag:{number}" for number in range(10_000)]
    px = ("PX", 60_000)
    assert_refused(
        server,
        raw,
        [
            ("CACHE.TAG", "plain", *tags),
            ("CACHE.TAG", "string", *tags[10:74]),
            ("CACHE.SET", "new", "v", *px, "TAGS", 10_000, *tags),
            ("CACHE.SETTAGGED", "new", "v", *px, "TAGS", 10_000, *tags),
            ("CACHE.SETTAGGED", "new", "v", *px, "TAGS", 65, *tags[:65]),
            ("CACHE.MSET", 1, "new", "v", *px, "TAGS", 10_000, *tags),
        ],
    )
    assert raw.call("CACHE.INVALIDATETAG", *tags) == 1
    assert raw.call("CACHE.UNTAG", "string", *tags) == 0


def test_ten_thousand_keys(server, raw):
    keys = [f"key:{number}" for number in range(10_000)]
    assert raw.call("CACHE.MGET", *keys) == [None] * 10_000
    assert raw.call("CACHE.INVALIDATE", *keys, "string") == 1
    assert raw.call("RATELIMIT.RESET", *keys, "limiter") == 1
    data = [word for key in keys for word in (key, "v")]
    assert raw.call("CACHE.MSET", 10_000, *data) == "OK"
    assert raw.call("CACHE.INVALIDATE", *keys) == 10_000


# Elsewhere than in a plain call


def needs_words(command):
    """Can the command have a wrong number of words? One with options alone cannot."""
    parts, once = EXAMPLES[command].parts, EXAMPLES[command].once
    return not isinstance(parts[0], Option) if parts else not once


@every_command
def test_errors_in_a_transaction(server, raw, command):
    """A wrong number of words is found when it is queued; everything else stands in the reply of EXEC."""
    example = EXAMPLES[command]
    if needs_words(command):
        queued, _, executed = raw.pipeline([("MULTI",), too_short(command), ("EXEC",)])
        assert queued == "OK"
        assert_clear(executed)
        assert executed.startswith("EXECABORT")
    numbers = positions(command, Number)
    if not numbers:
        return
    before = see_world(raw)
    bad = with_word(command, numbers[0], MARKER)
    *_, replies = raw.pipeline([("MULTI",), bad, ("ECHO", "on"), ("EXEC",)])
    assert_clear(replies[0])
    assert replies[1] == b"on"
    assert see_world(raw) == before
    assert not isinstance(raw.call(*typed(command), *example.words()), ErrorReply)


@every_command
def test_errors_in_a_script(server, raw, command):
    numbers = positions(command, Number)
    bad = with_word(command, numbers[0], MARKER) if numbers else too_short(command)
    before = see_world(raw)
    script = "local reply = redis.pcall(unpack(ARGV)) return {type(reply), reply.err}"
    kind, text = raw.call("EVAL", script, 0, *bad)
    assert kind == b"table"
    assert MARKER not in text.decode()
    if numbers:
        assert text.startswith(b"ERR ")
    assert isinstance(raw.call("EVAL", "return redis.call(unpack(ARGV))", 0, *bad), ErrorReply)
    assert see_world(raw) == before


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    """A primary with the world in it, and its replica."""
    from servers import Server

    primary = Server(tmp_path_factory.mktemp("primary")).start()
    replica = Server(tmp_path_factory.mktemp("replica")).start()
    with RawClient(primary) as raw:
        make_world(raw)
    replica.replicate_from(primary).wait_until_synced()
    yield replica
    for server in (replica, primary):
        server.check()
        server.stop()


@every_command
def test_on_a_replica_writes_are_refused_and_reads_are_not(replica, command):
    with RawClient(replica) as raw:
        before = see_world(raw)
        words = EXAMPLES[command].words()
        reply = raw.call(*typed(command), *words)
        if EXAMPLES[command].writes:
            assert_clear(reply)
            assert reply.startswith("READONLY")
        else:
            assert not isinstance(reply, ErrorReply)
        for at in positions(command, Number):
            assert_clear(raw.call(*with_word(command, at, MARKER)))
        if needs_words(command):
            assert_clear(raw.call(*too_short(command)))
        assert see_world(raw) == before


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A server that may not grow. Each test makes room for the world, and takes it away."""
    from servers import Server

    server = Server(tmp_path_factory.mktemp("full"), config=["maxmemory-policy noeviction"]).start()
    yield server
    server.check()
    server.stop()


@pytest.mark.parametrize("command", [name for name, example in EXAMPLES.items() if example.deny_oom is not None])
def test_when_memory_is_full_what_adds_data_is_refused_and_nothing_else(full, command):
    example = EXAMPLES[command]
    with RawClient(full) as raw:
        raw.call("CONFIG", "SET", "maxmemory", 0)
        raw.call("FLUSHALL")
        make_world(raw)
        raw.call("CONFIG", "SET", "maxmemory", 1)
        before = see_world(raw)
        reply = raw.call(*typed(command), *example.words())
        if example.deny_oom:
            assert_clear(reply)
            assert reply.startswith("OOM ")
            assert see_world(raw) == before
        else:
            assert not isinstance(reply, ErrorReply)


# KEYWARD.APPLY: its arguments come from a link or a file, and from users who may call it

# Before 1970 counts as 1970, so no number that is one is refused in its place.
MOMENT = 1_750_000_000_000_001
EFFECTS = {
    "CHARGE": ("limiter", "SLIDING", 60_000, MOMENT, 1),
    "CHARGE several": ("limiter", "GCRA", 60_000, 3, "FIXED", 60_000, "SLIDING", 60_000, MOMENT, 1),
    "SETBACK": ("limiter", "SLIDING", 5_000_000, MOMENT),
    "SETBACK several": ("limiter", "FIXED", 5_000_000, "SLIDING", 5_000_000, MOMENT),
    "REFUND": ("limiter", "SLIDING", 5_000_000, MOMENT, 1),
    "REFUND several": ("limiter", "SLIDING", 5_000_000, "GCRA", 5_000_000, 7, MOMENT, 1),
    "BAN": ("limiter", 4_000_000_000_000),
    "LOCK": ("lock", "ann", 1_750_000_000_000_000, 4_000_000_000_000, 1),
    "RESERVE": (1_750_000_000_000_000,),
    "PUTBACK": ("lock", 1_750_000_000_000_000),
    "FORGET": ("lock", 1_750_000_000_000_000),
    "RETIRE": (1_750_000_000_000, "tag:9"),
    "FLOOR": ("string", 5, 1_750_000_000_000),
    "SLIDE": ("string", 1_750_000_000_000, 1_750_000_000_000),
    "ENTER": ("slots", "ann", 4_000_000_000_000, 1_750_000_000_000),
    "LEFT": ("slots", "ann"),
    "VALUE": ("new", "kw-limit1", b"\x01"),
    "WBSET": ("queue", "new", 1_760_000_000_000_000, 1_750_000_000_000, 1_750_000_000_000, "NEW", "value"),
    "WBDEL": ("queue", "row", 1_760_000_000_000_000, 1_750_000_000_000, 1_750_000_000_000, "NEW"),
    "WBFAIL": ("queue", "row", VERSION_OF_ROW, 1, 1_750_000_000_000),
    "WBDIE": ("queue", "row", VERSION_OF_ROW, 1),
    "WBREQUEUE": ("queue", "row", "KEEP", 1_750_000_000_000),
    "WBCONFIG": ("queue", 7, 10, 20, 3, 5),
    "WBPUTBACK": ("queue", 1_760_000_000_000_000),
    "WBFORGET": ("queue", 1_760_000_000_000_000),
}


@pytest.mark.parametrize("effect", EFFECTS)
def test_malformed_effects(server, raw, effect):
    name, words = effect.split()[0], EFFECTS[effect]
    calls = [("KEYWARD.APPLY", name, *words[:count]) for count in range(len(words))]
    if name not in ("RETIRE", "WBFAIL", "WBDIE"):  # which end in a list, or in a message
        calls.append(("KEYWARD.APPLY", name, *words, MARKER))
    for at, word in enumerate(words):
        if isinstance(word, int):
            for bad in (*NO_INTEGERS, 2**63, *(() if word == MOMENT else (-1, -(2**63)))):
                calls.append(("KEYWARD.APPLY", name, *words[:at], bad, *words[at + 1 :]))
    assert_refused(server, raw, calls)


@pytest.mark.parametrize("effect", ["CHARGE", "SETBACK", "REFUND"])
def test_effects_of_limiters_with_meters_that_are_none(server, raw, effect):
    units = () if effect == "SETBACK" else (1,)
    meters = [
        (),
        ("SLIDING",),
        ("GCRA", 60_000),
        ("BURST", 60_000),
        ("GCRA", 60_000, 10**12 + 1),
        ("FIXED", 0),
        ("SLIDING", 10**12 + 1),
        ("SLIDING", 60_000, "SLIDING", 60_000),
        ("GCRA", 60_000, 3, "FIXED", 60_000, "GCRA", 60_000, 4),
        [word for ms in range(9) for word in ("FIXED", 60_000 + ms)],
    ]
    assert_refused(server, raw, [("KEYWARD.APPLY", effect, "limiter", *meter, MOMENT, *units) for meter in meters])
    if effect != "CHARGE":
        # There is nothing to set back or to give back where there is no limiter.
        assert_refused(server, raw, [("KEYWARD.APPLY", effect, "none", "SLIDING", 60_000, MOMENT, *units)])


def test_effects_that_are_none(server, raw):
    words = [MARKER, "", b"\xff", "LOCKS", "CHARGE ", "APPLY", "RESERVE\x00", b"x" * MEGABYTE]
    assert_refused(server, raw, [("KEYWARD.APPLY", word, *rest) for word in words for rest in ((), (1, 2, 3))])


@pytest.mark.parametrize("kind", ["plain", "list", "another of ours"])
@pytest.mark.parametrize(
    "effect",
    [
        *("CHARGE", "SETBACK", "REFUND", "BAN", "LOCK", "PUTBACK", "FORGET", "ENTER", "LEFT"),
        *("WBSET", "WBFAIL", "WBCONFIG", "WBPUTBACK", "WBFORGET"),
    ],
)
def test_effects_on_keys_of_another_type(server, raw, effect, kind):
    if kind == "another of ours":
        kind = "lock" if EFFECTS[effect][0] == "limiter" else "limiter"
    before = see_world(raw)
    reply = raw.call("KEYWARD.APPLY", effect, kind, *EFFECTS[effect][1:])
    # To put back or forget what is something else by now is nothing to do.
    if not effect.endswith(("PUTBACK", "FORGET")):
        assert_clear(reply)
    assert see_world(raw) == before


@pytest.mark.parametrize("type_name", ["kw-lock-1", "kw-limit1", "kw-slots1", "kw-queue1", "kw-meta-1", "", "string"])
def test_values_that_are_none(server, raw, type_name):
    draw = random.Random(type_name)
    payloads = [
        b"",
        b"\x01",
        b"\x02" * 50,
        b"\x01" * 1000,
        *(draw.randbytes(draw.randrange(1, 60)) for _ in range(200)),
    ]
    assert_refused(server, raw, [("KEYWARD.APPLY", "VALUE", "new", type_name, payload) for payload in payloads])


# Garbage

POOL = [
    *(
        key.encode()
        for key in ("string", "plain", "list", "lock", "limiter", "slots", "queue", "row", "new", "new:2", "none")
    ),
    *(b"%d" % number for number in (0, -1, 1, 2, 3, 5, 10, 1000, 60_000, 10**12, 2**53, 2**63 - 1, 2**63)),
    *b"EX PX EXAT PXAT TAGS JITTER VERSION NX XX TOKEN REENTRANT SLIDING GCRA FIXED BURST RESERVE COST LIMIT SESSION CURSOR COUNT 10% ann bob tag:1 tag:2".split(),
    *(b"", b"\x00", b"\xff\xff", b"+1", b"01", b"x" * 600),
]
PLAIN = [
    (b"DEL", b"string"),
    (b"SET", b"plain", b"v"),
    (b"RENAME", b"lock", b"new"),
    (b"RENAME", b"string", b"new:2"),
    (b"COPY", b"limiter", b"new", b"REPLACE"),
    (b"COPY", b"lock", b"new:2"),
    (b"RENAME", b"slots", b"new:2"),
    (b"PERSIST", b"slots"),
    (b"PERSIST", b"lock"),
    (b"PEXPIRE", b"string", b"100000"),
    (b"UNLINK", b"new", b"new:2"),
    (b"SWAPDB", b"0", b"1"),
    (b"PEXPIRE", b"lock", b"5"),
    (b"RENAME", b"queue", b"new"),
    (b"COPY", b"queue", b"new:2"),
    (b"SET", b"queue", b"v"),
    (b"DEL", b"queue"),
    (b"UNLINK", b"row"),
    (b"PEXPIRE", b"queue", b"5"),
    (b"MULTI",),
    (b"EXEC",),
    # Everything is evicted, and what is locked comes back.
    (b"CONFIG", b"SET", b"maxmemory", b"1"),
    *[(b"CONFIG", b"SET", b"maxmemory", b"0")] * 3,
]


def random_call(draw):
    if draw.random() < 0.1:
        return draw.choice(PLAIN)
    # A mutated example gets further than random words do.
    name = draw.choice([name for name in EXAMPLES if name != "KEYWARD.APPLY"])
    words = EXAMPLES[name].words() if draw.random() < 0.8 else []
    for _ in range(draw.randrange(4)):
        at = draw.randrange(len(words) + 1)
        match draw.randrange(4):
            case 0:
                words.insert(at, draw.choice(POOL))
            case 1:
                del words[at : at + 1]
            case 2:
                words[at : at + 1] = [draw.choice(POOL)]
            case 3:
                words[at : at + 1] = [draw.randbytes(draw.randrange(8))]
    for at, word in enumerate(words[:-1]):
        if word in ("WAIT", "BLOCK"):
            # Nobody would end a wait for ever.
            words[at + 1] = draw.choice((1, b"-1", b""))
    return (*typed(name), *words)


@pytest.mark.parametrize("seed", range(3))
def test_random_garbage_leaves_primary_and_replica_alike(make_server, seed):
    """Ten thousand calls, some good, most not. What they did, whatever it was, they did on both."""
    primary = make_server(config=["maxmemory-policy allkeys-random", "maxmemory-eviction-tenacity 100"])
    copy = make_server()
    copy.replicate_from(primary).wait_until_synced()
    draw = random.Random(seed)
    good = 0
    with RawClient(primary) as raw:
        size = 0
        for _ in range(40):
            if size == 0:
                # An evicted lock may have one of the names.
                raw.call("FLUSHDB")
                make_world(raw)
            calls = [random_call(draw) for _ in range(250)]
            for call, reply in zip(calls, raw.pipeline(calls), strict=True):
                if isinstance(reply, ErrorReply):
                    assert "internal error" not in reply, call
                    assert re.match(r"(ERR|WRONGTYPE|OOM|EXECABORT|FENCED|WBFULL) ", reply), (call, reply)
                else:
                    good += 1
            # No batch begins with a full memory or in an open transaction.
            *_, size = raw.pipeline([("DISCARD",), ("CONFIG", "SET", "maxmemory", 0), ("DBSIZE",)])
    assert 1000 < good < 9500, "neither all good nor all bad"
    assert primary.info("stats")["evicted_keys"] > 0

    def alike():
        copy.wait_until_synced()
        digests = [server.client().execute_command("DEBUG", "DIGEST") for server in (primary, copy)]
        assert digests[0] == digests[1]
        for db in (0, 1):
            with RawClient(primary, db=db) as first, RawClient(copy, db=db) as second:
                assert see_world(first) == see_world(second)
        names = ("lock_locks", "lock_bytes", "lock_limbo", "cache_tagged_keys", "cache_tags")
        for name in (*names, "writebehind_queues", "writebehind_dirty", "writebehind_dead", "writebehind_limbo"):
            first, second = (server.info("everything")[f"keyward_{name}"] for server in (primary, copy))
            assert first == second, name
        return True

    # What has a short expiry may be on its way out.
    eventually(alike)
    for server in (primary, copy):
        assert server.info("everything")["keyward_caught_panics"] == 0


# A bug of our own


@pytest.mark.timeout(960)
def test_a_panic_is_an_error_and_the_server_lives(make_server, debug_module, monkeypatch):
    monkeypatch.setenv("KEYWARD_MODULE", str(debug_module))
    server = make_server()
    server.tolerated.add("panicked at")
    with RawClient(server) as raw:
        make_world(raw)
        before = see_world(raw)
        with ReplicationStream(server) as stream:
            for _ in range(3):
                assert raw.call("KEYWARD.DEBUG", "PANIC") == "ERR internal error"
            *_, replies = raw.pipeline([("MULTI",), ("KEYWARD.DEBUG", "PANIC"), ("ECHO", "on"), ("EXEC",)])
            assert replies == ["ERR internal error", b"on"]
            reply = raw.call("EVAL", "return redis.pcall('KEYWARD.DEBUG', 'PANIC')", 0)
            assert isinstance(reply, ErrorReply)
            assert stream.read() == []
        assert see_world(raw) == before
        assert raw.call("PING") == "PONG"
    assert server.info("everything")["keyward_caught_panics"] == 5
    assert server.alive()
    assert "internal error in keyward.debug" in server.log()


def test_release_builds_have_no_debug_command(server):
    with pytest.raises(redis.ResponseError, match="unknown command"):
        server.client().execute_command("KEYWARD.DEBUG", "PANIC")
