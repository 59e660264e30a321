"""examples/worker as a loader: what readers miss comes from the database, with its tags, or they are told why not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from databases import EXAMPLES, Database, WorkerProcess
from servers import Server, eventually

sys.path.append(str(EXAMPLES))

from worker.loader import Loader, by_query, pattern_of

PRODUCT = "SELECT name, price, json_array('shop:' || shop) AS tags FROM product WHERE id = :id"
PICTURE = "SELECT picture FROM product WHERE id = :id"
SECONDS = 60


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/shop.db")
    database.run(
        "CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT, price NUMERIC, shop INTEGER, picture BLOB)",
        "INSERT INTO product VALUES (7, 'blue chair', 49.5, 1, x'00ff'), (8, 'red chair', 39, 1, NULL)",
    )
    yield database
    database.close()


@pytest.fixture
def loader(client: redis.Redis, database: Database) -> Callable[..., Loader]:
    def make(query: str = PRODUCT, **options) -> Loader:
        load = by_query(database.engine, "product:{id}", query)
        return Loader(client, "products", load, **{"block_ms": 1} | options)

    return make


def read(client: redis.Redis, key: str, *options: object) -> list:
    return client.execute_command("CACHE.READ", key, "LOADER", "products", *options)[:2]


def test_a_row_becomes_json_with_its_tags(client, loader):
    assert read(client, "product:7") == [b"BUSY", None]
    assert loader().step()
    status, value = read(client, "product:7")
    assert (status, json.loads(value)) == (b"HIT", {"name": "blue chair", "price": 49.5})
    assert 0 < client.ttl("product:7") <= 300
    assert client.execute_command("CACHE.INVALIDATETAG", "shop:1") == 1
    assert read(client, "product:7") == [b"BUSY", None]


def test_one_column_is_the_value_itself(client, loader):
    read(client, "product:7")
    assert loader(PICTURE, ttl_s=5, grace_s=50).step()
    assert read(client, "product:7") == [b"HIT", b"\x00\xff"]
    soft, hard = client.execute_command("CACHE.TTL", "product:7")
    assert soft <= 5000 < hard <= 55_000


@pytest.mark.parametrize(("key", "query"), [("product:9", PRODUCT), ("product:8", PICTURE)])
def test_nothing_is_remembered_too(client, loader, key, query):
    read(client, key)
    assert loader(query).step()
    assert read(client, key) == [b"NONE", None]
    assert client.dbsize() == 0


def test_who_warms_gets_values_before_anybody_asks(client, loader):
    assert client.execute_command("CACHE.WARM", "products", "product:7", "product:8") == 2
    worker = loader()
    assert [worker.step() for _ in range(3)] == [True, True, False]
    assert client.exists("product:7", "product:8") == 2


def test_what_was_invalidated_while_it_was_read_is_not_cached(client, database, loader):
    worker = loader()
    load = worker.load

    def overtaken(key: str):
        loaded = load(key)
        client.execute_command("CACHE.INVALIDATETAG", "shop:1")
        return loaded

    worker.load = overtaken
    read(client, "product:7")
    assert worker.step()
    assert client.exists("product:7") == 0


def test_readers_are_told_of_trouble_and_not_of_its_details(client, database, loader):
    read(client, "product:7")
    database.run("ALTER TABLE product RENAME TO goods")
    assert loader().step()
    assert read(client, "product:7") == [b"ERROR", b"the database did not answer"]
    assert not loader().step(), "it is left alone for a second"


def test_a_key_that_no_query_is_for(client, loader):
    for key in ("product:7:name", b"product:\xff"):
        read(client, key)
        assert loader().step()
        assert read(client, key) == [b"ERROR", b"there is no query for this key"]


def test_patterns():
    assert pattern_of("board:{airport}:{day}").fullmatch("board:JFK:2013-01-01").groupdict() == {
        "airport": "JFK",
        "day": "2013-01-01",
    }
    assert not pattern_of("board:{airport}").fullmatch("board:JFK:x")
    assert not pattern_of("a.b:{id}").fullmatch("axb:1")


def test_types_of_postgresql(client, postgres):
    """The parameter is a text in the key, and a number in the table."""
    database = Database(postgres.url, postgres)
    database.run(
        "DROP TABLE IF EXISTS product",
        "CREATE TABLE product (id BIGINT PRIMARY KEY, name TEXT, price NUMERIC, since DATE, shop INT)",
        "INSERT INTO product VALUES (7, 'blue chair', 49.5, '2013-01-01', 1)",
    )
    query = "SELECT name, price, since, ARRAY['shop:' || shop] AS tags FROM product WHERE id = :id"
    loader = Loader(client, "products", by_query(database.engine, "product:{id}", query), block_ms=1)
    read(client, "product:7")
    read(client, "product:x")
    assert [loader.step(), loader.step()] == [True, True]
    assert json.loads(read(client, "product:7")[1]) == {"name": "blue chair", "price": "49.5", "since": "2013-01-01"}
    assert client.execute_command("CACHE.TAGS", "product:7") in ([b"shop:1"], {b"shop:1"})
    assert read(client, "product:x")[0] == b"ERROR"
    database.close()


def test_one_process_loads_and_drains(server: Server, database, tmp_path):
    database.run("CREATE TABLE views (key TEXT PRIMARY KEY, value BIGINT, version BIGINT NOT NULL)")
    client = server.client()
    arguments = "--queue", "q", "--table", "views", "--loader", "products", "product:{id}", PRODUCT
    worker = WorkerProcess(server, database, tmp_path / "worker.log", *arguments)
    try:
        status, value = read(client, "product:7", "WAIT", SECONDS * 1000)
        assert (status, json.loads(value)["name"]) == (b"HIT", "blue chair")
        client.execute_command("WRITEBEHIND.INCRBY", "q", "product:7:views", 1)
        eventually(lambda: database.pairs("views") == {"product:7:views": 1}, timeout=SECONDS)
        assert worker.stop() == 0
    finally:
        worker.close()
