"""The written pages hold together: what they link to is there."""

import re

import pytest
from servers import REPOSITORY

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
    for page in REPOSITORY.glob(pattern)
    if "node_modules" not in page.parts
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", page.read_text())
    files = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [file for file in files if not (page.parent / file).exists()] == []
