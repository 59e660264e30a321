"""The demo, small: real flights, every answer checked against the database by the demo itself."""

import re
import subprocess
import sys

import pytest
from servers import REPOSITORY

DEMO = REPOSITORY / "examples" / "demo" / "run.py"


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, DEMO, *options], capture_output=True, text=True, timeout=280)


def rows(output: str, columns: int = 2) -> dict[str, tuple[str, ...]]:
    """The table of that many columns: name of a row -> what it says with Keyward, without; or with, by lock, without."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines())
    return {cells[0]: tuple(cells[1:]) for cells in lines if len(cells) == columns + 1}


def test_no_answer_is_stale_although_the_server_evicts(make_server):
    """A tag whose keys are evicted and filled again still reaches every one of them."""
    server = make_server(config=["maxmemory-policy allkeys-lru"])
    client = server.client()
    # What no eviction frees, half of so small a memory: a histogram for each command, and why keys went.
    client.config_set("latency-tracking", "no")
    client.config_set("keyward.explain-history-max", 0)
    # Half of what the pages would need, wherever this server starts from.
    client.config_set("maxmemory", server.info("memory")["used_memory"] + 800_000)
    result = run_demo("--requests", "2000", "--url", f"redis://127.0.0.1:{server.port}/0")
    assert result.returncode == 0, result.stdout + result.stderr
    table = rows(result.stdout)
    assert table["STALE ANSWERS"][0] == "0"
    assert table["nightly job: nights / runs"][0] == "7 / 7"
    assert table["late writes refused"][0] == "1"
    assert table["keys invalidated by tag"][0] != "0"
    assert table["keys evicted"][0] != "0"
    assert table["requests limited"][0] != "0"
    assert server.client().dbsize() == 0, "it leaves the database as it found it"


@pytest.mark.timeout(300)  # a hundred queries at once, on whatever machine
def test_the_demo_starts_its_own_server():
    result = run_demo("--requests", "2500")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every answer was right" in result.stdout
    stampede = rows(result.stdout, columns=3)
    with_keyward, lock_and_poll, unprotected = range(3)
    assert stampede["queries"][with_keyward] == "1"
    assert stampede["queries"][unprotected] == "100"
    assert stampede["WRONG ANSWERS"] == ("0", "0", "0")
    commands = [int(cell.replace(",", "")) for cell in stampede["commands sent by the callers"]]
    assert commands[with_keyward] == 101, "everybody's FETCH and one FILL"
    assert commands[unprotected] == 200, "everybody's GET and SETEX"
    assert commands[lock_and_poll] > 200, "everybody's GET, SET NX, and at least one of them polled"
    counters, pages = rows(result.stdout, columns=3), rows(result.stdout)
    with_keyward, dirty_set, at_once = range(3)
    assert counters["workers that died"] == ("4", "4", "0")
    assert counters["WRONG COUNTERS"][with_keyward] == counters["WRONG COUNTERS"][at_once] == "0"
    assert counters["WRONG COUNTERS"][dirty_set] != "0"
    assert counters["rows sent to the database"][at_once] == counters["views"][at_once]
    assert pages["WRONG PAGES"] == ("0", "0")
    cold, warmed = (float(share.rstrip("%")) for share in pages["found in the cache"])
    assert warmed > cold


def test_a_database_in_use_is_left_alone(server):
    client = server.client()
    client.set("k", "v")
    result = run_demo("--url", f"redis://127.0.0.1:{server.port}/0")
    assert result.returncode != 0
    assert "is not empty" in result.stderr
    assert client.get("k") == b"v"
