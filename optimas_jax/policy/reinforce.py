"""REINFORCE without local rewards: the score of a component's answer is the global score of the run with this answer.

The paper's baseline for weights (section 5): 16 rollouts a step, learning rate 1e-5, 100 steps. One step on each
rollout; an answer's advantage is its score above the mean score of the other answers to the same input
(``learn.losses.leave_one_out_advantages``). Selected by ``config.optimize.score=global`` for components whose weights
are tuned; the paper's sizes are ``config.policy.prompts=4``, ``.samples=4``, ``.updates=100``, ``.learning_rate=1e-5``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from optimas_jax.core.running.execution import gather, global_rewards
from optimas_jax.core.system import System
from optimas_jax.core.types import Call
from optimas_jax.core.values import Configuration
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.rollout import Runs


def reinforce_config(config: PolicyConfig) -> PolicyConfig:
    """The configuration with one step of REINFORCE on each rollout. Importance ratios are then 1, and the clipped loss
    has the gradient of ``-(score - baseline) log p(answer)``."""
    loss = dataclasses.replace(config.loss, algorithm="reinforce")
    return dataclasses.replace(config, loss=loss, epochs=1, minibatch=config.prompts)


@dataclasses.dataclass(frozen=True)
class GlobalScores:
    """Global scores of a component's answers, by running the components that depend on it; ``policy.rollout.Scores``.

    Attributes:
      system: the component's system.
      configuration: values of all components.
      name: name of the component.
      seed: seed of all runs, so that they differ only by the answer.
      concurrency: runs in flight.
    """

    system: System
    configuration: Configuration
    name: str
    seed: int
    concurrency: int
    label: str = "global score"

    def __call__(self, runs: Runs, answers: Sequence[Sequence[Call]]) -> list[list[float]]:
        calls = [
            functools.partial(
                global_rewards,
                self.system,
                self.configuration,
                example,
                trace,
                {trace.indices(self.name)[0]: answer.outputs},
                [self.seed],
            )
            for (example, trace), row in zip(runs, answers, strict=True)
            for answer in row
        ]
        scores = iter(gather(calls, concurrency=self.concurrency))
        return [[next(scores)[0] for _ in row] for row in answers]
