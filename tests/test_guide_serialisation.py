"""examples/serialisation: what comes back is what was stored, also between two versions of a program. And what redis-py makes of replies."""

from __future__ import annotations

import functools
import json
import pickle
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest
import redis
from cache_aside import python_example
from guide_pages import EXAMPLES, assert_page_says, assert_shows_its_example
from redis.cache import CacheConfig
from servers import Server, default_flavour, eventually

sys.path.append(str(EXAMPLES / "serialisation"))

import product
from product import Product, decode, encode

CHAIR = Product(7, "Stühlchen", Decimal("19.90"), datetime(2026, 11, 28, 9, tzinfo=UTC))


def test_the_page_shows_the_example():
    assert_shows_its_example("serialisation.md", "serialisation")


@pytest.mark.skipif(default_flavour() != "redis-7.0", reason="no server takes part")
def test_the_sizes_are_what_the_command_prints():
    """The other two columns are times."""
    assert_page_says("serialisation.md", "serialisation/sizes.py", columns=1)


@pytest.mark.parametrize("price", ["0.1", "19.90", "1E+3", "-0.01", "123456789012345678901234567890.12"])
def test_amounts_and_times_come_back(price):
    summer = timezone(timedelta(hours=2))
    stored = Product(2**63 - 1, "x", Decimal(price), datetime(2026, 7, 1, 0, 30, tzinfo=summer))
    assert decode(encode(stored)) == stored
    assert str(decode(encode(stored)).price) == price, "with all its digits"


# Two versions. The old one is as it was deployed: it writes cents, and knows nothing of version 2 but that there may be one.


def encode_1(chair: Product) -> bytes:
    return json.dumps({"id": chair.id, "name": chair.name, "cents": int(chair.price * 100)}).encode()


def decode_1(stored: bytes) -> Product:
    fields = json.loads(stored)
    if fields.get("v", 1) > 1:
        raise product.OtherVersion(fields["v"])
    return Product(fields["id"], fields["name"], Decimal(fields["cents"]) / 100, CHAIR.added)


class Programs:
    """An old and a new one on the same server, and how often each asked the database."""

    def __init__(self, client: redis.Redis, old_key: str, new_key: str) -> None:
        self.row = CHAIR
        self.asked = {"old": 0, "new": 0}
        self._cached = functools.partial(python_example().cached, client, tags=["product:7"])
        self._keys = {"old": old_key, "new": new_key}

    def read(self, program: str) -> Decimal:
        def load() -> Product:
            self.asked[program] += 1
            return self.row

        form = {"encode": encode_1, "decode": decode_1} if program == "old" else {}
        return product.read(self._cached, self._keys[program], load, **form).price


def test_with_the_version_in_the_value_both_answer_right_and_do_not_fight(client):
    programs = Programs(client, "product:7", "product:7")
    assert [programs.read(each) for each in ("old", "new", "old", "new")] == [CHAIR.price] * 4
    assert programs.asked == {"old": 1, "new": 0}, "the new one reads the old form"
    client.execute_command("CACHE.INVALIDATETAG", "product:7")
    programs.row = Product(7, "chair", Decimal(25), CHAIR.added)
    assert [programs.read(each) for each in ("new", "old", "new", "old", "new")] == [25] * 5
    assert programs.asked == {"old": 3, "new": 1}, "the old one asks each time, and leaves the new form where it is"


def test_with_the_version_in_the_key_a_tag_reaches_both(client):
    programs = Programs(client, "product:1:7", "product:2:7")
    assert [programs.read(each) for each in ("old", "new") * 2] == [CHAIR.price] * 4
    assert programs.asked == {"old": 1, "new": 1}
    programs.row = Product(7, "chair", Decimal(25), CHAIR.added)
    assert client.execute_command("CACHE.INVALIDATETAG", "product:7") == 2
    assert [programs.read(each) for each in ("old", "new") * 2] == [25] * 4
    assert programs.asked == {"old": 2, "new": 2}


def test_a_pickle_in_the_cache_runs_what_it_likes(client, tmp_path):
    """Why the page says never."""

    class Harmless:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return Path.mkdir, (tmp_path / "it could have been anything",)

    client.execute_command("CACHE.SET", "k", pickle.dumps(Harmless()), "EX", 60)
    pickle.loads(client.execute_command("CACHE.GET", "k"))
    assert [each.name for each in tmp_path.iterdir()] == ["it could have been anything"]


# Nothing, and not there


def test_missing_known_to_be_missing_and_null_are_three_things(client):
    status, _, token = client.execute_command("CACHE.FETCH", "product:8")
    assert status == b"MISS"
    assert client.execute_command("CACHE.FILLNIL", "product:8", token, "EX", 60) == 1
    assert client.execute_command("CACHE.FETCH", "product:8") == [b"NONE", None, None]
    assert client.execute_command("CACHE.GET", "product:8") is None is client.execute_command("CACHE.GET", "product:9")
    for nothing in (b"null", b""):
        client.execute_command("CACHE.SET", "product:9", nothing, "EX", 60)
        assert client.execute_command("CACHE.FETCH", "product:9") == [b"HIT", nothing, None]


def test_a_row_that_is_missing_is_not_decoded(client):
    cached = functools.partial(python_example().cached, client)
    assert product.read(cached, "product:8", lambda: None) is None
    assert product.read(cached, "product:8", lambda: pytest.fail("it is remembered")) is None


# Bytes or texts


def test_a_client_of_texts_understands_every_kind_of_reply(server, protocol):
    client = server.client(protocol, decode=True)
    call = client.execute_command
    assert call("CACHE.SET", "k", "Stühlchen", "EX", 60, "TAGS", 1, "chairs") == "OK"
    assert call("CACHE.GET", b"k") == "Stühlchen"
    assert call("CACHE.FETCH", "k") == ["HIT", "Stühlchen", None]
    status, _, token = call("CACHE.FETCH", "m")
    assert status == "MISS"
    assert call("CACHE.FILL", "m", token, "v", "EX", 60) == 1
    assert call("CACHE.MGET", "k", "nothing") == ["Stühlchen", None]
    assert list(call("CACHE.TAGS", "k")) == ["chairs"]
    assert "keys" in call("CACHE.TAGINFO", "chairs")
    assert "holders" in call("LOCK.INFO", "lock")


def test_bytes_that_are_no_text_need_a_call_that_does_not_decode(server, protocol):
    client = server.client(protocol, decode=True)
    client.execute_command("CACHE.SET", "k", b"\xff\0", "EX", 60)
    with pytest.raises(UnicodeDecodeError):
        client.execute_command("CACHE.FETCH", "k")
    assert client.execute_command("CACHE.FETCH", "k", NEVER_DECODE=True) == [b"HIT", b"\xff\0", None]
    assert client.execute_command("CACHE.GET", "k", NEVER_DECODE=True) == b"\xff\0"


def test_a_reply_that_cannot_be_decoded_loses_its_lease(server, protocol):
    client = server.client(protocol, decode=True)
    client.execute_command("CACHE.SET", "k", b"\xff\0", "EX", 60, "GRACE", 60)
    client.execute_command("CACHE.STALE", "k")
    with pytest.raises(UnicodeDecodeError):
        client.execute_command("CACHE.FETCH", "k")
    assert server.client().execute_command("CACHE.FETCH", "k")[0] == b"STALE", "somebody is thought to be loading"


# Client-side caching


@pytest.fixture
def near(server: Server) -> redis.Redis:
    return redis.Redis(port=server.port, protocol=3, cache_config=CacheConfig())


@pytest.mark.skipif(default_flavour() != "redis-8.2", reason="redis-py does it on Redis 7.4 and later alone")
def test_a_near_cache_is_told_of_an_invalidation_by_tag(server, near):
    client = server.client()
    client.config_resetstat()
    client.execute_command("CACHE.SET", "k", "v", "EX", 60, "TAGS", 1, "t")
    assert near.get("k") == near.get("k") == b"v"
    assert client.info("commandstats")["cmdstat_get"]["calls"] == 1, "the second came from the client"
    assert near.execute_command("CACHE.GET", "k") == near.execute_command("CACHE.GET", "k") == b"v"
    assert client.info("commandstats")["cmdstat_cache.get"]["calls"] == 2, "these do not"
    client.execute_command("CACHE.INVALIDATETAG", "t")
    eventually(lambda: near.get("k") is None)
    near.close()
