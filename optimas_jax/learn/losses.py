"""Losses of the local reward functions: one function per equation, for one group; callers ``vmap``."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ordered_pairs(rewards: jax.Array, valid: jax.Array, threshold: float) -> jax.Array:
    """[M, M] bool: whether candidate i is better than candidate j by more than the noise threshold.

    Args:
      rewards: [M] float32 mean global rewards.
      valid: [M] bool, False for padding.
      threshold: reward differences up to this are ties, which nothing is learned from.
    """
    better = rewards[:, None] - rewards[None, :] > threshold
    return better & valid[:, None] & valid[None, :]


def bradley_terry(
    scores: jax.Array, rewards: jax.Array, valid: jax.Array, *, threshold: float, margin: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Mean over ordered pairs (i, j) of ``-log sigmoid(s_i - s_j - margin)`` (paper, Eq. 4; margin 0 there).

    Args:
      scores: [M] float32 local rewards.
      rewards, valid, threshold: see ``ordered_pairs``.
      margin: subtracted inside the sigmoid.

    Returns:
      The loss, 0 without pairs, and the number of pairs; both float32 scalars.
    """
    pairs = ordered_pairs(rewards, valid, threshold)
    count = pairs.sum().astype(jnp.float32)
    losses = jax.nn.softplus(margin - (scores[:, None] - scores[None, :]))
    return jnp.where(pairs, losses, 0.0).sum() / jnp.maximum(count, 1.0), count


def pair_accuracy(
    scores: jax.Array, rewards: jax.Array, valid: jax.Array, *, threshold: float
) -> tuple[jax.Array, jax.Array]:
    """How many ordered pairs the scores order alike (equal scores count half), and how many pairs there are.

    Args and shapes as in ``bradley_terry``. Returns two float32 scalars.
    """
    pairs = ordered_pairs(rewards, valid, threshold)
    difference = scores[:, None] - scores[None, :]
    right = jnp.where(difference > 0, 1.0, jnp.where(difference == 0, 0.5, 0.0))
    return jnp.where(pairs, right, 0.0).sum(), pairs.sum().astype(jnp.float32)
