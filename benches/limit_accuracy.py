"""How exactly limits hold: the table of benches/accuracy, which needs no server, as figures."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from figures import Figure

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = ["cargo", "bench", "--quiet", "--no-default-features", "--locked", "--bench", "accuracy"]
# What each promises, as a multiple of the limit.
PROMISED = {"SLIDING": 1.0, "GCRA": 2.0, "FIXED": 2.0}
CELL = re.compile(r"([\d.]+) %, ([\d.]+)x")


def accuracy() -> Iterator[Figure]:
    printed = subprocess.run(COMMAND, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines())
    for algorithm, *cells in rows:
        for load, cell in zip(head[1:], cells, strict=True):
            share, worst = CELL.fullmatch(cell).groups()
            name = f"{algorithm}, {load}: worst true window / limit"
            how = f"admits {share} % of what an exact log admits"
            yield Figure("accuracy", name, float(worst), "x", how, PROMISED.get(algorithm))
