"""The reward model: r_k(x, y) = h_k . phi([x, y]) (paper, Eq. 2), as pure jitted functions over packed rows.

``make_reward_functions`` builds them once for a backbone; everything they need comes in as arguments. Frozen weights
stay in the compute dtype; adapters, heads, scores, losses and the optimiser are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from optimas_jax.learn.losses import bradley_terry, pair_accuracy
from optimas_jax.learn.train_state import TrainState
from optimas_jax.models.attention import Segments
from optimas_jax.models.backbone import forward, make_graph
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.heads import reward_head
from optimas_jax.models.lora import LoraConfig, Params
from optimas_jax.parallel.platform import Compute

Rows = dict[str, Any]  # fields of learn.groups.PackedRows
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count): divide once, after adding up


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What counts as a pair, and how it is weighed.

    Attributes:
      threshold: reward differences up to this are ties.
      margin: subtracted inside the sigmoid (0 in the paper).
    """

    threshold: float = 0.0
    margin: float = 0.0


class RewardFunctions(NamedTuple):
    """What the host loop calls.

    Attributes:
      score: (params with merged adapters, head, rows) -> [G, M] float32.
      train_step: (state, params, rows, learning rate) -> (state, metrics); the state is donated.
      loglik: (params, rows) -> [G, M] float32, log-probability of each candidate given the prefix.
    """

    score: Callable[[Params, Params, Rows], jax.Array]
    train_step: Callable[[TrainState, Params, Rows, float], tuple[TrainState, Metrics]]
    loglik: Callable[[Params, Rows], jax.Array]


def score_rows(graphdef: Any, params: Params, head: Params, rows: Rows, lora_params: Params | None = None) -> jax.Array:
    """Scores of the candidates of packed rows, [G, M] float32; 0 for padding."""
    hidden = forward(graphdef, params, rows["input_ids"], rows["positions"], _segments(rows), lora_params)
    last = hidden.reshape(-1, hidden.shape[-1])[rows["ends"]]
    return jnp.where(rows["valid"], reward_head(head, last, rows["component"]), 0.0)


def _segments(rows: Rows) -> Segments:
    return Segments(rows["branches"], rows["trunks"])


def group_loss(scores: jax.Array, rows: Rows, config: LossConfig) -> tuple[jax.Array, Metrics]:
    """Mean of Eq. 4 over the groups that have a pair, and metrics as (sum, count)."""
    losses, counts = jax.vmap(lambda s, r, v: bradley_terry(s, r, v, threshold=config.threshold, margin=config.margin))(
        scores, rows["rewards"], rows["valid"]
    )
    right, pairs = jax.vmap(lambda s, r, v: pair_accuracy(s, r, v, threshold=config.threshold))(
        scores, rows["rewards"], rows["valid"]
    )
    with_pairs = (counts > 0).astype(jnp.float32)
    total = with_pairs.sum()
    metrics = {"loss": ((losses * with_pairs).sum(), total), "pair_accuracy": (right.sum(), pairs.sum())}
    return (losses * with_pairs).sum() / jnp.maximum(total, 1.0), metrics


def loglik_rows(graphdef: Any, params: Params, rows: Rows, *, chunk: int = 64) -> jax.Array:
    """Log-probability of each candidate given its prefix, [G, M] float32: a control that needs no training.

    The vocabulary is projected ``chunk`` positions at a time, so that no [B, T, V] array exists.
    """
    model = nnx.merge(graphdef, params)
    hidden, _ = model.hidden(rows["input_ids"], rows["positions"], _segments(rows))
    branches, trunks, positions = rows["branches"], rows["trunks"], rows["positions"]
    # The token before a candidate's first one is its prefix's last one, wherever in the row the candidate stands.
    before = (positions[:, None, :] == positions[:, :, None] - 1) & (
        (branches[:, None, :] == branches[:, :, None]) | (branches[:, None, :] == trunks[:, :, None])
    )  # [B, T, T]: at most one True in a row
    states = jnp.take_along_axis(hidden, jnp.argmax(before, axis=-1)[..., None], axis=1)

    def logprob(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        state, ids = args
        logits = model.logits(state)
        chosen = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    count = branches.size
    flat = jnp.pad(states.reshape(count, -1), ((0, -count % chunk), (0, 0)))
    ids = jnp.pad(rows["input_ids"].reshape(count), (0, -count % chunk))
    logprobs = jax.lax.map(logprob, (flat.reshape(-1, chunk, flat.shape[-1]), ids.reshape(-1, chunk))).reshape(-1)
    # A candidate's tokens are those of its row and branch.
    width = branches.shape[1]
    ends = rows["ends"][..., None]  # [G, M, 1]
    place = jnp.arange(count)
    members = (place // width == ends // width) & (branches.reshape(-1) == branches.reshape(-1)[ends])
    total = jnp.sum(jnp.where(members, logprobs[:count], 0.0), axis=-1)
    return jnp.where(rows["valid"], total, 0.0)


def make_reward_functions(
    config: BackboneConfig, compute: Compute, lora: LoraConfig, loss: LossConfig, tx: optax.GradientTransformation
) -> RewardFunctions:
    """Jits the functions of one reward model. Every shape of rows compiles once per function."""
    plain, adapted = make_graph(config, compute), make_graph(config, compute, lora)

    def train_step(
        state: TrainState, params: Params, rows: Rows, learning_rate: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def loss_fn(trainable: Params) -> tuple[jax.Array, Metrics]:
            scores = score_rows(adapted, params, trainable["head"], rows, trainable["lora"])
            return group_loss(scores, rows, loss)

        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.trainable)
        directions, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = jax.tree.map(lambda value, step: value - learning_rate * step, state.trainable, directions)
        metrics["grad_norm"] = (optax.tree.norm(grads), jnp.float32(1.0))
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return RewardFunctions(
        score=jax.jit(lambda params, head, rows: score_rows(plain, params, head, rows)),
        train_step=jax.jit(train_step, donate_argnums=0),
        loglik=jax.jit(lambda params, rows: loglik_rows(plain, params, rows)),
    )
