"""The callers of examples/cache_aside, one class for each language: get() is one call of `cached`."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Protocol

from servers import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "cache_aside"
DRIVER = REPOSITORY / "tests" / "cache_aside_driver.mjs"
THREADS = 64

Load = Callable[[str], bytes | None]


class Failed(Exception):
    """What a caller got instead of a value: the name of the error's class, and its message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name, self.message = name, message


class Callers(Protocol):
    def get(self, key: str, tags: Sequence[str] = ()) -> Future[bytes | None]: ...

    def close(self) -> None: ...


def python_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cache_aside_example", EXAMPLE / "cache_aside.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PythonCallers:
    """Each call in a thread of its own."""

    def __init__(self, url: str, load: Load) -> None:
        self._example = python_example()
        self._redis = self._example.connect(url)
        self._load = load
        self._pool = ThreadPoolExecutor(THREADS)

    def get(self, key: str, tags: Sequence[str] = ()) -> Future[bytes | None]:
        return self._pool.submit(self._call, key, tags)

    def _call(self, key: str, tags: Sequence[str]) -> bytes | None:
        try:
            return self._example.cached(self._redis, key, lambda: self._load(key), tags=tags)
        except Exception as error:
            raise Failed(type(error).__name__, str(error)) from error

    def close(self) -> None:
        self._pool.shutdown()
        self._redis.close()


class NodeCallers:
    """One process that runs all calls; the origin it asks is this one. See cache_aside_driver.mjs."""

    def __init__(self, url: str, load: Load) -> None:
        self._load = load
        self._process = subprocess.Popen(
            ["node", DRIVER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._sending = threading.Lock()
        self._ids = itertools.count()
        self._calls: dict[int, tuple[str, Future[bytes | None]]] = {}
        self._loads = ThreadPoolExecutor(THREADS)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def get(self, key: str, tags: Sequence[str] = ()) -> Future[bytes | None]:
        call: Future[bytes | None] = Future()
        number = next(self._ids)
        self._calls[number] = key, call
        self._send({"get": key, "id": number, "tags": list(tags)})
        return call

    def _send(self, message: dict) -> None:
        assert self._process.stdin
        with self._sending:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._hear(json.loads(line))
        for _, call in self._calls.values():
            call.set_exception(RuntimeError("the driver has ended"))

    def _hear(self, message: dict) -> None:
        number = message["id"]
        if "load" in message:
            self._loads.submit(self._answer, number)
            return
        _, call = self._calls.pop(number)
        if "error" in message:
            call.set_exception(Failed(message["error"], message["message"]))
        else:
            call.set_result(message["value"] if message["value"] is None else base64.b64decode(message["value"]))

    def _answer(self, number: int) -> None:
        key, _ = self._calls[number]
        try:
            value = self._load(key)
        except Exception as error:
            self._send({"failed": str(error), "id": number})
        else:
            self._send({"loaded": value if value is None else base64.b64encode(value).decode(), "id": number})

    def close(self) -> None:
        assert self._process.stdin
        self._loads.shutdown()
        self._process.stdin.close()
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.kill()
            self._reader.join()
            assert self._process.stdout
            self._process.stdout.close()
