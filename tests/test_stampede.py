"""The promise in one scene: 200 clients miss one key whose origin is slow. It is asked once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from raw_client import RawClient
from servers import Server

CLIENTS = 200


def test_two_hundred_clients_ask_the_origin_once(server: Server) -> None:
    asked = []
    start = threading.Barrier(CLIENTS)

    def origin() -> bytes:
        asked.append(1)
        time.sleep(0.2)  # What a slow query takes.
        return b"row"

    def cached() -> tuple[bytes, int]:
        with RawClient(server) as client:
            start.wait()
            status, value, token = client.call("CACHE.FETCH", "k", "WAIT", 10_000)
            if status != b"MISS":
                return value, 1
            value = origin()
            assert client.call("CACHE.FILL", "k", token, value, "EX", 60) == 1
            return value, 2

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [future.result() for future in [pool.submit(cached) for _ in range(CLIENTS)]]
    assert len(asked) == 1
    assert {value for value, _ in answers} == {b"row"}
    assert sum(commands for _, commands in answers) == CLIENTS + 1
