"""WRITEBEHIND.*: what writes leave in the cache and in the queue, and what workers get of it."""

from contextlib import ExitStack

import pytest
import redis
from raw_client import ErrorReply, RawClient, fields
from servers import eventually
from write_behind import (
    Database,
    ack,
    claim,
    config,
    dead,
    delete,
    drop,
    fetch,
    get,
    incrby,
    info,
    nack,
    put,
    requeue,
    work_off,
)


def expect_error(text, call, *words):
    with pytest.raises(redis.ResponseError, match=text):
        call(*words)


# Writing


def test_a_set_is_in_the_cache_and_in_the_queue(client):
    version = put(client, "k", "v", "EX", 100, "TAGS", 2, "a", "b")
    assert client.get("k") == get(client, "k") == b"v"
    assert 99_000 < client.pttl("k") <= 100_000
    assert set(client.execute_command("CACHE.TAGS", "k")) == {b"a", b"b"}
    (record,) = claim(client)
    assert record[:5] == (b"k", version, b"SET", b"v", 1)
    assert 0 <= record.age_ms < 60_000
    assert ack(client, "k", version) == 1
    assert (claim(client), info(client)["dirty"]) == ([], 0)


def test_versions_grow_over_all_queues_and_with_the_fencing_tokens(client):
    versions = [put(client, f"k{n % 3}", n, queue=f"q{n % 2}") for n in range(50)]
    versions.append(client.execute_command("LOCK.ACQUIRE", "lock", "ann", "EX", 10))
    versions.append(incrby(client, "n", 1)[1])
    versions.append(delete(client, "k0"))
    assert versions == sorted(set(versions))


def test_writes_of_a_key_are_one_record_with_the_last_value(client):
    versions = [put(client, "k", n) for n in range(100)]
    put(client, "other", "v")
    assert [record[:4] for record in claim(client)][0] == (b"k", versions[-1], b"SET", b"99")
    assert (info(client)["coalesced"], info(client)["dirty"]) == (99, 2)


def test_what_increments_make_of_what_is_there(client):
    """SET + INCRBY is the SET of the sum, DEL + INCRBY a SET, and increments add up."""
    put(client, "set", 40)
    assert incrby(client, "set", 2)[0] == 42
    delete(client, "del")
    assert incrby(client, "del", 7)[0] == 7
    for by in (5, -3, 10):
        value, _ = incrby(client, "sum", by)
        assert value is None
    client.set("cached", 100)
    assert [incrby(client, "cached", by)[0] for by in (1, 2, -4)] == [101, 103, 99]
    delete(client, "gone")
    put(client, "back", 1)
    delete(client, "back")
    found = {record.key: (record.op, record.payload) for record in claim(client)}
    assert found == {
        b"set": (b"SET", b"42"),
        b"del": (b"SET", b"7"),
        b"sum": (b"INCRBY", b"12"),
        b"cached": (b"INCRBY", b"-1"),
        b"gone": (b"DEL", None),
        b"back": (b"DEL", None),
    }
    assert client.mget("set", "del", "sum", "cached") == [b"42", b"7", None, b"99"]
    assert client.exists("gone", "back") == 0


def test_an_increment_keeps_expiry_and_tags_unless_it_names_others(client):
    client.execute_command("CACHE.SETTAGGED", "n", 1, "EX", 1000, "TAGS", 1, "a")
    incrby(client, "n", 1)
    assert 999_000 < client.pttl("n") <= 1_000_000
    assert client.execute_command("CACHE.TAGS", "n") in ([b"a"], {b"a"})
    incrby(client, "n", 1, "EX", 50)
    assert 49_000 < client.pttl("n") <= 50_000
    assert client.execute_command("CACHE.TAGS", "n") in ([b"a"], {b"a"})
    incrby(client, "n", 1, "TAGS", 1, "b")
    assert client.execute_command("CACHE.INVALIDATETAG", "a") == 0
    assert client.execute_command("CACHE.INVALIDATETAG", "b") == 1
    assert client.exists("n") == 0
    assert get(client, "n") == b"4"


def test_an_increment_keeps_the_grace(client):
    client.execute_command("CACHE.SET", "n", 1, "PX", 60_000, "GRACE", 30_000)
    incrby(client, "n", 1)
    soft, hard = client.execute_command("CACHE.TTL", "n")
    assert soft <= 60_000 < hard <= 90_000


def test_numbers_that_are_none_and_sums_out_of_range_change_nothing(client):
    put(client, "text", "v")
    client.set("cached", "1.5")
    client.set("big", 2**63 - 1)
    incrby(client, "sum", 2**63 - 1)
    before = info(client)
    for key in ("text", "cached"):
        expect_error("value is not an integer or out of range", incrby, client, key, 1)
    for key in ("big", "sum"):
        expect_error("increment or decrement would overflow", incrby, client, key, 1)
    after = info(client)
    assert {name: after[name] for name in ("dirty", "coalesced", "keys")} == {
        name: before[name] for name in ("dirty", "coalesced", "keys")
    }
    assert client.get("big") == b"%d" % (2**63 - 1)


def test_a_queue_is_a_key_of_its_own_type(client):
    put(client, "k", "v")
    assert client.type("q") in (b"kw-queue1", "kw-queue1")
    assert client.pttl("q") == -1
    assert client.memory_usage("q") > 0
    with pytest.raises(redis.ResponseError, match="queue and key must be different keys"):
        put(client, "q", "v")
    client.set("string", "v")
    for call in (
        lambda: put(client, "k", "v", queue="string"),
        lambda: incrby(client, "k", 1, queue="string"),
        lambda: delete(client, "k", queue="string"),
        lambda: claim(client, queue="string"),
        lambda: ack(client, "k", 1, queue="string"),
        lambda: nack(client, "k", 1, queue="string"),
        lambda: config(client, "DELAY", 1, queue="string"),
        lambda: config(client, queue="string"),
        lambda: info(client, queue="string"),
        lambda: dead(client, queue="string"),
        lambda: requeue(client, "k", queue="string"),
        lambda: drop(client, "k", queue="string"),
    ):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE|wrong kind of value"):
            call()
    assert client.get("string") == b"v"


def test_deleting_the_queue_drops_its_records_and_nothing_else(client):
    put(client, "k", "v")
    put(client, "other", "v", queue="q2")
    client.delete("q")
    assert client.get("k") == b"v"
    client.delete("k", "other")
    assert (get(client, "k"), get(client, "other")) == (None, b"v")
    assert info(client)["dirty"] == 0
    assert claim(client) == []


@pytest.mark.parametrize("command", ["FLUSHDB", "FLUSHALL"])
def test_flushing_drops_queues(server, command):
    client, other = server.client(), server.client(db=1)
    put(client, "k", "v")
    put(other, "k", "w")
    client.execute_command(command)
    other.delete("k")
    assert get(client, "k") is None
    assert get(other, "k") == (b"w" if command == "FLUSHDB" else None)


def test_a_queue_that_is_overwritten_is_gone(client):
    put(client, "k", "v")
    client.set("q", "mine")
    client.delete("k")
    assert get(client, "k") is None
    client.delete("q")
    assert info(client)["dirty"] == 0


def test_rename_move_and_swapdb_take_the_records_along(server):
    client, other = server.client(), server.client(db=3)
    put(client, "k", "v")
    client.delete("k")
    client.rename("q", "new")
    assert get(client, "k") == b"v"
    assert info(client)["dirty"] == 0
    assert info(client, queue="new")["dirty"] == 1
    client.swapdb(0, 3)
    assert (get(client, "k"), get(other, "k")) == (None, b"v")
    client.swapdb(0, 3)
    if server.flavour != "valkey-8.1":  # where a MOVE leaves the client on the wrong database
        assert client.move("new", 3)
        assert (get(client, "k"), get(other, "k")) == (None, b"v")
        assert [record[2] for record in claim(other, queue="new")] == [b"SET"]


def test_a_copy_has_the_same_records(client):
    version = put(client, "k", "v")
    assert client.copy("q", "q2")
    for queue in ("q", "q2"):
        assert [record[:2] for record in claim(client, queue=queue)] == [(b"k", version)]
        assert ack(client, "k", version, queue=queue) == 1


def test_restore_brings_the_records_back(client):
    version = put(client, "k", "v")
    dump = client.dump("q")
    client.delete("q", "k")
    assert get(client, "k") is None
    client.restore("q", 0, dump)
    assert get(client, "k") == b"v"
    later = put(client, "k", "w")
    assert [(r.version, r.payload) for r in claim(client)] == [(version, b"v")], "it may have been claimed before"
    assert ack(client, "k", version) == 1
    assert [(r.version, r.payload) for r in claim(client)] == [(later, b"w")]


def test_a_queue_expires_only_when_it_is_empty(client):
    """EXPIRE is not meant to lose writes: a queue in use comes back, without an expiry."""
    put(client, "k", "v")
    client.delete("k")
    client.pexpire("q", 1)
    eventually(lambda: client.pttl("q") == -1)
    assert get(client, "k") == b"v"
    work_off(client, Database())
    client.pexpire("q", 1)
    eventually(lambda: client.exists("q") == 0)


def test_a_key_may_be_dirty_in_two_queues_for_two_databases(client):
    first, second = put(client, "k", "v", queue="q1"), put(client, "k", "w", queue="q2")
    client.delete("k")
    assert get(client, "k") == b"w"
    assert ack(client, "k", second, queue="q2") == 1
    assert get(client, "k") == b"v"
    assert ack(client, "k", first, queue="q1") == 1
    assert get(client, "k") is None


# MAXDIRTY, DELAY


def test_a_full_queue_refuses_new_records_and_takes_in_what_joins(client):
    config(client, "MAXDIRTY", 2)
    put(client, "a", 1)
    put(client, "b", 1)
    for call in (lambda: put(client, "c", 1), lambda: incrby(client, "c", 1), lambda: delete(client, "c")):
        with pytest.raises(redis.ResponseError, match="write-behind queue is full"):
            call()
    assert client.exists("c") == 0
    put(client, "a", 2)
    assert incrby(client, "b", 1)[0] == 2
    (record,) = claim(client, 1)
    with pytest.raises(redis.ResponseError, match="write-behind queue is full"):
        put(client, record.key, 3)
    ack(client, record.key, record.version)
    put(client, "c", 1)
    config(client, "MAXDIRTY", 0)
    put(client, "d", 1)


def test_the_error_of_a_full_queue_has_a_prefix_of_its_own(server):
    with RawClient(server) as raw:
        raw.call("WRITEBEHIND.CONFIG", "q", "MAXDIRTY", 1)
        raw.call("WRITEBEHIND.SET", "q", "a", 1)
        assert raw.call("WRITEBEHIND.SET", "q", "b", 1) == "WBFULL write-behind queue is full"


def test_records_that_were_given_up_count_for_maxdirty(client):
    config(client, "MAXDIRTY", 1, "ATTEMPTS", 1)
    (record,) = [put(client, "a", 1)]
    claim(client)
    assert nack(client, "a", record) == 1
    assert (info(client)["dirty"], info(client)["dead"]) == (0, 1)
    with pytest.raises(redis.ResponseError, match="full"):
        put(client, "b", 1)
    drop(client, "a")
    put(client, "b", 1)


def test_a_record_rests_after_each_write_and_is_claimed_by_who_waits_then(client):
    config(client, "DELAY", 150)
    put(client, "k", 1)
    assert claim(client) == []
    (record,) = claim(client, 1, "BLOCK", 10_000)
    assert (record.payload, record.age_ms >= 150) == (b"1", True)


def test_a_hot_key_does_not_starve(client):
    """Each write starts DELAY again; MAXDELAY ends that."""
    config(client, "DELAY", 100_000, "MAXDELAY", 200)
    put(client, "k", 0)
    count = 0

    def claimed():
        nonlocal count
        count += 1
        put(client, "k", count)
        return claim(client)

    (record,) = eventually(claimed)
    assert record.age_ms >= 200
    config(client, "DELAY", 100_000, "MAXDELAY", 0)
    ack(client, record.key, record.version)
    put(client, "other", 1)
    assert claim(client) == [] or claim(client)[0].key == b"k"


def test_config_tells_and_sets(server, protocol):
    with RawClient(server, protocol) as raw:
        defaults = {b"delay": 0, b"maxdelay": 0, b"attempts": 10, b"maxdirty": 0}
        assert fields(raw.call("WRITEBEHIND.CONFIG", "q")) == defaults
        assert raw.call("EXISTS", "q") == 0
        assert raw.call("WRITEBEHIND.CONFIG", "q", "attempts", 3, "MAXDELAY", 5) == "OK"
        assert raw.call("WRITEBEHIND.CONFIG", "q", "DELAY", 7) == "OK"
        told = fields(raw.call("WRITEBEHIND.CONFIG", "q"))
        assert told == {b"delay": 7, b"maxdelay": 5, b"attempts": 3, b"maxdirty": 0}
        for words in (("DELAY",), ("DELAY", 1, "DELAY", 1), ("NOTHING", 1)):
            assert raw.call("WRITEBEHIND.CONFIG", "q", *words) == "ERR syntax error"
        assert raw.call("WRITEBEHIND.CONFIG", "q", "ATTEMPTS", 0) == "ERR ATTEMPTS must be an integer from 1 to 1000000"
        assert fields(raw.call("WRITEBEHIND.CONFIG", "q")) == told


# Reading what is dirty


def lose(client, how):
    match how:
        case "DEL":
            client.delete("k")
        case "INVALIDATE":
            assert client.execute_command("CACHE.INVALIDATE", "k") == 1
        case "INVALIDATETAG":
            assert client.execute_command("CACHE.INVALIDATETAG", "t") == 1
        case "STALE":
            assert client.execute_command("CACHE.STALE", "k") == 1
        case "expiry":
            client.pexpire("k", 1)
            eventually(lambda: client.exists("k") == 0)


WAYS = ["DEL", "INVALIDATE", "INVALIDATETAG", "STALE", "expiry"]


@pytest.mark.parametrize("how", WAYS)
def test_a_dirty_value_is_served_when_the_cached_key_is_gone(client, how):
    version = put(client, "k", "v", "EX", 100, "TAGS", 1, "t")
    lose(client, how)
    assert client.get("k") is None
    assert get(client, "k") == b"v"
    assert client.execute_command("CACHE.MGET", "k", "none", "k") == [b"v", None, b"v"]
    assert client.execute_command("CACHE.TTL", "k") == [-1, -1]
    assert fetch(client, "k") == [b"HIT", b"v"]
    assert fetch(client, "k", "BETA", 1000, "STALE", "NEVER") == [b"HIT", b"v"]
    assert client.execute_command("CACHE.MFETCH", 2, "k", "none")[0] == [b"HIT", b"v", None]
    claim(client)
    assert get(client, "k") == b"v", "in flight it is still newer than the database"
    ack(client, "k", version)
    assert get(client, "k") is None
    assert fetch(client, "k")[0] == b"MISS"


def test_a_value_within_its_grace_is_not_stale_while_it_is_dirty(client):
    put(client, "k", "v", "PX", 60_000, "GRACE", 60_000)
    assert client.execute_command("CACHE.STALE", "k") == 1
    assert get(client, "k") == b"v"
    assert fetch(client, "k") == [b"HIT", b"v"]
    assert client.execute_command("CACHE.TTL", "k")[0] == -1


def test_while_a_deletion_is_dirty_there_is_no_value(client):
    version = delete(client, "k")
    client.set("k", "old")
    assert get(client, "k") is None
    assert client.execute_command("CACHE.MGET", "k") == [None]
    assert fetch(client, "k") == [b"NONE", None]
    assert client.execute_command("CACHE.TTL", "k") == [-2, -2]
    ack(client, "k", version)
    assert get(client, "k") == b"old"


def test_an_increment_of_an_unknown_value_keeps_everybody_from_loading(server, client):
    """Until the database has it. Then the oldest who waits loads."""
    value, version = incrby(client, "n", 5)
    assert value is None
    assert get(client, "n") is None
    assert fetch(client, "n") == [b"BUSY", None]
    with RawClient(server) as waiter:
        waiter.send("CACHE.FETCH", "n", "WAIT", 60_000)
        eventually(lambda: server.info("everything")["keyward_cache_waiters"] == 1)
        claim(client)
        assert not waiter.is_answered()
        assert ack(client, "n", version) == 1
        status, _, token = waiter.read()
        assert status == b"MISS"
        assert client.execute_command("CACHE.FILL", "n", token, 105) == 1
    assert get(client, "n") == b"105"
    assert incrby(client, "n", 1)[0] == 106


@pytest.mark.parametrize("how", ["DEL of the queue", "DROP", "FLUSHDB"])
def test_who_waits_for_an_unknown_value_is_cared_for_when_the_queue_forgets_it(server, client, how):
    _, version = incrby(client, "n", 5)
    with RawClient(server) as waiter:
        waiter.send("CACHE.FETCH", "n", "WAIT", 60_000)
        eventually(lambda: server.info("everything")["keyward_cache_waiters"] == 1)
        if how == "DROP":
            config(client, "ATTEMPTS", 1)
            claim(client)
            nack(client, "n", version)
            assert not waiter.is_answered()
            drop(client, "n")
        elif how == "FLUSHDB":
            client.flushdb()
        else:
            client.delete("q")
        assert waiter.read()[0] == b"MISS"


def test_writes_answer_those_who_wait_for_a_load_and_end_it(server, client):
    for write, answer in (
        (lambda: put(client, "k", "v"), [b"HIT", b"v", None]),
        (lambda: delete(client, "k2"), [b"NONE", None, None]),
    ):
        key = "k" if answer[0] == b"HIT" else "k2"
        *_, token = client.execute_command("CACHE.FETCH", key)
        with RawClient(server) as waiter:
            waiter.send("CACHE.FETCH", key, "WAIT", 60_000)
            eventually(lambda: server.info("everything")["keyward_cache_waiters"] == 1)
            write()
            assert waiter.read() == answer
        assert client.execute_command("CACHE.FILL", key, token, "old") == 0


def test_a_load_from_before_an_increment_is_not_stored(client):
    """It does not have the increment, or it does: nobody knows."""
    *_, token = client.execute_command("CACHE.FETCH", "n")
    _, version = incrby(client, "n", 1)
    assert client.execute_command("CACHE.FILL", "n", token, 7) == 0
    ack(client, "n", version)
    assert fetch(client, "n")[0] == b"MISS"


def test_nx_and_xx_look_at_dirty_values(client):
    put(client, "k", "v")
    client.delete("k")
    assert client.execute_command("CACHE.SET", "k", "old", "NX") is None
    assert client.execute_command("CACHE.SET", "k", "new", "XX") == b"OK"


# Claims


def test_a_claimed_record_is_frozen(client):
    """It keeps its version and payload; a write during the claim is a record behind it."""
    first = put(client, "k", 1)
    claim(client)
    second = put(client, "k", 2)
    third = put(client, "k", 3)
    assert first < second < third
    assert info(client)["dirty"] == 2
    assert claim(client) == [], "not before the old one is acked"
    assert nack(client, "k", first, "DELAY", 0) == 1
    assert [(r.version, r.payload, r.attempts) for r in claim(client)] == [(first, b"1", 2)]
    assert get(client, "k") == b"3"
    assert ack(client, "k", second) == ack(client, "k", third) == 0, "not before the old one"
    assert ack(client, "k", first) == 1
    assert [(r.version, r.payload, r.attempts) for r in claim(client)] == [(third, b"3", 1)]


def test_increments_during_a_claim_are_a_record_of_their_own(client):
    """The worker dies after the database has it: the record comes back and is refused by its version."""
    database = Database()
    _, first = incrby(client, "n", 5)
    (record,) = claim(client)
    assert database.write(record)
    incrby(client, "n", 1)
    _, second = incrby(client, "n", 1)
    nack(client, "n", first, "DELAY", 0)
    assert work_off(client, database) == 2
    assert database.applied == [(b"n", first), (b"n", second)]
    assert database.value(b"n") == b"7"


def test_an_ack_counts_whoever_holds_the_claim(client):
    version = put(client, "k", 1)
    assert ack(client, "k", version - 1) == 0
    claim(client, worker="ann")
    assert ack(client, "k", version, worker="bob") == 1
    assert ack(client, "k", version, worker="ann") == 0
    unclaimed = put(client, "k", 2)
    assert ack(client, "k", unclaimed) == 1, "who wrote it at once need not wait for a worker"


def test_many_acks_at_once(client):
    pairs = [word for n in range(50) for word in (f"k{n}", put(client, f"k{n}", n))]
    assert ack(client, *pairs, "none", 5) == 50
    assert info(client)["dirty"] == 0
    assert info(client)["cleaned"] == 50


def test_only_the_holder_of_a_claim_gives_it_back(client):
    version = put(client, "k", 1)
    assert nack(client, "k", version) == 0, "nobody has claimed it"
    claim(client, worker="ann")
    assert nack(client, "k", version, worker="bob") == 0
    assert nack(client, "k", version + 1, worker="ann") == 0
    assert nack(client, "none", version, worker="ann") == 0
    assert nack(client, "k", version, worker="ann") == 1
    assert nack(client, "k", version, worker="ann") == 0


def test_a_record_rests_longer_after_each_nack(client):
    version = put(client, "k", 1)
    ages = []
    for attempt in (1, 2, 3):
        (record,) = claim(client, 1, "BLOCK", 10_000)
        assert record.attempts == attempt
        ages.append(record.age_ms)
        nack(client, "k", version)
    assert ages[1] - ages[0] >= 99
    assert ages[2] - ages[1] >= 199
    (record,) = claim(client, 1, "BLOCK", 10_000)
    nack(client, "k", version, "DELAY", 0)
    assert claim(client)[0].attempts == 5
    assert info(client)["retries"] == 4


def test_a_claim_that_is_not_acked_in_time_comes_back_at_once(server, client):
    version = put(client, "k", 1)
    claim(client, 1, "LEASE", 50, worker="dead")
    with RawClient(server) as raw:
        raw.send("WRITEBEHIND.CLAIM", "q", "ann", "BLOCK", 30_000)
        ((key, again, _, _, attempts, age),) = raw.read()
    assert (key, again, attempts) == (b"k", version, 2)
    assert age >= 50
    assert nack(client, "k", version, worker="dead") == 0
    assert ack(client, "k", version, worker="dead") == 1, "it was written after all"


def test_a_claim_that_ran_out_comes_back_to_who_does_not_wait(client):
    put(client, "k", 1)
    claim(client, 1, "LEASE", 20)
    (record,) = eventually(lambda: claim(client))
    assert record.attempts == 2


def test_records_are_handed_out_oldest_first_and_each_to_one_worker(client):
    for n in range(30):
        put(client, f"k{n}", n)
    first, second = claim(client, 10, worker="ann"), claim(client, 10, worker="bob")
    third = claim(client, worker="cy")
    keys = [record.key for record in (*first, *second, *third)]
    assert keys == [b"k%d" % n for n in range(30)]
    assert claim(client, worker="dan") == []
    assert info(client)["in_flight"] == 30


def test_nothing_to_claim_is_an_empty_array(server, protocol):
    with RawClient(server, protocol) as raw:
        assert raw.call("WRITEBEHIND.CLAIM", "q", "w") == []
        assert raw.call("WRITEBEHIND.CLAIM", "q", "w", "BLOCK", 1) == []
        assert raw.call("EXISTS", "q") == 0


# The dead list


def kill_record(client, key, message="no"):
    """Gives the key's record back until it is given up."""
    config(client, "ATTEMPTS", 2)
    for _ in range(2):
        (record,) = [record for record in claim(client) if record.key == key]
        assert nack(client, key, record.version, "MSG", message, "DELAY", 0) == 1
    return record.version


def test_a_poison_row_is_given_up_and_the_others_go_on(client):
    put(client, "poison", "x")
    version = kill_record(client, b"poison", "constraint failed")
    put(client, "good", "y")
    assert [record.key for record in claim(client)] == [b"good"]
    assert dead(client) == [[b"poison", version, b"SET", b"x", 2, b"constraint failed"]]
    told = info(client)
    assert (told["dirty"], told["in_flight"], told["dead"]) == (1, 1, 1)
    client.delete("poison")
    assert get(client, "poison") == b"x", "nobody has written it yet"
    assert fetch(client, "poison") == [b"HIT", b"x"]


def test_what_stands_behind_a_record_that_is_given_up_goes_on(client):
    put(client, "k", "bad")
    config(client, "ATTEMPTS", 1)
    (record,) = claim(client)
    newer = put(client, "k", "good")
    nack(client, "k", record.version)
    assert [(r.version, r.payload) for r in claim(client)] == [(newer, b"good")]
    assert [row[:2] for row in dead(client)] == [[b"k", record.version]]
    ack(client, "k", newer)
    client.delete("k")
    assert get(client, "k") is None, "the database has something newer than what was given up"
    assert dead(client) != []
    assert requeue(client, "k") == 1
    assert (claim(client), dead(client), info(client)["dirty"]) == ([], [], 0), "it has nothing to say any more"


def test_an_increment_behind_a_set_that_is_given_up_becomes_a_set(client):
    put(client, "n", 10)
    config(client, "ATTEMPTS", 1)
    (record,) = claim(client)
    assert incrby(client, "n", 5)[0] == 15
    nack(client, "n", record.version)
    assert [(r.op, r.payload) for r in claim(client)] == [(b"SET", b"15")]


def test_an_increment_after_a_set_that_was_given_up_is_a_set(client):
    put(client, "n", 10)
    kill_record(client, b"n")
    assert incrby(client, "n", 5)[0] == 15
    assert [(r.op, r.payload) for r in claim(client)] == [(b"SET", b"15")]


def test_requeue_and_drop(client):
    put(client, "a", 1)
    versions = {b"a": kill_record(client, b"a")}
    put(client, "b", 2)
    versions[b"b"] = kill_record(client, b"b")
    assert [row[0] for row in dead(client)] == [b"a", b"b"]
    assert [row[0] for row in dead(client, "COUNT", 1)] == [b"a"]
    assert (requeue(client, "none"), drop(client, "none"), requeue(client, "a", queue="none")) == (0, 0, 0)
    assert requeue(client, "a") == 1
    assert requeue(client, "a") == 0
    assert [(r.version, r.payload, r.attempts) for r in claim(client)] == [(versions[b"a"], b"1", 1)]
    client.delete("b")
    assert drop(client, "b") == 1
    assert drop(client, "b") == 0
    assert (dead(client), get(client, "b")) == ([], None)


def test_an_ack_that_comes_late_cleans_what_was_given_up(client):
    version = put(client, "k", 1)
    kill_record(client, b"k")
    assert ack(client, "k", version) == 1
    assert (dead(client), info(client)["keys"]) == ([], 0)


def test_more_workers_than_are_served_at_once(server, client):
    """A hundred have their turn in one go, the others in the next ones; none waits for another event."""
    with ExitStack() as stack:
        workers = [stack.enter_context(RawClient(server)) for _ in range(250)]
        for number, worker in enumerate(workers, 1):
            worker.send("WRITEBEHIND.CLAIM", "q", "w", "BLOCK", 0)
            eventually(lambda number=number: info(client)["waiters"] == number)
        with client.pipeline(transaction=True) as transaction:
            for number in range(len(workers)):
                put(transaction, f"k{number}", number)
            transaction.execute()
        claimed = [key for worker in workers for key, *_ in worker.read()]
        assert claimed == [b"k%d" % number for number in range(len(workers))], "in the order of arrival"


def test_increments_that_were_given_up_are_not_lost(client):
    """What newer increments have overtaken comes back as a sum under a new version: the database would refuse the old one."""
    database = Database()
    incrby(client, "n", 5)
    kill_record(client, b"n")
    incrby(client, "n", 3)
    work_off(client, database)
    assert database.value(b"n") == b"3"
    assert requeue(client, "n") == 1
    work_off(client, database)
    assert database.value(b"n") == b"8"
    assert info(client)["keys"] == 0


def test_the_value_is_right_while_an_increment_is_given_up_and_a_later_one_written(client):
    """What the database has lacks one of them; the queue knows the value."""
    client.set("n", 100)
    incrby(client, "n", 5)
    kill_record(client, b"n")
    assert incrby(client, "n", 3)[0] == 108
    assert work_off(client, Database()) == 1
    client.delete("n")
    assert get(client, "n") == b"108"
    assert incrby(client, "n", 1)[0] == 109
    client.delete("n")
    assert requeue(client, "n") == 1
    assert get(client, "n") == b"109"
    assert [(record.op, record.payload) for record in claim(client)] == [(b"INCRBY", b"6")]


def test_claims_that_run_out_end_on_the_dead_list_too(client):
    config(client, "ATTEMPTS", 2)
    version = put(client, "k", 1)
    for _ in range(2):
        assert eventually(lambda: claim(client, 1, "LEASE", 10))
    eventually(lambda: info(client)["dead"] == 1)
    assert dead(client) == [[b"k", version, b"SET", b"1", 2, None]]


def test_a_death_is_announced(server):
    client = server.client()
    previous = client.config_get("notify-keyspace-events")["notify-keyspace-events"]
    client.config_set("notify-keyspace-events", "KEd")
    try:
        listener = server.client().pubsub()
        listener.subscribe("__keyevent@0__:writebehind.dead")
        assert listener.get_message(timeout=10)["type"] == "subscribe"
        put(client, "k", 1)
        kill_record(client, b"k")
        message = eventually(lambda: listener.get_message(timeout=1))
        assert message["data"] == b"q"
        listener.close()
    finally:
        client.config_set("notify-keyspace-events", previous)


# Waiting


def test_workers_wait_in_turn_and_are_woken_by_the_write(server, client):
    with RawClient(server) as ann, RawClient(server) as bob:
        ann.send("WRITEBEHIND.CLAIM", "q", "ann", "COUNT", 2, "BLOCK", 0)
        eventually(lambda: info(client)["waiters"] == 1)
        bob.send("WRITEBEHIND.CLAIM", "q", "bob", "BLOCK", 60_000)
        eventually(lambda: info(client)["waiters"] == 2)
        put(client, "a", 1)
        assert [row[0] for row in ann.read()] == [b"a"]
        assert not bob.is_answered()
        incrby(client, "b", 1)
        assert [row[0] for row in bob.read()] == [b"b"]
        assert info(client)["waiters"] == 0


def test_who_waits_gets_what_an_ack_sets_free(server, client):
    version = put(client, "k", 1)
    claim(client)
    newer = put(client, "k", 2)
    with RawClient(server) as ann:
        ann.send("WRITEBEHIND.CLAIM", "q", "ann", "BLOCK", 60_000)
        eventually(lambda: info(client)["waiters"] == 1)
        ack(client, "k", version)
        assert ann.read()[0][1] == newer


def test_what_arrives_in_one_transaction_is_handed_out_together(server, client):
    with RawClient(server) as ann:
        ann.send("WRITEBEHIND.CLAIM", "q", "ann", "COUNT", 10, "BLOCK", 60_000)
        eventually(lambda: info(client)["waiters"] == 1)
        pipeline = client.pipeline(transaction=True)
        for n in range(3):
            put(pipeline, f"k{n}", n)
        pipeline.execute()
        got = ann.read()
        assert [row[0] for row in got][:1] == [b"k0"]


@pytest.mark.parametrize("how", ["timeout", "error", "close", "run out"])
def test_every_way_a_wait_can_end(server, client, how):
    with RawClient(server) as waiter:
        number = waiter.call("CLIENT", "ID")
        waiter.send("WRITEBEHIND.CLAIM", "q", "ann", "BLOCK", 30 if how == "run out" else 60_000)
        if how != "run out":
            eventually(lambda: info(client)["waiters"] == 1)
        if how == "timeout":
            client.client_unblock(number)
        elif how == "error":
            client.client_unblock(number, error=True)
        elif how == "close":
            waiter.close()
        if how == "error":
            assert waiter.read().startswith("UNBLOCKED")
        elif how != "close":
            assert waiter.read() == []
    eventually(lambda: info(client)["waiters"] == 0)
    put(client, "k", 1)
    assert [record.attempts for record in claim(client)] == [1], "nobody was given it in vain"


def test_a_wait_lasts_over_the_end_of_a_queue(server, client):
    put(client, "k", 1)
    claim(client)
    with RawClient(server) as waiter:
        waiter.send("WRITEBEHIND.CLAIM", "q", "ann", "BLOCK", 60_000)
        eventually(lambda: info(client)["waiters"] == 1)
        client.delete("q")
        client.set("q", "string")
        client.delete("q")
        put(client, "new", 1)
        assert waiter.read()[0][0] == b"new"


def test_nobody_waits_in_transactions_and_scripts(server, client):
    pipeline = client.pipeline(transaction=True)
    pipeline.execute_command("WRITEBEHIND.CLAIM", "q", "w", "BLOCK", 0)
    assert pipeline.execute() == [[]]
    assert client.eval("return redis.call('WRITEBEHIND.CLAIM', KEYS[1], 'w', 'BLOCK', 0)", 1, "q") == []


def test_too_many_waiters_are_refused(make_server):
    server = make_server(args=["waiters-per-key-max", "1"])
    client = server.client()
    with RawClient(server) as first, RawClient(server) as second:
        first.send("WRITEBEHIND.CLAIM", "q", "ann", "BLOCK", 0)
        eventually(lambda: info(client)["waiters"] == 1)
        assert second.call("WRITEBEHIND.CLAIM", "q", "bob", "BLOCK", 0) == "ERR too many waiters"
        assert second.call("WRITEBEHIND.CLAIM", "q2", "bob", "BLOCK", 1) == []
    assert server.info("everything")["keyward_writebehind_waits_refused"] == 1


def test_the_age_of_what_waits_is_a_metric(client):
    def age() -> int:
        return client.info("keyward")["keyward_writebehind_oldest_ms"]

    assert age() == 0
    for queue in ("q", "later"):
        client.execute_command("WRITEBEHIND.SET", queue, f"{queue}:key", "v")
        eventually(lambda: age() > 20)
    # The time goes on between the two; a queue that is younger does not come between them.
    at_least, shown, at_most = info(client)["oldest_ms"], age(), info(client)["oldest_ms"]
    assert at_least <= shown <= at_most
    client.delete("q", "later")
    assert age() == 0


# Shapes


def test_reply_shapes_are_the_same_in_both_protocols(server, protocol):
    with RawClient(server, protocol) as raw:
        version = raw.call("WRITEBEHIND.SET", "q", "k", "v")
        assert isinstance(version, int)
        assert raw.call("WRITEBEHIND.INCRBY", "q", "n", 5)[0] is None
        assert raw.call("WRITEBEHIND.DEL", "q", "d") > version
        rows = raw.call("WRITEBEHIND.CLAIM", "q", "w", "COUNT", 3)
        assert [row[2:5] for row in rows] == [[b"SET", b"v", 1], [b"INCRBY", b"5", 1], [b"DEL", None, 1]]
        assert raw.call("WRITEBEHIND.NACK", "q", "w", "n", rows[1][1]) == 1
        assert raw.call("WRITEBEHIND.ACK", "q", "w", "k", version, "none", 1) == 1
        told = fields(raw.call("WRITEBEHIND.INFO", "q"))
        assert list(told)[:6] == [b"dirty", b"in_flight", b"oldest_ms", b"retries", b"dead", b"coalesced"]
        assert fields(raw.call("WRITEBEHIND.INFO", "none"))[b"dirty"] == 0
        assert raw.call("WRITEBEHIND.DEAD", "q") == []
        for words in (("k",), ("k", 1, "k2"), ()):
            reply = raw.call("WRITEBEHIND.ACK", "q", "w", *words)
            assert reply == "ERR wrong number of arguments for 'writebehind.ack' command"
        for words in (("q", "k", "v", "NX"), ("q", "k", "v", "VERSION", 5), ("q", "k", "v", "EX", 1, "PX", 1)):
            assert raw.call("WRITEBEHIND.SET", *words) == "ERR syntax error"
        reply = raw.call("WRITEBEHIND.SET", "q", "k", "v", "EX", 0)
        assert isinstance(reply, ErrorReply)
        assert reply == "ERR invalid expire time in 'writebehind.set' command"
