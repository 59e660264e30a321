"""Many commands on one server: `make fire`, or with a seed of one's own
KEYWARD_SEED=7 KEYWARD_COMMANDS=1000000 PYTHONPATH=tests .venv/bin/python -m fire"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
import time
from pathlib import Path

from servers import Server, default_flavour

from fire.run import Run, start


def main() -> None:
    seed = int(os.environ.get("KEYWARD_SEED") or random.randrange(2**32))
    commands = int(os.environ.get("KEYWARD_COMMANDS") or 1_000_000)
    began, number = time.monotonic(), itertools.count()

    def say(line: str) -> None:
        print(f"{default_flavour()} seed {seed}, {time.monotonic() - began:.0f} s: {line}", flush=True)

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def make(**options: object) -> Server:
            server = Server(Path(folder, str(next(number))), **options).start()
            stack.callback(server.kill9)
            return server

        servers = start(make)
        run = Run(*servers, seed)
        say(f"begins, {commands} commands")
        run.run(commands, batch=2000, say=say)
        say(f"all is well after {run.done['commands']} commands, {run.summary()}")


main()
