"""examples/worker: whatever dies when, the table has each write once and in order. In PostgreSQL and in SQLite."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import sqlalchemy
from databases import EXAMPLES, Database, WorkerProcess
from servers import Server, eventually
from sqlalchemy.exc import OperationalError
from write_behind import claim, config, dead, delete, incrby, info, put, requeue

sys.path.append(str(EXAMPLES))

from worker.table import Record, Table
from worker.write_behind import Drain

QUEUE = "q"
SECONDS = 60


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A table of numbers, one of texts, one of bytes."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        database = Database(server.url, server)
        types = {"number": "BIGINT", "bytes": "BYTEA", "json": "JSONB"}
    else:
        # So soon, since "locked" is how SQLite is away.
        database = Database(f"sqlite:///{tmp_path}/pairs.db?timeout=0.2")
        types = {"number": "BIGINT", "bytes": "BLOB", "json": "JSON"}
    version = "version BIGINT NOT NULL"
    database.run(
        *(f"DROP TABLE IF EXISTS {table}" for table in ("counters", "texts", "blobs", "page_views")),
        f"CREATE TABLE counters (key TEXT PRIMARY KEY, value {types['number']} CHECK (value <> -13), {version})",
        f"CREATE TABLE texts (key TEXT PRIMARY KEY, value TEXT CHECK (length(value) < 100), {version})",
        f"CREATE TABLE blobs (key {types['bytes']} PRIMARY KEY, value {types['bytes']}, {version})",
        f"CREATE TABLE page_views (id BIGINT PRIMARY KEY, seen {types['json']}, written BIGINT NOT NULL)",
    )
    yield database
    database.close()


@pytest.fixture
def drain(client: redis.Redis, database: Database) -> Callable[..., Drain]:
    """drain(table, …) -> what drains the queue into that table, and does not wait for work."""

    def make(name: str = "counters", *, columns=(), prefix="", **options) -> Drain:
        table = Table(database.engine, name, *columns, prefix=prefix)
        return Drain(client, QUEUE, table, **{"block_ms": 1} | options)

    return make


@pytest.fixture
def start(server: Server, database: Database, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """start(…) -> a worker of its own, as a process."""
    started: list[WorkerProcess] = []

    def make(*arguments: object, queue: str = QUEUE, table: str = "counters") -> WorkerProcess:
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(WorkerProcess(server, database, log, "--queue", queue, "--table", table, *arguments))
        return started[-1]

    yield make
    for process in started:
        process.close()


@pytest.fixture
def admin(server: Server) -> redis.Redis:
    """For tests of a process, which has connections of its own: one protocol is enough."""
    return server.client()


def is_clean(client: redis.Redis) -> bool:
    return info(client)["keys"] == 0


# What becomes of what was written


def test_a_number_is_set_and_added_to_and_deleted(client, database, drain):
    worker = drain()
    incrby(client, "sum", 5)
    incrby(client, "sum", -2)
    put(client, "number", 40)
    put(client, "gone", 1)
    delete(client, "gone")
    assert worker.step() == 3
    assert database.pairs() == {"sum": 3, "number": 40, "gone": None}
    incrby(client, "number", 2)
    incrby(client, "sum", 1)
    incrby(client, "gone", 1)
    assert worker.step() == 3
    assert database.pairs() == {"sum": 4, "number": 42, "gone": 1}
    assert worker.step() == 0
    assert is_clean(client)


def test_bytes_stay_bytes(client, database, drain):
    put(client, b"\x00\xff", b"\xfe\x00")
    assert drain("blobs").step() == 1
    assert {bytes(key): bytes(value) for key, value in database.pairs("blobs").items()} == {b"\x00\xff": b"\xfe\x00"}


def test_columns_have_names_and_types_of_their_own(client, database, drain):
    put(client, "page:7", '{"today": 3}')
    put(client, "page:8", "null")
    worker = drain("page_views", columns=("id", "seen", "written"), prefix="page:")
    version = put(client, "page:8", "[]")
    assert worker.step() == 2
    with database.engine.connect() as connection:
        table = sqlalchemy.Table("page_views", sqlalchemy.MetaData(), autoload_with=database.engine)
        rows = connection.execute(sqlalchemy.select(table)).all()
    assert [(row.id, row.seen) for row in sorted(rows)] == [(7, {"today": 3}), (8, [])]
    assert max(row.written for row in rows) == version


def test_batches_are_no_larger_than_asked_for(client, database, drain):
    worker = drain(count=3)
    for n in range(7):
        put(client, f"k{n}", n)
    assert [worker.step() for _ in range(4)] == [3, 3, 1, 0]
    assert database.pairs() == {f"k{n}": n for n in range(7)}


# What comes late, or twice


def test_a_late_worker_changes_nothing(client, database, drain):
    worker = drain("texts")
    old = put(client, "k", "old")
    put(client, "k", "new")
    assert worker.step() == 1
    assert worker.table.write([Record(b"k", old, b"SET", b"old", 1, 0)]) == {}, "it may ack"
    assert database.pairs("texts") == {"k": "new"}


def test_a_deleted_row_does_not_come_back(client, database, drain):
    worker = drain("texts")
    old = put(client, "k", "old")
    assert worker.step() == 1
    delete(client, "k")
    assert worker.step() == 1
    worker.table.write([Record(b"k", old, b"SET", b"old", 1, 0)])
    assert database.pairs("texts") == {"k": None}


def test_an_increment_counts_once_though_the_worker_dies_before_its_ack(client, database, drain):
    incrby(client, "n", 5)
    with pytest.MonkeyPatch.context() as dying:
        worker = drain(lease_ms=1)
        dying.setattr(worker, "_settle", lambda *_: None)
        assert worker.step() == 1
    assert database.pairs() == {"n": 5}
    incrby(client, "n", 1)
    other = drain()
    eventually(lambda: other.step() >= 0 and is_clean(client))
    assert database.pairs() == {"n": 6}


def test_a_batch_stays_in_hand_until_it_is_acked(client, database, drain):
    """Redis was away when the worker wanted to ack."""
    worker = drain()
    incrby(client, "n", 5)
    with pytest.MonkeyPatch.context() as away:

        def refuse(*_):
            raise redis.ConnectionError

        away.setattr(worker, "_settle", refuse)
        with pytest.raises(redis.ConnectionError):
            worker.step()
    assert info(client)["in_flight"] == 1
    assert worker.step() == 1
    assert is_clean(client)
    assert database.pairs() == {"n": 5}


def test_a_killed_worker_between_commit_and_ack(admin, database, start):
    """A real process, and a real kill: the database is slow until it has claimed, then Redis takes no ACK."""
    database.run("INSERT INTO counters VALUES ('n', 100, 0)")
    with database.locked():
        worker = start("--lease", 2000)
        incrby(admin, "n", 5)
        eventually(lambda: info(admin)["in_flight"] == 1, timeout=SECONDS)
        admin.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")
    try:
        eventually(lambda: database.pairs() == {"n": 105}, timeout=SECONDS)
        worker.kill9()
        eventually(lambda: b"cmd=writebehind.ack" not in admin.execute_command("CLIENT", "LIST"))
    finally:
        admin.execute_command("CLIENT", "UNPAUSE")
    assert info(admin)["in_flight"] == 1
    incrby(admin, "n", 1)
    start()
    eventually(lambda: is_clean(admin), timeout=SECONDS)
    assert database.pairs() == {"n": 106}
    assert info(admin)["retries"] == 1


def test_an_increment_that_was_given_up_is_not_acked_by_who_comes_late(client, database, drain):
    """The row cannot tell whether it has it: something later was written. So it stays on the dead list."""
    config(client, "ATTEMPTS", 1)
    late = drain(lease_ms=1)
    incrby(client, "n", 5)
    late._in_hand = late._claim()
    eventually(lambda: claim(client) == [] and info(client)["dead"] == 1)
    incrby(client, "n", 3)
    assert drain().step() == 1
    assert late.step() == 0
    assert database.pairs() == {"n": 3}
    assert info(client)["dead"] == 1
    assert requeue(client, "n") == 1
    assert drain().step() == 1
    assert database.pairs() == {"n": 8}
    assert is_clean(client)


# Rows that the database refuses


def test_a_poison_row_holds_nothing_up(client, database, drain):
    config(client, "ATTEMPTS", 2)
    put(client, "poison", -13)
    for n in range(20):
        put(client, f"k{n}", n)
    worker = drain()
    assert worker.step() == 20
    assert len(database.pairs()) == 20
    eventually(lambda: worker.step() == 0 and info(client)["dead"] == 1)
    [(key, _, _, payload, attempts, message)] = dead(client)
    assert (key, payload, attempts) == (b"poison", b"-13", 2)
    assert b"constraint" in message.lower()
    # Somebody looks at it, repairs the table, and lets it be tried again.
    database.run("DROP TABLE counters", "CREATE TABLE counters (key TEXT PRIMARY KEY, value BIGINT, version BIGINT)")
    assert requeue(client, "poison") == 1
    assert drain().step() == 1
    assert database.pairs() == {"poison": -13}


@pytest.mark.parametrize(
    ("table", "write", "why"),
    [
        ("counters", lambda c: put(c, "k", "many"), b"invalid literal"),
        ("counters", lambda c: put(c, "k", 2**63), b""),
        ("counters", lambda c: put(c, b"\xff", 1), b"codec"),
        ("texts", lambda c: incrby(c, "k", 1), b"holds no numbers"),
        ("texts", lambda c: put(c, "k", "x" * 100), b"constraint"),
    ],
)
def test_what_does_not_fit_into_the_table_goes_to_the_dead_list(client, database, drain, table, write, why):
    config(client, "ATTEMPTS", 1)
    write(client)
    put(client, "good", 1)
    assert drain(table).step() == 1
    [(_, _, _, _, attempts, message)] = dead(client)
    assert attempts == 1
    assert why in message.lower()
    assert len(database.pairs(table)) == 1


def test_rows_that_are_there_need_nothing_but_the_new_value(client, database, drain):
    """Constraints look at what the row becomes, not at an increment taken for a row."""
    columns = "key TEXT PRIMARY KEY, name TEXT NOT NULL, value BIGINT CHECK (value >= 0), version BIGINT NOT NULL"
    database.run(
        "DROP TABLE IF EXISTS stock",
        f"CREATE TABLE stock ({columns})",
        "INSERT INTO stock VALUES ('chair', 'a chair', 7, 0), ('table', 'a table', 1, 0), ('lamp', 'a lamp', 5, 0)",
    )
    config(client, "ATTEMPTS", 1)
    incrby(client, "chair", -3)
    incrby(client, "table", -2)
    put(client, "lamp", 4)
    put(client, "sofa", 1)
    assert drain("stock").step() == 2
    assert database.pairs("stock") == {"chair": 4, "table": 1, "lamp": 4}
    assert sorted(row[0] for row in dead(client)) == [b"sofa", b"table"]


def test_a_key_without_the_prefix_is_refused(client, drain):
    config(client, "ATTEMPTS", 1)
    put(client, "paeg:7", 1)
    assert drain(prefix="page:").step() == 0
    assert [row[5] for row in dead(client)] == [b"the key does not begin with page:"]


def test_a_key_that_no_index_takes_is_the_rows_fault(client, postgres, tmp_path):
    """PostgreSQL calls it an operational error, as it does when it is away."""
    database = Database(postgres.url, postgres)
    database.run(
        "DROP TABLE IF EXISTS counters", "CREATE TABLE counters (key TEXT PRIMARY KEY, value INT, version BIGINT)"
    )
    config(client, "ATTEMPTS", 1)
    put(client, os.urandom(5000).hex(), 1)
    put(client, "good", 1)
    worker = Drain(client, QUEUE, Table(database.engine, "counters"), block_ms=1)
    assert worker.step() == 1
    assert len(dead(client)) == 1
    database.close()


# What is away


@contextmanager
def away(database: Database) -> Iterator[None]:
    """PostgreSQL is not there; SQLite's file is locked."""
    if database.postgres:
        database.postgres.stop()
        yield
        database.postgres.start()
        database.close()  # the connections of before
    else:
        with database.locked():
            yield


def test_nothing_is_lost_while_the_database_is_away(client, database, drain):
    """What a worker has in hand it tries again; nothing else is claimed, so no attempts are used up."""
    config(client, "ATTEMPTS", 2)
    worker = drain(count=1)
    incrby(client, "n", 5)
    incrby(client, "m", 7)
    with away(database):
        for _ in range(5):
            with pytest.raises(OperationalError):
                worker.step()
        assert info(client)["in_flight"] == 1
    eventually(lambda: patient_step(worker) and is_clean(client))
    assert database.pairs() == {"n": 5, "m": 7}
    assert (info(client)["retries"], info(client)["dead"]) == (0, 0)


def patient_step(worker: Drain) -> bool:
    """Connections of before may be found broken once."""
    try:
        worker.step()
    except OperationalError:
        return False
    return True


def test_a_worker_outlives_its_database(admin, database, start):
    worker = start()
    incrby(admin, "n", 1)
    eventually(lambda: is_clean(admin), timeout=SECONDS)
    with away(database):
        incrby(admin, "n", 1)
        eventually(lambda: "trying again" in worker.log(), timeout=SECONDS)
        incrby(admin, "n", 1)
    eventually(lambda: is_clean(admin), timeout=SECONDS)
    assert database.pairs() == {"n": 3}
    assert worker.stop() == 0


def test_a_worker_outlives_redis(database, make_server, tmp_path):
    server = make_server(config=["appendonly yes"])
    worker = WorkerProcess(server, database, tmp_path / "worker.log", "--queue", QUEUE, "--table", "counters")
    try:
        incrby(server.client(), "n", 1)
        eventually(lambda: is_clean(server.client()), timeout=SECONDS)
        server.kill9()
        eventually(lambda: "trying again" in worker.log(), timeout=SECONDS)
        server.start()
        incrby(server.client(), "n", 1)
        eventually(lambda: is_clean(server.client()), timeout=SECONDS)
        assert database.pairs() == {"n": 2}
        assert worker.stop() == 0
    finally:
        worker.close()


def test_a_worker_leaves_a_primary_that_is_one_no_more(database, make_server, tmp_path):
    """Its connections go, so that the name it knows is looked up again."""
    server, primary = make_server(), make_server()
    worker = WorkerProcess(server, database, tmp_path / "worker.log", "--queue", QUEUE, "--table", "counters")
    try:
        eventually(lambda: info(server.client())["waiters"] == 1, timeout=SECONDS)
        [connection] = [row["id"] for row in server.client().client_list() if row["cmd"] == "writebehind.claim"]
        server.replicate_from(primary)
        eventually(lambda: connection not in [row["id"] for row in server.client().client_list()], timeout=SECONDS)
        server.promote()
        incrby(server.client(), "n", 1)
        eventually(lambda: is_clean(server.client()), timeout=SECONDS)
        assert database.pairs() == {"n": 1}
    finally:
        worker.close()


# Stopping


def test_a_stopped_worker_finishes_what_it_has(admin, database, start):
    database.run("INSERT INTO counters VALUES ('n', 100, 0)")
    if not database.postgres:
        # Its lock makes others fail soon, not wait.
        database.url = database.url.replace("timeout=0.2", "timeout=60")
    with database.locked():
        worker = start()
        incrby(admin, "n", 5)
        eventually(lambda: info(admin)["in_flight"] == 1, timeout=SECONDS)
        worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in worker.log(), timeout=SECONDS)
        incrby(admin, "m", 1)  # is not claimed any more
    assert worker.process.wait(SECONDS) == 0
    assert database.pairs() == {"n": 105}
    assert (info(admin)["dirty"], info(admin)["in_flight"], info(admin)["retries"]) == (1, 0, 0)
    assert worker.log().splitlines()[-1].endswith("stopped")


def test_a_stopped_worker_gives_back_what_it_could_not_write(admin, database, start):
    worker = start("--lease", 600_000)
    eventually(lambda: info(admin)["waiters"] == 1, timeout=SECONDS)
    with away(database):
        incrby(admin, "n", 5)
        eventually(lambda: "trying again" in worker.log(), timeout=SECONDS)
        assert worker.stop() == 0
    assert (info(admin)["dirty"], info(admin)["in_flight"]) == (1, 0)
    assert [record.attempts for record in claim(admin)] == [2]


def test_a_worker_that_waits_stops_too(admin, start):
    worker = start()
    eventually(lambda: info(admin)["waiters"] == 1, timeout=SECONDS)
    assert worker.stop() == 0


# Many


def test_one_worker_for_several_queues(admin, database, start):
    start("--queue", "wb:{2}", queue="wb:{1}")
    incrby(admin, "views:{1}:a", 1, queue="wb:{1}")
    incrby(admin, "views:{2}:a", 2, queue="wb:{2}")
    eventually(lambda: info(admin, "wb:{1}")["keys"] + info(admin, "wb:{2}")["keys"] == 0, timeout=SECONDS)
    assert database.pairs() == {"views:{1}:a": 1, "views:{2}:a": 2}


def test_several_workers_share_the_work(server, client, database):
    stopping = threading.Event()

    def work() -> None:
        table = Table(database.engine, "counters")
        worker = Drain(server.client(), QUEUE, table, count=3, block_ms=50)
        while not stopping.is_set():
            patient_step(worker)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for thread in workers:
        thread.start()
    try:
        for n in range(600):
            incrby(client, f"n{n % 7}", 1)
        eventually(lambda: is_clean(client), timeout=SECONDS)
    finally:
        stopping.set()
        for thread in workers:
            thread.join(SECONDS)
    assert sum(database.pairs().values()) == 600


# Mistakes in the command line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--table", "nowhere"), "nowhere"),
        (("--key-column", "id"), "table counters has no column id"),
        (("--database", "mysql+pymysql://x/y"), "pymysql"),
    ],
)
def test_a_worker_that_cannot_work_says_so(database, start, arguments, complaint):
    worker = start(*arguments)
    assert worker.process.wait(SECONDS) == 1
    assert complaint in worker.log()
