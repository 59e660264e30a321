"""Many commands on one server: `make fire`, or with a seed of one's own
KEYWARD_SEED=7 KEYWARD_COMMANDS=1000000 PYTHONPATH=tests .venv/bin/python -m fire"""

from __future__ import annotations

import os
import random
import time

from servers import default_flavour

from fire.run import Run, start
from fire.soak import servers_in_a_folder


def main() -> None:
    seed = int(os.environ.get("KEYWARD_SEED") or random.randrange(2**32))
    commands = int(os.environ.get("KEYWARD_COMMANDS") or 1_000_000)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{default_flavour()} seed {seed}, {time.monotonic() - began:.0f} s: {line}", flush=True)

    with servers_in_a_folder() as make:
        run = Run(*start(make), seed)
        say(f"begins, {commands} commands")
        run.run(commands, batch=2000, say=say)
        say(f"all is well after {run.done['commands']} commands, {run.summary()}")


main()
