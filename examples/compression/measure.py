"""What compression saves and costs, on pages of real flights.

python examples/compression/measure.py --redis redis://127.0.0.1:6379     an empty server; it is emptied again
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import compression
import zstandard
from redis import Redis

sys.path.append(str(Path(__file__).resolve().parent.parent / "demo"))

import origin

MONTH = 27_000  # flights
TRAINING = 1_000
DICTIONARY_BYTES = 16_384


def pages(database, count):
    """Pages of single flights, and boards with all departures of an hour, of an airport."""
    source = origin.Origin(database)
    flights = source.flights()
    drawn = flights[:: max(1, len(flights) // count)][:count]
    single = [source.page(f"flight:{flight['id']}").body for flight in drawn]
    names = dict.fromkeys(f"board:{flight['origin']}:{flight['day']}:{flight['hour']}" for flight in drawn)
    boards = [source.page(name).body for name in names]
    source.close()
    return {"flights": single, "boards": boards}


def codecs(training):
    dictionary = zstandard.train_dictionary(DICTIONARY_BYTES, training)
    return {
        "zlib": compression.Zlib(),
        "zstd": compression.Zstd(),
        "zstd, dictionary": compression.Zstd(dictionaries=[dictionary]),
    }


def in_redis(redis, values):
    """Bytes for each value, key and all."""
    redis.flushall()
    with redis.pipeline(transaction=False) as pipe:
        for number, value in enumerate(values):
            pipe.set(f"page:{number:06}", value, ex=3600)
            pipe.memory_usage(f"page:{number:06}")
        return sum(pipe.execute()[1::2]) / len(values)


def microseconds(work, values):
    """Processor time for each."""
    start = time.process_time()
    for value in values:
        work(value)
    return (time.process_time() - start) / len(values) * 1e6


def report(redis, name, values, training):
    plain = in_redis(redis, values)
    print(f"| {name} | none | {sum(map(len, values)) / len(values):.0f} | {plain:.0f} | | | |")
    for kind, codec in codecs(training).items():
        packed = [compression.pack(value, codec) for value in values]
        memory = in_redis(redis, packed)
        write = microseconds(lambda value, codec=codec: compression.pack(value, codec), values)
        read = microseconds(lambda stored, codec=codec: compression.unpack(stored, [codec]), packed)
        size = sum(map(len, packed)) / len(packed)
        print(f"| {name} | {kind} | {size:.0f} | {memory:.0f} | {1 - memory / plain:.0%} | {write:.0f} | {read:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379")
    parser.add_argument("--pages", type=int, default=1_000, help="of flights (default: %(default)s)")
    args = parser.parse_args()
    redis = Redis.from_url(args.redis)
    if redis.dbsize():
        sys.exit("the server is not empty")
    with tempfile.TemporaryDirectory(prefix="keyward-compression-") as folder:
        database = Path(folder) / "flights.db"
        origin.load(database, MONTH)
        kinds = pages(database, args.pages + TRAINING)
    print(
        "| pages | compressed by | bytes | in Redis | saved | µs to write | µs to read |\n|---|---|---|---|---|---|---|"
    )
    for name, values in kinds.items():
        # The dictionary is trained on other values than those that are measured.
        training = values[:: max(2, len(values) // TRAINING)]
        known = set(training)
        report(redis, name, [value for value in values if value not in known], training)
    redis.flushall()


if __name__ == "__main__":
    main()
