"""Random numbers in place of local rewards: the control that shows what a search owes to them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.types import derive_seed

RANDOM = "random"  # where the name of a local reward stands otherwise


def random_score(seed: int, component: str, example_id: str, outputs: Mapping[str, Any]) -> float:
    """A normal random number, the same wherever a run with this ``seed`` scores these outputs on this example."""
    return random.Random(derive_seed(RANDOM, seed, component, example_id, outputs)).gauss()
