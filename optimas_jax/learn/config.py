"""Settings of training. Imports no array library, so that a configuration is read and checked at once."""

from __future__ import annotations

import dataclasses
from typing import Literal

from optimas_jax.core.schema import NonNegativeFloat, PositiveFloat, PositiveInt, Share


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """Size of a batch, and how training computes it.

    Attributes:
      tokens: tokens in a batch (T). Training of local rewards: all devices together, so that results do not depend on
        their number. Scoring and tuning of weights, whose results do not depend on the batch: each device along
        ``data``.
      remat: whether training computes every layer again in the backward pass: a third more work, and memory for one
        layer instead of all.
    """

    tokens: PositiveInt = 1024
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class BatchShape(TokenBatch):
    """Sizes of a batch of groups whose candidates are ranked.

    Attributes:
      group_tokens: longest group, in tokens; longer ones are truncated.
      candidates: largest number of candidates in a group (M).
    """

    group_tokens: PositiveInt = 512
    candidates: PositiveInt = 8

    def __post_init__(self) -> None:
        if not 1 <= self.group_tokens <= self.tokens:
            raise ValueError(
                f"a batch of {self.tokens} tokens cannot hold a group of group_tokens = {self.group_tokens}: lower it"
            )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Settings of the ranking loss (paper, Eq. 4).

    Attributes:
      threshold: largest difference of two rewards that counts as a tie.
      margin: constant subtracted inside the sigmoid (0 in the paper).
    """

    threshold: NonNegativeFloat = 0.0
    margin: NonNegativeFloat = 0.0


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """Settings of the policy loss.

    Attributes:
      algorithm: how advantages are computed, and over what the loss is averaged.
        ``ppo``: a critic; KL to the reference is part of the rewards; scores are centred over the answers of a prompt;
        mean over tokens (Schulman et al., arXiv 1707.06347).
        ``grpo``: scores relative to the other answers of the prompt; KL to the reference is part of the loss; no
        critic; mean over answers of the mean over their tokens (Shao et al., arXiv 2402.03300, Eq. 3).
        ``reinforce``: scores above the mean of the other answers of the prompt; no KL; no critic; mean over answers of
        the sum over their tokens (``policy.reinforce``).
      clip: importance ratios are clipped to 1 +- ``clip``.
      kl_weight: weight of KL(policy, reference); for ``ppo`` its initial value. ``reinforce`` does not use it.
      value_clip: largest change of the critic in one update, in standard deviations of the rollout's centred scores.
      value_weight: weight of the critic's loss.
      discount: gamma of the advantages.
      decay: lambda of the advantages.
    """

    algorithm: Literal["ppo", "grpo", "reinforce"] = "grpo"
    clip: PositiveFloat = 0.2
    kl_weight: NonNegativeFloat = 0.04
    value_clip: PositiveFloat = 0.2
    value_weight: NonNegativeFloat = 0.1
    discount: Share = 1.0
    decay: Share = 0.95
