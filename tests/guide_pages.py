"""What the pages of docs/guide share whose code lives in examples/: code is shown as it is run, and figures as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from servers import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
GUIDE = REPOSITORY / "docs" / "guide"


def assert_shows_its_example(page: str, folder: str) -> None:
    """Every block of Python on the page, but for the doctests, is an excerpt of a file of the example, word for word."""
    text = (GUIDE / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    excerpts = [block for block in blocks if not block.startswith(">>> ")]
    files = [file.read_text() for file in (EXAMPLES / folder).glob("*.py")]
    assert excerpts, f"{page} shows nothing of examples/{folder}"
    for excerpt in excerpts:
        assert any(f"\n{excerpt}" in f"\n{file}" for file in files), (
            f"{page} shows what is not in examples/{folder}:\n{excerpt}"
        )


def assert_page_says(page: str, program: str, *options: str, columns: int | None = None) -> None:
    """The tables that the program prints are on the page, give or take what the allocator rounds; of the numbers so many columns."""
    command = [sys.executable, EXAMPLES / program, *options]
    printed = _rows(subprocess.run(command, capture_output=True, text=True, check=True, timeout=150).stdout)
    written = _rows((GUIDE / page).read_text())
    assert printed
    for name, numbers in printed.items():
        for mine, its in zip(numbers[:columns], written[name][:columns], strict=True):
            near = {"abs": 1} if mine.endswith("%") else {"rel": 0.02, "abs": 1}
            assert float(mine.rstrip("%")) == pytest.approx(float(its.rstrip("%")), **near), name


def _rows(text: str) -> dict[str, list[str]]:
    """The rows of its tables: the cells of text as one name -> the cells with numbers."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers = [cell for cell in cells if re.fullmatch(r"[\d.]+%?", cell)]
        if line.startswith("|") and numbers:
            found[" | ".join(cell for cell in cells if cell and cell not in numbers)] = numbers
    return found
