"""docs/installing.md: where `loadmodule` may stand, and what a file of the module must be like."""

import re
import shutil
import subprocess

import pytest
from servers import REPOSITORY, ServerFailed, module_path

PAGE = (REPOSITORY / "docs" / "installing.md").read_text()
SETTING = {"keyward.jobs-max": "77"}


@pytest.fixture
def write(tmp_path):
    def write(name, *lines):
        file = tmp_path / name
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


def test_loadmodule_in_redis_conf_and_settings_in_an_included_file_survive_a_rewrite(make_server, write):
    """As the page says it, with the paths of here."""
    load, include = re.search(r"^(loadmodule \S+)\n(include \S+)\n", PAGE, re.MULTILINE).groups()
    settings = write("keyward.conf", "keyward.jobs-max 77", "keyward.rules-max 7")
    file = write(
        "redis.conf",
        "bind 127.0.0.1",
        load.replace("/usr/lib/redis/modules/libkeyward.so", str(module_path())),
        include.replace("/etc/redis/keyward.conf", str(settings)),
    )
    server = make_server(config_file=file)
    client = server.client(decode=True)
    assert client.config_get("keyward.jobs-max") == SETTING
    client.config_set("keyward.rules-max", 8)
    client.config_rewrite()
    assert len(re.findall(r"^loadmodule ", file.read_text(), re.MULTILINE)) == 1
    server.restart()
    client = server.client(decode=True)
    assert client.config_get("keyward.jobs-max") == SETTING
    assert client.config_get("keyward.rules-max") == {"keyward.rules-max": "8"}


@pytest.mark.parametrize("where", ["included file", "command line"])
def test_loadmodule_elsewhere_does_not_survive_a_rewrite(make_server, write, where):
    included = write("module.conf", f"loadmodule {module_path()}")
    if where == "included file":
        file, command_line = write("redis.conf", "bind 127.0.0.1", f"include {included}"), []
    else:
        file, command_line = write("redis.conf", "bind 127.0.0.1"), ["--loadmodule", str(module_path())]
    server = make_server(config_file=file, command_line=command_line)
    server.client().config_rewrite()
    with pytest.raises(ServerFailed, match="Can't load module"):
        server.restart()


def test_settings_on_the_command_line_as_in_the_example_for_docker(make_server):
    example = re.search(r"^docker run --rm keyward (--loadmodule .*)$", PAGE, re.MULTILINE)[1].split()
    words = [str(module_path()) if word.endswith(".so") else word for word in example]
    server = make_server(module=False, command_line=words)
    assert server.client(decode=True).config_get("keyward.jobs-max") == {"keyward.jobs-max": "1000"}


def test_a_file_that_is_not_executable_is_refused(make_server, tmp_path):
    module = shutil.copy(module_path(), tmp_path / "libkeyward.so")
    module.chmod(0o644)
    with pytest.raises(ServerFailed, match="It does not have execute permissions"):
        make_server(module=False, command_line=["--loadmodule", str(module)])


def test_a_running_server_outlives_install_onto_its_module(make_server, tmp_path):
    module = shutil.copy(module_path(), tmp_path / "libkeyward.so")
    server = make_server(module=False, command_line=["--loadmodule", str(module)])
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(module.stat().st_size))
    subprocess.run(["install", "-m", "755", empty, module], check=True)
    client = server.client()
    assert client.execute_command("CACHE.SETTAGGED", "k", "v", "EX", 60, "TAGS", 1, "t") == b"OK"
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == 1


def test_module_load_is_off_unless_it_is_allowed(make_server):
    server = make_server(config_file=REPOSITORY / "redis.conf.example")
    with pytest.raises(Exception, match="(?i)module command not allowed|enable-module-command"):
        server.client().execute_command("MODULE", "LOAD", str(module_path()))
