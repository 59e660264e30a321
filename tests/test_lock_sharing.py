"""Locks that several hold: readers, semaphores, and who may change from one to the other."""

import pytest
from locks import Waiters, answered_once, is_error
from servers import eventually


@pytest.fixture
def waiters(server, protocol):
    with Waiters(server, protocol) as waiters:
        yield waiters
    with Waiters(server) as after:
        eventually(lambda: after.number() == 0)


# Readers


def test_readers_hold_it_together_each_with_a_token(waiters):
    tokens = [waiters.acquire(name, "SHARED") for name in ("ann", "bob", "cy")]
    assert tokens == sorted(set(tokens))
    assert waiters.owners() == ["ann", "bob", "cy"]
    assert all(waiters.call("LOCK.VALIDATE", "lock", token) == 1 for token in tokens)
    assert waiters.acquire("dan") is None
    assert waiters.acquire("dan", "PERMITS", 5) is None
    assert waiters.release("bob") == 1
    assert waiters.call("LOCK.VALIDATE", "lock", tokens[1]) == 0
    assert waiters.owners() == ["ann", "cy"]
    assert waiters.release("bob") == 0
    assert waiters.release("cy", "TOKEN", tokens[0]) == 0
    assert waiters.release("ann", "TOKEN", tokens[0]) == 1
    assert waiters.release("cy") == 1
    assert waiters.call("EXISTS", "lock") == 0


def test_a_writer_keeps_readers_out(waiters):
    waiters.acquire("ann")
    assert waiters.acquire("bob", "SHARED") is None


def test_each_reader_has_a_lease_and_the_key_lives_as_long_as_the_longest(waiters):
    short = waiters.acquire("ann", "SHARED", px=200)
    long = waiters.acquire("bob", "SHARED", px=600_000)
    waiters.acquire("cy", "SHARED", px=100_000)
    assert waiters.call("PTTL", "lock") > 500_000
    eventually(lambda: waiters.call("LOCK.VALIDATE", "lock", short) == 0)
    assert waiters.owners() == ["bob", "cy"]
    assert waiters.release("ann") == 0
    assert waiters.call("LOCK.EXTEND", "lock", "ann", "PX", 1000) == 0
    assert waiters.acquire("ann", "SHARED") > long, "a new grant"
    assert waiters.release("bob") == 1
    assert waiters.call("PTTL", "lock") <= 100_000
    assert waiters.call("LOCK.EXTEND", "lock", "cy", "PX", 6_000_000) == 1
    assert waiters.call("PTTL", "lock") > 600_000


def test_a_reader_asking_again_has_the_same_token(waiters):
    token = waiters.acquire("ann", "SHARED")
    waiters.acquire("bob", "SHARED")
    assert waiters.acquire("ann", "SHARED", px=600_000) == token
    assert waiters.acquire("ann", "SHARED", "REENTRANT") == token
    assert [holder[2] for holder in waiters.info()["holders"]] == [2, 1]
    assert waiters.release("ann") == 1
    assert waiters.owners() == ["ann", "bob"]


def test_readers_who_wait_next_to_each_other_are_granted_together(waiters):
    waiters.acquire("ann")
    readers = [waiters.wait(f"reader-{number}", "SHARED") for number in range(3)]
    writer = waiters.wait("writer")
    behind = [waiters.wait(f"late-{number}", "SHARED") for number in range(2)]
    assert waiters.release("ann") == 1
    tokens = [reader.read() for reader in readers]
    assert tokens == sorted(set(tokens))
    assert waiters.owners() == ["reader-0", "reader-1", "reader-2"]
    assert waiters.queue() == ["writer", "late-0", "late-1"]
    for number in range(3):
        assert not writer.is_answered()
        assert waiters.release(f"reader-{number}") == 1
    assert writer.read()
    assert not any(reader.is_answered() for reader in behind)
    assert waiters.release("writer") == 1
    assert all(reader.read() for reader in behind)
    assert waiters.owners() == ["late-0", "late-1"]


def test_a_writer_is_not_starved_by_readers_that_come_and_go(waiters):
    waiters.acquire("reader-0", "SHARED")
    writer = waiters.wait("writer")
    for number in range(1, 10):
        assert waiters.acquire(f"reader-{number}", "SHARED") is None
    assert waiters.acquire("reader-0", "SHARED", px=100_000), "who holds it already may go on"
    waiters.wait("late", "SHARED")
    assert waiters.release("reader-0") == 1
    assert writer.read()


@pytest.mark.parametrize("how", ["runs out", "unblocked", "killed"])
def test_readers_behind_a_writer_who_left_go(waiters, how):
    waiters.acquire("ann", "SHARED")
    writer = waiters.connect()
    number = writer.call("CLIENT", "ID")
    waiters.wait("writer", client=writer, wait_ms=600 if how == "runs out" else 0)
    readers = [waiters.wait(f"reader-{n}", "SHARED") for n in range(3)]
    last = waiters.wait("last")
    if how == "unblocked":
        waiters.call("CLIENT", "UNBLOCK", number)
    elif how == "killed":
        waiters.call("CLIENT", "KILL", "ID", number)
    assert all(reader.read() for reader in readers)
    assert waiters.owners() == ["ann", "reader-0", "reader-1", "reader-2"]
    assert not last.is_answered()


def test_a_writer_waits_for_the_last_reader_s_lease(waiters):
    waiters.acquire("ann", "SHARED", px=500)
    longest = waiters.acquire("bob", "SHARED", px=700)
    writer = waiters.wait("writer")
    assert writer.read() > longest
    assert waiters.owners() == ["writer"]


# From reader to writer and back


def test_the_only_reader_becomes_the_writer_with_a_new_token(waiters):
    reader = waiters.acquire("ann", "SHARED")
    writer = waiters.acquire("ann")
    assert writer > reader
    assert waiters.call("LOCK.VALIDATE", "lock", reader) == 0
    assert waiters.call("LOCK.VALIDATE", "lock", writer) == 1
    assert waiters.info()["mode"] == b"exclusive"
    assert waiters.acquire("bob", "SHARED") is None
    assert waiters.release("ann") == 1
    assert waiters.call("EXISTS", "lock") == 0


def test_an_upgrade_loses_nothing(waiters):
    waiters.acquire("ann", "SHARED", "SESSION", "REENTRANT", px=600_000)
    waiters.acquire("ann", "SHARED", "REENTRANT", px=10)
    number = waiters.call("CLIENT", "ID")
    assert waiters.acquire("ann", "REENTRANT", px=10)
    (holder,) = waiters.info()["holders"]
    assert (holder[2], holder[4]) == (3, number)
    assert waiters.call("PTTL", "lock") > 60_000


@pytest.mark.parametrize("why", ["another reader", "somebody waits"])
@pytest.mark.parametrize("options", [(), ("WAIT", 0), ("PERMITS", 2)], ids=["plain", "wait", "permits"])
def test_an_upgrade_that_would_wait_for_itself_is_an_error(waiters, why, options):
    token = waiters.acquire("ann", "SHARED")
    if why == "another reader":
        waiters.acquire("bob", "SHARED")
    else:
        waiters.wait("bob")
    assert waiters.acquire("ann", *options) == "ERR lock upgrade would deadlock"
    assert waiters.call("LOCK.VALIDATE", "lock", token) == 1
    assert waiters.info()["mode"] == b"shared"


def test_a_writer_who_asks_to_read_keeps_what_it_has(waiters):
    token = waiters.acquire("ann")
    bob = waiters.wait("bob", "SHARED")
    assert waiters.acquire("ann", "SHARED", px=600_000) == token
    assert waiters.info()["mode"] == b"exclusive"
    assert waiters.call("PTTL", "lock") > 60_000
    assert not bob.is_answered()


# Semaphores


def test_a_semaphore_has_its_permits_and_one_for_each_owner(waiters):
    tokens = [waiters.acquire(name, "PERMITS", 3) for name in ("ann", "bob", "cy")]
    assert tokens == sorted(set(tokens))
    assert waiters.acquire("dan", "PERMITS", 3) is None
    assert waiters.acquire("ann", "PERMITS", 3) == tokens[0]
    assert waiters.release("bob") == 1
    assert waiters.acquire("dan", "PERMITS", 3) > tokens[2]
    assert waiters.owners() == ["ann", "cy", "dan"]


def test_another_number_of_permits_is_an_error_while_it_is_held(waiters):
    waiters.acquire("ann", "PERMITS", 3)
    for owner in ("ann", "bob"):
        assert waiters.acquire(owner, "PERMITS", 2) == "ERR permits mismatch (is 3)"
        assert waiters.acquire(owner, "PERMITS", 4, "WAIT", 0) == "ERR permits mismatch (is 3)"
    assert waiters.release("ann") == 1
    assert waiters.acquire("bob", "PERMITS", 2)


def test_a_mismatch_that_shows_when_the_turn_comes_is_told_then(waiters):
    waiters.acquire("ann")
    two, three, again = (
        waiters.wait("bob", "PERMITS", 2),
        waiters.wait("cy", "PERMITS", 3),
        waiters.wait("dan", "PERMITS", 2),
    )
    assert waiters.release("ann") == 1
    assert isinstance(two.read(), int)
    assert three.read() == "ERR permits mismatch (is 2)"
    assert answered_once(three)
    assert isinstance(again.read(), int)
    assert waiters.owners() == ["bob", "dan"]


def test_permits_go_to_those_who_wait_one_by_one(waiters):
    for name in ("ann", "bob"):
        waiters.acquire(name, "PERMITS", 2)
    first, second = waiters.wait("cy", "PERMITS", 2), waiters.wait("dan", "PERMITS", 2)
    assert waiters.release("bob") == 1
    assert first.read()
    assert not second.is_answered()
    assert waiters.release("ann") == 1
    assert second.read()


def test_a_permit_whose_lease_is_over_goes_to_the_next_although_others_are_held(waiters):
    waiters.acquire("ann", "PERMITS", 2, px=700)
    waiters.acquire("bob", "PERMITS", 2)
    cy = waiters.wait("cy", "PERMITS", 2)
    assert cy.read()
    assert waiters.owners() == ["bob", "cy"]


def test_who_wants_all_of_it_is_not_overtaken_by_those_who_want_a_permit(waiters):
    waiters.acquire("ann", "PERMITS", 2)
    everything = waiters.wait("bob")
    permit = waiters.wait("cy", "PERMITS", 2)
    assert waiters.acquire("dan", "PERMITS", 2) is None, "there is room, but bob came first"
    assert not permit.is_answered()
    assert waiters.release("ann") == 1
    assert everything.read()
    assert not permit.is_answered()
    assert waiters.release("bob") == 1
    assert permit.read()


def test_force_ends_all_holds(waiters):
    tokens = [waiters.acquire(f"owner-{number}", "PERMITS", 5) for number in range(5)]
    waiter = waiters.wait("ann")
    assert waiters.call("LOCK.FORCE", "lock") == 1
    assert waiter.read() > tokens[-1]
    assert all(waiters.release(f"owner-{number}") == 0 for number in range(5))


# INFO


def test_info_of_each_kind(waiters, protocol):
    one = waiters.acquire("ann", "SHARED", px=50_000)
    two = waiters.acquire("bob", "SHARED", "REENTRANT", "SESSION", px=90_000)
    number = waiters.call("CLIENT", "ID")
    waiters.wait("cy")
    reply = waiters.call("LOCK.INFO", "lock")
    assert isinstance(reply, list if protocol == 2 else dict)
    told = waiters.info()
    assert list(told) == ["mode", "permits", "token", "holders", "waiters"]
    assert (told["mode"], told["permits"], told["token"]) == (b"shared", 0, two)
    ann, bob = told["holders"]
    assert (ann[:3], ann[4]) == ([b"ann", one, 1], 0)
    assert (bob[:3], bob[4]) == ([b"bob", two, 1], number)
    assert 0 < ann[3] <= 50_000 < bob[3] <= 90_000
    ((owner, mode, waited),) = told["waiters"]
    assert (owner, mode) == (b"cy", b"exclusive")
    assert waited >= 0
    waiters.acquire("ann", "PERMITS", 7, key="semaphore")
    told = waiters.info("semaphore")
    assert (told["mode"], told["permits"], len(told["holders"])) == (b"permits", 7, 1)


def test_the_errors_of_shared_locks(waiters):
    for options, error in [
        (("SHARED", "PERMITS", 2), "ERR syntax error"),
        (("SHARED", "SHARED"), "ERR syntax error"),
        (("PERMITS",), "ERR syntax error"),
        (("PERMITS", 0), "ERR PERMITS must be an integer from 1 to 1000000"),
        (("PERMITS", 1_000_001), "ERR PERMITS must be an integer from 1 to 1000000"),
        (("PERMITS", "x"), "ERR value is not an integer or out of range"),
        (("WAIT", -1), "ERR WAIT must be an integer from 0 to 9223372036854775807"),
        (("WAIT", "x"), "ERR value is not an integer or out of range"),
        (("WAIT", 1, "WAIT", 1), "ERR syntax error"),
    ]:
        assert is_error(waiters.acquire("ann", *options), error), options
    assert waiters.call("EXISTS", "lock") == 0
