"""examples/warming: each way to fill a new server, on real ones. What arrives has its tags, and nothing old is put there."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import sqlalchemy
from cache_aside import python_example
from guide_pages import EXAMPLES, assert_shows_its_example
from servers import Server, eventually

sys.path.append(str(EXAMPLES / "warming"))
sys.path.append(str(EXAMPLES))

import background
import eager
import peer
from worker.loader import Loader, by_query

WARMING = EXAMPLES / "warming"
PRODUCTS = 500
KEYS = [f"product:{n}" for n in range(PRODUCTS)]
NAMES = {key: f"chair {n}".encode() for n, key in enumerate(KEYS)}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """500 chairs of seven shops."""
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT, shop INTEGER)")
        database.executemany(
            "INSERT INTO product VALUES (?, ?, ?)", [(n, f"chair {n}", n % 7) for n in range(PRODUCTS)]
        )
    database.close()
    return path


@pytest.fixture
def database(shop: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(shop)
    yield connection
    connection.close()


@pytest.fixture
def client(server: Server) -> redis.Redis:
    """One protocol, that of the programs: each of them is a process that takes its time to start."""
    return server.client(3)


@pytest.fixture
def new(make_server: Callable[..., Server]) -> Server:
    return make_server()


def url(server: Server) -> str:
    return f"redis://127.0.0.1:{server.port}"


def run(program: str, *arguments: object) -> str:
    """As somebody would start it."""
    command = [WARMING / program] if program.endswith(".sh") else [sys.executable, WARMING / program]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def cached(client: redis.Redis, keys: list[str]) -> dict[str, bytes]:
    values = client.execute_command("CACHE.MGET", *keys)
    return {key: value for key, value in zip(keys, values, strict=True) if value is not None}


def fill_old(client: redis.Redis) -> None:
    """As a server is that has been in use: values with tags and a grace, a policy, some keys read more often than others."""
    client.execute_command("CACHE.POLICY", "SET", "products", "PREFIX", "product:", "EX", 3600)
    for n, (key, name) in enumerate(NAMES.items()):
        client.execute_command(
            "CACHE.SET", key, name, "PX", 600_000, "GRACE", 60_000, "TAGS", 2, "products", f"shop:{n % 7}"
        )
    for key in KEYS[:20] * 3:
        client.execute_command("CACHE.GET", key)


def test_the_page_shows_the_example():
    assert_shows_its_example("warming.md", "warming")


# Eager


def test_eager_loads_a_list_with_tags_and_spread_expiries(server, client, shop, tmp_path):
    (tmp_path / "keys.txt").write_text("".join(f"{key}\n" for key in [*KEYS, "product:99999"]))
    said = run("eager.py", "--redis", url(server), "--database", shop, tmp_path / "keys.txt")
    assert said == "500 of 501 keys loaded\n"
    assert cached(client, KEYS) == NAMES
    lives = {client.pttl(key) // 1000 for key in KEYS}
    assert len(lives) > 50, "they do not expire at once"
    assert client.execute_command("CACHE.FETCH", "product:99999")[0] == b"MISS", "nobody waits for a lease that is left"
    assert client.execute_command("CACHE.INVALIDATETAG", "shop:3") == len(KEYS[3::7])
    said = run("eager.py", "--redis", url(server), "--database", shop, tmp_path / "keys.txt")
    assert said == f"{len(KEYS[3::7])} of 501 keys loaded\n", "what is there is left alone"


def test_eager_stores_nothing_that_was_updated_meanwhile(server, client, database):
    def load_many(keys: list[str]) -> dict:
        found = eager.products(database, keys)
        server.client().execute_command("CACHE.INVALIDATE", "product:1")
        server.client().execute_command("CACHE.INVALIDATETAG", "shop:5")
        return found

    assert eager.warm(client, KEYS[:7], load_many) == 5
    assert sorted(cached(client, KEYS[:7])) == [KEYS[n] for n in (0, 2, 3, 4, 6)]


def test_eager_leaves_no_lease_when_the_database_fails(client):
    with pytest.raises(ZeroDivisionError):
        eager.warm(client, KEYS[:3], lambda keys: 1 / 0)
    assert client.execute_command("CACHE.FETCH", KEYS[0])[0] == b"MISS"


# Lazy


def test_lazy_asks_the_database_once_for_each_key(server):
    asked = []
    function, callers = python_example().cached, 20

    def read(_: int) -> list[bytes]:
        client = server.client()
        return [function(client, key, lambda key=key: asked.append(key) or NAMES[key]) for key in KEYS[:10]]

    with ThreadPoolExecutor(callers) as pool:
        assert list(pool.map(read, range(callers))) == [list(NAMES.values())[:10]] * callers
    assert sorted(asked) == sorted(KEYS[:10])


# From a snapshot


def test_a_snapshot_has_tags_policies_and_all(server, client, make_server):
    fill_old(client)
    new = make_server()
    new.stop()
    run("snapshot.sh", "127.0.0.1", server.port, new.folder / "dump.rdb")
    there = new.start().client()
    assert cached(there, KEYS) == NAMES
    assert there.execute_command("CACHE.POLICY", "LIST") == [b"products"]
    assert 0 < there.execute_command("CACHE.TTL", KEYS[0])[0] <= 600_000 < there.pttl(KEYS[0])
    assert there.execute_command("CACHE.INVALIDATETAG", "shop:3") == len(KEYS[3::7])


def test_a_snapshot_that_cannot_be_fetched_leaves_the_file_alone(tmp_path):
    (tmp_path / "dump.rdb").write_bytes(b"as it was")
    with pytest.raises(subprocess.CalledProcessError):
        run("snapshot.sh", "127.0.0.1", 1, tmp_path / "dump.rdb")
    assert (tmp_path / "dump.rdb").read_bytes() == b"as it was"


# In the background


def test_what_was_hot_is_loaded_by_the_loaders_of_the_new_server(server, client, new, shop, tmp_path):
    fill_old(client)
    assert "20 keys kept" in run("background.py", "keep", "--redis", url(server), tmp_path / "hot.txt")
    assert "20 keys queued" in run(
        "background.py", "warm", "--redis", url(new), "--loader", "products", tmp_path / "hot.txt"
    )
    there = new.client()
    query = "SELECT name, json_array('shop:' || shop) AS tags FROM product WHERE id = :id"
    engine = sqlalchemy.create_engine(f"sqlite:///{shop}")
    loader = Loader(there, "products", by_query(engine, "product:{id}", query), block_ms=1)
    there.execute_command("CACHE.READ", "product:400", "LOADER", "products")
    first = there.execute_command("CACHE.LOADS", "products")[0]
    assert first[0] == b"product:400", "what somebody asked for comes first"
    while loader.step():
        pass
    engine.dispose()
    assert cached(there, KEYS) == {key: NAMES[key] for key in KEYS[:20]}


def test_a_server_that_has_just_started_does_not_empty_the_list(new, tmp_path):
    (tmp_path / "hot.txt").write_text("product:1\n")
    assert background.keep(new.client(), tmp_path / "hot.txt") == 0
    assert (tmp_path / "hot.txt").read_text() == "product:1\n"


# From a peer


def test_a_replica_is_promoted_with_all_it_received(server, client, new):
    fill_old(client)
    said = run("peer.py", "replicate", "--old", url(server), "--new", url(new))
    assert said == "500 keys, and the new server is a primary\n"
    there = new.client()
    assert cached(there, KEYS) == NAMES
    assert there.execute_command("CACHE.INVALIDATETAG", "products") == PRODUCTS
    assert cached(client, KEYS) == NAMES, "the old one is on its own"


def test_hot_keys_are_copied_with_tags_and_times(server, client, new):
    fill_old(client)
    client.execute_command("CACHE.SET", "forever", "v")
    client.execute_command("CACHE.GET", "forever")
    client.execute_command("CACHE.GET", "missing")
    assert run("peer.py", "copy", "--old", url(server), "--new", url(new), "--count", 1000) == "21 keys copied\n"
    there = new.client()
    assert cached(there, KEYS) == {key: NAMES[key] for key in KEYS[:20]}
    soft, hard = there.execute_command("CACHE.TTL", KEYS[0])
    assert 0 < soft <= 600_000
    assert hard - soft == 60_000
    assert there.execute_command("CACHE.TTL", "forever") == [-1, -1]
    assert set(there.execute_command("CACHE.TAGS", KEYS[3])) == {b"products", b"shop:3"}


def test_a_copy_is_not_stored_when_its_row_was_updated_meanwhile(server, client, new, monkeypatch):
    fill_old(client)
    read = peer.read

    def and_then_an_update(old: redis.Redis, keys: list[bytes]) -> dict:
        found = read(old, keys)
        for both in (client, new.client()):
            both.execute_command("CACHE.INVALIDATE", "product:1")
        return found

    monkeypatch.setattr(peer, "read", and_then_an_update)
    assert peer.copy(client, new.client(), 20) == 19
    eventually(lambda: new.client().dbsize() == 19)
    assert new.client().get("product:1") is None
