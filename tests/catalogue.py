"""Every command of the module: a call that succeeds in the prepared world below, word by word with what
each word is. The tests of bad input and of COMMAND DOCS go through it; a command that is missing here
fails them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from propagation import ReplicationStream
from raw_client import ErrorReply, RawClient, Word
from servers import Server

# Stands in for what users send: an error must not repeat it.
MARKER = "xyzzy"

# What Redis takes for no integer, anywhere.
NO_INTEGERS = ("", "+1", " 1", "1 ", "01", "-", "-0", "1.0", "1e3", "0x10", "one", b"1\x00", b"\xff", -(2**63) - 1)


class Key(NamedTuple):
    word: Word


class Text(NamedTuple):
    """Any bytes will do."""

    word: Word


class Data(NamedTuple):
    """Bytes of a form of their own: JSON."""

    word: Word


class Bounded(NamedTuple):
    """Bytes with a least and a greatest length: tags and owners."""

    word: Word
    most: int


class Option(NamedTuple):
    """A word of the syntax."""

    word: Word


class Command(NamedTuple):
    """A command of the server's own, which answers for itself."""

    word: Word


class Number(NamedTuple):
    """An integer, and integers that are refused in its place."""

    word: Word
    refused: tuple = ()
    integers_end: int = 2**63


LEASE = Number(60_000, (0, -1, 2**63 - 1))
UNITS = Number(3, (0, -1, 10**12 + 1, 2**63 - 1))
RESERVE = (Option("RESERVE"), Number(1, (-1, 10**12 + 1, 2**63 - 1)))
TAG_COUNT = Number(2, (0, -1, 1, 3, 65, 2**63 - 1))
VERSION = Number(5, (-1, -(2**63)))
TAG_1, TAG_2 = Bounded("tag:1", 512), Bounded("tag:2", 512)
OWNER = Bounded("ann", 1024)
ID = Bounded("ann", 512)
LOADER = Bounded("loader", 512)
KEY = Key("new")
TOKEN_OF_LOCK = 7
VERSION_OF_ROW = 8


@dataclass(frozen=True)
class Example:
    parts: tuple
    # Options that may be given once: giving them again must be refused.
    once: tuple[tuple[Word, ...], ...] = ()
    # Types of the world's keys that the command refuses.
    refuses: tuple[str, ...] = ()
    # Ends in a list: further words are no error.
    open_ended: bool = False
    # What COMMAND GETKEYS answers when not the Key words.
    writes: bool = True
    # A write, but not to the keys it names.
    reads_keys: bool = False
    # Refused when memory is full: yes, no, or for the command's own page to say.
    deny_oom: bool | None = False

    def words(self) -> list[Word]:
        return [part.word for part in self.parts]

    def key_names(self) -> list[Word]:
        return [part.word for part in self.parts if isinstance(part, Key)]


POLICY = Bounded("policy", 512)
EVENT = Bounded("event", 512)
TEMPLATE_COUNT = Number(1, (0, -1, 65, 2**63 - 1))
TOKEN = Text("0123456789abcdef-1")
WORKER = Bounded("ann", 1024)
LOAD_MS = Number(5000, (0, -1, 60_001, 2**63 - 1))
TAGS = (Option("TAGS"), TAG_COUNT, TAG_1, TAG_2)
PX = (Option("PX"), LEASE)
GRACE = (Option("GRACE"), Number(10, (-1, 2**63 - 1)))
# One limit of each algorithm, with all that it takes.
LIMITS = (
    *(Option("SLIDING"), UNITS, *PX, *RESERVE),
    *(Option("GCRA"), UNITS, Option("EX"), Number(60, (0, -1, 10**9 + 1)), Option("BURST"), UNITS, *RESERVE),
    *(Option("FIXED"), UNITS, *PX),
    *(Option("COST"), Number(1, UNITS.refused)),
)
# Nothing of a limit may stand behind the cost, and nothing twice.
AFTER_LIMITS = (("COST", 1), ("RESERVE", 1), ("BURST", 1), (3, "EX", 9), ("GCRA", 3, "EX", 9))

EXAMPLES: dict[str, Example] = {
    "CACHE.SET": Example(
        (KEY, Text("value"), *PX, Option("JITTER"), Number(10, (-1, 2**63 - 1)), *GRACE, *TAGS)
        + (Option("VERSION"), VERSION),
        once=(
            ("PX", 1),
            ("EX", 1),
            ("PXAT", 1),
            ("JITTER", 1),
            ("GRACE", 1),
            ("TAGS", 1, "t"),
            ("VERSION", 9),
            ("KEEPTTL",),
            ("POLICY", "none"),
        ),
        deny_oom=True,
    ),
    "CACHE.SETTAGGED": Example(
        (KEY, Text("value"), *PX, *TAGS), once=(("PX", 1), ("TAGS", 1, "t"), ("GET",)), deny_oom=True
    ),
    "CACHE.SETJITTER": Example(
        (KEY, Text("value"), *PX, Option("JITTER"), Number(10, (-1, 2**63 - 1))),
        once=(("PX", 1), ("JITTER", 1), ("NX", "XX")),
        deny_oom=True,
    ),
    "CACHE.MSET": Example(
        (Number(2, (0, -1, 4, 7, 2**63 - 1)), KEY, Text("1"), Key("new:2"), Text("2"), *PX, *TAGS),
        once=(("PX", 1), ("TAGS", 1, "t"), ("NX",), ("VERSION", 1)),
        deny_oom=True,
    ),
    "CACHE.GET": Example((Key("string"),), refuses=("list", "lock", "limiter", "slots", "queue"), writes=False),
    "CACHE.MGET": Example((Key("string"), Key("plain")), open_ended=True, writes=False),
    "CACHE.TTL": Example((Key("string"),), writes=False),
    "CACHE.TAG": Example((Key("plain"), TAG_1, TAG_2), open_ended=True, deny_oom=True),
    "CACHE.UNTAG": Example((Key("string"), TAG_1), open_ended=True),
    "CACHE.TAGS": Example((Key("string"),), writes=False),
    "CACHE.TAGKEYS": Example(
        (TAG_1, Option("CURSOR"), Number(0, (-1,), 2**64), Option("COUNT"), Number(10, (0, -1))),
        once=(("CURSOR", 0), ("COUNT", 1)),
        writes=False,
    ),
    "CACHE.TAGINFO": Example((TAG_1,), writes=False),
    "CACHE.FLOOR": Example((Key("string"), VERSION), deny_oom=None),
    "CACHE.INVALIDATE": Example((Key("string"), Key("plain")), open_ended=True),
    "CACHE.INVALIDATETAG": Example((TAG_1, TAG_2), open_ended=True),
    "CACHE.STALE": Example((Key("string"), Key("plain")), open_ended=True),
    "CACHE.STALETAG": Example((TAG_1, TAG_2), open_ended=True),
    "CACHE.FETCH": Example(
        (Key("string"), Option("WAIT"), Number(10, (-1,)), Option("LEASE"), LOAD_MS, Option("STALE"), Option("OK")),
        once=(("WAIT", 1), ("LEASE", 1), ("STALE", "NEVER"), ("BETA", 1, "BETA", 1), ("EX", 1)),
        refuses=("list", "lock", "limiter", "slots", "queue"),
        writes=False,
    ),
    "CACHE.MFETCH": Example(
        (Number(2, (0, -1, 5, 2**63 - 1)), Key("string"), Key("plain"), Option("LEASE"), LOAD_MS),
        once=(("LEASE", 1), ("WAIT", 1)),
        writes=False,
    ),
    "CACHE.FILL": Example(
        (Key("string"), TOKEN, Text("value"), *PX, *GRACE, *TAGS, Option("VERSION"), VERSION),
        once=(("PX", 1), ("EX", 1), ("GRACE", 1), ("TAGS", 1, "t"), ("VERSION", 9), ("NX",), ("XX",)),
    ),
    "CACHE.FILLNIL": Example(
        (Key("string"), TOKEN, *PX, *TAGS),
        once=(("PX", 1), ("TAGS", 1, "t"), ("JITTER", 1), ("GRACE", 1), ("VERSION", 1)),
    ),
    "CACHE.FAIL": Example(
        (Key("string"), TOKEN, Option("RETRY"), Number(5, (-1, 86_400_001))),
        once=(("RETRY", 1), ("MSG", "a", "MSG", "b")),
    ),
    "CACHE.RENEW": Example((Key("string"), TOKEN, Option("LEASE"), LOAD_MS)),
    "CACHE.READ": Example(
        (Key("string"), Option("LOADER"), LOADER, Option("WAIT"), Number(10, (-1,)), Option("STALE"), Option("OK")),
        once=(("LOADER", "l"), ("WAIT", 1), ("STALE", "NEVER"), ("LEASE", 1), ("BETA", 1)),
        refuses=("list", "lock", "limiter", "slots", "queue"),
        writes=False,
    ),
    "CACHE.LOADS": Example(
        (
            LOADER,
            Option("COUNT"),
            Number(10, (0, -1, 1_000_001)),
            Option("BLOCK"),
            Number(1, (-1,)),
            Option("LEASE"),
            LOAD_MS,
        ),
        once=(("COUNT", 1), ("BLOCK", 1), ("LEASE", 1), ("WAIT", 1)),
    ),
    "CACHE.WARM": Example(
        (LOADER, Key("string"), Key("plain")),
        open_ended=True,
        reads_keys=True,
        refuses=("list", "lock", "limiter", "slots", "queue"),
    ),
    "CACHE.HOT": Example(
        (Option("COUNT"), Number(10, (0, -1)), Option("PREFIX"), Text("p")),
        once=(("COUNT", 1), ("PREFIX", "p")),
        writes=False,
    ),
    "CACHE.INTENT": Example(
        (Key("string"), Option("PX"), Number(60_000, (0, -1, 2**63 - 1))), once=(("PX", 1), ("EX", 1), ("LEASE", 1))
    ),
    "CACHE.COMMIT": Example(
        (Key("string"), TOKEN, Text("value"), *PX, *GRACE, *TAGS, Option("VERSION"), VERSION),
        once=(
            *(("PX", 1), ("EX", 1), ("GRACE", 1), ("TAGS", 1, "t"), ("VERSION", 9), ("NX", "XX"), ("KEEPTTL",)),
            ("POLICY", "none", "POLICY", "none"),
        ),
    ),
    "CACHE.ROLLBACK": Example((Key("string"), TOKEN)),
    "CACHE.POLICY|SET": Example(
        (POLICY, Option("PREFIX"), Text("policy:"), *PX, Option("JITTER"), Number(10, (-1, 2**63 - 1)), *GRACE)
        + (Option("SLIDING"), Option("NEGATIVE"), Number(10, (0, -1, 2**63 - 1)))
        + (Option("LOADER"), Bounded("loader", 512), Option("PATTERN"), Bounded("policy:{id}", 512)),
        once=(
            ("PREFIX", "other"),
            ("PX", 1),
            ("EX", 1),
            ("EXAT", 1),
            ("JITTER", 1),
            ("GRACE", 1),
            ("SLIDING",),
            ("NEGATIVE", 1),
            ("BETA", 1, "BETA", 1),
            ("AHEAD", "1%", "AHEAD", "1%"),
            ("LOADER", "other"),
            ("PATTERN", "other"),
            ("ENFORCE", "WARN", "ENFORCE", "WARN"),
            ("ENFORCE", "maybe"),
        ),
    ),
    "CACHE.POLICY|GET": Example((POLICY,), writes=False),
    "CACHE.POLICY|DEL": Example((POLICY,)),
    "CACHE.POLICY|LIST": Example((), writes=False),
    "CACHE.POLICY|MATCH": Example((Text("policy:1"),), writes=False),
    "CACHE.RULE|SET": Example(
        (EVENT, Option("KEYS"), TEMPLATE_COUNT, Bounded("key:{id}", 512))
        + (Option("TAGS"), TEMPLATE_COUNT, Bounded("tag:{items[].id}", 512)),
        once=(("KEYS", 1, "other"), ("TAGS", 1, "other"), ("PREFIX", "other")),
    ),
    "CACHE.RULE|GET": Example((EVENT,), writes=False),
    "CACHE.RULE|DEL": Example((EVENT,)),
    "CACHE.RULE|LIST": Example((), writes=False),
    "CACHE.CLUSTER|INVALIDATETAG": Example((TAG_1, TAG_2), open_ended=True),
    "CACHE.CLUSTER|STALETAG": Example((TAG_1, TAG_2), open_ended=True),
    "CACHE.CLUSTER|EMIT": Example((EVENT, Data("{}"))),
    "CACHE.EXPLAIN": Example((Key("string"),), writes=False),
    "CACHE.STATS": Example((), once=(("POLICY", "p"),), writes=False),
    "CACHE.DOCTOR": Example((), writes=False),
    "CACHE.EMIT": Example((EVENT, Data("{}"))),
    "LOCK.ACQUIRE": Example(
        (KEY, OWNER, *PX, Option("PERMITS"), Number(2, (0, -1, 1_000_001)), Option("REENTRANT"), Option("SESSION")),
        once=(("PX", 1), ("EX", 1), ("REENTRANT",), ("SESSION",), ("PERMITS", 1), ("SHARED",), ("NX",)),
        refuses=("plain", "list", "limiter", "slots", "queue"),
        deny_oom=True,
    ),
    "LOCK.MACQUIRE": Example(
        (Number(2, (0, -1, 6, 2**63 - 1)), KEY, Key("new:2"), OWNER, *PX, Option("SESSION")),
        once=(("PX", 1), ("EX", 1), ("SESSION",), ("SHARED",), ("REENTRANT",)),
        refuses=("plain", "list", "limiter", "slots", "queue"),
        deny_oom=True,
    ),
    "LOCK.MRELEASE": Example(
        (Number(2, (0, -1, 4, 2**63 - 1)), Key("lock"), Key("none"), OWNER),
        refuses=("plain", "list", "limiter", "slots", "queue"),
    ),
    "LOCK.EXEC": Example(
        (Key("lock"), Number(TOKEN_OF_LOCK), Command("ECHO"), Text("word")),
        refuses=("plain", "list", "limiter", "slots", "queue"),
        reads_keys=True,
    ),
    "LOCK.RELEASE": Example(
        (Key("lock"), OWNER), once=(("TOKEN", 1, "TOKEN", 1),), refuses=("plain", "list", "limiter", "slots", "queue")
    ),
    "LOCK.EXTEND": Example(
        (Key("lock"), OWNER, Option("PX"), Number(6_000_000, LEASE.refused)),
        once=(("PX", 1), ("EX", 1), ("TOKEN", 1, "TOKEN", 1)),
        refuses=("plain", "list", "limiter", "slots", "queue"),
    ),
    "LOCK.VALIDATE": Example(
        (Key("lock"), Number(1)), refuses=("plain", "list", "limiter", "slots", "queue"), writes=False
    ),
    "LOCK.INFO": Example((Key("lock"),), refuses=("plain", "list", "limiter", "slots", "queue"), writes=False),
    "LOCK.FORCE": Example((Key("lock"),), refuses=("plain", "list", "limiter", "slots", "queue")),
    "RATELIMIT.CHECK": Example(
        (Key("limiter"), *LIMITS),
        once=AFTER_LIMITS,
        refuses=("plain", "list", "lock", "slots", "queue"),
    ),
    "RATELIMIT.PEEK": Example(
        (Key("limiter"), *LIMITS),
        once=(*AFTER_LIMITS, ("WAIT", 1)),
        refuses=("plain", "list", "lock", "slots", "queue"),
        writes=False,
    ),
    "RATELIMIT.REFUND": Example(
        (Key("limiter"), *LIMITS),
        once=(*AFTER_LIMITS, ("WAIT", 1)),
        refuses=("plain", "list", "lock", "slots", "queue"),
    ),
    "RATELIMIT.BAN": Example(
        (Key("limiter"), *PX),
        once=(("PX", 1), ("EX", 1)),
        refuses=("plain", "list", "lock", "slots", "queue"),
        deny_oom=True,
    ),
    "RATELIMIT.ENTER": Example(
        (Key("slots"), ID, Option("LIMIT"), Number(3, (0, -1, 1_000_001)), *PX, Option("SESSION")),
        once=(("LIMIT", 1), ("PX", 1), ("EX", 1), ("SESSION",), ("NX",)),
        refuses=("plain", "list", "lock", "limiter"),
    ),
    "RATELIMIT.LEAVE": Example(
        (Key("slots"), ID, Bounded("bob", 512)), refuses=("plain", "list", "lock", "limiter"), open_ended=True
    ),
    "RATELIMIT.RESET": Example(
        (Key("limiter"), Key("slots"), Key("none")), refuses=("plain", "list", "lock"), open_ended=True
    ),
    "RATELIMIT.INFO": Example((Key("limiter"),), refuses=("plain", "list", "lock"), writes=False),
    "CL.THROTTLE": Example(
        (KEY, Number(15, (-1, 2**63 - 1)), Number(30, (0, -1, 2**63 - 1)), Number(60, (0, -1, 2**63 - 1)))
        + (Number(1, (2**63 - 1, -(2**63))),),
        refuses=("list", "lock", "limiter"),
        # A new key is, one that is there is not.
        deny_oom=None,
    ),
    "WRITEBEHIND.SET": Example(
        (Key("queue"), KEY, Text("value"), *PX, Option("JITTER"), Number(10, (-1, 2**63 - 1)), *GRACE, *TAGS),
        once=(("PX", 1), ("EX", 1), ("JITTER", 1), ("GRACE", 1), ("TAGS", 1, "t"), ("VERSION", 9), ("NX",), ("XX",)),
        deny_oom=True,
    ),
    "WRITEBEHIND.INCRBY": Example(
        (Key("queue"), KEY, Number(5), *PX, Option("JITTER"), Number(10, (-1, 2**63 - 1)), *GRACE, *TAGS),
        once=(("PX", 1), ("EX", 1), ("JITTER", 1), ("GRACE", 1), ("TAGS", 1, "t"), ("VERSION", 9), ("NX",), ("XX",)),
        refuses=("list", "lock", "limiter", "slots"),
        deny_oom=True,
    ),
    "WRITEBEHIND.DEL": Example((Key("queue"), KEY), deny_oom=True),
    "WRITEBEHIND.CLAIM": Example(
        (Key("queue"), WORKER, Option("COUNT"), Number(5, (0, -1, 1_000_001)))
        + (Option("LEASE"), Number(60_000, (0, -1, 86_400_001)), Option("BLOCK"), Number(1, (-1,))),
        once=(("COUNT", 1), ("LEASE", 1), ("BLOCK", 1), ("WAIT", 1)),
        refuses=("plain", "list", "lock", "limiter", "slots"),
    ),
    "WRITEBEHIND.ACK": Example(
        (Key("queue"), WORKER, Text("row"), Number(VERSION_OF_ROW), Text("none"), Number(5)),
        refuses=("plain", "list", "lock", "limiter", "slots"),
    ),
    "WRITEBEHIND.NACK": Example(
        (Key("queue"), WORKER, Text("row"), Number(VERSION_OF_ROW), Option("DELAY"), Number(5, (-1, 86_400_001))),
        once=(("DELAY", 1), ("MSG", "a", "MSG", "b"), ("LEASE", 1)),
        refuses=("plain", "list", "lock", "limiter", "slots"),
    ),
    "WRITEBEHIND.CONFIG": Example(
        (Key("queue"), Option("DELAY"), Number(10, (-1, 86_400_001)), Option("MAXDELAY"), Number(20, (-1, 86_400_001)))
        + (Option("ATTEMPTS"), Number(3, (0, -1, 1_000_001)), Option("MAXDIRTY"), Number(5, (-1, 10**9 + 1))),
        once=(("DELAY", 1), ("MAXDELAY", 1), ("ATTEMPTS", 1), ("MAXDIRTY", 1), ("COUNT", 1)),
        refuses=("plain", "list", "lock", "limiter", "slots"),
    ),
    "WRITEBEHIND.INFO": Example((Key("queue"),), refuses=("plain", "list", "lock", "limiter", "slots"), writes=False),
    "WRITEBEHIND.DEAD": Example(
        (Key("queue"), Option("COUNT"), Number(5, (0, -1, 1_000_001))),
        once=(("COUNT", 1), ("WITHSCORES",)),
        refuses=("plain", "list", "lock", "limiter", "slots"),
        writes=False,
    ),
    "WRITEBEHIND.REQUEUE": Example((Key("queue"), Text("row")), refuses=("plain", "list", "lock", "limiter", "slots")),
    "WRITEBEHIND.DROP": Example((Key("queue"), Text("row")), refuses=("plain", "list", "lock", "limiter", "slots")),
    "KEYWARD.APPLY": Example(
        (Option("CHARGE"), Key("limiter"), Option("SLIDING"), LEASE._replace(refused=(0, -1, 10**12 + 1)))
        + (Number(1_750_000_000_000_000), Number(1, UNITS.refused)),
    ),
}

# Commands that are nothing but their subcommands, which stand above as `CONTAINER|SUBCOMMAND`.
CONTAINERS = {"CACHE.POLICY", "CACHE.RULE", "CACHE.CLUSTER"}
# Those that hold settings by name: SET, GET, DEL and LIST.
SETTINGS = {"CACHE.POLICY", "CACHE.RULE"}


def typed(command: str) -> tuple[str, ...]:
    """The name of a command as it is typed."""
    return tuple(command.split("|"))


def too_short(command: str) -> tuple[Word, ...]:
    """The command with a wrong number of words."""
    return typed(command) if EXAMPLES[command].parts else (*typed(command), MARKER)


# In debug builds only.
UNLISTED = {"KEYWARD.DEBUG"}

WORLD = ("string", "plain", "list", "lock", "limiter", "slots", "queue", "row")


def make_world(raw: RawClient) -> None:
    """Fills the selected database with a key of each kind, named for it, and leaves no policy and no rule."""
    for container in SETTINGS:
        for name in raw.call(container, "LIST"):
            raw.call(container, "DEL", name)
    for command in (
        ("CACHE.SETTAGGED", "string", "value", "EX", 5000, "TAGS", 2, "tag:1", "tag:3"),
        ("SET", "plain", "value", "EX", 5000),
        ("RPUSH", "list", 1, 2, 3),
        # As a primary would tell it, so that the token is known.
        ("KEYWARD.APPLY", "LOCK", "lock", "ann", TOKEN_OF_LOCK, int(time.time() * 1000) + 5_000_000, 1),
        ("RATELIMIT.CHECK", "limiter", 10, "EX", 5000),
        ("RATELIMIT.ENTER", "slots", "ann", "LIMIT", 3, "EX", 5000),
        # The same, and nobody's claim runs out meanwhile.
        (
            "KEYWARD.APPLY",
            "WBSET",
            "queue",
            "row",
            VERSION_OF_ROW,
            1_750_000_000_000,
            1_750_000_000_000,
            "NEW",
            "value",
        ),
        ("WRITEBEHIND.CLAIM", "queue", "ann", "LEASE", 86_400_000),
    ):
        reply = raw.call(*command)
        assert not isinstance(reply, ErrorReply), (command, reply)


def see_world(raw: RawClient) -> dict[str, object]:
    """All that a client can see of the database, so that two looks can be compared."""
    seen: dict[str, object] = {"size": raw.call("DBSIZE"), "tag:2": raw.call("CACHE.TAGKEYS", "tag:2")}
    for container in SETTINGS:
        seen[container] = {name: raw.call(container, "GET", name) for name in raw.call(container, "LIST")}
    for key in (*WORLD, "new", "new:2"):
        tags = raw.call("CACHE.TAGS", key)
        seen[key] = (raw.call("DUMP", key), raw.call("PEXPIRETIME", key), set(tags))
    return seen


def assert_clear(reply: object, call: Sequence[Word] = ()) -> None:
    assert isinstance(reply, ErrorReply), f"{call} was answered {reply!r}"
    # The server's own texts for what it finds itself are fine too.
    assert re.fullmatch(r"(ERR|WRONGTYPE|OOM|NOPERM|READONLY|EXECABORT|BUSYKEY|FENCED|WBFULL) [ -~]+", reply), reply
    assert "internal error" not in reply
    assert MARKER not in reply


def assert_refused(server: Server, raw: RawClient, calls: Iterable[Sequence[Word]]) -> None:
    """Each call is an error, and no trace is left of any."""
    before = see_world(raw)
    with ReplicationStream(server) as stream:
        for call in calls:
            assert_clear(raw.call(*call), call)
        assert stream.read() == []
    assert see_world(raw) == before
