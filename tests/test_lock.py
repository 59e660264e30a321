"""LOCK.*: who gets a lock, for how long, and what each command answers."""

import time

import pytest
import redis
from raw_client import ErrorReply, RawClient, fields
from servers import eventually

LOCK_COMMANDS = {
    "LOCK.ACQUIRE": ["owner", "PX", 60_000],
    "LOCK.RELEASE": ["owner"],
    "LOCK.EXTEND": ["owner", "PX", 60_000],
    "LOCK.VALIDATE": [1],
    "LOCK.INFO": [],
    "LOCK.FORCE": [],
}


def acquire(client, key="lock", owner="ann", *options, px=60_000):
    return client.execute_command("LOCK.ACQUIRE", key, owner, "PX", px, *options)


def release(client, key="lock", owner="ann", *options):
    return client.execute_command("LOCK.RELEASE", key, owner, *options)


def extend(client, key="lock", owner="ann", *options, px=60_000):
    return client.execute_command("LOCK.EXTEND", key, owner, "PX", px, *options)


def validate(client, token, key="lock"):
    return client.execute_command("LOCK.VALIDATE", key, token)


def info(client, key="lock"):
    return fields(client.execute_command("LOCK.INFO", key))


def holds(client, key="lock"):
    (holder,) = info(client, key)[b"holders"]
    return holder[2]


def wait_until_over(client, token, key="lock"):
    eventually(lambda: validate(client, token, key) == 0, message="the lease did not end")


# ACQUIRE


def test_a_free_lock_is_granted_with_a_token_near_the_clock(client):
    seconds, microseconds = client.time()
    token = acquire(client)
    assert isinstance(token, int)
    assert token < 2**53
    # This server may have granted tokens from its reserve, ten seconds ahead of the clock.
    assert abs(token - (seconds * 1_000_000 + microseconds)) < 60_000_000


def test_the_key_is_there_with_the_lease_as_its_ttl(client):
    acquire(client, px=60_000)
    assert client.type("lock") == b"kw-lock-1"
    assert 0 < client.pttl("lock") <= 60_000
    client.execute_command("LOCK.ACQUIRE", "seconds", "ann", "EX", 100)
    assert 99_000 < client.pttl("seconds") <= 100_000


def test_a_held_lock_is_refused_to_another_owner_and_stays_as_it_was(client):
    token = acquire(client, px=60_000)
    assert acquire(client, owner="bob", px=600_000) is None
    assert acquire(client, "lock", "bob", "REENTRANT") is None
    assert client.pttl("lock") <= 60_000
    assert info(client)[b"token"] == token
    assert validate(client, token) == 1


def test_owners_differ_in_case_and_in_every_byte(client):
    assert acquire(client, owner=b"\x00\xff\r\n") is not None
    for other in (b"\x00\xff\r", b"\x00\xff\r\n\x00", b"\x00"):
        assert acquire(client, owner=other) is None
    acquire(client, b"key\x00\xff", "ann")
    assert acquire(client, b"key\x00\xff", "Ann") is None
    assert acquire(client, b"key\x00", "Ann") is not None


def test_tokens_of_all_locks_and_databases_grow(server, client):
    other = server.client(db=1)
    tokens = []
    for number in range(50):
        tokens.append(acquire(client, f"lock:{number}"))
        tokens.append(acquire(other, f"lock:{number}"))
    assert tokens == sorted(set(tokens))


def test_databases_have_their_own_locks(server, client):
    token = acquire(client)
    other = server.client(db=1)
    assert acquire(other, owner="bob") > token
    assert release(other) == 0
    assert validate(client, token) == 1


def test_acquiring_again_gives_the_same_token_and_never_a_shorter_lease(client):
    token = acquire(client, px=60_000)
    assert acquire(client, px=600_000) == token
    assert client.pttl("lock") > 60_000
    assert acquire(client, px=10) == token
    assert client.pttl("lock") > 60_000
    assert info(client)[b"holders"][0][3] > 60_000
    assert holds(client) == 1
    assert release(client) == 1
    assert acquire(client, owner="bob") > token


def test_reentrant_counts_holds_and_needs_as_many_releases(client):
    token = acquire(client, "lock", "ann", "REENTRANT")
    assert acquire(client, "lock", "ann", "REENTRANT") == token
    assert acquire(client, "lock", "ann", "reentrant") == token
    assert holds(client) == 3
    for left in (2, 1):
        assert release(client) == 1
        assert holds(client) == left
        assert validate(client, token) == 1
        assert acquire(client, owner="bob") is None
    assert release(client) == 1
    assert release(client) == 0
    assert client.exists("lock") == 0
    assert acquire(client, owner="bob") > token


def test_reentrant_lengthens_the_lease_and_never_shortens_it(client):
    acquire(client, "lock", "ann", "REENTRANT", px=600_000)
    acquire(client, "lock", "ann", "REENTRANT", px=10)
    assert client.pttl("lock") > 60_000
    acquire(client, "lock", "ann", "REENTRANT", px=6_000_000)
    assert client.pttl("lock") > 600_000


def test_a_plain_acquire_of_a_reentrant_lock_adds_no_hold(client):
    acquire(client, "lock", "ann", "REENTRANT")
    acquire(client, "lock", "ann", "REENTRANT")
    acquire(client)
    assert holds(client) == 2
    acquire(client, "plain", "ann")
    acquire(client, "plain", "ann", "REENTRANT")
    assert holds(client, "plain") == 2


def test_options_come_in_any_order_and_case(client):
    token = client.execute_command("LOCK.ACQUIRE", "lock", "ann", "reentrant", "ex", 100)
    assert client.execute_command("lock.extend", "lock", "ann", "token", token, "px", 200_000) == 1
    assert client.pttl("lock") > 100_000


def test_a_lock_whose_lease_is_over_goes_to_the_next_with_a_greater_token(client):
    token = acquire(client, px=20)
    after = eventually(lambda: acquire(client, owner="bob"))
    assert after > token
    assert validate(client, token) == 0
    assert validate(client, after) == 1
    assert release(client) == 0
    assert extend(client) == 0
    assert info(client)[b"holders"][0][0] == b"bob"


def test_a_lease_lasts_as_long_as_it_was_asked_for(client):
    asked = time.monotonic()
    assert acquire(client, px=150)
    eventually(lambda: acquire(client, owner="bob"))
    # Deadlines are whole milliseconds, so one may be missing.
    assert time.monotonic() - asked >= 0.149


def test_an_expired_lock_is_acquired_anew_by_its_old_owner(client):
    """Not revived: what the old token guarded may have been somebody else's meanwhile."""
    token = acquire(client, px=20)
    wait_until_over(client, token)
    assert acquire(client) > token


def test_the_lease_is_kept_whatever_is_done_to_the_ttl_of_the_key(client):
    """The deadline is in the lock. PERSIST does not make it immortal."""
    token = acquire(client, px=400)
    assert client.persist("lock") == 1
    assert acquire(client, owner="bob") is None
    wait_until_over(client, token)
    assert acquire(client, owner="bob") > token


# RELEASE


def test_release_frees_the_lock_at_once(client):
    token = acquire(client)
    assert release(client) == 1
    assert client.exists("lock") == 0
    assert validate(client, token) == 0
    assert acquire(client, owner="bob") > token


def test_release_by_somebody_else_does_nothing(client):
    token = acquire(client)
    assert release(client, owner="bob") == 0
    assert release(client, "no such lock") == 0
    assert validate(client, token) == 1


def test_release_with_a_token_frees_that_grant_only(client):
    first = acquire(client)
    release(client)
    second = acquire(client)
    assert release(client, "lock", "ann", "TOKEN", first) == 0
    assert validate(client, second) == 1
    assert release(client, "lock", "bob", "TOKEN", second) == 0
    assert release(client, "lock", "ann", "TOKEN", second) == 1
    assert validate(client, second) == 0


# EXTEND


def test_extend_lengthens_and_never_shortens(client):
    token = acquire(client, px=60_000)
    assert extend(client, px=600_000) == 1
    assert 60_000 < client.pttl("lock") <= 600_000
    assert extend(client, px=10) == 1
    assert 60_000 < client.pttl("lock") <= 600_000
    assert client.execute_command("LOCK.EXTEND", "lock", "ann", "EX", 6000) == 1
    assert client.pttl("lock") > 600_000
    assert validate(client, token) == 1
    assert holds(client) == 1


def test_extend_by_somebody_else_does_nothing(client):
    acquire(client, px=60_000)
    assert extend(client, owner="bob", px=600_000) == 0
    assert extend(client, "no such lock") == 0
    assert client.exists("no such lock") == 0
    assert client.pttl("lock") <= 60_000


def test_extend_with_a_token_extends_that_grant_only(client):
    token = acquire(client, px=60_000)
    assert extend(client, "lock", "ann", "TOKEN", token - 1, px=600_000) == 0
    assert client.pttl("lock") <= 60_000
    assert extend(client, "lock", "ann", "TOKEN", token, px=600_000) == 1
    assert client.pttl("lock") > 60_000


def test_extend_never_revives_an_expired_lock(client):
    token = acquire(client, px=20)
    wait_until_over(client, token)
    assert extend(client) == 0
    assert extend(client, "lock", "ann", "TOKEN", token) == 0
    # By the server's own clock the key may have a millisecond left.
    eventually(lambda: client.exists("lock") == 0)


def test_an_extended_lock_outlives_its_first_lease(client):
    token = acquire(client, px=400)
    marker = acquire(client, "marker", px=450)
    assert extend(client, px=60_000) == 1
    wait_until_over(client, marker, "marker")
    assert validate(client, token) == 1
    assert acquire(client, owner="bob") is None


# VALIDATE


def test_validate_knows_the_current_token_only(client):
    first = acquire(client)
    assert validate(client, first) == 1
    release(client)
    second = acquire(client)
    assert validate(client, first) == 0
    assert validate(client, second) == 1
    assert validate(client, second + 1) == 0
    assert validate(client, second, "no such lock") == 0
    assert validate(client, 0, "no such lock") == 0


def test_validate_says_no_from_the_deadline_on(client):
    token = acquire(client, px=20)
    wait_until_over(client, token)
    assert validate(client, token) == 0


# INFO


def test_info_of_a_held_lock(client, protocol):
    token = client.execute_command("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000, "REENTRANT")
    reply = client.execute_command("LOCK.INFO", "lock")
    assert isinstance(reply, list if protocol == 2 else dict)
    told = fields(reply)
    assert list(told)[:5] == [b"mode", b"permits", b"token", b"holders", b"waiters"]
    assert told[b"mode"] == b"exclusive"
    assert told[b"permits"] == 1
    assert told[b"token"] == token
    assert told[b"waiters"] == []
    (holder,) = told[b"holders"]
    owner, holder_token, held, ttl_ms, *client_id = holder
    assert (owner, holder_token, held) == (b"ann", token, 1)
    assert 0 < ttl_ms <= 60_000
    assert len(client_id) == 1


def test_info_of_a_free_lock_names_no_holder(client):
    for key in ("never held", "released", "expired"):
        if key != "never held":
            token = acquire(client, key, px=20 if key == "expired" else 60_000)
        if key == "released":
            release(client, key)
        if key == "expired":
            wait_until_over(client, token, key)
        told = info(client, key)
        assert told[b"holders"] == []
        assert told[b"waiters"] == []


def test_info_changes_nothing_and_shows_the_time_left_shrinking(client):
    acquire(client, px=60_000)
    first = info(client)[b"holders"][0][3]
    eventually(lambda: info(client)[b"holders"][0][3] < first)


# FORCE


def test_force_frees_a_lock_whoever_holds_it(client):
    token = acquire(client, "lock", "ann", "REENTRANT")
    acquire(client, "lock", "ann", "REENTRANT")
    assert client.execute_command("LOCK.FORCE", "lock") == 1
    assert client.exists("lock") == 0
    assert validate(client, token) == 0
    assert release(client) == 0
    assert client.execute_command("LOCK.FORCE", "lock") == 0
    assert acquire(client, owner="bob") > token


# Shapes and errors


@pytest.mark.parametrize("protocol", [2, 3])
def test_replies_have_the_same_types_in_both_protocols(server, protocol):
    with RawClient(server, protocol) as raw:
        token = raw.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        assert type(token) is int
        assert raw.call("LOCK.ACQUIRE", "lock", "bob", "PX", 60_000) is None
        replies = raw.pipeline(
            [
                ("LOCK.VALIDATE", "lock", token),
                ("LOCK.EXTEND", "lock", "ann", "PX", 70_000),
                ("LOCK.EXTEND", "lock", "bob", "PX", 70_000),
                ("LOCK.RELEASE", "lock", "bob"),
                ("LOCK.RELEASE", "lock", "ann"),
                ("LOCK.FORCE", "lock"),
            ]
        )
        assert replies == [1, 1, 0, 0, 1, 0]
        assert {type(reply) for reply in replies} == {int}
        info_of_free = raw.call("LOCK.INFO", "lock")
        assert type(info_of_free) is (list if protocol == 2 else dict)


@pytest.mark.parametrize("command", LOCK_COMMANDS)
@pytest.mark.parametrize("kind", ["string", "list", "limiter"])
def test_a_key_of_another_type_is_refused_and_left_alone(server, command, kind):
    with RawClient(server) as raw:
        match kind:
            case "string":
                raw.call("SET", "key", "value")
            case "list":
                raw.call("RPUSH", "key", "value")
            case "limiter":
                raw.call("RATELIMIT.CHECK", "key", 10, "EX", 1000)
        before = raw.call("DUMP", "key")
        reply = raw.call(command, "key", *LOCK_COMMANDS[command])
        assert isinstance(reply, ErrorReply)
        assert reply == "WRONGTYPE Operation against a key holding the wrong kind of value"
        assert raw.call("DUMP", "key") == before


def test_other_commands_take_a_lock_for_what_it_is(client):
    token = acquire(client)
    for command in (("GET", "lock"), ("APPEND", "lock", "x"), ("LPUSH", "lock", "x"), ("CACHE.GET", "lock")):
        with pytest.raises(redis.ResponseError, match="WRONGTYPE|wrong kind of value"):
            client.execute_command(*command)
    assert validate(client, token) == 1


@pytest.mark.parametrize("command", ["LOCK.ACQUIRE", "LOCK.RELEASE", "LOCK.EXTEND"])
def test_an_owner_has_1_to_1024_bytes(server, command):
    rest = LOCK_COMMANDS[command][1:]
    with RawClient(server) as raw:
        for owner in (b"", b"x" * 1025):
            assert raw.call(command, "lock", owner, *rest) == "ERR owner must be 1 to 1024 bytes"
        assert raw.call("EXISTS", "lock") == 0
        for owner in (b"x", b"x" * 1024):
            assert not isinstance(raw.call(command, "lock", owner, *rest), ErrorReply)
            raw.call("DEL", "lock")


@pytest.mark.parametrize("command", ["LOCK.ACQUIRE", "LOCK.EXTEND"])
@pytest.mark.parametrize(
    "lease",
    [("PX", 0), ("EX", 0), ("PX", -1), ("EX", -1), ("EX", 2**63 - 1), ("PX", 2**63 - 1), ("EX", 2**63 // 1000 + 1)],
    ids=lambda lease: f"{lease[0]}{lease[1]}",
)
def test_a_lease_that_is_no_time_is_refused(server, command, lease):
    with RawClient(server) as raw:
        token = raw.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        reply = raw.call(command, "lock", "ann", *lease)
        assert reply == f"ERR invalid expire time in '{command.lower()}' command"
        assert raw.call("LOCK.VALIDATE", "lock", token) == 1
        assert raw.call("PTTL", "lock") <= 60_000


def test_the_words_of_other_expiries_do_not_belong_here(server):
    """The lease of a lock is a duration; and there is one."""
    with RawClient(server) as raw:
        for options in (
            ("EXAT", 4_000_000_000),
            ("PXAT", 4_000_000_000_000),
            ("KEEPTTL", 1),
            ("PX", 1000, "EX", 1),
            ("PX", 1000, "PX", 1000),
            ("PX", 1000, "REENTRANT", "REENTRANT"),
            ("PX", 1000, "NX"),
        ):
            assert raw.call("LOCK.ACQUIRE", "lock", "ann", *options) == "ERR syntax error"
        for command in ("LOCK.EXTEND", "LOCK.RELEASE"):
            lease = ("PX", 1000) if command == "LOCK.EXTEND" else ()
            assert raw.call(command, "lock", "ann", *lease, "TOKEN", 1, "TOKEN", 1) == "ERR syntax error"
            assert raw.call(command, "lock", "ann", *lease, "TOKEN") == "ERR syntax error"
        assert raw.call("EXISTS", "lock") == 0


def test_commands_in_a_transaction_see_one_another(client):
    pipeline = client.pipeline(transaction=True)
    pipeline.execute_command("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
    pipeline.execute_command("LOCK.ACQUIRE", "lock", "bob", "PX", 60_000)
    pipeline.execute_command("LOCK.RELEASE", "lock", "ann")
    pipeline.execute_command("LOCK.ACQUIRE", "lock", "bob", "PX", 60_000)
    first, busy, released, second = pipeline.execute()
    assert busy is None
    assert released == 1
    assert second > first


def test_a_script_reads_the_token_exactly(client):
    script = """
        local token = redis.call('LOCK.ACQUIRE', KEYS[1], 'ann', 'PX', 60000)
        return {redis.call('LOCK.VALIDATE', KEYS[1], string.format('%.0f', token)), string.format('%.0f', token)}
    """
    valid, token = client.eval(script, 1, "lock")
    assert valid == 1
    assert info(client)[b"token"] == int(token)


def test_watch_sees_a_lock_change(server, client):
    """WATCH and near caches must learn of grants, extensions and releases."""
    other = server.client()
    for change in (
        lambda: acquire(other),
        lambda: extend(other, px=600_000),
        lambda: release(other),
    ):
        with client.pipeline(transaction=True) as pipeline:
            pipeline.watch("lock")
            change()
            pipeline.multi()
            pipeline.ping()
            with pytest.raises(redis.WatchError):
                pipeline.execute()


def test_a_lock_can_be_released_and_extended_when_memory_is_full(make_server):
    client = make_server(config=["maxmemory-policy noeviction"]).client()
    token = acquire(client)
    acquire(client, "other")
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        acquire(client, "new")
    assert extend(client, px=600_000) == 1
    assert validate(client, token) == 1
    assert release(client) == 1
    assert client.execute_command("LOCK.FORCE", "other") == 1
