"""What redis-cli makes of COMMAND DOCS: HELP, and the hints that it shows while a command is typed."""

import os
import pty
import re
import select
import shutil
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from catalogue import EXAMPLES, typed
from servers import REPOSITORY, Server

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CTRL_U, CTRL_C, CTRL_D = "\x15", "\x03", "\x04"


def program(server: Server) -> str:
    """The one that comes with the server, else the one of the system: 7.0."""
    beside = server.binary.with_name(server.binary.name.replace("-server", "-cli"))
    found = str(beside) if beside.exists() else shutil.which("redis-cli")
    assert found, "redis-cli is not on PATH: run `make setup`"
    return found


def squeezed(syntax: str) -> str:
    """redis-cli writes choices without brackets of their own, and closer together."""
    return re.sub(r" ?\| ?", "|", re.sub(r"[<>]", "", syntax))


def page(command: str) -> tuple[str, str]:
    """From the page of a command: its arguments as redis-cli shows them, and the summary."""
    name = " ".join(typed(command))
    text = (REPOSITORY / "docs" / "commands" / f"{typed(command)[0].lower()}.md").read_text()
    syntax, summary = re.search(rf"^#+ {re.escape(name)}\n\n```\n(.+)\n```\n\n(.+)$", text, re.MULTILINE).groups()
    return squeezed(syntax.removeprefix(name).strip()), summary


def test_help_says_what_the_pages_say(server):
    lines = "".join(f"help {' '.join(typed(command))}\n" for command in EXAMPLES)
    argv = [program(server), "-p", str(server.port)]
    done = subprocess.run(argv, input=lines, capture_output=True, text=True, timeout=60, check=True)
    # So valkey-cli 8.1 shows commands without arguments, its own as well.
    shown = squeezed(COLOUR.sub("", done.stdout).replace("(null)", ""))
    for command in EXAMPLES:
        arguments, summary = page(command)
        title = " ".join([*typed(command), arguments]).strip()
        assert re.search(
            rf"^ *{re.escape(title)} *\n *summary: {re.escape(squeezed(summary))}$", shown, re.MULTILINE
        ), command


class Terminal:
    """redis-cli in a terminal that is wide enough for every hint."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def shows(self, pattern: str) -> re.Match[str]:
        """Waits until what was shown since the last time has it."""
        deadline = time.monotonic() + 20
        while not (found := re.search(pattern, self._shown, re.DOTALL)):
            assert time.monotonic() < deadline, repr(self._shown[-2000:])
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self._shown += os.read(self._descriptor, 65536).decode()
        self._shown = ""
        return found

    def hint(self, line: str) -> str:
        """What is shown behind a line that is typed, once it has ended."""
        self.type(line)
        # Each character has the line drawn again: the last time is the one with all of it.
        found = self.shows(re.escape(line) + r"\x1b\[0;90;49m(.*?)\x1b\[0m")
        self.type(CTRL_U)
        return found[1].strip()


@contextmanager
def terminal(server: Server) -> Iterator[Terminal]:
    pid, descriptor = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, (24, 2000))
        os.environ["TERM"] = "xterm"
        os.execv(program(server), [program(server), "-p", str(server.port)])
    try:
        terminal = Terminal(descriptor)
        terminal.shows("> ")
        yield terminal
    finally:
        os.write(descriptor, (CTRL_C + CTRL_D).encode())
        os.close(descriptor)
        os.waitpid(pid, 0)


def test_every_command_has_its_hint_while_it_is_typed(server):
    """As a person types: the name and a blank."""
    with terminal(server) as typist:
        for command in EXAMPLES:
            arguments, _ = page(command)
            if arguments:
                assert squeezed(typist.hint(" ".join(typed(command)) + " ")) == arguments


def test_the_hint_goes_on_with_what_is_still_to_type(server):
    with terminal(server) as typist:
        assert squeezed(typist.hint("LOCK.ACQUIRE report worker ")).startswith("EX seconds|PX milliseconds [WAIT")
        assert typist.hint("CACHE.INVALIDATETAG shop:1 ").endswith("[tag ...]")
