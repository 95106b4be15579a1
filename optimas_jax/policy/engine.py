"""Updates of a component's weights: from sampled answers to an adapter in a folder.

An update is a pure function of the policy before it, the sampled answers and their scores. Its name is the digest of
these: a resumed run repeats no update. Its result is an ``Adapter`` value: a folder in PEFT's layout
(``checkpoints.peft``), named by its content, which our engine and other servers can load.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from typing_extensions import TypedDict

from optimas_jax.checkpoints.peft import read_adapter, write_adapter
from optimas_jax.core.types import StopRun, digest
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.losses import adapted_coefficient, kl_to_reference
from optimas_jax.learn.policy_batch import Statistics
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import TrainState
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lockstep import Shared, open_shared
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.served import check_served, served_limit
from optimas_jax.policy.trainer import PolicyTrainer


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Sampled answers as tokens.

    Attributes:
      groups: prompts with their answers; ``rewards`` are their scores.
      logprobs: by group, the sampler's log-probabilities of all tokens, answers concatenated.
    """

    groups: tuple[TokenGroup, ...]
    logprobs: tuple[tuple[float, ...], ...]

    def check(self) -> None:
        """Raises ``StopRun`` for a score that is not finite."""
        for number, group in enumerate(self.groups):
            for index, score in enumerate(group.rewards):
                if not math.isfinite(score):
                    raise StopRun(
                        f"the score of answer {index} to prompt {number} of a rollout is {score}, expected a finite "
                        "number: see the metric or the local reward. The adapter before it is kept"
                    )


class _Updated(TypedDict):
    """Metadata of an update's checkpoint."""

    adapter: str
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Update:
    """One update of a policy.

    Attributes:
      state: name of the policy after the update, for the next update.
      adapter: digest of its adapter.
      metrics: plain numbers. ``kl``: KL(rollout policy, reference) in nats per token. ``skipped``: 1 if all answers of
        each prompt have one score, so that the update changes nothing.
    """

    state: str
    adapter: str
    metrics: dict[str, float]


class PolicyDiverged(StopRun):
    """A loss or gradient of an update is not finite; the last good adapter is kept."""


class PolicyEngine:
    """Updates the weights of components on one local model."""

    def __init__(
        self, config: PolicyConfig, model: str, engines: Engines, adapters: Path, checkpoints: CheckpointStore
    ):
        """``adapters``: the folder for the adapters of updates."""
        self.config = config
        self.adapters = adapters
        self._spec, self._engines, self._checkpoints = model, engines, checkpoints
        self._measured: tuple[Any, Statistics] | None = None  # key and statistics of the last policy and answers

    @property
    def _backbone(self) -> BackboneConfig:
        return self._engines.model(self._spec).network.config

    @property
    def _dtype(self) -> Any:
        return self._engines.model(self._spec).network.compute.dtype

    @cached_property
    def _trainer(self) -> PolicyTrainer:
        def make(shared: Shared | None) -> PolicyTrainer:
            return PolicyTrainer(self.config, self._engines.model(self._spec), shared)

        return open_shared(self._engines.leader, "policy", "policy", (self.config, self._spec), make)

    def start(self, adapter: str) -> str:
        """Name of the initial state of tuning: an adapter ("" for the base) with a fresh critic and optimiser."""
        return f"adapter:{adapter}"

    def update(self, parent: str, rollout: Rollout, seed: int) -> Update:
        """Makes one update: ``epochs`` passes over a rollout of the policy named ``parent``.

        Raises:
          PolicyDiverged: if a loss or a gradient is not finite.
          StopRun: for a score that is not finite, answers of the base model instead of the tuned policy, and answers
            that do not fit into a batch.
        """
        rollout.check()
        name = digest("policy", dataclasses.asdict(self.config), self._spec, parent, dataclasses.asdict(rollout), seed)
        metadata = self._checkpoints.metadata(name, _Updated)
        if metadata is None:
            state, kl_weight = self._load(parent)
            measured = self._statistics(parent, state, rollout)
            state, kl_weight, metrics = self._update(state, kl_weight, rollout, measured, seed)
            arrays = jax.device_get(_to_dict(state, kl_weight))
            adapter = self._write(arrays["trainable"]["lora"])
            metadata = {"parent": parent, "adapter": adapter, "metrics": metrics}
            self._checkpoints.save(name, arrays, metadata)
        return Update(name, metadata["adapter"], metadata["metrics"])

    def _write(self, lora_params: Params) -> str:
        try:
            return write_adapter(self.adapters, self._backbone, self._spec, self.config.lora, lora_params)
        except OSError as error:
            raise StopRun(
                f"cannot write an adapter to {self.adapters} ({error}): make room, then the same command"
            ) from error

    def _load(self, name: str) -> tuple[TrainState, float]:
        """The state called ``name``, and its weight of KL."""
        if not name.startswith("adapter:"):
            fresh = self._trainer.start()
            return _from_dict(self._checkpoints.load(name, _to_dict(fresh, 0.0)), fresh)
        adapter, lora_params = name.removeprefix("adapter:"), None
        if adapter:
            config, lora_params = read_adapter(self.adapters / adapter, self._backbone)
            if config != self.config.lora:
                raise StopRun(
                    f"adapter {adapter} has {config}, tuning is set to {self.config.lora}: set config.policy.lora alike"
                )
        return self._trainer.start(lora_params), self.config.loss.kl_weight

    def _update(
        self, state: TrainState, kl_weight: float, rollout: Rollout, statistics: Statistics, seed: int
    ) -> tuple[TrainState, float, dict[str, float]]:
        groups = rollout.groups
        served = np.concatenate(rollout.logprobs)
        kl = _mean_kl(statistics)
        metrics = {
            "score": float(np.mean([score for group in groups for score in group.rewards])),
            "kl": kl,
            "entropy": float(np.mean(statistics.entropy)),
            "served_difference": float(np.max(np.abs(statistics.logprobs - served))),
            "served_limit": served_limit(self._dtype),
            "kl_weight": kl_weight,
            "skipped": float(_nothing_to_learn(groups)),
        }
        if metrics["skipped"]:
            return state, kl_weight, metrics
        state, steps = self._trainer.learn(state, groups, statistics, kl_weight, seed)
        if not all(np.isfinite([step["loss"], step["grad_norm"]]).all() for step in steps):
            raise PolicyDiverged(
                f"loss {steps[-1]['loss']}, gradient norm {steps[-1]['grad_norm']} in step {len(steps)} of an update: "
                f"lower config.policy.learning_rate ({self.config.learning_rate}). The adapter before it is kept"
            )
        metrics |= {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        metrics |= {"kl": kl, "steps": float(len(steps)), "moved": steps[-1]["moved"]}
        if self.config.loss.algorithm == "ppo":
            answers = sum(len(group.candidate_ids) for group in groups)
            target, horizon = self.config.kl_budget, self.config.kl_horizon
            kl_weight = adapted_coefficient(kl_weight, kl, target=target, answers=answers, horizon=horizon)
        return state, kl_weight, metrics

    def kl(self, state: str, rollout: Rollout) -> float:
        """KL(policy, reference) of the policy named ``state``, in nats per token of its rollout; reads no scores.

        Raises:
          StopRun: for answers of the base model instead of the tuned policy, and answers that do not fit into a batch.
        """
        return _mean_kl(self._statistics(state, self._load(state)[0], rollout))

    def _statistics(self, name: str, state: TrainState, rollout: Rollout) -> Statistics:
        """Statistics of a rollout under the policy called ``name``. The last ones are kept, because an update needs the
        same statistics as the measurement of its KL."""
        key = name, [group.text for group in rollout.groups]
        if self._measured is None or self._measured[0] != key:
            self._measured = key, self._trainer.statistics(state.trainable, list(rollout.groups))
        check_served(np.concatenate(rollout.logprobs), self._measured[1], self._dtype)
        return self._measured[1]


def _mean_kl(statistics: Statistics) -> float:
    return float(np.mean(kl_to_reference(statistics.logprobs, statistics.ref_logprobs)))


def _nothing_to_learn(groups: Sequence[TokenGroup]) -> bool:
    """Whether the answers of each prompt have equal scores, so that all advantages are zero or noise of the critic."""
    return all(len(set(group.rewards)) == 1 for group in groups)


def _to_dict(state: TrainState, kl_weight: float) -> Params:
    """A state as nested dicts of float32 arrays, the format of checkpoints."""
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
