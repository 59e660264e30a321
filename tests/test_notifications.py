"""Keyspace notifications of the module's own: after a change, never without one, and only where it was decided."""

import pytest
from raw_client import RawClient, fields
from servers import eventually
from tag_view import fill_tag

EVERYTHING = "KEAd"
OWN = "Ed"


class Listener:
    """Subscribes to all key events; heard() gives those of the module since the last time, in their order."""

    def __init__(self, server, protocol=2):
        self._publisher = server.client()
        self._subscriber = server.client(protocol).pubsub()
        self._subscriber.psubscribe("__keyevent@*__:*", "end")
        for _ in range(2):
            assert self._subscriber.get_message(timeout=10)["type"] == "psubscribe"

    def heard(self, families=("cache", "lock", "ratelimit", "writebehind")):
        # What comes after the mark was told after it.
        self._publisher.publish("end", "end")
        events = []
        while (message := self._subscriber.get_message(timeout=10))["channel"] != b"end":
            event = message["channel"].decode().split(":", 1)[1]
            if event.split(".")[0] in families:
                events.append(f"{event} {message['data'].decode()}")
        return events


@pytest.fixture
def server(make_server):
    return make_server(config=[f'notify-keyspace-events "{EVERYTHING}"'])


@pytest.fixture
def call(server, protocol):
    with RawClient(server, protocol) as raw:
        yield raw.call


@pytest.fixture
def listener(server, protocol):
    return Listener(server, protocol)


CHANGES = [
    ([], ("CACHE.SET", "k", "v"), ["cache.set k"]),
    ([("SET", "k", "v")], ("CACHE.SETTAGGED", "k", "v", "EX", 9, "TAGS", 1, "t"), ["cache.set k"]),
    ([], ("CACHE.SETJITTER", "k", "v", "EX", 9, "JITTER", 1), ["cache.set k"]),
    ([], ("CACHE.MSET", 2, "k", "v", "l", "v"), ["cache.set k", "cache.set l"]),
    ([("SET", "k", "v")], ("CACHE.INVALIDATE", "none", "k", "k"), ["cache.invalidate k"]),
    ([("CACHE.SET", "k", "v", "TAGS", 1, "t")], ("CACHE.INVALIDATETAG", "none", "t"), ["cache.invalidate k"]),
    ([("SET", "k", "v")], ("CACHE.FLOOR", "k", 5), ["cache.invalidate k"]),
    ([("SET", "k", "v")], ("CACHE.STALE", "k"), ["cache.invalidate k"]),
    ([("CACHE.SET", "k", "v", "EX", 9, "GRACE", 9)], ("CACHE.STALE", "k", "none"), ["cache.stale k"]),
    ([("CACHE.SET", "k", "v", "EX", 9, "GRACE", 9, "TAGS", 1, "t")], ("CACHE.STALETAG", "t"), ["cache.stale k"]),
    (
        [
            ("CACHE.RULE", "SET", "e", "KEYS", 1, "k", "TAGS", 1, "t"),
            ("CACHE.MSET", 2, "k", "v", "l", "v", "TAGS", 1, "t"),
        ],
        ("CACHE.EMIT", "e", "{}"),
        ["cache.invalidate k", "cache.invalidate l"],
    ),
    ([], ("WRITEBEHIND.SET", "queue", "k", "v"), ["cache.set k"]),
    ([], ("LOCK.ACQUIRE", "k", "ann", "EX", 9), ["lock.acquire k"]),
    (
        [("LOCK.ACQUIRE", "k", "ann", "EX", 9, "SHARED")],
        ("LOCK.ACQUIRE", "k", "bob", "EX", 9, "SHARED"),
        ["lock.acquire k"],
    ),
    ([], ("LOCK.MACQUIRE", 2, "k", "l", "ann", "EX", 9), ["lock.acquire k", "lock.acquire l"]),
    ([("LOCK.ACQUIRE", "k", "ann", "EX", 9)], ("LOCK.RELEASE", "k", "ann"), ["lock.release k"]),
    ([("LOCK.ACQUIRE", "k", "ann", "EX", 9)], ("LOCK.FORCE", "k"), ["lock.release k"]),
    (
        [("LOCK.MACQUIRE", 2, "k", "l", "ann", "EX", 9)],
        ("LOCK.MRELEASE", 3, "k", "l", "m", "ann"),
        ["lock.release k", "lock.release l"],
    ),
    ([], ("RATELIMIT.BAN", "k", "EX", 9), ["ratelimit.ban k"]),
    ([("RATELIMIT.CHECK", "k", 3, "EX", 9)], ("RATELIMIT.BAN", "k", "EX", 9), ["ratelimit.ban k"]),
]


@pytest.mark.parametrize(("before", "command", "events"), CHANGES, ids=lambda value: " ".join(map(str, value))[:60])
def test_a_change_is_told(call, listener, before, command, events):
    for words in before:
        call(*words)
    listener.heard()
    call(*command)
    assert listener.heard() == events


NO_CHANGES = [
    ([("SET", "k", "v")], ("CACHE.SET", "k", "w", "NX")),
    ([], ("CACHE.SET", "k", "w", "XX")),
    ([("CACHE.SET", "k", "v", "VERSION", 5)], ("CACHE.SET", "k", "w", "VERSION", 5)),
    ([], ("CACHE.SET", "k", "w", "EX", 0)),
    ([("CACHE.SET", "k", "v")], ("CACHE.GET", "k")),
    ([], ("CACHE.FETCH", "k")),
    ([], ("CACHE.FILL", "k", "0-0", "v")),
    ([], ("CACHE.INVALIDATE", "k")),
    ([], ("CACHE.INVALIDATETAG", "t")),
    ([("CACHE.SET", "k", "v", "EX", 9, "GRACE", 9), ("CACHE.STALE", "k")], ("CACHE.STALE", "k")),
    ([("SET", "k", "v")], ("DEL", "k")),
    ([("CACHE.RULE", "SET", "e", "KEYS", 1, "k")], ("CACHE.EMIT", "e", "{}")),
    ([("CACHE.RULE", "SET", "e", "KEYS", 1, "k{a}"), ("SET", "k", "v")], ("CACHE.EMIT", "e", "{}")),
    ([("LOCK.ACQUIRE", "k", "ann", "EX", 9)], ("LOCK.ACQUIRE", "k", "bob", "EX", 9)),
    ([("LOCK.ACQUIRE", "k", "ann", "EX", 9)], ("LOCK.ACQUIRE", "k", "ann", "EX", 99)),
    ([("LOCK.ACQUIRE", "k", "ann", "EX", 9)], ("LOCK.ACQUIRE", "k", "ann", "EX", 9, "REENTRANT")),
    ([("LOCK.ACQUIRE", "k", "ann", "EX", 9)], ("LOCK.EXTEND", "k", "ann", "EX", 99)),
    ([("LOCK.ACQUIRE", "k", "ann", "EX", 9)], ("LOCK.RELEASE", "k", "bob")),
    (
        [("LOCK.ACQUIRE", "k", "ann", "EX", 9), ("LOCK.ACQUIRE", "k", "ann", "EX", 9, "REENTRANT")],
        ("LOCK.RELEASE", "k", "ann"),
    ),
    ([("LOCK.ACQUIRE", "k", "ann", "EX", 9)], ("DEL", "k")),
    ([], ("LOCK.FORCE", "k")),
    ([("RATELIMIT.CHECK", "k", 1, "EX", 9)], ("RATELIMIT.CHECK", "k", 1, "EX", 9)),
    ([("SET", "k", "v")], ("RATELIMIT.BAN", "k", "EX", 9)),
]


@pytest.mark.parametrize(("before", "command"), NO_CHANGES, ids=lambda value: " ".join(map(str, value))[:60])
def test_what_changes_nothing_is_not_told(call, listener, before, command):
    for words in before:
        call(*words)
    listener.heard()
    call(*command)
    assert listener.heard() == []


def test_single_flight_and_write_through_are_told(call, listener):
    token = call("CACHE.FETCH", "k")[2]
    call("CACHE.FILL", "k", token, "v")
    token = call("CACHE.INTENT", "k")
    assert listener.heard() == ["cache.set k"]
    call("CACHE.COMMIT", "k", token, "w")
    assert listener.heard() == ["cache.set k"]
    call("CACHE.COMMIT", "k", call("CACHE.INTENT", "k"))
    assert listener.heard() == ["cache.invalidate k"]
    call("CACHE.SET", "k", "v", "PX", 1000, "GRACE", 9000)
    call("CACHE.STALE", "k")
    token = call("CACHE.FETCH", "k")[2]
    call("CACHE.FILLNIL", "k", token, "EX", 9)
    assert listener.heard() == ["cache.set k", "cache.stale k", "cache.invalidate k"]
    call("CACHE.INVALIDATE", "k")
    assert listener.heard() == [], "a negative answer is no key"
    call("SET", "k", "v")
    call("CACHE.INTENT", "k", "PX", 1)
    eventually(lambda: not call("EXISTS", "k"))
    assert listener.heard() == ["cache.invalidate k"], "an intent that ran out"


def test_a_lock_goes_from_one_to_the_next(server, call, listener):
    call("LOCK.ACQUIRE", "k", "ann", "EX", 9)
    with RawClient(server) as bob:
        bob.send("LOCK.ACQUIRE", "k", "bob", "EX", 9, "WAIT", 0)
        eventually(lambda: server.info("everything")["keyward_lock_waiters"] == 1)
        listener.heard()
        call("LOCK.RELEASE", "k", "ann")
        assert listener.heard() == ["lock.release k", "lock.acquire k"]


def test_a_lease_that_ends_is_told(call, listener):
    call("LOCK.ACQUIRE", "k", "ann", "PX", 30)
    eventually(lambda: not call("EXISTS", "k"))
    assert listener.heard() == ["lock.acquire k", "lock.expired k"]
    call("LOCK.ACQUIRE", "k", "ann", "EX", 100, "SHARED")
    call("LOCK.ACQUIRE", "k", "bob", "PX", 1, "SHARED")
    eventually(lambda: len(fields(call("LOCK.INFO", "k"))[b"holders"]) == 1)
    listener.heard()
    # It is noticed by whoever changes the lock next.
    call("LOCK.ACQUIRE", "k", "cy", "EX", 100, "SHARED")
    assert listener.heard() == ["lock.expired k", "lock.acquire k"]


def test_a_lock_that_ends_with_its_connection_is_released(server, call, listener):
    with RawClient(server) as bob:
        bob.call("LOCK.ACQUIRE", "k", "bob", "EX", 9, "SESSION")
    eventually(lambda: not call("EXISTS", "k"))
    assert listener.heard() == ["lock.acquire k", "lock.release k"]


def test_a_record_that_is_given_up_is_told(call, listener):
    call("WRITEBEHIND.CONFIG", "queue", "ATTEMPTS", 1)
    call("WRITEBEHIND.SET", "queue", "k", "v")
    ((_, version, *_),) = call("WRITEBEHIND.CLAIM", "queue", "ann")
    listener.heard()
    call("WRITEBEHIND.NACK", "queue", "ann", "k", version)
    assert listener.heard() == ["writebehind.dead queue"]
    call("WRITEBEHIND.REQUEUE", "queue", "k")
    assert listener.heard() == []


def test_of_a_giant_tag_each_key_is_told_when_it_goes(make_server):
    server = make_server(config=[f"notify-keyspace-events {OWN}"], args=["invalidate-sync-keys", "100"])
    client = server.client()
    keys = fill_tag(client, "t", 1000)
    listener = Listener(server)
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == 1000
    eventually(lambda: client.dbsize() == 0)
    assert sorted(listener.heard()) == sorted(f"cache.invalidate {key.decode()}" for key in keys)


@pytest.mark.parametrize("classes", ["", "KE$gxet", "d"])
def test_nothing_is_told_where_the_class_is_off(server, call, listener, classes):
    call("CONFIG", "SET", "notify-keyspace-events", classes)
    call("CACHE.SET", "k", "v")
    call("LOCK.ACQUIRE", "lock", "ann", "EX", 9)
    call("CACHE.INVALIDATE", "k")
    assert listener.heard() == []
    for classes in (OWN, "Kd", "KEA"):
        call("CONFIG", "SET", "notify-keyspace-events", classes)
        call("CACHE.SET", "k", "v")
        assert listener.heard() == ([] if classes == "Kd" else ["cache.set k"])


def test_the_other_channel_has_the_event_by_key_and_database(server, protocol):
    client = server.client(protocol)
    subscriber = client.pubsub()
    subscriber.psubscribe("__keyspace@*__:k")
    assert subscriber.get_message(timeout=10)["type"] == "psubscribe"
    server.client(db=3).execute_command("CACHE.SET", "k", "v")
    messages = [subscriber.get_message(timeout=10) for _ in range(2)]
    assert {message["channel"] for message in messages} == {b"__keyspace@3__:k"}
    assert [message["data"] for message in messages] == [b"set", b"cache.set"]


def test_in_transactions_and_scripts(server, call, listener):
    call("EVAL", "redis.call('CACHE.SET', 'k', 'v') redis.call('CACHE.INVALIDATE', 'k')", 0)
    assert listener.heard() == ["cache.set k", "cache.invalidate k"]
    with RawClient(server) as raw:
        raw.pipeline([("MULTI",), ("CACHE.SET", "k", "v"), ("LOCK.ACQUIRE", "l", "ann", "EX", 9), ("EXEC",)])
    assert listener.heard() == ["cache.set k", "lock.acquire l"]


def test_a_replica_tells_nothing_until_it_is_promoted(server, make_server):
    replica = make_server(config=[f'notify-keyspace-events "{EVERYTHING}"'])
    replica.replicate_from(server).wait_until_synced()
    listener = Listener(replica)
    client = server.client()
    for words in (
        ("CACHE.SET", "k", "v", "EX", 9, "GRACE", 9, "TAGS", 1, "t"),
        ("CACHE.STALE", "k"),
        ("CACHE.INVALIDATETAG", "t"),
        ("LOCK.ACQUIRE", "l", "ann", "EX", 9),
        ("LOCK.RELEASE", "l", "ann"),
        ("RATELIMIT.BAN", "b", "EX", 9),
        ("CACHE.SET", "m", "v"),
    ):
        client.execute_command(*words)
    replica.wait_until_synced()
    assert listener.heard() == []
    replica.promote()
    replica.client().execute_command("CACHE.INVALIDATE", "m")
    assert listener.heard() == ["cache.invalidate m"]
