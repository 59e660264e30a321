"""CACHE.READ, LOADS and WARM: loads are given to loaders, in the order of need, each once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from propagation import ReplicationStream
from raw_client import ErrorReply, RawClient
from servers import Server, eventually
from single_flight import BUSY, NONE, Callers, hit


class Loaders(Callers):
    """Readers and loaders of one test."""

    def read(self, key: str, *options: str | int) -> object:
        return self.call("CACHE.READ", key, "LOADER", "l", *options)

    def wait_read(self, key: str, *options: str | int, loader: str = "l", wait_ms: int = 0) -> RawClient:
        before = self.waiting()
        client = self.connect()
        client.send("CACHE.READ", key, "LOADER", loader, "WAIT", wait_ms, *options)
        eventually(lambda: self.waiting() == before + 1, message="the reader does not wait")
        return client

    def loads(self, *options: str | int, loader: str = "l") -> list:
        return self.call("CACHE.LOADS", loader, *options)

    def jobs(self, loader: str = "l") -> list:
        """What there is to load: key and reason."""
        return [(key, reason) for key, _, reason, _ in self.loads("COUNT", 1000, loader=loader)]

    def block(self, *options: str | int, loader: str = "l", client: RawClient | None = None) -> RawClient:
        before = self.info("waiting_loaders")
        client = client or self.connect()
        client.send("CACHE.LOADS", loader, "BLOCK", 0, *options)
        eventually(lambda: self.info("waiting_loaders") == before + 1, message="the loader does not wait")
        return client


@pytest.fixture
def loaders(server: Server, protocol: int) -> Iterator[Loaders]:
    with Loaders(server, protocol) as loaders:
        yield loaders


def test_a_fresh_value_is_read_and_nothing_is_queued(loaders: Loaders) -> None:
    loaders.call("CACHE.SET", "k", "v")
    assert loaders.read("k") == hit(b"v")
    assert loaders.loads() == []


def test_a_missing_key_goes_to_the_loader_and_its_value_to_all_who_wait(loaders: Loaders) -> None:
    assert loaders.read("k") == BUSY
    readers = [loaders.wait_read("k") for _ in range(3)]
    [[key, token, reason, left_ms]] = loaders.loads()
    assert (key, reason, left_ms) == (b"k", b"MISS", 0)
    assert loaders.loads() == [], "each once"
    readers.append(loaders.wait_read("k"))
    assert loaders.call("CACHE.FILL", "k", token, "v", "EX", 60) == 1
    assert [reader.read() for reader in readers] == [hit(b"v")] * 4
    assert loaders.read("k") == hit(b"v")
    assert (loaders.waiting(), loaders.info("jobs"), loaders.info("leases")) == (0, 0, 0)


def test_a_stale_value_is_served_while_a_loader_refreshes_it(loaders: Loaders) -> None:
    loaders.call("CACHE.SET", "k", "old", "PX", 100_000, "GRACE", 600_000)
    loaders.call("CACHE.STALE", "k")
    assert loaders.read("k") == [b"STALE", b"old", None]
    assert loaders.read("k") == [b"STALE", b"old", None]
    [[key, token, reason, left_ms]] = loaders.loads("COUNT", 9)
    assert (key, reason) == (b"k", b"STALE")
    assert 0 < left_ms <= 600_000
    assert loaders.read("k") == [b"STALE", b"old", None]
    assert loaders.loads() == []
    assert loaders.call("CACHE.FILL", "k", token, "new", "PX", 100_000) == 1
    assert loaders.read("k") == hit(b"new")


def test_who_takes_nothing_stale_waits_for_the_loader(loaders: Loaders) -> None:
    loaders.call("CACHE.SET", "k", "old", "EX", 60, "GRACE", 600)
    loaders.call("CACHE.STALE", "k")
    assert loaders.read("k", "STALE", "NEVER") == BUSY
    reader = loaders.wait_read("k", "STALE", "NEVER")
    [[_, token, reason, _]] = loaders.loads()
    assert reason == b"STALE"
    assert loaders.call("CACHE.FILL", "k", token, "new") == 1
    assert reader.read() == hit(b"new")


def test_jobs_come_in_the_order_of_need(loaders: Loaders) -> None:
    for key in ("stale-1", "stale-2"):
        loaders.call("CACHE.SET", key, "v", "EX", 60, "GRACE", 600)
        loaders.call("CACHE.STALE", key)
    assert loaders.call("CACHE.WARM", "l", "warm-1", "warm-2") == 2
    loaders.read("stale-2")
    loaders.read("miss-2")
    loaders.read("stale-1")
    loaders.read("miss-1")
    loaders.read("warm-2")
    assert loaders.jobs() == [
        (b"miss-2", b"MISS"),
        (b"miss-1", b"MISS"),
        (b"warm-2", b"MISS"),
        (b"stale-2", b"STALE"),
        (b"stale-1", b"STALE"),
        (b"warm-1", b"WARM"),
    ]


def test_a_loader_that_waits_gets_the_job_at_once(loaders: Loaders) -> None:
    first, second = loaders.block(), loaders.block("COUNT", 10)
    assert loaders.read("a") == BUSY
    [[key, token, reason, _]] = first.read()
    assert (key, reason) == (b"a", b"MISS")
    assert not second.is_answered(), "first come first served"
    assert loaders.call("CACHE.WARM", "l", "b", "c") == 2
    assert [(key, reason) for key, _, reason, _ in second.read()] == [(b"b", b"WARM"), (b"c", b"WARM")]
    assert loaders.call("CACHE.FILL", "a", token, "v") == 1


def test_a_loader_waits_no_longer_than_he_wants(loaders: Loaders) -> None:
    assert loaders.loads("BLOCK", 1) == []
    assert loaders.info("waiting_loaders") == 0


def test_a_job_whose_lease_runs_out_goes_to_the_next_loader(loaders: Loaders) -> None:
    reader = loaders.wait_read("k")
    loaders.call("CACHE.WARM", "l", "warm")
    first = loaders.loads("COUNT", 2, "LEASE", 1)
    assert [job[0] for job in first] == [b"k", b"warm"]
    jobs = loaders.loads("COUNT", 2, "BLOCK", 0)
    if len(jobs) < 2:
        jobs += loaders.loads("BLOCK", 0)
    assert {(key, reason) for key, _, reason, _ in jobs} == {(b"k", b"MISS"), (b"warm", b"WARM")}
    token = dict((job[0], job[1]) for job in jobs)[b"k"]
    assert loaders.call("CACHE.FILL", "k", first[0][1], "late") == 0
    assert loaders.call("CACHE.FILL", "k", token, "v") == 1
    assert reader.read() == hit(b"v")


def test_a_job_that_was_given_up_goes_to_the_next_loader_while_somebody_waits(loaders: Loaders) -> None:
    reader = loaders.wait_read("k")
    [[_, token, _, _]] = loaders.loads()
    assert loaders.call("CACHE.FAIL", "k", token) == 1
    [[_, token, reason, _]] = loaders.loads("BLOCK", 0)
    assert reason == b"MISS"
    assert loaders.call("CACHE.FILLNIL", "k", token, "EX", 60) == 1
    assert reader.read() == NONE
    assert loaders.read("k") == NONE
    assert loaders.call("CACHE.WARM", "l", "k") == 0, "the origin has nothing"


def test_a_failure_with_a_message_is_told_and_nobody_tries_again_for_a_while(loaders: Loaders) -> None:
    reader = loaders.wait_read("k")
    [[_, token, _, _]] = loaders.loads()
    assert loaders.call("CACHE.FAIL", "k", token, "MSG", "down", "RETRY", 60_000) == 1
    failed = [b"ERROR", b"down", None]
    assert reader.read() == failed
    assert loaders.read("k") == failed
    assert loaders.call("CACHE.WARM", "l", "k") == 0
    assert loaders.loads() == []


def test_a_reader_is_never_elected_and_a_fetching_client_is(loaders: Loaders) -> None:
    token = loaders.lease("k")
    reader = loaders.wait_read("k")
    fetcher = loaders.wait("k")
    assert loaders.call("CACHE.FAIL", "k", token) == 1
    status, _, token = fetcher.read()
    assert status == b"MISS"
    assert loaders.call("CACHE.FAIL", "k", token) == 1
    [[_, token, _, _]] = loaders.loads("BLOCK", 0)
    assert not reader.is_answered()
    assert loaders.call("CACHE.FILL", "k", token, "v") == 1
    assert reader.read() == hit(b"v")


def test_a_load_by_a_fetching_client_answers_readers_and_makes_the_job_needless(loaders: Loaders) -> None:
    reader = loaders.wait_read("k")
    token = loaders.lease("k")
    assert loaders.loads() == [], "somebody is at it"
    assert loaders.call("CACHE.FILL", "k", token, "v") == 1
    assert reader.read() == hit(b"v")
    assert loaders.info("jobs") == 0


def test_what_was_written_meanwhile_needs_no_load_and_answers_who_waits(loaders: Loaders) -> None:
    reader = loaders.wait_read("k")
    loaders.call("SET", "k", "v")
    assert loaders.loads() == []
    assert reader.read() == hit(b"v")
    other = loaders.wait_read("other")
    loaders.call("CACHE.SET", "other", "w")
    assert other.read() == hit(b"w")


def test_two_loaders_do_not_see_each_others_jobs(loaders: Loaders) -> None:
    loaders.call("CACHE.WARM", "a", "k1", "k2")
    loaders.call("CACHE.WARM", "b", "k2")
    assert loaders.jobs("none") == []
    assert loaders.jobs("b") == [(b"k2", b"WARM")]
    assert loaders.jobs("a") == [(b"k1", b"WARM")], "k2 is being loaded"


def test_jobs_belong_to_the_selected_database(loaders: Loaders, server: Server) -> None:
    with RawClient(server, db=3) as other:
        assert other.call("CACHE.WARM", "l", "k") == 1
        assert loaders.loads() == []
        [[key, token, _, _]] = other.call("CACHE.LOADS", "l")
        assert other.call("CACHE.FILL", key, token, "v") == 1
        assert other.call("GET", "k") == b"v"
    assert loaders.call("EXISTS", "k") == 0


def test_warm_counts_what_is_missing_or_stale_and_not_on_its_way(loaders: Loaders) -> None:
    loaders.call("CACHE.SET", "fresh", "v")
    loaders.call("CACHE.SET", "stale", "v", "EX", 60, "GRACE", 600)
    loaders.call("CACHE.STALE", "stale")
    loaders.lease("loading")
    assert loaders.call("CACHE.WARM", "l", "fresh", "stale", "missing", "missing", "loading") == 2
    assert loaders.call("CACHE.WARM", "l", "missing") == 0, "it is queued"
    jobs = loaders.loads("COUNT", 10)
    assert [(key, reason) for key, _, reason, _ in jobs] == [(b"stale", b"WARM"), (b"missing", b"WARM")]
    assert 0 < jobs[0][3] <= 600_000, "how long it can still be served"


def test_warm_of_another_type_queues_nothing(loaders: Loaders) -> None:
    loaders.call("RPUSH", "list", "x")
    assert loaders.call("CACHE.WARM", "l", "missing", "list").startswith("WRONGTYPE")
    assert loaders.loads() == []


def test_the_fence_holds_for_loaders_too(loaders: Loaders) -> None:
    loaders.read("k")
    [[_, token, _, _]] = loaders.loads()
    loaders.call("CACHE.INVALIDATETAG", "t")
    assert loaders.call("CACHE.FILL", "k", token, "old", "TAGS", 1, "t") == 0
    loaders.read("k")
    [[_, token, _, _]] = loaders.loads()
    loaders.call("CACHE.INVALIDATE", "k")
    reader = loaders.wait_read("k")
    assert loaders.call("CACHE.FILL", "k", token, "old") == 0
    assert not reader.is_answered()
    [[_, token, _, _]] = loaders.loads()
    assert loaders.call("CACHE.FILL", "k", token, "new") == 1
    assert reader.read() == hit(b"new")


def test_an_intent_keeps_loaders_away_until_it_is_over(loaders: Loaders) -> None:
    loaders.read("k")
    intent = loaders.call("CACHE.INTENT", "k")
    assert loaders.loads() == []
    assert loaders.read("k") == BUSY
    reader = loaders.wait_read("k")
    assert loaders.call("CACHE.ROLLBACK", "k", intent) == 1
    [[_, token, _, _]] = loaders.loads("BLOCK", 0)
    assert loaders.call("CACHE.FILL", "k", token, "v") == 1
    assert reader.read() == hit(b"v")


def test_a_loader_that_has_gone_gets_nothing(loaders: Loaders) -> None:
    gone = loaders.block("COUNT", 5)
    gone.close()
    eventually(lambda: loaders.info("waiting_loaders") == 0)
    loaders.read("k")
    assert loaders.jobs() == [(b"k", b"MISS")]


def test_flushall_takes_the_jobs_and_leaves_readers_to_the_loader(loaders: Loaders) -> None:
    loaders.call("CACHE.WARM", "l", "warm")
    reader = loaders.wait_read("k")
    [[_, token, _, _]] = loaders.loads()
    loaders.call("FLUSHALL")
    late = loaders.wait_read("k")
    [[_, next_token, reason, _]] = loaders.loads("BLOCK", 0)
    assert reason == b"MISS"
    assert loaders.call("CACHE.FILL", "k", token, "old") == 0
    assert reader.read() == hit(b"old"), "he came before"
    assert not late.is_answered()
    assert loaders.call("CACHE.FILL", "k", next_token, "new") == 1
    assert late.read() == hit(b"new")
    assert loaders.info("jobs") == 0


@pytest.mark.parametrize(("how", "answer"), [("TIMEOUT", []), ("ERROR", "UNBLOCKED")])
def test_client_unblock_ends_a_wait_for_jobs(loaders: Loaders, how: str, answer: object) -> None:
    client = loaders.connect()
    number = client.call("CLIENT", "ID")
    loaders.block(client=client)
    assert loaders.call("CLIENT", "UNBLOCK", number, how) == 1
    reply = client.read()
    assert reply.startswith(answer) if isinstance(answer, str) else reply == answer


def test_nobody_waits_in_a_transaction_or_a_script(loaders: Loaders) -> None:
    loaders.call("MULTI")
    loaders.call("CACHE.LOADS", "l", "BLOCK", 0)
    loaders.call("CACHE.READ", "k", "LOADER", "l", "WAIT", 0)
    assert loaders.call("EXEC") == [[], BUSY]
    script = "return redis.call('CACHE.LOADS', 'l', 'BLOCK', 0)"
    assert loaders.call("EVAL", script, 0)[0][0] == b"k"


def test_the_least_needed_job_goes_for_a_more_urgent_one(make_server) -> None:
    with Loaders(make_server(args=["jobs-max", "2"])) as loaders:
        loaders.call("CACHE.WARM", "l", "warm-1", "warm-2")
        assert loaders.call("CACHE.WARM", "l", "warm-3") == 1
        reader = loaders.wait_read("miss-1")
        assert loaders.wait_read("miss-2") is not None
        assert (loaders.info("jobs"), loaders.info("jobs_dropped")) == (2, 3)
        loaders.read("miss-3")
        assert reader.read() == BUSY, "its job is not queued any more"
        assert loaders.jobs() == [(b"miss-2", b"MISS"), (b"miss-3", b"MISS")]


def test_without_room_for_leases_jobs_stay_queued(make_server) -> None:
    server = make_server()
    with Loaders(server) as loaders:
        loaders.call("CACHE.WARM", "l", "k")
        server.client().config_set("keyward.leases-max", 0)
        assert loaders.loads() == []
        server.client().config_set("keyward.leases-max", 10)
        assert loaders.jobs() == [(b"k", b"WARM")]


@pytest.mark.parametrize("end", ["filled", "run out", "more allowed"])
def test_a_loader_that_waits_gets_the_job_when_there_is_room_for_its_lease(make_server, end: str) -> None:
    server = make_server(args=["leases-max", "1"])
    with Loaders(server) as loaders:
        token = loaders.lease("k", "LEASE", 500 if end == "run out" else 60_000)
        loaders.call("CACHE.WARM", "l", "warm")
        waiting = loaders.block()
        if end == "filled":
            assert loaders.call("CACHE.FILL", "k", token, "v") == 1
        elif end == "more allowed":
            server.client().config_set("keyward.leases-max", 2)
        [[key, _, _, _]] = waiting.read()
        assert key == b"warm"


def test_more_loaders_than_are_served_in_one_go_are_all_served(loaders: Loaders) -> None:
    waiting = [loaders.block() for _ in range(250)]
    keys = [f"k{i}" for i in range(250)]
    assert loaders.call("CACHE.WARM", "l", *keys) == 250
    assert sorted(job[0][0] for job in (client.read() for client in waiting)) == sorted(key.encode() for key in keys)
    assert loaders.info("jobs") == 0


def test_a_loader_is_given_only_keys_that_he_may_read(make_server) -> None:
    server = make_server()
    with Loaders(server) as loaders:
        rules = ("reset", "on", ">secret", "+@all", "~mine:*", "%W~write:*")
        loaders.call("ACL", "SETUSER", "alice", *rules)
        loaders.call("CACHE.WARM", "l", "write:1", "secret:1", "mine:1")
        alice = loaders.connect()
        assert alice.call("AUTH", "alice", "secret") == "OK"
        assert alice.call("CACHE.WARM", "l", "secret:1").startswith("NOPERM")
        assert alice.call("CACHE.READ", "secret:1", "LOADER", "l").startswith("NOPERM")
        assert [job[0] for job in alice.call("CACHE.LOADS", "l", "COUNT", 9)] == [b"mine:1"]
        loaders.block("COUNT", 9, client=alice)
        loaders.read("secret:2")
        loaders.read("mine:2")
        assert [job[0] for job in alice.read()] == [b"mine:2"]
        assert loaders.jobs() == [(b"secret:2", b"MISS"), (b"write:1", b"WARM"), (b"secret:1", b"WARM")]


def test_a_user_who_was_deleted_while_waiting_gets_nothing(make_server) -> None:
    server = make_server()
    with Loaders(server) as loaders:
        loaders.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", "+@all", "~*")
        alice = loaders.connect()
        assert alice.call("AUTH", "alice", "secret") == "OK"
        loaders.block(client=alice)
        loaders.call("ACL", "DELUSER", "alice")
        loaders.read("k")
        assert loaders.jobs() == [(b"k", b"MISS")]


def test_a_replica_serves_what_it_has_and_gives_out_no_jobs(make_server) -> None:
    primary, replica = make_server(), make_server()
    with Loaders(primary) as loaders:
        loaders.call("CACHE.SET", "k", "v")
        replica.replicate_from(primary).wait_until_synced()
        with RawClient(replica) as reader:
            assert reader.call("CACHE.READ", "k", "LOADER", "l") == hit(b"v")
            assert reader.call("CACHE.READ", "missing", "LOADER", "l").startswith("READONLY")
            assert reader.call("CACHE.LOADS", "l").startswith("READONLY")
            assert reader.call("CACHE.WARM", "l", "k").startswith("READONLY")
            assert reader.call("CACHE.HOT") == [[b"k", 1], [b"missing", 1]]


def test_jobs_and_waiting_loaders_go_with_the_role(make_server) -> None:
    server, other = make_server(), make_server()
    with Loaders(server) as loaders:
        blocked = loaders.block(loader="idle")
        reader = loaders.wait_read("k")
        server.replicate_from(other)
        for client in (blocked, reader):
            assert client.read().startswith("UNBLOCKED")
        server.promote()
        assert (loaders.info("jobs"), loaders.info("waiting_loaders"), loaders.waiting()) == (0, 0, 0)


def test_reading_waiting_and_handing_out_replicate_nothing(make_server) -> None:
    server = make_server()
    with Loaders(server) as loaders, ReplicationStream(server) as stream:
        reader = loaders.wait_read("k")
        loaders.call("CACHE.WARM", "l", "warm")
        jobs = loaders.loads("COUNT", 2)
        assert stream.read() == []
        loaders.call("CACHE.FILL", "k", jobs[0][1], "v")
        assert reader.read() == hit(b"v")
        assert [effect[0] for effect in stream.read()] == [b"CACHE.SET"]


def test_too_many_loaders_wait(make_server) -> None:
    with Loaders(make_server(args=["waiters-per-key-max", "1"])) as loaders:
        loaders.block()
        assert loaders.loads("BLOCK", 0) == "ERR too many waiters"
        loaders.call("MULTI")
        loaders.call("CACHE.LOADS", "l", "BLOCK", 0)
        assert loaders.call("EXEC") == [[]], "who cannot wait is not refused to"
        loaders.block(loader="other")


def test_ten_thousand_jobs_of_keys_that_need_no_load_do_not_hide_the_next_one(loaders: Loaders) -> None:
    keys = [f"k{i}" for i in range(10_000)]
    assert loaders.call("CACHE.WARM", "l", *keys, "last") == 10_001
    loaders.call("MSET", *(word for key in keys for word in (key, "v")))
    [[key, _, _, _]] = loaders.loads("BLOCK", 0)
    assert key == b"last"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (("CACHE.READ", "k", "LOADER"), "ERR wrong number of arguments for 'cache.read' command"),
        (("CACHE.READ", "k", "WAIT", "1"), "ERR syntax error"),
        (("CACHE.READ", "k", "LOADER", "l", "LOADER", "m"), "ERR syntax error"),
        (("CACHE.READ", "k", "LOADER", ""), "ERR loader name must be 1 to 512 bytes"),
        (("CACHE.READ", "k", "LOADER", "l", "LEASE", "1"), "ERR syntax error"),
        (("CACHE.LOADS", "x" * 513), "ERR loader name must be 1 to 512 bytes"),
        (("CACHE.LOADS", "l", "COUNT", "0"), "ERR COUNT must be an integer from 1 to 1000000"),
        (("CACHE.LOADS", "l", "LEASE", "60001"), "ERR LEASE must be an integer from 1 to 60000"),
        (("CACHE.LOADS", "l", "BLOCK", "-1"), "ERR BLOCK must be an integer from 0 to 9223372036854775807"),
        (("CACHE.WARM", "l"), "ERR wrong number of arguments for 'cache.warm' command"),
    ],
)
def test_bad_calls_say_what_is_wrong_and_queue_nothing(loaders: Loaders, call: tuple, error: str) -> None:
    reply = loaders.call(*call)
    assert isinstance(reply, ErrorReply)
    assert reply == error
    assert loaders.info("jobs") == 0
