"""PPO and GRPO for the adapter of a language model, as functions over batches of sampled answers.

A group is a prompt and the answers that were sampled for it. Groups are laid out as candidates are (``learn.batches``):
the answers of a prompt share its computation in the statistics and in the update. The policy is the base with the
adapter, the reference is the same base without it, and the critic is a linear head on the policy's own hidden states:
there is one copy of the base in memory. Whatever is per token is an array [C] over the sampled tokens of a batch,
answers end to end (``CandidateTokens``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optimas_jax.learn.batches import CandidateTokens, candidate_tokens, make_batch
from optimas_jax.learn.config import PolicyLoss
from optimas_jax.learn.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    group_advantages,
    kl_to_reference,
    shaped_rewards,
    whiten,
)
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.token_logprobs import in_chunks, token_logprobs
from optimas_jax.learn.train_state import Metrics, TrainState, apply_gradients, means
from optimas_jax.models.backbone import Network, init_lora
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.flat import Flat
from optimas_jax.models.forward import features, run_layers, run_layers_vjp
from optimas_jax.models.heads import init_value_head, value_head
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes


class Statistics(NamedTuple):
    """What is known of sampled tokens before an update; [C] float32 each.

    Attributes:
      logprobs: under the policy.
      ref_logprobs: under the reference.
      values: of the critic, before the token; 0 without one.
      entropy: of the policy's distribution that the token came from.
    """

    logprobs: Any
    ref_logprobs: Any
    values: Any
    entropy: Any


class Targets(NamedTuple):
    """What an update holds sampled tokens against; [C] float32 each."""

    logprobs: Any
    ref_logprobs: Any
    values: Any
    advantages: Any
    returns: Any


class PolicyBatch(NamedTuple):
    """Groups of an update: their layout, the sampled tokens, and their targets."""

    flat: Flat
    tokens: CandidateTokens
    targets: Targets


def init_policy(config: BackboneConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """A policy that is the base, and a critic that expects nothing."""
    return {"lora": init_lora(config, lora, key), "value": init_value_head(config.embed_dim)}


@dataclasses.dataclass(frozen=True)
class PolicyFunctions:
    """The functions of one policy. Every shape of a batch compiles once per function.

    Attributes:
      network: the base.
      lora: the policy's adapter.
      loss: what an update minimises.
      tx: gives directions; the learning rate is an argument of the step.
    """

    network: Network
    lora: LoraConfig
    loss: PolicyLoss
    tx: optax.GradientTransformation

    def statistics(self, params: Params, trainable: Params, flat: Flat, tokens: CandidateTokens) -> Statistics:
        """Of a batch's sampled tokens, the policy and the reference in one call; ``params`` are the frozen weights."""
        x = features(self.network, params, flat, self.lora)
        layers = range(self.lora.first(self.network.config.num_layers), self.network.config.num_layers)
        run = partial(run_layers, self.network, params, x, flat.positions, flat.layout, layers, tokens.before)
        return _read(self.network, params, trainable["value"], run(self.lora, trainable["lora"]), run(), tokens.ids)

    def targets(
        self, statistics: Statistics, answer: jax.Array, scores: jax.Array, group: jax.Array, kl_weight: jax.Array
    ) -> Targets:
        """Of all tokens of a rollout, answers end to end.

        Args:
          answer: [C] int32, which answer a token belongs to, counting up; A for padding.
          scores: [A] float32.
          group: [A] int32, the prompt of each answer, less than A.
          kl_weight: weight of KL in the rewards (``ppo`` only).
        """
        return _targets(self.loss, statistics, answer, scores, group, kl_weight)

    def gradients(self, trainable: Params, params: Params, batch: PolicyBatch) -> tuple[Params, Metrics]:
        """Gradients of the loss *summed* over the sampled tokens of a batch, and metrics; ``params`` are frozen."""
        compute = _gradients if self.network.compute.layerwise else _compiled_gradients
        return compute(self, trainable, params, batch)

    def update(
        self,
        state: TrainState,
        params: Params,
        steps: Sequence[Sequence[PolicyBatch]],
        learning_rate: float,
        kl_step: float,
        lanes: Lanes | None = None,
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """All steps of an update, until one shows that the policy has moved by more than ``kl_step`` from the one that
        sampled, or until numbers are none.

        Args:
          state: donated.
          steps: minibatches in parts (``train_step``); where gradients are computed in one program so is the whole
            update, and all parts have the same shapes.

        Returns:
          The state, and the means of every step that was taken.
        """
        made: list[dict[str, float]] = []
        if not self.network.compute.layerwise:
            stacked = _stack(steps)
            state, metrics, taken = _all_steps(self, state, params, stacked, learning_rate, kl_step)
            metrics, taken = jax.device_get((metrics, taken))
            count = int(taken.sum())  # the first ones
            steps_taken = ({name: (a[n], b[n]) for name, (a, b) in metrics.items()} for n in range(count))
            return state, [means([one]) for one in steps_taken]
        for parts in steps:
            state, metrics = self.train_step(state, params, parts, learning_rate, lanes)
            made.append(means([jax.device_get(metrics)]))
            if not made[-1]["moved"] <= kl_step:
                break
        return state, made

    def train_step(
        self,
        state: TrainState,
        params: Params,
        parts: Sequence[PolicyBatch],
        learning_rate: float,
        lanes: Lanes | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One step on a minibatch in parts whose gradients are added up: side by side if there are ``lanes``, one after
        another where there are more (gradient accumulation). ``state`` is donated."""

        def of_part(part: PolicyBatch) -> tuple[Params, Metrics]:
            return self.gradients(state.trainable, params, part)

        def shape(part: PolicyBatch) -> tuple[str, int, int]:
            return "policy", len(part.flat.input_ids), len(part.tokens.ids)

        added = list((lanes or Lanes()).map(of_part, parts, shape))
        return apply_gradients(self.tx, state, added, learning_rate)


@partial(jax.jit, static_argnums=0)
def _read(
    network: Network, params: Params, value: Params, policy: jax.Array, reference: jax.Array, ids: jax.Array
) -> Statistics:
    """Statistics from the outputs of the last layer [C, D]."""

    def of_chunk(chunk: tuple[jax.Array, ...]) -> Statistics:
        policy, reference, ids = chunk
        logprobs, entropy, hidden = token_logprobs(network, params, policy, ids)
        ref_logprobs, _, _ = token_logprobs(network, params, reference, ids)
        return Statistics(logprobs, ref_logprobs, value_head(value, hidden), entropy)

    made = jax.lax.map(of_chunk, in_chunks((policy, reference, ids)))
    return jax.tree.map(lambda part: part.reshape(-1), made)


@partial(jax.jit, static_argnums=0)
def _targets(
    loss: PolicyLoss,
    statistics: Statistics,
    answer: jax.Array,
    scores: jax.Array,
    group: jax.Array,
    kl_weight: jax.Array,
) -> Targets:
    logprobs, ref_logprobs, values, _ = statistics
    valid = answer < len(scores)
    if loss.algorithm == "grpo":
        advantages = jnp.where(valid, group_advantages(scores, group, len(scores))[answer], 0.0)
        return Targets(logprobs, ref_logprobs, values, advantages, jnp.zeros_like(advantages))
    last = answer != jnp.append(answer[1:], -1)
    rewards = shaped_rewards(scores[answer], logprobs, ref_logprobs, last, kl_weight)
    advantages = gae(rewards, values, last, discount=loss.discount, decay=loss.decay)
    return Targets(logprobs, ref_logprobs, values, whiten(advantages, valid), advantages + values)


def _gradients(
    functions: PolicyFunctions, trainable: Params, params: Params, batch: PolicyBatch
) -> tuple[Params, Metrics]:
    network, lora, flat = functions.network, functions.lora, batch.flat
    x, pull_back = run_layers_vjp(
        network,
        params,
        features(network, params, flat, lora),
        flat.positions,
        flat.layout,
        range(lora.first(network.config.num_layers), network.config.num_layers),
        batch.tokens.before,
        lora,
        trainable["lora"],
    )
    d_value, d_x, metrics = _token_gradients(functions, trainable["value"], x, params, batch.tokens, batch.targets)
    return {"lora": pull_back(d_x), "value": d_value}, metrics


_compiled_gradients = jax.jit(_gradients, static_argnums=0)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _all_steps(
    functions: PolicyFunctions,
    state: TrainState,
    params: Params,
    steps: PolicyBatch,
    learning_rate: jax.Array,
    kl_step: jax.Array,
) -> tuple[TrainState, Metrics, jax.Array]:
    """The steps of an update in one loop on the device.

    Args:
      steps: every array [steps, parts, ...].

    Returns:
      The state, metrics of each step [steps], and which steps were taken [steps] bool.
    """

    def take(state: TrainState, parts: PolicyBatch) -> tuple[TrainState, Metrics]:
        added = jax.lax.map(lambda part: _gradients(functions, state.trainable, params, part), parts)
        whole = jax.tree.map(lambda part: part.sum(axis=0), added)
        return apply_gradients(functions.tx, state, [whole], learning_rate)

    def step(
        carry: tuple[TrainState, jax.Array], parts: PolicyBatch
    ) -> tuple[tuple[TrainState, jax.Array], tuple[Metrics, jax.Array]]:
        state, goes_on = carry
        shapes = jax.eval_shape(take, state, parts)[1]
        nothing = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shapes)
        state, metrics = jax.lax.cond(goes_on, take, lambda state, _: (state, nothing), state, parts)
        moved = metrics["moved"][0] / jnp.maximum(metrics["moved"][1], 1.0)
        return (state, goes_on & (moved <= kl_step)), (metrics, goes_on)

    (state, _), (metrics, taken) = jax.lax.scan(step, (state, jnp.bool_(True)), steps)
    return state, metrics, taken


def _stack(steps: Sequence[Sequence[PolicyBatch]]) -> PolicyBatch:
    """Steps of parts of the same shapes as one tree [steps, parts, ...]; steps of fewer parts get empty ones."""
    most = max(map(len, steps))

    def filled(parts: Sequence[PolicyBatch]) -> list[PolicyBatch]:
        tokens = parts[0].tokens
        empty = parts[0]._replace(tokens=tokens._replace(valid=tokens.valid & False))
        return [*parts, *[empty] * (most - len(parts))]

    rows = [jax.tree.map(lambda *some: jnp.stack(some), *filled(parts)) for parts in steps]
    return jax.tree.map(lambda *some: jnp.stack(some), *rows)


@partial(jax.jit, static_argnums=0)
def _token_gradients(
    functions: PolicyFunctions, value: Params, x: jax.Array, params: Params, tokens: CandidateTokens, targets: Targets
) -> tuple[Params, jax.Array, Metrics]:
    """Gradients with respect to the critic and to x [C, D], the last layer's output, chunk by chunk: the loss is a sum
    over tokens, so that each chunk's gradient is taken while its distributions are there."""

    def of_chunk(chunk: Any) -> tuple[Params, jax.Array, Metrics]:
        x, *rest = chunk

        def loss(value: Params, x: jax.Array) -> tuple[jax.Array, Metrics]:
            return _token_loss(functions, params, value, x, *rest)

        (d_value, d_x), metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(value, x)
        return d_value, d_x, metrics

    d_value, d_x, metrics = jax.lax.map(of_chunk, in_chunks((x, tokens.ids, tokens.valid, targets)))
    d_value, metrics = jax.tree.map(lambda part: part.sum(axis=0), (d_value, metrics))
    return d_value, d_x.reshape(x.shape), metrics


def _token_loss(
    functions: PolicyFunctions,
    params: Params,
    value: Params,
    x: jax.Array,
    ids: jax.Array,
    valid: jax.Array,
    targets: Targets,
) -> tuple[jax.Array, Metrics]:
    """The loss summed over the valid tokens of a chunk, and metrics as (sum, count)."""
    config = functions.loss
    logprobs, entropy, hidden = token_logprobs(functions.network, params, x, ids)
    kl = kl_to_reference(logprobs, targets.ref_logprobs)
    per_token = {
        "policy_loss": clipped_policy_loss(logprobs, targets.logprobs, targets.advantages, clip=config.clip),
        "kl": kl,
        "entropy": entropy,
        "moved": kl_to_reference(targets.logprobs, logprobs),
        "clipped": (jnp.abs(jnp.exp(logprobs - targets.logprobs) - 1.0) > config.clip).astype(jnp.float32),
    }
    if config.algorithm == "ppo":
        values = value_head(value, hidden)
        per_token["value_loss"] = clipped_value_loss(values, targets.values, targets.returns, clip=config.value_clip)
        per_token["loss"] = per_token["policy_loss"] + config.value_weight * per_token["value_loss"]
    else:
        per_token["loss"] = per_token["policy_loss"] + config.kl_weight * kl
    count = valid.sum().astype(jnp.float32)
    metrics = {name: (jnp.where(valid, each, 0.0).sum(), count) for name, each in per_token.items()}
    return metrics["loss"][0], metrics


def by_group(per_token: Targets, sizes: Sequence[int]) -> list[Targets]:
    """Arrays [C] of a whole rollout, cut into those of its groups, which have ``sizes`` sampled tokens."""
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
    others: Sequence[Sequence[TokenGroup]] = (),
) -> PolicyBatch:
    """Lays out groups with their targets; numpy arrays.

    Args:
      tiled, tokens: as in ``models.flat.flatten``.
      others: with the same ``tokens``, batches of any of these have the same shapes.
    """
    parts = (groups, *others)
    longest = max((group for part in parts for group in part), key=lambda group: group.length)
    batch = make_batch(
        groups,
        candidates=max(len(group.candidate_ids) for part in parts for group in part),
        pad_id=pad_id,
        tiled=tiled,
        tokens=tokens,
        like=[longest] * max(map(len, parts)),
    )
    most = max(sum(len(ids) for group in part for ids in group.candidate_ids) for part in parts)
    sampled = candidate_tokens(groups, batch, most)
    columns = [np.concatenate(column).astype(np.float32) for column in zip(*targets, strict=True)]
    more = len(sampled.ids) - len(columns[0])
    return PolicyBatch(batch.flat, sampled, Targets(*(np.pad(column, (0, more)) for column in columns)))
