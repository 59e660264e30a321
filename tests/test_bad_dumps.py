"""Dumps come from anybody, by RESTORE: damaged, forged, or of a version to come."""

import random

import pytest
from catalogue import assert_clear, assert_refused, make_world, see_world
from raw_client import ErrorReply, RawClient


@pytest.fixture
def raw(server):
    with RawClient(server) as raw:
        make_world(raw)
        yield raw


CRC64_TABLE = []
for byte in range(256):
    crc = byte
    for _ in range(8):
        crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    CRC64_TABLE.append(crc)


def with_checksum(body):
    """The payload with the checksum that RESTORE wants (CRC-64/Jones), so that the damage reaches us."""
    crc = 0
    for byte in body:
        crc = CRC64_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return body + crc.to_bytes(8, "little")


def dumps(raw):
    """A dump of each type of ours, small and large."""
    raw.call("FLUSHALL")
    make_world(raw)
    raw.call("LOCK.ACQUIRE", "long", b"\x00\xff" * 500, "EX", 5000, "REENTRANT")
    begin = int(raw.call("TIME")[0]) * 10**6 - 80 * 10**6
    for number in range(40):
        raw.call("KEYWARD.APPLY", "CHARGE", "many", "SLIDING", 100_000, begin + number * 2 * 10**6, 99)
    for seconds in range(16):
        raw.call("RATELIMIT.CHECK", "windows", 10**12, "EX", 5000 + seconds, "COST", 10**11 + seconds)
    for number in range(40):
        raw.call("RATELIMIT.ENTER", "crowd", b"\x00\xff" * number + b"x", "LIMIT", 100, "EX", 5000 + number)
    limits = ("GCRA", 10**12, "EX", 5000, "FIXED", 10**12, "EX", 10**9, 10, "EX", 5000)
    raw.call("RATELIMIT.CHECK", "every", *limits, "COST", 7)
    raw.call("RATELIMIT.BAN", "every", "EX", 5000)
    raw.call("WRITEBEHIND.CONFIG", "records", "ATTEMPTS", 1)
    raw.call("WRITEBEHIND.INCRBY", "records", "dead", -(10**18))
    ((_, version, *_),) = raw.call("WRITEBEHIND.CLAIM", "records", "w")
    raw.call("WRITEBEHIND.SET", "records", "dead", b"1" * 10)
    assert raw.call("WRITEBEHIND.NACK", "records", "w", "dead", version, "MSG", "no") == 1
    raw.call("WRITEBEHIND.DEL", "records", "other")
    raw.call("WRITEBEHIND.INCRBY", "records", "n", 5)
    keys = ("lock", "long", "limiter", "many", "windows", "every", "slots", "crowd", "queue", "records")
    return {key: raw.call("DUMP", key) for key in keys}


def test_the_checksum_is_the_servers(raw):
    for dump in dumps(raw).values():
        assert with_checksum(dump[:-8]) == dump
        assert raw.call("RESTORE", "restored", 0, dump, "REPLACE") == "OK"


def test_flipped_and_truncated_dumps_are_refused(server, raw):
    before = None
    for dump in dumps(raw).values():
        before = before or see_world(raw)
        bad = [dump[:size] for size in range(len(dump))]
        bad += [dump[:at] + bytes([dump[at] ^ 1 << at % 8]) + dump[at + 1 :] for at in range(len(dump))]
        for reply in raw.pipeline([("RESTORE", "restored", 0, payload) for payload in bad]):
            assert_clear(reply)
    assert raw.call("EXISTS", "restored") == 0
    assert see_world(raw) == before


def use(raw, key):
    """Whatever a damaged dump has become: every command answers."""
    for call in (
        ("LOCK.INFO", key),
        ("LOCK.VALIDATE", key, 1),
        ("LOCK.EXTEND", key, "ann", "PX", 1000),
        ("RATELIMIT.INFO", key),
        ("RATELIMIT.PEEK", key, 10, "EX", 5000, "COST", 3),
        ("RATELIMIT.CHECK", key, 10**12, "EX", 5000, "COST", 3),
        ("RATELIMIT.PEEK", key, "GCRA", 5, "EX", 5000, "FIXED", 7, "EX", 10**9, "RESERVE", 1),
        ("RATELIMIT.REFUND", key, "GCRA", 5, "EX", 5000, "FIXED", 7, "EX", 10**9, "COST", 2),
        ("RATELIMIT.BAN", key, "PX", 1),
        ("RATELIMIT.ENTER", key, "ann", "LIMIT", 1000, "EX", 5000),
        ("RATELIMIT.LEAVE", key, "ann"),
        ("MEMORY", "USAGE", key),
        ("COPY", key, "copied", "REPLACE"),
        ("DUMP", key),
        ("PTTL", key),
        ("LOCK.RELEASE", key, "ann"),
        ("WRITEBEHIND.INFO", key),
        ("WRITEBEHIND.DEAD", key),
        ("WRITEBEHIND.REQUEUE", key, "dead"),
        ("WRITEBEHIND.INCRBY", key, "dead", 1),
        ("WRITEBEHIND.CLAIM", key, "w", "COUNT", 100),
        ("CACHE.GET", "dead"),
        ("UNLINK", key, "copied"),
    ):
        reply = raw.call(*call)
        if isinstance(reply, ErrorReply):
            assert_clear(reply)


def test_damaged_dumps_with_a_right_checksum_are_refused_or_are_sound_values(make_server):
    """What RESTORE takes may come from anybody. The first byte is left alone: it says which type the
    server takes it for, and damage to its own types is not ours."""
    server = make_server()
    draw = random.Random(7)
    with RawClient(server) as raw:
        refused = taken = 0
        for dump in dumps(raw).values():
            body = dump[:-8]
            bad = [body[:size] + dump[-10:-8] for size in range(1, len(body) - 2)][-150:]
            for at in range(1, len(body) - 2):
                bad.append(body[:at] + bytes([body[at] ^ 1 << draw.randrange(8)]) + body[at + 1 :])
                bad.append(body[:at] + draw.randbytes(1) + body[at + 1 :])
            for payload in bad:
                reply = raw.call("RESTORE", "restored", 0, with_checksum(payload))
                if isinstance(reply, ErrorReply):
                    assert_clear(reply)
                    refused += 1
                else:
                    use(raw, "restored")
                    taken += 1
        assert raw.call("EXISTS", "restored") == 0
    assert refused > 500
    assert taken > 0, "a flipped bit in an owner's name, for instance"
    assert server.info("everything")["keyward_caught_panics"] == 0


MODULE_ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def module_id(type_name, encoding):
    """What a dump names a module's type and its encoding by: six bits a character, ten for the encoding."""
    number = 0
    for character in type_name:
        number = number << 6 | MODULE_ID_CHARACTERS.index(character)
    return (number << 10 | encoding).to_bytes(8, "big")


def test_dumps_of_an_encoding_to_come_and_of_no_keys_type_are_refused(server, raw):
    """A newer version writes other encodings. And tags are saved as a type of ours that no key has."""
    types = {"lock": "kw-lock-1", "limiter": "kw-limit1", "slots": "kw-slots1", "queue": "kw-queue1"}
    for key, type_name in types.items():
        dump = raw.call("DUMP", key)
        mine = module_id(type_name, 0)
        assert dump.count(mine) == 1
        others = [module_id(type_name, encoding) for encoding in (1, 2, 1023)] + [module_id("kw-meta-1", 0)]
        others += [module_id(other, 0) for other in types.values() if other != type_name]
        calls = [("RESTORE", "new", 0, with_checksum(dump[:-8].replace(mine, other))) for other in others]
        assert_refused(server, raw, calls)


def test_a_dump_from_nowhere_does_not_use_up_the_fencing_tokens(make_server):
    """A dump says which token its lock has. The greatest possible one must not end all granting."""
    server = make_server()
    with RawClient(server) as raw:
        token = raw.call("LOCK.ACQUIRE", "lock", "ann", "EX", 5000)
        dump = raw.call("DUMP", "lock")
        forged = dump[:-8].replace(varint(2 * token), varint(2 * (2**53 - 1)))
        assert forged != dump[:-8], "the test no longer knows how a token is stored"
        reply = raw.call("RESTORE", "forged", 0, with_checksum(forged))
        if isinstance(reply, ErrorReply):
            assert_clear(reply)
        after = raw.call("LOCK.ACQUIRE", "next", "ann", "EX", 5000)
        assert isinstance(after, int), after
        assert token < after < 2**53


def varint(number):
    """Seven bits a byte, the lowest first, as the dump writes integers (signed ones doubled)."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
