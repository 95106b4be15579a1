"""Training calls: groups in, the name of a local reward out.

A *local reward* is only a name, the digest of the training call that made it. Its arrays are a checkpoint of that name,
so a resumed run trains nothing twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from optimas_jax.core.progress import Progress
from optimas_jax.core.system import System
from optimas_jax.core.types import Group, StopRun, digest
from optimas_jax.learn.batches import plan_batches
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import TrainState, init_state, learning_rate, make_optimizer, means
from optimas_jax.models.lora import Params
from optimas_jax.parallel.platform import return_free_memory
from optimas_jax.parallel.sharding import replicate
from optimas_jax.rewards.batches import RewardBatches
from optimas_jax.rewards.pairs import count_pairs, is_informative
from optimas_jax.rewards.text import text_group

_TRAINING_GROUP = 128  # tokens: a batch of T has at most T / 128 groups, so that its step has few shapes

History = list[dict[str, float]]


class NonFiniteLoss(StopRun):
    """Training diverged; nothing of it was kept."""


class RewardTrainer:
    """Trains local rewards of one system."""

    def __init__(self, batches: RewardBatches, checkpoints: CheckpointStore, progress: Progress):
        self._batches, self._checkpoints, self._progress = batches, checkpoints, progress
        self._config = batches.config

    def train(
        self,
        system: System,
        parent: str | None,
        train: Sequence[Group],
        stop: Sequence[Group],
        *,
        epochs: int,
        seed: int,
    ) -> tuple[str, dict[str, Any]]:
        """One training call.

        Args:
          system: renders the groups.
          parent: local reward to start from; None for fresh adapters and heads.
          train: groups to learn from.
          stop: groups whose pair accuracy decides when to stop and which epoch is kept; without any, the last one is.
          epochs: at most.
          seed: of initial weights and of the order of groups.

        Returns:
          The name of the new local reward, and metadata: ``history`` has loss and pair accuracies by epoch.

        Raises:
          NonFiniteLoss: if the loss is not finite.
          StopRun: if a step does not fit into memory, or the disk is full.
        """
        config = dataclasses.asdict(self._config)
        data = [[_group_digest(group) for group in part] for part in (train, stop)]
        name = digest("train", config, self._batches.components, parent, data, epochs, seed)
        metadata = self._checkpoints.metadata(name)
        if metadata is None:
            trainable, history = self._train(system, parent, train, stop, epochs, seed)
            metadata = {"parent": parent, "seed": seed, "groups": len(train), "history": history}
            metadata["backbone"] = self._batches.backbone
            self._checkpoints.save(name, trainable, metadata)
            return_free_memory()
        return name, metadata

    def _train(
        self,
        system: System,
        parent: str | None,
        train: Sequence[Group],
        stop: Sequence[Group],
        epochs: int,
        seed: int,
    ) -> tuple[Params, History]:
        batches, config = self._batches, self._config
        trainable = batches.initial(seed) if parent is None else self._checkpoints.load(parent, batches.shapes)
        learnable, evaluated = self._informative(system, train), self._informative(system, stop)
        if not learnable:
            return trainable, []
        batches.model.check_memory(config.lora, config.batch, "config.reward")
        rng = np.random.default_rng(seed)
        most = max(1, batches.max_tokens // _TRAINING_GROUP)
        plans = [plan_batches(learnable, batches.max_tokens, most=most, rng=rng) for _ in range(epochs)]
        batches.keep_features(learnable)
        kept, best, since_best, history = jax.device_get(trainable), -1.0, 0, []
        for state, row in self._epochs(trainable, learnable, plans):
            row["held_out_pair_accuracy"] = self._pair_accuracy(state.trainable, evaluated)
            history.append(row)
            since_best += 1
            if row["held_out_pair_accuracy"] > best or not evaluated:
                kept, best, since_best = jax.device_get(state.trainable), row["held_out_pair_accuracy"], 0
            if since_best >= config.patience:
                break
        return kept, history

    def _epochs(
        self, trainable: Params, groups: Sequence[TokenGroup], plans: Sequence[Sequence[Sequence[int]]]
    ) -> Iterator[tuple[TrainState, dict[str, float]]]:
        """The state after each epoch, and its mean metrics; ``plans`` has the batches of each epoch."""
        batches = self._batches
        state = replicate(init_state(trainable, make_optimizer()), batches.model.mesh)
        total, step = sum(map(len, plans)), 0
        with self._progress.bar("training steps", total) as advance:
            for epoch, plan in enumerate(plans):
                metrics = []
                for members in plan:
                    rate = learning_rate(step, total, self._config.learning_rate)
                    parts = batches.training_parts([groups[index] for index in members])
                    state, step_metrics = batches.functions.train_step(
                        state, batches.model.params, parts, rate, batches.lanes
                    )
                    metrics.append(step_metrics)
                    step += 1
                    advance()
                row = means(jax.device_get(metrics))
                if not np.isfinite(row["loss"]):
                    raise NonFiniteLoss(
                        f"the loss became {row['loss']} in epoch {epoch + 1}: lower config.reward.learning_rate "
                        f"({self._config.learning_rate})"
                    )
                yield state, row

    def _informative(self, system: System, groups: Sequence[Group]) -> list[TokenGroup]:
        """Groups that have a pair, in ids."""
        informative = [group for group in groups if is_informative(group.rewards, self._config.loss.threshold)]
        return [
            self._batches.token_group(
                text_group(system, group.component, group.inputs, [c.outputs for c in group.candidates]), group.rewards
            )
            for group in informative
        ]

    def _pair_accuracy(self, trainable: Params, groups: Sequence[TokenGroup]) -> float:
        """Share of the pairs in the right order; 0.5 without any pair."""
        right = total = 0.0
        scoring = self._batches.scoring(self._batches.merged(trainable), trainable["head"])
        for members, scores in self._batches.map("score", groups, scoring):
            for row, index in enumerate(members):
                hits, pairs = count_pairs(scores[row], groups[index].rewards, self._config.loss.threshold)
                right, total = right + hits, total + pairs
        return right / total if total else 0.5


def _group_digest(group: Group) -> str:
    candidates = [[candidate.outputs, candidate.rewards] for candidate in group.candidates]
    return digest(group.component, group.example_id, group.inputs, candidates)
