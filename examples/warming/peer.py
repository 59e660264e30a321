"""From a server that runs: all of it by replication, or its most read keys one by one.

python peer.py replicate --old redis://old:6379 --new redis://new:6379
python peer.py copy --old redis://old:6379 --new redis://new:6379 --count 1000
"""

import argparse
import time

import leases
from redis import Redis

DEADLINE_S = 600


def replicate(old, new, host, port):
    """`new` becomes what `old` is, tags and policies and all, and then stands on its own."""
    new.replicaof(host, port)
    deadline = time.monotonic() + DEADLINE_S
    while not has_caught_up(old, new):
        if time.monotonic() > deadline:
            raise TimeoutError("the new server did not catch up")
        time.sleep(0.1)
    new.replicaof("NO", "ONE")


def has_caught_up(old, new):
    target = old.info("replication")["master_repl_offset"]
    state = new.info("replication")
    return state.get("master_link_status") == "up" and state["slave_repl_offset"] >= target


def copy(old, new, count):
    """The most read keys with tags and times. Writers have to send their invalidations to both meanwhile. How many it copied."""
    keys = [key for key, _reads in old.execute_command("CACHE.HOT", "COUNT", count)]
    copied = 0
    for batch in leases.batches(keys):
        tokens = leases.elected(new, batch)
        found = read(old, list(tokens))  # After the leases began: an invalidation that comes now ends them.
        copied += leases.fill(new, tokens, found)
    return copied


def read(old, keys):
    """key -> the value and the options of CACHE.FILL; without those that the old server does not have."""
    with old.pipeline(transaction=True) as pipe:
        for key in keys:
            pipe.execute_command("CACHE.GET", key)
            pipe.execute_command("CACHE.TAGS", key)
            pipe.execute_command("CACHE.TTL", key)
        answers = pipe.execute()
    values, tags, times = answers[::3], answers[1::3], answers[2::3]
    rows = zip(keys, values, tags, times, strict=True)
    return {key: (value, *options(tags, *times)) for key, value, tags, times in rows if value is not None}


def options(tags, soft_ms, hard_ms):
    expiry = ["PX", soft_ms] if soft_ms > 0 else []
    grace = ["GRACE", hard_ms - soft_ms] if hard_ms > soft_ms > 0 else []
    return [*expiry, *grace, *(["TAGS", len(tags), *tags] if tags else [])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["replicate", "copy"])
    parser.add_argument("--old", required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    old, new = Redis.from_url(args.old), Redis.from_url(args.new)
    if args.do == "copy":
        print(f"{copy(old, new, args.count)} keys copied")
    else:
        address = old.get_connection_kwargs()
        replicate(old, new, address["host"], address["port"])
        print(f"{new.dbsize()} keys, and the new server is a primary")


if __name__ == "__main__":
    main()
