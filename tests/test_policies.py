"""CACHE.POLICY: what writes and reads leave out, and what names keys may have."""

import random
import re
import subprocess

import pytest
import redis
from policies import FIELDS, about, get_policy, lives, match, policies, set_policy
from raw_client import ErrorReply, RawClient
from servers import REPOSITORY, eventually
from single_flight import Callers
from tag_view import metric

READY_MADE = REPOSITORY / "examples" / "policies" / "policies.redis"


def error(client, *words):
    with pytest.raises(redis.ResponseError) as raised:
        client.execute_command(*words)
    return str(raised.value)


# The commands


def test_a_policy_tells_what_it_says(client):
    every = ("PREFIX", "user:", "EX", 100, "JITTER", "10%", "GRACE", 5, "SLIDING", "NEGATIVE", 3, "BETA", "1.50")
    every += ("AHEAD", "20%", "LOADER", "users", "PATTERN", "user:{id}", "ENFORCE", "Reject")
    set_policy(client, "full", *every)
    said = get_policy(client, "full")
    assert tuple(said) == FIELDS
    assert said == dict(
        zip(
            FIELDS,
            (b"user:", 100_000, None, 10, 5000, 1, 3000, b"1.5", 20, b"users", b"user:{id}", b"reject"),
            strict=True,
        )
    )
    set_policy(client, "ms", "PX", 100, "JITTER", 7)
    assert get_policy(client, "ms") == dict.fromkeys(FIELDS) | {
        "ttl_ms": 100,
        "jitter_ms": 7,
        "sliding": 0,
        "enforce": b"off",
    }
    assert get_policy(client, "none") is None


def test_set_replaces_the_whole_policy(client):
    set_policy(client, "p", "PREFIX", "a:", "EX", 100, "GRACE", 5)
    set_policy(client, "p", "PREFIX", "b:")
    assert get_policy(client, "p")["ttl_ms"] is None
    assert (match(client, "a:1"), match(client, "b:1")) == (None, b"p")


def test_list_and_delete(client):
    assert client.execute_command("CACHE.POLICY", "LIST") == []
    for name in ("b", "c", "a"):
        set_policy(client, name)
    assert client.execute_command("CACHE.POLICY", "LIST") == [b"a", b"b", b"c"]
    assert [client.execute_command("CACHE.POLICY", "DEL", "b") for _ in range(2)] == [1, 0]
    assert client.execute_command("CACHE.POLICY", "LIST") == [b"a", b"c"]


def test_the_longest_prefix_wins_whatever_the_database(client, server):
    set_policy(client, "all", "PREFIX", "")
    set_policy(client, "users", "PREFIX", "user:")
    set_policy(client, "sessions", "PREFIX", "user:session:")
    set_policy(client, "unreached")
    for key, name in (("user:session:1", b"sessions"), ("user:session", b"users"), ("x", b"all"), ("", b"all")):
        assert match(client, key) == name
        assert match(server.client(db=5), key) == name
    client.execute_command("CACHE.POLICY", "DEL", "users")
    assert match(client, "user:session") == b"all"


def test_many_policies_are_matched_as_a_scan_would(make_server):
    client = make_server().client()
    chosen = random.Random(7)
    prefixes = {"".join(chosen.choices("ab:\xff", k=chosen.randrange(9))).encode("latin1") for _ in range(3000)}
    pipeline = client.pipeline(transaction=False)
    for prefix in prefixes:
        pipeline.execute_command("CACHE.POLICY", "SET", b"p" + prefix, "PREFIX", prefix)
    pipeline.execute()
    gone = set(chosen.sample(sorted(prefixes), 1000))
    for prefix in gone:
        pipeline.execute_command("CACHE.POLICY", "DEL", b"p" + prefix)
    assert pipeline.execute() == [1] * 1000
    keys = ["".join(chosen.choices("ab:\xff", k=chosen.randrange(12))).encode("latin1") for _ in range(500)]
    for key in keys:
        pipeline.execute_command("CACHE.POLICY", "MATCH", key)
    left = prefixes - gone
    longest = [max((p for p in left if key.startswith(p)), key=len, default=None) for key in keys]
    assert pipeline.execute() == [None if prefix is None else b"p" + prefix for prefix in longest]


def test_a_prefix_belongs_to_one_policy(client):
    set_policy(client, "p", "PREFIX", "a:")
    assert error(client, "CACHE.POLICY", "SET", "q", "PREFIX", "a:") == "another policy has this prefix"
    set_policy(client, "p", "PREFIX", "b:")
    set_policy(client, "q", "PREFIX", "a:")


def test_there_is_a_cap(make_server):
    server = make_server(args=["policies-max", "2"])
    client = server.client()
    set_policy(client, "a")
    set_policy(client, "b")
    assert error(client, "CACHE.POLICY", "SET", "c") == "too many policies"
    set_policy(client, "a", "EX", 5)
    assert (metric(server, "cache_policies"), metric(server, "cache_policies_full")) == (2, 1)
    client.config_set("keyward.policies-max", 3)
    set_policy(client, "c")


def test_flushing_leaves_policies(client):
    set_policy(client, "p", "PREFIX", "a:")
    for words in (("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", 0, 1)):
        client.execute_command(*words)
        assert match(client, "a:1") == b"p"


# Writes


@pytest.fixture
def under(client):
    """Keys under p: live for a thousand seconds, with a grace; under j: they have a jitter."""
    set_policy(client, "plain", "PREFIX", "p:", "EX", 1000, "GRACE", 100)
    set_policy(client, "jitter", "PREFIX", "j:", "EX", 1000, "JITTER", 500)
    return client


def commit(client, key, *words):
    token = client.execute_command("CACHE.INTENT", key)
    assert client.execute_command("CACHE.COMMIT", key, token, "v", *words) == 1


def fill(client, key, *words):
    token = client.execute_command("CACHE.FETCH", key)[2]
    assert client.execute_command("CACHE.FILL", key, token, "v", *words) == 1


WRITES = {
    "SET": lambda client, key, *words: client.execute_command("CACHE.SET", key, "v", *words),
    "MSET": lambda client, key, *words: client.execute_command("CACHE.MSET", 2, key, "v", "other", "v", *words),
    "FILL": fill,
    "COMMIT": commit,
    "WRITEBEHIND.SET": lambda client, key, *words: client.execute_command("WRITEBEHIND.SET", "wb", key, "v", *words),
}
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@every_write
def test_a_write_without_an_expiry_gets_that_of_the_policy(under, write):
    write(under, "p:1")
    soft, hard = lives(under, "p:1")
    assert about(soft, 1_000_000)
    assert hard - soft == 100_000
    write(under, "elsewhere")
    assert lives(under, "elsewhere") == (-1, -1)


@every_write
def test_an_expiry_of_its_own_is_taken_and_grace_still_comes_from_the_policy(under, write):
    write(under, "p:1", "PX", 50_000)
    soft, hard = lives(under, "p:1")
    assert about(soft, 50_000)
    assert hard - soft == 100_000
    write(under, "p:2", "PX", 50_000, "GRACE", 0)
    soft, hard = lives(under, "p:2")
    assert soft == hard


def test_jitter_is_in_the_unit_of_the_policy_also_for_a_write_with_an_expiry(under):
    seen = []
    for number in range(100):
        under.execute_command("CACHE.SET", f"j:{number}", "v")
        under.execute_command("CACHE.SET", f"j:own:{number}", "v", "PX", 2_000_000)
        seen.append((lives(under, f"j:{number}")[0] - 1_000_000, lives(under, f"j:own:{number}")[0] - 2_000_000))
    for drawn in zip(*seen, strict=True):
        assert all(-5000 <= ms <= 500_000 for ms in drawn)
        assert max(drawn) - min(drawn) > 250_000, "drawn each time"
    under.execute_command("CACHE.SET", "j:none", "v", "EX", 1000, "JITTER", 0)
    assert about(lives(under, "j:none")[0], 1_000_000)


def test_each_key_of_mset_is_under_its_own_policy(under):
    set_policy(under, "long", "PREFIX", "p:long:", "EX", 5000)
    under.execute_command("CACHE.MSET", 3, "p:1", "v", "p:long:1", "v", "free", "v", "TAGS", 1, "t")
    assert about(lives(under, "p:1")[0], 1_000_000)
    assert about(lives(under, "p:long:1")[1], 5_000_000)
    assert lives(under, "free") == (-1, -1)


def test_the_policy_can_be_named(under):
    under.execute_command("CACHE.SET", "elsewhere", "v", "POLICY", "plain")
    assert about(lives(under, "elsewhere")[0], 1_000_000)
    set_policy(under, "nothing")
    under.execute_command("CACHE.SET", "p:1", "v", "policy", "nothing")
    assert lives(under, "p:1") == (-1, -1), "that of the prefix does not count then"
    under.execute_command("CACHE.SETTAGGED", "t", "v", "EX", 5, "TAGS", 1, "t", "POLICY", "plain")
    assert lives(under, "t")[1] > 100_000
    assert error(under, "CACHE.SET", "x", "v", "POLICY", "none") == "no such policy"
    assert error(under, "WRITEBEHIND.SET", "wb", "x", "v", "POLICY", "plain") == "syntax error"
    assert under.exists("x") == 0


def test_plain_commands_are_not_touched(under):
    under.set("p:1", "v")
    assert under.ttl("p:1") == -1
    under.execute_command("CACHE.SET", "p:2", "v")
    under.persist("p:2")
    assert under.ttl("p:2") == -1


def test_a_change_concerns_what_is_written_after_it(under):
    under.execute_command("CACHE.SET", "p:1", "v")
    set_policy(under, "plain", "PREFIX", "p:", "EX", 10)
    assert about(lives(under, "p:1")[0], 1_000_000)
    under.execute_command("CACHE.SET", "p:1", "v")
    assert about(lives(under, "p:1")[1], 10_000)


def test_negatives(client, server, protocol):
    set_policy(client, "p", "PREFIX", "p:", "EX", 1000, "NEGATIVE", 500)
    set_policy(client, "q", "PREFIX", "q:", "EX", 1000)
    with Callers(server, protocol) as callers:
        token = callers.lease("p:1")
        assert callers.call("CACHE.FILLNIL", "p:1", token, "TAGS", 1, "t") == 1
        assert callers.call("CACHE.FETCH", "p:1")[0] == b"NONE"
        for key in ("q:1", "free"):
            token = callers.lease(key)
            assert callers.call("CACHE.FILLNIL", key, token) == "ERR syntax error"


# Reads


def test_beta_of_the_policy_is_for_fetches_without_one(client):
    """A load of a millisecond or more: with this beta a refresh is likely in the last second, and all but certain at the end."""
    set_policy(client, "p", "PREFIX", "p:", "EX", 1000, "BETA", 1000)
    token = client.execute_command("CACHE.FETCH", "p:1")[2]
    client.execute_command("CACHE.FILL", "p:1", token, "v", "PX", 3000)

    def refreshed():
        assert client.execute_command("CACHE.FETCH", "p:1", "BETA", 0) == [b"HIT", b"v", None]
        status, value, _ = client.execute_command("CACHE.FETCH", "p:1")
        assert value == b"v"
        return status == b"REFRESH"

    eventually(refreshed)


# Names of keys


@pytest.fixture
def names(client):
    set_policy(client, "strict", "PREFIX", "s:", "PATTERN", "s:{id}:{field}", "ENFORCE", "reject")
    set_policy(client, "mild", "PREFIX", "m:", "PATTERN", "m:{id}:{field}", "ENFORCE", "warn")
    set_policy(client, "off", "PREFIX", "o:", "PATTERN", "o:{id}:{field}")
    return client


REFUSED = "key name does not match policy 'strict'"


@every_write
def test_a_name_that_does_not_match_is_refused(names, server, write):
    before = metric(server, "cache_policy_rejections")
    with pytest.raises(redis.ResponseError, match=re.escape(REFUSED)):
        write(names, "s:1")
    assert names.exists("s:1", "other", "wb") == 0
    assert metric(server, "cache_policy_rejections") == before + 1
    write(names, "s:1:name")
    assert names.get("s:1:name") == b"v"


def test_fillnil_is_a_write_too(names):
    token = names.execute_command("CACHE.FETCH", "s:1")[2]
    assert error(names, "CACHE.FILLNIL", "s:1", token, "EX", 5) == REFUSED
    assert names.execute_command("CACHE.FETCH", "s:1")[0] == b"BUSY", "the lease is as it was"


def test_reads_and_removals_are_not_refused(names):
    names.set("s:1", "v")
    assert names.execute_command("CACHE.GET", "s:1") == b"v"
    assert names.execute_command("CACHE.TAG", "s:1", "t") == 1
    assert names.execute_command("CACHE.INVALIDATE", "s:1") == 1


def test_warn_counts_and_off_does_not(names, server):
    before = metric(server, "cache_policy_warnings")
    for key in ("m:1", "m:1:a", "o:1", "m:2"):
        assert names.execute_command("CACHE.SET", key, "v") == b"OK"
    assert metric(server, "cache_policy_warnings") == before + 2


def test_warnings_are_logged_at_a_bounded_rate(make_server):
    server = make_server()
    client = server.client()
    set_policy(client, b"odd\r\n%s", "PREFIX", "", "PATTERN", "{a}:{b}", "ENFORCE", "warn")

    def lines():
        return [line for line in server.log().splitlines() if "do not match the pattern" in line]

    for number in range(100):
        client.execute_command("CACHE.SET", f"key\n{number}", "v")
    eventually(lines)
    for number in range(100):
        client.execute_command("CACHE.SET", f"key\n{number}", "v")
        if number % 10 == 0:
            eventually(lambda: metric(server, "cache_policy_warnings") >= 100)
    (line,) = lines()
    assert r"the first: 'key\n0', of policy 'odd\r\n%s'" in line


def test_the_error_shows_no_raw_bytes_of_the_name(client, server, protocol):
    set_policy(client, b"a\r\nb\xff", "PREFIX", "s:", "PATTERN", "never", "ENFORCE", "reject")
    with RawClient(server, protocol) as raw:
        reply = raw.call("CACHE.SET", "s:1", "v")
        assert isinstance(reply, ErrorReply)
        assert reply == r"ERR key name does not match policy 'a\r\nb\xff'"
        assert raw.call("PING") == "PONG"


def test_braces_and_other_separators(client):
    for pattern, good, bad in (
        ("{{{id}}}:cart", "{7}:cart", "7:cart"),
        ("{tenant}/{id}", "acme/4:2", "acme/4/2"),
        ("flags", "flags", "flags:1"),
    ):
        set_policy(client, "p", "PREFIX", "", "PATTERN", pattern, "ENFORCE", "reject")
        assert client.execute_command("CACHE.SET", good, "v") == b"OK"
        assert "does not match" in error(client, "CACHE.SET", bad, "v")


# Rights


def test_policies_are_for_operators_and_looking_at_them_is_not(make_server):
    server = make_server()
    client = server.client()
    rights = (
        ["+@all", "-@dangerous"] if server.version >= (7, 2) else ["+@all", "-cache.policy|set", "-cache.policy|del"]
    )
    client.execute_command("ACL", "SETUSER", "app", "on", "nopass", "~*", *rights)
    set_policy(client, "p", "PREFIX", "a:")
    with RawClient(server) as raw:
        assert raw.call("AUTH", "app", "x") == "OK"
        for words in (("SET", "p", "EX", 5), ("DEL", "p")):
            assert raw.call("CACHE.POLICY", *words).startswith("NOPERM")
        assert raw.call("CACHE.POLICY", "LIST") == [b"p"]
        assert raw.call("CACHE.POLICY", "MATCH", "a:1") == b"p"
        assert raw.call("CACHE.POLICY", "GET", "p")[1] == b"a:"
    client.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", "~*", "-@all", "+cache.policy|match", "+auth")
    with RawClient(server) as raw:
        raw.call("AUTH", "narrow", "x")
        assert raw.call("CACHE.POLICY", "MATCH", "a:1") == b"p"
        assert raw.call("CACHE.POLICY", "LIST").startswith("NOPERM")


# The file of ready-made policies


def test_the_ready_made_policies_are_installed_by_redis_cli(server):
    client = server.client()
    for _ in range(2):
        with READY_MADE.open() as commands:
            argv = ["redis-cli", "-p", str(server.port)]
            run = subprocess.run(argv, stdin=commands, capture_output=True, text=True, timeout=20, check=True)
        assert run.stdout.split() == ["OK"] * 5
    minute, hour = 60_000, 3_600_000
    for prefix, least, most in (
        ("session:", 30 * minute, 30 * minute),
        ("product:", hour, 6 * hour),
        ("flag:", 5 * minute, 5 * minute),
        ("search:", 15 * minute, 30 * minute),
        ("dashboard:", 5 * minute, 15 * minute),
    ):
        ends = []
        for number in range(50):
            client.execute_command("CACHE.SET", f"{prefix}{number}", "v")
            ends.append(client.pttl(f"{prefix}{number}"))
        assert least - 5000 <= min(ends) <= max(ends) <= most, prefix
        assert most == least or max(ends) - min(ends) > (most - least) / 2, prefix
    said = policies(client)
    assert len(said) == 5
    assert [name for name, policy in said.items() if policy["sliding"]] == [b"sessions"]


def test_the_page_shows_the_file():
    assert f"```\n{READY_MADE.read_text()}```" in (REPOSITORY / "docs" / "policies.md").read_text()
