"""Replies of the server as rows of the page: names become text, lists become short ones with their length."""

import limits as limiting
from names import shown

SHOWN_IN_LINE = 12  # holders, waiters and slots that are told one by one


def fields(reply: list) -> dict[str, object]:
    """A map of RESP2."""
    return {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


def lock(key: bytes, reply: list) -> dict | None:
    """None: it is free."""
    info = fields(reply)
    if not info["holders"] and not info["waiters"]:
        return None
    return {
        "key": shown(key),
        "mode": info["mode"].decode(),
        "permits": info["permits"],
        "token": info["token"],
        "holding": len(info["holders"]),
        "holders": [
            {"owner": shown(owner), "token": token, "holds": holds, "ttl_ms": ttl, "client_id": client}
            for owner, token, holds, ttl, client in info["holders"][:SHOWN_IN_LINE]
        ],
        "waiting": len(info["waiters"]),
        "waiters": [
            {"owner": shown(owner), "mode": mode.decode(), "waited_ms": waited}
            for owner, mode, waited in info["waiters"][:SHOWN_IN_LINE]
        ],
    }


def limiter(key: bytes, reply: list, known: list[limiting.Limits]) -> dict | None:
    info = fields(reply)
    counted = [fields(limit) for limit in info["limits"]]
    if not counted and not info["banned_ms"] and not info["waiters"]:
        return None
    states = [
        {**limit, "algorithm": limit["algorithm"].decode(), "limit": None, "remaining": None} for limit in counted
    ]
    allowed = limiting.of_key(known, key, slots=False)
    for limit in allowed.limits if allowed else ():
        _tell_remaining(states, limit)
    waited = [ms for _, ms in info["waiters"]]
    return {
        "key": shown(key),
        "banned_ms": info["banned_ms"],
        "limits": states,
        "waiting": len(waited),
        "waited_ms": max(waited, default=0),
    }


def _tell_remaining(states: list[dict], limit: limiting.Limit) -> None:
    """A limit that is full is not in the reply, and is added."""
    alike = (s for s in states if (s["algorithm"], s["window_ms"]) == (limit.algorithm, limit.window_ms))
    state = next(alike, None)
    if state is None:
        state = {"algorithm": limit.algorithm, "window_ms": limit.window_ms, "used": 0, "next_ms": 0, "reset_ms": 0}
        states.append(state)
    state["limit"], state["remaining"] = limit.capacity, max(0, limit.capacity - state["used"])


def slots(key: bytes, reply: list, known: list[limiting.Limits]) -> dict | None:
    info = fields(reply)
    if "in_use" not in info or not (info["in_use"] or info["waiters"]):
        return None
    allowed = limiting.of_key(known, key, slots=True)
    return {
        "key": shown(key),
        "in_use": info["in_use"],
        "limit": allowed.slots if allowed else None,
        "slots": [
            {"id": shown(name), "ttl_ms": ttl, "client_id": client}
            for name, ttl, client in info["slots"][:SHOWN_IN_LINE]
        ],
        "waiting": len(info["waiters"]),
        "waiters": [{"id": shown(name), "waited_ms": ms} for name, ms in info["waiters"][:SHOWN_IN_LINE]],
    }


def queue(key: bytes, reply: list) -> dict:
    return {"key": shown(key), **fields(reply)}


def tag(name: bytes, reply: list) -> dict:
    # All 512 bytes that a tag may have: the search takes it as it is shown.
    return {"tag": shown(name, 10 * len(name)), **fields(reply)}


def doctor(text: str) -> dict:
    """`!! name: what` and the line below it, `   To do: ...`."""
    summary, *lines = text.splitlines()
    findings = []
    for line in lines:
        if line.startswith("   ") and findings:
            findings[-1]["to_do"] = line.strip().removeprefix("To do: ")
        elif line:
            mark, _, rest = line.partition(" ")
            name, _, what = rest.partition(": ")
            findings.append({"mark": mark, "name": name, "what": what, "to_do": None})
    return {"summary": summary, "findings": findings}
