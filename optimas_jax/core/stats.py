"""Statistics of scores: paired comparisons and intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired comparison of two sets of scores of the same examples.

    Attributes:
      n: examples.
      mean: mean of the differences.
      ci95: bootstrap interval of that mean.
      p_positive: share of the bootstrap means above zero, ties counted half: how sure it is that the gain is real.
    """

    n: int
    mean: float
    ci95: tuple[float, float]
    p_positive: float


def compare(new: Sequence[float], old: Sequence[float]) -> Comparison:
    """Paired bootstrap (10,000 resamples, fixed seed) of ``new - old``, example by example."""
    if len(new) != len(old) or not new:
        raise ValueError(f"a paired comparison needs as many new scores as old ones, got {len(new)} and {len(old)}")
    differences = np.asarray(new, np.float64) - np.asarray(old, np.float64)
    means = bootstrap_means(differences)
    low, high = np.quantile(means, [0.025, 0.975])
    p_positive = float(np.mean(means > 1e-12) + 0.5 * np.mean(np.abs(means) <= 1e-12))
    return Comparison(len(new), float(differences.mean()), (float(low), float(high)), p_positive)


def bootstrap_means(values: np.ndarray) -> np.ndarray:
    """[resamples] means of resampled values; the same values always give the same result."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(values), size=(RESAMPLES, len(values)))
    return values[picks].mean(axis=1)


def mean_interval(scores: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean and its 95 % bootstrap interval."""
    values = np.asarray(scores, np.float64)
    low, high = np.quantile(bootstrap_means(values), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))
