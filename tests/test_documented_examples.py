"""The examples in README.md and docs/ are typed into redis-cli, and must answer what the pages say. How an answer is
compared: documented_examples.py. The blocks of one page share a server, which is empty at its beginning.
"""

from pathlib import Path

import pytest
from documented_examples import steps, typed

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if steps(page.read_text())], ids=lambda page: str(page.relative_to(ROOT))
)
def test_examples_answer_what_the_page_says(server, page):
    for command, answer, alike in typed(page.read_text(), server.port):
        assert alike, f"{page.name}: {command}\n{answer}"


def test_the_readme_has_examples():
    assert len(steps((ROOT / "README.md").read_text())) >= 8
