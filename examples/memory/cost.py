"""What a cached value costs, by the way it is stored: MEMORY USAGE, and what Keyward keeps beside it.

python examples/memory/cost.py --redis redis://127.0.0.1:6379     an empty server with the module; it is emptied again
"""

import argparse
import sys

from redis import Redis

FIELDS = ("name", "brand", "colour", "price", "currency", "stock", "weight", "shop", "category", "rating")
MEMBERS = 100


def product(number):
    """Ten fields of about ten bytes."""
    return {field: f"{field}-{number % 1000:04}" for field in FIELDS}


def as_json(fields):
    return "{" + ",".join(f'"{field}":"{value}"' for field, value in fields.items()) + "}"


def words(number):
    return [f"member:{number % 1000:04}:{n:03}" for n in range(MEMBERS)]


# A value each: what it is -> (the key that shows the encoding, what stores number n).
VALUES = {
    "string of 100 bytes": ("v:1", lambda pipe, n: pipe.set(f"v:{n}", "x" * 100)),
    "the same with 2 tags": (
        "v:1",
        lambda pipe, n: pipe.execute_command(
            "CACHE.SETTAGGED", f"v:{n}", "x" * 100, "EX", 3600, "TAGS", 2, f"brand:{n // 100}", f"shop:{n % 100}"
        ),
    ),
    "10 fields as a JSON string": ("p:1", lambda pipe, n: pipe.set(f"p:{n}", as_json(product(n)))),
    "10 fields as a hash": ("p:1", lambda pipe, n: pipe.hset(f"p:{n}", mapping=product(n))),
    "the same, one field of 65 bytes": (
        "p:1",
        lambda pipe, n: pipe.hset(f"p:{n}", mapping=product(n) | {"name": "x" * 65}),
    ),
    "10 fields as 10 strings": (
        "p:1:name",
        lambda pipe, n: pipe.mset({f"p:{n}:{field}": value for field, value in product(n).items()}),
    ),
    "a counter as a string": ("c:1", lambda pipe, n: pipe.set(f"c:{n}", 100_000 + n)),
    "a counter, 100 of them in a hash": ("c:0", lambda pipe, n: pipe.hset(f"c:{n // 100}", n % 100, 100_000 + n)),
}
# A hundred members each.
COLLECTIONS = {
    "set of numbers": ("s:1", lambda pipe, n: pipe.sadd(f"s:{n}", *range(n, n + MEMBERS))),
    "set of words": ("s:1", lambda pipe, n: pipe.sadd(f"s:{n}", *words(n))),
    "list of words": ("s:1", lambda pipe, n: pipe.rpush(f"s:{n}", *words(n))),
    "sorted set of words": ("s:1", lambda pipe, n: pipe.zadd(f"s:{n}", {word: at for at, word in enumerate(words(n))})),
    "the same, one word of 65 bytes": (
        "s:1",
        lambda pipe, n: pipe.zadd(f"s:{n}", {word: at for at, word in enumerate([*words(n)[1:], "x" * 65])}),
    ),
    "stream, an entry a word": (
        "s:1",
        lambda pipe, n: [pipe.xadd(f"s:{n}", {"word": word}, id=f"1-{at + 1}") for at, word in enumerate(words(n))],
    ),
}


def cost(redis, store, count):
    """Bytes for each, key and all, and what Keyward keeps beside it."""
    redis.flushall()
    beside = metadata(redis)
    for start in range(0, count, 100):
        with redis.pipeline(transaction=False) as pipe:
            for number in range(start, min(start + 100, count)):
                store(pipe, number)
            pipe.execute()
    with redis.pipeline(transaction=False) as pipe:
        for key in redis.scan_iter(count=1000):
            pipe.memory_usage(key, samples=0)
        return (sum(pipe.execute()) + metadata(redis) - beside) / count


def metadata(redis):
    return redis.info("keyward_cache")["keyward_cache_metadata_bytes"]


def table(redis, layouts, count, each=1):
    for name, (key, store) in layouts.items():
        size = cost(redis, store, count) / each
        encoding = redis.object("encoding", key).decode()
        print(f"| {name} | {encoding} | {size:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379")
    parser.add_argument(
        "--count", type=int, default=5_000, help="values of each; of collections a hundredth (default: %(default)s)"
    )
    args = parser.parse_args()
    redis = Redis.from_url(args.redis)
    if redis.dbsize():
        sys.exit("the server is not empty")
    print("| a value | encoding | bytes |\n|---|---|---|")
    table(redis, VALUES, args.count)
    print("\n| 100 members | encoding | bytes a member |\n|---|---|---|")
    table(redis, COLLECTIONS, max(1, args.count // 100), MEMBERS)
    redis.flushall()


if __name__ == "__main__":
    main()
