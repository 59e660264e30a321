"""examples/connections: who waits does not hold up the others, and a lock goes with its connection.

It is about the client's connections, so one server is enough: redis-7.0.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from guide_pages import EXAMPLES, assert_shows_its_example
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Server, default_flavour, eventually

sys.path.append(str(EXAMPLES / "connections"))

import aio
import pools

pytestmark = pytest.mark.skipif(default_flavour() != "redis-7.0", reason="the client is tested, not the server")
WAIT_MS = 20_000
CALLERS = 8
SECONDS = 30


@pytest.fixture
def url(server: Server) -> str:
    return f"redis://127.0.0.1:{server.port}"


@pytest.fixture
def loader(server: Server) -> redis.Redis:
    return server.client()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(CALLERS + 2) as threads:
        yield threads


def waiters(server: Server) -> int:
    return server.info("keyward_cache")["keyward_cache_waiters"]


def lock_waiters(server: Server) -> int:
    return server.info("keyward_lock")["keyward_lock_waiters"]


def token_for(client: redis.Redis, key: str = "k") -> bytes:
    status, _, token = client.execute_command("CACHE.FETCH", key)
    assert status == b"MISS"
    return token


def fill(client: redis.Redis, token: bytes, key: str = "k") -> None:
    assert client.execute_command("CACHE.FILL", key, token, "v", "EX", 60) == 1


def test_the_page_shows_the_example():
    assert_shows_its_example("connections.md", "connections")


# Two pools


def test_who_waits_does_not_hold_up_the_others(server, url, loader, threads):
    answering, waiting = pools.answering(url, "shop", size=1), pools.waiting(url, "shop", CALLERS, WAIT_MS)
    token = token_for(loader)
    calls = [threads.submit(waiting.execute_command, "CACHE.FETCH", "k", "WAIT", WAIT_MS) for _ in range(CALLERS)]
    eventually(lambda: waiters(server) == CALLERS)
    assert all(answering.ping() for _ in range(20))
    fill(answering, token)
    assert [call.result(SECONDS) for call in calls] == [[b"HIT", b"v", None]] * CALLERS


def test_in_one_pool_those_who_wait_keep_the_holder_from_releasing(server, url, threads):
    """What the page warns of."""
    shared = pools.waiting(url, "shop", CALLERS, WAIT_MS)
    assert shared.execute_command("LOCK.ACQUIRE", "lock", "holder", "EX", 600)
    command = ("EX", 600, "WAIT", WAIT_MS)
    calls = [threads.submit(shared.execute_command, "LOCK.ACQUIRE", "lock", str(n), *command) for n in range(CALLERS)]
    eventually(lambda: lock_waiters(server) == CALLERS)
    with pytest.raises(redis.ConnectionError, match="No connection available"):
        shared.execute_command("LOCK.RELEASE", "lock", "holder")
    answering = pools.answering(url, "shop", size=1)
    assert answering.execute_command("LOCK.RELEASE", "lock", "holder") == 1
    for _ in calls:
        owner = eventually(lambda: answering.execute_command("LOCK.INFO", "lock")[b"holders"])[0][0]
        answering.execute_command("LOCK.RELEASE", "lock", owner)
    assert all(call.result(SECONDS) for call in calls)


def test_a_read_time_out_shorter_than_the_wait_ends_in_an_error(server, url, loader):
    token = token_for(loader)
    hasty = redis.Redis.from_url(url, socket_timeout=0.1, retry=Retry(NoBackoff(), 0))
    with pytest.raises(redis.TimeoutError):
        hasty.execute_command("CACHE.FETCH", "k", "WAIT", WAIT_MS)
    eventually(lambda: waiters(server) == 0)
    patient = pools.waiting(url, "shop", 1, 100)
    assert patient.execute_command("CACHE.FETCH", "k", "WAIT", 100) == [b"BUSY", None, None]
    fill(loader, token)


def test_a_retry_of_the_client_waits_for_the_lease_that_was_lost(server, url, loader):
    """Why nothing is retried: the first attempt may have been elected. Here its reply is lost to the time-out."""
    token_for(loader)
    hasty = redis.Redis.from_url(url, socket_timeout=0.3, retry=Retry(NoBackoff(), 1))
    with pytest.raises(redis.TimeoutError):
        hasty.execute_command("CACHE.FETCH", "k", "WAIT", WAIT_MS)
    assert server.info("commandstats")["cmdstat_cache.fetch"]["calls"] >= 3, (
        "once by the loader, twice by the hasty one"
    )


def test_an_owner_may_ask_again_after_a_lost_reply(url):
    client = pools.answering(url, "shop")
    token = client.execute_command("LOCK.ACQUIRE", "lock", "attempt-1", "EX", 60)
    assert client.execute_command("LOCK.ACQUIRE", "lock", "attempt-1", "EX", 60) == token


def test_what_redis_py_does_by_itself():
    client = redis.Redis()
    options = client.get_connection_kwargs()
    assert (client.connection_pool.max_connections, options["socket_timeout"], options["retry"].get_retries()) == (
        100,
        5,
        10,
    )


# Pipelines


def test_in_a_transaction_nobody_waits(loader):
    token_for(loader)
    with loader.pipeline(transaction=True) as pipe:
        pipe.execute_command("CACHE.FETCH", "k", "WAIT", WAIT_MS)
        assert pipe.execute() == [[b"BUSY", None, None]]


def test_in_a_pipeline_a_wait_holds_up_all_behind_it(server, url, loader, threads):
    waiting = pools.waiting(url, "shop", 1, WAIT_MS)
    token = token_for(loader)

    def pipeline() -> list:
        with waiting.pipeline(transaction=False) as pipe:
            pipe.execute_command("CACHE.FETCH", "k", "WAIT", WAIT_MS)
            pipe.set("behind", "it")
            return pipe.execute()

    call = threads.submit(pipeline)
    eventually(lambda: waiters(server) == 1)
    assert not loader.exists("behind")
    fill(loader, token)
    assert call.result(SECONDS) == [[b"HIT", b"v", None], True]


# SESSION


def test_a_session_lock_goes_with_its_connection(server, url, loader, threads):
    with pools.held(url, "lock", 600, WAIT_MS) as (token, client):
        assert client.execute_command("LOCK.VALIDATE", "lock", token) == 1
        (mine,) = [each for each in loader.client_list() if each["name"] == "lock:lock"]
        assert "e" in mine["flags"], "it is not evicted"
        command = ("LOCK.ACQUIRE", "lock", "next", "EX", 600, "WAIT", WAIT_MS)
        following = threads.submit(server.client().execute_command, *command)
        eventually(lambda: lock_waiters(server) == 1)
        loader.client_kill_filter(_id=mine["id"])  # As when the process dies.
        assert following.result(SECONDS) > token
        with pytest.raises(redis.ConnectionError):
            client.execute_command("LOCK.VALIDATE", "lock", token)
    assert loader.execute_command("LOCK.RELEASE", "lock", "next") == 1


def test_leaving_the_block_releases_it_also_by_an_error(url, loader):
    with pytest.raises(ZeroDivisionError), pools.held(url, "lock", 600, WAIT_MS):
        assert 1 / 0
    eventually(lambda: not loader.exists("lock"))
    with pools.held(url, "lock", 600, WAIT_MS), pytest.raises(pools.NotHeld), pools.held(url, "lock", 600, 1):
        raise AssertionError("somebody has it")


def test_on_a_connection_of_a_pool_it_goes_when_the_pool_likes(url, loader):
    """What the page warns of: the owner did nothing, and is not told."""
    shared = pools.answering(url, "shop")
    assert shared.execute_command("LOCK.ACQUIRE", "lock", "me", "EX", 600, "SESSION")
    assert loader.exists("lock")
    shared.connection_pool.disconnect()
    eventually(lambda: not loader.exists("lock"))


# Names, reconnects, protocols


def test_connections_tell_who_they_are(url, loader):
    pools.answering(url, "shop").ping()
    pools.waiting(url, "shop", 1, 1).ping()
    assert {"shop:answering", "shop:waiting"} <= {each["name"] for each in loader.client_list()}


def test_after_a_restart_the_pools_go_on(make_server):
    server = make_server()
    client = pools.answering(f"redis://127.0.0.1:{server.port}", "shop")
    assert client.ping()
    server.restart()
    assert eventually(lambda: works(client))
    assert client.ping()


def works(client: redis.Redis) -> bool:
    try:
        return client.ping()
    except redis.ConnectionError:
        return False


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_say_the_same(server, protocol):
    client = server.client(protocol)
    fill(client, token_for(client))
    assert client.execute_command("CACHE.FETCH", "k") == [b"HIT", b"v", None]
    info = client.execute_command("CACHE.TAGINFO", "t")
    assert type(info) is (dict if protocol == 3 else list)


# asyncio


def test_many_wait_in_one_thread_and_one_fill_answers_them(server, url, loader):
    callers = 200
    token = token_for(loader)

    async def main() -> list:
        client = aio.waiting(url, "shop", callers, WAIT_MS)
        calls = [asyncio.create_task(aio.fetch(client, "k", WAIT_MS)) for _ in range(callers)]
        await until(lambda: waiters(server) == callers)
        fill(loader, token)
        answers = await asyncio.wait_for(asyncio.gather(*calls), SECONDS)
        await client.aclose()
        return answers

    assert asyncio.run(main()) == [[b"HIT", b"v", None]] * callers


def test_a_call_that_is_cancelled_leaves_the_queue_and_no_answer_for_the_next(server, url, loader):
    token_for(loader)

    async def main() -> None:
        client = aio.waiting(url, "shop", 1, WAIT_MS)
        call = asyncio.create_task(aio.fetch(client, "k", WAIT_MS))
        await until(lambda: waiters(server) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: waiters(server) == 0)
        assert await client.echo("mine") == b"mine"
        await client.aclose()

    asyncio.run(main())


async def until(condition) -> None:
    await asyncio.to_thread(eventually, condition, SECONDS)
