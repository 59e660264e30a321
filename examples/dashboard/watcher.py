"""One thread that looks at the server, however many pages are open, and the state that they are told."""

import threading
import time
import traceback

import limits as limiting
import redis
from history import History
from look import Look, NotLoaded
from redis.backoff import NoBackoff
from redis.retry import Retry
from search import KEYS_A_STEP

REFRESH_S = 1.0
# The share of the time in which the server may at most be busy with this page.
SHARE = 0.05
# Nobody has asked for so long: then only the counters are read on, for the line of the last minutes.
WATCHED_S = 10.0
TIMEOUT_S = 5.0

SERVER = ("uptime_in_seconds", "role", "connected_clients", "used_memory", "maxmemory", "maxmemory_policy")
SERVER += ("mem_fragmentation_ratio", "evicted_keys", "expired_keys", "instantaneous_ops_per_sec")


class Watcher:
    def __init__(self, url: str, limits: list[limiting.Limits]) -> None:
        self._client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name="keyward-dashboard",
        )
        connection = self._client.connection_pool.connection_kwargs
        self._database = connection.get("db", 0)
        self._address = (
            connection.get("path") or f"{connection.get('host', 'localhost')}:{connection.get('port', 6379)}"
        )
        self._limits = limits
        self._history = History()
        self._look = Look(self._client, limits)
        self._run_id: str | None = None
        self._watched_s = float("-inf")
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._pause_s = REFRESH_S
        self._lists: dict = {}
        self._known: dict = {}
        self._away_since_ms: int | None = None
        self._state: dict = self._told("not asked yet")

    def state(self) -> dict:
        """What was seen last. That somebody asks is what keeps the lists fresh."""
        asleep = time.monotonic() - self._watched_s > WATCHED_S
        self._watched_s = time.monotonic()
        if asleep:
            self._due.set()
        return self._state

    def tag(self, name: bytes) -> dict | None:
        """None: the server is away."""
        try:
            return self._look.tag(name)
        except (redis.RedisError, OSError):
            return None

    def run(self) -> None:
        while not self._stopping.is_set():
            self.refresh()
            self._due.wait(self._pause_s)
            self._due.clear()

    def stop(self) -> None:
        self._stopping.set()
        self._due.set()

    def refresh(self) -> None:
        try:
            self._see()
            problem = None
        except (redis.RedisError, NotLoaded, OSError) as error:
            problem = str(error).rstrip(".") or type(error).__name__
        except Exception as error:
            # A reply that nobody foresaw: the pages say so, and do not stand still as if all were well.
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            self._pause_s = REFRESH_S
            self._history.gap(_unix_ms())
        if problem is None:
            self._away_since_ms = None
        elif self._away_since_ms is None:
            self._away_since_ms = _unix_ms()
        self._state = self._told(problem)

    def _see(self) -> None:
        look = self._look
        look.commands, look.trips, look.seconds = 0, 0, 0.0
        info = look.counters()
        if self._run_id not in (None, info["run_id"]):
            look = self._look = Look(self._client, self._limits)
        self._run_id = info["run_id"]
        self._history.add(_unix_ms(), time.monotonic(), info)
        if watched := time.monotonic() - self._watched_s < WATCHED_S:
            look.refresh()
            self._lists = look.told()
        self._pause_s = pause(look.seconds)
        self._known = {
            "server": self._server(info),
            "counters": {name.removeprefix("keyward_"): info[name] for name in info if name.startswith("keyward_")},
            "cost": {
                "commands": look.commands,
                "trips": look.trips,
                "ms": round(1000 * look.seconds, 2),
                "every_ms": round(1000 * self._pause_s),
                "keys_a_step": KEYS_A_STEP,
                "watched": watched,
            },
        }

    def _server(self, info: dict) -> dict:
        name = info.get("server_name", "redis")
        return {
            "name": name,
            "version": info.get(f"{name}_version", info["redis_version"]),
            "address": self._address,
            "database": self._database,
            "keys": _keys(info, self._database),
        } | {field: info.get(field) for field in SERVER}

    def _told(self, problem: str | None) -> dict:
        return (
            {
                "unix_ms": _unix_ms(),
                "connected": problem is None,
                "problem": problem,
                "address": self._address,
                "away_since_ms": self._away_since_ms,
                "history": self._history.told(),
            }
            | self._known
            | self._lists
        )


def pause(cost_s: float) -> float:
    """Until the next refresh. A busy or distant server is asked less often."""
    return max(REFRESH_S, cost_s / SHARE)


def _keys(info: dict, database: int) -> int:
    return info.get(f"db{database}", {}).get("keys", 0)


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
