"""Settings of weight tuning. Imports no array library, so that a configuration is read and checked at once."""

from __future__ import annotations

import dataclasses

from optimas_jax.core.ranges import PositiveFloat, PositiveInt, Share
from optimas_jax.learn.config import BatchShape, PolicyLoss
from optimas_jax.models.config import LoraConfig


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """How a component's weights are tuned.

    Attributes:
      model: spec of the weights that are tuned; "" for those that answer. Needed where a server answers.
      lora, loss, batch: see ``models.config``, ``learn.config``; a minibatch of more than
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

    model: str = ""
    lora: LoraConfig = LoraConfig(rank=8, alpha=16.0)
    loss: PolicyLoss = PolicyLoss()
    batch: BatchShape = BatchShape(tokens=2048, group_tokens=1024)
    updates: PositiveInt = 16
    prompts: PositiveInt = 8
    samples: PositiveInt = 8
    epochs: PositiveInt = 2
    minibatch: PositiveInt = 8
    learning_rate: PositiveFloat = 5e-4
    kl_budget: PositiveFloat = 0.3
    kl_step: PositiveFloat = 0.1
    kl_horizon: PositiveFloat = 1000.0
    validate_every: PositiveInt = 4
    validation: Share = 0.3
