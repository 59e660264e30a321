"""CACHE.RULE and CACHE.EMIT: an event removes what its rule names, all of it or nothing."""

import json
import re

import pytest
from propagation import ReplicationStream
from raw_client import ErrorReply, RawClient, fields
from redis.exceptions import ResponseError
from servers import eventually
from tag_view import fill_tag, metric, picture, set_tagged
from test_acl import denied, user


def set_rule(client, event, keys=(), tags=()):
    options = [word for name, texts in (("KEYS", keys), ("TAGS", tags)) if texts for word in (name, len(texts), *texts)]
    assert client.execute_command("CACHE.RULE", "SET", event, *options) == b"OK"


def rules(client):
    events = client.execute_command("CACHE.RULE", "LIST")
    return {event: fields(client.execute_command("CACHE.RULE", "GET", event)) for event in events}


def emit(client, event, data):
    return client.execute_command("CACHE.EMIT", event, json.dumps(data))


def words(*items):
    return [item if isinstance(item, bytes) else str(item).encode() for item in items]


ORDER = {
    "user_id": 42,
    "order": {"customer": {"id": "c-7"}},
    "items": [{"id": 1}, {"id": 18446744073709551615}, {"id": -9223372036854775808}],
    "shop": "5",
}


def test_keys_and_tags_of_an_event_are_removed(client):
    set_rule(
        client,
        "order.paid",
        keys=["user:{user_id}:orders", "customer:{order.customer.id}", "product:{items[].id}:stock"],
        tags=["shop:{shop}"],
    )
    for key in (
        "user:42:orders",
        "customer:c-7",
        "product:1:stock",
        "product:18446744073709551615:stock",
        "product:-9223372036854775808:stock",
        "product:2:stock",
    ):
        client.set(key, "v")
    set_tagged(client, "listing", "shop:5")
    set_tagged(client, "user:42:orders", "shop:5")
    client.rpush("customer:c-7:list", 1)
    assert emit(client, "order.paid", ORDER) == 6
    assert sorted(client.keys()) == [b"customer:c-7:list", b"product:2:stock"]
    assert emit(client, "order.paid", ORDER) == 0


def test_rules_are_told_as_they_were_written(client, protocol):
    set_rule(client, b"e\x00\xff", keys=[b"\xff{a.b}", "{{{a[].b[]}}}"], tags=["t"])
    set_rule(client, "f", tags=["{t}"])
    reply = client.execute_command("CACHE.RULE", "GET", b"e\x00\xff")
    assert isinstance(reply, dict if protocol == 3 else list)
    assert rules(client) == {
        b"e\x00\xff": {b"keys": [b"\xff{a.b}", b"{{{a[].b[]}}}"], b"tags": [b"t"]},
        b"f": {b"keys": [], b"tags": [b"{t}"]},
    }
    assert client.execute_command("CACHE.RULE", "GET", "none") is None
    assert client.execute_command("CACHE.RULE", "DEL", "f") == 1
    assert client.execute_command("CACHE.RULE", "DEL", "f") == 0
    assert list(rules(client)) == [b"e\x00\xff"]


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({}, "user.id"),
        ({"user": {"id": 1.0}, "items": []}, "user.id"),
        ({"user": {"id": True}, "items": []}, "user.id"),
        ({"user": {"id": None}, "items": []}, "user.id"),
        ({"user": {"id": {}}, "items": []}, "user.id"),
        ({"user": 7, "items": []}, "user.id"),
        ({"user": {"id": 1}}, "items[].id"),
        ({"user": {"id": 1}, "items": {"id": 1}}, "items[].id"),
        ({"user": {"id": 1}, "items": [{"id": 1}, {"ID": 2}]}, "items[].id"),
        ({"user": {"id": 2**64}, "items": []}, "user.id"),
        ([], "user.id"),
        ("text", "user.id"),
    ],
    ids=lambda value: json.dumps(value),
)
def test_a_missing_field_is_named_and_nothing_is_done(client, server, data, path):
    set_rule(client, "e", keys=["sure", "user:{user.id}"], tags=["sure", "{items[].id}"])
    set_tagged(client, "sure", "sure")
    set_tagged(client, "1", "1")
    before = picture(server)
    with pytest.raises(ResponseError, match=re.escape(f"event 'e' needs field '{path}'")):
        emit(client, "e", data)
    assert picture(server) == before


def test_the_error_is_one_line_whatever_the_event_is_called(server):
    event = b"a\r\n+OK\x00%n\xff'"
    with RawClient(server) as raw:
        assert raw.call("CACHE.RULE", "SET", event, "KEYS", 1, "k:{a\n.b}") == "OK"
        assert raw.call("CACHE.EMIT", event, "{}") == r"ERR event 'a\r\n+OK\x00%n\xff\'' needs field 'a\n.b'"


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"a":1', b"{'a':1}", b"[1,]", b'"\xff"', b"{}{}", b"NaN", b"[" * 200 + b"]" * 200]
)
def test_what_is_no_json_is_refused_with_a_rule_or_without(client, data):
    set_rule(client, "e", keys=["k"])
    client.set("k", "v")
    for event in ("e", "without"):
        with pytest.raises(ResponseError, match="must be valid JSON"):
            client.execute_command("CACHE.EMIT", event, data)
    assert client.exists("k")


def test_an_event_without_a_rule_removes_nothing(make_server):
    server = make_server()
    client = server.client()
    assert emit(client, "unknown", {"any": "thing"}) == 0
    assert (metric(server, "cache_events"), metric(server, "cache_events_without_rule")) == (1, 1)


def test_large_data_is_read_to_its_end_and_too_large_data_not_at_all(client):
    set_rule(client, "e", keys=["k:{last}"])
    client.set("k:1", "v")
    data = {"rows": [{"id": i, "text": "x" * 50, "more": [1.5, None, {"y": "\u20ac"}]} for i in range(1000)], "last": 1}
    assert len(json.dumps(data)) > 100_000
    assert emit(client, "e", data) == 1
    client.set("k:1", "v")
    mebibyte = b'{"last":1}'.ljust(1024 * 1024)
    assert client.execute_command("CACHE.EMIT", "e", mebibyte) == 1
    with pytest.raises(ResponseError, match="at most 1048576 bytes"):
        client.execute_command("CACHE.EMIT", "e", mebibyte + b" ")


def test_how_much_an_event_may_name(make_server):
    server = make_server()
    client = server.client()
    set_rule(client, "e", keys=["{big}{ids[]}"], tags=["{ids[]}"])
    client.mset({f"x{i}": "v" for i in range(600)})
    for count, removed in ((500, 500), (501, None)):
        data = {"big": "x", "ids": list(range(count))}
        if removed is None:
            with pytest.raises(ResponseError, match="may name at most 1000 keys and tags"):
                emit(client, "e", data)
        else:
            assert emit(client, "e", data) == removed
    assert client.dbsize() == 100
    client.config_set("keyward.emit-max-keys", 2000)
    assert emit(client, "e", {"big": "x", "ids": list(range(1000))}) == 100
    with pytest.raises(ResponseError, match="of at most 16777216 bytes"):
        emit(client, "e", {"big": "x" * 100_000, "ids": list(range(500))})
    assert server.alive()


def test_arrays_that_combine_are_bounded_however_little_comes_of_it(client):
    set_rule(client, "e", keys=["{a[]}{b[]}{c[].d[]}"])
    data = {"a": [0] * 10_000, "b": [0] * 10_000, "c": [{"d": []}]}
    with pytest.raises(ResponseError, match="may name at most"):
        emit(client, "e", data)
    assert emit(client, "e", {"a": [1, 2], "b": ["x"], "c": [{"d": []}, {"d": [3]}]}) == 0


def test_a_tag_that_is_none_stops_the_event(client):
    set_rule(client, "e", keys=["k"], tags=["{t}"])
    client.set("k", "v")
    for tag in ("", "x" * 513):
        with pytest.raises(ResponseError, match="a tag must be 1 to 512 bytes"):
            emit(client, "e", {"t": tag})
    assert client.exists("k")
    assert emit(client, "e", {"t": "x" * 512}) == 1


def test_loads_that_began_before_the_event_are_not_stored(client):
    set_rule(client, "e", keys=["k"], tags=["t"])
    by_key, by_tag = (client.execute_command("CACHE.FETCH", key)[2] for key in ("k", "other"))
    assert emit(client, "e", {}) == 0
    assert client.execute_command("CACHE.FILL", "k", by_key, "old") == 0
    assert client.execute_command("CACHE.FILL", "other", by_tag, "old", "TAGS", 1, "t") == 0
    assert not client.exists("k", "other")


def test_a_giant_tag_is_gone_at_once(make_server):
    server = make_server(args=["invalidate-sync-keys", "100"])
    client = server.client()
    set_rule(client, "e", keys=["k:0"], tags=["t"])
    keys = fill_tag(client, "t", 2000)
    assert emit(client, "e", {}) == 2000
    assert client.execute_command("CACHE.MGET", *keys) == [None] * 2000
    eventually(lambda: client.dbsize() == 0)


def test_only_the_selected_database_is_touched_and_rules_are_for_all(server):
    client, other = server.client(), server.client(db=3)
    set_rule(client, "e", keys=["k"], tags=["t"])
    for each in (client, other):
        each.set("k", "v")
        set_tagged(each, "tagged", "t")
    assert emit(other, "e", {}) == 2
    assert (client.dbsize(), other.dbsize()) == (2, 0)


# Rights


def test_the_right_to_delete_each_key_and_each_tag_is_needed(make_server, protocol):
    server = make_server()
    client = server.client()
    set_rule(client, "e", keys=["allowed:{k}", "{other}"], tags=["{tag}"])
    set_tagged(client, "allowed:1", "allowed:t")
    client.set("denied:1", "v")
    with user(server, "+@all", "~allowed:*", protocol=protocol) as alice:
        for other, tag in (("denied:1", "allowed:t"), ("denied:none", "allowed:t"), ("allowed:2", "denied:t")):
            assert denied(alice.call("CACHE.EMIT", "e", json.dumps({"k": 1, "other": other, "tag": tag})))
        assert client.dbsize() == 2
        assert alice.call("CACHE.EMIT", "e", '{"k":1,"other":"allowed:2","tag":"allowed:t"}') == 1
        script = "return redis.call('CACHE.EMIT', 'e', ARGV[1])"
        reply = alice.call("EVAL", script, 0, '{"k":1,"other":"denied:1","tag":"allowed:t"}')
        assert isinstance(reply, ErrorReply)
        assert client.exists("denied:1")


def test_rules_are_for_operators(make_server):
    server = make_server()
    with user(server, "+@all", "-@dangerous", "~*") as alice:
        if server.version >= (7, 2):
            assert denied(alice.call("CACHE.RULE", "SET", "e", "KEYS", 1, "k"))
            assert denied(alice.call("CACHE.RULE", "DEL", "e"))
        assert alice.call("CACHE.RULE", "LIST") == []
    with user(server, "+cache.emit", "+cache.rule|get", "~*") as alice:
        assert denied(alice.call("CACHE.RULE", "SET", "e", "KEYS", 1, "k"))
        assert alice.call("CACHE.RULE", "GET", "e") is None
        assert alice.call("CACHE.EMIT", "e", "{}") == 0


# What stays of rules, and what is told of events


def test_effects_are_propagated_and_no_json(make_server):
    server = make_server()
    client = server.client()
    set_rule(client, "e", keys=["a", "b", "none"], tags=["t", "none"])
    client.mset({"a": "v", "b": "v"})
    set_tagged(client, "c", "t")
    with ReplicationStream(server) as stream:
        assert emit(client, "e", {"secret": "xyzzy"}) == 3
        begin, by_key, (*retire, moment, tag), by_tag, end = stream.read()
        assert (begin, end) == ([b"MULTI"], [b"EXEC"])
        assert (by_key, retire, tag, by_tag) == (
            words("UNLINK", "a", "b"),
            words("KEYWARD.APPLY", "RETIRE"),
            b"t",
            words("UNLINK", "c"),
        )
        assert int(moment) > 0
        emit(client, "e", {})
        emit(client, "unknown", {})
        with pytest.raises(ResponseError):
            client.execute_command("CACHE.EMIT", "e", "{")
        assert stream.read() == []


def test_a_rule_is_propagated_if_it_changes_anything(make_server):
    server = make_server(args=["rules-max", "1"])
    client = server.client()
    with ReplicationStream(server) as stream:
        set_rule(client, "e", keys=["k"])
        assert stream.read() == [words("CACHE.RULE", "SET", "e", "KEYS", 1, "k")]
        set_rule(client, "e", keys=["k"])
        with pytest.raises(ResponseError, match="too many rules"):
            set_rule(client, "f", keys=["k"])
        with pytest.raises(ResponseError, match="a template must be"):
            set_rule(client, "e", keys=["{"])
        client.execute_command("CACHE.RULE", "DEL", "none")
        assert stream.read() == []
        client.execute_command("CACHE.RULE", "DEL", "e")
        assert stream.read() == [words("CACHE.RULE", "DEL", "e")]
    assert metric(server, "cache_rules_full") == 1


def test_replicas_have_the_rules_of_their_primary_and_follow_its_events(make_server):
    primary, before, after = make_server(), make_server(), make_server(args=["rules-max", "0"])
    before.replicate_from(primary).wait_until_synced()
    client = primary.client()
    set_rule(client, "e", keys=["k:{id}"], tags=["t"])
    set_rule(client, b"\x00", tags=["t"])
    client.mset({"k:1": "v", "k:2": "v"})
    set_tagged(client, "tagged", "t")
    after.replicate_from(primary)
    after.wait_until_synced()
    assert emit(client, "e", {"id": 1}) == 2
    for replica in (before, after):
        replica.wait_until_synced()
        assert rules(replica.client()) == rules(client)
        assert picture(replica) == picture(primary)
        with RawClient(replica) as raw:
            assert raw.call("CACHE.EMIT", "e", '{"id":2}').startswith("READONLY")
    client.set("k:2", "v")
    before.wait_until_synced()
    before.promote()
    assert emit(before.client(), "e", {"id": 2}) == 1


def test_a_full_sync_brings_the_rules_of_the_primary_and_takes_those_that_were_there(make_server):
    primary, replica = make_server(), make_server()
    set_rule(primary.client(), "e", keys=["k"])
    set_rule(replica.client(), "stranger", keys=["k"])
    replica.replicate_from(primary)
    replica.wait_until_synced()
    assert rules(replica.client()) == rules(primary.client()) == {b"e": {b"keys": [b"k"], b"tags": []}}


@pytest.mark.parametrize("aof", [False, True], ids=["rdb", "aof"])
def test_rules_survive_a_restart_and_flushall(make_server, aof):
    server = make_server(config=["appendonly yes"] if aof else [])
    client = server.client()
    set_rule(client, "e", keys=["k:{id}"], tags=["t"])
    set_rule(client, "gone", keys=["k"])
    client.execute_command("CACHE.RULE", "DEL", "gone")
    client.flushall()
    expected = {b"e": {b"keys": [b"k:{id}"], b"tags": [b"t"]}}
    assert rules(client) == expected
    if aof:
        client.bgrewriteaof()
        eventually(lambda: client.info("persistence")["aof_rewrite_in_progress"] == 0)
        set_rule(client, "late", tags=["u"])
        expected[b"late"] = {b"keys": [], b"tags": [b"u"]}
    else:
        client.save()
    server.restart()
    client = server.client()
    assert rules(client) == expected
    client.set("k:7", "v")
    assert emit(client, "e", {"id": 7}) == 1


def test_in_a_transaction_and_in_a_script(client):
    set_rule(client, "e", keys=["k:{id}"])
    client.mset({"k:1": "v", "k:2": "v"})
    pipeline = client.pipeline()
    pipeline.execute_command("CACHE.EMIT", "e", '{"id":1}')
    pipeline.exists("k:1")
    assert pipeline.execute() == [1, 0]
    assert client.eval("return redis.call('CACHE.EMIT', 'e', '{\"id\":2}')", 0) == 1


def test_each_shard_removes_the_keys_it_has(make_server):
    """Two nodes, each with half of the slots: what both answer adds up."""
    nodes = [make_server(config=["cluster-enabled yes"]) for _ in range(2)]
    for node, slots in zip(nodes, ((0, 8191), (8192, 16383)), strict=True):
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", *slots)
    nodes[1].client().execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    clients = [node.client() for node in nodes]
    for client in clients:
        eventually(lambda client=client: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), timeout=60)
        set_rule(client, "e", keys=["k:{ids[]}"], tags=["t"])
    placed = [0, 0]
    for number in range(20):
        for index, node in enumerate(nodes):
            with RawClient(node) as raw:
                if raw.call("SET", f"k:{number}", "v") == "OK":
                    placed[index] += 1
                raw.call("CACHE.SET", f"tagged:{number}", "v", "TAGS", 1, "t")
    assert sum(placed) == 20
    assert all(placed)
    removed = [emit(client, "e", {"ids": list(range(20))}) for client in clients]
    assert sum(removed) == 40
    assert [client.dbsize() for client in clients] == [0, 0]
