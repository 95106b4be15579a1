"""The gate: whether a proposal's global score confirms what its local reward promised."""

from __future__ import annotations

import dataclasses
from typing import Literal

from optimas_jax.core.ranges import Share
from optimas_jax.core.stats import Comparison

_FEWEST = 8  # examples of a first look


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """When a proposal passes.

    Attributes:
      kind: ``strict`` (paper: a higher sum of scores) or ``paired`` (a gain that is probably real); empty for the
        mode's.
      confidence: ``paired`` needs at least this p_positive.
      futility: ``paired`` gives up after half of the examples below this p_positive, after a quarter below half of it.
    """

    kind: Literal["", "strict", "paired"] = ""
    confidence: Share = 0.8
    futility: Share = 0.3


def accepts(config: GateConfig, comparison: Comparison) -> bool:
    """The decision on all validation examples."""
    if config.kind == "strict":
        return comparison.mean > 0
    return comparison.mean > 0 and comparison.p_positive >= config.confidence


def looks(config: GateConfig, examples: int) -> list[int]:
    """After how many examples the test is looked at, all of them at last. A quarter is none if it is fewer than
    ``_FEWEST``: a single loss would end it."""
    early = [examples // 4] * (examples // 4 >= _FEWEST) + [examples // 2] * (examples > 1)
    return [*early, examples] if config.kind == "paired" else [examples]


def is_futile(config: GateConfig, comparison: Comparison, share: float = 0.5) -> bool:
    """The decision on the first ``share`` of the examples, at most half: whether to stop paying for this proposal."""
    return config.kind == "paired" and comparison.p_positive < config.futility * 2 * share
