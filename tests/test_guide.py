"""The recipes of docs/guide are run, in the order in which a page shows them, and answer what it says.

How to write a page
-------------------
- A block fenced as ```python is run. If it has a `>>>` it is a doctest, and every line belongs to a prompt or to its answer: `...` stands
  for anything, runs of blanks are one blank. Otherwise it is code; what it must come to is said by `assert`, or by a doctest after it.
- All blocks of a page share one namespace and a server that is empty at the beginning. There are from the start:
    r           redis.Redis() of that server, with the protocol that redis-py takes by itself; keys and values are bytes
    redis       the package
    url         of that server, for a client of the page's own: redis.Redis.from_url(url, decode_responses=True)
    eventually  of servers.py: polls until something is so. For hidden blocks; a page sleeps nowhere
    page        the text of the page, for a hidden block that checks a table
  What is in examples/cache_aside, examples/locks and examples/write_through can be imported.
- A block that the reader need not see, such as what stands for his database, is a comment of the page that begins with `<!-- python`.
- A page that needs another configuration, or that stops and starts its server, says so with a comment, redis.conf lines in it or none:
    <!-- server
    maxmemory 20mb
    -->
  Then the server is the page's own, and `server` is its tests/servers.py Server: server.stop(), server.start(), server.kill9().
- A page that is about the client alone and would only take time elsewhere runs on Redis 7.0 alone: <!-- one server: the reason -->
- Blocks fenced as ```redis-cli are run by test_documented_examples.py, on a server of their own.
- `make format` formats the code in the pages, too.
- docs/guide/README.md lists every page.
"""

from __future__ import annotations

import doctest
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
from servers import REPOSITORY, Server, default_flavour, eventually

FOLDER = REPOSITORY / "docs" / "guide"
PAGES = sorted(FOLDER.rglob("*.md"))
FENCE = re.compile(
    r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$|^<!-- python\n(?P<hidden>.*?)^-->$", re.MULTILINE | re.DOTALL
)
OWN_SERVER = re.compile(r"^<!-- server\b(?P<lines>.*?)-->$", re.MULTILINE | re.DOTALL)
ONE_SERVER = re.compile(r"^<!-- one server: \S.*?-->$", re.MULTILINE | re.DOTALL)
# What a page may show. Only the first two are run, so what is meant to be run has no other name.
LANGUAGES = {"python", "redis-cli", "sh", "sql", "lua", "json", "conf", ""}
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# Each is loaded from its file for a page: a module of the tests may have the same name.
EXAMPLES = [
    path for name in ("cache_aside", "locks", "write_through") for path in (REPOSITORY / "examples" / name).glob("*.py")
]


class Block(NamedTuple):
    text: str
    line: int


def name(page: Path) -> str:
    return str(page.relative_to(FOLDER))


def recipes(page: Path) -> Iterator[Block]:
    """What is run of a page, hidden or not."""
    source = page.read_text()
    for found in FENCE.finditer(source):
        if found["hidden"] is not None or found["language"] == "python":
            yield Block(found["hidden"] or found["text"], source[: found.start()].count("\n") + 1)


def run(block: Block, page: Path, namespace: dict[str, object]) -> None:
    if not re.search(r"^>>> ", block.text, re.MULTILINE):
        exec(compile("\n" * block.line + block.text, page, "exec"), namespace)
        return
    assert block.text.startswith(">>> "), f"{name(page)}, line {block.line}: code and prompts in one block"
    test = doctest.DocTestParser().get_doctest(block.text, {}, name(page), str(page), block.line)
    test.globs = namespace
    said: list[str] = []
    failures, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append, clear_globs=False)
    assert failures == 0, "".join(said)


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples have can be imported by their names."""
    for path in EXAMPLES:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, path.stem, module)


@pytest.fixture
def page_server(request: pytest.FixtureRequest, page: Path) -> Server:
    own = OWN_SERVER.search(page.read_text())
    if own is None:
        return request.getfixturevalue("server")
    make_server: Callable[..., Server] = request.getfixturevalue("make_server")
    return make_server(config=own["lines"].strip().splitlines())


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("page", [page for page in PAGES if list(recipes(page))], ids=name)
def test_the_recipes_of_a_page_do_what_it_says(page, page_server):
    if ONE_SERVER.search(page.read_text()) and default_flavour() != "redis-7.0":
        pytest.skip("the page says that it is the same on every server")
    namespace = {
        "__name__": "guide",
        "r": page_server.client(protocol=3),
        "redis": redis,
        "url": f"redis://127.0.0.1:{page_server.port}",
        "eventually": eventually,
        "page": page.read_text(),
    }
    if OWN_SERVER.search(page.read_text()):
        namespace["server"] = page_server
    for block in recipes(page):
        run(block, page, namespace)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_has_something_that_is_run(page):
    languages = {found["language"] for found in FENCE.finditer(page.read_text()) if found["hidden"] is None}
    assert languages & {"python", "redis-cli"}
    assert languages <= LANGUAGES


def test_the_index_lists_every_page():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (FOLDER / "README.md").read_text()))
    assert {name(page) for page in PAGES} - {"README.md"} <= linked


@pytest.mark.parametrize("text", [">>> 1 + 1\n3\n", ">>> 1 / 0\n2\n", "assert 1 == 2\n"])
def test_a_recipe_that_does_something_else_fails(text):
    with pytest.raises(AssertionError):
        run(Block(text, 1), FOLDER / "README.md", {})
