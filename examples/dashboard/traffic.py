"""A small furniture shop, so that there is something to see: readers, editors, check-outs, an API, exports, page counters.

python examples/dashboard/traffic.py --url redis://127.0.0.1:6379

Some hundred commands a second, until Ctrl-C. All keys and tags begin with `shop:`; at the end the keys are removed.
"""

import argparse
import itertools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable

import redis

PREFIX = "shop:"
ROOMS = ("chairs", "tables", "lamps", "sofas", "shelves", "beds", "rugs", "desks")
MAKERS = 12
PRODUCTS = 600
SKEW = 0.9  # Zipf, as in the demo
WEIGHTS = list(itertools.accumulate(1 / rank**SKEW for rank in range(1, PRODUCTS + 1)))
FRONT_PAGE = "shop:page:front"

READERS = 16
CHECKOUTS = 7
API_LIMITS = (60, "EX", 60, "GCRA", 2, "EX", 1, "BURST", 8)
API_CALLERS = {"ann": 0.6, "bob": 0.9, "cleo": 0.4, "dan": 1.3, "erin": 0.2, "scraper": 3.0}  # requests a second
PRINTERS = 3
EXPORTS = 4

# For the dashboard, which cannot know them: --limit PATTERN LIMITS.
LIMITS = {"shop:api:*": " ".join(map(str, API_LIMITS)), "shop:export": f"LIMIT {EXPORTS}"}


class Shop:
    def __init__(self, url: str, seed: int) -> None:
        self.redis = redis.Redis.from_url(url, max_connections=200)
        self.seed = seed
        self.closing = threading.Event()

    def rest(self, seconds: float) -> None:
        self.closing.wait(seconds)

    def do(self, *command: object) -> object:
        return self.redis.execute_command(*command)

    # Everybody below goes on until the shop closes. `draw` is the random numbers of that one.

    def reader(self, name: str, draw: random.Random) -> None:
        key = FRONT_PAGE if draw.random() < 0.08 else product(draw)
        status, _, token = self.do("CACHE.FETCH", key, "WAIT", 3000, "LEASE", 1500)
        if status in (b"MISS", b"REFRESH") and token:
            self.load(key, token, draw)
        self.rest(draw.expovariate(12))

    def load(self, key: str, token: bytes, draw: random.Random) -> None:
        """What a database would do, in the time it would take. The loader dies now and then."""
        if draw.random() < 0.004:
            return
        if key == FRONT_PAGE:
            self.rest(0.5)
            tags = [f"{PREFIX}{room}" for room in ROOMS[:3]]
            self.do("CACHE.FILL", key, token, "f" * 6000, "EX", 12, "TAGS", len(tags), *tags)
        else:
            self.rest(draw.uniform(0.005, 0.04))
            number = int(key.rpartition(":")[2])
            if number % 41 == 0:
                self.do("CACHE.FILLNIL", key, token, "EX", 20)
                return
            tags = (f"{PREFIX}{ROOMS[number % len(ROOMS)]}", f"{PREFIX}maker:{number % MAKERS}")
            value = "p" * draw.randrange(200, 900)
            self.do("CACHE.FILL", key, token, value, "EX", 60, "JITTER", 20, "GRACE", 30, "TAGS", len(tags), *tags)

    def editor(self, name: str, draw: random.Random) -> None:
        """A row has changed, or everything of one maker, or a whole room."""
        kind = draw.random()
        if kind < 0.7:
            self.do("CACHE.INVALIDATE", product(draw))
        elif kind < 0.9:
            self.do("CACHE.INVALIDATETAG", f"{PREFIX}maker:{draw.randrange(MAKERS)}")
        else:
            self.do("CACHE.STALETAG", f"{PREFIX}{draw.choice(ROOMS)}")
        self.rest(draw.uniform(0.5, 2))

    def checkout(self, name: str, draw: random.Random) -> None:
        """One at a time may change the stock of an article; most want the same one."""
        article = draw.choices((17, 4, 230), (6, 2, 1))[0]
        self.hold(f"{PREFIX}stock:{article}", name, draw.uniform(0.4, 1.6), "WAIT", 20_000, "SESSION")
        self.rest(draw.uniform(0.2, 2))

    def searcher(self, name: str, draw: random.Random) -> None:
        self.hold(f"{PREFIX}catalogue", name, draw.uniform(0.5, 2), "WAIT", 20_000, "SHARED")
        self.rest(draw.uniform(0.5, 2))

    def importer(self, name: str, draw: random.Random) -> None:
        self.hold(f"{PREFIX}catalogue", name, draw.uniform(1, 2), "WAIT", 20_000)
        self.rest(draw.uniform(3, 8))

    def packer(self, name: str, draw: random.Random) -> None:
        self.hold(f"{PREFIX}printer", name, draw.uniform(1, 3), "WAIT", 20_000, "PERMITS", PRINTERS)
        self.rest(draw.uniform(0.2, 2))

    def hold(self, key: str, owner: str, seconds: float, *options: object) -> None:
        # The connection of a SESSION must be the owner's own while it holds the lock.
        with self.redis.client() as connection:
            if connection.execute_command("LOCK.ACQUIRE", key, owner, "EX", 8, *options):
                self.rest(seconds)
                connection.execute_command("LOCK.RELEASE", key, owner)

    def api(self, name: str, draw: random.Random) -> None:
        caller = name.partition("-")[2]
        key = f"{PREFIX}api:{caller}"
        allowed, *_, index = self.do("RATELIMIT.CHECK", key, *API_LIMITS)
        if caller == "scraper" and not allowed and index == 0:
            self.do("RATELIMIT.BAN", key, "EX", 10)
            self.rest(5)
        self.rest(draw.expovariate(API_CALLERS[caller]))

    def export(self, name: str, draw: random.Random) -> None:
        if self.do("RATELIMIT.ENTER", f"{PREFIX}export", name, "LIMIT", EXPORTS, "EX", 15, "WAIT", 20_000)[0]:
            self.rest(draw.uniform(1, 5))
            self.do("RATELIMIT.LEAVE", f"{PREFIX}export", name)
        self.rest(draw.uniform(0.5, 2))

    def visitor(self, name: str, draw: random.Random) -> None:
        """Views are counted behind the cache, and baskets are saved behind it."""
        self.do("WRITEBEHIND.INCRBY", "shop:wb:views", product(draw).replace("product", "views"), 1, "EX", 120)
        if draw.random() < 0.2:
            basket = f"{PREFIX}basket:{draw.randrange(80)}"
            self.do("WRITEBEHIND.SET", "shop:wb:baskets", basket, "b" * draw.randrange(40, 200), "EX", 120)
        self.rest(draw.expovariate(25))

    def worker(self, queue: str, draw: random.Random) -> None:
        """One basket is refused by the database whenever it comes, and ends on the dead list."""
        jobs = self.do("WRITEBEHIND.CLAIM", queue, "worker-1", "COUNT", 40, "BLOCK", 300)
        self.rest(draw.uniform(0.5, 2.5))
        for key, version, *_ in jobs:
            if key == b"shop:basket:13":
                self.do("WRITEBEHIND.NACK", queue, "worker-1", key, version, "MSG", "too long for the column")
            else:
                self.do("WRITEBEHIND.ACK", queue, "worker-1", key, version)

    # Opening and closing

    def staff(self) -> list[tuple[str, Callable[[str, random.Random], None]]]:
        people = {
            "reader": (self.reader, READERS),
            "checkout": (self.checkout, CHECKOUTS),
            "search": (self.searcher, 4),
        }
        people |= {"packer": (self.packer, 6), "export": (self.export, 6), "visitor": (self.visitor, 2)}
        named = [(f"{name}-{n}", task) for name, (task, count) in people.items() for n in range(1, count + 1)]
        named += [(f"api-{caller}", self.api) for caller in API_CALLERS]
        named += [(f"{PREFIX}wb:{queue}", self.worker) for queue in ("views", "baskets")]
        return [*named, ("editor", self.editor), ("import", self.importer)]

    def open(self) -> None:
        """Serves until close() is called, then clears up."""
        for queue in ("views", "baskets"):
            self.do("WRITEBEHIND.CONFIG", f"{PREFIX}wb:{queue}", "ATTEMPTS", 2, "DELAY", 500)
        threads = [threading.Thread(target=self.keep_on, args=person) for person in self.staff()]
        for thread in threads:
            thread.start()
        self.closing.wait()
        # Who waits for a lock or a slot has one soon, since nobody comes any more.
        for thread in threads:
            thread.join()
        for key in self.keys():
            self.redis.unlink(key)

    def keep_on(self, name: str, task: Callable[[str, random.Random], None]) -> None:
        draw = random.Random(f"{self.seed} {name}")
        while not self.closing.is_set():
            try:
                task(name, draw)
            except redis.RedisError:
                self.rest(1)  # away, or full

    def close(self, *_: object) -> None:
        self.closing.set()

    def keys(self) -> list[bytes]:
        return list(self.redis.scan_iter(f"{PREFIX}*", count=1000))


def product(draw: random.Random) -> str:
    return f"{PREFIX}product:{draw.choices(range(PRODUCTS), cum_weights=WEIGHTS)[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url",
        default=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379"),
        help="default: $REDIS_URL, or the server on this machine",
    )
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (default: %(default)s)")
    args = parser.parse_args()
    shop = Shop(args.url, args.seed)
    try:
        if shop.keys():
            sys.exit(f"traffic: there are keys that begin with {PREFIX}")
    except redis.RedisError as error:
        sys.exit(f"traffic: {error}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, shop.close)
    print("traffic: the shop is open, Ctrl-C closes it", flush=True)
    shop.open()


if __name__ == "__main__":
    main()
