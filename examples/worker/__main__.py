"""Writes to a SQL database what waits in write-behind queues, and loads from it what readers miss.

python -m worker --database sqlite:///shop.db --queue wb --table page_views --prefix page:
python -m worker --database sqlite:///shop.db --loader products product:{id} "SELECT name, price FROM product WHERE id = :id"
"""

import argparse
import logging
import os
import signal
import sys
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial

import sqlalchemy
from redis import Redis, RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from .loader import Loader, by_query
from .loop import keep_going, patiently
from .table import Table
from .write_behind import Drain

BLOCK_MS = 1_000  # how long a stop may take when there is nothing to do

log = logging.getLogger("worker")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--redis",
        default=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"),
        metavar="URL",
        help="default: $REDIS_URL, or the server on this machine",
    )
    parser.add_argument(
        "--database",
        default=os.environ.get("DATABASE_URL"),
        metavar="URL",
        help="postgresql+psycopg://user@host/name or sqlite:///file; default: $DATABASE_URL",
    )
    queues = parser.add_argument_group("write-behind")
    queues.add_argument("--queue", action="append", default=[], metavar="NAME", help="may be given several times")
    queues.add_argument("--table", metavar="NAME", help="where the queues go; schema.name is possible")
    queues.add_argument("--key-column", default="key", metavar="NAME", help="default: %(default)s; must be unique")
    queues.add_argument("--value-column", default="value", metavar="NAME", help="default: %(default)s")
    queues.add_argument("--version-column", default="version", metavar="NAME", help="default: %(default)s; 64 bits")
    queues.add_argument("--prefix", default="", help="cut off the keys: `page:` makes 7 of page:7")
    queues.add_argument(
        "--batch", type=int, default=500, metavar="N", help="records a transaction, default: %(default)s"
    )
    queues.add_argument(
        "--lease",
        type=int,
        default=30_000,
        metavar="MS",
        help="how long the worker may have a batch, default: %(default)s",
    )
    loaders = parser.add_argument_group("read-through")
    loaders.add_argument(
        "--loader",
        action="append",
        nargs=3,
        default=[],
        metavar=("NAME", "PATTERN", "QUERY"),
        help="serve the jobs of a loader: the keys, like flight:{id}, and a query with the parameter :id; may be given several times",
    )
    loaders.add_argument("--ttl", type=int, default=300, metavar="S", help="of what is loaded, default: %(default)s")
    loaders.add_argument("--grace", type=int, default=0, metavar="S", help="how long it is served stale then")
    loaders.add_argument(
        "--nothing-ttl", type=int, default=30, metavar="S", help="of an empty result, default: %(default)s"
    )
    args = parser.parse_args()
    if not args.database:
        parser.error("--database is missing, and DATABASE_URL is not set")
    if bool(args.queue) != bool(args.table):
        parser.error("--queue and --table go together")
    if not args.queue and not args.loader:
        parser.error("nothing to do: neither --queue nor --loader")
    return args


def main() -> None:
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(stop, stopping))
    engine = sqlalchemy.create_engine(args.database, pool_size=len(args.queue) + len(args.loader))
    # The read timeout must outlast BLOCK.
    redis = Redis.from_url(args.redis, socket_timeout=BLOCK_MS / 1000 + 10)
    try:
        drains = patiently(lambda: make_drains(args, redis, engine), stopping, redis) or []
    except (SQLAlchemyError, LookupError) as error:
        sys.exit(f"worker: {error}")
    loaders = make_loaders(args, redis, engine)
    log.info("working on %s for %s", ", ".join([*args.queue, *(loader.name for loader in loaders)]), engine.url)
    tasks = [partial(drain_until, drain, stopping) for drain in drains]
    work(tasks + [partial(keep_going, loader.step, stopping, redis) for loader in loaders], stopping)
    log.info("stopped")


def make_drains(args: argparse.Namespace, redis: Redis, engine: Engine) -> list[Drain]:
    if not args.queue:
        return []
    columns = args.key_column, args.value_column, args.version_column
    table = Table(engine, args.table, *columns, prefix=args.prefix)
    return [
        Drain(redis, queue, table, count=args.batch, lease_ms=args.lease, block_ms=BLOCK_MS) for queue in args.queue
    ]


def make_loaders(args: argparse.Namespace, redis: Redis, engine: Engine) -> list[Loader]:
    times = {"ttl_s": args.ttl, "grace_s": args.grace, "nothing_s": args.nothing_ttl, "block_ms": BLOCK_MS}
    return [Loader(redis, name, by_query(engine, keys, query), **times) for name, keys, query in args.loader]


def stop(stopping: threading.Event, number: int, _frame) -> None:
    """The first signal lets what has begun be finished, a second one does not."""
    log.info("stopping")
    stopping.set()
    signal.signal(number, signal.SIG_DFL)


def drain_until(drain: Drain, stopping: threading.Event) -> None:
    keep_going(drain.step, stopping, drain.redis)
    try:
        drain.close()
    except RedisError as error:
        log.warning("%s: what was in hand comes back at the end of its lease: %s", drain.queue, error)


def work(tasks: list, stopping: threading.Event) -> None:
    """Runs the tasks side by side. If one fails for a reason that was not foreseen, all stop."""
    with ThreadPoolExecutor(max_workers=max(1, len(tasks))) as pool:
        futures = [pool.submit(task) for task in tasks]
        wait(futures, return_when=FIRST_EXCEPTION)
        stopping.set()
    for future in futures:
        future.result()


if __name__ == "__main__":
    main()
