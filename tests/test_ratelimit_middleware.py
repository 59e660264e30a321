"""examples/ratelimit limits as its README says, in Python and in JavaScript alike: real requests to real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from math import ceil

import pytest
from ratelimit_web import EXAMPLE, SECONDS, Response, Web, receive, send
from servers import Server, eventually, free_port

ADDRESS = "ratelimit:address:127.0.0.1"
# Long enough that nothing leaves a window of it during a test.
HOUR = 3600


def limit(count: int, seconds: int = HOUR, name: str = "default", **more: object) -> dict:
    return {"name": name, "count": count, "seconds": seconds, **more}


@pytest.fixture(params=["python", "node"])
def serve(request: pytest.FixtureRequest, tmp_path) -> Iterator[Callable[..., Web]]:
    """serve(server, limit, ...) -> the application in the language of the test, before that server.

    It waits for Redis as long as for anything: a machine that is busy is not one whose Redis is down.
    """
    if request.param == "node":
        request.getfixturevalue("node_modules")(EXAMPLE)
    started: list[Web] = []

    def start(server: Server, *limits: dict, timeout_ms: int = SECONDS * 1000, fail_open: bool = True) -> Web:
        log = tmp_path / f"web-{len(started)}.log"
        started.append(Web(request.param, server.port, log, limits, timeout_ms, {"fail_open": fail_open}))
        return started[-1]

    yield start
    with contextlib.ExitStack() as stack:
        for web in started:
            stack.callback(web.close)


def peek(server: Server, *arguments: object, key: str = ADDRESS) -> list[int]:
    return server.client().execute_command("RATELIMIT.PEEK", key, *arguments)


def is_problem(response: Response, status: int) -> bool:
    kind = response.headers["content-type"].partition(";")[0]
    return (response.status, response.body["status"], kind) == (status, status, "application/problem+json")


def is_not_counted(response: Response) -> bool:
    return response.status == 200 and not any("ratelimit" in name for name in response.headers)


# What clients are told


def test_the_limit_counts_down_and_then_answers_429(server, serve):
    web = serve(server, limit(3, 60))
    for left in (2, 1, 0):
        response = web.ask()
        assert response.status == 200
        assert response.body == {"path": "/items"}
        assert response.field("RateLimit-Policy") == [("default", {"q": 3, "w": 60})]
        [(name, parameters)] = response.field("RateLimit")
        assert (name, parameters["r"]) == ("default", left)
        assert 1 <= parameters["t"] <= 61
        assert "retry-after" not in response.headers
    for _ in range(3):
        response = web.ask()
        assert is_problem(response, 429)
        assert response.body["type"].endswith("#quota-exceeded")
        assert response.body["violated-policies"] == ["default"]
        assert response.field("RateLimit-Policy") == [("default", {"q": 3, "w": 60})]
        [(name, parameters)] = response.field("RateLimit")
        assert (name, parameters["r"]) == ("default", 0)
        assert 1 <= parameters["t"] <= int(response.headers["retry-after"]) <= 61


@pytest.mark.parametrize(("method", "cost"), [("GET", 1), ("POST", 10)])
def test_the_seconds_are_those_of_the_server_rounded_up(server, serve, method, cost):
    web = serve(server, limit(12, 60))
    for _ in range(12):
        web.ask()
    before = peek(server, 12, "EX", 60, "COST", cost)
    response = web.ask(method)
    after = peek(server, 12, "EX", 60, "COST", cost)
    assert response.status == 429
    assert ceil(after[3] / 1000) <= int(response.headers["retry-after"]) <= ceil(before[3] / 1000)
    [(_, parameters)] = response.field("RateLimit")
    assert ceil(after[4] / 1000) <= parameters["t"] <= ceil(before[4] / 1000)


def test_who_waits_as_long_as_it_was_told_is_admitted(server, serve):
    web = serve(server, limit(1, 1))

    def denied() -> Response | None:
        response = web.ask()
        return response if response.status == 429 else None

    def clock() -> float:
        seconds, microseconds = server.client().time()
        return seconds + microseconds / 1e6

    wait = int(eventually(denied).headers["retry-after"])
    assert wait in (1, 2), "the window, and one tick of it at most"
    back = clock() + wait
    eventually(lambda: clock() >= back)
    assert web.ask().status == 200


def test_a_cost_takes_several_units_or_none(server, serve):
    web = serve(server, limit(25))
    assert [web.ask("POST").remaining for _ in range(2)] == [15, 5]
    denied = web.ask("POST")
    assert denied.status == 429
    assert denied.remaining == 5
    assert web.ask().remaining == 4


def test_a_cost_that_never_fits_is_413_with_no_time_to_come_back(server, serve):
    web = serve(server, limit(9))
    response = web.ask("POST")
    assert is_problem(response, 413)
    assert response.field("RateLimit-Policy") == [("default", {"q": 9, "w": HOUR})]
    assert "retry-after" not in response.headers
    assert web.ask().remaining == 8


# Whom it counts


def test_of_many_at_once_exactly_the_limit_is_admitted(server, serve):
    """More than the connections of a pool, and by two processes."""
    webs = [serve(server, limit(150)) for _ in range(2)]
    connections = [send(web.port) for _ in range(150) for web in webs]
    responses = [receive(connection) for connection in connections]
    assert Counter(response.status for response in responses) == {200: 150, 429: 150}
    assert sorted(response.remaining for response in responses if response.status == 200) == list(range(150))


def test_customers_and_addresses_are_apart(server, serve):
    web = serve(server, limit(2))
    alice, bob = {"x_api_key": "key-of-alice"}, {"x_api_key": "key-of-bob"}
    near, far = {"x_forwarded_for": "192.0.2.1"}, {"x_forwarded_for": "192.0.2.2"}
    for who in (alice, bob, near, far, {}):
        assert [web.ask(**who).status for _ in range(3)] == [200, 200, 429]
    assert web.ask(**alice, **near).status == 429, "one customer, wherever it calls from"
    assert web.ask(x_api_key="invented").status == 429, "a key nobody knows is no customer"


def test_an_ipv6_network_is_one_client(server, serve):
    web = serve(server, limit(100))

    def remaining(address: str) -> int:
        return web.ask(x_forwarded_for=address).remaining

    same = ["2001:db8:1:2::1", "2001:db8:1:2:ffff::", "2001:db8:1:2:3:4:5:6", "2001:0DB8:1:2::"]
    assert [remaining(address) for address in same] == [99, 98, 97, 96]
    assert remaining("2001:db8:1:3::1") == 99
    assert [remaining(address) for address in ("::1", "::1:2")] == [99, 98]
    assert remaining("192.0.2.1") == 99
    assert remaining("::ffff:192.0.2.1") == 98


def test_what_has_no_key_is_not_limited(server, serve):
    web = serve(server, limit(1))
    assert all(is_not_counted(web.ask(path="/health")) for _ in range(3))
    assert not server.client().keys()


def test_what_the_application_refuses_counts_as_well(server, serve):
    web = serve(server, limit(2))
    for left in (1, 0):
        response = web.ask(path="/nowhere")
        assert (response.status, response.remaining) == (404, left)
    assert web.ask(path="/nowhere").status == 429


# Without an answer from Redis


def test_without_redis_requests_pass_and_it_is_logged(make_server, serve):
    server = make_server()
    web = serve(server, limit(1))
    assert [web.ask().status for _ in range(2)] == [200, 429]
    server.stop()
    assert is_not_counted(web.ask())
    assert "RATELIMIT.CHECK: " in web.log()
    server.start()
    eventually(lambda: web.ask().status == 429)


def test_it_starts_without_redis(make_server, serve):
    server = make_server()
    server.stop()
    web = serve(server, limit(1), timeout_ms=500)
    assert is_not_counted(web.ask())
    server.start()
    eventually(lambda: web.ask().status == 429)


def test_a_redis_that_is_silent_is_not_waited_for(make_server, serve):
    server = make_server()
    web = serve(server, limit(1), timeout_ms=500)
    eventually(lambda: web.ask().status == 429)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert is_not_counted(web.ask())
        assert "RATELIMIT.CHECK: " in web.log()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    eventually(lambda: web.ask().status == 429)


def test_when_memory_is_full_newcomers_pass_and_the_others_are_limited(make_server, serve):
    server = make_server()
    web = serve(server, limit(2))
    assert web.ask().remaining == 1
    server.client().config_set("maxmemory", 1)
    assert is_not_counted(web.ask(x_api_key="key-of-alice"))
    assert "RATELIMIT.CHECK: " in web.log()
    assert [web.ask().status for _ in range(2)] == [200, 429]


def test_an_error_reply_lets_the_request_pass(server, serve):
    web = serve(server, limit(1))
    server.client().set(ADDRESS, "something else")
    assert is_not_counted(web.ask())
    assert "WRONGTYPE" in web.log()


def test_it_may_be_closed_instead(make_server, serve):
    server = make_server()
    web = serve(server, limit(1), fail_open=False)
    assert web.ask().status == 200
    server.stop()
    assert is_problem(web.ask(), 503)
    assert web.ask(path="/health").status == 200
    server.start()
    eventually(lambda: web.ask().status == 429)


# As the README starts it


@pytest.mark.parametrize("language", ["python", "node"])
def test_the_commands_of_the_readme(server, language, node_modules):
    command = {"python": "uvicorn --factory app:create_app --port 8000", "node": "PORT=8000 node app.mjs"}[language]
    assert f"    {command}\n" in (EXAMPLE / "README.md").read_text()
    port = free_port()
    environment = {**os.environ, "REDIS_URL": f"redis://127.0.0.1:{server.port}", "PORT": str(port)}
    if language == "python":
        words = [sys.executable, "-m", *command.replace("8000", str(port)).split()]
    else:
        node_modules(EXAMPLE)
        words = command.split()[1:]
    with subprocess.Popen(words, cwd=EXAMPLE, env=environment) as process:
        try:

            def first() -> Response | None:
                with contextlib.suppress(ConnectionRefusedError):
                    return receive(send(port, "POST"))
                return None

            assert eventually(first, SECONDS).field("RateLimit-Policy") == [("minute", {"q": 100, "w": 60})]
            assert [receive(send(port, "POST")).status for _ in range(10)] == [200] * 9 + [429]
        finally:
            process.terminate()


# Several limits, other algorithms, bans


def test_of_several_limits_the_one_that_decides_is_told(server, serve):
    web = serve(server, limit(5, 60, "minute"), limit(3, HOUR, "hour"))
    both = [("minute", {"q": 5, "w": 60}), ("hour", {"q": 3, "w": HOUR})]
    for left in (2, 1, 0):
        response = web.ask()
        assert response.status == 200
        assert response.field("RateLimit-Policy") == both
        [(name, parameters)] = response.field("RateLimit")
        assert (name, parameters["r"]) == ("hour", left)
    question = (5, "EX", 60, 3, "EX", HOUR)
    before = peek(server, *question)
    response = web.ask()
    after = peek(server, *question)
    assert response.status == 429
    assert response.field("RateLimit-Policy") == both
    assert response.field("RateLimit")[0][0] == "hour"
    assert response.body["violated-policies"] == ["hour"]
    assert ceil(after[3] / 1000) <= int(response.headers["retry-after"]) <= ceil(before[3] / 1000)
    assert peek(server, 5, "EX", 60)[2] == 2, "what one denies no other is charged for"


def test_gcra_admits_its_burst(server, serve):
    web = serve(server, limit(10, HOUR, "smooth", algorithm="GCRA", burst=12))
    responses = [web.ask() for _ in range(13)]
    assert [response.status for response in responses] == [200] * 12 + [429]
    assert [response.remaining for response in responses] == [*reversed(range(12)), 0]
    assert responses[0].field("RateLimit-Policy") == [("smooth", {"q": 10, "w": HOUR})]


def test_who_is_banned_is_told_how_long_and_no_limit(server, serve):
    web = serve(server, limit(3))
    server.client().execute_command("RATELIMIT.BAN", ADDRESS, "EX", 30)
    response = web.ask()
    assert is_problem(response, 429)
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert "ratelimit" not in response.headers
    assert response.body["violated-policies"] == []
    assert response.field("RateLimit-Policy") == [("default", {"q": 3, "w": HOUR})]
