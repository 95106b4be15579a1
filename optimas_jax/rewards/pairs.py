"""Ordered pairs of candidates: what a local reward learns from, and what it is measured on."""

from __future__ import annotations

from collections.abc import Sequence


def count_pairs(scores: Sequence[float], rewards: Sequence[float], threshold: float) -> tuple[float, int]:
    """Ordered pairs of one group, those whose rewards differ by more than ``threshold``.

    Args:
      scores, rewards: [M] floats.

    Returns:
      How many pairs the scores order as the rewards do (equal scores count half), and how many pairs there are.
    """
    right, pairs = 0.0, 0
    for i, better in enumerate(rewards):
        for j, worse in enumerate(rewards):
            if better - worse > threshold:
                pairs += 1
                right += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return right, pairs


def is_informative(rewards: Sequence[float], threshold: float) -> bool:
    """Whether a group has a pair: its rewards spread by more than the noise ``threshold`` of the loss."""
    return max(rewards) - min(rewards) > threshold
