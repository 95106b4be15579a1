"""Settings of local rewards. Imports no array library, so that a configuration is read and checked at once."""

from __future__ import annotations

import dataclasses
from typing import Literal

from optimas_jax.core.schema import NonNegativeInt, PositiveFloat, PositiveInt, PositiveShare
from optimas_jax.learn.config import BatchShape, LossConfig
from optimas_jax.models.config import LoraConfig


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The reward model and its training.

    Attributes:
      model: spec of the backbone.
      heads: how heads are learned. ``trained``: with adapters, by gradient steps (paper). ``fitted``: in closed form,
        added to the likelihood of an output (``learn.fit``); few labels suffice, and adapters, rates and epochs are not
        used. Choose ``trained`` to tune weights: with ``fitted`` a policy would be rewarded for likelier outputs.
      lora, loss, batch: see ``models.config``, ``learn.config``.
      batch_groups: largest number of groups in a training step; 0 for as many as fit.
      learning_rate: peak learning rate of training on the offline groups.
      epochs: largest number of epochs over the offline groups.
      adapt_rate: learning rate of adaptation, as a share of ``learning_rate``; constant after a short warm-up.
      adapt_epochs: number of epochs over fresh groups and the replay buffer.
      patience: training stops after this many epochs without a better held-out pair accuracy.
    """

    model: str
    heads: Literal["trained", "fitted"] = "trained"
    lora: LoraConfig = LoraConfig()
    loss: LossConfig = LossConfig()
    batch: BatchShape = BatchShape()
    batch_groups: NonNegativeInt = 0
    learning_rate: PositiveFloat = 3e-4
    epochs: PositiveInt = 4
    adapt_rate: PositiveShare = 0.3
    adapt_epochs: NonNegativeInt = 1
    patience: PositiveInt = 2
