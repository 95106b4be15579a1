"""How well local rewards predict the global one, on inputs they were not trained on, beside two trivial controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from optimas_jax.core.stats import RESAMPLES
from optimas_jax.core.system import System
from optimas_jax.core.types import Group
from optimas_jax.rewards.pairs import count_pairs
from optimas_jax.rewards.scorer import RewardScorer
from optimas_jax.rewards.text import text_group


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Agreement of one local reward function with the global reward on held-out groups.

    Attributes:
      pair_accuracy: share of pairs with different global rewards that it orders alike; chance is 0.5.
      ci95: bootstrap interval over inputs, since pairs of one input are not independent.
      n_pairs, n_inputs: what it was measured on.
      spearman: mean rank correlation within groups.
      shorter, loglik: pair accuracy of two controls: the shorter output wins; the likelier output under the base model
        wins.
    """

    pair_accuracy: float
    ci95: tuple[float, float]
    n_pairs: int
    n_inputs: int
    spearman: float
    shorter: float
    loglik: float


def measure_alignment(
    scorer: RewardScorer, reward: str, system: System, groups: Sequence[Group]
) -> dict[str, Alignment]:
    """Alignment per component that has held-out groups with different rewards."""
    threshold = scorer.config.loss.threshold
    result = {}
    for name in system.tunable:
        own = [g for g in groups if g.component == name and max(g.rewards) - min(g.rewards) > threshold]
        if not own:
            continue
        texts = [text_group(system, name, g.inputs, [c.outputs for c in g.candidates]) for g in own]
        rewards = [g.rewards for g in own]
        scores = scorer.scores(reward, texts)
        accuracy, interval, pairs = _accuracy(scores, rewards, [g.example_id for g in own], threshold)
        result[name] = Alignment(
            pair_accuracy=accuracy,
            ci95=interval,
            n_pairs=pairs,
            n_inputs=len({g.example_id for g in own}),
            spearman=float(np.mean([_spearman(s, r) for s, r in zip(scores, rewards, strict=True)])),
            shorter=_accuracy([[-len(c) for c in text.candidates] for text in texts], rewards, None, threshold)[0],
            loglik=_accuracy(scorer.logliks(texts), rewards, None, threshold)[0],
        )
    return result


def _accuracy(
    scores: Sequence[Sequence[float]],
    rewards: Sequence[Sequence[float]],
    inputs: Sequence[str] | None,
    threshold: float,
) -> tuple[float, tuple[float, float], int]:
    """Pooled pair accuracy, its interval from resampling inputs (skipped without ``inputs``), number of pairs."""
    counts = np.array([count_pairs(s, r, threshold) for s, r in zip(scores, rewards, strict=True)], np.float64)
    accuracy = counts[:, 0].sum() / counts[:, 1].sum()
    if inputs is None:
        return float(accuracy), (0.0, 1.0), int(counts[:, 1].sum())
    names = sorted(set(inputs))
    per_input = np.array([counts[[i == name for i in inputs]].sum(axis=0) for name in names])
    picks = np.random.default_rng(0).integers(0, len(names), size=(RESAMPLES, len(names)))
    totals = per_input[picks].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(accuracy), (float(low), float(high)), int(counts[:, 1].sum())


def _spearman(scores: Sequence[float], rewards: Sequence[float]) -> float:
    if len(set(scores)) < 2:
        return 0.0
    return float(np.corrcoef(rankdata(scores), rankdata(rewards))[0, 1])
