"""What examples/dashboard tells its page is what the server tells, is bounded, and is only read."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator

import pytest
from dashboard import EXAMPLE, Dashboard, limits
from hypothesis import given
from hypothesis import strategies as st
from locks import Waiters
from raw_client import fields
from servers import Server, eventually

LIMITS = limits(("api:*", "10 EX 600 GCRA 5 EX 600 BURST 8 FIXED 1000 EX 86400"), ("export", "LIMIT 3"))


@pytest.fixture
def show(tmp_path) -> Iterator[Callable[..., Dashboard]]:
    """show(server, option, ...) -> a dashboard of that server."""
    with contextlib.ExitStack() as stack:

        def start(server: Server, *options: str, login: str = "") -> Dashboard:
            dashboard = Dashboard(server, tmp_path / "dashboard.log", *options, login=login)
            stack.callback(dashboard.close)
            return dashboard

        yield start


@pytest.fixture(scope="module")
def _shared_dashboard(_shared_server, tmp_path_factory) -> Iterator[Dashboard]:
    with contextlib.closing(
        Dashboard(_shared_server.get(), tmp_path_factory.mktemp("page") / "log", *LIMITS)
    ) as shared:
        yield shared


@pytest.fixture
def dashboard(server, _shared_dashboard) -> Dashboard:
    """It may still tell for a second what the test before has left."""
    return _shared_dashboard


@pytest.fixture
def modules(monkeypatch) -> None:
    """The program's own modules can be imported."""
    monkeypatch.syspath_prepend(EXAMPLE)


def asked(server: Server, *words: str) -> dict:
    return fields(server.client(decode=True).execute_command(*words))


def test_the_counters_are_those_of_info(server, dashboard):
    client = server.client()
    for number in range(40):
        client.execute_command("CACHE.SETTAGGED", f"k{number % 4}", "v", "EX", 600, "TAGS", 1, "t")
        client.execute_command("CACHE.GET", f"k{number}")
    client.execute_command("CACHE.FETCH", "k100")
    client.execute_command("CACHE.INVALIDATETAG", "t")
    told = {
        name.removeprefix("keyward_"): value for name, value in server.info("keyward").items() if "keyward_" in name
    }
    state = dashboard.once(lambda state: state["counters"] == told)
    assert state["counters"]["cache_leases"] == 1
    assert state["connected"]
    info = server.info()
    assert state["server"]["keys"] == client.dbsize()
    assert state["server"]["evicted_keys"] == info["evicted_keys"]
    assert state["server"]["name"] == ("valkey" if server.is_valkey else "redis")
    assert state["server"]["version"] == ".".join(map(str, server.version))


def test_the_hit_ratio_is_that_of_the_reads_it_saw(server, show):
    dashboard = show(server)
    dashboard.once(lambda state: len(state["history"]["unix_ms"]) >= 1)
    client = server.client()
    client.execute_command("CACHE.SET", "k", "v", "EX", 600)
    for key in ["k"] * 30 + ["nothing"] * 10:
        client.execute_command("CACHE.GET", key)
    history = dashboard.once(lambda state: state["history"]["hit_ratio_overall"] is not None)["history"]
    history = dashboard.once(lambda state: len(state["history"]["reads"]) > len(history["reads"]))["history"]
    assert history["hit_ratio_overall"] == 0.75
    assert sum(rate > 0 for rate in history["reads"]) in (1, 2)
    assert history["hit_ratio"][-1] == 0.75
    assert len(history["unix_ms"]) == len(history["hit_ratio"]) == len(history["commands"])


def test_a_lock_and_its_queue(server, dashboard):
    with Waiters(server) as waiters:
        token = waiters.acquire("ann")
        for owner in ("bob", "cleo", "dan"):
            waiters.wait(owner, *(["SHARED"] if owner == "cleo" else []))
        row = dashboard.row("locks", "lock", lambda row: row["waiting"] == 3)
        assert (row["mode"], row["permits"], row["token"]) == ("exclusive", 1, token)
        assert [(holder["owner"], holder["token"], holder["holds"]) for holder in row["holders"]] == [("ann", token, 1)]
        assert 0 < row["holders"][0]["ttl_ms"] <= 60_000
        assert [waiter["owner"] for waiter in row["waiters"]] == ["bob", "cleo", "dan"]
        assert [waiter["mode"] for waiter in row["waiters"]] == ["exclusive", "shared", "exclusive"]
        server.client().delete("lock")
        assert dashboard.row("locks", "lock", lambda row: row["waiting"] == 2)["holders"][0]["owner"] == "bob"
    server.client().flushall()
    dashboard.once(lambda state: state["locks"]["rows"] == [])


def test_what_is_left_of_a_limit_is_what_peek_says(server, dashboard):
    client = server.client()
    each = (("10", "EX", "600"), ("GCRA", "5", "EX", "600", "BURST", "8"), ("FIXED", "1000", "EX", "86400"))
    client.execute_command("RATELIMIT.CHECK", "api:ann", *(word for limit in each for word in limit), "COST", 3)
    row = dashboard.row("limiters", "api:ann")
    peeked = [client.execute_command("RATELIMIT.PEEK", "api:ann", *limit)[1:3] for limit in each]
    assert [[limit["limit"], limit["remaining"]] for limit in row["limits"]] == peeked == [[10, 7], [8, 5], [1000, 997]]
    client.execute_command("RATELIMIT.CHECK", "other", 10, "EX", 600)
    [limit] = dashboard.row("limiters", "other")["limits"]
    assert (limit["used"], limit["limit"], limit["remaining"]) == (1, None, None)
    client.execute_command("RATELIMIT.BAN", "api:ann", "EX", 600)
    assert 0 < dashboard.row("limiters", "api:ann", lambda row: row["banned_ms"])["banned_ms"] <= 600_000
    client.execute_command("RATELIMIT.RESET", "api:ann", "other")
    dashboard.once(lambda state: state["limiters"]["rows"] == [])


def test_slots_and_who_waits_for_one(server, dashboard):
    with Waiters(server) as waiters:
        for name in ("one", "two", "three"):
            waiters.call("RATELIMIT.ENTER", "export", name, "LIMIT", 3, "EX", 600)
        waiting = waiters.connect()
        waiting.send("RATELIMIT.ENTER", "export", "four", "LIMIT", 3, "EX", 600, "WAIT", 0)
        row = dashboard.row("slots", "export", lambda row: row["waiting"])
        told = asked(server, "RATELIMIT.INFO", "export")
        assert (row["in_use"], row["limit"]) == (told["in_use"], 3)
        assert [slot["id"] for slot in row["slots"]] == [name for name, *_ in told["slots"]]
        assert [waiter["id"] for waiter in row["waiters"]] == ["four"]


def test_tags_are_those_of_hot_keys_and_the_one_that_is_searched(server, show):
    dashboard = show(server)
    client = server.client()
    for number in range(30):
        client.execute_command("CACHE.SETTAGGED", f"k{number}", "v", "EX", 600, "TAGS", 2, "all", f"t{number % 3}")
    client.execute_command("CACHE.SETTAGGED", "cold", "v", "EX", 600, "TAGS", 1, "cold")
    client.execute_command("CACHE.INVALIDATE", "k0")
    client.execute_command("CACHE.INVALIDATETAG", "t1")
    for _ in range(7):
        client.execute_command("CACHE.GET", "k3")
    for tag in ("all", "t0"):
        assert dashboard.row("tags", tag) == {"tag": tag} | asked(server, "CACHE.TAGINFO", tag)
    state = dashboard.state("cold")
    assert [row["tag"] for row in state["tags"]["rows"] if row["tag"] == "cold"] == []
    found = {"tag": "cold", "some": ["cold"], "more": False, "problem": None}
    assert state["searched"] == found | asked(server, "CACHE.TAGINFO", "cold")
    assert state["hot"]["rows"][0] == {"key": "k3", "reads": 7}
    assert dashboard.state("all")["searched"]["more"]
    assert dashboard.state("nosuch")["searched"]["keys"] == 0


def test_a_queue(server, dashboard):
    client = server.client()
    for number in range(9):
        client.execute_command("WRITEBEHIND.INCRBY", "wb", f"k{number % 3}", 1)
    client.execute_command("WRITEBEHIND.CLAIM", "wb", "w", "COUNT", 2)
    row = dashboard.row("queues", "wb", lambda row: row["in_flight"])
    told = asked(server, "WRITEBEHIND.INFO", "wb")
    assert 0 < row.pop("oldest_ms") <= told.pop("oldest_ms")
    assert row == {"key": "wb"} | told
    assert (row["dirty"], row["in_flight"], row["coalesced"]) == (3, 2, 6)


def test_the_doctor_is_quoted(server, dashboard):
    doctor = dashboard.once(lambda state: state["doctor"])["doctor"]
    lines = server.client().execute_command("CACHE.DOCTOR").decode().splitlines()
    assert [finding["name"] for finding in doctor["findings"]] == [
        line[3:].partition(":")[0] for line in lines[1:] if line and not line.startswith(" ")
    ]
    complaints = [finding for finding in doctor["findings"] if finding["mark"] == "!!"]
    assert complaints
    assert all(finding["to_do"] for finding in complaints)
    assert str(len(complaints)) in doctor["summary"]


def test_a_look_costs_no_more_when_there_are_many(server, dashboard):
    client = server.client()
    with client.pipeline(transaction=False) as pipeline:
        for number in range(2500):
            pipeline.execute_command("RATELIMIT.CHECK", f"api:{number}", 10, "EX", 600)
        pipeline.execute()
    state = dashboard.once(lambda state: state["limiters"]["total"] >= 2500)
    assert 40 <= len(state["limiters"]["rows"]) <= 200
    assert state["cost"]["commands"] <= 1 + 4 + 4 * 40 + 1 + 24 + 40 + 1
    assert state["cost"]["keys_a_step"] == 1000
    assert state["cost"]["every_ms"] >= 1000
    client.flushall()
    dashboard.once(lambda state: state["limiters"] == {"rows": [], "total": 0})


def test_the_cost_is_what_the_server_was_sent(make_server, modules):
    from watcher import Watcher

    server = make_server()
    client = server.client()
    watcher = Watcher(f"redis://127.0.0.1:{server.port}/0", [])
    watcher.refresh()  # connects

    def cost() -> tuple[int, int]:
        before = client.info("stats")["total_commands_processed"]
        watcher.refresh()
        after = client.info("stats")["total_commands_processed"]
        return after - before - 1, watcher.state()["cost"]["commands"]

    assert cost() == (1, 1), "nobody has asked: the counters only"
    watcher.state()
    watcher.refresh()  # asks the doctor, whose own commands the server counts too
    client.execute_command("LOCK.ACQUIRE", "lock", "ann", "EX", 600)
    sent, told = cost()
    assert sent == told > 1


def test_it_only_reads(make_server, show):
    """A user with the rights that the page about it names is enough. What is refused is told where it is missing."""
    [rights] = re.findall(r"ACL SETUSER page .*?(%R~.*)", (EXAMPLE / "README.md").read_text())
    server = make_server()
    client = server.client()
    client.execute_command("ACL", "SETUSER", "page", "on", ">secret", *rights.split())
    client.execute_command("LOCK.ACQUIRE", "lock", "ann", "EX", 600)
    client.execute_command("WRITEBEHIND.SET", "wb", "k", "v")
    client.execute_command("RATELIMIT.CHECK", "api", 10, "EX", 600)
    client.execute_command("RATELIMIT.ENTER", "export", "one", "LIMIT", 3, "EX", 600)
    client.execute_command("CACHE.SETTAGGED", "k2", "v", "EX", 600, "TAGS", 1, "t")
    client.execute_command("CACHE.GET", "k2")
    dashboard = show(server, login="page:secret@")
    state = dashboard.once(lambda state: state["tags"]["rows"], tag="t")
    parts = ("locks", "queues", "limiters", "slots", "hot", "tags")
    assert [len(state[part]["rows"]) for part in parts] == [1] * len(parts)
    assert state["doctor"]
    assert state["refused"] == {}
    assert state["searched"]["problem"] is None
    assert "secret" not in json.dumps(state)
    client.execute_command("ACL", "SETUSER", "page", "-lock.info", "-cache.taginfo")
    state = dashboard.once(lambda state: set(state["refused"]) == {"locks", "tags"}, tag="t")
    assert "permissions" in state["refused"]["locks"]
    assert "permissions" in state["searched"]["problem"]


def test_without_the_module(make_server, show):
    dashboard = show(make_server(module=False))
    state = eventually(lambda: (state := dashboard.state())["problem"] != "not asked yet" and state)
    assert not state["connected"]
    assert state["problem"] == "this server has not loaded Keyward"


def test_a_server_that_restarts(make_server, show):
    server = make_server()
    dashboard = show(server)
    server.client().execute_command("LOCK.ACQUIRE", "lock", "ann", "EX", 600)
    dashboard.row("locks", "lock")
    server.stop()
    state = dashboard.once(lambda state: not state["connected"])
    assert state["problem"]
    assert state["away_since_ms"] <= state["unix_ms"]
    server.start()
    state = dashboard.once(lambda state: state["connected"] and state["locks"]["rows"] == [])
    assert state["away_since_ms"] is None
    assert None in state["history"]["reads"], "the line has a gap"


def test_who_may_ask_and_for_what(dashboard):
    for path, kind in (("/", "text/html"), ("/dashboard.js", "text/javascript"), ("/dashboard.css", "text/css")):
        status, headers, body = dashboard.get(path)
        assert (status, headers["Content-Type"].partition(";")[0], bool(body)) == (200, kind, True)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    for path in ("/nothing", "/../dashboard.py", "/page/index.html", "//dashboard.py"):
        assert dashboard.get(path)[0] == 404
    assert dashboard.get("/state", method="POST")[0] == 501
    assert dashboard.get("/state", Host=f"localhost:{dashboard.port}")[0] == 200
    # A page anywhere could give its own name the address 127.0.0.1, and would read this one.
    for host in ("example.com", "127.0.0.1.example.com", f"example.com:{dashboard.port}", "", "[", "a]"):
        assert dashboard.get("/state", Host=host)[0] == 421


@pytest.mark.parametrize(
    "words", ["", "10", "10 EX", "x EX 60", "0 EX 60", "10 EX 60 BURST", "10 EX 60 nonsense", "LIMIT x"]
)
def test_a_limit_that_is_none(modules, words):
    import limits as limiting

    with pytest.raises(ValueError, match=r"\w"):
        limiting.parse("api:*", words)


@given(st.binary(max_size=60))
def test_a_name_on_the_page_stands_for_one_key(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        from names import shown, typed

    text = shown(name, 1000)
    assert text.isprintable()
    assert typed(text) == name


def test_a_busy_server_is_asked_less_often(modules):
    from watcher import pause

    assert pause(0.001) == 1
    assert pause(0.5) == 10
