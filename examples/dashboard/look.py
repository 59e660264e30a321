"""Reads from the server what the page shows. A refresh sends a bounded number of commands, each of them a read, and each
looks at a bounded number of keys, whatever the server holds."""

import time

import limits as limiting
import redis
import replies
from names import shown
from search import KEYS_A_STEP, Search

# The types of the module's keys, by the part of the page that shows them, and the command that tells of one.
TYPES = {"locks": "kw-lock-1", "limiters": "kw-limit1", "slots": "kw-slots1", "queues": "kw-queue1"}
ASKING = {
    "locks": "LOCK.INFO",
    "limiters": "RATELIMIT.INFO",
    "slots": "RATELIMIT.INFO",
    "queues": "WRITEBEHIND.INFO",
}
SECTIONS = ("server", "clients", "memory", "stats", "replication", "keyspace", "keyward")

ASKED = 40  # keys of a kind, and tags, in a refresh
PIPELINED = 32  # commands that the server gets at once, so that others come in between
HOT_KEYS = 24
HOT_EVERY = 5  # refreshes
TAGS = 120  # that are remembered
TAG_FOR = 60  # refreshes, after it was last on a hot key
TAGKEYS_LOOKED_AT = 10
DOCTOR_EVERY_S = 60.0


class NotLoaded(Exception):
    """The server has not loaded Keyward."""


class Look:
    """What is known of one server process. After a restart of the server it is thrown away."""

    def __init__(self, client: redis.Redis, limits: list[limiting.Limits]) -> None:
        self._client = client
        self._limits = limits
        self._searches = {kind: Search(type_name) for kind, type_name in TYPES.items()}
        self._rows: dict[str, dict[bytes, dict]] = {kind: {} for kind in TYPES}
        self._hot: list[tuple[bytes, int]] = []
        self._tags: dict[bytes, dict] = {}
        self._tag_met: dict[bytes, int] = {}
        self._tag_asked: dict[bytes, int] = {}
        self._doctor: dict | None = None
        self._doctor_s = float("-inf")
        self._refresh = 0
        self._refused: dict[str, str] = {}
        self.commands = self.trips = 0
        self.seconds = 0.0

    def counters(self) -> dict:
        [info] = self._send([("INFO", *SECTIONS)])
        if isinstance(info, Exception):
            raise info
        if "keyward_cache_hits" not in info:
            raise NotLoaded("this server has not loaded Keyward")
        return info

    def refresh(self) -> None:
        """Goes one step on in everything that the lists show."""
        self._refresh += 1
        for part in (*TYPES, "tags"):
            self._refused.pop(part, None)
        self._scan()
        self._ask()
        if self._refresh % HOT_EVERY == 1:
            self._find_hot()
        self._ask_tags()
        if time.monotonic() >= self._doctor_s + DOCTOR_EVERY_S:
            self._consult()

    def told(self) -> dict:
        kinds = {
            kind: {"rows": list(self._rows[kind].values()), "total": search.total()}
            for kind, search in self._searches.items()
        }
        return kinds | {
            "tags": {"rows": list(self._tags.values())},
            "hot": {"rows": [{"key": shown(key), "reads": reads} for key, reads in self._hot]},
            "doctor": self._doctor and {**self._doctor, "age_s": round(time.monotonic() - self._doctor_s)},
            "refused": dict(self._refused),
        }

    def tag(self, name: bytes) -> dict:
        """What somebody searches for; by another thread than the refresh."""
        with self._client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("CACHE.TAGINFO", name)
            pipeline.execute_command("CACHE.TAGKEYS", name, "COUNT", TAGKEYS_LOOKED_AT)
            info, found = pipeline.execute(raise_on_error=False)
        for reply in (info, found):
            if isinstance(reply, Exception):
                return {"tag": shown(name), "problem": str(reply)}
        cursor, keys = found
        return {
            **replies.tag(name, info),
            "some": [shown(key) for key in keys],
            "more": cursor != b"0",
            "problem": None,
        }

    def _scan(self) -> None:
        searches = list(self._searches.items())
        steps = [("SCAN", s.cursor, "COUNT", KEYS_A_STEP, "TYPE", s.type_name) for _, s in searches]
        for (kind, search), reply in zip(searches, self._send(steps), strict=True):
            if not self._is_refused(kind, reply):
                search.take(*reply)

    def _ask(self) -> None:
        asked = [(kind, key) for kind, search in self._searches.items() for key in search.turn(self._refresh, ASKED)]
        found = self._send([(ASKING[kind], key) for kind, key in asked])
        for (kind, key), reply in zip(asked, found, strict=True):
            row = None if self._is_refused(kind, reply) else self._row(kind, key, reply)
            if row is None:
                self._searches[kind].forget(key)
            else:
                self._rows[kind][key] = row
        for kind, search in self._searches.items():
            self._rows[kind] = {key: row for key, row in self._rows[kind].items() if key in search.found}

    def _row(self, kind: str, key: bytes, reply: list) -> dict | None:
        match kind:
            case "locks":
                return replies.lock(key, reply)
            case "limiters":
                return replies.limiter(key, reply, self._limits)
            case "slots":
                return replies.slots(key, reply, self._limits)
            case _:
                return replies.queue(key, reply)

    def _find_hot(self) -> None:
        self._refused.pop("hot", None)
        [hot] = self._send([("CACHE.HOT", "COUNT", HOT_KEYS)])
        if self._is_refused("hot", hot):
            return
        self._hot = [(key, reads) for key, reads in hot]
        for reply in self._send([("CACHE.TAGS", key) for key, _ in self._hot]):
            if not self._is_refused("hot", reply):
                self._tag_met |= dict.fromkeys(reply, self._refresh)
        kept = [tag for tag, met in self._tag_met.items() if met > self._refresh - TAG_FOR]
        kept.sort(key=lambda tag: -self._tag_met[tag])
        self._tag_met = {tag: self._tag_met[tag] for tag in kept[:TAGS]}
        self._tags = {tag: row for tag, row in self._tags.items() if tag in self._tag_met}
        self._tag_asked = {tag: asked for tag, asked in self._tag_asked.items() if tag in self._tag_met}

    def _ask_tags(self) -> None:
        asked = sorted(self._tag_met, key=lambda tag: self._tag_asked.get(tag, 0))[:ASKED]
        for tag, reply in zip(asked, self._send([("CACHE.TAGINFO", tag) for tag in asked]), strict=True):
            self._tag_asked[tag] = self._refresh
            if not self._is_refused("tags", reply):
                self._tags[tag] = replies.tag(tag, reply)

    def _consult(self) -> None:
        self._doctor_s = time.monotonic()
        self._refused.pop("doctor", None)
        [reply] = self._send([("CACHE.DOCTOR",)])
        if not self._is_refused("doctor", reply):
            self._doctor = replies.doctor(reply.decode(errors="backslashreplace"))

    def _is_refused(self, part: str, reply: object) -> bool:
        """An error reply stands at the part of the page that lacks its answer. A key may also have changed its type."""
        if not isinstance(reply, Exception):
            return False
        if "WRONGTYPE" not in str(reply):
            self._refused[part] = str(reply)
        return True

    def _send(self, commands: list[tuple]) -> list:
        """The replies, errors among them. Counts what it costs."""
        answers = []
        for start in range(0, len(commands), PIPELINED):
            some = commands[start : start + PIPELINED]
            begun = time.perf_counter()
            with self._client.pipeline(transaction=False) as pipeline:
                for command in some:
                    pipeline.execute_command(*command)
                answers += pipeline.execute(raise_on_error=False)
            self.seconds += time.perf_counter() - begun
            self.trips += 1
        self.commands += len(commands)
        return answers
