"""How the module is loaded, and what it says then."""

import re

import pytest
import redis
from servers import ServerFailed, default_flavour, module_path, server_version


def said(server, level):
    """What the module logged at a level ("*" notice, "#" warning). Before it has a name the server
    calls it <module>."""
    return re.findall(rf" {re.escape(level)} <(?:keyward|module)> (.*)", server.log())


def assert_loaded(server):
    client = server.client(decode=True)
    client.set("k", "v")
    assert client.execute_command("CACHE.GET", "k") == "v"
    (line,) = said(server, "*")
    assert re.search(r"\d+\.\d+\.\d+", line), "the line names the version"
    # Valkey 8.1 has a bug that modules wake up, and its users are told.
    expected = 1 if server.flavour == "valkey-8.1" else 0
    assert len(said(server, "#")) == expected


def test_loadmodule_in_redis_conf(make_server):
    assert_loaded(make_server())


def test_loadmodule_on_the_command_line(make_server):
    assert_loaded(make_server(module=False, command_line=["--loadmodule", str(module_path())]))


def test_module_load(make_server):
    server = make_server(module=False)
    assert server.client().execute_command("MODULE", "LOAD", str(module_path())) == b"OK"
    assert_loaded(server)


def test_module_loadex_takes_settings(make_server):
    server = make_server(module=False)
    client = server.client(decode=True)
    client.execute_command("MODULE", "LOADEX", str(module_path()), "CONFIG", "keyward.tag-history-max", "7")
    assert client.config_get("keyward.tag-history-max") == {"keyward.tag-history-max": "7"}
    assert_loaded(server)


def test_loadmodule_arguments_are_settings(make_server):
    server = make_server(args=["version-floor-ms", "5", "save-metadata", "no"])
    settings = server.client(decode=True).config_get("keyward.*")
    assert settings["keyward.version-floor-ms"] == "5"
    assert settings["keyward.save-metadata"] == "no"
    assert_loaded(server)


def test_settings_in_redis_conf_and_at_run_time(make_server):
    server = make_server(config=["keyward.invalidate-sync-keys 17"])
    client = server.client(decode=True)
    assert client.config_get("keyward.invalidate-sync-keys") == {"keyward.invalidate-sync-keys": "17"}
    client.config_set("keyward.invalidate-sync-keys", 18)
    assert client.config_get("keyward.invalidate-sync-keys") == {"keyward.invalidate-sync-keys": "18"}
    with pytest.raises(redis.ResponseError):
        client.config_set("keyward.invalidate-sync-keys", 0)
    with pytest.raises(redis.ResponseError):
        client.config_set("keyward.save-metadata", "no")
    assert client.config_get("keyward.invalidate-sync-keys") == {"keyward.invalidate-sync-keys": "18"}


BAD_SETTINGS = {
    "unknown name": ("no-such-setting", "1"),
    "not a number": ("version-floor-ms", "soon"),
    "out of range": ("version-floor-ms", "-1"),
    "not yes or no": ("save-metadata", "maybe"),
    "not one of the words": ("cl-throttle", "maybe"),
}


@pytest.mark.parametrize("setting", BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_a_bad_loadmodule_argument_stops_the_server_and_is_named(make_server, setting):
    with pytest.raises(ServerFailed, match=rf"<(keyward|module)> .*{setting[0]}"):
        make_server(args=setting)


def test_a_setting_without_a_value_stops_the_server_and_is_named(make_server):
    with pytest.raises(ServerFailed, match=r"<(keyward|module)> .*version-floor-ms"):
        make_server(args=["version-floor-ms"])


@pytest.mark.parametrize("setting", BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_a_bad_setting_in_redis_conf_stops_the_server_and_is_named(make_server, setting):
    name, value = setting
    with pytest.raises(ServerFailed) as failure:
        make_server(config=[f"keyward.{name} {value}"])
    # An unknown one is the server's own finding; 7.0 does not name it.
    nameless = "Module Configuration detected without loadmodule directive or no ApplyConfig call"
    assert f"keyward.{name}" in str(failure.value) or (
        server_version(default_flavour()) < (7, 2) and nameless in str(failure.value)
    )


def test_a_failed_module_load_leaves_the_server_as_it_was(make_server):
    server = make_server(module=False)
    client = server.client()
    with pytest.raises(redis.ResponseError):
        client.execute_command("MODULE", "LOAD", str(module_path()), "no-such-setting", "1")
    # Some servers have modules built in.
    assert b"keyward" not in [module[1] for module in client.execute_command("MODULE", "LIST")]
    assert client.config_get("keyward.*") == {}
    assert client.execute_command("MODULE", "LOAD", str(module_path())) == b"OK"
    assert client.ping()


def test_redis_6_2_is_refused_with_a_reason(make_server):
    server = make_server(flavour="redis-6.2", module=False)
    with pytest.raises(redis.ResponseError):
        server.client().execute_command("MODULE", "LOAD", str(module_path()))
    (reason,) = said(server, "#")
    assert "7.0" in reason
    assert server.client().ping()
