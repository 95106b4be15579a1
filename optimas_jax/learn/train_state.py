"""What training changes: adapters, heads and the optimiser's state, float32."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optimas_jax.models.backbone import init_lora
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.heads import init_reward_head
from optimas_jax.models.lora import LoraConfig, Params


class TrainState(NamedTuple):
    """State of a local reward model's training.

    Attributes:
      step: int32 scalar, updates so far.
      trainable: {"lora": adapters, "head": reward heads}, float32.
      opt_state: the optimiser's state for ``trainable``.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState


def init_trainable(config: BackboneConfig, lora: LoraConfig, num_components: int, key: jax.Array) -> Params:
    """Fresh adapters (which change nothing yet) and heads."""
    lora_key, head_key = jax.random.split(key)
    return {
        "lora": init_lora(config, lora, lora_key),
        "head": init_reward_head(head_key, config.embed_dim, num_components),
    }


def init_state(trainable: Params, tx: optax.GradientTransformation) -> TrainState:
    """Training starts from ``trainable``, with a fresh optimiser."""
    return TrainState(jnp.int32(0), trainable, tx.init(trainable))


def make_optimizer(max_grad_norm: float = 1.0) -> optax.GradientTransformation:
    """Adam's direction for clipped gradients. The learning rate is an argument of the step, not part of the optimiser:
    training calls of any length then share one compiled step."""
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.scale_by_adam())


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """A tenth of the steps to warm up, then cosine decay to a tenth of ``peak``. ``step`` counts from 0."""
    warmup = max(1, total_steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return peak * (0.55 + 0.45 * math.cos(math.pi * progress))
