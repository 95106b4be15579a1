"""Low-rank adapters (LoRA): their products, initial values, and merging into the weights.

A LoRA tree mirrors the part of the parameter tree that it adapts: ``layers/<i>/<module>/{lora_a, lora_b}`` for the
frozen ``layers/<i>/<module>/weight``. Adapters are float32 whatever the dtype of the frozen weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.cpu import materialised
from optimas_jax.models.numerics import KEPT, matmul

Params = dict[Any, Any]
LowRank = tuple[jax.Array, jax.Array]  # A [in, R] and B [R, out]


def module_shapes(base: BackboneConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of each matrix of a layer that can be adapted."""
    dim, q_dim, kv_dim = base.embed_dim, base.num_heads * base.head_dim, base.num_kv_heads * base.head_dim
    mlp = base.mlp_dim
    return {
        "q": (q_dim, dim),
        "k": (kv_dim, dim),
        "v": (kv_dim, dim),
        "o": (dim, q_dim),
        "gate": (mlp, dim),
        "up": (mlp, dim),
        "down": (dim, mlp),
    }


def init_lora_a(key: jax.Array, fan_in: int, rank: int) -> jax.Array:
    """[in, R] float32, uniform with bound 1 / sqrt(in) as PEFT's Kaiming initialisation; ``lora_b`` starts at zero."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, (fan_in, rank), jnp.float32, -bound, bound)


def low_rank(
    x: jax.Array, adapters: Sequence[LowRank], scale: float | jax.Array, cpu_forms: bool = False
) -> list[jax.Array]:
    """``s (x A) B`` for each of several adapters of the same input.

    Args:
      x: [T, in] activations.
      adapters: (A, B), [in, R] and [R, out] float32 each.
      scale: s, or [T, R] for each token and column (``engine.multi_lora``).
      cpu_forms: see ``parallel.platform.Compute``.

    Returns:
      For each adapter [T, out] in the dtype of ``x``. ``x A`` is kept for the backward pass (``KEPT``).
    """
    # One product for all adapters: thin products are slow.
    stacked = jnp.concatenate([a.T for a, _ in adapters])
    stacked = materialised(stacked) if cpu_forms else stacked
    inner = checkpoint_name(matmul(x.astype(jnp.float32), stacked), KEPT)
    parts = jnp.split(inner, np.cumsum([len(b) for _, b in adapters])[:-1], axis=-1)
    return [((scale * part) @ b).astype(x.dtype) for part, (_, b) in zip(parts, adapters, strict=True)]


def merge_lora(params: Params, lora_params: Params, scale: float) -> Params:
    """A new parameter tree with ``W + s (A B)^T`` in place of every adapted ``W``.

    Scoring uses it once per update, so that a forward pass costs no more than with the base model. The sum is computed
    in float32 and stored in the dtype of ``W``.
    """

    def merge(tree: Params, lora: Params) -> Params:
        if "lora_a" in lora:
            weight = tree["weight"]
            delta = scale * (lora["lora_a"] @ lora["lora_b"]).T
            return {**tree, "weight": (weight.astype(jnp.float32) + delta).astype(weight.dtype)}
        return {name: merge(sub, lora[name]) if name in lora else sub for name, sub in tree.items()}

    return merge(params, lora_params)
