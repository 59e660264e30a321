"""What servers and clients are told of the commands, the settings and the metrics: the same that the
pages under docs/ say."""

import math
import re

import pytest
from catalogue import CONTAINERS, EXAMPLES, UNLISTED, Option, typed
from raw_client import ErrorReply, RawClient, fields
from servers import REPOSITORY

DOCS = REPOSITORY / "docs"

every_command = pytest.mark.parametrize("command", EXAMPLES)

# The contract: how clients fan out commands that name no keys.
FAN_OUT = {
    "CACHE.INVALIDATETAG": {"request_policy:all_shards", "response_policy:agg_sum"},
    "CACHE.EMIT": {"request_policy:all_shards", "response_policy:agg_sum"},
    "CACHE.RULE|SET": {"request_policy:all_shards", "response_policy:all_succeeded"},
    "CACHE.RULE|DEL": {"request_policy:all_shards", "response_policy:all_succeeded"},
    "CACHE.POLICY|SET": {"request_policy:all_shards", "response_policy:all_succeeded"},
    "CACHE.POLICY|DEL": {"request_policy:all_shards", "response_policy:all_succeeded"},
}
ADMIN = {"LOCK.FORCE", "KEYWARD.APPLY", "CACHE.DOCTOR"} | {
    f"CACHE.{word}"
    for word in (
        *("POLICY|SET", "POLICY|DEL", "RULE|SET", "RULE|DEL"),
        *("CLUSTER|INVALIDATETAG", "CLUSTER|STALETAG", "CLUSTER|EMIT"),
    )
}
FAMILIES = {
    "CACHE": "@cache",
    "LOCK": "@lock",
    "RATELIMIT": "@ratelimit",
    "CL": "@ratelimit",
    "WRITEBEHIND": "@writebehind",
    "KEYWARD": None,
}


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def raw(server, request):
    with RawClient(server, request.param) as raw:
        yield raw


def told(raw, command):
    """COMMAND DOCS of a command, the same from both protocols."""
    (docs,) = fields(raw.call("COMMAND", "DOCS", command)).values()
    return fields(docs)


def info(raw, command):
    (reply,) = raw.call("COMMAND", "INFO", command)
    names = ("name", "arity", "flags", "first", "last", "step", "categories", "tips", "key_specs", "subcommands")
    return dict(zip(names, reply, strict=True))


def texts(reply):
    return {item.decode() if isinstance(item, bytes) else item for item in reply}


def page(command):
    """What the page of a command says: its syntax line, its summary, and its table. Subcommands share one page."""
    text = (DOCS / "commands" / f"{typed(command)[0].lower()}.md").read_text()
    title = re.escape(" ".join(typed(command)))
    rest = r"\n\n```\n(.+)\n```\n\n(.+)\n\n\| \| \|\n\|---\|---\|\n((?:\|.*\|\n)+)"
    head = re.search(rf"^#+ ({title}){rest}", text, re.MULTILINE)
    assert head, text[:500]
    title, syntax, summary, table = head.groups()
    rows = dict(re.findall(r"\| ([^|]+?) \| (.+?) \|\n", table))
    return {"title": title, "syntax": syntax, "summary": summary, **rows}


def syntax_of(arguments):
    """The syntax line as a client writes it from COMMAND DOCS."""
    return " ".join(syntax_of_one(fields(argument)) for argument in arguments)


def syntax_of_one(argument):
    parts = [fields(part) for part in argument.get(b"arguments", [])]
    match argument[b"type"]:
        case b"pure-token":
            value = ""
        case b"oneof":
            value = " | ".join(map(syntax_of_one, parts))
        case b"block":
            value = " ".join(map(syntax_of_one, parts))
        case _:
            value = argument[b"name"].decode()
    text = " ".join(filter(None, (argument.get(b"token", b"").decode(), value)))
    flags = texts(argument.get(b"flags", ()))
    grouped = argument[b"type"] in (b"oneof", b"block")
    if "multiple" in flags:
        text += f" [{text if grouped else argument[b'name'].decode()} ...]"
    if "optional" in flags:
        return f"[{text}]"
    return f"<{text}>" if argument[b"type"] == b"oneof" else text


@every_command
def test_command_docs_say_what_the_page_says(raw, command):
    docs, written = told(raw, command), page(command)
    assert docs[b"group"] == b"module"
    assert docs[b"summary"].decode() == written["summary"]
    assert docs[b"since"].decode() == written["Since"]
    assert docs[b"complexity"].decode() == written["Complexity"]
    assert " ".join([written["title"], syntax_of(docs.get(b"arguments", []))]).strip() == written["syntax"]


@every_command
def test_the_flags_and_tips_are_those_of_the_page(raw, command):
    spec, written = info(raw, command), page(command)
    flags = texts(spec["flags"]) - {"module", "movablekeys"}
    assert {flag.replace("denyoom", "deny-oom") for flag in flags} == set(written["Flags"].split(", "))
    assert ("write" in flags) == EXAMPLES[command].writes
    assert ("readonly" in flags) == (not EXAMPLES[command].writes)
    tips = texts(spec["tips"])
    assert tips == set(filter(None, written.get("Tips", "").split(", ")))
    assert FAN_OUT.get(command, set()) <= tips
    if command in FAN_OUT:
        assert not spec["key_specs"]


@every_command
def test_acl_categories(server, raw, command):
    """Where the server lets modules have some; the page names them all."""
    categories, written = texts(info(raw, command)["categories"]), page(command)["ACL categories"].split(", ")
    family = FAMILIES[command.partition(".")[0]]
    assert (command in ADMIN) == ({"@admin", "@dangerous"} <= set(written))
    if server.flavour == "redis-7.0":
        return
    assert categories == set(written)
    assert family is None or family in categories


def test_an_administrative_command_is_not_among_those_of_everybody(server):
    if server.flavour == "redis-7.0":
        pytest.skip("Redis 7.0 has no ACL categories for commands of modules")
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "everybody", "on", "nopass", "~*", "+@all", "-@dangerous")
    try:
        with RawClient(server) as raw:
            assert raw.call("AUTH", "everybody", "x") == "OK"
            assert isinstance(raw.call("LOCK.ACQUIRE", "lock", "ann", "EX", 100), int)
            for command in ADMIN:
                assert raw.call(*typed(command), *EXAMPLES[command].words()).startswith("NOPERM ")
            assert raw.call("LOCK.RELEASE", "lock", "ann") == 1
    finally:
        admin.execute_command("ACL", "DELUSER", "everybody")


@every_command
def test_getkeys_finds_the_keys(raw, command):
    example = EXAMPLES[command]
    reply = raw.call("COMMAND", "GETKEYS", *typed(command), *example.words())
    if example.key_names():
        assert [key.decode() for key in reply] == example.key_names()
    else:
        assert isinstance(reply, ErrorReply), "it names no keys"
        assert not info(raw, command)["key_specs"]


@every_command
def test_acl_looks_at_every_key(server, command):
    """Each key in turn is the one that the user may not touch."""
    example = EXAMPLES[command]
    admin = server.client()
    try:
        for denied in example.key_names():
            allowed = [f"~{key}" for key in example.key_names() if key != denied]
            admin.execute_command("ACL", "SETUSER", "limited", "reset", "on", "nopass", "+@all", *allowed)
            with RawClient(server) as raw:
                assert raw.call("AUTH", "limited", "x") == "OK"
                assert raw.call(*typed(command), *example.words()).startswith("NOPERM ")
        assert admin.dbsize() == 0
    finally:
        admin.execute_command("ACL", "DELUSER", "limited")


@every_command
def test_getkeys_knows_what_is_done_to_a_key(raw, command):
    """For ACL key permissions: who may only read must not be let into a command that writes."""
    example = EXAMPLES[command]
    if not example.key_names():
        return
    access = raw.call("COMMAND", "GETKEYSANDFLAGS", *typed(command), *example.words())
    for _, flags in access:
        flags = texts(flags)
        assert len(flags & {"RO", "RW", "OW", "RM"}) == 1
        if example.writes and not example.reads_keys:
            assert flags & {"RW", "OW", "RM"}
            assert flags & {"update", "insert", "delete"}
        else:
            assert "RO" in flags
            assert not flags & {"update", "insert", "delete"}


@every_command
def test_the_arity_is_that_of_the_syntax(raw, command):
    """The fewest words that the arguments allow, and no more words if there is no option and no list."""
    arguments = [fields(argument) for argument in told(raw, command).get(b"arguments", [])]
    arity = info(raw, command)["arity"]

    def words(argument):
        """The fewest and the most."""
        flags = texts(argument.get(b"flags", ()))
        parts = [words(fields(part)) for part in argument.get(b"arguments", [])]
        match argument[b"type"]:
            case b"oneof":
                least, most = min(part[0] for part in parts), max(part[1] for part in parts)
            case b"block":
                least, most = (sum(sizes) for sizes in zip(*parts, strict=True))
            case _:
                least = most = 1
        if b"token" in argument and argument[b"type"] != b"pure-token":
            least, most = least + 1, most + 1
        return 0 if "optional" in flags else least, math.inf if "multiple" in flags else most

    name = len(typed(command))
    least, most = (sum(sizes) for sizes in zip((name, name), *map(words, arguments), strict=True))
    assert abs(arity) == least
    assert (arity < 0) == (least < most)


@every_command
def test_every_option_of_the_catalogue_is_in_the_docs(raw, command):
    """So that redis-cli hints at it."""

    def tokens(arguments):
        for argument in map(fields, arguments):
            yield argument.get(b"token", b"").decode()
            yield from tokens(argument.get(b"arguments", []))

    if command == "KEYWARD.APPLY":
        return  # internal
    options = {part.word for part in EXAMPLES[command].parts if isinstance(part, Option)}
    assert options <= set(tokens(told(raw, command).get(b"arguments", [])))


def test_the_index_of_commands_names_all(raw):
    listed = {name.decode().upper() for name in raw.call("COMMAND", "LIST", "FILTERBY", "MODULE", "keyward")}
    index = (DOCS / "commands" / "README.md").read_text()
    assert set(re.findall(r"^\| \[([A-Z. ]+)\]", index, re.MULTILINE)) == {
        " ".join(typed(name)) for name in listed - UNLISTED - CONTAINERS
    }


# Settings and metrics


def rows(file, pattern):
    return re.findall(pattern, (DOCS / file).read_text(), re.MULTILINE)


def test_settings_are_those_of_the_page(server):
    """The server under test has all defaults."""
    settings = server.client(decode=True).config_get("keyward.*")
    written = rows("configuration.md", r"^\| `(keyward\.[a-z-]+)` \| (\S+) \| ([^|]+) \| (yes|no) \|")
    assert {name: default for name, default, *_ in written} == settings
    for name, _, bounds, mutable in written:
        with RawClient(server) as raw:
            default = settings[name]
            reply = raw.call("CONFIG", "SET", name, default)
            assert (reply == "OK") == (mutable == "yes"), (name, reply)
            if mutable == "yes" and " to " in bounds:
                least, most = map(int, bounds.split(" to "))
                for value in (least, most):
                    assert raw.call("CONFIG", "SET", name, value) == "OK"
                for value in (least - 1, most + 1, "x", ""):
                    assert isinstance(raw.call("CONFIG", "SET", name, value), ErrorReply)
            raw.call("CONFIG", "SET", name, default)
    assert server.client(decode=True).config_get("keyward.*") == settings


def test_metrics_are_those_of_the_page(server):
    with RawClient(server) as raw:
        report = raw.call("INFO", "keyward").decode()
    page_text = (DOCS / "metrics.md").read_text()
    assert re.findall(r"^# (keyward_\w+)", report, re.MULTILINE) == re.findall(
        r"^## `# (\w+)`", page_text, re.MULTILINE
    )
    names = re.findall(r"^(keyward_\w+):\d+\r?$", report, re.MULTILINE)
    assert names == [name for name, _ in rows("metrics.md", r"^\| `(keyward_\w+)` \| (counter|gauge) \|")]
    for section in ("modules", "everything"):
        assert set(names) <= set(server.client().info(section))


def test_counters_count_and_gauges_fall(server):
    """That each number follows what it says, for locks and limiters."""
    client = server.client()

    def now(*names):
        report = client.info("keyward")
        return [report[f"keyward_{name}"] for name in names]

    counters = ("ratelimit_allowed", "ratelimit_denied", "ratelimit_resets", "lock_deleted")
    before = now(*counters)
    for _ in range(3):
        client.execute_command("RATELIMIT.CHECK", "limiter", 2, "EX", 100)
    client.execute_command("RATELIMIT.PEEK", "limiter", 2, "EX", 100)
    client.execute_command("RATELIMIT.RESET", "limiter", "none")
    client.execute_command("LOCK.ACQUIRE", "lock", "ann", "EX", 100)
    assert now("lock_locks") == [1]
    assert now("lock_bytes")[0] > 0
    client.delete("lock")
    assert now("lock_locks", "lock_bytes", "lock_limbo") == [0, 0, 0]
    assert [after - earlier for earlier, after in zip(before, now(*counters), strict=True)] == [2, 1, 1, 1]
    assert now("caught_panics") == [0]
