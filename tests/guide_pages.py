"""What the pages of docs/guide share whose code lives in examples/: it is shown as it is run."""

from __future__ import annotations

import re

from servers import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def assert_shows_its_example(page: str, folder: str) -> None:
    """Every block of Python on the page, but for the doctests, is an excerpt of a file of the example, word for word."""
    text = (REPOSITORY / "docs" / "guide" / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    excerpts = [block for block in blocks if not block.startswith(">>> ")]
    files = [file.read_text() for file in (EXAMPLES / folder).glob("*.py")]
    assert excerpts, f"{page} shows nothing of examples/{folder}"
    for excerpt in excerpts:
        assert any(f"\n{excerpt}" in f"\n{file}" for file in files), (
            f"{page} shows what is not in examples/{folder}:\n{excerpt}"
        )
