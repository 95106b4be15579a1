"""The reward model: r_k(x, y) = h_k . phi([x, y]) (paper, Eq. 2), as functions over batches of groups.

``RewardFunctions`` holds their static arguments. With adapters in the upper layers only, the layers below are frozen:
their output, the *features* of a batch, is an argument as well, so that it can be cached. Frozen weights are in the
compute dtype; adapters, heads, scores, losses and the optimiser state are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from optimas_jax.learn.batches import CandidateTokens, GroupBatch
from optimas_jax.learn.config import LossConfig
from optimas_jax.learn.losses import bradley_terry, pair_accuracy
from optimas_jax.learn.token_logprobs import in_chunks, out_of_chunks, output_params, token_logprobs
from optimas_jax.learn.train_state import Metrics, TrainState, apply_gradients
from optimas_jax.models.backbone import Network, at_tokens, rms_norm
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.cpu import one_by_one
from optimas_jax.models.flat import Flat
from optimas_jax.models.forward import features, run_layers, run_layers_vjp
from optimas_jax.models.heads import reward_head
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.platform import in_turn
from optimas_jax.parallel.sharding import keep_placed, keep_shards


@dataclasses.dataclass(frozen=True)
class RewardFunctions:
    """The functions of one reward model. Every shape of a batch compiles once per function.

    Attributes:
      network: the backbone.
      lora: its adapters.
      loss: configuration of the loss.
      tx: optimiser without a learning rate, which is an argument of the step.
    """

    network: Network
    lora: LoraConfig
    loss: LossConfig
    tx: optax.GradientTransformation

    @property
    def first(self) -> int:
        """The first adapted layer; features are its input."""
        return self.lora.first(self.network.config.num_layers)

    def features(self, params: Params, flat: Flat) -> jax.Array:
        """Output of the frozen layers below the adapters, [T, D]; see ``models.forward.features``."""
        return features(self.network, params, flat, self.lora)

    def score(
        self, params: Params, head: Params, batch: GroupBatch, features: jax.Array, adapters: Params | None = None
    ) -> jax.Array:
        """Scores of the candidates [G, M] float32, 0 for padding.

        Args:
          adapters: of the local reward; None if they are merged into ``params``.
        """
        x = self._upper(params, batch, features, _per_shard(batch.ends), adapters)
        return in_turn(_scores(self.network, params["final_norm"], head, x, batch), self.network.mesh)

    def hidden(self, params: Params, batch: GroupBatch, features: jax.Array) -> jax.Array:
        """phi of the candidates, [G, M, D] float32: the normalised hidden state at their last tokens."""
        x = self._upper(params, batch, features, _per_shard(batch.ends))
        return _normalised(self.network, params["final_norm"], x, batch.ends.shape)

    def loglik(self, params: Params, batch: GroupBatch, features: jax.Array, tokens: CandidateTokens) -> jax.Array:
        """Log-probability of each candidate given its prefix under ``params`` [G, M] float32: a baseline without
        training."""
        return _loglik(self.network, params, self._upper(params, batch, features), tokens, batch.ends.shape)

    def gradients(
        self, trainable: Params, params: Params, batch: GroupBatch, features: jax.Array
    ) -> tuple[Params, Metrics]:
        """Gradients of the *sum* of Eq. 4 over the groups of a batch with respect to adapters and heads, and metrics;
        ``params`` are the frozen weights."""
        x, pull_back = run_layers_vjp(
            self.network,
            params,
            features,
            batch.flat.positions,
            batch.flat.layout,
            range(self.first, self.network.config.num_layers),
            _per_shard(batch.ends),
            self.lora,
            trainable["lora"],
        )
        loss_gradients = _loss_gradients(self, trainable["head"], x, params["final_norm"], batch)
        (d_head, d_x), metrics = in_turn(loss_gradients, self.network.mesh)
        return {"lora": pull_back(d_x), "head": d_head}, metrics

    def train_step(
        self,
        state: TrainState,
        params: Params,
        parts: Sequence[tuple[GroupBatch, jax.Array]],
        learning_rate: float,
        lanes: Lanes | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One step on the sum of the gradients of several batches, which are computed in parallel if there are
        ``lanes``.

        Args:
          state: donated.
          params: the frozen weights.
          parts: batches and their features.
        """

        def of_part(part: tuple[GroupBatch, jax.Array]) -> tuple[Params, Metrics]:
            return self.gradients(state.trainable, params, *part)

        gradients = (lanes or Lanes()).map(of_part, parts, lambda part: ("gradients", len(part[1])))
        mesh = self.network.mesh
        return in_turn(apply_gradients(self.tx, state, list(gradients), learning_rate, mesh), mesh)

    def _upper(
        self,
        params: Params,
        batch: GroupBatch,
        features: jax.Array,
        at: jax.Array | None = None,
        adapters: Params | None = None,
    ) -> jax.Array:
        layers, flat = range(self.first, self.network.config.num_layers), batch.flat
        lora = None if adapters is None else self.lora
        return run_layers(self.network, params, features, flat.positions, flat.layout, layers, at, lora, adapters)


def _per_shard(ends: jax.Array) -> jax.Array:
    """[G, M] -> [G * M], on a mesh [S, G, M] -> [S, G * M]."""
    return ends.reshape(*ends.shape[:-2], -1)


def group_scores(network: Network, norm: Params, head: Params, x: jax.Array, batch: GroupBatch) -> jax.Array:
    """Scores [G, M] float32 from the output of the last layer at the candidates' last tokens, x [G * M, D]; on a mesh
    all have a leading axis of shards."""
    last = rms_norm(x.reshape(*batch.ends.shape, -1), norm["scale"], network.config.norm_eps, network.compute.cpu_forms)
    return jnp.where(batch.valid, reward_head(head, last, batch.component), 0.0)


@partial(jax.jit, static_argnums=(0, 3))
def _normalised(network: Network, norm: Params, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    x = x.reshape(*shape, -1).astype(jnp.float32)
    return rms_norm(x, norm["scale"], network.config.norm_eps, network.compute.cpu_forms)


@partial(jax.jit, static_argnums=0)
def _scores(network: Network, norm: Params, head: Params, x: jax.Array, batch: GroupBatch) -> jax.Array:
    """``group_scores``, on CPU with equal bits for a group whatever shares its batch."""
    if not network.compute.cpu_forms:
        return group_scores(network, norm, head, x, batch)

    def of_groups(rows: tuple[jax.Array, ...]) -> jax.Array:
        x, ends, valid, component = rows
        return group_scores(network, norm, head, x, batch._replace(ends=ends, valid=valid, component=component))

    return one_by_one(of_groups, (x.reshape(*batch.ends.shape, -1), batch.ends, batch.valid, batch.component))


@partial(jax.jit, static_argnums=0)
def _loss_gradients(
    functions: RewardFunctions, head: Params, x: jax.Array, norm: Params, batch: GroupBatch
) -> tuple[tuple[Params, jax.Array], Metrics]:
    def loss_fn(head: Params, x: jax.Array) -> tuple[jax.Array, Metrics]:
        return group_loss(group_scores(functions.network, norm, head, x, batch), batch, functions.loss)

    (d_head, d_x), metrics = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(head, x)
    mesh = functions.network.mesh
    return (keep_placed({"head": d_head}, mesh)["head"], keep_shards(d_x, mesh)), metrics


def group_loss(scores: jax.Array, batch: GroupBatch, config: LossConfig) -> tuple[jax.Array, Metrics]:
    """Sum of Eq. 4 over the groups that have a pair, and metrics as (sum, count)."""
    rows = [part.reshape(-1, part.shape[-1]) for part in (scores, batch.rewards, batch.valid)]
    losses, counts = jax.vmap(partial(bradley_terry, threshold=config.threshold, margin=config.margin))(*rows)
    right, pairs = jax.vmap(partial(pair_accuracy, threshold=config.threshold))(*rows)
    with_pairs = (counts > 0).astype(jnp.float32)
    total = (losses * with_pairs).sum()
    return total, {"loss": (total, with_pairs.sum()), "pair_accuracy": (right.sum(), pairs.sum())}


@partial(jax.jit, static_argnums=(0, 4))
def _loglik(
    network: Network, params: Params, x: jax.Array, tokens: CandidateTokens, shape: tuple[int, ...]
) -> jax.Array:
    params, chunks = output_params(network, params), in_chunks(network, (at_tokens(x, tokens.before), tokens.ids))
    logprobs = out_of_chunks(network, jax.lax.map(lambda chunk: token_logprobs(network, params, *chunk)[0], chunks))
    per_candidate = partial(jax.ops.segment_sum, num_segments=shape[-2] * shape[-1])
    per_candidate = per_candidate if network.mesh is None else jax.vmap(per_candidate)
    return per_candidate(logprobs, tokens.owner).reshape(shape)
