"""Local rewards of one system: a trainer and a scorer over one backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from optimas_jax.core.progress import Progress
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.parallel.lockstep import Shared, open_shared
from optimas_jax.rewards.batches import RewardBatches
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.scorer import RewardScorer
from optimas_jax.rewards.trainer import RewardTrainer


@dataclasses.dataclass(frozen=True)
class RewardEngine:
    """Trainer and scorer of local rewards."""

    config: RewardConfig
    trainer: RewardTrainer
    scorer: RewardScorer


def reward_engine(
    config: RewardConfig,
    components: Sequence[str],
    engines: Engines,
    tape: Tape,
    checkpoints: CheckpointStore,
    progress: Progress,
) -> RewardEngine:
    """An engine for the tunable ``components``, whose order numbers the heads. Loads no model."""

    def make(shared: Shared | None) -> RewardEngine:
        batches = RewardBatches(config, components, engines, progress)
        return RewardEngine(
            config,
            RewardTrainer(batches, checkpoints, progress, shared and shared.part("trainer")),
            RewardScorer(batches, checkpoints, tape, progress, shared and shared.part("scorer")),
        )

    return open_shared(engines.leader, "rewards", "rewards", (config, tuple(components)), make)
