"""Statistics of scores: paired tests, intervals over examples, and intervals over seeds and examples."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

RESAMPLES = 10_000
_FLIPS = 2**13  # sign patterns of a test; up to 13 differences these are all there are
_ROUNDING = 1e-9  # of the sum of magnitudes: sums closer than this are equal


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired comparison of two sets of scores of the same examples.

    Attributes:
      n: examples.
      mean: mean of the differences.
      ci95: bootstrap interval of that mean over examples. It leaves out what other seeds would give.
      p_value: one-sided p-value of the sign-flip test that the mean is above zero.
    """

    n: int
    mean: float
    ci95: tuple[float, float]
    p_value: float


def compare(new: Sequence[float], old: Sequence[float]) -> Comparison:
    """Compares ``new`` with ``old``, example by example; the same scores always give the same result.

    Raises:
      ValueError: there are no scores, or not as many new ones as old ones.
    """
    if len(new) != len(old) or not len(new):
        raise ValueError(f"a paired comparison needs as many new scores as old ones, got {len(new)} and {len(old)}")
    differences = np.asarray(new, np.float64) - np.asarray(old, np.float64)
    mean, ci95 = mean_interval(differences)
    return Comparison(len(differences), mean, ci95, float(sign_flip_test(differences)))


def sign_flip_test(differences: ArrayLike) -> np.ndarray:
    """One-sided p-values of the paired sign-flip test: P(sum of flipped differences >= their sum).

    Valid at every level whatever the scores, if a difference and its negative are equally likely where nothing changed.
    Differences of zero do not count. Up to 13 others the test enumerates all flips, differences of one size have the
    binomial tail (the sign test), and otherwise the flips are a fixed subgroup of 8,192: a test over a subgroup is
    exact, not approximate (Hemerik and Goeman 2018, "Exact testing with random permutations", theorem 1).

    Args:
      differences: [..., n] new score minus old score of each example.

    Returns:
      [...] p-values; 1 where every difference is zero.
    """
    values = np.asarray(differences, np.float64)
    sizes = np.abs(values)
    largest, smallest = sizes.max(-1), np.min(sizes, -1, where=sizes > 0, initial=np.inf)
    p_values = special.bdtrc((values > 0).sum(-1) - 1, np.count_nonzero(values, -1), 0.5)  # all of one size
    mixed = smallest < largest * (1 - _ROUNDING)
    if mixed.any():
        p_values = np.array(p_values)
        p_values[mixed] = _enumerate(values[mixed])
    return p_values


def _enumerate(values: np.ndarray) -> np.ndarray:
    """[rows] p-values of ``values`` [rows, n] over the subgroup of ``_sign_flips``.

    The largest come first, where the subgroup has every pattern: rows with few differences are enumerated in full.
    """
    order = np.argsort(-np.abs(values), axis=-1, kind="stable")
    values = np.take_along_axis(values, order, -1)
    flips, p_values = _sign_flips(values.shape[-1]).T, []
    for rows in np.array_split(values, 1 + len(values) // 256):  # 256 rows are 16 MiB of sums
        sums = rows @ flips
        rounding = _ROUNDING * np.abs(rows).sum(-1, keepdims=True)
        p_values.append(np.mean(sums >= sums[:, :1] - rounding, axis=-1))
    return np.concatenate(p_values)


@functools.lru_cache(maxsize=8)
def _sign_flips(n: int) -> np.ndarray:
    """[flips, n] signs that form a group under multiplication, the identity first.

    The first columns take all patterns, each further one is the product of a random subset of them (fixed seed).
    """
    free = min(n, _FLIPS.bit_length() - 1)
    bits = np.arange(2**free)[:, None] >> np.arange(free) & 1
    subsets = np.random.default_rng(0).integers(0, 2, (free, n - free))
    return 1.0 - 2.0 * np.concatenate([bits, bits @ subsets % 2], axis=1)


def bootstrap_means(values: np.ndarray) -> np.ndarray:
    """[..., resamples] means of resampled ``values`` [..., n]; the same values always give the same result."""
    n = values.shape[-1]
    return values @ _resamples(n).T / n


@functools.lru_cache(maxsize=1)
def _resamples(n: int) -> np.ndarray:
    """[resamples, n] how often each of n values is drawn."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def mean_interval(scores: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Mean of ``scores`` [n] and its 95 % bootstrap interval."""
    values = np.asarray(scores, np.float64)
    low, high = np.quantile(bootstrap_means(values), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))


def two_level_interval(scores: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Mean over seeds and examples, and its 95 % bootstrap interval: seeds are resampled, then examples.

    A resample draws its examples once for all seeds, because all seeds share them (the crossed bootstrap of Owen 2007,
    "The pigeonhole bootstrap"). Resampled means of few seeds spread too little; deviations of a seed's mean are first
    multiplied by sqrt(S / (S - 1)) t / z, with the 97.5 % quantiles of t (S - 1 degrees of freedom) and of the normal
    distribution, so that with equal examples and many seeds the interval is as wide as the t interval. With two to five
    seeds, of which one stands out, it is narrower: a verdict needs ``excludes_zero``.

    Args:
      scores: [seeds, examples] scores or paired differences, the same examples for every seed.

    Raises:
      ValueError: fewer than two seeds.
    """
    values = _by_seed(scores)
    seeds, examples = values.shape
    mean, seed_means = float(values.mean()), values.mean(1, keepdims=True)
    widening = math.sqrt(seeds / (seeds - 1)) * special.stdtrit(seeds - 1, 0.975) / special.ndtri(0.975)
    values = values + (widening - 1) * (seed_means - mean)
    rng = np.random.default_rng(1)  # not the stream of ``_resamples``, which has seed 0
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    means = ((of_seeds @ values) * _resamples(examples)).sum(1) / examples
    low, high = np.quantile(means, [0.025, 0.975])
    return mean, (float(low), float(high))


def interval(scores: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Mean and 95 % interval of ``scores`` [seeds, examples]: over seeds and examples (``two_level_interval``), or of a
    single seed over examples alone."""
    values = np.asarray(scores, np.float64)
    return two_level_interval(values) if len(values) > 1 else mean_interval(values[0])


def ratio_interval(ratios: ArrayLike) -> tuple[float, tuple[float, float] | None]:
    """Geometric mean of ``ratios`` [n], one for each seed, and its 95 % interval: the t interval of their logarithms.
    One ratio has no interval.

    Raises:
      ValueError: no ratio, or a ratio of zero or less.
    """
    values = np.asarray(ratios, np.float64)
    if not values.size or not (values > 0).all():
        raise ValueError(f"ratios are {values.tolist()}: one or more, all above zero")
    logs, n = np.log(values), values.size
    mean = float(logs.mean())
    if n < 2:
        return math.exp(mean), None
    margin = float(special.stdtrit(n - 1, 0.975) * logs.std(ddof=1) / math.sqrt(n))
    return math.exp(mean), (math.exp(mean - margin), math.exp(mean + margin))


def excludes_zero(scores: ArrayLike) -> bool:
    """Whether neither the interval over seeds and examples (``two_level_interval``) nor the t interval over the seeds'
    means holds zero.

    Args:
      scores: [seeds, examples] paired differences.

    Raises:
      ValueError: fewer than two seeds.
    """
    values = _by_seed(scores)
    mean, (low, high) = two_level_interval(values)
    return not low <= 0 <= high and abs(mean) > _t_margin(values)


def smallest_difference(scores: ArrayLike) -> float:
    """Smallest true difference that as many seeds would show, two-sided at 5 % with 80 % power, by the seeds' means
    alone.

    (t_0.975 + t_0.8) s / sqrt(S): quantiles of t with S - 1 degrees of freedom, s the standard deviation of the seeds'
    means.

    Args:
      scores: [seeds, examples] paired differences.

    Raises:
      ValueError: fewer than two seeds.
    """
    values = _by_seed(scores)
    freedom = len(values) - 1
    return (1 + float(special.stdtrit(freedom, 0.8) / special.stdtrit(freedom, 0.975))) * _t_margin(values)


def _t_margin(values: np.ndarray) -> float:
    """Half the width of the t interval over the means of ``values`` [seeds, examples]."""
    seeds = len(values)
    return float(special.stdtrit(seeds - 1, 0.975) * values.mean(1).std(ddof=1) / math.sqrt(seeds))


def _by_seed(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or len(values) < 2 or not values.size:
        raise ValueError(
            f"the spread between seeds needs scores [seeds, examples] of at least two seeds, got shape {values.shape}; "
            "mean_interval gives an interval over examples alone"
        )
    return values
