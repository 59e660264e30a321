"""LOCK.MACQUIRE and LOCK.MRELEASE: several locks at once, or none of them."""

import itertools
import random
import threading

import pytest
from locks import Waiters, answered_once, is_error
from raw_client import RawClient
from servers import eventually


@pytest.fixture
def waiters(server, protocol):
    with Waiters(server, protocol) as waiters:
        yield waiters
    with Waiters(server) as after:
        eventually(lambda: after.number() == 0)


def acquire_all(waiters, keys, owner, *options, px=60_000):
    return waiters.call("LOCK.MACQUIRE", len(keys), *keys, owner, "PX", px, *options)


def release_all(waiters, keys, owner):
    return waiters.call("LOCK.MRELEASE", len(keys), *keys, owner)


# All or nothing


def test_all_are_granted_under_one_token(waiters):
    token = acquire_all(waiters, "abc", "ann")
    for key in "abc":
        assert waiters.call("LOCK.VALIDATE", key, token) == 1
        assert waiters.owners(key) == ["ann"]
        assert 0 < waiters.call("PTTL", key) <= 60_000
    assert acquire_all(waiters, "d", "ann") > token


def test_one_that_is_held_and_none_is_granted(waiters):
    waiters.acquire("bob", key="b")
    assert acquire_all(waiters, "abc", "ann") is None
    assert waiters.call("EXISTS", "a", "c") == 0
    waiters.release("bob", key="b")
    assert acquire_all(waiters, "abc", "ann")


@pytest.mark.parametrize("options", [("SHARED",), ("PERMITS", 5)], ids=lambda options: options[0])
def test_a_key_that_others_share_is_busy(waiters, options):
    waiters.acquire("bob", *options, key="b")
    assert acquire_all(waiters, "abc", "ann") is None
    assert waiters.acquire("ann", *options, key="b"), "there would be room"
    assert acquire_all(waiters, "abc", "ann") == "ERR owner holds one of the keys"
    waiters.release("ann", key="b")
    ann = waiters.wait_for_all("abc", "ann")
    waiters.release("bob", key="b")
    assert ann.read()


def test_a_key_of_another_type_is_an_error_and_nothing_is_granted(waiters):
    waiters.call("SET", "b", "value")
    assert is_error(acquire_all(waiters, "abc", "ann"), "WRONGTYPE ")
    assert waiters.call("EXISTS", "a", "c") == 0


def test_a_lease_that_is_over_is_free(waiters):
    token = waiters.acquire("bob", key="b", px=50)
    eventually(lambda: acquire_all(waiters, "abc", "ann"))
    assert waiters.info("b")["token"] > token


def test_a_key_named_twice_counts_once(waiters):
    token = acquire_all(waiters, "abab", "ann")
    assert acquire_all(waiters, "ba", "ann") == token
    assert release_all(waiters, "aab", "ann") == 2


# The same again


def test_the_same_owner_and_the_same_keys_have_the_same_token_and_the_longer_lease(waiters):
    token = acquire_all(waiters, "abc", "ann", px=60_000)
    assert acquire_all(waiters, "cab", "ann", px=600_000) == token
    assert all(waiters.call("PTTL", key) > 60_000 for key in "abc")
    assert acquire_all(waiters, "abc", "ann", px=10) == token
    assert all(waiters.call("PTTL", key) > 60_000 for key in "abc")
    waiters.wait("bob", key="b")
    assert acquire_all(waiters, "abc", "ann", "WAIT", 0) == token, "also when somebody waits"


@pytest.mark.parametrize("keys", ["a", "ab", "abcd", "ad"])
def test_other_keys_of_the_same_owner_are_an_error(waiters, keys):
    token = acquire_all(waiters, "abc", "ann")
    assert acquire_all(waiters, keys, "ann") == "ERR owner holds one of the keys"
    assert acquire_all(waiters, keys, "ann", "WAIT", 0) == "ERR owner holds one of the keys"
    assert waiters.call("EXISTS", "d") == 0
    assert waiters.info("a")["token"] == token


def test_the_same_keys_by_several_calls_are_an_error(waiters):
    for key in "ab":
        waiters.acquire("ann", key=key)
    assert acquire_all(waiters, "ab", "ann") == "ERR owner holds one of the keys"


def test_what_is_left_of_them_is_another_set(waiters):
    acquire_all(waiters, "abc", "ann")
    assert release_all(waiters, "c", "ann") == 1
    assert acquire_all(waiters, "ab", "ann") == "ERR owner holds one of the keys"
    assert acquire_all(waiters, "abc", "ann") == "ERR owner holds one of the keys"


def test_each_is_a_lock_like_others(waiters):
    token = acquire_all(waiters, "ab", "ann")
    assert waiters.call("LOCK.EXTEND", "a", "ann", "PX", 600_000, "TOKEN", token) == 1
    assert waiters.acquire("ann", key="a") == token
    assert waiters.release("ann", key="a") == 1
    assert waiters.call("LOCK.FORCE", "b") == 1
    assert waiters.call("DBSIZE") == 0


# Waiting


def test_who_waits_for_several_is_granted_when_all_are_free(waiters):
    for key in "abc":
        waiters.acquire("bob", key=key)
    ann = waiters.wait_for_all("abc", "ann")
    for key in "ab":
        waiters.release("bob", key=key)
        assert not ann.is_answered()
        assert waiters.owners(key) == []
        assert waiters.acquire("eve", key=key) is None, "ann came first"
    waiters.release("bob", key="c")
    token = ann.read()
    assert [waiters.info(key)["token"] for key in "abc"] == [token] * 3
    assert waiters.queue("a") == []
    assert answered_once(ann)


def test_the_lease_of_all_of_them_starts_at_the_grant(waiters):
    waiters.acquire("bob", key="c")
    ann = waiters.wait_for_all("abc", "ann", px=60_000)
    now, _, *ends = waiters.admin.pipeline(
        [("TIME",), ("LOCK.RELEASE", "c", "bob"), *(("PEXPIRETIME", key) for key in "abc")]
    )
    assert ann.read()
    assert len(set(ends)) == 1
    assert ends[0] >= int(now[0]) * 1000 + int(now[1]) // 1000 + 60_000


def test_the_end_of_the_last_lease_grants_them(waiters):
    waiters.acquire("bob", key="a", px=500)
    token = waiters.acquire("bob", key="c", px=700)
    assert waiters.wait_for_all("abc", "ann").read() > token


def test_it_has_one_number_in_all_queues(waiters):
    waiters.acquire("bob", key="a")
    ann = waiters.wait_for_all("ab", "ann")
    cy = waiters.wait("cy", key="b")
    dan = waiters.wait_for_all("bc", "dan")
    assert [waiters.queue(key) for key in "abc"] == [["ann"], ["ann", "cy", "dan"], ["dan"]]
    waiters.release("bob", key="a")
    assert ann.read()
    assert not cy.is_answered()
    assert release_all(waiters, "ab", "ann") == 2
    assert cy.read()
    assert not dan.is_answered()
    waiters.release("cy", key="b")
    assert dan.read()


@pytest.mark.parametrize("how", ["runs out", "TIMEOUT", "ERROR", "KILL"])
def test_who_leaves_holds_nobody_up_in_any_queue(waiters, how):
    waiters.acquire("bob", key="a")
    ann = waiters.connect()
    number = ann.call("CLIENT", "ID")
    waiters.wait_for_all("abc", "ann", client=ann, wait_ms=600 if how == "runs out" else 0)
    others = [waiters.wait("cy", key="b"), waiters.wait_for_all("bc", "dan")]
    if how in ("TIMEOUT", "ERROR"):
        waiters.call("CLIENT", "UNBLOCK", number, how)
    elif how == "KILL":
        waiters.call("CLIENT", "KILL", "ID", number)
    assert others[0].read()
    assert not others[1].is_answered()
    waiters.release("cy", key="b")
    assert others[1].read()
    if how != "KILL":
        reply = ann.read()
        assert is_error(reply, "UNBLOCKED ") if how == "ERROR" else reply is None
    assert [waiters.queue(key) for key in "abc"] == [[], [], []]


def test_a_lock_of_his_own_that_he_got_while_he_waited_is_told_when_his_turn_comes(waiters):
    waiters.acquire("bob", key="a")
    waiters.acquire("bob", key="b")
    single = waiters.wait("ann", key="b")
    several = waiters.wait_for_all("ab", "ann")
    waiters.release("bob", key="b")
    assert single.read()
    waiters.release("bob", key="a")
    assert several.read() == "ERR owner holds one of the keys"
    assert waiters.owners("b") == ["ann"]


def test_a_key_that_was_overwritten_is_told_when_the_turn_comes(waiters):
    for key in "ab":
        waiters.acquire("bob", key=key)
    ann = waiters.wait_for_all("ab", "ann")
    waiters.call("SET", "b", "value")
    waiters.release("bob", key="a")
    assert is_error(ann.read(), "WRONGTYPE ")
    assert waiters.call("EXISTS", "a") == 0


# No deadlock


def test_opposite_orders_do_not_wait_for_each_other(server, waiters):
    """Each takes all of his keys and waits for ever; every order of two and three keys, from many connections at once."""
    orders = list(itertools.permutations("abc")) + list(itertools.permutations("abc", 2))
    done, failed = [], []

    def worker(number):
        draw = random.Random(number)
        with RawClient(server) as raw:
            for turn in range(30):
                keys, owner = draw.choice(orders), f"{number}:{turn}"
                token = raw.call("LOCK.MACQUIRE", len(keys), *keys, owner, "PX", 600_000, "WAIT", 0)
                released = raw.call("LOCK.MRELEASE", len(keys), *reversed(keys), owner)
                if not isinstance(token, int) or released != len(keys):
                    failed.append((token, released))
                done.append(token)

    threads = [threading.Thread(target=worker, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    assert len(set(done)) == 12 * 30, "each has had his turn, under a token of his own"
    assert waiters.call("DBSIZE") == 0


# MRELEASE


def test_mrelease_counts_the_keys_that_were_given_up(waiters):
    acquire_all(waiters, "abc", "ann")
    waiters.acquire("bob", key="d")
    waiters.call("SADD", "set", "item")
    assert release_all(waiters, "ad", "bob") == 1
    assert release_all(waiters, "abx", "ann") == 2
    assert release_all(waiters, "abc", "ann") == 1
    assert release_all(waiters, "abc", "ann") == 0


def test_mrelease_gives_up_one_hold_of_each(waiters):
    waiters.acquire("ann", "REENTRANT", key="a")
    waiters.acquire("ann", "REENTRANT", key="a")
    waiters.acquire("ann", key="b")
    assert release_all(waiters, "ab", "ann") == 2
    assert (waiters.owners("a"), waiters.owners("b")) == (["ann"], [])


def test_mrelease_serves_those_who_wait_after_all_are_free(waiters):
    acquire_all(waiters, "abc", "ann")
    several = waiters.wait_for_all("abc", "bob")
    single = waiters.wait("cy", key="b")
    assert release_all(waiters, "abc", "ann") == 3
    assert several.read()
    assert not single.is_answered()


def test_mrelease_with_a_key_of_another_type_releases_nothing(waiters):
    acquire_all(waiters, "ac", "ann")
    waiters.call("SET", "b", "value")
    assert is_error(release_all(waiters, "abc", "ann"), "WRONGTYPE ")
    assert waiters.owners("a") == waiters.owners("c") == ["ann"]


def test_bad_arguments(waiters):
    for words, error in [
        (("LOCK.MACQUIRE", 0, "a", "ann", "PX", 1), "ERR number of keys must be an integer from 1 to 1024"),
        (("LOCK.MACQUIRE", 1025, "a", "ann", "PX", 1), "ERR number of keys must be an integer from 1 to 1024"),
        (("LOCK.MACQUIRE", "x", "a", "ann", "PX", 1), "ERR value is not an integer or out of range"),
        (("LOCK.MACQUIRE", 5, "a", "ann", "PX", 1), "ERR syntax error"),
        (("LOCK.MACQUIRE", 1, "a", "ann", "NX", 1), "ERR syntax error"),
        (("LOCK.MACQUIRE", 1, "a", "ann", "PX", 1, "SHARED"), "ERR syntax error"),
        (("LOCK.MACQUIRE", 1, "a", "ann", "PX", 1, "PERMITS", 2), "ERR syntax error"),
        (("LOCK.MACQUIRE", 1, "a", "ann", "PX", 1, "REENTRANT"), "ERR syntax error"),
        (("LOCK.MACQUIRE", 1, "a", "", "PX", 1), "ERR owner must be 1 to 1024 bytes"),
        (("LOCK.MACQUIRE", 1, "a", "ann", "PX", 0), "ERR invalid expire time in 'lock.macquire' command"),
        (("LOCK.MACQUIRE", 1, "a", "ann"), "ERR wrong number of arguments for 'lock.macquire' command"),
        (("LOCK.MRELEASE", 0, "a", "ann"), "ERR number of keys must be an integer from 1 to 1024"),
        (("LOCK.MRELEASE", 1, "a", "ann", "TOKEN", 1), "ERR syntax error"),
        (("LOCK.MRELEASE", 5, "a", "ann"), "ERR syntax error"),
        (("LOCK.MRELEASE", 1, "a", ""), "ERR owner must be 1 to 1024 bytes"),
    ]:
        assert waiters.call(*words) == error, words
    assert waiters.call("DBSIZE") == 0
    keys = [f"key:{number}" for number in range(1024)]
    assert acquire_all(waiters, keys, "ann")
    assert release_all(waiters, keys, "ann") == 1024


def test_every_key_is_checked(make_server, protocol):
    server = make_server()
    with Waiters(server, protocol) as waiters:
        waiters.call("ACL", "SETUSER", "alice", "reset", "on", ">secret", "+@all", "~mine:*", "%R~read:*")
        alice = waiters.connect()
        assert alice.call("AUTH", "alice", "secret") == "OK"
        for keys in (["mine:a", "theirs:a"], ["theirs:a", "mine:a"], ["mine:a", "mine:b", "read:a"]):
            for command, rest in (("LOCK.MACQUIRE", ("ann", "PX", 60_000, "WAIT", 0)), ("LOCK.MRELEASE", ("ann",))):
                assert is_error(alice.call(command, len(keys), *keys, *rest), "NOPERM "), (command, keys)
        assert waiters.call("DBSIZE") == 0
        assert alice.call("LOCK.MACQUIRE", 2, "mine:a", "mine:b", "ann", "PX", 60_000)
        assert waiters.call("COMMAND", "GETKEYS", "LOCK.MACQUIRE", 2, "a", "b", "ann", "PX", 1) == [b"a", b"b"]
