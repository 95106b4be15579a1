"""Products and sums for which it matters how XLA's CPU code takes them: for their speed, or for their last digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Product = Callable[..., jax.Array]

KEPT = "kept"  # name of what a layer keeps for its backward pass, where it computes the rest again


def matmul(x: jax.Array, weight: jax.Array, dtype: Any = None) -> jax.Array:
    """x [..., in], weight [out, in] -> [..., out] of ``dtype`` (default: theirs)."""
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=dtype)


def weight_first(x: jax.Array, weight: jax.Array, dtype: Any = None) -> jax.Array:
    """``matmul`` for a few rows [B, in] on CPU: XLA's product there copies its right operand into another order at
    every call, which for 8 rows takes longer than to multiply. The barrier keeps XLA from turning it around again."""
    product = jax.lax.dot_general(weight, x, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    return jax.lax.optimization_barrier(product).T


_FEW = 4096  # numbers


def whatever_the_rows(reduce: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """``reduce`` of the rows of x [B, ...], so that a row gets the same bits whatever B: XLA's CPU code adds up arrays
    of fewer numbers than ``_FEW`` in another order, so there have to be as many."""
    rows = -(-_FEW * len(x) // x.size)
    if rows <= len(x):
        return reduce(x)
    return reduce(jnp.pad(x, ((0, rows - len(x)), *[(0, 0)] * (x.ndim - 1))))[: len(x)]
