"""Settings of local rewards. Imports no array library, so that a configuration is read and checked at once."""

from __future__ import annotations

import dataclasses

from optimas_jax.core.ranges import NonNegativeInt, PositiveFloat, PositiveInt
from optimas_jax.learn.config import BatchShape, LossConfig
from optimas_jax.models.config import LoraConfig


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The reward model and its training.

    Attributes:
      model: spec of the backbone.
      lora, loss, batch: see ``models.config``, ``learn.config``.
      learning_rate: peak.
      epochs: at most, over the offline groups.
      adapt_epochs: over fresh groups and the replay buffer.
      patience: stop after this many epochs without a better held-out pair accuracy.
    """

    model: str
    lora: LoraConfig = LoraConfig()
    loss: LossConfig = LossConfig()
    batch: BatchShape = BatchShape()
    learning_rate: PositiveFloat = 3e-4
    epochs: PositiveInt = 4
    adapt_epochs: NonNegativeInt = 1
    patience: PositiveInt = 2
