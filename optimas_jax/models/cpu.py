"""Forms of products, sums and arg max for XLA's CPU code: faster there, or equal to the bit for any number of rows.

Used if ``Compute.cpu_forms`` is set (``parallel.platform``). Other platforms use the plain operations: there these
forms would only keep the compiler from fusing operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")

_SMALL = 4096  # numbers: XLA sums smaller arrays in another order
_BLOCK = 128  # entries of a row of which ``arg_max`` takes the maximum together


def weight_first(x: jax.Array, weight: jax.Array, dtype: Any = None) -> jax.Array:
    """``numerics.matmul`` for few rows x [B, in], with the weight as the left operand.

    XLA's CPU product copies its right operand into another order at every call, which for 8 rows takes longer than
    the multiplication. The barrier keeps XLA from exchanging the operands again.
    """
    product = jax.lax.dot_general(weight, x, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
    return jax.lax.optimization_barrier(product).T


def materialised(transposed: jax.Array) -> jax.Array:
    """A transposed matrix A^T [R, in], computed before the product that reads it.

    The gradient of the product is then computed as dy^T x; without the barrier XLA computes x^T dy, which takes up to
    three times as long on CPU.
    """
    return jax.lax.optimization_barrier(transposed)


def over_padded_rows(reduce: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """``reduce`` of the rows of x [B, ...], with equal bits for a row whatever B is.

    XLA's CPU code sums arrays of fewer than ``_SMALL`` numbers in another order, so smaller arrays are padded to that
    size.
    """
    rows = -(-_SMALL * len(x) // x.size)
    if rows <= len(x):
        return reduce(x)
    return reduce(jnp.pad(x, ((0, rows - len(x)), *[(0, 0)] * (x.ndim - 1))))[: len(x)]


def one_by_one(function: Callable[[Tree], jax.Array], rows: Tree) -> jax.Array:
    """``function`` of each row of a tree of arrays [B, ...], as a batch of one; its outputs [1, ...] are stacked.

    A loop instead of one batch, because XLA's CPU code chooses the order of a sum by the shape of the whole array.
    """

    def of_row(row: Tree) -> jax.Array:
        return function(jax.tree.map(lambda leaf: leaf[None], row))[0]

    return jax.lax.map(of_row, rows)


def arg_max(x: jax.Array) -> jax.Array:
    """First position of the largest entry of each row, [B, V] -> [B] int32, in two levels.

    XLA's CPU code computes the maximum of each block in an eighth of the time that an arg max over the row takes.
    """
    blocks = split_into_blocks(x, -jnp.inf)
    block = jnp.argmax(blocks.max(axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * _BLOCK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def split_into_blocks(x: jax.Array, fill: float) -> jax.Array:
    """[B, V] -> [B, ceil(V / 128), 128], padded with ``fill``."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK)), constant_values=fill)
    return padded.reshape(len(x), -1, _BLOCK)
