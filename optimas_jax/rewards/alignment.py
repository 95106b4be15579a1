"""Alignment of local rewards with the global reward, on inputs that they were not trained on, beside controls that
learn nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from optimas_jax.core.stats import RESAMPLES, two_level_interval
from optimas_jax.core.system import System
from optimas_jax.core.types import Group, digest
from optimas_jax.rewards.pairs import count_pairs, is_informative, merge_groups
from optimas_jax.rewards.scorer import RewardScorer, ScoredGroup, score_groups
from optimas_jax.rewards.split import Shares, part_of
from optimas_jax.rewards.text import text_group

_FEWEST = 5  # least number of inputs for an interval

Rows = Sequence[Sequence[float]]  # by group and candidate


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Agreement of one local reward with the global reward on report groups.

    Attributes:
      pair_accuracy: share of pairs with different global rewards that it orders as these do; chance is 0.5.
      ci95: bootstrap interval over inputs, since pairs of one input are not independent; None below five inputs.
      n_pairs, n_inputs: numbers of pairs and inputs.
      spearman: mean rank correlation within groups.
      shorter, loglik, majority: pair accuracy of three controls, which prefer the shorter output; the likelier one
        under the base model; the one that agrees most with the others of its group (``core.selection.agreement``).
      ceiling: pair accuracy of a second, independent set of Monte Carlo rewards on the pairs that it covers, an
        estimate of the accuracy of a perfect predictor; None without a second set.
      by_input: counts by id of the example: ``pairs``, and how many of them each of ``local``, ``shorter``, ``loglik``
        and ``majority`` orders as the rewards do; ``ceiling_pairs``, the pairs that the second set covers, and
        ``ceiling``, how many of these it orders so.
    """

    pair_accuracy: float
    ci95: tuple[float, float] | None
    n_pairs: int
    n_inputs: int
    spearman: float
    shorter: float
    loglik: float
    majority: float
    ceiling: float | None = None
    by_input: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All fields; the controls together under ``controls``."""
        data = dataclasses.asdict(self)
        controls = {name: data.pop(name) for name in ("shorter", "loglik", "majority")}
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
    """Measures the alignment of the local reward named ``reward``, by component with informative groups.

    Args:
      scorer: scores candidates.
      system: renders candidates.
      groups: result of ``report_groups``.
      second: the same candidates with independent Monte Carlo rewards, for the noise ceiling.
    """
    threshold = scorer.config.loss.threshold
    result = {}
    for name in system.tunable:
        informative = [g for g in groups if g.component == name and is_informative(g.rewards, threshold)]
        if not informative:
            continue
        texts = [text_group(system, name, g.inputs, [c.outputs for c in g.candidates]) for g in informative]
        shorter = [[-len(c) for c in t.candidates] for t in texts]
        scored = score_groups(scorer, system, reward, informative)
        inputs, rewards = [group.example_id for group in scored], [group.rewards for group in scored]
        scores, logliks = [group.scores for group in scored], [group.logliks for group in scored]
        majority = [group.agreement for group in scored]
        accuracy, pairs = pair_accuracy(scores, rewards, threshold)
        covered = _covered(informative, second)
        result[name] = Alignment(
            pair_accuracy=accuracy,
            ci95=pair_accuracy_interval(scores, rewards, inputs, threshold),
            n_pairs=pairs,
            n_inputs=len(set(inputs)),
            spearman=float(np.mean([_spearman(s, r) for s, r in zip(scores, rewards, strict=True)])),
            shorter=pair_accuracy(shorter, rewards, threshold)[0],
            loglik=pair_accuracy(logliks, rewards, threshold)[0],
            majority=pair_accuracy(majority, rewards, threshold)[0],
            ceiling=noise_ceiling(informative, second, threshold),
            by_input=_by_input(
                inputs,
                {
                    "local": _counts(scores, rewards, threshold),
                    "shorter": _counts(shorter, rewards, threshold),
                    "loglik": _counts(logliks, rewards, threshold),
                    "majority": _counts(majority, rewards, threshold),
                    "ceiling": _counts(*covered, threshold),
                },
            ),
        )
    return result


def why_not_to_choose(groups: Sequence[ScoredGroup], threshold: float) -> str:
    """Why a local reward should not choose among outputs, from groups that it was not trained on: its pair accuracy is
    not shown to be above chance, or not higher than with likelihood and majority. "" if it may choose."""
    groups = [group for group in groups if is_informative(group.rewards, threshold)]
    rewards, inputs = [group.rewards for group in groups], [group.example_id for group in groups]
    count = len(set(inputs))
    if count < _FEWEST:
        return f"{count} inputs have different rewards, and {_FEWEST} are needed"
    scores = [group.scores for group in groups]
    accuracy, _ = pair_accuracy(scores, rewards, threshold)
    interval = pair_accuracy_interval(scores, rewards, inputs, threshold)
    likelier, _ = pair_accuracy([group.logliks for group in groups], rewards, threshold)
    majority, _ = pair_accuracy([group.agreement for group in groups], rewards, threshold)
    if interval is not None and interval[0] > 0.5 and accuracy > max(likelier, majority):
        return ""
    low, high = interval or (0.0, 1.0)
    return (
        f"pair accuracy {accuracy:.2f} [{low:.2f}, {high:.2f}] on {count} inputs, likelihood {likelier:.2f}, majority "
        f"{majority:.2f}"
    )


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
    per_input = np.array([counts[[name == input_name for input_name in inputs]].sum(axis=0) for name in names])
    picks = np.random.default_rng(0).integers(0, len(names), size=(RESAMPLES, len(names)))
    totals = per_input[picks].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    return float(low), float(high)


def noise_ceiling(groups: Sequence[Group], second: Sequence[Group], threshold: float) -> float | None:
    """Pair accuracy of the rewards of ``second`` on the pairs of ``groups``, matched by component, input and outputs;
    None where they share no pair."""
    accuracy, pairs = pair_accuracy(*_covered(groups, second), threshold)
    return accuracy if pairs else None


def _covered(groups: Sequence[Group], second: Sequence[Group]) -> tuple[Rows, Rows]:
    """Rewards of ``second`` and of ``groups`` for the candidates that both have."""
    again = _rewards_by_candidate(second)
    scores, rewards = [], []
    for group in groups:
        keys = [_key(group, index) for index in range(len(group.candidates))]
        shared = [index for index, key in enumerate(keys) if key in again]
        scores.append([again[keys[index]] for index in shared])
        rewards.append([group.rewards[index] for index in shared])
    return scores, rewards


def _by_input(inputs: Sequence[str], counts: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """``Alignment.by_input``. ``counts``: [groups, 2] right and pairs, by predictor; ``inputs``: input of each
    group."""
    table: dict[str, dict[str, float]] = {}
    for index, name in enumerate(inputs):
        row = table.setdefault(name, dict.fromkeys(("pairs", "ceiling_pairs", *counts), 0.0))
        row["pairs"] += counts["local"][index, 1]
        row["ceiling_pairs"] += counts["ceiling"][index, 1]
        for predictor, pairs in counts.items():
            row[predictor] += pairs[index, 0]
    return table


def pooled_pair_accuracy(
    runs: Sequence[Mapping[str, Mapping[str, float]]], predictor: str
) -> tuple[float, tuple[float, float]]:
    """Pair accuracy pooled over the runs of several seeds, and its 95 % interval over seeds and inputs
    (``two_level_interval`` of the linearised ratio: Woodruff, 1971).

    Args:
      runs: ``Alignment.by_input`` of one component, from at least two runs on the same data.
      predictor: ``local``, ``shorter``, ``loglik``, ``majority`` or ``ceiling``.

    Raises:
      ValueError: fewer than two runs, or no pairs.
    """
    names = sorted({name for run in runs for name in run})
    of = "ceiling_pairs" if predictor == "ceiling" else "pairs"
    right, pairs = (
        np.array([[run.get(name, {}).get(field, 0.0) for name in names] for run in runs]) for field in (predictor, of)
    )
    if any(predictor not in row for run in runs for row in run.values()):
        raise ValueError(f"a run was measured without {predictor}: --stage=align again")
    if not pairs.sum():
        raise ValueError("no pairs with different rewards in these runs")
    accuracy = float(right.sum() / pairs.sum())
    _, (low, high) = two_level_interval((right - accuracy * pairs) / pairs.mean())
    return accuracy, (accuracy + low, accuracy + high)


def _rewards_by_candidate(groups: Sequence[Group]) -> Mapping[str, float]:
    return {_key(g, index): reward for g in groups for index, reward in enumerate(g.rewards)}


def _key(group: Group, index: int) -> str:
    outputs = group.candidates[index].outputs
    return digest(group.component, group.example_id, group.occurrence, group.inputs, outputs)


def _counts(scores: Rows, rewards: Rows, threshold: float) -> np.ndarray:
    """[groups, 2] float64: pairs in the right order, pairs."""
    counts = [count_pairs(s, r, threshold) for s, r in zip(scores, rewards, strict=True)]
    return np.array(counts, np.float64).reshape(-1, 2)


def _spearman(scores: Sequence[float], rewards: Sequence[float]) -> float:
    if len(set(scores)) < 2:
        return 0.0
    return float(np.corrcoef(rankdata(scores), rankdata(rewards))[0, 1])
