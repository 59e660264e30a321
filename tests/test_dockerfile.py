"""The Dockerfile: linted, its sources are there, its command starts a server; built where Docker is."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import REPOSITORY, default_flavour, eventually, module_path

pytestmark = pytest.mark.skipif(default_flavour() != "redis-7.0", reason="the file is the same for every server")

DOCKERFILE = REPOSITORY / "Dockerfile"
TEXT = DOCKERFILE.read_text()
MODULE_IN_IMAGE = "/usr/local/lib/keyward/libkeyward.so"


def copied_from_the_repository():
    """COPY without --from: all but the last word are files here."""
    lines = (line.split() for line in TEXT.splitlines() if line.startswith("COPY ") and "--from=" not in line)
    return [word for line in lines for word in line[1:-1] if not word.startswith("--")]


def command():
    return json.loads(re.search(r"^CMD (\[.+\])$", TEXT, re.MULTILINE)[1])


def test_the_linter_has_no_complaint():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    linter = shutil.which("hadolint", path=path)
    assert linter, "hadolint is not there: run `make venv`"
    done = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_there_and_nothing_else_is_sent():
    sources = copied_from_the_repository()
    assert {"Cargo.lock", "src"} <= set(sources)
    for source in sources:
        assert (REPOSITORY / source).exists(), source
    lines = (REPOSITORY / ".dockerignore").read_text().split("\n")
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    for source in sources:
        assert any(f"{source}/".startswith(f"{pattern[1:]}/") for pattern in patterns[1:]), source
    for pattern in patterns[1:]:
        assert any(f"{source}/".startswith(f"{pattern[1:]}/") or source in pattern for source in sources), pattern


def test_each_image_has_its_tag_and_the_toolchain_is_new_enough():
    images = re.findall(r"^(?:FROM|ARG SERVER=) ?([a-z/]+:\S+)", TEXT, re.MULTILINE)
    assert len(images) == 2
    toolchain = re.search(r"^FROM rust:([\d.]+)", TEXT, re.MULTILINE)[1]
    needed = re.search(r'^rust-version = "([\d.]+)"', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert [int(part) for part in toolchain.split(".")] >= [int(part) for part in needed.split(".")]


def test_its_command_starts_a_server_and_its_health_check_reaches_it(make_server):
    arguments = [str(module_path()) if word == MODULE_IN_IMAGE else word for word in command()]
    assert str(module_path()) in arguments
    assert re.search(rf"^COPY --from=build .* {Path(MODULE_IN_IMAGE).parent}/$", TEXT, re.MULTILINE)
    server = make_server(module=False, command_line=arguments)
    assert server.client().execute_command("CACHE.SET", "k", "v") == b"OK"
    check = json.loads(re.search(r"HEALTHCHECK .*\\\n +CMD (\[.+\])", TEXT)[1])
    healthy = [word.replace(" -e ping", f" -p {server.port} -e ping") for word in check]
    assert healthy != check
    assert subprocess.run(healthy, capture_output=True, timeout=10).returncode == 0
    server.stop()
    assert subprocess.run(healthy, capture_output=True, timeout=10).returncode != 0


@pytest.fixture
def docker():
    if not shutil.which("docker"):
        pytest.skip("no docker here")
    if subprocess.run(["docker", "info"], capture_output=True, timeout=30).returncode != 0:
        pytest.skip("no Docker daemon answers here")

    def run(*words):
        done = subprocess.run(["docker", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    return run


@pytest.mark.timeout(960)
@pytest.mark.parametrize("server", ["redis:7.0", "valkey/valkey:8.1"])
def test_the_image_serves(docker, server):
    image = docker("build", "--quiet", "--build-arg", f"SERVER={server}", ".")
    container = docker("run", "--detach", "--rm", image)
    try:
        state = ("inspect", "--format", "{{.State.Health.Status}}", container)
        eventually(lambda: docker(*state) == "healthy", timeout=60)
        cli = "valkey-cli" if "valkey" in server else "redis-cli"
        assert docker("exec", container, cli, "CACHE.SET", "k", "v") == "OK"
        assert docker("exec", container, "id", "-u") == "999"
    finally:
        docker("stop", container)
