"""examples/locks/redis_py_lock.py behaves as redis-py's Lock: the same tests run against both.

The first part is what redis-py documents for its Lock. Where the two differ the test says so and asserts both sides;
the list is in examples/locks/README.md.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.exceptions import LockError, LockNotOwnedError
from redis.lock import Lock
from servers import REPOSITORY, eventually

sys.path.append(str(REPOSITORY / "examples" / "locks"))

from redis_py_lock import QueuedLock

NAME = "foo"
SECONDS = 30


@pytest.fixture(params=[Lock, QueuedLock], ids=["redis-py", "queued"])
def lock_class(request):
    return request.param


@pytest.fixture
def make(client, lock_class):
    """make(timeout=60, ...) -> a lock of the class under test, as Redis.lock() makes it."""

    def lock(timeout=60, **options):
        return client.lock(NAME, timeout, lock_class=lock_class, **options)

    return lock


def ttl_ms(client):
    return client.pttl(NAME)


def waiting(server):
    return len(server.client(3).execute_command("LOCK.INFO", NAME)[b"waiters"])


def acquire_calls(server):
    """Since CONFIG RESETSTAT. A call that waits is counted when it is answered."""
    return server.client().info("commandstats").get("cmdstat_lock.acquire", {"calls": 0})["calls"]


def take_over(client, make):
    """The lock is lost to somebody else."""
    client.delete(NAME)
    other = make()
    assert other.acquire(blocking=False)
    return other


# What redis-py documents


def test_it_is_made_by_the_client_and_is_a_redis_py_lock(make, lock_class):
    lock = make()
    assert type(lock) is lock_class
    assert isinstance(lock, Lock)


def test_acquire_and_release(client, make):
    lock = make()
    assert lock.acquire(blocking=False) is True
    assert lock.release() is None
    assert not client.exists(NAME)


def test_one_of_two_gets_it_and_the_other_after_it(make):
    first, second = make(), make()
    assert first.acquire(blocking=False)
    assert second.acquire(blocking=False) is False
    first.release()
    assert second.acquire(blocking=False)
    assert first.acquire(blocking=False) is False
    second.release()


def test_a_lock_is_not_reentrant(make):
    lock = make()
    assert lock.acquire(blocking=False)
    assert lock.acquire(blocking=False) is False
    lock.release()


def test_the_value_of_an_attempt_may_be_given(make):
    lock = make()
    assert lock.acquire(blocking=False, token="mine")
    assert lock.local.token == b"mine"
    assert lock.owned()
    lock.release()
    assert lock.acquire(blocking=False, token=b"\xff")
    assert lock.local.token == b"\xff"


def test_each_attempt_has_a_value_of_its_own(make):
    first, second = make(), make()
    seen = set()
    for lock in (first, second, first):
        assert lock.acquire(blocking=False)
        seen.add(lock.local.token)
        lock.release()
    assert len(seen) == 3


def test_locked_says_whether_anybody_holds_it(make):
    lock, other = make(), make()
    assert lock.locked() is False
    lock.acquire(blocking=False)
    assert lock.locked() is True
    assert other.locked() is True
    lock.release()
    assert lock.locked() is False
    assert other.locked() is False


def test_owned_says_whether_this_one_holds_it(make):
    lock, other = make(), make()
    assert lock.owned() is False
    lock.acquire(blocking=False)
    assert lock.owned() is True
    assert other.owned() is False
    other_value = make()
    assert other_value.acquire(blocking=False) is False
    assert other_value.owned() is False
    lock.release()
    assert lock.owned() is False


def test_a_client_that_decodes_its_replies(server, protocol, lock_class):
    lock = server.client(protocol, decode=True).lock(NAME, 60, lock_class=lock_class)
    assert lock.acquire(blocking=False)
    assert lock.owned() is True
    assert lock.locked() is True
    assert lock.extend(1)
    lock.release()
    assert lock.locked() is False


@pytest.mark.parametrize("timeout", [10, 9.5])
def test_the_timeout_is_the_longest_life_of_the_lock(client, make, timeout):
    lock = make(timeout)
    assert lock.acquire(blocking=False)
    assert timeout * 1000 - 5000 < ttl_ms(client) <= timeout * 1000
    lock.release()


def test_a_lock_ends_with_its_timeout(make):
    lock, other = make(0.05), make()
    assert lock.acquire(blocking=False)
    eventually(lambda: not lock.owned())
    assert other.acquire(blocking=False)
    assert other.owned()


def test_blocking_may_be_chosen_for_the_lock_and_for_the_call(make):
    holder = make()
    assert holder.acquire(blocking=False)
    never = make(blocking=False)
    assert never.acquire() is False
    assert never.acquire(blocking=True, blocking_timeout=0.02) is False
    assert make(blocking=True, blocking_timeout=0.02).acquire(blocking=False) is False


def test_blocking_timeout_bounds_the_wait(make):
    holder = make()
    assert holder.acquire(blocking=False)
    begun = time.monotonic()
    assert make(blocking_timeout=0.3, sleep=0.05).acquire() is False
    assert time.monotonic() - begun >= 0.2, "redis-py leaves one sleep early"
    assert make(sleep=0.01).acquire(blocking_timeout=0.02) is False
    assert make().acquire(blocking_timeout=0) is False, "a try"


def test_who_blocks_gets_it_after_the_release(make):
    holder, waiter = make(), make(sleep=0.01, thread_local=False)
    assert holder.acquire(blocking=False)
    with ThreadPoolExecutor(1) as pool:
        acquired = pool.submit(waiter.acquire)
        try:
            assert not waiter.owned()
        finally:
            holder.release()
        assert acquired.result(SECONDS) is True
    assert waiter.owned()


def test_who_blocks_gets_it_after_the_timeout_of_the_holder(make):
    assert make(0.1).acquire(blocking=False)
    waiter = make(sleep=0.01)
    assert waiter.acquire(blocking_timeout=SECONDS)
    assert waiter.owned()


def test_context_manager(client, make):
    with make() as lock:
        assert lock.owned()
        assert lock.locked()
    assert not client.exists(NAME)


def test_context_manager_says_when_it_waited_in_vain(make):
    with make():
        with pytest.raises(LockError) as raised, make(blocking_timeout=0.02, sleep=0.01):
            pytest.fail("nobody else may be here")
        assert raised.value.lock_name == NAME


def test_context_manager_passes_errors_on_and_releases(client, make):
    with pytest.raises(ZeroDivisionError), make():
        raise ZeroDivisionError
    assert not client.exists(NAME)


def test_context_manager_says_when_the_lock_was_lost(client, make):
    with pytest.raises(LockNotOwnedError), make():
        other = take_over(client, make)
    assert other.owned()


def test_context_manager_may_log_a_lost_lock_instead(client, make, caplog):
    with caplog.at_level(logging.WARNING), make(raise_on_release_error=False):
        take_over(client, make)
    assert "no longer owned" in caplog.text


def test_releasing_what_is_not_acquired(make):
    lock = make()
    with pytest.raises(LockError) as raised:
        lock.release()
    assert not isinstance(raised.value, LockNotOwnedError)
    assert raised.value.lock_name == NAME
    lock.acquire(blocking=False)
    lock.release()
    with pytest.raises(LockError):
        lock.release()


def test_releasing_what_somebody_else_has_by_now(client, make):
    lock = make()
    lock.acquire(blocking=False)
    other = take_over(client, make)
    with pytest.raises(LockNotOwnedError) as raised:
        lock.release()
    assert raised.value.lock_name == NAME
    assert lock.local.token is None
    assert other.owned()


def test_extend_adds_to_what_is_left(client, make):
    lock = make(10)
    lock.acquire(blocking=False)
    assert lock.extend(10) is True
    assert 15_000 < ttl_ms(client) <= 20_100
    assert lock.extend(10.5) is True
    assert 25_000 < ttl_ms(client) <= 30_700
    lock.release()


def test_extend_may_replace_what_is_left(client, make):
    lock = make(10)
    lock.acquire(blocking=False)
    assert lock.extend(20, replace_ttl=True) is True
    assert 15_000 < ttl_ms(client) <= 20_000


def test_reacquire_gives_the_timeout_again(client, make):
    lock = make(10)
    lock.acquire(blocking=False)
    eventually(lambda: ttl_ms(client) <= 9_500)
    assert lock.reacquire() is True
    assert 9_500 < ttl_ms(client) <= 10_000


@pytest.mark.parametrize(
    "act", [lambda lock: lock.extend(10), lambda lock: lock.reacquire()], ids=["extend", "reacquire"]
)
def test_only_the_holder_prolongs(client, make, act):
    lock = make(10)
    with pytest.raises(LockError) as raised:
        act(lock)
    assert not isinstance(raised.value, LockNotOwnedError), "never acquired"
    lock.acquire(blocking=False)
    client.delete(NAME)
    with pytest.raises(LockNotOwnedError) as raised:
        act(lock)
    assert raised.value.lock_name == NAME
    assert make(5).acquire(blocking=False)
    with pytest.raises(LockNotOwnedError):
        act(lock)
    assert ttl_ms(client) <= 5_000, "that of the other one is what it was"


def test_a_thread_does_not_see_what_another_acquired(make):
    lock = make()
    assert lock.acquire(blocking=False)
    with ThreadPoolExecutor(1) as pool, pytest.raises((LockError, AttributeError)):
        pool.submit(lock.release).result(SECONDS)
    assert lock.owned()
    lock.release()


def test_a_thread_sees_it_where_that_is_wished(make):
    lock = make(thread_local=False)
    assert lock.acquire(blocking=False)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lock.owned).result(SECONDS)
        pool.submit(lock.release).result(SECONDS)
    assert not lock.locked()


# Where they differ: each of examples/locks/README.md


def test_a_timeout_is_required(client, lock_class):
    if lock_class is Lock:
        assert client.lock(NAME).acquire(blocking=False)
        assert ttl_ms(client) == -1, "held for ever"
        return
    for timeout in (None, 0, -1, 0.0009):
        with pytest.raises(ValueError, match="timeout"):
            client.lock(NAME, timeout, lock_class=lock_class)


def test_the_key_is_a_lock_and_no_string(client, make, lock_class):
    lock = make()
    lock.acquire(blocking=False, token="mine")
    if lock_class is Lock:
        assert client.get(NAME) == b"mine"
        return
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.get(NAME)
    assert client.type(NAME) == b"kw-lock-1"


def test_a_lease_is_never_shortened(client, make, lock_class):
    lock = make(10)
    lock.acquire(blocking=False)
    lock.extend(50)
    assert lock.extend(5, replace_ttl=True) is True
    assert (ttl_ms(client) > 50_000) == (lock_class is QueuedLock)
    lock.extend(50)
    assert lock.reacquire() is True
    assert (ttl_ms(client) > 50_000) == (lock_class is QueuedLock)


def test_who_has_it_under_a_given_value_gets_it_again(make, lock_class):
    lock = make()
    assert lock.acquire(blocking=False, token="mine")
    assert lock.acquire(blocking=False, token="mine") == (lock_class is QueuedLock)


def test_a_sleep_longer_than_the_wait_makes_redis_py_give_up_at_once(make, lock_class):
    assert make().acquire(blocking=False)
    begun = time.monotonic()
    assert make(sleep=60, blocking_timeout=1).acquire() is False
    assert (time.monotonic() - begun >= 1) == (lock_class is QueuedLock)


def test_a_thread_that_acquired_nothing_may_ask(make, lock_class):
    lock = make()
    lock.acquire(blocking=False)
    with ThreadPoolExecutor(1) as pool:
        if lock_class is Lock:
            with pytest.raises(AttributeError):
                pool.submit(lock.owned).result(SECONDS)
            return
        assert pool.submit(lock.owned).result(SECONDS) is False
        assert pool.submit(lambda: lock.fencing_token).result(SECONDS) is None
        with pytest.raises(LockError):
            pool.submit(lock.release).result(SECONDS)


def test_the_two_classes_do_not_share_a_name(client):
    theirs, ours = client.lock(NAME, 60), client.lock(NAME, 60, lock_class=QueuedLock)
    with theirs, pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        ours.acquire(blocking=False)
    with ours:
        assert theirs.acquire(blocking=False) is False


# What it has beyond redis-py


@pytest.fixture
def queued(server, protocol):
    """queued(...) -> a lock with a client of its own, so that several can wait."""

    def lock(timeout=60, socket_timeout=60, **options):
        client = server.client(protocol, socket_timeout=socket_timeout)
        return client.lock(NAME, timeout, lock_class=QueuedLock, **options)

    return lock


def test_each_grant_has_a_larger_fencing_token(queued):
    first, second = queued(), queued()
    assert first.fencing_token is None
    tokens = []
    for lock in (first, second, first):
        with lock:
            tokens.append(lock.fencing_token)
        assert lock.fencing_token is None
    assert tokens == sorted(set(tokens))


def test_who_waits_is_served_in_the_order_of_arrival(server, queued):
    holder, served = queued(), []

    def work(number):
        with queued():
            served.append(number)

    holder.acquire()
    with ThreadPoolExecutor(5) as pool:
        try:
            jobs = []
            for number in range(5):
                jobs.append(pool.submit(work, number))
                eventually(lambda number=number: waiting(server) == number + 1)
        finally:
            holder.release()
        for job in jobs:
            job.result(SECONDS)
    assert served == list(range(5))


@pytest.mark.parametrize("limit", [None, SECONDS], ids=["no limit", "limit"])
def test_a_wait_longer_than_the_socket_timeout_goes_on(server, queued, limit):
    holder, waiter = queued(), queued(socket_timeout=1, thread_local=False)
    holder.acquire()
    server.client().config_resetstat()
    with ThreadPoolExecutor(1) as pool:
        try:
            acquired = pool.submit(waiter.acquire, blocking_timeout=limit)
            eventually(lambda: acquire_calls(server) >= 3)  # Slices of half a second that are over.
            assert not acquired.done()
        finally:
            holder.release()
        assert acquired.result(SECONDS) is True
    assert waiter.owned()


def test_without_a_socket_timeout_one_call_waits_for_all_the_time(server, queued):
    holder, waiter = queued(), queued(socket_timeout=None)
    holder.acquire()
    server.client().config_resetstat()
    with ThreadPoolExecutor(1) as pool:
        try:
            acquired = pool.submit(waiter.acquire)
            eventually(lambda: waiting(server) == 1)
        finally:
            holder.release()
        assert acquired.result(SECONDS) is True
    assert acquire_calls(server) == 1


def test_a_wait_that_ran_out_leaves_the_queue(server, queued):
    holder = queued()
    holder.acquire()
    assert queued(blocking_timeout=0.05).acquire() is False
    assert waiting(server) == 0
    assert queued(socket_timeout=0.5, blocking_timeout=0.6).acquire() is False, "more than one slice"
    assert waiting(server) == 0


def test_a_lease_begins_with_the_grant(queued):
    """Had it begun with the call, the wait would be missing from what is left of it."""
    assert queued(1).acquire()
    lock, begun = queued(60), time.monotonic()
    assert lock.acquire(blocking_timeout=SECONDS)
    waited_ms = 1000 * (time.monotonic() - begun)
    assert waited_ms + lock.redis.pttl(NAME) > 60_100


def test_a_retried_acquire_gets_the_same_lock(queued):
    """redis-py repeats a command whose reply was lost; the server knows the owner."""
    lock = queued()
    lock.acquire()
    again = lock.redis.execute_command("LOCK.ACQUIRE", NAME, lock.local.token, "PX", 60_000)
    assert again == lock.fencing_token


def test_threads_of_one_lock_take_turns(queued):
    """One instance, as a service has it: each thread waits for, holds and releases for itself."""
    lock, inside, most = queued(), [], []
    start = threading.Barrier(8)

    def work():
        start.wait(SECONDS)
        for _ in range(20):
            with lock:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(8) as pool:
        for job in [pool.submit(work) for _ in range(8)]:
            job.result(SECONDS)
    assert len(most) == 160
    assert max(most) == 1
