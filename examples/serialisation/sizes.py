"""How long a flight is in each format, and what it costs to write and read. On 1000 real ones; it needs no server.

python examples/serialisation/sizes.py
"""

import json
import pickle
import sys
import tempfile
import time
from pathlib import Path

import msgpack

sys.path.append(str(Path(__file__).resolve().parent.parent / "demo"))

import origin

FLIGHTS = 1_000


def flights():
    with tempfile.TemporaryDirectory(prefix="keyward-sizes-") as folder:
        database = Path(folder) / "flights.db"
        origin.load(database, FLIGHTS)
        source = origin.Origin(database)
        pages = [json.loads(source.page(f"flight:{number}").body) for number in range(1, FLIGHTS + 1)]
        source.close()
    return pages


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def without_names(flight):
    """As protobuf has it: fields by number, their names in the program."""
    return [list(value.values()) if isinstance(value, dict) else value for value in flight.values()]


FORMATS = {
    "JSON, as json.dumps writes it": (lambda flight: json.dumps(flight).encode(), json.loads),
    "JSON without blanks": (compact, json.loads),
    "MessagePack": (msgpack.packb, msgpack.unpackb),
    "MessagePack, fields by number": (lambda flight: msgpack.packb(without_names(flight)), msgpack.unpackb),
    "pickle": (pickle.dumps, pickle.loads),
}


def microseconds(work, values):
    start = time.process_time()
    for value in values:
        work(value)
    return (time.process_time() - start) / len(values) * 1e6


def main():
    values = flights()
    print("| format | bytes | µs to write | µs to read |\n|---|---|---|---|")
    for name, (write, read) in FORMATS.items():
        written = [write(value) for value in values]
        size = sum(map(len, written)) / len(written)
        print(f"| {name} | {size:.0f} | {microseconds(write, values):.1f} | {microseconds(read, written):.1f} |")


if __name__ == "__main__":
    main()
