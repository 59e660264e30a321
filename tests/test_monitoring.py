"""examples/monitoring: the script hands over every number, and Prometheus, its rules and the dashboard work with them.

Prometheus sees nothing of the server but what the script and the exporter say. So these run with all servers, and
Prometheus with one of them.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import redis
from prometheus import EXAMPLE, INTERVAL, PAGE, SOME_SCRAPES, Exporter, Prometheus
from raw_client import RawClient
from servers import Server, default_flavour, eventually
from write_behind import ack, claim, config, nack, put

SCRIPT = (EXAMPLE / "keyward.lua").read_text()
ALERTS = (EXAMPLE / "alerts.yml").read_text()
PASSWORD = "a-long-password"

one_server = pytest.mark.skipif(
    default_flavour() != "redis-7.0", reason="Prometheus sees no difference between servers"
)


def numbers(client: redis.Redis) -> dict[str, int]:
    """What INFO says of the module."""
    return client.info("keyward")


def handed_over(client: redis.Redis) -> dict[str, int]:
    """What the script returns, called as the exporter calls it."""
    reply = client.eval(SCRIPT, 0, 0)
    return {name.decode(): int(value) for name, value in zip(reply[::2], reply[1::2], strict=True)}


# The script, on every server


def test_the_script_hands_over_every_number(client):
    client.execute_command("CACHE.SETTAGGED", "k", "v", "EX", 100, "TAGS", 1, "t")
    client.execute_command("CACHE.GET", "k")
    assert handed_over(client) == numbers(client)
    assert handed_over(client)["keyward_cache_tags"] == 1


def test_the_script_runs_where_writes_do_not(make_server):
    server = make_server(config=["replica-serve-stale-data no", "min-replicas-to-write 1"])
    client = server.client(socket_timeout=10)
    for command in (
        ("CLIENT", "PAUSE", 100_000, "WRITE"),
        ("CONFIG", "SET", "maxmemory", 1),
        ("REPLICAOF", "127.0.0.1", 1),
    ):
        client.execute_command(*command)
        assert "keyward_caught_panics" in handed_over(client)


def test_the_user_of_the_page_may_run_the_script_and_nothing_else(make_server):
    server = make_server()
    client = server.client()
    client.set("k", "v")
    add_exporter_user(client)
    exporter = server.client(username="exporter", password=PASSWORD)
    assert handed_over(exporter) == numbers(client)
    for command in (("GET", "k"), ("CONFIG", "GET", "*"), ("EVAL", "return redis.call('GET', 'k')", 0)):
        with pytest.raises(redis.exceptions.NoPermissionError if command[0] != "EVAL" else redis.ResponseError):
            exporter.execute_command(*command)


def add_exporter_user(client: redis.Redis) -> None:
    command = re.search(r"^ACL SETUSER exporter .*$", PAGE.read_text(), re.MULTILINE)[0]
    assert f">{PASSWORD}" in command
    client.execute_command(*command.split())


# The exporter, on every server


@pytest.mark.parametrize("user", [False, True], ids=["default user", "user of its own"])
def test_the_exporter_shows_every_number_and_provokes_no_error(make_server, tmp_path, user):
    server = make_server()
    client = server.client()
    add_exporter_user(client)
    client.execute_command("CACHE.SETTAGGED", "k", "v", "EX", 100, "TAGS", 1, "t")
    errors = client.info("errorstats")
    exporter = Exporter(tmp_path, user=user)
    try:
        page = exporter.scrape(server.port)
    finally:
        exporter.stop()
    shown = re.findall(r'^redis_script_values\{key="(\w+)"\} (\S+)$', page, re.MULTILINE)
    assert {name: float(value) for name, value in shown} == numbers(client)
    assert "\nredis_up 1\n" in page
    assert ("\nredis_config_maxclients " in page) is not user
    assert "level=error" not in exporter.log.read_text()
    assert (client.info("errorstats"), client.acl_log()) == (errors, [])


@one_server
def test_a_server_that_loads_its_data_counts_as_down(make_server, tmp_path):
    primary = make_server()
    # Values that do not shrink in the file: between any two of them the server looks at its clients.
    primary.client().mset({f"k{n}": os.urandom(1500) for n in range(2000)})
    replica = make_server(config=["key-load-delay 50000", "loading-process-events-interval-bytes 1024"])
    exporter = Exporter(tmp_path, user=False)

    def shows(*lines: str) -> bool:
        page = exporter.scrape(replica.port)
        return all(f"\n{line}\n" in page for line in lines)

    try:
        replica.replicate_from(primary)
        eventually(lambda: shows("redis_up 0", "redis_loading_dump_file 1"))
        replica.client().config_set("key-load-delay", 0)
        eventually(lambda: shows("redis_up 1", "redis_loading_dump_file 0"))
    finally:
        exporter.stop()


# Prometheus


@dataclass
class Watched:
    server: Server
    exporter: Exporter
    prometheus: Prometheus

    def metrics(self, job: str = "keyward") -> dict[str, int]:
        series = self.prometheus.query(f'{{__name__=~"keyward_.+", job="{job}"}}')
        for labels in (entry["metric"] for entry in series):
            assert set(labels) == {"__name__", "instance", "job"}
            assert labels["instance"] == f"127.0.0.1:{self.server.port}"
        return {entry["metric"]["__name__"]: int(entry["value"][1]) for entry in series}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("monitoring")
    server = Server(folder / "server").start()
    add_exporter_user(server.client())
    exporter = Exporter(folder, user=True)
    with later_exporter() as later:
        prometheus = Prometheus(folder / "prometheus", configuration(server, exporter, later))
        try:
            make_traffic(server)
            yield Watched(server, exporter, prometheus)
        finally:
            prometheus.stop()
            exporter.stop()
            server.check()
            server.stop()


def configuration(server: Server, exporter: Exporter, later: str) -> str:
    """That of the example, with this server and exporter, in a hurry; and its job once more, for the later exporter."""
    text = (EXAMPLE / "prometheus.yml").read_text()
    for old, new in {"127.0.0.1:6379": f"127.0.0.1:{server.port}", "interval: 15s": f"interval: {INTERVAL}"}.items():
        assert old in text
        text = text.replace(old, new)
    head, job = text.split("scrape_configs:\n")
    assert job.count("127.0.0.1:9121") == 1
    jobs = [
        job.replace("127.0.0.1:9121", exporter.address),
        job.replace("127.0.0.1:9121", later).replace("job_name: keyward", "job_name: later"),
    ]
    return f"{head}scrape_configs:\n{''.join(jobs)}"


@contextmanager
def later_exporter() -> Iterator[str]:
    """The shapes in which later exporters have the module's numbers."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'redis_script_values{filename="keyward.lua",key="keyward_scripted"} 7\n')
            self.wfile.write(b"redis_keyward_included 8\n")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{web.server_address[1]}"
        web.shutdown()


def make_traffic(server: Server) -> None:
    """Something of every family, and in the end one write that was given up."""
    client = server.client()
    call = client.execute_command
    for n in range(20):
        call("CACHE.SETTAGGED", f"k{n}", "v", "EX", 1000, "TAGS", 2, "t", f"t{n}")
        call("CACHE.MGET", f"k{n}", "none")
        call("RATELIMIT.CHECK", "limit", 5, "EX", 1000)
    call("CACHE.INVALIDATETAG", "t3")
    call("CACHE.SET", "versioned", "v", "EX", 1000, "VERSION", 5)
    with RawClient(server) as waiting:
        _, _, token = call("CACHE.FETCH", "loaded")
        waiting.send("CACHE.FETCH", "loaded", "WAIT", 60_000)
        eventually(lambda: numbers(client)["keyward_cache_waiters"] == 1)
        call("CACHE.FILL", "loaded", token, "v", "EX", 1000)
        assert waiting.read()[0] == b"HIT"
    call("LOCK.ACQUIRE", "lock", "ann", "EX", 1000)
    call("RATELIMIT.ENTER", "slots", "ann", "LIMIT", 3, "EX", 1000)
    config(client, "ATTEMPTS", 1)
    good, bad = put(client, "good", "v", "EX", 1000), put(client, "bad", "v", "EX", 1000)
    assert len(claim(client)) == 2
    assert (ack(client, "good", good), nack(client, "bad", bad)) == (1, 1)


@one_server
def test_prometheus_has_every_number_of_info(watched):
    client = watched.server.client()
    told = eventually(lambda: agreement(watched, client))
    assert told["keyward_cache_stampedes_suppressed"] == 1
    assert told["keyward_ratelimit_denied"] == 15
    assert told["keyward_writebehind_dead"] == 1


def agreement(watched: Watched, client: redis.Redis) -> dict[str, int]:
    scraped = watched.metrics()
    assert scraped == numbers(client)
    return scraped


@one_server
def test_later_exporters_give_the_same_names(watched):
    expected = {"keyward_scripted": 7, "keyward_included": 8}
    assert eventually(lambda: watched.metrics(job="later") == expected)


@one_server
def test_rules_are_evaluated_and_an_alert_fires(watched):

    def states() -> dict[str, str]:
        rules = watched.prometheus.rules()
        assert [rule for rule in rules if rule["health"] != "ok"] == []
        return {rule["name"]: rule["state"] for rule in rules if rule["type"] == "alerting"}

    eventually(lambda: states()["KeywardWriteBehindDead"] == "firing")
    assert list(states()) == alert_names()
    # The job that only shows other shapes has no redis_up.
    assert {name for name, state in states().items() if state == "firing"} == {"KeywardWriteBehindDead"}


@one_server
def test_every_panel_of_the_dashboard_shows_something(watched):
    for title, expression in dashboard_queries():
        for variable, value in {"$__rate_interval": SOME_SCRAPES, "$instance": ".*"}.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression
        eventually(lambda e=expression: watched.prometheus.query(e), message=f"{title} shows nothing: {expression}")


@one_server
def test_dashboard_and_alerts_name_metrics_that_exist(watched):
    expressions = "\n".join([ALERTS, *(expression for _, expression in dashboard_queries())])
    names = set(re.findall(r"\b(?:keyward|redis)_\w+", expressions))
    assert len(names) > 50
    for name in sorted(names):
        eventually(lambda n=name: watched.prometheus.query(f'{n}{{job="keyward"}}'), message=f"no metric {name}")


# The files


@one_server
@pytest.mark.parametrize(
    "command",
    ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"],
)
def test_promtool_is_content(command):
    done = subprocess.run(
        ["promtool", *command.split()], cwd=EXAMPLE, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS)


@one_server
def test_each_alert_has_a_test_and_a_row_in_the_page():
    """The tests of the alerts fail when one does not fire; here it is that none is without a test."""
    tests = (EXAMPLE / "alerts_test.yml").read_text()
    assert [name for name in alert_names() if f'alertname="{name}"' not in tests] == []
    rows = re.findall(r"^\| `(Keyward\w+)` \|", PAGE.read_text(), re.MULTILINE)
    severities = dict(re.findall(r"- alert: (\w+)\n(?: {8}.*\n)*? {8}labels: \{severity: (\w+)\}", ALERTS))
    critical = [name for name in alert_names() if severities[name] == "critical"]
    assert rows == critical + [name for name in alert_names() if severities[name] == "warning"]


@one_server
def test_rates_are_of_counters_and_levels_of_gauges():
    kinds = dict(re.findall(r"^\| `(keyward_\w+)` \| (\w+) \|", (PAGE.parent / "metrics.md").read_text(), re.MULTILINE))
    # That they are above 0 is what counts.
    bugs = {"keyward_caught_panics", "keyward_cache_ghosts"}
    for text in (ALERTS, *(expression for _, expression in dashboard_queries())):
        rated = set(re.findall(r"(?:rate|increase)\((keyward_\w+)", text))
        others = set(re.findall(r"keyward_\w+", text)) - rated - bugs
        assert {name for name in rated if kinds[name] != "counter"} == set(), text
        assert {name for name in others if kinds[name] != "gauge"} == set(), text


def dashboard() -> dict:
    return json.loads((EXAMPLE / "dashboard.json").read_text())


def panels() -> list[dict]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


@one_server
def test_the_dashboard_can_be_imported_anywhere():
    """Nothing in it belongs to one Grafana: no id, no data source but the one that is chosen."""
    board = dashboard()
    assert "id" not in board
    assert isinstance(board["schemaVersion"], int)
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", "instance"]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [chosen] * (
            1 + len(panel["targets"])
        )
        assert [target["refId"] for target in panel["targets"]] == [
            chr(ord("A") + n) for n in range(len(panel["targets"]))
        ]
        assert panel["description"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@one_server
def test_panels_do_not_overlap():
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard()["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} == set(range(24))
