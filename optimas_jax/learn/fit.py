"""Heads in closed form: the most probable head of a component, given its labels and a prior (Eq. 4 with a penalty).

With few labels, a head trained by gradient steps orders outputs worse than their likelihood, which needs no labels.
So likelihood is the prior, and labels correct it:

    r(x, y) = w log p(y | x) + h . phi(x, y)        w near its prior mean, h near 0

Both are convex in Eq. 4, have one solution, and need no learning rate, epochs or early stopping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.floating[Any]]

# In units in which the difference of a pair has variance 1, in log-likelihood (w) and in each dimension of phi (h).
_PRIOR_MEAN = 0.7
_PRECISION_OF_W = 2.0
_PRECISION_OF_H = 100.0
_FOLDS = 5
_USUAL_SPREAD = 20.0  # nats between the log-likelihoods of two outputs, if there are no pairs to measure it


def fit_head(
    hidden: Sequence[Floats], logliks: Sequence[Floats], rewards: Sequence[Sequence[float]], threshold: float
) -> tuple[Floats, float]:
    """The most probable head of one component.

    Args:
      hidden: [M, D] hidden state at the last token of each candidate, by group.
      logliks: [M] log-likelihood of each candidate in nats, by group.
      rewards: [M] mean global reward of each candidate, by group.
      threshold: reward differences up to this are ties.

    Returns:
      h, float32[D], and w. Without any pair h is empty or 0, and outputs are ordered by likelihood alone.
    """
    size = hidden[0].shape[-1] if hidden else 0
    rows, weights = [], []
    for states, likely, row in zip(hidden, logliks, rewards, strict=True):
        better = np.subtract.outer(row, row) > threshold
        first, second = np.nonzero(better)
        values = np.column_stack([likely, states]).astype(np.float64)
        rows.append(values[first] - values[second])
        weights.append(np.full(len(first), 1.0 / max(1, len(first))))  # each group counts once
    pairs = np.concatenate(rows) if rows else np.zeros((0, 1 + size))
    if not len(pairs):
        return np.zeros(size, np.float32), _PRIOR_MEAN / _USUAL_SPREAD
    spread, unit = _rms(pairs[:, 0]) or 1.0, _rms(pairs[:, 1:]) or 1.0
    scale = np.array([spread, *[unit] * size])
    mean = np.array([_PRIOR_MEAN, *[0.0] * size])
    precision = np.array([_PRECISION_OF_W, *[_PRECISION_OF_H] * size])
    solution = _most_probable(pairs / scale, np.concatenate(weights), mean, precision) / scale
    return solution[1:].astype(np.float32), float(solution[0])


def held_out_scores(
    hidden: Sequence[Floats],
    logliks: Sequence[Floats],
    rewards: Sequence[Sequence[float]],
    inputs: Sequence[str],
    threshold: float,
) -> list[Floats]:
    """[M] scores of each group's candidates under heads fitted without its input (cross-fitting, in five folds).

    Args:
      hidden, logliks, rewards, threshold: as in ``fit_head``.
      inputs: the input of each group; groups of one input are left out together.
    """
    order = {name: index % _FOLDS for index, name in enumerate(dict.fromkeys(inputs))}
    folds = [order[name] for name in inputs]
    scores: list[Floats] = [np.zeros(0)] * len(folds)
    for fold in range(_FOLDS):
        training_rows = [row for row, row_fold in enumerate(folds) if row_fold != fold]
        head, weight = fit_head(
            [hidden[row] for row in training_rows],
            [logliks[row] for row in training_rows],
            [rewards[row] for row in training_rows],
            threshold,
        )
        for row, row_fold in enumerate(folds):
            if row_fold == fold:
                scores[row] = score_outputs(head, weight, hidden[row], logliks[row])
    return scores


def score_outputs(head: Floats, weight: float, hidden: Floats, logliks: Floats) -> Floats:
    """r(x, y), float[M], of one group's candidates."""
    return (hidden @ head if len(head) else 0.0) + weight * logliks


def _most_probable(pairs: Floats, weights: Floats, mean: Floats, precision: Floats) -> Floats:
    """Minimises ``sum_p weights_p softplus(-pairs_p . x) + sum (x - mean)^2 precision / 2``, which is convex."""

    def loss(x: Floats) -> tuple[float, Floats]:
        margins = pairs @ x
        away = precision * (x - mean)
        value = weights @ np.logaddexp(0.0, -margins) + 0.5 * (x - mean) @ away
        return float(value), away - pairs.T @ (weights / (1.0 + np.exp(margins)))

    return minimize(loss, mean, jac=True, method="L-BFGS-B").x


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
