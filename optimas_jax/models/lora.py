"""Low-rank adapters: what they add to a product, how they start, and how they are merged.

A LoRA tree mirrors the part of the parameter tree that it adapts: ``layers/<i>/<module>/{lora_a, lora_b}`` beside the
frozen ``layers/<i>/<module>/kernel``. Adapters are float32 whatever the dtype of the frozen weights.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

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
    x: jax.Array, kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array, *, scale: float, merge: bool
) -> jax.Array:
    """``x (W + s A B)`` with gradients for x, A and B only; the frozen ``W`` gets none.

    Args:
      x: [..., in] activations.
      kernel: [in, out] frozen weights.
      lora_a: [in, R] float32.
      lora_b: [R, out] float32.
      scale: s.
      merge: form ``W + s A B`` once and multiply once (float32 only, see ``parallel.platform.Compute``).
    """
    if merge:
        return _merged_linear(x, kernel, lora_a, lora_b, scale)
    low_rank = (x.astype(jnp.float32) @ lora_a) @ lora_b
    return x @ kernel + (scale * low_rank).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _merged_linear(x, kernel, lora_a, lora_b, scale):
    return x @ (kernel + scale * (lora_a @ lora_b))


def _merged_forward(x, kernel, lora_a, lora_b, scale):
    merged = kernel + scale * (lora_a @ lora_b)
    return x @ merged, (x, merged, lora_a, lora_b)


def _merged_backward(scale, residuals, dy):
    """dx through the merged matrix; dA = x^T (dy B^T), dB = (x A)^T dy: no dense dW is ever formed."""
    x, merged, lora_a, lora_b = residuals
    flat_x, flat_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = jax.lax.dot_general(dy, merged, (((dy.ndim - 1,), (1,)), ((), ())))
    d_lora_a = scale * (flat_x.T @ (flat_dy @ lora_b.T))
    d_lora_b = scale * ((flat_x @ lora_a).T @ flat_dy)
    return dx, None, d_lora_a, d_lora_b


_merged_linear.defvjp(_merged_forward, _merged_backward)


def merge_lora(params: Params, lora_params: Params, scale: float) -> Params:
    """A new parameter tree with ``W + s A B`` in place of every adapted ``W``; ``params`` is left as it is.

    Scoring and sampling use it once per update, so that a forward pass costs no more than the base model's. The sum
    is taken in float32 and stored in the dtype of ``W``.
    """

    def merge(tree: Params, lora: Params) -> Params:
        if "lora_a" in lora:
            kernel = tree["kernel"]
            delta = scale * (lora["lora_a"] @ lora["lora_b"])
            return {**tree, "kernel": (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)}
        return {name: merge(sub, lora[name]) if name in lora else sub for name, sub in tree.items()}

    return merge(params, lora_params)
