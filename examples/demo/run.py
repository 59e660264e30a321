"""Real flights through the module and, beside it, through the pipelines of a usual caching guide.

python examples/demo/run.py                      about three minutes
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
from page_counters import AtOnce, Counted, DirtySet, WriteBehind, count_views
from read_through import Served, hottest, loader_process, serve_through
from redis_server import module_path, redis_server
from serve import Outcome, serve
from stampede import CALLERS, KEY, Source, Stampede, lock_and_poll, stampede, unprotected, with_keyward
from tqdm import tqdm
from with_keyward import WithKeyward
from without import Without

TTL = 600
WINDOW = 60
ROOMY = "64mb"  # nothing is evicted there


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
        # A server that was lent has no memory to spare for a hundred connections, nor can it be started anew.
        acts = [] if args.url else further_acts(args, Path(folder))
    return verdict(outcomes[0], acts)


def further_acts(args: argparse.Namespace, folder: Path) -> list[Stampede | Counted | Served]:
    """What was done with Keyward in each."""
    stampedes = stampede_act(folder)
    print("\n" + report.table(stampedes, report.STAMPEDES))
    counted = counters_act(args, folder)
    print("\n" + report.table(counted, report.COUNTED))
    served = read_through_act(args, folder)
    print("\n" + report.table(served, report.READ_THROUGH))
    return [stampedes[0], counted[0], *served]


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
        with redis_server(folder, ROOMY, module=way is with_keyward) as connection:
            done.append(stampede(name, way, connection, database))
    return done


def counters_act(args: argparse.Namespace, folder: Path) -> list[Counted]:
    pages = flight_keys(args, folder, share=8)
    print(
        f"\n{len(pages):,} views of flight pages are counted in SQLite; a worker that dies does so at the worst moment"
    )
    done = []
    for kind in (WriteBehind, DirtySet, AtOnce):
        with redis_server(folder, ROOMY, module=kind is WriteBehind) as connection:
            done.append(count_views(kind, connection, folder / f"views-{kind.__name__}.db", pages))
    return done


def read_through_act(args: argparse.Namespace, folder: Path) -> list[Served]:
    keys, database = flight_keys(args, folder, share=4), folder / "fresh.db"
    before, after = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    print(
        f"\n{len(after):,} flight pages are read from a server that has just started; before, another one served as many"
    )

    def run_anew(name: str, keys: list[str], hot: list[bytes] = ()) -> tuple[Served, list[bytes]]:
        with redis_server(folder, ROOMY, module=True) as connection, loader_process(connection, database, folder):
            return serve_through(name, connection, database, keys, hot), hottest(connection)

    _, hot = run_anew("before", before)
    return [run_anew("cold", after)[0], run_anew("warmed", after, hot)[0]]


def flight_keys(args: argparse.Namespace, folder: Path, share: int) -> list[str]:
    """The flight pages that are asked for in a part of the log."""
    source = origin.Origin(folder / "fresh.db")
    events = traffic.log(source.flights(), args.requests // share, args.seed)
    keys = [event.key for event in events if isinstance(event, traffic.Request) and event.key.startswith("flight:")]
    source.close()
    return keys


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


def verdict(outcome: Outcome, acts: list[Stampede | Counted | Served]) -> int:
    """0 if the module kept its promises: no stale answer, one run of the job per night, the late runner refused, one
    query for all callers, no view lost or counted twice, no wrong page."""
    complaints = []
    if outcome.stale:
        complaints.append(f"{outcome.stale} stale answers")
    if outcome.job_runs != outcome.nights:
        complaints.append(f"the nightly job ran {outcome.job_runs} times in {outcome.nights} nights")
    if outcome.refused_late != 1:
        complaints.append("the late writer was not refused")
    for act in acts:
        match act:
            case Stampede(queries=queries, wrong=wrong) if queries != 1 or wrong:
                complaints.append(f"{queries} queries and {wrong} wrong answers in the stampede")
            case Counted(wrong=wrong) | Served(wrong=wrong) if wrong:
                complaints.append(f"{wrong} wrong counters or pages")
    print(f"\n{outcome.name}: " + ("; ".join(complaints) or "every answer was right, every night had one run"))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
