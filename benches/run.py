"""All figures in one table: the module beside the same server without it, and beside the usual recipes.

python benches/run.py                     everything but --big and scale, a quarter of an hour or so
python benches/run.py --quick             a first look in some minutes
python benches/run.py --only lock,plain   some groups
python benches/run.py --only scale --entries 1,10,30   the same figures at several sizes, in millions: an hour or more
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain

import fan_out
import instructions
import limit_accuracy
import lock_hand_over
import memory
import rate_limits
import scale
import stalls
import stampede
import write_behind
from bench_server import servers
from figures import Figure, table


def groups(lab: instructions.Laboratory, args: argparse.Namespace) -> dict[str, Callable[[], Iterator[Figure]]]:
    """Every group of figures, in the order of the table. Nothing runs until a group is called."""
    quick, server = args.quick, args.server
    # The library of redis-cell, which stands there for comparison if it is named.
    redis_cell = os.environ.get("KEYWARD_REDIS_CELL")
    return {
        "plain": lambda: instructions.plain_commands(lab),
        "cache-get": lambda: instructions.cache_reads(lab),
        "fetch": lambda: instructions.fetches(lab),
        "policies": lambda: instructions.policies(lab),
        "stampede": lambda: stampede.stampede(server, clients=200, rounds=2 if quick else 20),
        "hand-over": lambda: stampede.hand_over(
            server, waiters=1000, rounds=2 if quick else 20, counted_rounds=3 if quick else 9
        ),
        "settagged": lambda: instructions.tagged_writes(lab, aof=False),
        "settagged-aof": lambda: instructions.tagged_writes(lab, aof=True),
        "ratelimit": lambda: rate_limits.rate_limits(lab),
        "accuracy": limit_accuracy.accuracy,
        "throttle": lambda: chain(
            rate_limits.throttles(lab, redis_cell),
            memory.throttle_bytes(server, limiters=20_000 if quick else 100_000, redis_cell=redis_cell),
        ),
        "lock": lambda: instructions.locks(lab),
        "lock-hand-over": lambda: chain(
            lock_hand_over.lock_hand_over(server, clients=20, rounds=2 if quick else 25),
            lock_hand_over.lock_session(server, rounds=3 if quick else 25),
        ),
        "writebehind": lambda: write_behind.writes(lab),
        "next-dirty": lambda: write_behind.next_dirty(
            server, keys=100_000 if quick else 1_000_000, rounds=3 if quick else 20
        ),
        "limiter-bytes": lambda: memory.limiter_bytes(server, seconds=3 if quick else 30),
        "entry-bytes": lambda: memory.entry_bytes(server, entries=50_000 if quick else 200_000),
        "invalidate": lambda: stalls.invalidate_tag(
            server, keys=100_000 if quick else 1_000_000, rounds=1 if quick else 3
        ),
        "big-insert": lambda: stalls.big_insert(server, entries=200_000 if quick else 5_000_000),
        "fan-out": lambda: fan_out.fan_out(server, shards=(3, 6) if quick else (3, 6, 12)),
        "scale": lambda: scale.scale(server, sizes=args.entries),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="redis-7.0", choices=servers.FLAVOURS, help="default: %(default)s")
    parser.add_argument("--only", default="", help="groups to run, comma-separated")
    parser.add_argument("--big", action="store_true", help="also big-insert: five million entries, about 2 GB")
    parser.add_argument(
        "--entries", type=sizes, default="1", metavar="M,M", help="sizes of scale in millions; default: 1"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a first look, not for quoting")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args()


def sizes(millions: str) -> list[int]:
    return [int(float(size) * 1_000_000) for size in millions.split(",")]


def chosen(names: list[str], args: argparse.Namespace) -> list[str]:
    if not args.only:
        return [name for name in names if name != "scale" and (args.big or name != "big-insert")]
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(names):
        sys.exit(f"no such group: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    return [name for name in names if name in wanted]


def main() -> None:
    args = parse_arguments()
    if not servers.module_path().exists():
        sys.exit(f"{servers.module_path()} is not there: `make build` makes it, or set KEYWARD_MODULE")
    size = (
        {"requests": 2_000, "rounds": 1, "fixture": 10_000}
        if args.quick
        else {"requests": 10_000, "rounds": 3, "fixture": 100_000}
    )
    figures = []
    with instructions.Laboratory(args.server, **size) as lab:
        available = groups(lab, args)
        for name in chosen(list(available), args):
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            figures += available[name]()
    version = ".".join(map(str, servers.server_version(args.server)))
    if args.json:
        print(
            json.dumps(
                {
                    "server": args.server,
                    "version": version,
                    "quick": args.quick,
                    "figures": [f.as_json() for f in figures],
                },
                indent=2,
            )
        )
        return
    print(
        f"{args.server} ({version}), {size['requests']:,} requests a round, {size['rounds']} rounds{', quick' if args.quick else ''}\n"
    )
    print(table(figures))


if __name__ == "__main__":
    main()
