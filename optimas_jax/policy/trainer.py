"""Statistics and updates of a component's policy on the devices of a loaded model; reads and writes no files.

Sampled answers are groups of a prompt and its answers (``learn.token_group``); their statistics are numpy arrays over
all sampled tokens, answers concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimas_jax.core.types import StopRun
from optimas_jax.engine.pool import LoadedModel
from optimas_jax.learn.batches import candidate_tokens, deal, make_batches, plan_batches
from optimas_jax.learn.policy_batch import (
    PolicyBatch,
    Statistics,
    Targets,
    by_group,
    make_policy_batch,
    sampled_tokens,
    split_group,
)
from optimas_jax.learn.ppo import Minibatch, PolicyFunctions, init_policy
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import TrainState, init_state, make_optimizer
from optimas_jax.models.flat import bucket
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.lockstep import Shared, together
from optimas_jax.parallel.sharding import place
from optimas_jax.parallel.transfer import fetch
from optimas_jax.policy.config import PolicyConfig

Parts = list[list[int]]  # the sequences of a batch, dealt to lanes or to the shards of a mesh; indices


class PolicyTrainer:
    """Trains one policy over one base model."""

    def __init__(self, config: PolicyConfig, model: LoadedModel, shared: Shared | None = None):
        """``shared``: see ``parallel.lockstep``."""
        self.config, self.shared = config, shared
        self._model = model
        model.check_memory(config.lora, config.batch, "config.policy", over_vocabulary=True)
        self._functions = PolicyFunctions(model.for_training(config.batch), config.lora, config.loss, make_optimizer())
        self._lanes = Lanes.of(model.network.compute, model.mesh)

    def start(self, lora_params: Params | None = None) -> TrainState:
        """State with an adapter (None: a fresh one with a zero product), a fresh critic and a fresh optimiser."""
        trainable = init_policy(self._model.network.config, self.config.lora, jax.random.key(0))
        if lora_params is not None:
            trainable = {**trainable, "lora": lora_params}
        return init_state(trainable, make_optimizer())

    @cached_property
    def _state_structure(self) -> Any:
        return jax.tree.structure(jax.eval_shape(self.start))  # a quarter of a second of tracing

    def learn(
        self, state: TrainState, groups: Sequence[TokenGroup], statistics: Statistics, kl_weight: float, seed: int
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """Trains in ``epochs`` passes over scored answers, minibatch by minibatch, shuffled by ``seed``.

        Args:
          state: state before; its arrays are donated.
          statistics: statistics of the policy that sampled the answers.

        Returns:
          The state, numpy arrays, and the metrics of every step (``learn.ppo.PolicyFunctions.update``).

        Raises:
          StopRun: for a prompt and an answer that do not fit into a batch.
        """
        leaves, treedef = jax.tree.flatten(state)
        leaves, steps = self.learn_leaves(leaves, list(groups), statistics, kl_weight, seed)
        return jax.tree.unflatten(treedef, leaves), steps

    @together
    def learn_leaves(
        self, leaves: list[Any], groups: list[TokenGroup], statistics: Statistics, kl_weight: float, seed: int
    ) -> tuple[list[np.ndarray], list[dict[str, float]]]:
        """As ``learn``, with the arrays of the state in the order of ``jax.tree.leaves``."""
        state = jax.tree.unflatten(self._state_structure, leaves)
        sequences, of_group = self._sequences(groups)
        targets = by_group(
            self._targets(statistics, groups, kl_weight), [sampled_tokens(sequence) for sequence in sequences]
        )
        rng, size = np.random.default_rng(seed), self.config.minibatch
        plans: list[list[Parts]] = []
        for _ in range(self.config.epochs):
            order = rng.permutation(len(groups)).tolist()
            for start in range(0, len(order), size):
                members = [index for group in order[start : start + size] for index in of_group[group]]
                plans.append(self._plan(sequences, members))
        steps = self._minibatches(sequences, targets, plans)
        state = place(state, self._model.mesh)
        rate, kl_step = self.config.learning_rate, self.config.kl_step
        state, metrics = self._functions.update(state, self._model.params, steps, rate, kl_step, self._lanes)
        return fetch(jax.tree.leaves(state)), metrics

    @together
    def statistics(self, trainable: Params, groups: list[TokenGroup]) -> Statistics:
        """Statistics of all C sampled tokens, answers concatenated; numpy arrays [C]. Raises as ``learn``."""
        trainable = place(trainable, self._model.mesh)
        sequences, _ = self._sequences(groups)
        plan = [part for parts in self._plan(sequences, range(len(sequences))) for part in self._together(parts)]
        columns: dict[int, list[np.ndarray]] = {}

        def run(parts: Parts) -> Statistics:
            """Statistics of the tokens of some parts, which one call computes; numpy arrays."""
            chosen = [[sequences[index] for index in part] for part in parts]
            batches = make_batches(
                chosen,
                candidates=max(len(group.candidate_ids) for part in chosen for group in part),
                pad_id=self._model.tokenizer.pad_id,
                tiled=self._model.network.compute.tiled,
            )
            least = max(sum(map(sampled_tokens, part)) for part in chosen)
            room, chunk = batches[0].ends.shape, self._model.network.compute.vocab_chunk
            tokens = self._model.put([candidate_tokens(part, room, least, multiple=chunk) for part in chosen])
            flat = self._model.put([batch.flat for batch in batches])
            return fetch(self._functions.statistics(self._model.params, trainable, flat, tokens))

        def shape(parts: Parts) -> tuple[str, int, int]:
            chosen = [[sequences[index] for index in part] for part in parts]
            longest = max(sum(group.length for group in part) for part in chosen)
            return "statistics", longest, max(sum(map(sampled_tokens, part)) for part in chosen)

        for parts, statistics in zip(plan, self._lanes.map(run, plan, shape), strict=True):
            of_shards = [statistics] if statistics.values.ndim == 1 else list(zip(*statistics, strict=True))
            for members, of_shard in zip(parts, of_shards, strict=True):
                start = 0
                for index in members:
                    stop = start + sampled_tokens(sequences[index])
                    columns[index] = [np.asarray(column[start:stop]) for column in of_shard]
                    start = stop
        in_order = zip(*(columns[index] for index in range(len(sequences))), strict=True)
        return Statistics(*(np.concatenate(column) for column in in_order))

    def _targets(self, statistics: Statistics, groups: Sequence[TokenGroup], kl_weight: float) -> Targets:
        sizes = [len(ids) for group in groups for ids in group.candidate_ids]
        scores = [score for group in groups for score in group.rewards]
        owners = np.repeat(np.arange(len(groups)), [len(group.candidate_ids) for group in groups])
        answer = np.repeat(np.arange(len(sizes)), sizes)
        # Lengths are rounded up to one of few sizes, so that few programs are compiled.
        padding = (0, bucket(len(answer), 256) - len(answer))
        answer = jnp.asarray(np.pad(answer, padding, constant_values=len(sizes)))
        statistics = Statistics(*(np.pad(part, padding) for part in statistics))
        return self._functions.targets(
            statistics, answer, jnp.asarray(scores, jnp.float32), jnp.asarray(owners), jnp.float32(kl_weight)
        )

    @property
    def _batch_tokens(self) -> int:
        return self.config.batch.tokens * self._model.shards

    def _sequences(self, groups: Sequence[TokenGroup]) -> tuple[list[TokenGroup], list[range]]:
        """Groups as sequences that fit a batch, in their order, and the indices of each group's sequences."""
        sequences: list[TokenGroup] = []
        of_group = []
        for group in groups:
            start = len(sequences)
            try:
                sequences += split_group(group, self._batch_tokens)
            except ValueError as error:
                raise StopRun(
                    f"{error} (config.policy.batch.tokens = {self.config.batch.tokens}): raise it, or lower max_tokens "
                    "of the component's model"
                ) from error
            of_group.append(range(start, len(sequences)))
        return sequences, of_group

    def _plan(self, sequences: Sequence[TokenGroup], members: Sequence[int]) -> list[Parts]:
        """Batches of sequences, each dealt to the shards of the mesh or to the lanes."""
        plan, shards = [], self._model.shards
        for batch in plan_batches([sequences[index] for index in members], self._batch_tokens):
            count = min(self._lanes.count, len(batch)) if self._model.mesh.size == 1 else shards
            dealt = deal([sequences[members[number]].length for number in batch], count)
            plan.append([[members[batch[number]] for number in part] for part in dealt])
        return plan

    def _together(self, parts: Parts) -> list[Parts]:
        """The parts of a batch by call: each lane has its own call, all shards of a mesh share one."""
        return [[part] for part in parts] if self._model.mesh.size == 1 else [parts]

    def _minibatches(
        self, sequences: Sequence[TokenGroup], targets: Sequence[Targets], plans: Sequence[list[Parts]]
    ) -> list[Minibatch]:
        """The minibatches of an update on the devices; the shards of a mesh need parts of one shape."""
        one_size = self._model.network.compute.one_size
        alike = one_size or self._model.mesh.size > 1
        every = [part for plan in plans for parts in plan for part in parts]
        longest = max(sum(sequences[index].length for index in part) for part in every)
        make = partial(
            make_policy_batch,
            pad_id=self._model.tokenizer.pad_id,
            tiled=self._model.network.compute.tiled,
            multiple=self._model.network.compute.vocab_chunk,
            tokens=max(longest, self.config.batch.tokens if one_size else 0) if alike else 0,
            others=[[sequences[index] for index in part] for part in every] if alike else [],
        )

        def on_device(parts: Parts) -> PolicyBatch:
            batches = [make([sequences[index] for index in part], [targets[index] for index in part]) for part in parts]
            return self._model.put(batches)

        return [[[on_device(call) for call in self._together(parts)] for parts in plan] for plan in plans]
