"""Random commands of all families and of the server, by several connections, those that wait included, with eviction,
expiry, reloads, killed clients, changed settings and roles. `make fire` does the same for hours. A failure names its
seed: KEYWARD_SEED, KEYWARD_COMMANDS."""

import os

import catalogue
import pytest
from fire import shapes
from fire.run import Run, start

SEEDS = [int(os.environ["KEYWARD_SEED"])] if "KEYWARD_SEED" in os.environ else [1, 2]
COMMANDS = int(os.environ.get("KEYWARD_COMMANDS", 10_000))


def test_every_command_has_a_shape():
    assert set(shapes.SHAPES) == set(catalogue.EXAMPLES) - {"KEYWARD.APPLY"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_commands_break_no_promise(make_server, seed):
    servers = start(make_server)
    run = Run(*servers, seed)
    run.run(COMMANDS)
    run.disconnect()
    # Stopped in the right order.
    for server in servers:
        server.primary = run.primary if server is run.replica else None
    for name in ("evicted", "errors", "reloads", "role changes", "waits", "comparisons", "drains"):
        assert run.done[name] > 0, f"{name}: the run has become too tame"
    assert run.ledger.values.checked["values"] > COMMANDS / 100
