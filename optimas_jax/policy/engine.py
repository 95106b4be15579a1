"""The weights of a component from the host's side: sampled answers in, an adapter in a folder out.

A ``PolicyEngine`` owns the device side. An update is a pure function of the policy before it, the sampled answers and
their scores, and is named by the digest of these: a resumed run finds the updates that were done. What it makes is an
``Adapter`` value: a folder in PEFT's layout (``checkpoints.peft``), named by its content, which the engine serves and
any other server can load.
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

from optimas_jax.checkpoints.peft import read_adapter, write_adapter
from optimas_jax.core.types import StopRun, digest
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.config import PolicyLoss
from optimas_jax.learn.losses import adapted_coefficient, kl_to_reference
from optimas_jax.learn.ppo import Statistics
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import TrainState
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.lora import Params
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.trainer import PolicyTrainer
from optimas_jax.policy.tune import Update


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

    @property
    def _backbone(self) -> BackboneConfig:
        return self._engines.model(self._spec).network.config

    @cached_property
    def _trainer(self) -> PolicyTrainer:
        return PolicyTrainer(self.config, self._engines.model(self._spec))

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
            return write_adapter(self.adapters, self._backbone, self._spec, self.config.lora, lora_params)
        except OSError as error:
            raise StopRun(
                f"cannot write an adapter to {self.adapters} ({error}): make room, then the same command"
            ) from error

    def _load(self, name: str) -> tuple[TrainState, float]:
        """The state of that name, and its weight of KL."""
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
        self, state: TrainState, kl_weight: float, rollout: Rollout, seed: int
    ) -> tuple[TrainState, float, dict[str, float]]:
        groups = rollout.groups
        statistics = self._trainer.statistics(state.trainable, groups)
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
        """KL to the reference of the policy that ``state`` names, in nats a token of its rollout."""
        return _mean_kl(self._trainer.statistics(self._load(state)[0].trainable, rollout.groups))


def _mean_kl(statistics: Statistics) -> float:
    return float(np.mean(kl_to_reference(statistics.logprobs, statistics.ref_logprobs)))


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
