"""While the service runs: the most read keys of the old server are kept in a file, and given to the loaders of the new one.

python background.py keep --redis redis://old:6379 hot.txt          every minute, and before the switch
python background.py warm --redis redis://new:6379 hot.txt --loader products
"""

import argparse
from pathlib import Path

import leases
from redis import Redis


def keep(redis, path, count=10_000):
    """The most read keys, a line each. A server that has just started has none, and must not empty the file."""
    keys = [key.decode() for key, _reads in redis.execute_command("CACHE.HOT", "COUNT", count)]
    if keys:
        path.write_text("".join(f"{key}\n" for key in keys))
    return len(keys)


def warm(redis, path, loader):
    """Queues what is missing, after all that somebody waits for. Loaders bring it: see examples/worker."""
    keys = path.read_text().split()
    return sum(redis.execute_command("CACHE.WARM", loader, *batch) for batch in leases.batches(keys))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["keep", "warm"])
    parser.add_argument("--redis", default="redis://127.0.0.1:6379")
    parser.add_argument("--loader", help="its name; for warm")
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    redis = Redis.from_url(args.redis)
    if args.do == "keep":
        print(f"{keep(redis, args.file)} keys kept")
    elif args.loader:
        print(f"{warm(redis, args.file, args.loader)} keys queued")
    else:
        parser.error("warm needs --loader")


if __name__ == "__main__":
    main()
