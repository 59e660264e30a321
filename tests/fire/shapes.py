"""What a reply may look like, command by command, in either protocol, and which errors there are."""

from __future__ import annotations

import re
from collections.abc import Callable

from raw_client import ErrorReply, fields
from servers import REPOSITORY

Check = Callable[[object], bool]


def _number(reply: object, least: int = 0, most: int = 2**63 - 1) -> bool:
    return isinstance(reply, int) and not isinstance(reply, bool) and least <= reply <= most


def _yes_no(reply: object) -> bool:
    return _number(reply, 0, 1)


def _count(reply: object) -> bool:
    return _number(reply)


def _ok(reply: object) -> bool:
    return reply == "OK"


def _text(reply: object) -> bool:
    return isinstance(reply, bytes)


def _maybe(check: Check) -> Check:
    return lambda reply: reply is None or check(reply)


def _each(check: Check) -> Check:
    return lambda reply: isinstance(reply, list | set) and all(map(check, reply))


def _row(*checks: Check) -> Check:
    """An array with these places."""

    def check(reply: object) -> bool:
        return (
            isinstance(reply, list)
            and len(reply) == len(checks)
            and all(one(item) for one, item in zip(checks, reply, strict=True))
        )

    return check


def _map(*names: str) -> Check:
    """A map with these fields, and perhaps more."""

    def check(reply: object) -> bool:
        if not isinstance(reply, dict | list) or (isinstance(reply, list) and len(reply) % 2):
            return False
        return {name.encode() for name in names} <= fields(reply).keys()

    return check


_token = _maybe(lambda reply: _number(reply, 1, 2**53 - 1))
_version = lambda reply: _number(reply, 1, 2**53 - 1)  # noqa: E731
_lease = _maybe(lambda reply: _text(reply) and 1 <= len(reply) <= 40)
STATUSES = {b"HIT", b"REFRESH", b"STALE", b"MISS", b"NONE", b"BUSY", b"ERROR"}
WITH_VALUE = {b"HIT", b"REFRESH", b"STALE", b"ERROR"}


def _fetched(reply: object) -> bool:
    if not _row(lambda status: status in STATUSES, _maybe(_text), _lease)(reply):
        return False
    status, value, token = reply
    return (value is not None) == (status in WITH_VALUE) and (
        token is not None if status == b"REFRESH" else token is None or status == b"MISS"
    )


def _read(reply: object) -> bool:
    return _fetched(reply) and reply[2] is None and reply[0] not in (b"MISS", b"REFRESH")


def _admission(reply: object) -> bool:
    """RATELIMIT.CHECK and its like."""
    least = -1
    places = (_yes_no, _count, _count, *[lambda at: _number(at, least)] * 3, lambda at: _number(at, -1, 7))
    if not _row(*places)(reply):
        return False
    allowed, limit, remaining, retry, *_ = reply
    return 0 <= remaining <= max(limit, 0) and (retry == 0 if allowed else retry == -1 or retry >= 1)


def _entry(reply: object) -> bool:
    return _row(_yes_no, _count, lambda at: _number(at, 1), lambda at: _number(at, -1))(reply) and (
        not reply[0] or reply[1] <= reply[2]
    )


def _throttle(reply: object) -> bool:
    return _row(_yes_no, *[lambda at: _number(at, -(2**63))] * 4)(reply) and 0 <= reply[2] <= reply[1]


_left = lambda reply: _number(reply, -2)  # noqa: E731
_record = _row(_text, _version, lambda op: op in (b"SET", b"INCRBY", b"DEL"), _maybe(_text), _count, lambda _: True)
_job = _row(_text, _lease, lambda reason: reason in (b"MISS", b"STALE", b"AHEAD", b"WARM"), _count)

SHAPES: dict[str, Check] = {
    "CACHE.SET": _maybe(_ok),
    "CACHE.SETTAGGED": _maybe(_ok),
    "CACHE.SETJITTER": _maybe(_ok),
    "CACHE.MSET": _ok,
    "CACHE.GET": _maybe(_text),
    "CACHE.MGET": _each(_maybe(_text)),
    "CACHE.TTL": _row(_left, _left),
    "CACHE.TAG": _count,
    "CACHE.UNTAG": _count,
    "CACHE.TAGS": _each(_text),
    "CACHE.TAGKEYS": _row(_text, _each(_text)),
    "CACHE.TAGINFO": _map("keys", "bytes", "invalidations", "last_invalidated_ms"),
    "CACHE.FLOOR": _yes_no,
    "CACHE.INVALIDATE": _count,
    "CACHE.INVALIDATETAG": _count,
    "CACHE.STALE": _count,
    "CACHE.STALETAG": _count,
    "CACHE.FETCH": _fetched,
    "CACHE.MFETCH": _each(_fetched),
    "CACHE.FILL": _yes_no,
    "CACHE.FILLNIL": _yes_no,
    "CACHE.FAIL": _yes_no,
    "CACHE.RENEW": _yes_no,
    "CACHE.READ": _read,
    "CACHE.LOADS": _each(_job),
    "CACHE.WARM": _count,
    "CACHE.HOT": _each(_row(_text, _count)),
    "CACHE.INTENT": _text,
    "CACHE.COMMIT": _yes_no,
    "CACHE.ROLLBACK": _yes_no,
    "CACHE.POLICY|SET": _ok,
    "CACHE.POLICY|GET": lambda reply: reply is None or _map()(reply),
    "CACHE.POLICY|DEL": _yes_no,
    "CACHE.POLICY|LIST": _each(_text),
    "CACHE.POLICY|MATCH": _maybe(_text),
    "CACHE.RULE|SET": _ok,
    "CACHE.RULE|GET": lambda reply: reply is None or _map()(reply),
    "CACHE.RULE|DEL": _yes_no,
    "CACHE.RULE|LIST": _each(_text),
    "CACHE.EXPLAIN": _map("state", "tags", "policy", "soft_ms", "hard_ms", "version", "lease", "waiters", "last_gone"),
    "CACHE.STATS": _map("hits", "stale_hits", "misses", "none_hits", "hit_ratio", "leases", "fills", "invalidations"),
    "CACHE.DOCTOR": _text,
    "CACHE.EMIT": _count,
    "CACHE.CLUSTER|INVALIDATETAG": _count,
    "CACHE.CLUSTER|STALETAG": _count,
    "CACHE.CLUSTER|EMIT": _count,
    "LOCK.ACQUIRE": _token,
    "LOCK.MACQUIRE": _token,
    "LOCK.RELEASE": _yes_no,
    "LOCK.MRELEASE": _count,
    "LOCK.EXTEND": _yes_no,
    "LOCK.VALIDATE": _yes_no,
    "LOCK.EXEC": lambda reply: True,
    "LOCK.INFO": _map("mode", "permits", "token", "holders", "waiters"),
    "LOCK.FORCE": _yes_no,
    "RATELIMIT.CHECK": _admission,
    "RATELIMIT.PEEK": _admission,
    "RATELIMIT.REFUND": _admission,
    "RATELIMIT.BAN": _ok,
    "RATELIMIT.RESET": _count,
    "RATELIMIT.ENTER": _entry,
    "RATELIMIT.LEAVE": _count,
    "RATELIMIT.INFO": _map("waiters"),
    "CL.THROTTLE": _throttle,
    "WRITEBEHIND.SET": _version,
    "WRITEBEHIND.INCRBY": _row(_maybe(lambda at: isinstance(at, int)), _version),
    "WRITEBEHIND.DEL": _version,
    "WRITEBEHIND.CLAIM": _each(_record),
    "WRITEBEHIND.ACK": _count,
    "WRITEBEHIND.NACK": _yes_no,
    "WRITEBEHIND.CONFIG": lambda reply: reply == "OK" or _map()(reply),
    "WRITEBEHIND.INFO": _map("dirty", "in_flight", "oldest_ms", "retries", "dead", "coalesced", "waiters"),
    "WRITEBEHIND.DEAD": _each(_record),
    "WRITEBEHIND.REQUEUE": _yes_no,
    "WRITEBEHIND.DROP": _yes_no,
}


def _texts_of_the_module() -> list[str]:
    """The one list of them is in the source."""
    source = (REPOSITORY / "src" / "error.rs").read_text()
    texts = re.findall(r'"([A-Z]+ [^"]+)"', source)
    return [re.sub(r"\\\{[a-z]*\\?\}", ".*", re.escape(text)) for text in texts if not text.startswith("ERR internal")]


_TEXTS_OF_SERVERS = (
    r"WRONGTYPE Operation against",
    r"OOM ",
    r"READONLY ",
    r"-?UNBLOCKED ",
    r"EXECABORT ",
    r"BUSYKEY ",
    r"NOREPLICAS ",
    r"ERR no such key",
    r"ERR source and destination",
    r"ERR (hash )?value is not",
    r"ERR value is out of range",
    r"ERR increment or decrement",
    r"ERR One or more scores",
    r"ERR invalid (first |second )?DB index",
    r"ERR invalid expire time in",
    r"ERR CONFIG SET failed .* can't set immutable config",
    r"ERR (DB|target DB) index is out of range",
    r"ERR The bit offset|ERR bit",
    r"ERR Wrong number of args calling",
    r"ERR .*unknown subcommand",
    # A script passes an error of its command on, with a place.
    r"(ERR )?[Tt]his \S+ command is not allowed from script",
    r"ERR .*Write commands are not allowed from read-only scripts",
)
KNOWN_ERRORS = re.compile("|".join((*_texts_of_the_module(), *_TEXTS_OF_SERVERS)))


def problem(command: str, reply: object) -> str | None:
    """What is wrong with a reply to this command, if anything is."""
    if isinstance(reply, ErrorReply):
        return None if KNOWN_ERRORS.match(reply) else f"{command} was answered with an unknown error: {reply}"
    check = SHAPES.get(command)
    return None if check is None or check(reply) else f"{command} was answered {reply!r}"
