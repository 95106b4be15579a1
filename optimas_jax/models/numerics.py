"""The product of activations and weights, and the name of the arrays that a layer keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

Product = Callable[..., jax.Array]

KEPT = "kept"  # name of the arrays that a layer keeps for its backward pass; it computes the rest again


def matmul(x: jax.Array, weight: jax.Array, dtype: Any = None) -> jax.Array:
    """x [..., in], weight [out, in] -> [..., out] of ``dtype`` (default: the inputs' dtype)."""
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=dtype)
