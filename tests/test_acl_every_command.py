"""A user who is allowed ~a:* alone reaches nothing of b:*, by no command of the module, however it is called."""

import pytest
from catalogue import EXAMPLES, TOKEN_OF_LOCK, WORLD, Key, make_world, typed
from raw_client import ErrorReply, RawClient, fields
from tag_view import metric

NEW = ("new", "new:2", "none")
WITH_KEYS = [name for name, example in EXAMPLES.items() if example.key_names()]

# What commands without keys do about rights. A new one has to be added here, and to be tested below.
WITHOUT_KEYS = {
    "checks its tags": {
        *("CACHE.TAGKEYS", "CACHE.TAGINFO", "CACHE.INVALIDATETAG", "CACHE.STALETAG"),
        *("CACHE.CLUSTER|INVALIDATETAG", "CACHE.CLUSTER|STALETAG"),
    },
    "checks what it makes": {"CACHE.EMIT", "CACHE.CLUSTER|EMIT"},
    "leaves keys out": {"CACHE.LOADS", "CACHE.HOT"},
    "is for operators": {
        *("CACHE.POLICY|SET", "CACHE.POLICY|DEL", "CACHE.RULE|SET", "CACHE.RULE|DEL", "CACHE.DOCTOR", "KEYWARD.APPLY"),
    },
    "tells of no key": {
        *("CACHE.POLICY|GET", "CACHE.POLICY|LIST", "CACHE.POLICY|MATCH", "CACHE.RULE|GET", "CACHE.RULE|LIST"),
        "CACHE.STATS",
    },
}


@pytest.fixture
def world(server):
    """The world of the catalogue under b:, and the same under a:."""
    with RawClient(server) as raw:
        for prefix in ("b:", "a:"):
            make_world(raw)
            for key in WORLD[:-1]:
                assert raw.call("RENAME", key, prefix + key) == "OK"
        yield raw
        raw.call("ACL", "DELUSER", "alice")


@pytest.fixture
def alice(server, world):
    """May do everything, to a:* alone."""
    assert world.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", "+@all", "~a:*") == "OK"
    with RawClient(server) as raw:
        assert raw.call("AUTH", "alice", "secret") == "OK"
        yield raw


def denied(reply):
    return isinstance(reply, ErrorReply) and reply.startswith("NOPERM")


def see(raw):
    """All that there is under b:, and what else could have come of it."""
    names = ["b:" + name for name in (*WORLD, *NEW)]
    found = [(raw.call("DUMP", name), raw.call("PEXPIRETIME", name), raw.call("CACHE.TAGS", name)) for name in names]
    return found, raw.call("DBSIZE"), [raw.call("CACHE.TAGKEYS", f"tag:{number}") for number in (1, 2, 3)]


def call_with(command, prefixes):
    """The call of the catalogue, its keys under these prefixes, the last one for all further keys."""
    words, prefixes = [], list(prefixes)
    for part in EXAMPLES[command].parts:
        if isinstance(part, Key):
            words.append(prefixes[0] + part.word)
            prefixes = prefixes[1:] or prefixes
        else:
            words.append(part.word)
    return (*typed(command), *words)


@pytest.mark.parametrize("command", WITH_KEYS)
def test_every_command_with_keys(world, alice, command):
    before = see(world)
    keys = len(EXAMPLES[command].key_names())
    # Each place is checked, not the first key alone.
    for place in range(keys):
        prefixes = ["b:" if at == place else "a:" for at in range(keys)]
        words = call_with(command, prefixes)
        assert denied(alice.call(*words)), words
        *_, replies = alice.pipeline([("MULTI",), words, ("EXEC",)])
        assert denied(replies) or (isinstance(replies, ErrorReply) and replies.startswith("EXECABORT")), replies
        script = alice.call("EVAL", "return redis.call(unpack(ARGV))", 0, *words)
        assert isinstance(script, ErrorReply), script
        assert see(world) == before
    assert not denied(alice.call(*call_with(command, ["a:"])))


def test_commands_without_keys_are_all_known():
    known = [name for names in WITHOUT_KEYS.values() for name in names]
    # Some effects have a key and some have none.
    assert sorted(known) == sorted(set(EXAMPLES) - set(WITH_KEYS) | {"KEYWARD.APPLY"})


@pytest.mark.parametrize("command", sorted(WITHOUT_KEYS["checks its tags"]))
def test_tags(world, alice, command):
    world.call("CACHE.TAG", "b:string", "b:tag", "a:tag")
    before = see(world)
    for tags in (("b:tag",), ("tag:1",), ("a:tag", "b:tag")):
        if command in ("CACHE.TAGKEYS", "CACHE.TAGINFO") and len(tags) > 1:
            continue
        assert denied(alice.call(*command.split("|"), *tags))
    assert see(world) == before
    assert not denied(alice.call(*command.split("|"), "a:tag")), "the tag is what is checked, not its keys"


@pytest.mark.parametrize("command", sorted(WITHOUT_KEYS["checks what it makes"]))
def test_emit(world, alice, command):
    """What an event names is checked, keys and tags, before anything is done."""
    world.call("CACHE.TAG", "b:plain", "b:tag")
    before = see(world)
    assert world.call("CACHE.RULE", "SET", "by key", "KEYS", 1, "{key}") == "OK"
    assert world.call("CACHE.RULE", "SET", "by tag", "TAGS", 1, "{key}") == "OK"
    assert world.call("CACHE.RULE", "SET", "by both", "KEYS", 2, "a:string", "{key}", "TAGS", 1, "{key}") == "OK"
    for event in ("by key", "by tag", "by both"):
        for name in ("b:string", "b:tag", "string"):
            assert denied(alice.call(*command.split("|"), event, f'{{"key": "{name}"}}'))
    assert see(world) == before
    assert world.call("EXISTS", "a:string") == 1
    assert alice.call(*command.split("|"), "by both", '{"key": "a:plain"}') == 2


def test_loads_and_hot_leave_keys_out(world, alice):
    """A loader gets no job for a key that it may not read, and it stays for one who may."""
    for prefix in ("a:", "b:"):
        assert world.call("CACHE.WARM", "loader", prefix + "job") == 1
        for _ in range(50):
            world.call("CACHE.GET", prefix + "string")
    [[key, token, _, _]] = alice.call("CACHE.LOADS", "loader", "COUNT", 10)
    assert key == b"a:job"
    assert alice.call("CACHE.LOADS", "loader", "COUNT", 10) == []
    assert {key for key, _ in alice.call("CACHE.HOT", "COUNT", 100)} <= {b"a:string", b"a:job"}
    assert b"b:string" in {key for key, _ in world.call("CACHE.HOT", "COUNT", 100)}
    [[key, token, _, _]] = world.call("CACHE.LOADS", "loader", "COUNT", 10)
    assert key == b"b:job"
    # The token of another is of no use.
    assert denied(alice.call("CACHE.FILL", "b:job", token, "v"))
    assert alice.call("CACHE.FILL", "a:job", token, "v") == 0


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "b:plain"),
        ("SET", "b:plain", "v"),
        ("MGET", "a:plain", "b:plain"),
        ("CACHE.GET", "b:string"),
        ("CACHE.INVALIDATETAG", "tag:1"),
        ("LOCK.FORCE", "b:lock"),
        ("WRITEBEHIND.SET", "a:queue", "b:new", "v"),
        ("RENAME", "a:plain", "b:new"),
        ("COPY", "b:plain", "a:new"),
    ],
    ids=lambda words: words[0],
)
def test_lock_exec_runs_as_the_caller(world, alice, words):
    before = see(world)
    assert denied(alice.call("LOCK.EXEC", "a:lock", TOKEN_OF_LOCK, *words))
    assert see(world) == before
    assert alice.call("LOCK.EXEC", "a:lock", TOKEN_OF_LOCK, "GET", "a:plain") == b"value"


def test_a_right_to_write_gives_no_value_away(server, world):
    """Nor does a right to read let anything be changed. What is not the value (tags, times, holders) either right shows, as TTL and TYPE do."""
    world.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", "+@all", "%W~b:*", "~a:*")
    with RawClient(server) as alice:
        assert alice.call("AUTH", "alice", "secret") == "OK"
        for words in (
            ("CACHE.GET", "b:string"),
            ("CACHE.MGET", "b:string"),
            ("CACHE.FETCH", "b:string"),
            ("WRITEBEHIND.DEAD", "b:queue"),
        ):
            assert denied(alice.call(*words)), words
    world.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", "+@all", "%R~b:*", "~a:*")
    with RawClient(server) as alice:
        assert alice.call("AUTH", "alice", "secret") == "OK"
        for words in (
            ("CACHE.SET", "b:string", "v"),
            ("CACHE.INVALIDATE", "b:string"),
            ("LOCK.RELEASE", "b:lock", "ann"),
        ):
            assert denied(alice.call(*words))


@pytest.mark.parametrize("command", sorted(WITHOUT_KEYS["is for operators"]))
def test_commands_for_operators(server, world, command):
    """Whoever lacks the right gets nowhere, in a script and in LOCK.EXEC neither."""
    name = command.lower()
    world.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", "+@all", f"-{name}", "~*")
    if server.version >= (7, 2):
        # Older servers have no categories for commands of modules.
        world.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", "+@all", "-@admin", "~*")
    words = (*typed(command), *EXAMPLES[command].words())
    with RawClient(server) as alice:
        assert alice.call("AUTH", "alice", "secret") == "OK"
        assert denied(alice.call(*words))
        assert denied(alice.call("LOCK.EXEC", "a:lock", TOKEN_OF_LOCK, *words))
        assert isinstance(alice.call("EVAL", "return redis.call(unpack(ARGV))", 0, *words), ErrorReply)
    assert world.call("CACHE.POLICY", "LIST") == world.call("CACHE.RULE", "LIST") == []
    assert fields(world.call("RATELIMIT.INFO", "a:limiter"))[b"limits"]
    assert metric(server, "caught_panics") == 0
