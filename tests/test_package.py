"""The Debian package: built, read by lintian, unpacked, and used as its README.Debian says."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import redis
from servers import REPOSITORY, default_flavour, module_path

pytestmark = pytest.mark.skipif(default_flavour() != "redis-7.0", reason="the package is the same for every server")

PACKAGING = REPOSITORY / "packaging"
README = (PACKAGING / "debian" / "README.Debian").read_text()
UNIT = Path("/lib/systemd/system/redis-server.service")


def output_of(*command: object) -> str:
    done = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deb")
    output_of(PACKAGING / "build-deb.sh", module_path(), folder)
    (package,) = folder.glob("*.deb")
    return package


@pytest.fixture(scope="module")
def root(package, tmp_path_factory):
    """The package, unpacked beside the system rather than into it."""
    root = tmp_path_factory.mktemp("root")
    output_of("dpkg-deb", "-x", package, root)
    return root


@pytest.fixture
def redis_conf(root, tmp_path):
    """A redis.conf after the step of README.Debian, with the paths of the unpacked package."""
    step = re.search(r"printf '%s\\n' (.*?) \| sudo tee -a /etc/redis/redis\.conf", README, re.DOTALL)
    added = re.findall(r"'([^']+)'", step[1])
    assert len(added) == 2
    file = tmp_path / "redis.conf"
    lines = ["bind 127.0.0.1", 'save ""', *(line.replace(" /", f" {root}/", 1) for line in added)]
    file.write_text("\n".join(lines) + "\n")
    return file


def field(package, name):
    return output_of("dpkg-deb", "-f", package, name).strip()


def test_lintian_has_no_complaint(package):
    output_of("lintian", "--allow-root", "--fail-on", "error,warning", package)


def test_the_version_is_that_of_the_module(package):
    version = re.search(r'^version = "(.+)"$', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert field(package, "Version") == version


def test_it_runs_nothing_when_it_is_installed_and_needs_no_more_than_the_module_does(package, tmp_path):
    output_of("dpkg-deb", "-e", package, tmp_path / "control")
    assert {file.name for file in (tmp_path / "control").iterdir()} == {"control", "conffiles", "md5sums"}
    assert (tmp_path / "control" / "conffiles").read_text().split() == ["/etc/redis/keyward.conf"]
    names = {needed.split()[0] for needed in field(package, "Depends").split(", ")}
    assert names <= {"libc6", "libgcc-s1"}
    assert "redis-server" in field(package, "Recommends")


def test_what_is_in_it(root):
    files = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
    documents = {file for file in files if file.startswith("usr/share/doc/keyward/")}
    assert files - documents == {"usr/lib/redis/modules/libkeyward.so", "etc/redis/keyward.conf"}
    wanted = "README.Debian copyright changelog.gz CHANGELOG.md README.md docs/README.md third-party.txt.gz"
    assert {f"usr/share/doc/keyward/{name}" for name in wanted.split()} <= documents


def test_the_notices_name_what_is_linked_in(root):
    text = output_of("zcat", root / "usr/share/doc/keyward/third-party.txt.gz")
    for name in ("redis-module 2.0.8: BSD-3-Clause", "hashbrown 0.17", "serde_json 1"):
        assert f"\n  {name}" in text
    assert "bindgen" not in text, "it only runs during the build"
    assert "Redistribution and use in source and binary forms" in text


def test_a_server_with_the_step_of_the_readme_answers(make_server, redis_conf):
    server = make_server(config_file=redis_conf)
    client = server.client(decode=True)
    assert client.execute_command("CACHE.SETTAGGED", "k", "v", "EX", 60, "TAGS", 1, "t") == "OK"
    assert client.execute_command("CACHE.INVALIDATETAG", "t") == 1
    for command in re.findall(r"redis-cli (.+)", README):
        assert "keyward" in str(client.execute_command(*command.split()))


def test_the_settings_are_all_those_of_the_module_at_their_defaults(make_server, root, redis_conf):
    """And each line can be put in force."""
    file = root / "etc/redis/keyward.conf"
    settings = dict(re.findall(r"^#(keyward\.\S+) (.+)$", file.read_text(), re.MULTILINE))
    in_force = redis_conf.with_name("keyward.conf")
    in_force.write_text(re.sub(r"^#(keyward\.)", r"\1", file.read_text(), flags=re.MULTILINE))
    redis_conf.write_text(redis_conf.read_text().replace(str(file), str(in_force)))
    client = make_server(config_file=redis_conf).client(decode=True)
    assert client.config_get("keyward.*") == settings


def test_a_running_server_outlives_the_replacement_of_its_module(make_server, package, tmp_path):
    """dpkg puts a new file in the place of the old one, and does not write into it."""
    root = tmp_path / "system"
    root.mkdir()
    output_of("dpkg-deb", "-x", package, root)
    module = root / "usr/lib/redis/modules/libkeyward.so"
    server = make_server(module=False, command_line=["--loadmodule", str(module)])
    client = server.client(decode=True)
    new = module.with_suffix(".new")
    new.write_bytes(bytes(module.stat().st_size))
    new.rename(module)
    assert client.execute_command("CACHE.SET", "k", "v") == "OK"
    assert client.execute_command("CACHE.GET", "k") == "v"
    with pytest.raises(redis.ResponseError):
        client.execute_command("MODULE", "UNLOAD", "keyward")


def test_systemd_takes_the_drop_in(root, tmp_path):
    if not shutil.which("systemd-analyze") or not UNIT.exists():
        pytest.skip("no systemd-analyze or no unit of redis-server here")
    drop_in = root / "usr/share/doc/keyward/examples/redis-server.service.d/keyward.conf"
    place = tmp_path / "redis-server.service.d" / "keyward.conf"
    place.parent.mkdir()
    shutil.copy(drop_in, place)
    unit = shutil.copy(UNIT, tmp_path)
    assert said_by_systemd(unit) == ""
    # So that an empty answer is one about the drop-in.
    place.write_text(place.read_text() + "NoSuchSetting=1\n")
    assert "NoSuchSetting" in said_by_systemd(unit)


def said_by_systemd(unit):
    folder = str(Path(unit).parent)
    return subprocess.run(
        ["systemd-analyze", "verify", unit],
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    ).stderr
