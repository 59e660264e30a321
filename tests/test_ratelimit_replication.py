"""What RATELIMIT.* propagates, and that a limiter is the same wherever it arrives."""

import pytest
from propagation import ReplicationStream, aof_commands
from ratelimits import ban, check, clock_us, info, peek, refund
from servers import eventually

# Long windows: nothing leaves while a test looks. Fixed ones of some years do not turn.
DAY = ("EX", 86_400)
HOUR = ("EX", 3600)
YEARS = ("EX", 10**9)
SEVERAL = (1000, *DAY, "GCRA", 900, *DAY, "BURST", 800, "FIXED", 700, *YEARS)


def without_transaction(commands):
    return [command for command in commands if command[0] not in (b"MULTI", b"EXEC")]


def fill(client, keys=("limiter", b"\x00\xff")):
    """Limiters with several states of every algorithm, entries in several ticks (of a short window), large costs, refunds,
    and a ban on the last."""
    for key in keys:
        for number in range(20):
            check(client, 1000, *DAY, key=key)
            check(client, 10**12, *HOUR, "COST", 10**10 + number, key=key)
            check(client, "GCRA", 10**12 - 1, *YEARS, "FIXED", 10**12, *YEARS, "COST", 10**9 + number, key=key)
        refund(client, 10**12, *HOUR, "GCRA", 10**12 - 1, *YEARS, "FIXED", 10**12, *YEARS, "COST", 10**9, key=key)
    client.execute_command("RATELIMIT.BAN", "banned", "EX", 5000)
    return keys


def seen(client, keys):
    """All that a client can see of limiters, but for waits, which shrink while one looks."""
    out = {}
    for key in (*keys, "banned"):
        limits = [(1000, *DAY), (10**12, *HOUR), ("FIXED", 10**12, *YEARS)]
        peeks = [peek(client, *limit, key=key)[:3] for limit in limits]
        out[key] = (peeks, client.execute_command("PEXPIRETIME", key), client.dump(key))
    return out


def test_an_allowed_check_is_one_effect_with_its_moment(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        before = client.time()
        check(client, 100, "PX", 60_000, "COST", 7, key=b"k\x00\xff")
        after = client.time()
        (effect,) = stream.read()
        assert effect[:5] == [b"KEYWARD.APPLY", b"CHARGE", b"k\x00\xff", b"SLIDING", b"60000"]
        moment, units = map(int, effect[5:])
        assert before[0] * 1_000_000 + before[1] <= moment <= after[0] * 1_000_000 + after[1]
        assert units == 7
        check(client, 100, "PX", 60_000)
        assert len(stream.read()) == 1


def test_several_limits_are_one_effect(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        check(client, *SEVERAL, "COST", 7)
        (effect,) = stream.read()
        assert effect[:3] == [b"KEYWARD.APPLY", b"CHARGE", b"limiter"]
        meters = b"SLIDING 86400000 GCRA 86400000 900 FIXED 1000000000000"
        assert effect[3:-2] == meters.split()
        assert effect[-1] == b"7"


def test_a_refund_is_one_effect_if_there_is_something_to_give_back(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        refund(client, *SEVERAL, "COST", 5, key="none")
        check(client, *SEVERAL[:3], "COST", 7)
        stream.read()
        before = client.time()
        refund(client, *SEVERAL[:7], "COST", 5)
        (effect,) = stream.read()
        after = client.time()
        assert effect[:-2] == [b"KEYWARD.APPLY", b"REFUND", b"limiter", *b"SLIDING 86400000 GCRA 86400000 900".split()]
        assert clock_us(before) <= int(effect[-2]) <= clock_us(after)
        assert effect[-1] == b"5"
        refund(client, *SEVERAL[:3], "COST", 5)
        assert len(stream.read()) == 1
        assert client.exists("limiter") == 0
        refund(client, *SEVERAL[:3], "COST", 5)
        assert stream.read() == []


def test_a_ban_is_one_effect_with_its_end(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        before = clock_us(client.time()) // 1000
        ban(client, "EX", 60, key=b"k\x00\xff")
        (effect,) = stream.read()
        after = clock_us(client.time()) // 1000
        assert effect[:3] == [b"KEYWARD.APPLY", b"BAN", b"k\x00\xff"]
        assert before + 60_000 <= int(effect[3]) <= after + 60_000


def test_a_denial_tells_of_a_clock_that_was_set_back_and_does_so_once(make_server):
    """What the clock before a failover has charged lies ahead of this one's."""
    server, replica = make_server(), make_server()
    replica.replicate_from(server).wait_until_synced()
    client = server.client()
    ahead = clock_us(client.time()) + 86_400_000_000
    meters = ("SLIDING", 60_000, "GCRA", 60_000, 3, "FIXED", 60_000)
    client.execute_command("KEYWARD.APPLY", "CHARGE", "limiter", *meters, ahead, 3)
    limits = (3, "EX", 60, "GCRA", 3, "EX", 60, "FIXED", 3, "EX", 60)
    with ReplicationStream(server) as stream:
        before = client.time()
        retry_after = check(client, *limits)[3]
        after = client.time()
        assert 1 <= retry_after <= 60_000 * 257 / 256 + 1, "and not a day"
        (effect,) = stream.read()
        assert effect[:3] == [b"KEYWARD.APPLY", b"SETBACK", b"limiter"]
        assert effect[3:-1] == [str(word).encode() for word in meters]
        assert clock_us(before) <= int(effect[-1]) <= clock_us(after)
        assert check(client, *limits)[0] == 0
        assert stream.read() == []
    assert client.pttl("limiter") <= 60_000 * 257 / 256 + 1
    replica.wait_until_synced()
    assert replica.client().dump("limiter") == client.dump("limiter")
    assert replica.client().execute_command("PEXPIRETIME", "limiter") == client.execute_command(
        "PEXPIRETIME", "limiter"
    )


@pytest.mark.parametrize("denier", ["sliding", "several", "ban"])
def test_ten_thousand_denials_propagate_not_a_byte(make_server, denier):
    server = make_server(config=["appendonly yes"])
    client = server.client()
    limits = (1, *DAY, "GCRA", 5, *DAY, "FIXED", 5, *YEARS) if denier == "several" else (1, *DAY)
    if denier == "ban":
        ban(client, "EX", 5000)
    else:
        check(client, *limits)
    aof = server.folder / "appendonlydir"

    def written():
        return sum(file.stat().st_size for file in aof.iterdir())

    with ReplicationStream(server) as stream:
        offset, size = server.info("replication")["master_repl_offset"], written()
        pipeline = client.pipeline(transaction=False)
        for _ in range(10_000):
            check(pipeline, *limits)
        assert not any(reply[0] for reply in pipeline.execute())
        assert stream.read() == []
        assert server.info("replication")["master_repl_offset"] == offset
        assert written() == size


def test_what_changes_nothing_propagates_nothing(make_server):
    server = make_server()
    client = server.client()
    check(client, 5, *DAY, "COST", 4)
    with ReplicationStream(server) as stream:
        peek(client, 5, *DAY)
        peek(client, *SEVERAL, key="none")
        info(client)
        client.execute_command("RATELIMIT.RESET", "none")
        refund(client, 5, *HOUR, "COST", 1)
        refund(client, 5, *DAY, "COST", 1, key="none")
        check(client, 5, *DAY, "COST", 2)
        check(client, 5, *DAY, "COST", 6)
        check(client, 5, *DAY, "COST", 6, key="none")
        check(client, 5, *DAY, "GCRA", 10, *HOUR, "COST", 2)
        assert stream.read() == []


def test_reset_propagates_the_keys_it_removed(make_server):
    server = make_server()
    client = server.client()
    check(client, 5, *DAY, key="a")
    check(client, 5, *DAY, key="b")
    with ReplicationStream(server) as stream:
        client.execute_command("RATELIMIT.RESET", "a", "none", "b")
        removal = without_transaction(stream.read())
        assert all(command[0] in (b"UNLINK", b"DEL") for command in removal)
        assert sorted(key for command in removal for key in command[1:]) == [b"a", b"b"]


def test_the_aof_has_one_effect_for_each_allowed_check(make_server):
    server = make_server(config=["appendonly yes"])
    client = server.client()
    for _ in range(10):
        check(client, 7, *DAY)
    effects = aof_commands(server)
    assert len(effects) == 7
    assert {command[1] for command in effects} == {b"CHARGE"}


def test_effects_of_scripts_and_transactions(make_server):
    server = make_server()
    client = server.client()
    with ReplicationStream(server) as stream:
        client.eval("for i = 1, 5 do redis.call('RATELIMIT.CHECK', KEYS[1], 3, 'EX', 86400) end", 1, "script")
        pipeline = client.pipeline(transaction=True)
        for _ in range(5):
            check(pipeline, 3, *DAY, key="transaction")
        pipeline.execute()
        effects = without_transaction(stream.read())
        assert [effect[2] for effect in effects] == [b"script"] * 3 + [b"transaction"] * 3


def test_a_replica_has_the_same_limiters(make_server):
    primary, replica = make_server(), make_server()
    client = primary.client()
    keys = fill(client, ["synced"])
    replica.replicate_from(primary).wait_until_synced()
    keys += fill(client, ["streamed"])
    check(client, 1000, *DAY, key="synced")
    replica.wait_until_synced()
    copy = replica.client()
    assert seen(copy, keys) == seen(client, keys)
    replica.promote()
    assert check(copy, 1000, *DAY, key="synced")[2] == 1000 - 22


def test_a_replica_reads_and_does_not_check(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    check(primary.client(), 1, *DAY)
    replica.wait_until_synced()
    copy = replica.client()
    assert peek(copy, 1, *DAY)[0] == 0
    for command in (
        ("RATELIMIT.CHECK", "limiter", 1, *DAY),
        ("RATELIMIT.REFUND", "limiter", 1, *DAY, "COST", 1),
        ("RATELIMIT.BAN", "limiter", "EX", 60),
        ("RATELIMIT.RESET", "limiter"),
    ):
        with pytest.raises(Exception, match="read only replica"):
            copy.execute_command(*command)


def test_a_limiter_that_is_full_again_goes_on_the_replica_too(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    check(primary.client(), 1, "PX", 50)
    eventually(lambda: primary.client().exists("limiter") == 0)
    replica.wait_until_synced()
    assert replica.client().dbsize() == 0


def rewrite_aof(server):
    server.client().bgrewriteaof()
    eventually(lambda: not server.info("persistence")["aof_rewrite_in_progress"])


@pytest.mark.parametrize("way", ["rdb", "aof", "rewritten", "rewritten-no-preamble"])
def test_a_restarted_server_has_the_same_limiters(make_server, way):
    config = ["save 3600 1"] if way == "rdb" else ["appendonly yes"]
    if way == "rewritten-no-preamble":
        config.append("aof-use-rdb-preamble no")
    server = make_server(config=config)
    client = server.client()
    keys = fill(client)
    if way == "rdb":
        client.save()
    elif way.startswith("rewritten"):
        rewrite_aof(server)
        check(client, 1000, *DAY, key=keys[0])
    before = seen(client, keys)
    server.kill9()
    server.start()
    client = server.client()
    assert seen(client, keys) == before
    consumed = 21 if way.startswith("rewritten") else 20
    assert check(client, 1000, *DAY, key=keys[0])[2] == 1000 - consumed - 1


def test_debug_reload_keeps_limiters(server):
    client = server.client()
    keys = fill(client)
    before = seen(client, keys)
    client.execute_command("DEBUG", "RELOAD")
    assert seen(client, keys) == before


@pytest.mark.parametrize("way", ["copy", "rename", "restore", "dump-to-another-server"])
def test_a_limiter_is_the_same_under_another_name(make_server, way):
    server = make_server()
    client = there = server.client()
    (key,) = fill(client, ["limiter"])
    before = seen(client, [key])[key]
    match way:
        case "copy":
            client.copy(key, "there")
        case "rename":
            client.rename(key, "there")
        case "restore" | "dump-to-another-server":
            if way != "restore":
                there = make_server().client()
            there.restore("there", client.execute_command("PEXPIRETIME", key), client.dump(key), absttl=True)
    assert seen(there, ["there"])["there"] == before
    check(there, 1000, *DAY, key="there")
    assert peek(there, 1000, *DAY, key="there")[2] == 1000 - 21
    if way != "rename":
        assert seen(client, [key])[key] == before, "the copy is one of its own"


def test_digests_agree_and_differ_with_what_was_consumed(make_server):
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    client = primary.client()
    fill(client)

    def digest(server):
        return server.client().execute_command("DEBUG", "DIGEST")

    replica.wait_until_synced()
    before = digest(primary)
    assert digest(replica) == before
    check(client, 1000, *DAY)
    assert digest(primary) != before
    replica.wait_until_synced()
    assert digest(replica) == digest(primary)
