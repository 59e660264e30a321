"""Real flights through the module and, beside it, through the pipelines of a usual caching guide.

python examples/demo/run.py                      about two minutes
python examples/demo/run.py --requests 2000      a small run
python examples/demo/run.py --url redis://...    on a server of yours with the module loaded and an empty database
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import origin
import redis
import report
import traffic
from redis_server import module_path, redis_server
from serve import Outcome, serve
from stampede import CALLERS, KEY, Source, Stampede, lock_and_poll, stampede, unprotected, with_keyward
from tqdm import tqdm
from with_keyward import WithKeyward
from without import Without

TTL = 600
WINDOW = 60
STAMPEDE_MEMORY = "64mb"  # nothing is evicted there


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=40_000, help="length of the log (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2013, help="the log is drawn with it (default: %(default)s)")
    parser.add_argument("--maxmemory", default="6mb", help="of the server that is started (default: %(default)s)")
    parser.add_argument("--url", help="use this server instead; its database must be empty, and is emptied again")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    if obstacle := why_not(args):
        sys.exit(obstacle)
    with tempfile.TemporaryDirectory(prefix="keyward-demo-") as folder:
        outcomes = compare(args, Path(folder))
        print("\n" + report.table(outcomes, report.SERVED))
        # A server that was lent has no memory to spare for a hundred connections.
        stampedes = [] if args.url else stampede_act(Path(folder))
    if stampedes:
        print("\n" + report.table(stampedes, report.STAMPEDES))
    return verdict(outcomes[0], stampedes[:1])


def why_not(args: argparse.Namespace) -> str | None:
    """What keeps the demo from running; nothing has been touched yet."""
    if not args.url:
        present = module_path().exists()
        return None if present else f"{module_path()} is not there: `make build` makes it, or set KEYWARD_MODULE"
    with redis.Redis.from_url(args.url) as connection:
        if connection.dbsize():
            return "the database at --url is not empty"
        if connection.execute_command("COMMAND INFO", "CACHE.GET") == [None]:
            return "the server at --url has not loaded the module"
    return None


def compare(args: argparse.Namespace, folder: Path) -> list[Outcome]:
    start = time.perf_counter()
    flights = origin.load(folder / "fresh.db")
    print(f"{flights:,} flights loaded into SQLite in {time.perf_counter() - start:.1f} s")
    print(f"{args.requests:,} requests, seed {args.seed}, one update after every {traffic.UPDATE_EVERY}")
    outcomes = []
    for kind in (WithKeyward, Without):
        # Each run changes rows, so each starts from a copy.
        database = shutil.copy(folder / "fresh.db", folder / f"{kind.__name__}.db")
        with client(args, folder, module=kind is WithKeyward) as connection:
            outcomes.append(run(kind, connection, database, args))
    return outcomes


def stampede_act(folder: Path) -> list[Stampede]:
    database = folder / "fresh.db"
    start = time.perf_counter()
    Source(database).year()
    alone = 1000 * (time.perf_counter() - start)
    print(
        f"\n{CALLERS} callers miss {KEY} at once; its query takes {alone:,.0f} ms when nobody else asks, no delay was added"
    )
    ways = {"with Keyward": with_keyward, "lock and poll": lock_and_poll, "unprotected": unprotected}
    done = []
    for name, way in ways.items():
        with redis_server(folder, STAMPEDE_MEMORY, module=way is with_keyward) as connection:
            done.append(stampede(name, way, connection, database))
    return done


@contextmanager
def client(args: argparse.Namespace, folder: Path, module: bool) -> Iterator[redis.Redis]:
    if not args.url:
        with redis_server(folder, args.maxmemory, module) as connection:
            yield connection
        return
    with redis.Redis.from_url(args.url) as connection:
        try:
            yield connection
        finally:
            connection.flushdb()


def run(kind: type, connection: redis.Redis, database: Path, args: argparse.Namespace) -> Outcome:
    # A fiftieth of the log per minute: only the scraper asks for more.
    cache = kind(connection, ttl=TTL, limit=max(1, args.requests // 50), window=WINDOW)
    source, auditor = origin.Origin(database), origin.Origin(database)
    before = counters(connection)
    with tqdm(total=args.requests, desc=kind.name, unit=" requests", smoothing=0, disable=None) as bar:
        outcome = serve(cache, source, auditor, traffic.log(source.flights(), args.requests, args.seed), bar.update)
    after = counters(connection)
    source.close()
    auditor.close()
    outcome.server = {name: after[name] - before[name] for name in after}
    return outcome


def counters(connection: redis.Redis) -> dict:
    info = connection.info("everything")
    return {
        "evicted_keys": info["evicted_keys"],
        "total_commands_processed": info["total_commands_processed"],
        "wire_bytes": info["total_net_input_bytes"] + info["total_net_output_bytes"],
        "used_memory": info["used_memory"],
        "keys": connection.dbsize(),
    }


def verdict(outcome: Outcome, stampedes: list[Stampede]) -> int:
    """0 if the module kept its promises: no stale answer, one run of the job per night, the late runner refused, one
    query for all callers."""
    complaints = []
    if outcome.stale:
        complaints.append(f"{outcome.stale} stale answers")
    if outcome.job_runs != outcome.nights:
        complaints.append(f"the nightly job ran {outcome.job_runs} times in {outcome.nights} nights")
    if outcome.refused_late != 1:
        complaints.append("the late writer was not refused")
    for act in stampedes:
        if act.queries != 1 or act.wrong:
            complaints.append(f"{act.queries} queries and {act.wrong} wrong answers in the stampede")
    print(f"\n{outcome.name}: " + ("; ".join(complaints) or "every answer was right, every night had one run"))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
