"""An effect is put together only when somebody may receive it (DESIGN, rule 13 of section 4). Whoever comes later must lack nothing:
each test writes while nobody listens, lets somebody come in one of the possible ways, writes on, and compares.
"""

import pytest
from servers import eventually, module_path

PARTS = ("before", "meanwhile", "after")


def write(client, part):
    """One of each kind of write, with times that a second reader could only guess."""
    client.execute_command("CACHE.SETTAGGED", f"page:{part}", part, "EX", 300, "JITTER", 100, "TAGS", 2, "all", part)
    client.execute_command("CACHE.SET", f"row:{part}", part, "VERSION", 7)
    client.execute_command("LOCK.ACQUIRE", f"lock:{part}", "ann", "EX", 300)
    for _ in range(3):
        client.execute_command("RATELIMIT.CHECK", f"limit:{part}", 10, "EX", 300)
    for name in ("a", "b"):
        client.execute_command("RATELIMIT.ENTER", f"slots:{part}", name, "LIMIT", 10, "EX", 300)
    client.execute_command("RATELIMIT.LEAVE", f"slots:{part}", "a")
    client.execute_command("CACHE.SETTAGGED", f"gone:{part}", part, "EX", 300, "TAGS", 1, f"gone:{part}")
    client.execute_command("CACHE.INVALIDATETAG", f"gone:{part}")


def seen(client):
    """What the writes left behind, with absolute times."""
    keys = sorted(client.keys("*"))
    return {
        "keys": keys,
        "expiries": [client.pexpiretime(key) for key in keys],
        "tagged": sorted(client.execute_command("CACHE.TAGKEYS", "all", "COUNT", 100)[1]),
        "tags": [sorted(client.execute_command("CACHE.TAGS", f"page:{part}")) for part in PARTS],
        "tokens": [client.execute_command("LOCK.INFO", f"lock:{part}")[5] for part in PARTS],
        "left": [client.execute_command("RATELIMIT.PEEK", f"limit:{part}", 10, "EX", 300)[2] for part in PARTS],
        "dumps": [client.dump(key) for key in keys],
    }


def assert_whole(state):
    assert len(state["keys"]) == 5 * len(PARTS)
    assert len(state["tagged"]) == len(PARTS)
    assert state["left"] == [7] * len(PARTS)


def test_a_write_that_nobody_hears_counts_for_the_save_points(make_server):
    client = make_server().client()
    before = client.info("persistence")["rdb_changes_since_last_save"]
    write(client, "before")
    assert client.info("persistence")["rdb_changes_since_last_save"] >= before + 8


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_a_replica_that_comes_later_lacks_nothing(make_server, diskless):
    primary = make_server(config=[f"repl-diskless-sync {diskless}", "repl-diskless-sync-delay 1"])
    client = primary.client()
    write(client, "before")
    replica = make_server()
    replica.replicate_from(primary)
    # With the delay, this falls between the replica's coming and the snapshot for it.
    eventually(lambda: primary.client().info("replication")["connected_slaves"])
    write(client, "meanwhile")
    replica.wait_until_synced()
    write(client, "after")
    replica.wait_until_synced()
    assert_whole(seen(client))
    assert seen(replica.client()) == seen(client)


def test_an_aof_that_is_switched_on_later_lacks_nothing(make_server):
    server = make_server()
    client = server.client()
    write(client, "before")
    client.config_set("appendonly", "yes")
    write(client, "meanwhile")
    eventually(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
    write(client, "after")
    expected = seen(client)
    assert_whole(expected)
    server.config.append("appendonly yes")
    server.kill9()
    server.start()
    assert seen(server.client()) == expected


def test_a_snapshot_and_then_a_replica(make_server):
    """The fork for a BGSAVE may serve a replica that comes while it runs."""
    primary = make_server(config=["repl-diskless-sync no"])
    client = primary.client()
    write(client, "before")
    client.bgsave()
    write(client, "meanwhile")
    replica = make_server()
    replica.replicate_from(primary)
    replica.wait_until_synced()
    write(client, "after")
    replica.wait_until_synced()
    assert seen(replica.client()) == seen(client)


def test_a_module_that_is_loaded_into_a_primary_with_a_replica(make_server):
    primary, replica = make_server(module=False), make_server(module=False)
    replica.replicate_from(primary)
    replica.wait_until_synced()
    for server in (replica, primary):
        server.client().execute_command("MODULE", "LOAD", str(module_path()))
    client = primary.client()
    for part in PARTS:
        write(client, part)
    replica.wait_until_synced()
    assert_whole(seen(client))
    assert seen(replica.client()) == seen(client)


def test_a_replica_after_a_restart_from_a_file(make_server):
    """A file may bring the backlog of earlier replicas back, so that one resumes without a snapshot."""
    primary = make_server(config=["save 3600 1"])
    replica = make_server()
    replica.replicate_from(primary)
    write(primary.client(), "before")
    replica.wait_until_synced()
    primary.restart()
    client = primary.client()
    write(client, "meanwhile")
    replica.wait_until_synced()
    write(client, "after")
    replica.wait_until_synced()
    assert_whole(seen(client))
    assert seen(replica.client()) == seen(client)
