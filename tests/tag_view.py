"""What the module knows of the keyspace, seen through its commands, and what the server says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import redis
from raw_client import ErrorReply, RawClient, Word, fields
from servers import Server

Databases = dict[int, dict[bytes, set[bytes]]]


def set_tagged(client: redis.Redis, key: str | bytes, *tags: str | bytes, value: str | bytes = b"v") -> None:
    """A value with these tags and no expiry."""
    options = ["TAGS", len(tags), *tags] if tags else []
    assert client.execute_command("CACHE.SET", key, value, *options) == b"OK"


def fill_tag(
    client: redis.Redis, tag: str, count: int, *further: str, prefix: str = "k", value: str = "v"
) -> list[bytes]:
    """`count` keys that carry the tag (and the further ones). Their names."""
    keys = [b"%s:%d" % (prefix.encode(), number) for number in range(count)]
    tags = [tag, *further]
    pipeline = client.pipeline(transaction=False)
    for start in range(0, count, 500):
        batch = keys[start : start + 500]
        pairs = [word for key in batch for word in (key, value)]
        pipeline.execute_command("CACHE.MSET", len(batch), *pairs, "TAGS", len(tags), *tags)
    assert pipeline.execute() == [b"OK"] * -(-count // 500)
    return keys


def tags(client: redis.Redis, key: str | bytes) -> set[bytes]:
    reply = client.execute_command("CACHE.TAGS", key)
    assert len(reply) == len(set(reply)), "a tag was listed twice"
    return set(reply)


def tag_keys(client: redis.Redis, tag: str | bytes, count: int = 1000) -> set[bytes]:
    """Every key of the tag, walked to the end."""
    keys: set[bytes] = set()
    cursor: bytes | int = 0
    while True:
        cursor, found = client.execute_command("CACHE.TAGKEYS", tag, "CURSOR", cursor, "COUNT", count)
        keys.update(found)
        if int(cursor) == 0:
            return keys


def tag_info(client: redis.Redis, tag: str | bytes) -> dict[str, int]:
    return {name.decode(): value for name, value in fields(client.execute_command("CACHE.TAGINFO", tag)).items()}


def cache_get_all(client: redis.Redis, keys: Iterable[bytes]) -> list[bytes | None]:
    keys = list(keys)
    found: list[bytes | None] = []
    for start in range(0, len(keys), 1000):
        found += client.execute_command("CACHE.MGET", *keys[start : start + 1000])
    return found


def at_once(server: Server, *commands: Sequence[Word], db: int = 0) -> list:
    """Runs the commands in one transaction: no other client and no timer comes between them. Their replies."""
    with RawClient(server, db=db) as raw:
        *queued, replies = raw.pipeline([("MULTI",), *commands, ("EXEC",)])
        refused = [reply for reply in queued if isinstance(reply, ErrorReply)]
        assert not refused, refused
        assert isinstance(replies, list), replies
        return replies


def metric(server: Server, name: str) -> int:
    """A number of the module's INFO sections."""
    return server.info("everything")[f"keyward_{name}"]


def assert_view_is(server: Server, expected: Databases) -> None:
    """The tags of every key, by key and by tag, are the expected ones, and those keys are there. Databases that are not
    named have no tagged keys."""
    total = 0
    for db in range(16):
        wanted = {key: carried for key, carried in expected.get(db, {}).items() if carried}
        total += len(wanted)
        with server.client(db=db) as client:
            keys = client.keys("*")
            assert {key: found for key in keys if (found := tags(client, key))} == wanted, f"tags by key in db {db}"
            for tag in {tag for carried in wanted.values() for tag in carried}:
                assert tag_keys(client, tag) == {key for key, carried in wanted.items() if tag in carried}, (db, tag)
    assert metric(server, "cache_tagged_keys") == total


CONTENT = {
    b"hash": lambda client, key: client.hgetall(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"set": lambda client, key: set(client.smembers(key)),
    b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
    b"none": lambda client, key: None,
}


def picture(server: Server) -> dict:
    """Everything that a replica or a restart must reproduce: of every key its value, its expiry and its tags, of every tag
    what CACHE.TAGINFO says but the memory it takes."""
    databases = {}
    for name in server.info("keyspace"):
        db = int(name.removeprefix("db"))
        with server.client(db=db) as client:
            keys = {}
            for key in client.keys("*"):
                kind = client.type(key)
                value = client.execute_command("CACHE.GET", key) if kind == b"string" else CONTENT[kind](client, key)
                keys[key] = kind, value, client.execute_command("PEXPIRETIME", key), tags(client, key)
            names = {tag for value in keys.values() for tag in value[-1]}
            infos = {
                tag: {name: value for name, value in tag_info(client, tag).items() if name != "bytes"} for tag in names
            }
            databases[db] = keys, infos
    return databases


def differences(one: dict, other: dict) -> list:
    """Where two pictures differ: the database, the key or tag, and what each says of it."""
    found = []
    for db in one.keys() | other.keys():
        for left, right in zip(one.get(db, ({}, {})), other.get(db, ({}, {})), strict=True):
            names = sorted(left.keys() | right.keys())
            found += [
                (db, name, left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)
            ]
    return found


def retire_and_hold(server: Server, tag: str, *further: Sequence[Word], db: int = 0) -> list:
    """Invalidates a giant tag and keeps the reclaimer from its work until CLIENT UNPAUSE. `further`: commands to be run
    between the two. The replies of the invalidation and of those."""
    return at_once(server, ("CACHE.INVALIDATETAG", tag), *further, ("CLIENT", "PAUSE", 600_000, "WRITE"), db=db)[:-1]
