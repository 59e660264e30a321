"""The demo, small: real flights, every answer checked against the database by the demo itself."""

import re
import subprocess
import sys

from servers import REPOSITORY

DEMO = REPOSITORY / "examples" / "demo" / "run.py"


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, DEMO, *options], capture_output=True, text=True, timeout=150)


def rows(output: str) -> dict[str, tuple[str, str]]:
    """The table: name of a row -> what it says with Keyward, without."""
    lines = (re.split(r"\s{2,}", line.strip()) for line in output.splitlines())
    return {cells[0]: (cells[1], cells[2]) for cells in lines if len(cells) == 3}


def test_no_answer_is_stale_although_the_server_evicts(make_server):
    """A tag whose keys are evicted and filled again still reaches every one of them."""
    server = make_server(config=["maxmemory-policy allkeys-lru"])
    # Two thirds of what the pages would need, wherever this server starts from.
    server.client().config_set("maxmemory", server.info("memory")["used_memory"] + 1_000_000)
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


def test_the_demo_starts_its_own_server():
    result = run_demo("--requests", "300")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every answer was right" in result.stdout


def test_a_database_in_use_is_left_alone(server):
    client = server.client()
    client.set("k", "v")
    result = run_demo("--url", f"redis://127.0.0.1:{server.port}/0")
    assert result.returncode != 0
    assert "is not empty" in result.stderr
    assert client.get("k") == b"v"
