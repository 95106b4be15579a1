"""Follower processes of a run: they repeat the device commands of process 0, which leads (``parallel.lockstep``).

A follower reads no data, and has no folder, tape or sandbox: it loads its part of the weights, and computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optimas_jax.core.progress import Progress
from optimas_jax.engine.pool import Engines
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.engine.shared import SharedBatch
from optimas_jax.learn.config import BatchShape, LossConfig, PolicyLoss, TokenBatch
from optimas_jax.learn.policy_batch import Statistics
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel import lockstep
from optimas_jax.parallel.link import Link
from optimas_jax.parallel.lockstep import Leader
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.trainer import PolicyTrainer
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.engine import RewardEngine, reward_engine

# Types in the messages of process 0, beside plain data.
TYPES = {
    kind.__name__: kind
    for kind in (
        *(MeshConfig, RewardConfig, PolicyConfig, LoraConfig, LossConfig, PolicyLoss, BatchShape, TokenBatch),
        *(SampleRequest, TokenGroup, Statistics),
    )
}


def lead(link: Link) -> Leader:
    """Sends the device commands of process 0 to the other processes."""
    return Leader(link, TYPES)


def follow(link: Link, progress: Progress) -> int:
    """Computes the same as process 0 until that ends; returns the exit code. ``progress`` shows which models are
    loaded.

    Raises:
      StopRun: if process 0 has ended unexpectedly, or computes something else.
    """
    return lockstep.follow(link, _Parts(progress).makers, TYPES)


class _Parts:
    """The parts of a run that compute on the devices."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._engines: Engines | None = None
        self._samplers: dict[str, Sampler] = {}

    @property
    def makers(self) -> dict[str, Callable[..., Any]]:
        """Functions that make a part, by kind."""
        return {
            "engines": self._make_engines,
            "sampler": self._make_sampler,
            "batch": self._make_batch,
            "rewards": self._make_rewards,
            "policy": self._make_policy,
        }

    @property
    def engines(self) -> Engines:
        assert self._engines is not None, "process 0 opens its engines first"
        return self._engines

    def _make_engines(self, mesh: MeshConfig) -> Engines:
        self._engines = Engines(mesh, self._progress)
        return self._engines

    def _make_sampler(self, spec: str) -> Sampler:
        self._samplers[f"sampler of {spec}"] = sampler = self.engines.sampler(spec)
        return sampler

    def _make_batch(self, sampler: str) -> SharedBatch[int]:
        return self._samplers[sampler].shared_batch()

    def _make_rewards(self, config: RewardConfig, components: tuple[str, ...]) -> RewardEngine:
        nothing: Any = None  # process 0 has the tape and the checkpoints
        return reward_engine(config, components, self.engines, nothing, nothing, self._progress)

    def _make_policy(self, config: PolicyConfig, spec: str) -> PolicyTrainer:
        return PolicyTrainer(config, self.engines.model(spec))
