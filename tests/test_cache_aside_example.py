"""examples/cache_aside keeps what it promises, in Python and in JavaScript alike, against a real server."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

import pytest
from cache_aside import EXAMPLE, Callers, Failed, NodeCallers, PythonCallers
from servers import REPOSITORY, Server, eventually

STAMPEDE = 50
# Calls that are under way get what they need within this, or hang.
SECONDS = 30


class Origin:
    """Rows that take as long to read as the test likes: what is read is handed out when the gate opens."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.failure: str | None = None
        self.asked = 0
        self._counting = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()

    def load(self, key: str) -> bytes | None:
        row = self.rows.get(key)
        with self._counting:
            self.asked += 1
        assert self._gate.wait(SECONDS)
        if self.failure is not None:
            raise ConnectionError(self.failure)
        return row

    def hold(self) -> None:
        self._gate.clear()

    def go(self) -> None:
        self._gate.set()


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    yield origin
    origin.go()  # Loads that a failed test left waiting.


@pytest.fixture(params=["python", "node"])
def call(request: pytest.FixtureRequest, origin: Origin) -> Iterator[Callable[[Server], Callers]]:
    """call(server) -> callers of that server, in the language of the test."""
    if request.param == "node":
        request.getfixturevalue("node_modules")(EXAMPLE)
    started: list[Callers] = []

    def start(server: Server) -> Callers:
        language = {"python": PythonCallers, "node": NodeCallers}[request.param]
        started.append(language(f"redis://127.0.0.1:{server.port}/0", origin.load))
        return started[-1]

    yield start
    origin.go()
    for callers in started:
        callers.close()


@pytest.fixture
def callers(call: Callable[[Server], Callers], server: Server) -> Callers:
    return call(server)


def waiting(server: Server) -> int:
    return server.info("keyward_cache")["keyward_cache_waiters"]


def get(callers: Callers, key: str, *tags: str) -> bytes | None:
    return callers.get(key, tags).result(SECONDS)


def failure(callers: Callers, key: str) -> Failed:
    with pytest.raises(Failed) as raised:
        get(callers, key)
    return raised.value


def test_a_stampede_asks_the_origin_once(server, callers, origin):
    row = bytes(range(256))
    origin.rows["k"] = row
    origin.hold()
    calls = [callers.get("k") for _ in range(STAMPEDE)]
    eventually(lambda: waiting(server) == STAMPEDE - 1)
    origin.go()
    assert {call.result(SECONDS) for call in calls} == {row}
    assert origin.asked == 1
    assert get(callers, "k") == row
    assert origin.asked == 1


@pytest.mark.parametrize("update", [("CACHE.INVALIDATE", "k"), ("CACHE.INVALIDATETAG", "rows")], ids=["key", "tag"])
def test_what_was_read_before_an_update_is_not_cached(server, callers, origin, update):
    origin.rows["k"] = b"old"
    origin.hold()
    early = callers.get("k", ["rows"])
    eventually(lambda: origin.asked == 1)
    origin.rows["k"] = b"new"
    server.client().execute_command(*update)
    origin.go()
    assert early.result(SECONDS) == b"old", "it asked before the update"
    assert server.client().get("k") is None
    assert get(callers, "k", "rows") == b"new"
    assert origin.asked == 2


def test_the_tags_are_kept(server, callers, origin):
    origin.rows["k"] = b"old"
    assert get(callers, "k", "rows", "k-rows") == b"old"
    origin.rows["k"] = b"new"
    assert server.client().execute_command("CACHE.INVALIDATETAG", "k-rows") == 1
    assert get(callers, "k", "rows", "k-rows") == b"new"


def test_a_failed_load_reaches_the_callers_and_spares_the_origin(server, callers, origin):
    origin.failure = "database is down"
    origin.hold()
    calls = [callers.get("k") for _ in range(10)]
    eventually(lambda: waiting(server) == 9)
    origin.go()
    failures = [call.exception(SECONDS) for call in calls]
    assert [failure.name for failure in failures].count("OriginDown") == 9
    assert all("database is down" in failure.message for failure in failures)
    assert failure(callers, "k").name == "OriginDown"
    assert origin.asked == 1


def test_a_message_of_any_length_and_none_is_passed_on(callers, origin):
    origin.failure = "ä" * 2000
    assert origin.failure in failure(callers, "long").message, "the one who asked gets all of it"
    told = failure(callers, "long")
    assert told.name == "OriginDown"
    assert "ä" * 500 in told.message
    origin.failure = ""
    assert failure(callers, "empty").name != "OriginDown"
    assert failure(callers, "empty").name == "OriginDown"
    assert origin.asked == 2


def test_the_stale_value_is_served_while_one_refreshes(server, callers, origin):
    origin.rows["k"] = b"old"
    assert get(callers, "k") == b"old"
    server.client().execute_command("CACHE.STALE", "k")
    origin.rows["k"] = b"new"
    origin.hold()
    refresher = callers.get("k")
    eventually(lambda: origin.asked == 2)
    assert {get(callers, "k") for _ in range(5)} == {b"old"}
    origin.go()
    assert refresher.result(SECONDS) == b"new"
    assert get(callers, "k") == b"new"
    assert origin.asked == 2


def test_the_stale_value_is_served_when_the_refresh_fails(server, callers, origin):
    origin.rows["k"] = b"old"
    assert get(callers, "k") == b"old"
    server.client().execute_command("CACHE.STALE", "k")
    origin.failure = "database is down"
    assert get(callers, "k") == b"old", "the one who tried"
    assert get(callers, "k") == b"old", "the next one"
    assert origin.asked == 2


def test_a_missing_row_is_remembered_until_its_tag_is_invalidated(server, callers, origin):
    assert get(callers, "k", "rows") is None
    assert get(callers, "k", "rows") is None
    assert origin.asked == 1
    origin.rows["k"] = b"row"
    server.client().execute_command("CACHE.INVALIDATETAG", "rows")
    assert get(callers, "k", "rows") == b"row"


def test_who_waits_in_vain_is_answered_by_the_origin(make_server, call, origin):
    """Too many wait: it takes no time, and is answered as a wait that runs out."""
    server = make_server(args=["waiters-per-key-max", "0"])
    callers = call(server)
    origin.rows["k"] = b"row"
    origin.hold()
    calls = [callers.get("k") for _ in range(2)]
    eventually(lambda: origin.asked == 2)
    origin.go()
    assert {call.result(SECONDS) for call in calls} == {b"row"}
    assert server.client().info("commandstats")["cmdstat_cache.fill"]["calls"] == 1


def test_beyond_the_most_leases_it_loads_and_does_not_fill(make_server, call, origin, caplog, capfd):
    """It does not even try: a client that was handed no token for one would warn."""
    callers = call(make_server(args=["leases-max", "0"]))
    origin.rows["k"] = b"row"
    assert get(callers, "k") == b"row"
    assert get(callers, "missing") is None
    origin.failure = "database is down"
    assert failure(callers, "k").name != "OriginDown"
    assert origin.asked == 3
    assert not caplog.records
    assert not capfd.readouterr().err


def test_what_was_loaded_is_answered_although_memory_is_full(make_server, call, origin):
    server = make_server()
    callers = call(server)
    origin.rows["k"] = b"row"
    origin.hold()
    early = callers.get("k")
    eventually(lambda: origin.asked == 1)
    server.client().config_set("maxmemory", 1)
    origin.go()
    assert early.result(SECONDS) == b"row"
    assert server.client().get("k") is None


def test_what_was_loaded_is_answered_although_the_server_has_gone(make_server, call, origin):
    server = make_server()
    callers = call(server)
    origin.rows["k"] = b"row"
    origin.hold()
    early = callers.get("k")
    eventually(lambda: origin.asked == 1)
    server.stop()
    origin.go()
    assert early.result(SECONDS) == b"row"


def test_without_a_server_the_error_comes_through_and_the_origin_is_not_asked(make_server, call, origin):
    server = make_server()
    callers = call(server)
    origin.rows["k"] = b"row"
    assert get(callers, "k") == b"row"
    server.stop()
    assert failure(callers, "other").name != "OriginDown"
    assert origin.asked == 1
    server.start()
    assert eventually(lambda: not callers.get("k").exception(SECONDS))


def test_the_page_shows_the_function_of_the_example():
    page = (REPOSITORY / "docs" / "single-flight.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert blocks[0] in (EXAMPLE / "cache_aside.py").read_text()
    assert "def cached(" in blocks[0]
    assert "def settle(" in blocks[0]


def test_the_three_say_the_same_names_in_the_same_order():
    """They are there to be read side by side."""
    commands = {
        file.suffix: re.findall(r'"(CACHE\.\w+|HIT|STALE|NONE|ERROR|BUSY|REFRESH)"', file.read_text())
        for file in sorted(EXAMPLE.glob("cache_aside.*"))
    }
    assert sorted(commands) == [".go", ".mjs", ".py"]
    assert commands[".py"] == commands[".mjs"] == commands[".go"]
