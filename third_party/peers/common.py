"""What the torch peers share: threads, adapters, sequences of a group, the choice of a batch size, phases."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optimas_jax.learn.token_group import TokenGroup

T = TypeVar("T")
_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_LONG = 3.0  # seconds: a shorter batch is timed twice


def cores() -> int:
    """How many cores this process may use: one thread for each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lora(rank: int, task: str, **settings: Any) -> Any:
    """PEFT's LoRA on all seven matrices of all layers, as ours in ``optimas_jax.bench.ours``."""
    import peft  # llama.cpp's peer does without

    return peft.LoraConfig(task_type=task, r=rank, lora_alpha=16, lora_dropout=0.0, target_modules=_MODULES, **settings)


class Phases:
    """Seconds spent in phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, phase: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls a function that belongs to ``phase``."""
        start = time.perf_counter()
        made = function(*args, **kwargs)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return made

    def with_rest(self, phase: str, whole: float) -> dict[str, float]:
        """All of them, and what is left of ``whole``."""
        return {**self.seconds, phase: whole - sum(self.seconds.values())}


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
