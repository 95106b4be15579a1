"""Merging of groups, and their ordered pairs, on which local rewards are trained and measured.

Imports neither arrays nor data sets, so that a configuration is read and checked at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from optimas_jax.core.types import Candidate, Group, digest


def count_pairs(scores: Sequence[float], rewards: Sequence[float], threshold: float) -> tuple[float, int]:
    """Counts the pairs of one group whose rewards differ by more than ``threshold``.

    Args:
      scores, rewards: [M] floats.

    Returns:
      Number of pairs that the scores order as the rewards do (equal scores count half), and number of pairs.
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


def count_informative(groups: Iterable[Group], component: str, threshold: float) -> int:
    """Number of groups of a component that have a pair."""
    return sum(is_informative(group.rewards, threshold) for group in groups if group.component == component)


def merge_groups(groups: Iterable[Group]) -> list[Group]:
    """Merges groups of the same call and configuration into one, in the order of their first ones; of equal candidates
    the first one stays."""
    merged: dict[tuple[str, str, int, str, str], dict[str, Candidate]] = {}
    first: dict[tuple[str, str, int, str, str], Group] = {}
    for group in groups:
        key = (group.component, group.example_id, group.occurrence, digest(group.inputs), group.configuration)
        first.setdefault(key, group)
        for candidate in group.candidates:
            merged.setdefault(key, {}).setdefault(digest(candidate.outputs), candidate)
    return [dataclasses.replace(group, candidates=tuple(merged[key].values())) for key, group in first.items()]
