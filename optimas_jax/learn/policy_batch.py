"""Batches for an update of a policy: sampled answers, statistics of their tokens, and targets.

A group is a prompt and the answers that were sampled for it. Groups are laid out like candidates (``learn.batches``):
the answers of a prompt share its computation. A group that is longer than a batch is split over several sequences that
repeat the prompt. Values per token are arrays [C] over the sampled tokens of a batch, answers end to end
(``CandidateTokens``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optimas_jax.learn.batches import CandidateTokens, candidate_tokens, make_batch
from optimas_jax.learn.config import PolicyLoss
from optimas_jax.learn.losses import (
    answer_lengths,
    centred_scores,
    gae,
    group_advantages,
    leave_one_out_advantages,
    shaped_rewards,
    whiten,
)
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.models.flat import Flat


class Statistics(NamedTuple):
    """Statistics of sampled tokens before an update; [C] float32 each.

    Attributes:
      logprobs: log-probabilities under the policy.
      ref_logprobs: log-probabilities under the reference.
      values: the critic's value before the token; 0 without a critic.
      entropy: entropy of the policy's distribution of the token.
    """

    logprobs: Any
    ref_logprobs: Any
    values: Any
    entropy: Any


class Targets(NamedTuple):
    """Targets of sampled tokens in an update; [C] float32 each.

    Attributes:
      logprobs, ref_logprobs, values: see ``Statistics``.
      advantages: of the tokens.
      returns: targets of the critic.
      weights: of the tokens in the loss, which is a weighted mean.
      value_clip: largest change of the critic, in units of its values.
    """

    logprobs: Any
    ref_logprobs: Any
    values: Any
    advantages: Any
    returns: Any
    weights: Any
    value_clip: Any


class PolicyBatch(NamedTuple):
    """Groups of an update: their layout, the sampled tokens, and their targets."""

    flat: Flat
    tokens: CandidateTokens
    targets: Targets


@partial(jax.jit, static_argnums=0)
def policy_targets(
    loss: PolicyLoss,
    statistics: Statistics,
    answer: jax.Array,
    scores: jax.Array,
    group: jax.Array,
    kl_weight: jax.Array,
) -> Targets:
    """Targets of all tokens of a rollout, answers end to end.

    Args:
      statistics: of the policy that sampled the answers; [C].
      answer: [C] int32, index of the answer that a token belongs to, ascending; A for padding.
      scores: [A] float32.
      group: [A] int32, the prompt of each answer, less than A.
      kl_weight: weight of KL in the rewards (``ppo`` only).
    """
    logprobs, ref_logprobs, values, _ = statistics
    count, valid = len(scores), answer < len(scores)
    if loss.algorithm == "ppo":
        centred = centred_scores(scores, group, count)
        last = answer != jnp.append(answer[1:], -1)
        rewards = shaped_rewards(centred[answer], logprobs, ref_logprobs, last, kl_weight)
        advantages = gae(rewards, values, last, discount=loss.discount, decay=loss.decay)
        value_clip = jnp.full_like(values, loss.value_clip * jnp.sqrt((centred**2).mean()))
        weights = valid.astype(jnp.float32)
        returns = advantages + values
        return Targets(logprobs, ref_logprobs, values, whiten(advantages, valid), returns, weights, value_clip)
    lengths = answer_lengths(answer, count)
    if loss.algorithm == "grpo":
        advantages = group_advantages(scores, group, count)[answer]
    else:  # the weights average over an answer's tokens, and REINFORCE sums over them
        advantages = leave_one_out_advantages(scores, group, count)[answer] * lengths
    nothing = jnp.zeros_like(values)
    advantages = jnp.where(valid, advantages, 0.0)
    return Targets(logprobs, ref_logprobs, values, advantages, nothing, valid / lengths, nothing)


def split_group(group: TokenGroup, tokens: int) -> list[TokenGroup]:
    """Splits a group into as few groups of at most ``tokens`` tokens as its answers fill in order; each repeats the
    prompt.

    Raises:
      ValueError: if the prompt and a single answer have more tokens.
    """
    room = tokens - len(group.prefix_ids)
    longest = max(map(len, group.candidate_ids))
    if longest > room:
        raise ValueError(
            f"a prompt of {len(group.prefix_ids)} tokens and an answer of {longest} are longer than a batch of {tokens}"
        )
    starts, used = [0], 0
    for index, ids in enumerate(group.candidate_ids):
        if used + len(ids) > room:
            starts.append(index)
            used = 0
        used += len(ids)
    parts = [slice(start, stop) for start, stop in zip(starts, [*starts[1:], None], strict=True)]
    return [
        dataclasses.replace(group, candidate_ids=group.candidate_ids[part], rewards=group.rewards[part])
        for part in parts
    ]


def sampled_tokens(group: TokenGroup) -> int:
    """Number of sampled tokens of a group."""
    return sum(map(len, group.candidate_ids))


def by_group(per_token: Targets, sizes: Sequence[int]) -> list[Targets]:
    """Arrays [C] of a whole rollout, split by group; ``sizes``: number of sampled tokens of each group."""
    ends = np.cumsum(sizes)
    arrays = [np.asarray(part) for part in per_token]
    return [Targets(*(part[end - size : end] for part in arrays)) for end, size in zip(ends, sizes, strict=True)]


def make_policy_batch(
    groups: Sequence[TokenGroup],
    targets: Sequence[Targets],
    *,
    pad_id: int,
    tiled: bool,
    tokens: int = 0,
    multiple: int = 64,
    others: Sequence[Sequence[TokenGroup]] = (),
) -> PolicyBatch:
    """Lays out groups with their targets; numpy arrays.

    Args:
      groups: may be empty if there are ``others``.
      tiled, tokens: as in ``models.flat.flatten``.
      multiple: see ``candidate_tokens``.
      others: groups of other batches: with the same ``tokens``, all these batches have the same shapes.
    """
    batches = (groups, *others)
    longest = max((group for batch in batches for group in batch), key=lambda group: group.length)
    layout = make_batch(
        groups,
        candidates=max(len(group.candidate_ids) for batch in batches for group in batch),
        pad_id=pad_id,
        tiled=tiled,
        tokens=tokens,
        like=[longest] * max(map(len, batches)),
    )
    most = max(sum(map(sampled_tokens, batch)) for batch in batches)
    sampled = candidate_tokens(groups, layout.ends.shape, most, multiple=multiple)
    nothing = Targets(*[np.zeros(0, np.float32)] * len(Targets._fields))
    columns = [np.concatenate(column).astype(np.float32) for column in zip(nothing, *targets, strict=True)]
    padding = len(sampled.ids) - len(columns[0])
    return PolicyBatch(layout.flat, sampled, Targets(*(np.pad(column, (0, padding)) for column in columns)))
