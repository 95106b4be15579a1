"""Gains of proposals from local scores on all inputs and global rewards on some (prediction-powered inference).

The mean global reward over the labelled inputs is unbiased and noisy. A local reward is a control variate for it
(Angelopoulos et al., 2023; PPI++: Angelopoulos, Duchi and Zrnic, 2023): with the local score difference L and the
global reward difference R of a proposal,

    gain = mean of R over labelled inputs + w * (mean of L over all inputs - mean of L over labelled inputs)    (1)

has the same expectation for every fixed weight w, and the least variance where w is the slope of R on L. One weight is
fitted for all proposals of a component and shrunk by its F value, so that a wrong local reward does no harm.

Three rules keep (1) unbiased. Labelled inputs are drawn at random. An input where a proposal's output equals the
current one has a gain of exactly 0; it needs no label, and (1) is applied only to the other inputs and multiplied by
their share. An input with labels that the local reward was trained on counts only in the labelled mean. Cross-fitted
scores (each from a model that was not trained on its input; Zrnic and Candes, 2024) count as unseen.

All arrays may have leading batch dimensions, written ``...``. P proposals, N inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_POSITIVE = 2.0  # c of ``shrunk_weight`` for a positive weight: it must explain twice as much as chance
_NEGATIVE = 4.0  # c for a negative weight, which is less plausible: two standard errors


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """Score and reward differences of the proposals of one component under one local reward.

    Attributes:
      local: float64[..., P, N], difference of local scores, new minus current, on any scale.
      reward: float64[..., P, N], difference of global rewards; NaN where it is not labelled.
      changed: bool[..., P, N], whether the output differs from the current one. Elsewhere both differences count as 0,
        whatever their values in the arrays.
      tried: bool[..., P, N], whether the proposal was tried on the input; default: all. An input from which one of its
        demonstrations comes counts as not tried.
      seen: bool[..., P, N], whether the local reward was trained on the label; default: none. One seen label marks the
        input for all proposals: they share the current output and its reward.

    Raises:
      ValueError: if shapes differ, a local difference that counts is not finite, or a reward is infinite.
    """

    local: Floats
    reward: Floats
    changed: Bools
    tried: Bools | None = None
    seen: Bools | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.local)
        defaults = {"tried": np.ones(shape, bool), "seen": np.zeros(shape, bool)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            dtype = np.float64 if field.name in ("local", "reward") else np.bool_
            array = np.asarray(defaults[field.name] if value is None else value, dtype)
            if len(shape) < 2 or array.shape != shape:
                raise ValueError(f"{field.name} has shape {array.shape}, local {shape}; all need one shape [..., P, N]")
            object.__setattr__(self, field.name, array)
        if not np.isfinite(self.local[self.counts]).all():
            raise ValueError("local has a value that is not finite where a proposal was tried; mark it as not tried")
        if np.isinf(self.reward[self.counts]).any():
            raise ValueError("reward has an infinite value; use NaN where there is no label")

    @property
    def share(self) -> Floats:
        """float64[..., P]: share of the tried inputs on which the output changed; 0 without tried inputs."""
        return self.counts.sum(-1) / np.maximum(np.asarray(self.tried).sum(-1), 1)

    @property
    def counts(self) -> Bools:
        """bool[..., P, N]: whether the proposal was tried and its output differs from the current one."""
        return np.asarray(self.tried) & self.changed

    @property
    def labelled(self) -> Bools:
        """bool[..., P, N]: pairs that count and have a global reward."""
        return self.counts & ~np.isnan(self.reward)

    @property
    def unseen(self) -> Bools:
        """bool[..., P, N]: pairs that count, on inputs on which the local reward was not trained."""
        return self.counts & ~np.any(np.asarray(self.seen), axis=-2, keepdims=True)


@dataclasses.dataclass(frozen=True)
class WeightEvidence:
    """Sufficient statistics of the weight; they add up over iterations (``+``). Each field is float64[...].

    x is the local difference in units of its standard deviation over all inputs of its iteration, so that local rewards
    on different scales can be added; y the reward difference; both centred by proposal. Sums are over labelled pairs.

    Attributes:
      dof: degrees of freedom: labelled pairs minus proposals with a label.
      inputs: number of labelled inputs.
      sxx, sxy, syy: sums of x x, x y and y y.
      qxx, qxy, qyy: sums over inputs of a a, a b and b b, with a and b the shares of one input in sxx and sxy. Pairs of
        one input share the current output, so they are not independent; these sums measure the dependence.
    """

    dof: Floats | float = 0.0
    inputs: Floats | float = 0.0
    sxx: Floats | float = 0.0
    sxy: Floats | float = 0.0
    syy: Floats | float = 0.0
    qxx: Floats | float = 0.0
    qxy: Floats | float = 0.0
    qyy: Floats | float = 0.0

    def __add__(self, other: WeightEvidence) -> WeightEvidence:
        return WeightEvidence(*(a + b for a, b in zip(self.arrays, other.arrays, strict=True)))

    def __sub__(self, other: WeightEvidence) -> WeightEvidence:
        return WeightEvidence(*(a - b for a, b in zip(self.arrays, other.arrays, strict=True)))

    @property
    def arrays(self) -> list[Floats]:
        """The fields in their order."""
        return [np.asarray(getattr(self, field.name), np.float64) for field in dataclasses.fields(self)]

    def over_inputs(self) -> WeightEvidence:
        """The statistics with a last dimension of 1, to combine them with statistics by input."""
        return WeightEvidence(*(array[..., None] for array in self.arrays))


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """Estimated mean gains of the proposals of one component, in units of the global reward.

    Variances are over the draw of inputs, given the share of outputs that changed. The residual variance is pooled over
    proposals, as one proposal has too few labels to estimate its own; it is infinite where no proposal has two labels.

    Attributes:
      gain, variance: float64[..., P], mean and variance of the prediction-powered estimate, Eq. (1).
      labelled_gain, labelled_variance: float64[..., P], mean and variance of the labelled part alone: 0 and infinite
        without a label.
      weight: float64[...], w of Eq. (1): reward per unit of the local score.
      effective_runs: float64[...], see the function ``effective_runs``.
    """

    gain: Floats
    variance: Floats
    labelled_gain: Floats
    labelled_variance: Floats
    weight: Floats
    effective_runs: Floats


def estimate_gains(evidence: Evidence, earlier: WeightEvidence | None = None) -> Estimate:
    """Mean gain of each proposal over the inputs that it was tried on, Eq. (1).

    A proposal without a label gets the weight times its mean local difference, with an infinite variance.

    Args:
      evidence: differences of this iteration.
      earlier: statistics of the component's earlier iterations, to fit the weight on more labels. This assumes that the
        current local reward is as good as the earlier ones.
    """
    pairs = _pairs(evidence)
    unseen, share = evidence.unseen, evidence.share
    labels, checks, inputs = (mask.sum(-1) for mask in (evidence.labelled, pairs.fitted, unseen))
    weight = shrunk_weight(pairs.statistics() + (earlier or WeightEvidence())) * _inverse(pairs.scale)

    # Seen labels count in the mean of R but not in the correction, which therefore explains less of its error.
    usable = checks / np.maximum(labels, 1)
    predicted = weight[..., None] * _mean(evidence.local, unseen)
    correction = usable * (predicted - weight[..., None] * _mean(evidence.local, evidence.labelled & unseen))
    direct = _mean(evidence.reward, evidence.labelled)

    # Variance in units of s^2 = Var(R): share^2 (1 / labels - usable^2 (1 / checks - 1 / inputs) (1 - unexplained)).
    alone = share**2 * _inverse(labels)
    reduction = np.maximum(_inverse(checks) - _inverse(inputs), 0.0) * (1.0 - _unexplained(pairs, earlier))[..., None]
    both = alone - share**2 * usable**2 * reduction
    total = labels.sum(-1)
    return Estimate(
        gain=share * np.where(labels > 0, direct + correction, predicted),
        variance=_in_reward_units(both, evidence),
        labelled_gain=share * direct,
        labelled_variance=_in_reward_units(alone, evidence),
        weight=weight,
        effective_runs=total * _ratio(alone.sum(-1), both.sum(-1)),
    )


def effective_runs(evidence: Evidence, earlier: WeightEvidence | None = None) -> float:
    """Number of labelled runs that give the same precision without the local reward (for a batch:
    ``Estimate.effective_runs``).

    This is labelled runs * Var(labelled part) / Var(estimate), variances averaged over the proposals with a label. The
    variance that the local reward explains is measured on labels that it has not seen, by weights fitted without the
    respective input. For an uninformative local reward the result equals the labelled runs on average.
    """
    return float(estimate_gains(evidence, earlier).effective_runs)


def mean_local(evidence: Evidence) -> Floats:
    """Mean local difference over the inputs on which each proposal was tried, float64[..., P]: ranking of the paper."""
    return evidence.share * _mean(evidence.local, evidence.counts)


def weight_evidence(evidence: Evidence) -> WeightEvidence:
    """Statistics of the weight from the labels of ``evidence`` that the local reward has not seen."""
    return _pairs(evidence).statistics()


def weight_of_groups(groups: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> WeightEvidence:
    """Statistics of the weight from groups of outputs with known rewards, which the local reward has not seen.

    Args:
      groups: input, rewards and local scores of each group's outputs, the output in use first; at least one group.
        Pairs of one input depend on each other, also across groups.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for name, rewards, scores in groups:
        of_group = zip(np.subtract(scores, scores[0])[1:], np.subtract(rewards, rewards[0])[1:], strict=True)
        pairs.setdefault(name, []).extend(of_group)
    shape = (max(map(len, pairs.values())), len(pairs))
    local, reward = np.zeros((2, *shape))
    tried = np.zeros(shape, bool)
    for column, of_input in enumerate(pairs.values()):
        for row, (local[row, column], reward[row, column]) in enumerate(of_input):
            tried[row, column] = True
    return weight_evidence(Evidence(local=local, reward=reward, changed=tried, tried=tried))


def shrunk_weight(stats: WeightEvidence) -> Floats:
    """Slope of the reward difference on the standardised local difference, times (1 - c F0 / F)+; float64[...].

    F is the squared slope over its squared standard error, the larger of two: for independent pairs, and for pairs that
    depend on each other within an input (cluster-robust; Liang and Zeger, 1986). F0 = nu / (nu - 2) is its mean where
    nothing is explained. c is 2 for a positive slope, 4 for a negative one. 0 with fewer than four degrees of freedom.
    """
    [dof, inputs, sxx, sxy, syy, qxx, qxy, qyy] = stats.arrays
    nu = dof - 1.0
    per_sxx = np.where((nu > 2) & (sxx > 1e-9 * dof), _inverse(sxx), 0.0)  # below: nothing but rounding
    slope = sxy * per_sxx
    independent = np.maximum(syy - slope * sxy, 0.0) * sxx * _inverse(nu)
    clustered = np.maximum(qyy - 2 * slope * qxy + slope**2 * qxx, 0.0) * inputs * _inverse(inputs - 1.0)
    error = np.maximum(independent, clustered) * per_sxx**2
    chance = np.where(slope > 0, _POSITIVE, _NEGATIVE) * nu * _inverse(nu - 2.0) * error
    return slope * np.divide(slope**2 - chance, slope**2, out=np.zeros_like(slope), where=slope**2 > chance)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs to which the weight is fitted, on the K inputs that have any.

    Attributes:
      x, y: float64[..., P, K], as in ``WeightEvidence``; 0 elsewhere.
      fitted: bool[..., P, K], mask of the pairs.
      scale: float64[...], one unit of x.
    """

    x: Floats
    y: Floats
    fitted: Bools
    scale: Floats

    def by_input(self, factor: Floats | float = 1.0) -> WeightEvidence:
        """Share of each input in the statistics, float64[..., K]; sums of products are multiplied by ``factor``."""
        xx, xy = (self.x * self.x).sum(-2), (self.x * self.y).sum(-2)
        labels = self.fitted.sum(-1, keepdims=True)
        return WeightEvidence(
            dof=(self.fitted & (labels > 1)).sum(-2).astype(np.float64),
            inputs=self.fitted.any(-2).astype(np.float64),
            sxx=(factor * self.x * self.x).sum(-2),
            sxy=(factor * self.x * self.y).sum(-2),
            syy=(factor * self.y * self.y).sum(-2),
            qxx=xx * xx,
            qxy=xx * xy,
            qyy=xy * xy,
        )

    def statistics(self) -> WeightEvidence:
        """Statistics over all inputs, float64[...]."""
        sums = WeightEvidence(*(array.sum(-1) for array in self.by_input().arrays))
        return dataclasses.replace(sums, dof=np.maximum(self.fitted.sum(-1) - 1.0, 0.0).sum(-1))

    def without_each_input(self) -> WeightEvidence:
        """Statistics without the pairs of each input, float64[..., K].

        The mean of a proposal with n labels changes as well, hence the factor n / (n - 1). The q sums ignore that.
        """
        labels = self.fitted.sum(-1, keepdims=True)
        return self.statistics().over_inputs() - self.by_input(labels * _inverse(labels - 1.0))


def _pairs(evidence: Evidence) -> _Pairs:
    fitted, unseen = evidence.labelled & evidence.unseen, evidence.unseen
    scale = np.sqrt(_within_variance(evidence.local, unseen))
    largest = np.abs(np.where(unseen, evidence.local, 0.0)).max((-1, -2), initial=0.0)
    scale = np.where(scale > 1e-9 * largest, scale, 0.0)  # below: a constant local difference, and rounding
    columns = fitted.any(tuple(range(fitted.ndim - 1)))
    fitted = fitted[..., columns]
    x = _centred(evidence.local[..., columns], fitted) * _inverse(scale)[..., None, None]
    return _Pairs(x, _centred(evidence.reward[..., columns], fitted), fitted, scale)


def _unexplained(pairs: _Pairs, earlier: WeightEvidence | None) -> Floats:
    """Var(R - w L) / Var(R), w fitted without the respective input; float64[...]. 1 without labels; may exceed 1."""
    weight = shrunk_weight(pairs.without_each_input() + (earlier or WeightEvidence()).over_inputs())
    total = (pairs.y**2).sum((-1, -2))
    left = ((pairs.y - weight[..., None, :] * pairs.x) ** 2).sum((-1, -2))
    return np.where(total > 0, _ratio(left, total), 1.0)


def _in_reward_units(relative: Floats, evidence: Evidence) -> Floats:
    """``relative`` times the variance of R within proposals; 0 where no output changed, infinite without labels."""
    labelled = evidence.labelled
    known = (labelled.sum(-1) > 0) & (labelled.sum(-1) > 1).any(-1, keepdims=True)
    variance = relative * _within_variance(evidence.reward, labelled)[..., None]
    same = np.asarray(evidence.tried).any(-1) & (evidence.share == 0)
    return np.where(same, 0.0, np.where(known, variance, np.inf))


def _within_variance(values: Floats, mask: Bools) -> Floats:
    """Variance within proposals, pooled over them, float64[...]; 0 if no proposal has two values."""
    dof = np.maximum(mask.sum(-1) - 1, 0).sum(-1)
    return (_centred(values, mask) ** 2).sum((-1, -2)) / np.maximum(dof, 1)


def _mean(values: Floats, mask: Bools) -> Floats:
    """Mean over the inputs in ``mask``; 0 if there are none."""
    return np.where(mask, values, 0.0).sum(-1) / np.maximum(mask.sum(-1), 1)


def _centred(values: Floats, mask: Bools) -> Floats:
    """Differences to the mean over ``mask``; 0 elsewhere."""
    return np.where(mask, values - _mean(values, mask)[..., None], 0.0)


def _inverse(values: Floats) -> Floats:
    """1 / values, 0 where a value is not positive."""
    return _ratio(1.0, values)


def _ratio(numerator: Floats | float, denominator: Floats) -> Floats:
    """numerator / denominator, 0 where the denominator is not positive."""
    denominator = np.asarray(denominator, np.float64)
    shape = np.broadcast_shapes(np.shape(numerator), denominator.shape)
    return np.divide(numerator, denominator, out=np.zeros(shape), where=denominator > 0)
