"""docs/guide/memory.md: its tables are what its commands print, and values are read whatever they were stored with."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import redis
import zstandard
from guide_pages import EXAMPLES, assert_page_says, assert_shows_its_example
from servers import Server, default_flavour, eventually

sys.path.append(str(EXAMPLES / "compression"))

import compression
from compression import pack, unpack

ON_ONE_SERVER = pytest.mark.skipif(default_flavour() != "redis-7.0", reason="the figures are of Redis 7.0")
TRAINING = [b'{"number": %d, "from": "JFK", "to": "LAX", "airline": "American Airlines Inc."}' % n for n in range(2000)]


def test_the_page_shows_the_example():
    assert_shows_its_example("memory.md", "compression")


def on(server: Server) -> tuple[str, str]:
    return "--redis", f"redis://127.0.0.1:{server.port}"


@ON_ONE_SERVER
def test_the_costs_are_what_the_command_prints(make_server):
    assert_page_says("memory.md", "memory/cost.py", *on(make_server()))


@ON_ONE_SERVER
def test_the_savings_are_what_the_command_prints(make_server):
    """But for the last two columns, which are times."""
    assert_page_says("memory.md", "compression/measure.py", *on(make_server()), columns=3)


def test_a_server_in_use_is_left_alone(server):
    server.client().set("k", "v")
    for program in ("memory/cost.py", "compression/measure.py"):
        command = [sys.executable, EXAMPLES / program, *on(server)]
        assert "the server is not empty" in subprocess.run(command, capture_output=True, text=True).stderr
    assert server.client().get("k") == b"v"


# Compression


@pytest.fixture(scope="module")
def dictionaries() -> list[zstandard.ZstdCompressionDict]:
    return [zstandard.train_dictionary(4096, part) for part in (TRAINING, [row[::-1] for row in TRAINING])]


@pytest.fixture(params=["zlib", "zstd", "zstd with a dictionary"])
def codec(request: pytest.FixtureRequest, dictionaries: list) -> compression.Zlib | compression.Zstd:
    make: dict[str, Callable] = {
        "zlib": compression.Zlib,
        "zstd": compression.Zstd,
        "zstd with a dictionary": lambda: compression.Zstd(dictionaries=dictionaries[:1]),
    }
    return make[request.param]()


def test_every_value_comes_back(client, codec):
    noise = random.Random(7).randbytes(1000)
    values = [
        b"",
        b"\0",
        b"\0z",
        b"\0" * 500,
        b"short",
        b"x" * 199,
        b"x" * 200,
        noise,
        b"\0" + noise,
        b"".join(TRAINING),
    ]
    for value in values:
        client.execute_command("CACHE.SET", "k", pack(value, codec), "EX", 60, "TAGS", 1, "t")
        assert unpack(client.execute_command("CACHE.GET", "k"), [codec]) == value


def test_what_was_stored_before_is_read_as_it_is(codec):
    for old in (b'{"name": "chair"}' * 50, b"[1, 2]", b"null", b"42", "ä".encode(), b"\x80\x04K\x01."):
        assert unpack(old, [codec]) == old


def test_short_values_and_noise_are_stored_as_they_are(codec):
    noise = random.Random(7).randbytes(1000)
    assert pack(b"x" * 199, codec) == b"x" * 199
    assert pack(noise, codec) == noise
    assert len(pack(b"x" * 200, codec)) < 40


def test_a_change_of_codec_leaves_old_values_readable(dictionaries):
    value = b"".join(TRAINING[:10])
    old, new = dictionaries
    before = [compression.Zlib(), compression.Zstd(), compression.Zstd(dictionaries=[old])]
    now = compression.Zstd(dictionaries=[new, old])
    for codec in [*before, now]:
        assert unpack(pack(value, codec), [now, compression.Zlib()]) == value
    with pytest.raises(ValueError, match="does not know"):
        unpack(pack(value, now), [compression.Zlib()])


# What else the page says


def test_memory_usage_does_not_count_tags_and_info_does(client):
    client.execute_command("CACHE.SET", "plain", "x" * 100, "EX", 60)
    client.execute_command("CACHE.SET", "taggd", "x" * 100, "EX", 60, "TAGS", 2, "a", "b")
    assert client.memory_usage("plain") == client.memory_usage("taggd")
    assert client.info("keyward_cache")["keyward_cache_metadata_bytes"] > 0


def test_one_long_field_changes_the_whole_hash(client):
    client.hset("h", mapping={"a": "x" * 64})
    assert client.object("encoding", "h") == b"listpack"
    client.hset("h", "a", "x" * 65)
    client.hset("h", "a", "x")
    assert client.object("encoding", "h") == b"hashtable"


@pytest.mark.parametrize("end", ["invalidated", "expired"])
def test_a_big_value_is_freed_in_another_thread(make_server, end):
    client = make_server(config=["lazyfree-lazy-expire yes"]).client()
    freed = freed_elsewhere(client)
    client.sadd("big", *range(10_000), "word")
    if end == "invalidated":
        client.execute_command("CACHE.INVALIDATE", "big")
    else:
        client.pexpire("big", 1)
    eventually(lambda: client.exists("big") == 0)
    eventually(lambda: freed_elsewhere(client) > freed)


def freed_elsewhere(client: redis.Redis) -> int:
    return client.info("memory")["lazyfreed_objects"]


@ON_ONE_SERVER
def test_the_biggest_keys_are_found(server):
    client = server.client()
    client.set("small", "x")
    client.execute_command("CACHE.SET", "board:1", "x" * 100_000, "EX", 60, "TAGS", 1, "t")
    for option in ("--bigkeys", "--memkeys"):
        command = ["redis-cli", "-p", str(server.port), option]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        assert re.search(r"Biggest string found .*board:1", said)
