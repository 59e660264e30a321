"""Who may do what: tags are checked as if they were keys, and what is denied does nothing."""

import pytest
import redis
from raw_client import ErrorReply, RawClient
from tag_view import fill_tag, set_tagged, tag_info, tag_keys


@pytest.fixture
def server_with_tags(make_server):
    """a and b carry allowed:t, b carries denied:t too, and all begin with key:."""
    server = make_server()
    client = server.client()
    set_tagged(client, "key:a", "allowed:t")
    set_tagged(client, "key:b", "allowed:t", "denied:t")
    return server


def user(server, *rules, protocol=2):
    """A connection of a user with these rules."""
    server.client().execute_command("ACL", "SETUSER", "alice", "reset", "on", ">secret", *rules)
    raw = RawClient(server, protocol)
    assert raw.call("AUTH", "alice", "secret") == "OK"
    return raw


def denied(reply):
    return isinstance(reply, ErrorReply) and reply.startswith("NOPERM")


def test_invalidatetag_needs_the_right_to_delete_the_tag(server_with_tags, protocol):
    client = server_with_tags.client()
    with user(server_with_tags, "+@all", "~allowed:*", protocol=protocol) as alice:
        assert denied(alice.call("CACHE.INVALIDATETAG", "denied:t"))
        assert denied(alice.call("CACHE.INVALIDATETAG", "allowed:t", "denied:t"))
        assert denied(alice.call("CACHE.INVALIDATETAG", "unknown"))
        assert client.execute_command("CACHE.MGET", "key:a", "key:b") == [b"v", b"v"], "nothing was to be done"
        assert tag_info(client, "allowed:t")["invalidations"] == 0
        assert alice.call("CACHE.INVALIDATETAG", "allowed:t") == 2, "the tag is checked, not its keys"
    assert client.dbsize() == 0


def test_reading_a_tag_needs_the_right_to_read_it(server_with_tags, protocol):
    with user(server_with_tags, "+@all", "%R~allowed:*", "%W~denied:*", protocol=protocol) as alice:
        assert alice.call("CACHE.TAGKEYS", "allowed:t")[0] == b"0"
        assert not denied(alice.call("CACHE.TAGINFO", "allowed:t"))
        for command in ("CACHE.TAGKEYS", "CACHE.TAGINFO"):
            assert denied(alice.call(command, "denied:t"))
        assert denied(alice.call("CACHE.INVALIDATETAG", "allowed:t")), "to read is not to delete"
        assert alice.call("CACHE.INVALIDATETAG", "denied:t") == 1
    assert tag_keys(server_with_tags.client(), "allowed:t") == {b"key:a"}


def test_a_refusal_is_the_same_for_tags_that_are_there_and_that_are_not(server_with_tags):
    with user(server_with_tags, "+@all", "~allowed:*") as alice:
        for command in ("CACHE.INVALIDATETAG", "CACHE.TAGKEYS", "CACHE.TAGINFO"):
            assert alice.call(command, "denied:t") == alice.call(command, "denied:unknown")


def test_scripts_and_transactions_are_checked_too(server_with_tags):
    with user(server_with_tags, "+@all", "~allowed:*") as alice:
        reply = alice.call("EVAL", "return redis.call('CACHE.INVALIDATETAG', 'denied:t')", 0)
        assert isinstance(reply, ErrorReply)
        assert "NOPERM" in reply or "No permission" in reply or "permission" in reply.lower()
        *_, replies = alice.pipeline([("MULTI",), ("CACHE.INVALIDATETAG", "denied:t"), ("EXEC",)])
        assert denied(replies[0])
        assert alice.call("EVAL", "return redis.call('CACHE.INVALIDATETAG', 'allowed:t')", 0) == 2
    assert server_with_tags.client().dbsize() == 0


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        (("CACHE.GET", "key:a"), "R"),
        (("CACHE.MGET", "key:a", "key:b"), "R"),
        (("CACHE.SET", "key:a", "v"), "W"),
        (("CACHE.SETTAGGED", "key:a", "v", "EX", "5", "TAGS", "1", "t"), "W"),
        (("CACHE.SETJITTER", "key:a", "v", "EX", "5", "JITTER", "1"), "W"),
        (("CACHE.MSET", "2", "key:a", "v", "key:b", "v"), "W"),
        (("CACHE.INVALIDATE", "key:a", "key:b"), "W"),
        (("CACHE.FLOOR", "key:a", "5"), "W"),
        (("CACHE.TAG", "key:a", "new"), "RW"),
        (("CACHE.UNTAG", "key:a", "allowed:t"), "RW"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_keys_are_checked_by_the_server(server_with_tags, words, needs):
    other = "W" if needs == "R" else "R"  # what does not do
    with user(server_with_tags, "+@all", f"%{other}~*", f"%{needs}~elsewhere:*") as alice:
        assert denied(alice.call(*words))
    with user(server_with_tags, "+@all", f"%{needs}~key:*") as alice:
        reply = alice.call(*words)
        assert not isinstance(reply, ErrorReply), reply


def test_every_key_of_a_list_is_checked(server_with_tags):
    with user(server_with_tags, "+@all", "~key:a") as alice:
        assert denied(alice.call("CACHE.MGET", "key:a", "key:b"))
        assert denied(alice.call("CACHE.INVALIDATE", "key:a", "key:b"))
        assert denied(alice.call("CACHE.MSET", 2, "key:a", "w", "key:b", "w"))
    assert server_with_tags.client().execute_command("CACHE.MGET", "key:a", "key:b") == [b"v", b"v"]


def test_commands_can_be_taken_from_a_user(server_with_tags):
    with user(server_with_tags, "+@all", "-cache.invalidatetag", "~*") as alice:
        assert denied(alice.call("CACHE.INVALIDATETAG", "allowed:t"))
        assert alice.call("CACHE.GET", "key:a") == b"v"


CACHE_READS = {"cache.get", "cache.mget", "cache.ttl", "cache.tags", "cache.tagkeys", "cache.taginfo"}
CACHE_WRITES = {
    "cache.set",
    "cache.settagged",
    "cache.setjitter",
    "cache.mset",
    "cache.tag",
    "cache.untag",
    "cache.floor",
    "cache.invalidate",
    "cache.invalidatetag",
}


def test_categories(make_server):
    server = make_server()
    client = server.client(decode=True)
    if server.version < (7, 2):
        pytest.skip("Redis 7.0 has no categories of modules")
    assert "cache" in client.execute_command("ACL", "CAT")
    assert set(client.execute_command("ACL", "CAT", "cache")) >= CACHE_READS | CACHE_WRITES
    assert "keyward.apply" in set(client.execute_command("ACL", "CAT", "admin"))
    assert "keyward.apply" in set(client.execute_command("ACL", "CAT", "dangerous"))
    assert set(client.execute_command("ACL", "CAT", "read")) >= CACHE_READS
    assert set(client.execute_command("ACL", "CAT", "write")) >= CACHE_WRITES
    assert not set(client.execute_command("ACL", "CAT", "write")) & CACHE_READS
    with user(server, "+@cache", "+auth", "~*") as alice:
        assert alice.call("CACHE.SET", "k", "v") == "OK"
        assert denied(alice.call("GET", "k"))


LOCK_WRITES = {f"lock.{name}" for name in ("acquire", "macquire", "release", "mrelease", "extend", "exec", "force")}
LOCK_READS = {"lock.validate", "lock.info"}


def test_categories_of_locks(make_server):
    server = make_server()
    client = server.client(decode=True)
    if server.version < (7, 2):
        pytest.skip("Redis 7.0 has no categories of modules")

    def members(category):
        return set(client.execute_command("ACL", "CAT", category))

    assert members("lock") >= LOCK_WRITES | LOCK_READS
    assert members("write") >= LOCK_WRITES
    assert members("read") >= LOCK_READS
    assert members("blocking") >= {"lock.acquire", "lock.macquire"}
    for category in ("admin", "dangerous"):
        assert members(category) & (LOCK_WRITES | LOCK_READS) == {"lock.force"}
    with user(server, "+@lock", "-@dangerous", "+auth", "~*") as alice:
        assert alice.call("LOCK.ACQUIRE", "lock", "ann", "PX", 60_000)
        assert denied(alice.call("LOCK.FORCE", "lock"))
        assert alice.call("LOCK.RELEASE", "lock", "ann") == 1


def test_apply_is_not_for_plain_users(server_with_tags):
    client = server_with_tags.client()
    # Redis 7.0 has no categories for the commands of modules: there it must be taken away by name.
    rights = ["+@all", "-@admin"] if server_with_tags.version >= (7, 2) else ["+@all", "-keyward.apply"]
    with user(server_with_tags, *rights, "~*") as alice:
        assert alice.call("CACHE.GET", "key:a") == b"v", "the others are for everybody"
        assert denied(alice.call("KEYWARD.APPLY", "RETIRE", 1, "allowed:t"))
    assert client.execute_command("CACHE.GET", "key:a") == b"v"


def test_apply_checks_what_it_is_given(server_with_tags):
    client = server_with_tags.client()
    for words in (
        ("RETIRE",),
        ("RETIRE", 5),
        ("RETIRE", "x", "allowed:t"),
        ("RETIRE", 5, ""),
        ("FLOOR", "k"),
        ("FLOOR", "k", -1, 5),
        ("FLOOR", "k", 1, "x"),
        ("UNKNOWN", "k"),
        (b"\xff\x00",),
    ):
        with pytest.raises(redis.ResponseError):
            client.execute_command("KEYWARD.APPLY", *words)
    assert client.execute_command("CACHE.MGET", "key:a", "key:b") == [b"v", b"v"]


def test_replication_and_loading_have_no_user(make_server):
    """The default user of a replica may be locked out; what comes from the primary is done all the same."""
    primary, replica = make_server(), make_server()
    replica.replicate_from(primary).wait_until_synced()
    replica_client = replica.client()
    replica_client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~nothing")
    fill_tag(primary.client(), "t", 10)
    assert primary.client().execute_command("CACHE.INVALIDATETAG", "t") == 10
    set_tagged(primary.client(), "k", "t")
    replica.wait_until_synced()
    assert replica_client.execute_command("DBSIZE") == 1
