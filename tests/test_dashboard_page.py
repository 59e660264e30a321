"""The page of examples/dashboard in Chromium: what it shows, that names stay text, and that it asks nobody else."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from dashboard import EXAMPLE, Dashboard, limits
from locks import Waiters
from playwright.sync_api import Browser, Page, expect, sync_playwright
from servers import REPOSITORY, Server, default_flavour, eventually

pytestmark = pytest.mark.skipif(
    default_flavour() != "redis-7.0",
    reason="the page is the same everywhere; test_dashboard.py compares what it draws on each server",
)

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
LIMITS = limits(("api:*", "10 EX 600"), ("export*", "LIMIT 3"))
SCREENSHOT = REPOSITORY / "docs" / "images" / "dashboard.png"
SCREENSHOT_AFTER_MS = 270_000  # then nearly the whole line is there
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '"><svg onload="window.hacked = 1">',
    "{{constructor.constructor('window.hacked = 1')()}}",
    "line\nbreak",
    "\u202egnp.exe",
    "é ✓ 名",
)
SHOWN = (*HOSTILE[:4], r"line\x0abreak", r"\u202egnp.exe", HOSTILE[6])

expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def look(browser, tmp_path) -> Iterator[Callable[..., Page]]:
    """look(server) -> a page of a dashboard of that server. At the end it has asked nobody else, and nothing went wrong."""
    with contextlib.ExitStack() as stack:

        def open_page(server: Server, *options: str, view: dict | None = None) -> Page:
            dashboard = Dashboard(server, tmp_path / "dashboard.log", *LIMITS, *options)
            stack.callback(dashboard.close)
            context = browser.new_context(viewport=view or DESKTOP, reduced_motion="reduce")
            stack.callback(context.close)
            page = context.new_page()
            wrong: list[str] = []
            page.on("console", lambda message: wrong.append(message.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda asked: None if asked.url.startswith(dashboard.url) else wrong.append(asked.url))
            page.on("response", lambda answer: None if answer.ok else wrong.append(answer.url))
            stack.callback(lambda: pytest.fail(f"{wrong}") if wrong else None)
            page.goto(dashboard.url)
            expect(page.locator("#status")).to_have_text("Live")
            return page

        yield open_page


@pytest.fixture
def page(server, look) -> Page:
    return look(server)


def row(page: Page, part: str, key: str):
    """That of the part `part` with this key."""
    return page.locator(f"#{part} > *").filter(has=page.get_by_text(key, exact=True))


def test_a_lock_and_its_queue_come_and_go(server, page):
    expect(page.get_by_text("Nobody holds a lock.")).to_be_visible()
    with Waiters(server) as waiters:
        token = waiters.acquire("ann", key="report:nightly")
        for owner in ("bob", "cleo"):
            waiters.wait(owner, key="report:nightly")
        lock = row(page, "locks", "report:nightly")
        expect(lock.locator(".owner")).to_have_text(["ann", "bob", "cleo"])
        expect(lock.locator(".held .owner")).to_have_text(["ann"])
        expect(lock).to_contain_text(f"token {token}")
        expect(lock).to_contain_text("exclusive")
        waiters.release("ann", key="report:nightly")
        expect(lock.locator(".owner")).to_have_text(["bob", "cleo"])
        expect(lock.locator(".held .owner")).to_have_text(["bob"])
        expect(lock.locator(".first .owner")).to_have_text(["cleo"])
        waiters.release("bob", key="report:nightly")
        waiters.release("cleo", key="report:nightly")
        expect(lock).to_have_count(0)
    expect(page.get_by_text("Nobody holds a lock.")).to_be_visible()


def test_limiters_and_slots(server, page):
    client = server.client()
    client.execute_command("RATELIMIT.CHECK", "api:ann", 10, "EX", 600, "COST", 3)
    client.execute_command("RATELIMIT.CHECK", "other", 10, "EX", 600)
    client.execute_command("RATELIMIT.ENTER", "exports", "job-1", "LIMIT", 3, "EX", 600)
    limiter = row(page, "limiters", "api:ann")
    expect(limiter).to_contain_text("7 of 10 left")
    expect(limiter.get_by_role("meter", name="api:ann, sliding 10 min")).to_have_attribute("aria-valuenow", "7")
    expect(row(page, "limiters", "other")).to_contain_text("1 used")
    expect(page.get_by_text("--limit")).to_be_visible()
    expect(row(page, "slots", "exports").locator(".owner")).to_have_text(["job-1", "free", "free"])
    client.execute_command("RATELIMIT.BAN", "api:ann", "EX", 600)
    expect(limiter).to_contain_text("banned for")


def test_that_there_is_more_is_told(server, page):
    client = server.client()
    expect(page.locator("#cost")).not_to_contain_text("looked for")
    for number in range(20):
        client.execute_command("LOCK.ACQUIRE", f"lock:{number:02}", "ann", "EX", 600)
    expect(page.locator("#locks > li")).to_have_count(16)
    expect(page.locator("#locks-more")).to_have_text("About 4 more are not shown.")
    client.execute_command("DEBUG", "POPULATE", 3000)
    expect(page.locator("#cost")).to_contain_text(re.compile(r"among 1,000 keys at a time; it takes \d"))


def test_tags_after_traffic_and_the_search(server, look):
    page = look(server)
    client = server.client()
    for number in range(20):
        client.execute_command("CACHE.SETTAGGED", f"k{number}", "v", "EX", 600, "TAGS", 1, "chairs")
    client.execute_command("CACHE.SETTAGGED", "cold", "v", "EX", 600, "TAGS", 1, "tables")
    for key in ["k1"] * 3 + ["nothing"]:
        client.execute_command("CACHE.GET", key)
    expect(row(page, "tags", "chairs").locator("td").first).to_have_text("20")
    expect(row(page, "hot", "k1").locator("td")).to_have_text("3")
    expect(page.locator("#ratio")).to_have_text("75.0")
    client.execute_command("CACHE.INVALIDATETAG", "chairs")
    expect(row(page, "tags", "chairs")).to_contain_text("1×")
    page.get_by_label("Look up a tag").fill("tables")
    expect(page.locator("#found")).to_contain_text("tables is on 1 key")
    expect(page.locator("#found li")).to_have_text(["cold"])
    row(page, "tags", "chairs").get_by_role("button").click()
    expect(page.locator("#found")).to_contain_text("chairs is on 0 keys")
    page.get_by_label("Look up a tag").fill("")
    expect(page.locator("#found")).to_be_hidden()


def test_a_queue_and_the_doctor(server, page):
    client = server.client()
    for number in range(3):
        client.execute_command("WRITEBEHIND.SET", "wb", f"k{number}", "v")
    client.execute_command("WRITEBEHIND.CLAIM", "wb", "w")
    expect(row(page, "queues", "wb")).to_contain_text("3, 1 of them at a worker")
    expect(page.locator("#complaints > li").filter(has_text="memory limit")).to_contain_text("maxmemory")
    page.locator("#fine summary").click()
    expect(page.locator("#others > li").filter(has_text="giant tags")).to_be_visible()


def test_hostile_names_stay_text(server, look):
    client = server.client()
    for number, name in enumerate(HOSTILE):
        client.execute_command("LOCK.ACQUIRE", f"lock {name}", name, "EX", 600)
        client.execute_command("RATELIMIT.CHECK", f"limit {name}", 10, "EX", 600)
        client.execute_command("RATELIMIT.ENTER", f"export {name}", name, "LIMIT", 3, "EX", 600)
        client.execute_command("CACHE.SETTAGGED", f"key {name}", "v", "EX", 600, "TAGS", 1, name)
        for _ in range(4):
            # More than once: reads count half after some minutes, and the server may be as old as that just now.
            client.execute_command("CACHE.GET", f"key {name}")
        client.execute_command("WRITEBEHIND.SET", f"queue {name}", f"{number}", "v")
    client.execute_command("LOCK.ACQUIRE", b"\xff\x00\\", b"\xfe", "EX", 600)
    page = look(server)
    for name in SHOWN:
        expect(row(page, "locks", f"lock {name}").locator(".owner")).to_have_text(name)
        expect(row(page, "limiters", f"limit {name}")).to_be_visible()
        expect(row(page, "slots", f"export {name}").locator(".held .owner")).to_have_text(name)
        expect(row(page, "hot", f"key {name}")).to_be_visible()
        expect(row(page, "tags", name)).to_be_visible()
        expect(row(page, "queues", f"queue {name}")).to_be_visible()
        row(page, "tags", name).get_by_role("button").click()
        expect(page.locator("#found")).to_contain_text(f"{name} is on 1 key,")
    expect(row(page, "locks", r"\xff\x00\\").locator(".owner")).to_have_text(r"\xfe")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main :is(script, img)").count() == 0


def test_a_server_that_goes_and_comes_back(make_server, look):
    server = make_server()
    page = look(server)
    server.client().execute_command("LOCK.ACQUIRE", "lock", "ann", "EX", 600)
    expect(row(page, "locks", "lock")).to_be_visible()
    server.stop()
    expect(page.locator("#status")).to_have_text("Away")
    expect(page.get_by_role("alert")).to_have_text(
        re.compile(rf"127\.0\.0\.1:{server.port} cannot be read since \d\d:")
    )
    expect(row(page, "locks", "lock")).to_be_visible()
    server.start()
    expect(page.locator("#status")).to_have_text("Live")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(row(page, "locks", "lock")).to_have_count(0)


# The contrast of each text with what is behind it, by the formula of WCAG 2. Bars are behind some: their colour is taken
# where a text is over one.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const luminance = (colour) => channels(colour).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const style = getComputedStyle(node);
      const drawn = style.backgroundImage.match(/rgb\\([^)]*\\)/);
      if (drawn) return drawn[0];
      if (!/, 0\\)$|transparent/.test(style.backgroundColor)) return style.backgroundColor;
    }
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !parent.getClientRects().length) continue;
    const style = getComputedStyle(parent);
    const colour = parent instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [luminance(colour), luminance(behind(parent))].sort((a, b) => b - a);
    found.push([(a + 0.05) / (b + 0.05), walker.currentNode.textContent.trim()]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


def test_it_can_be_read(server, look):
    client = server.client()
    for number in range(12):
        client.execute_command("RATELIMIT.CHECK", f"api:{number}", 10, "EX", 600, "COST", number % 10 + 1)
        client.execute_command("CACHE.SETTAGGED", f"k{number}:" + "x" * 300, "v", "EX", 600, "TAGS", 1, "t" * 300)
        client.execute_command("CACHE.GET", f"k{number}:" + "x" * 300)
    client.execute_command("RATELIMIT.BAN", "api:11", "EX", 600)
    client.execute_command("WRITEBEHIND.SET", "wb" * 100, "k", "v")
    with Waiters(server) as waiters:
        waiters.acquire("ann" * 30)
        waiters.wait("bob" * 30)
        page = look(server, view=PHONE)
        expect(page.locator("#tags > tr")).to_have_count(1)
        expect(row(page, "locks", "lock").locator(".owner")).to_have_count(2)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 100
            assert contrasts[0][0] >= 4.5, (scheme, contrasts[:5])
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off on a phone"
    assert page.locator("h1").count() == 1
    nameless = "section:not([aria-label], [aria-labelledby]), svg:not([aria-label]), [role=meter]:not([aria-label])"
    assert page.locator(nameless).count() == 0


@pytest.mark.timeout(500)  # with KEYWARD_WRITE_SCREENSHOT; else some seconds
def test_the_screenshot(make_server, look, tmp_path):
    """`make screenshot` lets the shop run for a while and keeps the picture; else a look at the shop is enough."""
    keep = os.environ.get("KEYWARD_WRITE_SCREENSHOT")
    server = make_server(config=["maxmemory 12mb", "maxmemory-policy allkeys-lru"])
    page = look(server, "--traffic")
    expect(page.locator("#locks .waits").first).to_be_visible()
    expect(row(page, "limiters", "shop:api:ann")).to_contain_text("of 60 left")
    expect(row(page, "slots", "shop:export")).to_be_visible()
    expect(row(page, "tags", "shop:chairs")).to_be_visible()
    expect(row(page, "queues", "shop:wb:views")).to_be_visible()
    if keep:
        seen = (
            "fetch('state').then((answer) => answer.json()).then((state) => state.unix_ms - state.history.unix_ms[0])"
        )
        eventually(lambda: page.evaluate(seen) > SCREENSHOT_AFTER_MS, 400)
        expect(page.locator("#locks .waits")).not_to_have_count(0)
    limiters = page.locator("section").filter(has=page.locator("#limiters")).bounding_box()
    picture = {"x": 0, "y": 0, "width": DESKTOP["width"], "height": limiters["y"] + limiters["height"]}
    page.screenshot(path=SCREENSHOT if keep else tmp_path / "dashboard.png", full_page=True, clip=picture)
    kept = SCREENSHOT.read_bytes()
    assert kept.startswith(b"\x89PNG")
    assert struct.unpack(">I", kept[16:20]) == (DESKTOP["width"],)
    assert len(kept) < 200_000


def test_the_shop_leaves_nothing_and_leaves_what_is_not_its_own(make_server):
    server = make_server()
    client = server.client()
    client.set("mine", "v")
    command = [sys.executable, EXAMPLE / "traffic.py", "--url", f"redis://127.0.0.1:{server.port}/0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as shop:
        eventually(lambda: client.exists("shop:wb:views") and client.exists("shop:page:front"))
        shop.terminate()
        assert "open" in shop.stdout.read()
    assert shop.returncode == 0
    assert client.keys() == [b"mine"]
    client.set("shop:mine", "v")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 1
    assert "begin with shop:" in refused.stderr
    assert client.get("shop:mine") == b"v"
