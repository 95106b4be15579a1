"""Settings of weight tuning. Imports no array library, so that a configuration is read and checked at once."""

from __future__ import annotations

import dataclasses

from optimas_jax.core.schema import PositiveFloat, PositiveInt, Share
from optimas_jax.learn.config import PolicyLoss, TokenBatch
from optimas_jax.models.config import LoraConfig


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Settings of tuning a component's weights.

    Attributes:
      model: spec of the model whose weights are tuned; "" for the component's model. Required if a server answers for
        the component's model.
      lora, loss: see ``models.config``, ``learn.config``.
      batch: ``tokens`` must be enough for a prompt and one answer. A minibatch of more tokens is computed in several
        batches whose gradients are added up. A prompt with more answers than fit into a batch is repeated.
      updates: largest number of updates per proposal, each on a fresh rollout.
      prompts: number of prompts in a rollout.
      samples: number of answers to each prompt, at least 2: an answer is scored against the other answers.
      epochs: number of passes over a rollout.
      minibatch: number of prompts in a step.
      learning_rate: learning rate of all steps.
      kl_budget: tuning ends when KL(policy, reference) on a rollout exceeds this, in nats per token.
      kl_step: an update ends when KL(old policy, policy) in a step exceeds this, in nats per token.
      kl_horizon: number of answers over which the weight of KL adapts to ``kl_budget`` (``ppo`` only).
      validate_every: number of updates between validations.
      validation: share of the training inputs that is held out for validation.
    """

    model: str = ""
    lora: LoraConfig = LoraConfig(rank=8, alpha=16.0)
    loss: PolicyLoss = PolicyLoss()
    batch: TokenBatch = TokenBatch(tokens=2048)
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

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(
                f"samples is {self.samples}: an answer is scored against the other answers of its prompt, and without "
                "any there is nothing to learn: set samples to 2 or more"
            )
