"""What replicas, RDB files and the AOF receive of grace, staleness and negative answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from propagation import ReplicationStream
from raw_client import ErrorReply
from servers import Server, eventually
from single_flight import NONE, Callers, hit


def fill_all(callers: Callers) -> None:
    """A fresh value, a stale one, one that a tag made stale, and negative answers with and without a tag."""
    callers.call("CACHE.FILL", "fresh", callers.lease("fresh"), "1", "PX", 60_000, "GRACE", 60_000, "TAGS", 1, "t")
    callers.call("CACHE.SET", "stale", "2", "EX", 60, "GRACE", 60)
    callers.call("CACHE.SET", "tagged", "3", "EX", 60, "GRACE", 60, "TAGS", 1, "u")
    callers.call("CACHE.STALE", "stale")
    callers.call("CACHE.STALETAG", "u")
    callers.call("CACHE.FILLNIL", "none", callers.lease("none"), "EX", 60)
    callers.call("CACHE.FILLNIL", "none:t", callers.lease("none:t"), "EX", 60, "TAGS", 1, "n")
    callers.call("CACHE.FILLNIL", "over", callers.lease("over"), "EX", 60, "TAGS", 1, "m")
    callers.call("CACHE.INVALIDATETAG", "m")
    callers.call("CACHE.FILLNIL", "over too", callers.lease("over too"), "EX", 60)
    callers.call("CACHE.INVALIDATE", "over too")


def view(callers: Callers) -> dict[str, object]:
    """What a reader sees, on a primary and on a replica alike."""
    seen: dict[str, object] = {}
    for key in ("fresh", "stale", "tagged", "none", "none:t", "over", "over too"):
        fetched = callers.call("CACHE.FETCH", key)
        if isinstance(fetched, ErrorReply):
            fetched = ["MISS"]
        elif fetched[0] == b"MISS":
            callers.call("CACHE.FAIL", key, fetched[2])
            fetched = ["MISS"]
        elif fetched[0] == b"REFRESH":
            callers.call("CACHE.FAIL", key, fetched[2])
            fetched = [b"STALE", fetched[1], None]
        seen[key] = (
            fetched,
            callers.call("CACHE.GET", key),
            callers.call("GET", key),
            callers.call("PEXPIRETIME", key),
        )
        soft, hard = callers.call("CACHE.TTL", key)
        seen[key + " is stale"] = soft == 0
        assert soft <= hard
    return seen


def expect(seen: dict[str, object]) -> None:
    assert seen["fresh"][0] == hit(b"1")
    assert seen["stale"][:3] == ([b"STALE", b"2", None], None, b"2")
    assert seen["tagged"][:3] == ([b"STALE", b"3", None], None, b"3")
    assert seen["none"][0] == seen["none:t"][0] == NONE
    assert seen["over"][0] == seen["over too"][0] == ["MISS"]


def test_a_replica_sees_what_the_primary_sees(make_server: Callable[..., Server]) -> None:
    primary = make_server()
    early = make_server().replicate_from(primary)
    with Callers(primary) as callers:
        fill_all(callers)
        late = make_server().replicate_from(primary)
        expected = view(callers)
        expect(expected)
        for replica in (early, late):
            replica.wait_until_synced()
            with Callers(replica) as reader:
                assert view(reader) == expected
        callers.call("CACHE.INVALIDATETAG", "n", "t", "u")
        early.wait_until_synced()
        with Callers(early) as reader:
            eventually(lambda: view(reader) == view(callers))
            assert view(reader)["none:t"][0] == ["MISS"]


@pytest.mark.parametrize("config", [["save 900 1"], ["appendonly yes"], ["appendonly yes", "appendfsync always"]])
def test_a_restart_changes_nothing(make_server: Callable[..., Server], config: list[str]) -> None:
    server = make_server(config=config)
    with Callers(server) as callers:
        fill_all(callers)
        token = callers.lease("loading")
        expected = view(callers)
    server.restart()
    with Callers(server) as callers:
        assert view(callers) == expected
        assert callers.call("CACHE.FILL", "loading", token, "v") == 0, "leases are not saved"
        assert callers.call("CACHE.INVALIDATETAG", "n") == 0
        assert callers.call("CACHE.FETCH", "none:t")[0] == b"MISS", "a negative answer keeps its tags"


def test_an_aof_rewrite_keeps_grace_and_negatives(make_server: Callable[..., Server]) -> None:
    server = make_server(config=["appendonly yes"])
    with Callers(server) as callers:
        fill_all(callers)
        expected = view(callers)
        callers.call("BGREWRITEAOF")
        eventually(lambda: server.info("persistence")["aof_rewrite_in_progress"] == 0)
    server.restart()
    with Callers(server) as callers:
        assert view(callers) == expected


def test_the_effects_are_absolute(server: Server) -> None:
    with Callers(server) as callers, ReplicationStream(server) as stream:

        def effects() -> list[list[bytes]]:
            return [words for words in stream.read() if words not in ([b"MULTI"], [b"EXEC"])]

        token = callers.lease("k")
        assert effects() == [], "a lease is nobody else's business"
        callers.call("CACHE.FILL", "k", token, "v", "EX", 60, "GRACE", 30, "TAGS", 1, "t", "VERSION", 3)
        ((*head, soft), tail) = (lambda words: (words[:5], words[5:]))(effects()[0])
        assert head == [b"CACHE.SET", b"k", b"v", b"PXAT"]
        assert tail == [b"GRACE", b"30000", b"TAGS", b"1", b"t", b"VERSION", b"3"]
        assert callers.call("PEXPIRETIME", "k") == int(soft) + 30_000

        callers.call("CACHE.STALE", "k", "missing")
        ((*head, hard),) = effects()
        assert head[:2] + head[3:] == [b"KEYWARD.APPLY", b"STALE", b"k"]
        assert int(hard) == int(head[2]) + 30_000 == callers.call("PEXPIRETIME", "k")
        callers.call("CACHE.STALE", "k")
        assert effects() == [], "it was stale already"

        callers.call("CACHE.SET", "graceless", "v", "EX", 60)
        effects()
        callers.call("CACHE.STALE", "graceless")
        assert effects() == [[b"UNLINK", b"graceless"]]

        callers.call("CACHE.FILLNIL", "n", callers.lease("n"), "PX", 60_000, "TAGS", 1, "t")
        ((*head, until, tag),) = effects()
        assert head == [b"KEYWARD.APPLY", b"NEGATIVE", b"n"]
        assert int(until) > int(soft)
        assert tag == b"t"
        callers.call("CACHE.INVALIDATE", "n")
        assert effects() == [[b"KEYWARD.APPLY", b"NONEGATIVE", b"n"]]

        token = callers.lease("r")
        callers.call("CACHE.INVALIDATE", "r")
        callers.call("CACHE.FILL", "r", token, "v")
        callers.call("CACHE.FAIL", "r", callers.lease("r"), "MSG", "down")
        assert effects() == [], "refused fills and failures change nothing"


def test_a_replica_never_elects(make_server: Callable[..., Server]) -> None:
    primary = make_server()
    replica = make_server().replicate_from(primary)
    with Callers(primary) as callers, Callers(replica) as reader:
        callers.call("CACHE.SET", "k", "v", "EX", 60, "GRACE", 60)
        callers.call("CACHE.STALE", "k")
        replica.wait_until_synced()
        assert reader.call("CACHE.FETCH", "k") == [b"STALE", b"v", None]
        for words in (
            ("CACHE.FETCH", "k", "STALE", "NEVER"),
            ("CACHE.FETCH", "none", "WAIT", 0),
            ("CACHE.MFETCH", 1, "none"),
        ):
            reply = reader.call(*words)
            assert isinstance(reply, ErrorReply), words
            assert reply.startswith("READONLY "), words
        assert reader.info("leases") == 0
