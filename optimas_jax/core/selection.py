"""Selection of one of several outputs of a component for each input, by local reward (paper, section 4.3).

``candidates`` lists the runs of a ``PerInstance`` value, ``choose`` selects one of their outputs. Random numbers in
place of local rewards are the control that shows how much local rewards contribute to a search.
"""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optimas_jax.core.types import derive_seed
from optimas_jax.core.values import PerInstance, Value

# Names in place of a trained local reward: random numbers, the log-likelihood of an output under the untrained reward
# model, the global reward itself, a language model as judge, a function of the user's.
RANDOM, LIKELIHOOD, ORACLE, JUDGE, OWN_REWARD = "random", "likelihood", "oracle", "judge", "own"
UNTRAINED = (RANDOM, LIKELIHOOD, ORACLE, JUDGE, OWN_REWARD)
MAJORITY = "majority"  # among several outputs only: how much an output agrees with the others
_DIGITS = 4  # compared digits of a score: the last digits of float32 can depend on the batch


class Scorer(Protocol):
    """Scores outputs while a system runs."""

    async def scores(
        self,
        component: str,
        example_id: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[Mapping[str, Any]],
        reward: str,
    ) -> Sequence[float]:
        """Local reward of each output of a component on one input of an example, under the local reward named
        ``reward``."""
        ...


def random_score(seed: int, component: str, example_id: str, outputs: Mapping[str, Any]) -> float:
    """A normal random number, the same wherever a run with this ``seed`` scores these outputs on this example."""
    return random.Random(derive_seed(RANDOM, seed, component, example_id, outputs)).gauss()


def agreement(texts: Sequence[str]) -> list[float]:
    """Agreement of each text with the others: the mean F1 of their words (self-consistency: Wang et al., 2023, for
    answers that are not equal letter by letter). 0 for a single text."""
    bags = [collections.Counter(text.lower().split()) for text in texts]
    return [
        sum(_f1(bag, other) for other_index, other in enumerate(bags) if other_index != index) / max(1, len(bags) - 1)
        for index, bag in enumerate(bags)
    ]


def _f1(first: collections.Counter[str], second: collections.Counter[str]) -> float:
    """F1 of two bags of words."""
    total = first.total() + second.total()
    return 2 * (first & second).total() / total if total else 1.0


def candidates(value: PerInstance, seed: int, temperature: float | None) -> list[tuple[Value, int, float | None]]:
    """The runs of a component with value ``value``, as (value, seed, temperature).

    The first sample of every candidate value is the run with that value alone; further samples have ``value``'s
    temperature and derived seeds.
    """
    return [
        (candidate, derive_seed(seed, "sample", index), value.temperature) if index else (candidate, seed, temperature)
        for candidate in value.values
        for index in range(value.samples)
    ]


def choose(scores: Sequence[float], mode: str, seed: int) -> int:
    """Index of the highest score, the first of equal ones (``argmax``), or an index drawn with probability in
    proportion to exp(score) (``sample``)."""
    rounded = [round(score, _DIGITS) for score in scores]
    if mode == "argmax":
        return rounded.index(max(rounded))
    weights = [math.exp(score - max(rounded)) for score in rounded]
    return random.Random(derive_seed(seed, "choice")).choices(range(len(weights)), weights)[0]
