"""Attention over ``TilePairs``: stores no array of queries times keys; work is proportional to the pairs of tiles.

Two implementations compute the same: many pairs at once by XLA (here; every platform), and a Pallas kernel
(``models.kernel``; TPU). Both keep the highest score and the sum of weights of each query (Milakov and Gimelshein,
arXiv 1805.02867), and compute the weights again for the gradient (Dao et al., arXiv 2205.14135, Algorithm 4).

Queries are rows [T / TILE, K, R, H] with R = G * TILE (``models.layout.to_rows``), keys and values tiles
[(S0 + T) / TILE, K, TILE, H]. Scores, softmax and sums are float32; inputs of products have the values' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from optimas_jax.models import kernel
from optimas_jax.models.layout import (
    MASKED,
    TILE,
    Pairs,
    Seen,
    StoredKeysValues,
    TilePairs,
    gather,
    to_rows,
    to_tokens,
    visible,
)
from optimas_jax.models.numerics import KEPT

CHUNK = 64  # pairs that XLA computes at once
_EVERYTHING = 1 << 30  # a window that hides no key


def pairs_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, layout: TilePairs, stored: StoredKeysValues | None, use_kernel: bool
) -> jax.Array:
    """Causal attention [T, N, H] within each sequence, see ``models.attention.attention``.

    Args:
      use_kernel: whether the Pallas kernel computes it.
    """
    rows = to_rows(q * (q.shape[-1] ** -0.5), k.shape[1])
    if stored is not None:
        k, v = (jnp.concatenate([_of_store(old, layout), new]) for old, new in zip(stored, (k, v), strict=True))
    keys, values = (x.reshape(-1, TILE, *x.shape[1:]).swapaxes(1, 2) for x in (k, v))
    pairs = Pairs(layout.by_query, layout.by_key, layout.counts)
    return to_tokens(_attend(use_kernel, rows, keys, values, _seen(layout), pairs))


def _of_store(stored: jax.Array, layout: TilePairs) -> jax.Array:
    """[S0, K, H] keys or values of earlier batches."""
    return gather(stored.reshape(-1, *stored.shape[2:]), layout.stored)


def _seen(layout: TilePairs) -> Seen:
    positions = layout.key_index if layout.positions is None else layout.positions
    queries = jnp.stack([layout.sequence, layout.key_index, layout.part, positions], axis=-1)
    index = layout.stored_index
    stored = jnp.stack([layout.stored_sequence, index, jnp.zeros_like(index), index], axis=-1)
    keys = jnp.concatenate([stored, queries]).reshape(-1, TILE, 4).swapaxes(1, 2)
    window = jnp.full(1, _EVERYTHING if layout.window is None else layout.window, jnp.int32)
    return Seen(queries.reshape(-1, TILE, 4), keys, window)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    use_kernel: bool, rows: jax.Array, keys: jax.Array, values: jax.Array, seen: Seen, pairs: Pairs
) -> jax.Array:
    return _outputs(use_kernel)(rows, keys, values, seen, pairs)[0]


def _forward(use_kernel: bool, rows: jax.Array, keys: jax.Array, values: jax.Array, seen: Seen, pairs: Pairs):
    out, log_total = checkpoint_name(_outputs(use_kernel)(rows, keys, values, seen, pairs), KEPT)
    return out, (rows, keys, values, seen, pairs, out, log_total)


def _backward(use_kernel: bool, residuals, d_out: jax.Array):
    rows, keys, values, seen, pairs, out, log_total = residuals
    inner = (d_out.astype(jnp.float32) * out).sum(axis=-1)
    by_query, by_key = (
        (kernel.query_gradients, kernel.key_gradients) if use_kernel else (query_gradients, key_gradients)
    )
    of_both = rows, keys, values, seen, pairs, d_out, log_total, inner
    return by_query(*of_both), *by_key(*of_both), None, None


_attend.defvjp(_forward, _backward)


def _outputs(use_kernel: bool):
    return kernel.outputs if use_kernel else outputs


def outputs(
    rows: jax.Array, keys: jax.Array, values: jax.Array, seen: Seen, pairs: Pairs
) -> tuple[jax.Array, jax.Array]:
    """Outputs, shaped like ``rows``, and the logarithm of each query's sum of weights [T / TILE, K, R]."""

    def add(chunk: _Chunk, state: Sequence[jax.Array]) -> Sequence[jax.Array]:
        highest, total, mixed = (chunk.window(part) for part in state)
        scores = chunk.scores(rows, keys, seen)
        higher = jnp.maximum(highest, jax.ops.segment_max(scores.max(axis=-1), chunk.local, CHUNK))
        weights = jnp.exp(scores - higher[chunk.local][..., None])
        decay = jnp.exp(highest - higher)
        added = _product("pkqs,pksh->pkqh", weights.astype(values.dtype), values[chunk.key])
        total = total * decay + chunk.sums(weights.sum(axis=-1))
        mixed = mixed * decay[..., None] + chunk.sums(added)
        return [chunk.put(*both) for both in zip(state, (higher, total, mixed), strict=True)]

    room = len(rows) + CHUNK
    nothing = jnp.zeros((room, *rows.shape[1:]), jnp.float32)
    state = [jnp.full(nothing.shape[:3], MASKED), nothing[..., 0], nothing]
    highest, total, mixed = (part[: len(rows)] for part in _over_chunks(pairs.by_query, pairs.counts[0], 0, add, state))
    total = jnp.maximum(total, 1e-30)
    return (mixed / total[..., None]).astype(rows.dtype), highest + jnp.log(total)


def query_gradients(
    rows: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    seen: Seen,
    pairs: Pairs,
    d_out: jax.Array,
    log_total: jax.Array,
    inner: jax.Array,
) -> jax.Array:
    """Gradient of the rows.

    Args:
      d_out: of the outputs.
      log_total: from ``outputs``.
      inner: [T / TILE, K, R] sum of outputs times their gradients.
    """

    def add(chunk: _Chunk, state: Sequence[jax.Array]) -> Sequence[jax.Array]:
        _, d_scores = chunk.gradients(rows, keys, values, seen, d_out, log_total, inner)
        part = _product("pkqs,pksh->pkqh", d_scores.astype(keys.dtype), keys[chunk.key])
        return [chunk.put(state[0], chunk.window(state[0]) + chunk.sums(part))]

    nothing = jnp.zeros((len(rows) + CHUNK, *rows.shape[1:]), jnp.float32)
    [d_rows] = _over_chunks(pairs.by_query, pairs.counts[0], 0, add, [nothing])
    return d_rows[: len(rows)].astype(rows.dtype)


def key_gradients(
    rows: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    seen: Seen,
    pairs: Pairs,
    d_out: jax.Array,
    log_total: jax.Array,
    inner: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of keys and values; arguments as in ``query_gradients``."""

    def add(chunk: _Chunk, state: Sequence[jax.Array]) -> Sequence[jax.Array]:
        weights, d_scores = chunk.gradients(rows, keys, values, seen, d_out, log_total, inner)
        d_keys = _product("pkqs,pkqh->pksh", d_scores.astype(rows.dtype), rows[chunk.query])
        d_values = _product("pkqs,pkqh->pksh", weights.astype(d_out.dtype), d_out[chunk.query])
        return [
            chunk.put(sums, chunk.window(sums) + chunk.sums(part))
            for sums, part in zip(state, (d_keys, d_values), strict=True)
        ]

    nothing = jnp.zeros((len(keys) + CHUNK, *keys.shape[1:]), jnp.float32)
    d_keys, d_values = _over_chunks(pairs.by_key, pairs.counts[1], 1, add, [nothing, nothing])
    return d_keys[: len(keys)].astype(keys.dtype), d_values[: len(keys)].astype(values.dtype)


class _Chunk(NamedTuple):
    """Pairs that are computed at once. They belong to neighbouring tiles, whose sums are a window of CHUNK tiles.

    Attributes:
      query, key: [CHUNK] query tile and key tile of each pair.
      real: [CHUNK] bool, False for a pair in which no query sees a key.
      first: the first tile of the window.
      local: [CHUNK] tile of each pair within the window.
    """

    query: jax.Array
    key: jax.Array
    real: jax.Array
    first: jax.Array
    local: jax.Array

    def scores(self, rows: jax.Array, keys: jax.Array, seen: Seen) -> jax.Array:
        """Scores [CHUNK, K, R, TILE] float32, MASKED for keys that a query does not see."""
        scores = _product("pkqh,pksh->pkqs", rows[self.query], keys[self.key])
        sees = visible(seen.queries[self.query], seen.keys[self.key], seen.window) & self.real[:, None, None]
        bias = jnp.where(sees, 0.0, MASKED)
        by_head = scores.reshape(*scores.shape[:2], -1, TILE, TILE) + bias[:, None, None]
        return by_head.reshape(scores.shape)

    def gradients(
        self,
        rows: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        seen: Seen,
        d_out: jax.Array,
        log_total: jax.Array,
        inner: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Weights, and gradients of the scores, [CHUNK, K, R, TILE] float32 each."""
        weights = jnp.exp(self.scores(rows, keys, seen) - log_total[self.query][..., None])
        d_weights = _product("pkqh,pksh->pkqs", d_out[self.query], values[self.key])
        return weights, weights * (d_weights - inner[self.query][..., None])

    def sums(self, parts: jax.Array) -> jax.Array:
        """Sums of the pairs' parts [CHUNK, ...] by tile of the window; a product, which adds in a fixed order."""
        of_tile = (jnp.arange(CHUNK)[:, None] == self.local).astype(jnp.float32)
        return jnp.tensordot(of_tile, parts, axes=1, precision=jax.lax.Precision.HIGHEST)

    def window(self, sums: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(sums, self.first, CHUNK)

    def put(self, sums: jax.Array, window: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(sums, window, self.first, 0)


def _over_chunks(table: jax.Array, count: jax.Array, column: int, add, state: Sequence[jax.Array]):
    """Folds ``add`` over the pairs of a table, which is sorted by its ``column``."""
    table = jnp.pad(table, ((0, -len(table) % CHUNK), (0, 0)))

    def over_chunk(number: jax.Array, state: Sequence[jax.Array]) -> Sequence[jax.Array]:
        query, key, real = jax.lax.dynamic_slice_in_dim(table, number * CHUNK, CHUNK).T
        counts = number * CHUNK + jnp.arange(CHUNK) < count
        tile = (query, key)[column]
        local = jnp.where(counts, tile - tile[0], 0)
        return add(_Chunk(query, key, counts & (real == 1), tile[0], local), state)

    return jax.lax.fori_loop(0, -(-count // CHUNK), over_chunk, list(state))


def _product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)
