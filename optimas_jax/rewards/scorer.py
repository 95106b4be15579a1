"""Local rewards of a component's outputs: many at once for the search, one choice at a time for a system that runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.system import System
from optimas_jax.rewards.trainer import RewardEngine, text_group

Fields = Mapping[str, Any]


def score_outputs(
    engine: RewardEngine, system: System, reward: str, component: str, rows: Sequence[tuple[Fields, Sequence[Fields]]]
) -> list[list[float]]:
    """Local rewards of several outputs on each of several inputs, in groups of as many as a batch allows.

    Args:
      rows: (inputs, outputs to score) of each input.
    """
    most = engine.config.batch.candidates
    parts = [
        (place, text_group(system, component, inputs, outputs[start : start + most]))
        for place, (inputs, outputs) in enumerate(rows)
        for start in range(0, len(outputs), most)
    ]
    scores: list[list[float]] = [[] for _ in rows]
    for (place, _), part in zip(parts, engine.scores(reward, [group for _, group in parts]), strict=True):
        scores[place] += part
    return scores


class RewardScorer:
    """``core.selection.Scorer`` with the local rewards of a run.

    Choices are scored one after the other in a thread of their own, so that requests in flight are not held up, and
    every choice in a batch of its own, so that scores do not depend on what else was waiting.
    """

    def __init__(self, engine: RewardEngine, system: System):
        self._engine, self._system = engine, system
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="local-rewards")

    async def scores(self, component: str, inputs: Fields, outputs: Sequence[Fields], reward: str) -> Sequence[float]:
        """Raises ``StopRun`` if the run has no such local reward."""

        def score() -> list[float]:
            self._engine.check(reward)
            [row] = score_outputs(self._engine, self._system, reward, component, [(inputs, outputs)])
            return row

        return await asyncio.get_running_loop().run_in_executor(self._thread, score)
