"""Every command under valgrind: what is definitely lost must not be the module's. Run by `make leaks`, not with the tests:
valgrind takes a minute. Debian's redis-server has jemalloc in a library, which valgrind can stand in for; in the servers
of the test environment it is linked in, where valgrind sees nothing."""

import re
import shutil

import pytest
from catalogue import EXAMPLES, make_world, typed
from raw_client import RawClient
from servers import Server, default_flavour, eventually

VALGRIND = (
    *("valgrind", "--leak-check=full", "--show-leak-kinds=definite", "--num-callers=40"),
    *("--soname-synonyms=somalloc=*jemalloc*", "--log-file=valgrind.log", "--child-silent-after-fork=yes"),
)
pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed (scripts/setup.sh bench)"),
    pytest.mark.skipif(default_flavour() != "redis-7.0", reason="jemalloc is linked into the other servers"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def server(tmp_path):
    wrapper = tmp_path / "redis-server"
    wrapper.write_text(f'#!/bin/sh\nexec {" ".join(VALGRIND)} {shutil.which("redis-server")} "$@"\n')
    wrapper.chmod(0o755)
    server = Server(tmp_path / "server")
    server.binary = wrapper
    yield server.start(timeout=120)
    server.kill9()


def lost_by_the_module(log):
    """The records of valgrind in which the module has a part."""
    records = re.split(r"\n==\d+== \n", log)
    return [record for record in records if "definitely lost" in record and "libkeyward" in record]


def test_no_memory_is_lost(server):
    with RawClient(server) as raw:
        for _ in range(2):
            for command, example in EXAMPLES.items():
                raw.call("FLUSHALL")
                make_world(raw)
                raw.call(*typed(command), *example.words())
                # Refused, half way through the words.
                raw.call(*typed(command), *example.words()[:-1], "\xff")
            raw.call("DEBUG", "RELOAD")
        waiting = RawClient(server)
        raw.call("LOCK.ACQUIRE", "lock", "ann", "EX", 600)
        waiting.send("LOCK.ACQUIRE", "lock", "bob", "EX", 600, "WAIT", 0, "SESSION")
        eventually(lambda: server.info("clients")["blocked_clients"] == 1)
        waiting.close()
        eventually(lambda: server.info("clients")["blocked_clients"] == 0)
        raw.call("FLUSHALL", "SYNC")
    server.stop(timeout=120)
    log = (server.folder / "valgrind.log").read_text(errors="replace")
    assert "LEAK SUMMARY" in log
    assert "total heap usage" in log
    allocations = int(re.search(r"total heap usage: ([\d,]+) allocs", log)[1].replace(",", ""))
    assert allocations > 10_000, "valgrind does not see the allocations"
    assert lost_by_the_module(log) == []
    # Not the leaks alone: what is read before it is written, and after it was freed.
    errors = [part for part in re.split(r"\n==\d+== \n", log) if "Invalid" in part or "uninitialised" in part]
    assert [part for part in errors if "libkeyward" in part] == []
