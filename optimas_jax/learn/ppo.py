"""PPO, GRPO and REINFORCE for the adapter of a language model, as functions over batches of sampled answers.

The answers of a prompt share its computation in the statistics and in the update (``learn.policy_batch``). The policy
is the base with the adapter, the reference is the same base without it, and the critic is a linear head on the policy's
hidden states: there is one copy of the base in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optimas_jax.learn.batches import CandidateTokens
from optimas_jax.learn.config import PolicyLoss
from optimas_jax.learn.losses import clipped_policy_loss, clipped_value_loss, kl_to_reference
from optimas_jax.learn.policy_batch import PolicyBatch, Statistics, Targets, policy_targets
from optimas_jax.learn.token_logprobs import in_chunks, out_of_chunks, output_params, token_logprobs
from optimas_jax.learn.train_state import Metrics, TrainState, apply_gradients, means
from optimas_jax.models.backbone import Network, init_lora
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.flat import Flat
from optimas_jax.models.forward import features, run_layers, run_layers_vjp
from optimas_jax.models.heads import init_value_head, value_head
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.platform import in_turn
from optimas_jax.parallel.sharding import keep_placed
from optimas_jax.parallel.transfer import fetch

Minibatch = Sequence[Sequence[PolicyBatch]]  # batches one after another, each in parts that are computed side by side


def init_policy(config: BackboneConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """Initial state: an adapter whose product is zero, and a critic whose values are zero."""
    return {"lora": init_lora(config, lora, key), "value": init_value_head(config.embed_dim)}


@dataclasses.dataclass(frozen=True)
class PolicyFunctions:
    """The functions of one policy. Every shape of a batch compiles once per function.

    Attributes:
      network: the base.
      lora: the policy's adapter.
      loss: what an update minimises.
      tx: optimiser without a learning rate, which is an argument of the step.
    """

    network: Network
    lora: LoraConfig
    loss: PolicyLoss
    tx: optax.GradientTransformation

    def statistics(self, params: Params, trainable: Params, flat: Flat, tokens: CandidateTokens) -> Statistics:
        """Statistics of a batch's sampled tokens, under the policy and the reference; ``params`` are frozen."""
        x = features(self.network, params, flat, self.lora)
        layers = range(self.lora.first(self.network.config.num_layers), self.network.config.num_layers)
        run = partial(run_layers, self.network, params, x, flat.positions, flat.layout, layers, tokens.before)
        return _read(self.network, params, trainable["value"], run(self.lora, trainable["lora"]), run(), tokens.ids)

    def targets(
        self, statistics: Statistics, answer: jax.Array, scores: jax.Array, group: jax.Array, kl_weight: jax.Array
    ) -> Targets:
        """See ``learn.policy_batch.policy_targets``."""
        return policy_targets(self.loss, statistics, answer, scores, group, kl_weight)

    def gradients(self, trainable: Params, params: Params, batch: PolicyBatch) -> tuple[Params, Metrics]:
        """Gradients of the loss *summed* over the weighted tokens of a batch, and metrics; ``params`` are frozen."""
        network, lora, flat = self.network, self.lora, batch.flat
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
        token_gradients = _token_gradients(self, trainable["value"], x, params, batch.tokens, batch.targets)
        d_value, d_x, metrics = in_turn(token_gradients, network.mesh)
        return {"lora": pull_back(d_x), "value": d_value}, metrics

    def update(
        self,
        state: TrainState,
        params: Params,
        steps: Sequence[Minibatch],
        learning_rate: float,
        kl_step: float,
        lanes: Lanes | None = None,
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """Runs minibatch steps until KL(old policy, policy) > ``kl_step`` or a number is not finite.

        Args:
          state: donated.
          steps: minibatch of each step (``train_step``).

        Returns:
          The state, and the means of the metrics of every step that was made.
        """
        step_means: list[dict[str, float]] = []
        for minibatch in steps:
            state, metrics = self.train_step(state, params, minibatch, learning_rate, lanes)
            step_means.append(means([fetch(metrics)]))
            if not step_means[-1]["moved"] <= kl_step:
                break
        return state, step_means

    def train_step(
        self,
        state: TrainState,
        params: Params,
        minibatch: Minibatch,
        learning_rate: float,
        lanes: Lanes | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One step on a minibatch whose gradients are summed part by part (gradient accumulation). Only the parts of
        one batch are in memory at the same time. ``state`` is donated."""
        lanes = lanes or Lanes()

        def of_part(part: PolicyBatch) -> tuple[Params, Metrics]:
            return self.gradients(state.trainable, params, part)

        def shape(part: PolicyBatch) -> tuple[str, int, int]:
            return "policy", part.flat.input_ids.shape[-1], part.tokens.ids.shape[-1]

        total = None
        for batch in minibatch:
            for gradients in lanes.map(of_part, batch, shape):
                total = gradients if total is None else in_turn(_add(total, gradients), self.network.mesh)
        assert total is not None
        mesh = self.network.mesh
        return in_turn(apply_gradients(self.tx, state, [total], learning_rate, mesh), mesh)


@partial(jax.jit, donate_argnums=0)
def _add(total: Any, more: Any) -> Any:
    return jax.tree.map(jnp.add, total, more)


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

    params = output_params(network, params)
    return out_of_chunks(network, jax.lax.map(of_chunk, in_chunks(network, (policy, reference, ids))))


@partial(jax.jit, static_argnums=0)
def _token_gradients(
    functions: PolicyFunctions, value: Params, x: jax.Array, params: Params, tokens: CandidateTokens, targets: Targets
) -> tuple[Params, jax.Array, Metrics]:
    """Gradients with respect to the critic and to x [C, D], the last layer's output, chunk by chunk: the loss is a sum
    over tokens, so that the gradient of a chunk is computed while its distributions are in memory."""

    def of_chunk(chunk: Any) -> tuple[Params, jax.Array, Metrics]:
        x, *rest = chunk

        def loss(value: Params, x: jax.Array) -> tuple[jax.Array, Metrics]:
            return _token_loss(functions, params, value, x, *rest)

        (d_value, d_x), metrics = jax.grad(loss, argnums=(0, 1), has_aux=True)(value, x)
        return d_value, d_x, metrics

    network = functions.network
    params = output_params(network, params)
    d_value, d_x, metrics = jax.lax.map(of_chunk, in_chunks(network, (x, tokens.ids, tokens.valid, targets)))
    d_value, metrics = jax.tree.map(lambda part: part.sum(axis=0), (d_value, metrics))
    d_value = keep_placed({"value": d_value}, network.mesh)["value"]
    return d_value, out_of_chunks(network, d_x), metrics


def _token_loss(
    functions: PolicyFunctions,
    params: Params,
    value: Params,
    x: jax.Array,
    ids: jax.Array,
    valid: jax.Array,
    targets: Targets,
) -> tuple[jax.Array, Metrics]:
    """The loss summed over the weighted tokens of a chunk, and metrics as (sum, count)."""
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
    per_token["loss"] = per_token["policy_loss"]
    if config.algorithm == "ppo":
        values = value_head(value, hidden)
        value_loss = clipped_value_loss(values, targets.values, targets.returns, clip=targets.value_clip)
        per_token["value_loss"] = value_loss
        per_token["loss"] += config.value_weight * value_loss
    elif config.algorithm == "grpo":
        per_token["loss"] += config.kl_weight * kl
    weights = jnp.where(valid, targets.weights, 0.0)
    metrics = {
        name: _sum_and_count(values, weights if name.endswith("loss") else valid.astype(jnp.float32))
        for name, values in per_token.items()
    }
    return metrics["loss"][0], metrics


def _sum_and_count(per_token: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.where(weights > 0.0, weights * per_token, 0.0).sum(), weights.sum()
