"""Alignment of local rewards with the global reward, on inputs without training, beside two trivial controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from optimas_jax.core.stats import RESAMPLES
from optimas_jax.core.system import System
from optimas_jax.core.types import Group, digest
from optimas_jax.rewards.pairs import count_pairs, is_informative, merge_groups
from optimas_jax.rewards.scorer import RewardScorer
from optimas_jax.rewards.split import Shares, part_of
from optimas_jax.rewards.text import text_group

_FEWEST = 5  # inputs that an interval needs

Rows = Sequence[Sequence[float]]  # by group and candidate


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Agreement of one local reward with the global reward on report groups.

    Attributes:
      pair_accuracy: share of pairs with different global rewards that it orders alike; chance is 0.5.
      ci95: bootstrap interval over inputs, since pairs of one input are not independent; None below five inputs.
      n_pairs, n_inputs: numbers of pairs and inputs.
      spearman: mean rank correlation within groups.
      shorter, loglik: pair accuracy of two controls: the shorter output wins; the likelier output under the base model
        wins.
      ceiling: pair accuracy of a second, independent set of Monte Carlo rewards on the pairs that it covers, an
        estimate of what a perfect predictor reaches; None without a second set.
    """

    pair_accuracy: float
    ci95: tuple[float, float] | None
    n_pairs: int
    n_inputs: int
    spearman: float
    shorter: float
    loglik: float
    ceiling: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields; the two controls together under ``controls``."""
        data = dataclasses.asdict(self)
        controls = {name: data.pop(name) for name in ("shorter", "loglik")}
        return {**data, "controls": controls}


def report_groups(groups: Sequence[Group], shares: Shares, configuration: str) -> list[Group]:
    """Groups of report inputs under the configuration with digest ``configuration``, each candidate once."""
    return merge_groups(
        group
        for group in groups
        if group.configuration == configuration and part_of(group.example_id, shares) == "report"
    )


def measure_alignment(
    scorer: RewardScorer, reward: str, system: System, groups: Sequence[Group], second: Sequence[Group] = ()
) -> dict[str, Alignment]:
    """Alignment of the local reward named ``reward``, by component with informative groups.

    Args:
      scorer: scores candidates.
      system: renders them.
      groups: from ``report_groups``.
      second: the same candidates with independent Monte Carlo rewards, for the noise ceiling.
    """
    threshold = scorer.config.loss.threshold
    result = {}
    for name in system.tunable:
        informative = [g for g in groups if g.component == name and is_informative(g.rewards, threshold)]
        if not informative:
            continue
        texts = [text_group(system, name, g.inputs, [c.outputs for c in g.candidates]) for g in informative]
        rewards = [g.rewards for g in informative]
        scores = scorer.scores(reward, texts)
        inputs = [g.example_id for g in informative]
        accuracy, pairs = pair_accuracy(scores, rewards, threshold)
        result[name] = Alignment(
            pair_accuracy=accuracy,
            ci95=pair_accuracy_interval(scores, rewards, inputs, threshold),
            n_pairs=pairs,
            n_inputs=len(set(inputs)),
            spearman=float(np.mean([_spearman(s, r) for s, r in zip(scores, rewards, strict=True)])),
            shorter=pair_accuracy([[-len(c) for c in t.candidates] for t in texts], rewards, threshold)[0],
            loglik=pair_accuracy(scorer.logliks(texts), rewards, threshold)[0],
            ceiling=noise_ceiling(informative, second, threshold),
        )
    return result


def pair_accuracy(scores: Rows, rewards: Rows, threshold: float) -> tuple[float, int]:
    """Share of pairs that the scores order as the rewards do, pooled over groups (0.5 without pairs); and their
    number."""
    right, pairs = _counts(scores, rewards, threshold).sum(axis=0)
    return float(right / pairs) if pairs else 0.5, int(pairs)


def pair_accuracy_interval(
    scores: Rows, rewards: Rows, inputs: Sequence[str], threshold: float
) -> tuple[float, float] | None:
    """95 % bootstrap interval of the pooled pair accuracy. Inputs are resampled with all their groups; None below five
    inputs. ``inputs`` names the input of each group."""
    names = sorted(set(inputs))
    if len(names) < _FEWEST:
        return None
    counts = _counts(scores, rewards, threshold)
    per_input = np.array([counts[[name == other for other in inputs]].sum(axis=0) for name in names])
    picks = np.random.default_rng(0).integers(0, len(names), size=(RESAMPLES, len(names)))
    totals = per_input[picks].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(low), float(high)


def noise_ceiling(groups: Sequence[Group], second: Sequence[Group], threshold: float) -> float | None:
    """Pair accuracy of the rewards of ``second`` on the pairs of ``groups``, matched by component, input and outputs;
    None where they share no pair."""
    again = _rewards_by_candidate(second)
    scores, rewards = [], []
    for group in groups:
        keys = [_key(group, index) for index in range(len(group.candidates))]
        known = [index for index, key in enumerate(keys) if key in again]
        scores.append([again[keys[index]] for index in known])
        rewards.append([group.rewards[index] for index in known])
    accuracy, pairs = pair_accuracy(scores, rewards, threshold)
    return accuracy if pairs else None


def _rewards_by_candidate(groups: Sequence[Group]) -> Mapping[str, float]:
    return {_key(g, index): reward for g in groups for index, reward in enumerate(g.rewards)}


def _key(group: Group, index: int) -> str:
    return digest(group.component, group.example_id, group.inputs, group.candidates[index].outputs)


def _counts(scores: Rows, rewards: Rows, threshold: float) -> np.ndarray:
    """[groups, 2] float64: pairs in the right order, pairs."""
    counts = [count_pairs(s, r, threshold) for s, r in zip(scores, rewards, strict=True)]
    return np.array(counts, np.float64).reshape(-1, 2)


def _spearman(scores: Sequence[float], rewards: Sequence[float]) -> float:
    if len(set(scores)) < 2:
        return 0.0
    return float(np.corrcoef(rankdata(scores), rankdata(rewards))[0, 1])
