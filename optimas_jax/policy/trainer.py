"""Statistics and updates of a component's policy on the devices of a loaded model; no names, no files.

Sampled answers come as groups of a prompt and its answers (``learn.token_group``), their statistics go back as numpy
arrays over all sampled tokens, answers end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from optimas_jax.engine.pool import LoadedModel
from optimas_jax.learn.batches import candidate_tokens, make_batch, plan_batches, split
from optimas_jax.learn.ppo import (
    PolicyBatch,
    PolicyFunctions,
    Statistics,
    Targets,
    by_group,
    init_policy,
    make_policy_batch,
)
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import TrainState, init_state, make_optimizer
from optimas_jax.models.flat import bucket, place_flat
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.mesh import DATA
from optimas_jax.parallel.sharding import replicate
from optimas_jax.policy.config import PolicyConfig


class PolicyTrainer:
    """Trains one policy over one base model."""

    def __init__(self, config: PolicyConfig, model: LoadedModel):
        self.config = config
        self._model = model
        model.check_memory(config.lora, config.batch, "config.policy")
        self._functions = PolicyFunctions(model.for_training(config.batch), config.lora, config.loss, make_optimizer())
        self._lanes = Lanes.of(model.network.compute, model.mesh)

    def start(self, lora_params: Params | None = None) -> TrainState:
        """An adapter (None: one that does nothing yet), with a fresh critic and a fresh optimiser."""
        trainable = init_policy(self._model.network.config, self.config.lora, jax.random.key(0))
        if lora_params is not None:
            trainable = {**trainable, "lora": lora_params}
        return init_state(trainable, make_optimizer())

    def learn(
        self, state: TrainState, groups: Sequence[TokenGroup], statistics: Statistics, kl_weight: float, seed: int
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """``epochs`` passes over scored answers, minibatch by minibatch, shuffled by ``seed``.

        Args:
          state: donated.
          statistics: of the policy that sampled the answers.

        Returns:
          The state and the metrics of every step that was taken (``learn.ppo.PolicyFunctions.update``).
        """
        targets = by_group(self._targets(statistics, groups, kl_weight), [_size(group) for group in groups])
        rng, minibatches = np.random.default_rng(seed), []
        for _ in range(self.config.epochs):
            order, size = rng.permutation(len(groups)).tolist(), self.config.minibatch
            minibatches += [self._parts(groups, order[at : at + size]) for at in range(0, len(order), size)]
        batches = self._batches(groups, targets, minibatches)
        rate, kl_step = self.config.learning_rate, self.config.kl_step
        state = replicate(state, self._model.mesh)
        return self._functions.update(state, self._model.params, batches, rate, kl_step, self._lanes)

    def statistics(self, trainable: Params, groups: Sequence[TokenGroup]) -> Statistics:
        """Of all sampled tokens, answers end to end; numpy arrays [C]."""
        trainable = replicate(trainable, self._model.mesh)
        plan = self._parts(groups, range(len(groups)))
        made: dict[int, list[np.ndarray]] = {}

        def run(members: list[int]) -> Statistics:
            chosen = [groups[index] for index in members]
            batch = make_batch(
                chosen,
                candidates=max(len(group.candidate_ids) for group in chosen),
                pad_id=self._model.tokenizer.pad_id,
                tiled=self._model.network.compute.tiled,
            )
            tokens = replicate(candidate_tokens(chosen, batch), self._model.mesh)
            flat = place_flat(batch.flat, self._model.mesh)
            return jax.device_get(self._functions.statistics(self._model.params, trainable, flat, tokens))

        def shape(members: list[int]) -> tuple[str, int, int]:
            return "statistics", sum(groups[index].length for index in members), sum(_size(groups[i]) for i in members)

        for members, part in zip(plan, self._lanes.map(run, plan, shape), strict=True):
            at = 0
            for index in members:
                made[index] = [np.asarray(column[at : at + _size(groups[index])]) for column in part]
                at += _size(groups[index])
        columns = zip(*(made[index] for index in range(len(groups))), strict=True)
        return Statistics(*(np.concatenate(column) for column in columns))

    def _targets(self, statistics: Statistics, groups: Sequence[TokenGroup], kl_weight: float) -> Targets:
        answers = [
            (len(ids), score, g)
            for g, group in enumerate(groups)
            for ids, score in zip(group.candidate_ids, group.rewards, strict=True)
        ]
        sizes, scores, owners = zip(*answers, strict=True)
        answer = np.repeat(np.arange(len(sizes)), sizes)
        # Rollouts have as many tokens as they have: few sizes, so that few programs are compiled.
        padding = (0, bucket(len(answer), 256) - len(answer))
        answer = jnp.asarray(np.pad(answer, padding, constant_values=len(sizes)))
        statistics = Statistics(*(np.pad(part, padding) for part in statistics))
        return self._functions.targets(
            statistics, answer, jnp.asarray(scores, jnp.float32), jnp.asarray(owners), jnp.float32(kl_weight)
        )

    @property
    def _batch_tokens(self) -> int:
        return self.config.batch.tokens * self._model.mesh.shape[DATA]

    def _parts(self, groups: Sequence[TokenGroup], members: Sequence[int]) -> list[list[int]]:
        """A minibatch in parts that fit a batch, as many as there are lanes or more; indices of groups."""
        place = {id(groups[index]): index for index in members}
        chosen = [groups[index] for index in members]
        return [
            [place[id(group)] for group in part]
            for batch in plan_batches(chosen, self._batch_tokens)
            for part in split([chosen[index] for index in batch], self._lanes.count)
        ]

    def _batches(
        self, groups: Sequence[TokenGroup], targets: Sequence[Targets], minibatches: Sequence[Sequence[list[int]]]
    ) -> list[list[PolicyBatch]]:
        """The parts of all minibatches on the devices. An update that is one program needs parts of one shape."""
        layerwise = self._model.network.compute.layerwise
        others = [] if layerwise else [[groups[i] for i in part] for parts in minibatches for part in parts]
        make = partial(
            make_policy_batch,
            pad_id=self._model.tokenizer.pad_id,
            tiled=self._model.network.compute.tiled,
            tokens=0 if layerwise else self._batch_tokens,
            others=others,
        )

        def placed(part: list[int]) -> PolicyBatch:
            batch = make([groups[index] for index in part], [targets[index] for index in part])
            rest = replicate(batch._replace(flat=None), self._model.mesh)
            return rest._replace(flat=place_flat(batch.flat, self._model.mesh))

        return [[placed(part) for part in parts] for parts in minibatches]


def _size(group: TokenGroup) -> int:
    """Sampled tokens."""
    return sum(map(len, group.candidate_ids))
