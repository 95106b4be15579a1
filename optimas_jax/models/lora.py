"""Low-rank adapters: what they add to a product, how they start, and how they are merged.

A LoRA tree mirrors the part of the parameter tree that it adapts: ``layers/<i>/<module>/{lora_a, lora_b}`` beside the
frozen ``layers/<i>/<module>/weight``. Adapters are float32 whatever the dtype of the frozen weights.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from optimas_jax.models.numerics import matmul

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")

Params = dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What is adapted, and how strongly (paper: rank 32, alpha 16, every layer).

    Attributes:
      rank: R.
      alpha: the product is scaled by alpha / R.
      targets: which of a layer's seven matrices get an adapter.
      last_layers: adapt only that many layers, counted from the top; no gradient is computed below them. 0 for all.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    last_layers: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f"LoRA targets must be a non-empty choice of {', '.join(TARGETS)}; got {self.targets!r}")
        if self.rank < 1 or self.last_layers < 0:
            raise ValueError(
                f"LoRA rank must be at least 1 and last_layers at least 0, got {self.rank} and {self.last_layers}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def adapts(self, layer: int, num_layers: int) -> bool:
        """Whether layer ``layer`` (from 0 at the bottom) gets adapters."""
        return self.last_layers == 0 or layer >= num_layers - self.last_layers


def init_lora_a(key: jax.Array, fan_in: int, rank: int) -> jax.Array:
    """[in, R] float32, uniform with bound 1 / sqrt(in) as PEFT's Kaiming initialisation; ``lora_b`` starts at zero."""
    bound = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, (fan_in, rank), jnp.float32, -bound, bound)


def lora_linear(
    x: jax.Array, weight: jax.Array, lora_a: jax.Array, lora_b: jax.Array, *, scale: float, merge: bool
) -> jax.Array:
    """``x (W^T + s A B)`` with gradients for x, A and B only; the frozen ``W`` gets none.

    Args:
      x: [..., in] activations.
      weight: W, [out, in], frozen.
      lora_a: [in, R] float32.
      lora_b: [R, out] float32.
      scale: s.
      merge: form ``W^T + s A B`` once and multiply once (float32 only, see ``parallel.platform.Compute``).
    """
    if merge:
        return _merged_linear(x, weight, lora_a, lora_b, scale)
    low_rank = (x.astype(jnp.float32) @ lora_a) @ lora_b
    return matmul(x, weight) + (scale * low_rank).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _merged_linear(x, weight, lora_a, lora_b, scale):
    return matmul(x, weight + scale * (lora_a @ lora_b).T)


def _merged_forward(x, weight, lora_a, lora_b, scale):
    return _merged_linear(x, weight, lora_a, lora_b, scale), (x, weight, lora_a, lora_b)


def _merged_backward(scale, residuals, dy):
    """dx = dy (W^T + s A B)^T, dA = s x^T (dy B^T), dB = s (x A)^T dy: no dense dW is ever formed, and the sum of the
    matrices is not kept, which would be a second copy of the weights."""
    x, weight, lora_a, lora_b = residuals
    flat_x, flat_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dy_b = flat_dy @ lora_b.T
    dx = flat_dy @ weight + scale * (dy_b @ lora_a.T)
    # (dy B^T)^T x and turned: XLA's CPU code takes up to three times as long for x^T (dy B^T), which is what it would
    # make of this without the barrier.
    d_lora_a = scale * jax.lax.optimization_barrier(dy_b.T @ flat_x).T
    d_lora_b = scale * ((flat_x @ lora_a).T @ flat_dy)
    return dx.reshape(x.shape), None, d_lora_a, d_lora_b


_merged_linear.defvjp(_merged_forward, _merged_backward)


def merge_lora(params: Params, lora_params: Params, scale: float) -> Params:
    """A new parameter tree with ``W + s (A B)^T`` in place of every adapted ``W``; ``params`` is left as it is.

    Scoring and sampling use it once per update, so that a forward pass costs no more than the base model's. The sum
    is taken in float32 and stored in the dtype of ``W``.
    """

    def merge(tree: Params, lora: Params) -> Params:
        if "lora_a" in lora:
            weight = tree["weight"]
            delta = scale * (lora["lora_a"] @ lora["lora_b"]).T
            return {**tree, "weight": (weight.astype(jnp.float32) + delta).astype(weight.dtype)}
        return {name: merge(sub, lora[name]) if name in lora else sub for name, sub in tree.items()}

    return merge(params, lora_params)
