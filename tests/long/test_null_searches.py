"""Searches without a gain in more settings than the tests of the confirmation have."""

import pytest
from null_searches import DRAW, at_most, null_searches

from optimas_jax.search.gate import GateConfig

pytestmark = pytest.mark.long


@pytest.mark.parametrize("metric", DRAW)
@pytest.mark.parametrize(
    ("gate", "settings"),
    [
        (GateConfig("paired"), {"share": 0.25}),
        (GateConfig("paired"), {"share": 0.05}),
        (GateConfig("paired"), {"val": 16, "confirm_n": 12}),
        (GateConfig("paired"), {"val": 100, "confirm_n": 100}),
        (GateConfig("paired", level=0.05), {}),
        (GateConfig("paired", level=0.5), {}),
        (GateConfig("strict"), {}),
    ],
)
def test_at_most_five_percent_end_with_anything_confirmed(metric, gate, settings):
    _, confirmed = null_searches(gate, DRAW[metric], **settings)
    assert confirmed <= at_most(0.05)
