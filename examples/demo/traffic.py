"""The request log: who asks for which page, which rows change, when night falls. The same seed gives the same log."""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

SKEW = 1.1  # Zipf: the page of rank r is asked for in proportion to 1 / r ** SKEW
NIGHTS = 7
CLIENTS = 500
SCRAPER = "client:scraper"
UPDATE_EVERY = 100  # requests

DELAY = "UPDATE flights SET dep_delay = coalesce(dep_delay, 0) + ?, arr_delay = coalesce(arr_delay, 0) + ? WHERE id = ?"
GATE = "UPDATE flights SET gate = ? WHERE id = ?"
AIRPORT = "UPDATE airports SET name = ? WHERE faa = ?"
AIRLINE = "UPDATE airlines SET name = ? WHERE carrier = ?"


class Request(NamedTuple):
    client: str
    key: str


class Update(NamedTuple):
    """A change of a row, and the tag of the pages it shows on."""

    statement: str
    values: tuple
    tag: str


class Night(NamedTuple):
    number: int
    stalls: bool  # the runner that gets the lock is paused for longer than its lease


Event = Request | Update | Night


def log(flights: list, requests: int, seed: int) -> Iterator[Event]:
    """`requests` requests, an update after every UPDATE_EVERY of them, NIGHTS nights evenly between."""
    draw = random.Random(seed)
    ranked = draw.sample(flights, len(flights))
    weights = list(itertools.accumulate(1 / rank**SKEW for rank in range(1, len(ranked) + 1)))
    popular = iter(lambda: draw.choices(ranked, cum_weights=weights)[0], None)
    for number in range(1, requests + 1):
        yield _request(draw, next(popular), flights)
        if number % UPDATE_EVERY == 0:
            yield _update(draw, next(popular), number)
        if number * NIGHTS // requests > (number - 1) * NIGHTS // requests:
            night = number * NIGHTS // requests
            yield Night(night, stalls=night == NIGHTS)


def _request(draw: random.Random, flight, flights: list) -> Request:
    if draw.random() < 0.1:
        # A scraper reads flight after flight, popular or not.
        return Request(SCRAPER, f"flight:{draw.choice(flights)['id']}")
    client = f"client:{draw.randrange(CLIENTS)}"
    if draw.random() < 0.2:
        return Request(client, f"board:{flight['origin']}:{flight['day']}:{flight['hour']}")
    return Request(client, f"flight:{flight['id']}")


def _update(draw: random.Random, flight, number: int) -> Update:
    """Popular flights change like the others, so what changes is often what is cached."""
    kind, day = draw.random(), f"day:{flight['day']}"
    if kind < 0.6:
        minutes = draw.randrange(5, 90)
        return Update(DELAY, (minutes, minutes, flight["id"]), day)
    if kind < 0.95:
        return Update(GATE, (f"{draw.choice('ABC')}{draw.randrange(1, 60)}", flight["id"]), day)
    if kind < 0.98:
        return Update(
            AIRPORT, (f"{flight['dest']} International ({number})", flight["dest"]), f"airport:{flight['dest']}"
        )
    return Update(
        AIRLINE, (f"{flight['carrier']} Airways ({number})", flight["carrier"]), f"airline:{flight['carrier']}"
    )
