"""The examples in README.md and docs/ are typed into redis-cli, and must answer what the pages say.

A block fenced as ```redis-cli holds prompts, commands and answers. Numbers of more than three digits stand for any such
number: times differ from run to run. 4711 stands for any number at all. A token, of a lease or a lock, stands for the one that the server gives out in its
place. The blocks of one page share a server, which is empty at its beginning.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```redis-cli\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOKEN = re.compile(r"[0-9a-f]{16}-\d+|\b1\d{15}\b")
PROMPT = "127.0.0.1:6379> "


def steps(page):
    """The commands of a page with the answers it shows."""
    found = []
    for block in BLOCK.findall(page.read_text()):
        for line in block.splitlines():
            if line.startswith(PROMPT):
                found.append((line.removeprefix(PROMPT), []))
            else:
                assert found, f"{page.name}: an answer without a command: {line}"
                found[-1][1].append(line)
    return [(command, "\n".join(answer)) for command, answer in found]


def blurred(answer):
    return re.sub(r"\d{4,}", "<number>", TOKEN.sub("<token>", answer.strip()))


def is_like(answer, expected):
    pattern = re.escape(blurred(expected.replace("4711", "<any>")))
    return re.fullmatch(pattern.replace("<any>", r"(\d+|<number>)"), blurred(answer)) is not None


@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)], ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_answer_what_the_page_says(server, page):
    tokens = {}
    for command, expected in steps(page):
        command = TOKEN.sub(lambda token: tokens.get(token[0], token[0]), command)  # noqa: B023, PLW2901
        argv = ["redis-cli", "--no-raw", "-p", str(server.port), *shlex.split(command)]
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout
        assert is_like(answer, expected), f"{page.name}: {command}\n{answer}"
        tokens.update(zip(TOKEN.findall(expected), TOKEN.findall(answer), strict=True))


def test_the_readme_has_examples():
    assert len(steps(ROOT / "README.md")) >= 8
