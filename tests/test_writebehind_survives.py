"""Write-behind queues through restarts, replication, promotion, eviction and pauses: no write that was answered is lost, and what
a worker may have written comes back as it was."""

import contextlib
import random
import threading

import pytest
import redis
from locks import evict_everything, make_evicting
from propagation import ReplicationStream, aof_commands
from raw_client import RawClient
from servers import eventually, upkeep_passes
from tag_view import metric
from write_behind import (
    Database,
    ack,
    claim,
    config,
    dead,
    delete,
    fetch,
    get,
    incrby,
    info,
    nack,
    put,
    records,
    requeue,
    work_off,
)


def without_transaction(commands):
    return [command for command in commands if command[0] not in (b"MULTI", b"EXEC")]


def words(*parts):
    return [part if isinstance(part, bytes) else str(part).encode() for part in parts]


def fill(client):
    """Records of every kind, in every state. The database as it is to be in the end."""
    config(client, "ATTEMPTS", 2, "DELAY", 0)
    put(client, "poison", "x")
    incrby(client, "given-up", 7)
    for _ in range(2):
        for record in claim(client):
            nack(client, record.key, record.version, "MSG", "no", "DELAY", 0)
    put(client, "set", "old")
    put(client, "set", "v", "EX", 1000, "TAGS", 1, "t")
    incrby(client, "sum", 5)
    incrby(client, "sum", 6)
    delete(client, "del")
    put(client, "in-flight", 1)
    claim(client, 100, "LEASE", 8000)
    put(client, "in-flight", 2)
    incrby(client, "sum", 1)
    return {b"set": b"v", b"sum": b"12", b"del": None, b"poison": b"x", b"given-up": b"7", b"in-flight": b"2"}


def finish(client):
    """Works everything off, what was given up too; the database then."""
    database = Database()
    work_off(client, database)
    for row in dead(client):
        requeue(client, row[0])
    while info(client)["keys"]:
        eventually(lambda: work_off(client, database), timeout=30)
    return {key: value for key, (value, _) in database.rows.items()}


# The stream


def test_effects_are_absolute_and_claims_are_not_among_them(make_server):
    server = make_server()
    client = server.client()
    put(client, "first", 1)
    now = "now"
    with ReplicationStream(server) as stream:

        def effects():
            sent = without_transaction(stream.read())
            # The moment is checked apart.
            for command in sent:
                if command[:2] in ([b"KEYWARD.APPLY", b"WBSET"], [b"KEYWARD.APPLY", b"WBDEL"]):
                    assert abs(int(command[5]) - client.time()[0] * 1000) < 60_000
                    command[5] = command[6] = b"now"
                if command[:2] == [b"KEYWARD.APPLY", b"WBINCRBY"]:
                    command[5] = command[6] = b"now"
            return sent

        version = put(client, "k", b"v\r\n\xff", "EX", 100, "TAGS", 1, "t")
        at = client.pexpiretime("k") if server.version >= (7, 0) else 0
        assert effects() == [
            words(
                "KEYWARD.APPLY", "WBSET", "q", "k", version, now, now, "NEW", b"v\r\n\xff", "PXAT", at, "TAGS", 1, "t"
            )
        ]
        version = put(client, "k", "w")
        assert effects() == [words("KEYWARD.APPLY", "WBSET", "q", "k", version, now, now, "JOIN", "w")]
        _, version = incrby(client, "n", 5)
        assert effects() == [words("KEYWARD.APPLY", "WBINCRBY", "q", "n", version, now, now, "NEW", 5, "-")]
        client.set("cached", 7)
        effects()
        _, version = incrby(client, "cached", -2)
        assert effects() == [words("KEYWARD.APPLY", "WBINCRBY", "q", "cached", version, now, now, "NEW", -2, 5)]
        version = delete(client, "k")
        assert effects() == [
            words("UNLINK", "k"),
            words("KEYWARD.APPLY", "WBDEL", "q", "k", version, now, now, "JOIN"),
        ]
        claim(client)
        claim(client, 1, "BLOCK", 1)
        info(client)
        dead(client)
        get(client, "k")
        assert ack(client, "k", version - 1) == nack(client, "none", 1) == 0
        assert effects() == [], "what changes nothing propagates nothing"
        nack(client, "k", version, "MSG", "no", "DELAY", 1000)
        ((*start, due, message),) = effects()
        assert start == words("KEYWARD.APPLY", "WBFAIL", "q", "k", version, 1)
        assert message == b"no"
        assert 0 < int(due) - client.time()[0] * 1000 < 60_000
        assert ack(client, "k", version, "none", 5) == 1
        assert effects() == [words("WRITEBEHIND.ACK", "q", "w", "k", version, "none", 5)]


def test_a_death_and_a_claim_that_ran_out_are_replicated(make_server):
    server = make_server()
    client = server.client()
    config(client, "ATTEMPTS", 2)
    version = put(client, "k", "v")
    claim(client, 1, "LEASE", 20)
    with ReplicationStream(server) as stream:
        sent = eventually(lambda: without_transaction(stream.read()))
        assert [command[:6] for command in sent] == [words("KEYWARD.APPLY", "WBFAIL", "q", "k", version, 1)]
        claim(client)
        nack(client, "k", version, "MSG", "no")
        assert without_transaction(stream.read()) == [words("KEYWARD.APPLY", "WBDIE", "q", "k", version, 2, "no")]
        requeue(client, "k")
        ((*start, due),) = without_transaction(stream.read())
        assert start == words("KEYWARD.APPLY", "WBREQUEUE", "q", "k", "KEEP")
        assert int(due) > 0


def test_the_aof_holds_effects_and_nothing_else(make_server):
    server = make_server(config=["appendonly yes"])
    client = server.client()
    put(client, "k", "v")
    for _ in range(10):
        claim(client, 1, "LEASE", 100_000)
    names = {command[1] if command[0] == b"KEYWARD.APPLY" else command[0] for command in aof_commands(server)}
    assert names - {b"MULTI", b"EXEC"} == {b"RESERVE", b"WBSET"}


# Files


@pytest.mark.parametrize("how", ["rdb", "aof", "rewritten aof", "aof without preamble", "reload"])
def test_queues_come_back_from_files(make_server, how):
    configs = {
        "rdb": ["save 10000 1"],
        "aof": ["appendonly yes", "auto-aof-rewrite-percentage 0"],
        "rewritten aof": ["appendonly yes"],
        "aof without preamble": ["appendonly yes", "aof-use-rdb-preamble no"],
        "reload": [],
    }
    server = make_server(config=configs[how])
    client = server.client()
    expected = fill(client)
    before, dump, told = info(client), client.dump("q"), dead(client)
    if "rewritten" in how or "preamble" in how:
        client.bgrewriteaof()
        eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        eventually(lambda: client.info("persistence")["aof_last_bgrewrite_status"] == "ok")
    if how == "reload":
        client.execute_command("DEBUG", "RELOAD")
    else:
        server.restart() if how == "rdb" else (server.kill9(), server.start())
    client = server.client()
    after = info(client)
    for name in ("dirty", "dead", "coalesced", "retries", "keys"):
        assert after[name] == before[name], name
    assert after["in_flight"] == 0
    assert (client.dump("q"), dead(client)) == (dump, told)
    assert config(client) == [b"delay", 0, b"maxdelay", 0, b"attempts", 2, b"maxdirty", 0]
    client.delete("set", "poison", "in-flight")
    assert [get(client, key) for key in ("set", "poison", "in-flight", "sum")] == [b"v", b"x", b"2", None]
    assert fetch(client, "del") == [b"NONE", None]
    assert fetch(client, "sum") == [b"BUSY", None]
    assert finish(client) == expected


def test_versions_go_on_growing_after_a_restart(make_server):
    server = make_server(config=["save 10000 1"])
    version = put(server.client(), "k", 1)
    server.restart()
    assert put(server.client(), "k", 2) > version


def test_what_may_have_been_claimed_before_a_restart_is_frozen(make_server):
    """The worker has written it, and died with the server."""
    server = make_server(config=["appendonly yes"])
    client, database = server.client(), Database()
    _, first = incrby(client, "n", 5)
    (record,) = claim(client)
    database.write(record)
    server.kill9()
    server.start()
    client = server.client()
    _, second = incrby(client, "n", 3)
    assert [(r.version, r.payload) for r in claim(client)] == [(first, b"5")]
    ack(client, "n", first)
    work_off(client, database)
    assert database.value(b"n") == b"8"
    assert database.applied == [(b"n", first), (b"n", second)]


# Replicas


@pytest.fixture
def pair(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    return primary, replica


def assert_same_queue(primary, replica):
    replica.wait_until_synced()
    ours, theirs = primary.client(), replica.client()
    assert ours.dump("q") == theirs.dump("q")
    mine, other = info(ours), info(theirs)
    for name in ("dirty", "dead", "coalesced", "retries", "keys", "cleaned"):
        assert mine[name] == other[name], name
    assert dead(ours) == dead(theirs)
    for name in ("writebehind_queues", "writebehind_dirty", "writebehind_dead", "writebehind_limbo"):
        assert metric(primary, name) == metric(replica, name), name


def test_a_replica_has_the_same_queue_and_serves_dirty_values(pair, make_server):
    primary, replica = pair
    client, copy = primary.client(), replica.client()
    fill(client)
    assert_same_queue(primary, replica)
    client.delete("set", "in-flight")
    replica.wait_until_synced()
    assert [get(copy, key) for key in ("set", "in-flight", "sum")] == [b"v", b"2", None]
    assert (fetch(copy, "set"), fetch(copy, "del")) == ([b"HIT", b"v"], [b"NONE", None])
    with pytest.raises(redis.ReadOnlyError):
        fetch(copy, "sum")
    for call in (lambda: claim(copy), lambda: put(copy, "k", 1), lambda: ack(copy, "set", 1), lambda: config(copy)):
        with pytest.raises(redis.ReadOnlyError):
            call()
    late = make_server()
    late.replicate_from(primary).wait_until_synced()
    assert late.client().dump("q") == client.dump("q")
    finish(client)
    assert_same_queue(primary, replica)


def test_what_was_in_flight_is_claimable_after_a_failover(pair):
    """Under the same versions, before anything newer. A worker that goes on with its claim does no harm."""
    primary, replica = pair
    client, database = primary.client(), Database()
    fill_expected = fill(client)
    put(client, "late", 1)
    _, version = incrby(client, "written", 5)
    in_flight = claim(client)
    for record in in_flight:
        if record.key == b"written":
            database.write(record)
    incrby(client, "written", 1)
    replica.wait_until_synced()
    replica.promote()
    copy = replica.client()
    assert info(copy)["in_flight"] == 0
    incrby(copy, "written", 1)
    put(copy, "late", 2)
    assert info(copy)["coalesced"] > info(client)["coalesced"]
    back = {record.key: record for record in claim(copy, worker="new")}
    for record in in_flight:
        same = back[record.key]
        assert (same.version, same.op, same.payload) == (record.version, record.op, record.payload)
    assert back[b"written"].version == version
    # The old worker's word counts, whoever holds the claim now.
    assert ack(copy, "late", back[b"late"].version) == 1
    for record in back.values():
        database.write(record)
        ack(copy, record.key, record.version)
    work_off(copy, database)
    for row in dead(copy):
        requeue(copy, row[0])
    work_off(copy, database)
    assert info(copy)["keys"] == 0
    values = {key: value for key, (value, _) in database.rows.items()}
    assert values == fill_expected | {b"late": b"2", b"written": b"7"}


def test_waiting_workers_are_sent_away_on_demotion(pair):
    primary, replica = pair
    with RawClient(primary) as worker:
        worker.send("WRITEBEHIND.CLAIM", "q", "w", "BLOCK", 0)
        eventually(lambda: info(primary.client())["waiters"] == 1)
        replica.promote()
        primary.replicate_from(replica)
        assert worker.read().startswith("UNBLOCKED")
    assert metric(primary, "writebehind_waiters") == 0


def test_claims_of_a_demoted_primary_are_void(pair):
    primary, replica = pair
    client = primary.client()
    version = put(client, "k", 1)
    claim(client)
    replica.wait_until_synced()
    replica.promote()
    primary.replicate_from(replica).wait_until_synced()
    assert info(client)["in_flight"] == 0
    assert [r.version for r in claim(replica.client())] == [version]
    newer = put(replica.client(), "k", 2)
    primary.wait_until_synced()
    primary.promote()
    assert put(client, "k", 3) > newer
    assert [r.version for r in claim(client)] == [version]


def test_a_failover_in_the_middle_of_everything(pair):
    """Writers and workers go on until the primary is replaced: what the replica had received is written once, in order."""
    primary, replica = pair
    client, database = primary.client(), Database()
    written = {b"n%d" % n: 0 for n in range(5)}
    draw = random.Random(3)
    for _ in range(300):
        key = draw.choice(list(written))
        by = draw.randrange(-5, 10)
        incrby(client, key, by)
        written[key] += by
        if draw.random() < 0.3:
            for record in claim(client, 3):
                if draw.random() < 0.6:
                    database.write(record)
                    if draw.random() < 0.6:
                        ack(client, record.key, record.version)
    replica.wait_until_synced()
    primary.kill9()
    replica.promote()
    copy = replica.client()
    for key in written:
        incrby(copy, key, 1)
        written[key] += 1
    work_off(copy, database)
    assert {key: int(database.value(key)) for key in written} == written


# Eviction


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "allkeys-lfu"])
def test_an_evicted_queue_has_lost_nothing_and_comes_back(make_server, policy):
    server = make_evicting(make_server, policy)
    client = server.client()
    expected = fill(client)
    dirty = info(client)["dirty"]
    size, known, value, status, *_ = evict_everything(
        server,
        ("DBSIZE",),
        ("WRITEBEHIND.INFO", "q"),
        ("CACHE.GET", "set"),
        ("CACHE.FETCH", "del"),
    )
    assert size == 0
    assert known[1] == dirty
    assert (value, status[0]) == (b"v", b"NONE")
    eventually(lambda: client.exists("q") == 1)
    assert client.pttl("q") == -1
    assert metric(server, "writebehind_evictions_undone") == 1
    assert finish(client) == expected


def test_everybody_goes_on_with_an_evicted_queue(make_server):
    server = make_evicting(make_server)
    client, database = server.client(), Database()
    put(client, "k", 1)
    (record,) = claim(client)
    put(client, "other", 1)
    size, acked, version, rows, *_ = evict_everything(
        server,
        ("DBSIZE",),
        ("WRITEBEHIND.ACK", "q", "w", "k", record.version),
        ("WRITEBEHIND.INCRBY", "q", "other", 4),
        ("WRITEBEHIND.CLAIM", "q", "w", "COUNT", 10),
    )
    assert (size, acked, version[0]) == (0, 1, 5)
    assert [row[:4] for row in rows] == [[b"other", version[1], b"SET", b"5"]]
    eventually(lambda: client.exists("q") == 1)
    database.write(record)
    assert info(client)["dirty"] == 1


def test_deleting_an_evicted_queue_that_is_back_drops_it(make_server):
    server = make_evicting(make_server)
    client = server.client()
    put(client, "k", 1)
    evict_everything(server)
    eventually(lambda: client.exists("q") == 1)
    client.delete("q", "k")
    assert get(client, "k") is None
    assert metric(server, "writebehind_limbo") == metric(server, "writebehind_dirty") == 0


def test_an_empty_queue_without_settings_may_be_evicted_and_one_with_settings_not(make_server):
    server = make_evicting(make_server)
    client = server.client()
    put(client, "k", 1, queue="empty")
    work_off(client, Database(), queue="empty")
    config(client, "MAXDIRTY", 5, queue="kept")
    evict_everything(server)
    eventually(lambda: client.exists("kept") == 1)
    upkeep_passes(server)
    assert client.exists("empty") == 0
    assert config(client, queue="kept")[-1] == 5


@pytest.mark.parametrize("aof", [False, True], ids=["rdb", "aof"])
def test_queues_in_limbo_are_saved(make_server, aof):
    server = make_evicting(make_server, "allkeys-random", f"appendonly {'yes' if aof else 'no'}")
    client = server.client()
    expected = fill(client)
    # Under the pause nothing is put back.
    evict_everything(server, ("CLIENT", "PAUSE", 100_000, "WRITE"), *([] if aof else [("SAVE",)]))
    server.kill9()
    server.start()
    client = server.client()
    assert get(client, "set") == b"v"
    eventually(lambda: client.exists("q") == 1)
    assert finish(client) == expected


def test_a_replica_knows_a_queue_that_is_evicted_on_the_primary(make_server):
    """Between the eviction, which it sees as a DEL, and the put-back; and also if it is promoted then."""
    primary = make_evicting(make_server)
    replica = make_server()
    replica.replicate_from(primary).wait_until_synced()
    expected = fill(primary.client())
    evict_everything(primary, ("CLIENT", "PAUSE", 100_000, "WRITE"))
    replica.wait_until_synced()
    copy = replica.client()
    assert copy.exists("q", "set") == 0
    assert get(copy, "set") == b"v"
    assert metric(replica, "writebehind_limbo") == 1
    replica.promote()
    eventually(lambda: copy.exists("q") == 1)
    assert finish(copy) == expected


def test_a_full_sync_carries_a_queue_in_limbo(make_server):
    primary = make_evicting(make_server)
    replica = make_server()
    fill(primary.client())
    evict_everything(primary, ("CLIENT", "PAUSE", 100_000, "WRITE"))
    replica.replicate_from(primary).wait_until_synced()
    assert get(replica.client(), "set") == b"v"
    primary.client().client_unpause()
    eventually(lambda: primary.client().exists("q") == 1)
    assert_same_queue(primary, replica)


def test_no_write_is_lost_in_a_cache_that_evicts_all_the_time(make_server):
    primary = make_server(config=["maxmemory-policy allkeys-random", "repl-backlog-size 1mb"])
    replica = make_server(config=["maxmemory 0"])
    replica.replicate_from(primary).wait_until_synced()
    client, database = primary.client(), Database()
    client.config_set("maxmemory", primary.info("memory")["used_memory"] + 4_000_000)
    sums, rounds = {b"n%d" % n: 0 for n in range(50)}, 0

    def queues_were_evicted():
        nonlocal rounds
        rounds += 1
        pipeline = client.pipeline(transaction=False)
        for number in range(300):
            pipeline.set(f"fill:{number}:{rounds}", "x" * 2000)
        pipeline.execute(raise_on_error=False)
        for key in sums:
            for queue in ("q", "q2"):
                try:
                    incrby(client, key + queue.encode(), 1, queue=queue)
                except redis.exceptions.OutOfMemoryError:
                    continue
                sums[key] += 1
        work_off(client, database, queue="q2")
        return metric(primary, "writebehind_evictions_undone") >= 5

    eventually(queues_were_evicted, timeout=60, message="no queue was ever evicted")
    client.config_set("maxmemory", 0)
    work_off(client, database)
    work_off(client, database, queue="q2")
    found = {key: sum(int(database.value(key + queue) or 0) for queue in (b"q", b"q2")) for key in sums}
    assert found == sums
    assert_same_queue(primary, replica)


# Pauses


def test_claims_that_run_out_under_a_pause_wait_for_its_end(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    client = primary.client()
    put(client, "k", 1)
    claim(client, 1, "LEASE", 20)
    with RawClient(primary) as worker:
        worker.send("WRITEBEHIND.CLAIM", "q", "ann", "BLOCK", 60_000)
        eventually(lambda: info(client)["waiters"] == 1 or worker.is_answered())
        client.execute_command("CLIENT", "PAUSE", 100_000, "WRITE")
        upkeep_passes(primary)
        client.client_unpause()
        assert worker.read()[0][4] == 2
    assert_same_queue(primary, replica)


# The end of the process


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_no_write_that_was_answered(make_server, seed):
    """With appendfsync always. Writers and workers go on while the process is killed at random moments; in the end the database
    has every write that was answered, each once, and in order. A write without an answer may be there or not."""
    server = make_server(config=["appendonly yes", "appendfsync always", "auto-aof-rewrite-percentage 0"])
    draw = random.Random(seed)
    database = Database()
    lock = threading.Lock()
    sums = {b"n%d" % n: [0, 0] for n in range(4)}  # answered, and at most
    texts: dict[bytes, list[bytes]] = {b"t%d" % n: [b""] for n in range(4)}  # what may be there

    def write(raw, random_):
        while not stopping.is_set():
            if random_.random() < 0.5:
                key, by = random_.choice(list(sums)), random_.randrange(1, 10)
                with lock:
                    sums[key][1] += by
                value, _ = raw.call("WRITEBEHIND.INCRBY", "q", key, by)
                assert value is None or value > 0
                with lock:
                    sums[key][0] += by
            else:
                key, value = random_.choice(list(texts)), b"%d" % random_.randrange(10**9)
                with lock:
                    texts[key].append(value)
                assert isinstance(raw.call("WRITEBEHIND.SET", "q", key, value), int)
                with lock:
                    texts[key] = [value]

    def work(raw, random_):
        while not stopping.is_set():
            rows = raw.call("WRITEBEHIND.CLAIM", "q", "w", "COUNT", 5, "LEASE", 200, "BLOCK", 20)
            for record in records(rows):
                if random_.random() < 0.1:
                    continue
                with lock:
                    database.write(record)
                if random_.random() < 0.2:
                    continue
                raw.call("WRITEBEHIND.ACK", "q", "w", record.key, record.version)

    def until_killed(act, number):
        with contextlib.suppress(OSError), RawClient(server) as raw:
            act(raw, random.Random(seed * 100 + number))

    for round_ in range(4):
        stopping = threading.Event()
        # One writer: two would make the last text a matter of luck.
        actors = [
            threading.Thread(target=until_killed, args=(act, round_ * 10 + number))
            for number, act in enumerate((write, work, work))
        ]
        for actor in actors:
            actor.start()
        acknowledged = draw.randrange(50, 400)
        eventually(lambda: metric(server, "writebehind_writes") >= acknowledged, timeout=60)  # noqa: B023
        server.kill9()
        stopping.set()
        for actor in actors:
            actor.join(30)
            assert not actor.is_alive()
        server.start()
    client = server.client()
    config(client, "ATTEMPTS", 1_000_000)
    while info(client)["dirty"]:
        work_off(client, database)
    for key, (least, most) in sums.items():
        assert least <= int(database.value(key) or 0) <= most, key
    for key, values in texts.items():
        assert (database.value(key) or b"") in values, key
    for key in {key for key, _ in database.applied}:
        versions = [version for of, version in database.applied if of == key]
        assert versions == sorted(set(versions)), f"{key} was written out of order"
