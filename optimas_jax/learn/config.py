"""Settings of training. Imports no array library, so that a configuration is read and checked at once."""

from __future__ import annotations

import dataclasses
from typing import Literal

from optimas_jax.core.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Share


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch.

    Attributes:
      tokens: T; on a mesh, per device along ``data``.
      group_tokens: longer groups are truncated to it.
      candidates: M, at most, of a group.
      remat: whether training computes every layer again in the backward pass: a third more work, and memory for one
        layer instead of all.
    """

    tokens: PositiveInt = 1024
    group_tokens: PositiveInt = 512
    candidates: PositiveInt = 8
    remat: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.group_tokens <= self.tokens:
            raise ValueError(
                f"a batch of {self.tokens} tokens cannot hold a group of group_tokens = {self.group_tokens}: lower it"
            )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What counts as a pair, and how it is weighed.

    Attributes:
      threshold: reward differences up to this are ties.
      margin: subtracted inside the sigmoid (0 in the paper).
    """

    threshold: NonNegativeFloat = 0.0
    margin: NonNegativeFloat = 0.0


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """What an update minimises.

    Attributes:
      algorithm: ``ppo`` (a critic; KL to the reference in the rewards) or ``grpo`` (advantages relative to the answers
        of the same prompt; KL to the reference in the loss; no critic).
      clip: how far from 1 an importance ratio counts.
      kl_weight: of KL to the reference; for ``ppo`` where its adaptation starts.
      value_clip, value_weight: of the critic's loss.
      discount, decay: gamma and lambda of the advantages.
    """

    algorithm: Literal["ppo", "grpo"] = "grpo"
    clip: PositiveFloat = 0.2
    kl_weight: NonNegativeFloat = 0.04
    value_clip: PositiveFloat = 0.2
    value_weight: NonNegativeFloat = 0.1
    discount: Share = 1.0
    decay: Share = 0.95
