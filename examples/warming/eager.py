"""Before the first request: loads the keys of a list from the database, but for those that are there.

python eager.py --redis redis://127.0.0.1:6379 --database shop.db keys.txt
"""

import argparse
import json
import sqlite3
from pathlib import Path

import leases
from redis import Redis

PRODUCTS = "SELECT id, name, shop FROM product WHERE id IN (SELECT value FROM json_each(?))"


def warm(redis, keys, load_many, ttl=3600):
    """Stores what is missing. `load_many(keys)` answers key -> (value, tags). How many keys were stored."""
    stored = 0
    for batch in leases.batches(keys):
        tokens = leases.elected(redis, batch)
        try:
            found = load_many(list(tokens))  # After the leases began: an update that comes now ends them.
        except BaseException:
            leases.give_up(redis, tokens)
            raise
        # Spread: what is filled at once would expire at once.
        fills = {
            key: (value, "EX", ttl, "JITTER", "20%", "TAGS", len(tags), *tags) for key, (value, tags) in found.items()
        }
        stored += leases.fill(redis, tokens, fills)
    return stored


def products(database, keys):
    """One query for all of them."""
    numbers = json.dumps([key.partition(":")[2] for key in keys])
    rows = database.execute(PRODUCTS, (numbers,))
    return {f"product:{number}": (name, ["products", f"shop:{shop}"]) for number, name, shop in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379")
    parser.add_argument("--database", required=True)
    parser.add_argument("keys", type=Path, help="a file with a key a line, the most important first")
    args = parser.parse_args()
    database = sqlite3.connect(args.database)
    keys = args.keys.read_text().split()
    stored = warm(Redis.from_url(args.redis), keys, lambda keys: products(database, keys))
    print(f"{stored} of {len(keys)} keys loaded")


if __name__ == "__main__":
    main()
