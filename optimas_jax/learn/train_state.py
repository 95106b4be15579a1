"""State of training: adapters, heads and the optimiser's state, float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from optimas_jax.models.backbone import init_lora
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.heads import init_reward_head
from optimas_jax.models.lora import Params
from optimas_jax.parallel.sharding import keep_placed

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count): divided once, after summation over batches


class TrainState(NamedTuple):
    """State of training.

    Attributes:
      step: int32 scalar, updates so far.
      trainable: adapters and heads, float32.
      opt_state: the optimiser's state for ``trainable``.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState


def init_trainable(config: BackboneConfig, lora: LoraConfig, num_components: int, key: jax.Array) -> Params:
    """Initial adapters (with B = 0) and heads."""
    lora_key, head_key = jax.random.split(key)
    return {
        "lora": init_lora(config, lora, lora_key),
        "head": init_reward_head(head_key, config.embed_dim, num_components),
    }


def init_state(trainable: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state at the start of training from ``trainable``."""
    return TrainState(jnp.int32(0), trainable, tx.init(trainable))


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=1)
def apply_gradients(
    tx: optax.GradientTransformation,
    state: TrainState,
    parts: Sequence[tuple[Params, Metrics]],
    learning_rate: jax.Array,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimiser step on the mean gradient.

    Args:
      state: donated.
      parts: gradients and metrics of the parts of a batch, as sums over groups or tokens; ``metrics["loss"][1]`` is
        their number.
    """
    grads, metrics = jax.tree.map(lambda *of_parts: sum(of_parts), *parts)
    count = jnp.maximum(metrics["loss"][1], 1.0)
    grads = jax.tree.map(lambda grad: grad / count, grads)
    directions, opt_state = tx.update(grads, state.opt_state, state.trainable)
    trainable = jax.tree.map(lambda value, step: value - learning_rate * step, state.trainable, directions)
    metrics["grad_norm"] = (optax.tree.norm(grads), jnp.float32(1.0))
    return keep_placed(TrainState(state.step + 1, trainable, opt_state), mesh), metrics


def means(metrics: Sequence[Mapping[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Means of metrics over steps: the sums of (sum, count) pairs, divided once."""
    names = metrics[0]
    totals = {
        name: (sum(float(m[name][0]) for m in metrics), sum(float(m[name][1]) for m in metrics)) for name in names
    }
    return {name: value / max(count, 1e-9) for name, (value, count) in totals.items()}


def make_optimizer(max_grad_norm: float = 1.0) -> optax.GradientTransformation:
    """Adam's direction for clipped gradients. The learning rate is an argument of the step, not part of the optimiser,
    so that training calls of any length share one compiled step."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam())


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """The learning rate of a step: linear warm-up over a tenth of the steps, then cosine decay to a tenth of ``peak``.
    ``step`` counts from 0."""
    warmup = max(1, total_steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return peak * (0.55 + 0.45 * math.cos(math.pi * progress))
