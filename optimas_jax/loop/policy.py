"""The weights of a component from the host's side: sampled answers in, an adapter in a folder out.

A ``PolicyEngine`` owns the device side. An update is a pure function of the policy before it, the sampled answers and
their scores, and is named by the digest of these: a resumed run finds the updates that were done. What it makes is an
``Adapter`` value: a folder in PEFT's layout (``models.peft``), named by its content, which the engine serves and any
other server can load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimas_jax.core.types import StopRun, digest
from optimas_jax.learn.checkpoint import CheckpointStore
from optimas_jax.learn.groups import BatchShape, candidate_tokens, make_batch, plan_batches, split
from optimas_jax.learn.losses import adapted_coefficient, kl_to_reference
from optimas_jax.learn.ppo import (
    PolicyBatch,
    PolicyFunctions,
    PolicyLoss,
    Statistics,
    Targets,
    by_group,
    init_policy,
    make_policy_batch,
)
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import TrainState, init_state, make_optimizer
from optimas_jax.loop.engines import Engines, LoadedModel
from optimas_jax.models.flat import bucket, place_flat
from optimas_jax.models.lora import LoraConfig, Params
from optimas_jax.models.peft import read_adapter, write_adapter
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.mesh import DATA
from optimas_jax.parallel.sharding import replicate
from optimas_jax.search.weights import Update


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """How a component's weights are tuned.

    Attributes:
      lora, loss, batch: see ``models.lora``, ``learn.ppo``, ``learn.groups``; a minibatch of more than
        ``batch.tokens`` is computed in parts whose gradients are added up.
      updates: at most, of one proposal; each on a fresh rollout.
      prompts: of a rollout.
      samples: answers of each prompt.
      epochs: over a rollout.
      minibatch: prompts of a step.
      learning_rate: of every step.
      kl_budget: most KL to the reference, in nats a token: where a rollout shows more, tuning ends.
      kl_step: most KL of one update to the policy that sampled, in nats a token: where a step shows more, the update
        ends.
      kl_horizon: answers over which the weight of KL adapts to ``kl_budget`` (``ppo`` only).
      validate_every: updates between two looks at the validation inputs.
      validation: share of the training inputs that updates never see.
    """

    lora: LoraConfig = LoraConfig(rank=8, alpha=16.0)
    loss: PolicyLoss = PolicyLoss()
    batch: BatchShape = BatchShape(tokens=2048, group_tokens=1024)
    updates: int = 16
    prompts: int = 8
    samples: int = 8
    epochs: int = 2
    minibatch: int = 8
    learning_rate: float = 5e-4
    kl_budget: float = 0.3
    kl_step: float = 0.1
    kl_horizon: float = 1000.0
    validate_every: int = 4
    validation: float = 0.3


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Sampled answers in tokens.

    Attributes:
      groups: prompts with their answers; ``rewards`` are their scores.
      logprobs: of each group, the sampler's log-probabilities of all tokens, answers end to end.
    """

    groups: tuple[TokenGroup, ...]
    logprobs: tuple[tuple[float, ...], ...]


class PolicyDiverged(StopRun):
    """An update made numbers that are none; the last good adapter is kept."""


class PolicyEngine:
    """Updates the weights of components that one local model serves."""

    def __init__(
        self, config: PolicyConfig, model: str, engines: Engines, adapters: Path, checkpoints: CheckpointStore
    ):
        """``adapters``: the folder for what updates make."""
        self.config = config
        self.adapters = adapters
        self._spec, self._engines, self._checkpoints = model, engines, checkpoints

    @cached_property
    def _model(self) -> LoadedModel:
        return self._engines.model(self._spec)

    @cached_property
    def _functions(self) -> PolicyFunctions:
        return PolicyFunctions(self._model.network, self.config.lora, self.config.loss, make_optimizer())

    @cached_property
    def _lanes(self) -> Lanes:
        return Lanes.of(self._model.network.compute, self._model.mesh)

    def start(self, adapter: str) -> str:
        """Names the state that tuning starts from: an adapter ("" for the base), with a fresh critic and optimiser."""
        return f"adapter:{adapter}"

    def update(self, parent: str, rollout: Rollout, seed: int) -> Update:
        """One update: ``epochs`` passes over a rollout of the policy that ``parent`` names.

        Raises:
          PolicyDiverged: if a loss or a gradient is not finite.
        """
        name = digest("policy", dataclasses.asdict(self.config), self._spec, parent, dataclasses.asdict(rollout), seed)
        metadata = self._checkpoints.metadata(name)
        if metadata is None:
            state, kl_weight = self._load(parent)
            state, kl_weight, metrics = self._update(state, kl_weight, rollout, seed)
            arrays = jax.device_get(_to_dict(state, kl_weight))
            adapter = self._write(arrays["trainable"]["lora"])
            metadata = {"parent": parent, "adapter": adapter, "metrics": metrics}
            self._checkpoints.save(name, arrays, metadata)
        return Update(name, metadata["adapter"], metadata["metrics"])

    def _write(self, lora_params: Params) -> str:
        try:
            return write_adapter(self.adapters, self._model.network.config, self._spec, self.config.lora, lora_params)
        except OSError as error:
            raise StopRun(
                f"cannot write an adapter to {self.adapters} ({error}): make room, then the same command"
            ) from error

    def _fresh(self) -> TrainState:
        trainable = init_policy(self._model.network.config, self.config.lora, jax.random.key(0))
        return init_state(trainable, make_optimizer())

    def _load(self, name: str) -> tuple[TrainState, float]:
        """The state of that name, and its weight of KL."""
        fresh = self._fresh()
        if not name.startswith("adapter:"):
            arrays = self._checkpoints.load(name, _to_dict(fresh, 0.0))
            return _from_dict(arrays, fresh)
        adapter = name.removeprefix("adapter:")
        if adapter:
            config, lora_params = read_adapter(self.adapters / adapter, self._model.network.config)
            if config != self.config.lora:
                raise StopRun(
                    f"adapter {adapter} has {config}, tuning is set to {self.config.lora}: set config.policy.lora alike"
                )
            fresh = init_state({**fresh.trainable, "lora": lora_params}, make_optimizer())
        return fresh, self.config.loss.kl_weight

    def _update(
        self, state: TrainState, kl_weight: float, rollout: Rollout, seed: int
    ) -> tuple[TrainState, float, dict[str, float]]:
        groups = rollout.groups
        state = replicate(state, self._model.mesh)
        statistics = self.statistics(state.trainable, groups)
        sampled = np.concatenate(rollout.logprobs)
        kl = _mean_kl(statistics)
        metrics = {
            "score": float(np.mean([score for group in groups for score in group.rewards])),
            "kl": kl,
            "entropy": float(np.mean(statistics.entropy)),
            # The engine that served the rollout and the trainer must mean the same policy.
            "served_difference": float(np.max(np.abs(statistics.logprobs - sampled))),
            "kl_weight": kl_weight,
            "skipped": float(_nothing_to_learn(groups, self.config.loss)),
        }
        if metrics["skipped"]:
            return state, kl_weight, metrics
        targets = by_group(self._targets(statistics, groups, kl_weight), [_size(group) for group in groups])
        rng, minibatches = np.random.default_rng(seed), []
        for _ in range(self.config.epochs):
            order, size = rng.permutation(len(groups)).tolist(), self.config.minibatch
            minibatches += [self._parts(groups, order[at : at + size]) for at in range(0, len(order), size)]
        batches = self._batches(groups, targets, minibatches)
        rate, kl_step = self.config.learning_rate, self.config.kl_step
        state, steps = self._functions.update(state, self._model.params, batches, rate, kl_step, self._lanes)
        if not all(np.isfinite([step["loss"], step["grad_norm"]]).all() for step in steps):
            raise PolicyDiverged(
                f"loss {steps[-1]['loss']}, gradient norm {steps[-1]['grad_norm']} in step {len(steps)} of an update: "
                f"lower config.policy.learning_rate ({rate}). The adapter before this update is kept"
            )
        metrics |= {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        metrics |= {"kl": kl, "steps": float(len(steps)), "moved": steps[-1]["moved"]}
        if self.config.loss.algorithm == "ppo":
            answers = sum(len(group.candidate_ids) for group in groups)
            target, horizon = self.config.kl_budget, self.config.kl_horizon
            kl_weight = adapted_coefficient(kl_weight, kl, target=target, answers=answers, horizon=horizon)
        return state, kl_weight, metrics

    def kl(self, state: str, rollout: Rollout) -> float:
        """KL to the reference of the policy that ``state`` names, in nats a token of its rollout."""
        trainable = replicate(self._load(state)[0].trainable, self._model.mesh)
        return _mean_kl(self.statistics(trainable, rollout.groups))

    def statistics(self, trainable: Params, groups: Sequence[TokenGroup]) -> Statistics:
        """Of all sampled tokens, answers end to end; numpy arrays [C]."""
        plan = plan_batches(groups, self._batch_tokens)
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


def _mean_kl(statistics: Statistics) -> float:
    return float(np.mean(kl_to_reference(statistics.logprobs, statistics.ref_logprobs)))


def _size(group: TokenGroup) -> int:
    """Sampled tokens."""
    return sum(map(len, group.candidate_ids))


def _nothing_to_learn(groups: Sequence[TokenGroup], loss: PolicyLoss) -> bool:
    """Whether all advantages would be zero, or for PPO noise of the critic alone."""
    if loss.algorithm == "grpo":
        return all(len(set(group.rewards)) == 1 for group in groups)
    return len({score for group in groups for score in group.rewards}) == 1


def _to_dict(state: TrainState, kl_weight: float) -> Params:
    """A state as nested dicts of float32 arrays, as checkpoints hold them."""
    get = partial(optax.tree.get, state.opt_state)
    return {
        "trainable": state.trainable,
        "mu": get("mu"),
        "nu": get("nu"),
        "counts": jnp.asarray([state.step, get("count"), kl_weight], jnp.float32),
    }


def _from_dict(arrays: Params, like: TrainState) -> tuple[TrainState, float]:
    step, count, kl_weight = (float(number) for number in arrays["counts"])
    moments = {"mu": arrays["mu"], "nu": arrays["nu"], "count": jnp.int32(count)}
    opt_state = optax.tree.set(like.opt_state, **moments)
    return TrainState(jnp.int32(step), arrays["trainable"], opt_state), kl_weight
