"""Whatever clients can make grow has a bound: a setting, a number in INFO that stays below it, and one that says that it was
reached. Each bound is run into here."""

import contextlib

import pytest
from raw_client import ErrorReply, RawClient, fields
from servers import eventually
from tag_view import metric

CAP, MORE = 3, 10


def load_many(raw):
    replies = [raw.call("CACHE.FETCH", f"k:{number}", "LEASE", 60_000) for number in range(MORE)]
    assert [status for status, *_ in replies] == [b"MISS"] * MORE
    assert sum(token is not None for *_, token in replies) == CAP


def floors(raw):
    for number in range(MORE):
        assert raw.call("CACHE.FLOOR", f"k:{number}", 5) == 1


def jobs(raw):
    for number in range(MORE):
        raw.call("CACHE.WARM", "loader", f"k:{number}")


def negatives(raw):
    for number in range(MORE):
        token = raw.call("CACHE.FETCH", f"k:{number}")[2]
        assert raw.call("CACHE.FILLNIL", f"k:{number}", token, "EX", 600) == 1


def fence_tags(raw):
    token = raw.call("CACHE.FETCH", "k", "LEASE", 60_000)[2]
    for number in range(MORE):
        raw.call("CACHE.INVALIDATETAG", f"t:{number}")
    # Which they were is not known any more: in doubt, nothing is stored.
    assert raw.call("CACHE.FILL", "k", token, "v", "TAGS", 1, "t:0") == 0
    assert raw.call("CACHE.FETCH", "other", "LEASE", 60_000)[2] is not None
    for number in range(MORE):
        raw.call("CACHE.INVALIDATETAG", f"t:{number}")


def refused_beyond(*words):
    """A command with {n} in it, which is an error beyond the cap."""

    def exceed(raw):
        calls = [[str(word).replace("{n}", str(number)) for word in words] for number in range(MORE)]
        refused = [reply for call in calls if isinstance(reply := raw.call(*call), ErrorReply)]
        assert len(refused) == MORE - CAP
        assert all(reply.startswith("ERR too many") for reply in refused)

    return exceed


def departures(raw):
    for number in range(MORE):
        raw.call("SET", f"k:{number}", "v")
        raw.call("DEL", f"k:{number}")
    known = [fields(raw.call("CACHE.EXPLAIN", f"k:{number}"))[b"last_gone"] for number in range(MORE)]
    assert known == [None] * (MORE - CAP) + [b"deleted"] * CAP


def slides(raw):
    """They wait while the server may not write."""
    assert raw.call("CACHE.POLICY", "SET", "p", "PREFIX", "k:", "PX", 1000, "SLIDING") == "OK"
    for number in range(MORE):
        assert raw.call("CACHE.SET", f"k:{number}", "v") == "OK"
    raw.call("CLIENT", "PAUSE", 600_000, "WRITE")
    eventually(lambda: raw.call("PTTL", "k:0") < 800)
    for number in range(MORE):
        assert raw.call("CACHE.GET", f"k:{number}") == b"v"


# Setting -> what runs into it, the gauges that it bounds, the counters that tell of it.
CAPS = {
    "leases-max": (load_many, ["cache_leases"], ["cache_leases_full"]),
    "version-floors-max": (floors, ["cache_version_floors_lingering"], ["cache_version_floors_dropped"]),
    "jobs-max": (jobs, ["cache_jobs"], ["cache_jobs_dropped"]),
    "negatives-max": (negatives, ["cache_negatives"], ["cache_negatives_dropped"]),
    "fence-tags-max": (fence_tags, ["cache_fence_tags"], ["cache_fills_refused"]),
    "intents-max": (refused_beyond("CACHE.INTENT", "k:{n}"), ["cache_intents"], ["cache_intents_full"]),
    "policies-max": (
        refused_beyond("CACHE.POLICY", "SET", "p:{n}", "PREFIX", "p:{n}:"),
        ["cache_policies"],
        ["cache_policies_full"],
    ),
    "rules-max": (
        refused_beyond("CACHE.RULE", "SET", "e:{n}", "KEYS", 1, "k"),
        ["cache_rules"],
        ["cache_rules_full"],
    ),
    "explain-history-max": (departures, ["cache_departures"], []),
    "slides-max": (slides, ["cache_slides_pending"], ["cache_slides_dropped"]),
}
# With tests of their own below.
OTHERS = {"waiters-max", "waiters-per-key-max", "tag-history-max"}


@pytest.fixture
def capped(make_server):
    """capped(setting) -> a connection to a server whose setting is CAP."""
    with contextlib.ExitStack() as stack:

        def make(setting, **others):
            server = make_server(args=[setting, str(CAP)])
            return server, stack.enter_context(RawClient(server))

        yield make


def test_every_cap_is_here(server):
    with RawClient(server) as raw:
        names = {name.decode().removeprefix("keyward.") for name in raw.call("CONFIG", "GET", "keyward.*-max")[::2]}
    assert names == set(CAPS) | OTHERS


@pytest.mark.parametrize("setting", CAPS)
def test_the_cap_holds(capped, setting):
    exceed, gauges, counters = CAPS[setting]
    server, raw = capped(setting)
    exceed(raw)
    for gauge in gauges:
        assert metric(server, gauge) == CAP
    for counter in counters:
        assert metric(server, counter) > 0
    # Lowered, it takes effect on what grows from then on, and nothing is left when all is gone.
    raw.call("CLIENT", "UNPAUSE")
    assert raw.call("CONFIG", "SET", f"keyward.{setting}", 1) == "OK"
    assert raw.call("FLUSHALL") == "OK"
    assert metric(server, "caught_panics") == 0


WAITS = {
    "cache": ("CACHE.FETCH", "key", "WAIT", 0),
    "lock": ("LOCK.ACQUIRE", "lock", "{n}", "PX", 600_000, "WAIT", 0),
    "ratelimit": ("RATELIMIT.ENTER", "slots", "{n}", "LIMIT", 1, "EX", 600, "WAIT", 0),
    "writebehind": ("WRITEBEHIND.CLAIM", "queue", "{n}", "BLOCK", 0),
}


@pytest.mark.parametrize("setting", ["waiters-max", "waiters-per-key-max"])
@pytest.mark.parametrize("family", WAITS)
def test_waiters(capped, setting, family):
    """Those beyond the cap are answered at once: BUSY, or an error."""
    server, raw = capped(setting)
    raw.call("CACHE.FETCH", "key", "LEASE", 60_000)
    raw.call("LOCK.ACQUIRE", "lock", "first", "PX", 600_000)
    raw.call("RATELIMIT.ENTER", "slots", "first", "LIMIT", 1, "EX", 600)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server)) for _ in range(MORE)]
        for number, client in enumerate(clients):
            client.send(*[str(word).replace("{n}", str(number)) for word in WAITS[family]])
        refused = [client.read() for client in eventually(lambda: answered(clients, MORE - CAP))]
        for reply in refused:
            assert reply == [b"BUSY", None, None] if family == "cache" else reply == "ERR too many waiters"
        assert metric(server, f"{family}_waiters") == CAP
        assert metric(server, f"{family}_waits_refused") == MORE - CAP
    eventually(lambda: metric(server, f"{family}_waiters") == 0)


def answered(clients, number):
    found = [client for client in clients if client.is_answered()]
    return found if len(found) == number else None


def test_tag_history(capped):
    """Of tags without keys the last ones are remembered."""
    server, raw = capped("tag-history-max")
    for number in range(MORE):
        raw.call("CACHE.SET", "k", "v", "TAGS", 1, f"t:{number}")
        assert raw.call("CACHE.INVALIDATETAG", f"t:{number}") == 1
    told = [fields(raw.call("CACHE.TAGINFO", f"t:{number}"))[b"invalidations"] for number in range(MORE)]
    assert told == [0] * (MORE - CAP) + [1] * CAP
    assert metric(server, "cache_tags") == 0
    assert metric(server, "cache_tag_history") == CAP


# Bounds that are no settings of the server


def test_a_queue_has_its_own(server):
    with RawClient(server) as raw:
        assert raw.call("WRITEBEHIND.CONFIG", "queue", "MAXDIRTY", CAP) == "OK"
        before = metric(server, "writebehind_refused")
        replies = [raw.call("WRITEBEHIND.SET", "queue", f"k:{number}", "v") for number in range(MORE)]
        assert sum(isinstance(reply, ErrorReply) and reply.startswith("WBFULL") for reply in replies) == MORE - CAP
        assert metric(server, "writebehind_dirty") == CAP
        assert metric(server, "writebehind_refused") == before + MORE - CAP


def test_a_limiter_holds_sixteen_windows(server):
    with RawClient(server) as raw:
        replies = [raw.call("RATELIMIT.CHECK", "k", 5, "PX", 60_000 + number) for number in range(20)]
        assert [isinstance(reply, ErrorReply) for reply in replies] == [False] * 16 + [True] * 4
        assert raw.call("MEMORY", "USAGE", "k") < 64_000


def test_the_sketch_of_hot_keys_does_not_grow(server):
    with RawClient(server) as raw:
        raw.pipeline([("SET", f"k:{number}", "v") for number in range(5000)])
        raw.pipeline([("CACHE.GET", f"k:{number}") for number in range(5000)] * 3)
    assert metric(server, "cache_hot_keys") <= 2048


def test_tags_of_a_key(server):
    with RawClient(server) as raw:
        raw.call("SET", "k", "v")
        tags = [f"t:{number}" for number in range(64)]
        assert raw.call("CACHE.TAG", "k", *tags) == 64
        assert isinstance(raw.call("CACHE.TAG", "k", "one more"), ErrorReply)
        assert metric(server, "cache_tags") == 64
