"""The examples of the pages: what is typed into redis-cli, and whether an answer is the one that the page shows.

A block fenced as ```redis-cli holds prompts, commands and answers. Numbers of more than three digits stand for any such
number: times differ from run to run. 4711 stands for any number at all. A token, of a lease or a lock, stands for the one that the server gives out in its
place.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator

BLOCK = re.compile(r"^```redis-cli\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOKEN = re.compile(r"[0-9a-f]{16}-\d+|\b1\d{15}\b")
PROMPT = "127.0.0.1:6379> "


def steps(text: str) -> list[tuple[str, str]]:
    """The commands of a page with the answers it shows."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.findall(text):
        for line in block.splitlines():
            if line.startswith(PROMPT):
                found.append((line.removeprefix(PROMPT), []))
            else:
                assert found, f"an answer without a command: {line}"
                found[-1][1].append(line)
    return [(command, "\n".join(answer)) for command, answer in found]


def typed(text: str, port: int) -> Iterator[tuple[str, str, bool]]:
    """Types the commands of a page one after the other: each with its answer, and whether that is the one on the page."""
    tokens: dict[str, str] = {}
    for command, expected in steps(text):
        current = TOKEN.sub(lambda token: tokens.get(token[0], token[0]), command)
        argv = ["redis-cli", "--no-raw", "-p", str(port), *shlex.split(current)]
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout
        alike = _is_like(answer, expected)
        yield current, answer, alike
        if alike:
            tokens.update(zip(TOKEN.findall(expected), TOKEN.findall(answer), strict=True))


def _blurred(answer: str) -> str:
    return re.sub(r"\d{4,}", "<number>", TOKEN.sub("<token>", answer.strip()))


def _is_like(answer: str, expected: str) -> bool:
    pattern = re.escape(_blurred(expected.replace("4711", "<any>")))
    return re.fullmatch(pattern.replace("<any>", r"(\d+|<number>)"), _blurred(answer)) is not None
