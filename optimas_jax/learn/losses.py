"""Losses of local reward functions (for one group; callers ``vmap``) and of policies: one function per equation."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ordered_pairs(rewards: jax.Array, valid: jax.Array, threshold: float) -> jax.Array:
    """[M, M] bool: whether candidate i is better than candidate j by more than the noise threshold.

    Args:
      rewards: [M] float32 mean global rewards.
      valid: [M] bool, False for padding.
      threshold: reward differences up to this are ties, and not used.
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
    """Number of ordered pairs that the scores order correctly (equal scores count half), and number of pairs.

    Args and shapes as in ``bradley_terry``. Returns two float32 scalars.
    """
    pairs = ordered_pairs(rewards, valid, threshold)
    difference = scores[:, None] - scores[None, :]
    right = jnp.where(difference > 0, 1.0, jnp.where(difference == 0, 0.5, 0.0))
    return jnp.where(pairs, right, 0.0).sum(), pairs.sum().astype(jnp.float32)


# Policies. Arrays [C] are per sampled token, answers laid end to end.


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x where the mask is true; 0 if the mask is false everywhere."""
    return jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def whiten(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x scaled to mean 0 and variance 1 over the mask; 0 elsewhere."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return jnp.where(mask, (x - mean) * jax.lax.rsqrt(variance + 1e-8), 0.0)


def shaped_rewards(
    scores: jax.Array, logprobs: jax.Array, ref_logprobs: jax.Array, last: jax.Array, coefficient: jax.Array
) -> jax.Array:
    """Reward of each token: its share of ``-coefficient KL`` to the reference, and at the last token the answer's score
    (Ziegler et al., arXiv 1909.08593, Eq. 2).

    Args:
      scores: [C] float32, of the answer that a token belongs to.
      logprobs, ref_logprobs: [C] float32, of the sampled tokens.
      last: [C] bool, the last token of each answer.
      coefficient: the weight of KL.
    """
    return jnp.where(last, scores, 0.0) - coefficient * (logprobs - ref_logprobs)


def gae(rewards: jax.Array, values: jax.Array, last: jax.Array, *, discount: float, decay: float) -> jax.Array:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, Eq. 16); returns are advantages + values.

    Args:
      rewards, values: [C] float32; values are estimated before each token.
      last: [C] bool, the last token of each answer, beyond which nothing is carried over.
      discount: gamma of the paper.
      decay: lambda of the paper.

    Returns:
      [C] float32.
    """
    following = jnp.where(last, 0.0, jnp.roll(values, -1))
    errors = rewards + discount * following - values

    def back(later: jax.Array, token: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, is_last = token
        advantage = error + jnp.where(is_last, 0.0, discount * decay * later)
        return advantage, advantage

    return jax.lax.scan(back, jnp.float32(0.0), (errors, last), reverse=True)[1]


def _group_sizes(group: jax.Array, num_groups: int) -> jax.Array:
    """Answers of each prompt, at least 1; [num_groups] float32."""
    return jnp.maximum(jax.ops.segment_sum(jnp.ones(len(group), jnp.float32), group, num_groups), 1.0)


def _group_means(x: jax.Array, group: jax.Array, num_groups: int) -> jax.Array:
    """Mean of x [A] over the answers of the same prompt; [A]."""
    return (jax.ops.segment_sum(x, group, num_groups) / _group_sizes(group, num_groups))[group]


def centred_scores(scores: jax.Array, group: jax.Array, num_groups: int) -> jax.Array:
    """Scores minus the mean score of the answers to the same prompt: a Bradley-Terry score has an arbitrary offset for
    each prompt.

    Args:
      scores: [A] float32, one per answer.
      group: [A] int32, index of the prompt.
      num_groups: number of prompts.

    Returns:
      [A] float32.
    """
    return scores - _group_means(scores, group, num_groups)


def group_advantages(scores: jax.Array, group: jax.Array, num_groups: int) -> jax.Array:
    """Scores of answers relative to the answers to the same prompt: ``(r - mean) / (std + 1e-4)`` (Shao et al., arXiv
    2402.03300, section 4.1.2); 0 if all are equal. Arguments and result as in ``centred_scores``."""
    centred = centred_scores(scores, group, num_groups)
    return centred / (jnp.sqrt(_group_means(centred**2, group, num_groups)) + 1e-4)


def leave_one_out_advantages(scores: jax.Array, group: jax.Array, num_groups: int) -> jax.Array:
    """Scores of answers minus the mean score of the *other* answers to the same prompt (REINFORCE with an unbiased
    baseline: Kool et al. 2019; Ahmadian et al., arXiv 2402.14740, section 3.2): the centred score times
    ``n / (n - 1)``, 0 for a single answer. Arguments and result as in ``centred_scores``."""
    size = _group_sizes(group, num_groups)[group]
    return centred_scores(scores, group, num_groups) * size / jnp.maximum(size - 1.0, 1.0)


def answer_lengths(answer: jax.Array, num_answers: int) -> jax.Array:
    """Number of tokens of the answer that each token belongs to; 1 for padding.

    Args:
      answer: [C] int32, ``num_answers`` for padding.

    Returns:
      [C] float32.
    """
    sizes = jax.ops.segment_sum(jnp.ones(len(answer), jnp.float32), answer, num_answers)
    return jnp.where(answer < num_answers, sizes[answer], 1.0)


def clipped_policy_loss(
    logprobs: jax.Array, old_logprobs: jax.Array, advantages: jax.Array, *, clip: float
) -> jax.Array:
    """PPO's clipped surrogate (Schulman et al., arXiv 1707.06347, Eq. 7), negated, of each token [C]."""
    ratio = jnp.exp(logprobs - old_logprobs)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantages)


def clipped_value_loss(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, *, clip: jax.Array | float
) -> jax.Array:
    """Half the squared error of a value, or of the value moved by at most ``clip`` (a number or [C]) from the old one,
    whichever is larger; [C] (the implementation of arXiv 1707.06347)."""
    moved = old_values + jnp.clip(values - old_values, -clip, clip)
    return 0.5 * jnp.maximum((values - returns) ** 2, (moved - returns) ** 2)


def kl_to_reference(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """Unbiased, never negative estimate of KL(policy || reference) from its own samples, of each token [C]
    (arXiv 2402.03300, Eq. 4)."""
    difference = ref_logprobs - logprobs
    return jnp.exp(difference) - difference - 1.0


def adapted_coefficient(coefficient: float, kl: float, *, target: float, answers: int, horizon: float) -> float:
    """Weight of KL for the next update (arXiv 1909.08593, section 2.2): larger if ``kl`` is above its target, smaller
    if it is below, by at most a share of ``0.2 answers / horizon``."""
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * answers / horizon)
