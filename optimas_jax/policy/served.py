"""Checks by log-probabilities that the sampled answers come from the tuned model."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from optimas_jax.core.types import StopRun
from optimas_jax.learn.policy_batch import Statistics


def served_limit(dtype: Any) -> float:
    """Largest difference between two computations of a token's log-probability from rounding alone, in nats: 0.5 for
    bfloat16, 0.02 for float32. Rare tokens accumulate the rounding of all layers."""
    return 0.02 if jnp.finfo(dtype).bits >= 32 else 0.5


def check_served(served: np.ndarray, statistics: Statistics, dtype: Any) -> None:
    """Refuses a rollout whose log-probabilities are the base model's and not the tuned policy's.

    The test is the likelihood ratio of "served = base + noise" against "served = policy + noise". With root mean square
    distances a to the policy, b to the base, and d between both, over C tokens, it is normal with variance 1 and mean
    ``-+ sqrt(C) d / (2 noise)``; the noise is the smaller distance, and at least the rounding of the type.

    Args:
      served: [C] the sampler's log-probabilities.
      statistics: the trainer's statistics of the same tokens.
      dtype: dtype of the trainer's model.

    Raises:
      StopRun: if the base explains ``served`` better by more than 4 standard deviations.
    """

    def distance(left: np.ndarray, right: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(left - right, dtype=np.float64))))

    to_policy, to_base = distance(served, statistics.logprobs), distance(served, statistics.ref_logprobs)
    between = distance(statistics.logprobs, statistics.ref_logprobs)
    rounding = served_limit(dtype) / 20  # root mean square; the limit is for the largest of thousands
    noise = max(min(to_policy, to_base), rounding)
    if between < noise / 20:  # policy and base differ too little: a few rare tokens would decide
        return
    ratio = math.sqrt(len(served)) * (to_base**2 - to_policy**2) / (2 * noise * between)
    if ratio < -4.0:
        raise StopRun(
            "the answers come from the base model and not from the adapter that requests name: their log-probabilities "
            f"differ by {to_base:.4f} nats a token from the base's and by {to_policy:.4f} from the adapter's. Check "
            "that the server (config.server) loads adapters and answers with the one that a request names"
        )
