"""redis.conf.example is run, not only read: as it is, and with every line that is commented out."""

import re

import pytest
import redis
from servers import REPOSITORY, eventually, module_path

EXAMPLE = REPOSITORY / "redis.conf.example"


def lines():
    return EXAMPLE.read_text().splitlines()


def commented_settings():
    """ "#name value" is a setting, "# text" is text: the file says so itself."""
    return [line[1:] for line in lines() if re.match(r"#[a-z]", line)]


def user(client_of, name):
    return client_of.client(decode=True, username=name, password=f"change-this-{name}-password")


@pytest.fixture
def write_config(tmp_path):
    """Writes the file with every line in force. A few need values of this machine: `replaced`
    gives them by setting name, None drops the line."""

    def write(name, replaced):
        text = []
        for line in lines():
            setting = line[1:] if re.match(r"#[a-z]", line) else line
            word = setting.partition(" ")[0]
            if word in replaced:
                setting = f"{word} {replaced[word]}" if replaced[word] is not None else ""
            text.append(setting)
        path = tmp_path / name
        path.write_text("\n".join(text) + "\n")
        return path

    return write


def test_as_it_is_with_the_command_line_of_make_run(make_server):
    server = make_server(config_file=EXAMPLE, command_line=["--loadmodule", str(module_path())])
    client = server.client(decode=True)
    assert client.execute_command("CACHE.SETTAGGED", "k", "v", "EX", 60, "TAGS", 1, "t") == "OK"
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
    assert client.config_get("aof-use-rdb-preamble") == {"aof-use-rdb-preamble": "yes"}


def test_every_line_in_force_on_a_primary_and_its_replica(make_server, write_config):
    here = {"loadmodule": str(module_path()), "dir": "."}
    primary = make_server(config_file=write_config("primary.conf", here | {"replicaof": None}))
    replica = make_server(config_file=write_config("replica.conf", here | {"replicaof": f"127.0.0.1 {primary.port}"}))
    replica.primary = primary

    app, at_replica = user(primary, "app"), user(replica, "app")
    # min-replicas-to-write 1: nothing is written before the replica has come.
    operator = user(primary, "operator")
    eventually(lambda: operator.info("replication").get("min_slaves_good_slaves") == 1, timeout=30)
    settagged = ("CACHE.SETTAGGED", "cache:1", "v", "EX", 60, "TAGS", 1, "tag:1")
    assert app.execute_command(*settagged) == "OK"
    eventually(lambda: at_replica.execute_command("CACHE.GET", "cache:1") == "v")
    assert app.execute_command("CACHE.INVALIDATETAG", "tag:1") == 1
    eventually(lambda: at_replica.execute_command("CACHE.GET", "cache:1") is None)

    # The users are as narrow as the text says.
    for denied in (
        ("CACHE.INVALIDATETAG", "other"),
        ("LOCK.FORCE", "lock:1"),
        ("CONFIG", "GET", "*"),
        ("GET", "elsewhere"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            app.execute_command(*denied)
    assert operator.config_get("appendonly") == {"appendonly": "yes"}
    with pytest.raises(redis.AuthenticationError):
        primary.client().ping()


def test_every_setting_of_the_module_is_there_at_its_default(server):
    in_file = dict(line.split() for line in commented_settings() if line.startswith("keyward."))
    assert in_file == server.client(decode=True).config_get("keyward.*")


def test_the_app_user_may_use_every_command_that_is_not_for_operators(server):
    (line,) = (line for line in commented_settings() if line.startswith("user app "))
    families = ("cache.", "lock.", "ratelimit.", "cl.", "writebehind.")
    granted = {word[1:] for word in line.split() if word[1:].startswith(families)}
    commands = server.client(decode=True).command_list(module="keyward")
    operators = {"lock.force", "cache.doctor"} | {
        f"cache.{word}"
        for word in (
            *("policy", "policy|set", "policy|del", "rule", "rule|set", "rule|del"),
            *("cluster", "cluster|invalidatetag", "cluster|staletag", "cluster|emit"),
        )
    }
    ordinary = {name for name in commands if name.startswith(families)} - operators
    assert granted == ordinary


def test_every_eviction_policy_is_explained():
    text = EXAMPLE.read_text()
    for policy in ("lru", "lfu", "random"):
        assert f"# allkeys-{policy} " in text
        assert f"# volatile-{policy} " in text
    assert "# volatile-ttl " in text
    assert "# noeviction " in text
