"""What the torch peers share: threads, sequences of a group, and the choice of a batch size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from optimas_jax.learn.token_group import TokenGroup

_LONG = 3.0  # seconds: a shorter batch is timed twice


def cores() -> int:
    """How many cores this process may use: one thread for each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sequences(group: TokenGroup) -> list[list[int]]:
    """Prefix and candidate, whole, for every candidate."""
    return [[*group.prefix_ids, *ids] for ids in group.candidate_ids]


def best_size(sizes: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The batch size with the most items a second; two in a row that are no faster than the best end the search.

    Args:
      sizes: rising.
      seconds: does one batch of a size and returns how long it took.
    """
    seconds(sizes[0])  # first calls allocate
    best, best_rate, worse = sizes[0], 0.0, 0
    for size in sizes:
        took = seconds(size)
        rate = size / (took if took > _LONG else min(took, seconds(size)))
        best, best_rate, worse = (size, rate, 0) if rate > best_rate else (best, best_rate, worse + 1)
        if worse == 2:
            break
    return best
