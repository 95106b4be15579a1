"""The gate: tests whether a proposal's scores on validation examples are higher than the current ones, with interim
looks."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from optimas_jax.core.schema import Range
from optimas_jax.core.stats import sign_flip_test

Verdict = Literal["accept", "reject", "continue"]
_FEWEST = 8  # least number of examples of a first look
_EARLY = 0.05  # share of the level that an early look may spend
_HOPELESS = 0.1  # predictive probability of passing below which an early look rejects


@dataclasses.dataclass(frozen=True)
class GateConfig:
    """Settings of the gate.

    Attributes:
      kind: rule by which a proposal passes. ``strict``: a higher sum of scores (paper). ``paired``: a sign-flip test.
        ``none``: the best proposal always passes (an ablation: the ranking alone decides).
      level: level of the ``paired`` gate: probability that a proposal without a gain passes, all looks together.
    """

    kind: Literal["strict", "paired", "none"] = "paired"
    level: Annotated[float, Range(0, 0.5, closed=False)] = 0.5


def looks(config: GateConfig, n: int) -> tuple[int, ...]:
    """Numbers of examples after which the gate decides, ascending; the last is all ``n``.

    ``paired`` has early looks after a quarter (of at least 8 examples) and after half.

    Raises:
      ValueError: with so few examples no proposal could pass.
    """
    if n < 1 or (config.kind == "paired" and 0.5**n > config.level):
        needed = math.ceil(-math.log2(config.level)) if config.kind == "paired" else 1
        raise ValueError(
            f"a {config.kind} gate at level {config.level} needs at least {needed} validation examples, got {n}: "
            "give it more examples, raise the level of the gate or choose gate.kind=strict"
        )
    if config.kind != "paired" or n == 1:
        return (n,)
    return all_looks(n)


def all_looks(n: int) -> tuple[int, ...]:
    """Numbers of examples after a quarter (of at least 8 examples), half and all ``n``, at least 1."""
    return (*[n // 4] * (n // 4 >= _FEWEST), *[n // 2] * (n > 1), n)


def decide(config: GateConfig, differences: ArrayLike, n: int) -> Verdict:
    """The gate's decision at a look.

    Args:
      differences: [seen] new score minus current score of the first examples; their number is one of
        ``looks(config, n)``.
      n: number of all validation examples.

    Raises:
      ValueError: another number of differences, or too few examples for any proposal to pass.
    """
    values = np.asarray(differences, np.float64)
    if values.shape not in [(seen,) for seen in looks(config, n)]:
        raise ValueError(f"a gate of {n} examples looks after {looks(config, n)}, got shape {values.shape}")
    if passes(config, values, n):
        return "accept"
    if len(values) == n or is_futile(config, values, n):
        return "reject"
    return "continue"


def passes(config: GateConfig, differences: np.ndarray, n: int) -> np.ndarray:
    """[...] whether proposals with ``differences`` [..., seen] pass at this look.

    The levels of the looks add up to at most the gate's (Bonferroni, given the sizes of the differences): an early look
    has 5 % of it, the last one the rest. A look with so few changed examples that its level is out of reach spends
    nothing.
    """
    seen = differences.shape[-1]
    if config.kind == "none":
        return np.ones(differences.shape[:-1], bool)
    if config.kind == "strict":
        return differences.sum(-1) > 0
    level = np.full(differences.shape[:-1], config.level)
    if seen < n:
        level = level * _EARLY
    else:
        for stop in looks(config, n)[:-1]:
            changed = np.count_nonzero(differences[..., :stop], -1)
            level -= config.level * _EARLY * (0.5**changed <= config.level * _EARLY)
    return sign_flip_test(differences) <= level


def is_futile(config: GateConfig, differences: np.ndarray, n: int) -> np.ndarray:
    """[...] whether proposals with ``differences`` [..., seen] will probably not pass, so that the rest is not run.

    With z the standardised sum of the differences (its variance from random signs) and t the share of examples seen,
    the predictive probability of z >= z_level at the end, under a flat prior of the gain, is
    Phi((z - z_level sqrt(t)) / sqrt(1 - t)). Stopping here can only lower the rate of false acceptances.
    """
    seen = differences.shape[-1] / n
    norm = np.sqrt(np.square(differences).sum(-1))
    z = differences.sum(-1) / np.where(norm > 0, norm, 1.0)
    needed = special.ndtri(1 - config.level)
    return z < needed * math.sqrt(seen) + special.ndtri(_HOPELESS) * math.sqrt(1 - seen)


def chance_of_passing(config: GateConfig, differences: ArrayLike, n: int) -> float:
    """The predictive probability of ``is_futile``, in [0, 1]; 0 or 1 where all ``n`` differences [seen] are known."""
    values = np.asarray(differences, np.float64)
    if len(values) == n:
        return float(passes(config, values, n))
    seen, norm = len(values) / n, math.sqrt(np.square(values).sum())
    z = values.sum() / (norm or 1.0)
    return float(special.ndtr((z - special.ndtri(1 - config.level) * math.sqrt(seen)) / math.sqrt(1 - seen)))


def replay(config: GateConfig, differences: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The gate on proposals whose differences [proposals, n] are all known.

    Returns:
      [proposals] whether each is accepted, and [proposals] the number of examples that the decision takes.
    """
    values = np.asarray(differences, np.float64)
    accepted, used = np.zeros(len(values), bool), np.zeros(len(values), int)
    running = np.arange(len(values))
    n = values.shape[-1]
    for stop in looks(config, n):
        seen = values[running, :stop]
        passed = passes(config, seen, n)
        accepted[running], used[running] = passed, stop
        running = running[~passed & ~is_futile(config, seen, n)] if stop < n else running
    return accepted, used
