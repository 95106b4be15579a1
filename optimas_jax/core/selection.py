"""Choosing among several outputs of a component for the input at hand, by local reward (paper, section 4.3).

A ``PerInstance`` value is run as its candidates; this says which runs those are and which output is kept.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optimas_jax.core.types import derive_seed
from optimas_jax.core.values import PerInstance, Value

_DIGITS = 4  # of a score that count: the last ones of float32 depend on what shares a batch


class Scorer(Protocol):
    """What scores outputs while a system runs."""

    async def scores(
        self, component: str, inputs: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]], reward: str
    ) -> Sequence[float]:
        """Local reward of each output of a component on one input, under the local reward named ``reward``."""
        ...


def candidates(value: PerInstance, seed: int, temperature: float | None) -> list[tuple[Value, int, float | None]]:
    """The runs of a component that ``value`` stands for, as (value, seed, temperature asked for).

    The first sample of every value is what the value alone would give; the others are hotter, with seeds of their own.
    """
    return [
        (one, derive_seed(seed, "sample", index), value.temperature) if index else (one, seed, temperature)
        for one in value.values
        for index in range(value.samples)
    ]


def choose(scores: Sequence[float], mode: str, seed: int) -> int:
    """The place of the highest score, the first one of equals (``argmax``); or a place drawn with chances in
    proportion to exp(score) (``sample``)."""
    rounded = [round(score, _DIGITS) for score in scores]
    if mode == "argmax":
        return rounded.index(max(rounded))
    weights = [math.exp(score - max(rounded)) for score in rounded]
    return random.Random(derive_seed(seed, "choice")).choices(range(len(weights)), weights)[0]
