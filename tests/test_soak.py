"""`make soak` in short: under a load of all families nothing grows that should not."""

import pytest
from fire.soak import Soak, gauges
from servers import default_flavour


@pytest.mark.skipif(
    default_flavour() != "redis-8.2", reason="what the module keeps is the same on every server: one will do"
)
@pytest.mark.timeout(300)
def test_a_short_soak(make_server):
    assert len(gauges()) >= 30
    said = []
    Soak(make_server, 1, said.append).soak(10)
    assert said[-1].endswith("all gauges 0")
