"""Keys of one type, found by SCAN one step in each refresh, and remembered until a whole pass does not meet them."""

from dataclasses import dataclass

KEYS_A_STEP = 1000
REMEMBERED = 200


@dataclass
class Found:
    met: int  # in which pass
    asked: int = -1  # in which refresh


class Search:
    def __init__(self, type_name: str) -> None:
        self.type_name = type_name
        self.cursor = 0
        self.found: dict[bytes, Found] = {}
        self._pass = 0
        self._beyond = 0  # met in this pass, but there were too many
        self._beyond_before = 0  # in the whole pass before

    def take(self, cursor: int, keys: list[bytes]) -> None:
        """The answer to one step."""
        self.cursor = cursor
        for key in keys:
            if key in self.found:
                self.found[key].met = self._pass
            elif len(self.found) < REMEMBERED:
                self.found[key] = Found(self._pass)
            else:
                self._beyond += 1
        if cursor == 0:
            self.found = {key: found for key, found in self.found.items() if found.met == self._pass}
            self._pass, self._beyond, self._beyond_before = self._pass + 1, 0, self._beyond

    def turn(self, refresh: int, most: int) -> list[bytes]:
        """Who is asked now: whoever was asked longest ago."""
        keys = sorted(self.found, key=lambda key: self.found[key].asked)[:most]
        for key in keys:
            self.found[key].asked = refresh
        return keys

    def forget(self, key: bytes) -> None:
        self.found.pop(key, None)

    def total(self) -> int:
        """About right once a pass has come to its end: SCAN may meet a key twice."""
        return len(self.found) + max(self._beyond, self._beyond_before)
