"""Attention over ``Tiles``, in loops over tiles of queries and tiles of keys: best on CPU.

A program depends only on T, padding is not computed, and nothing of size [Q, S] is stored for the gradient (Milakov and
Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). Queries are rows [T / TILE, K, G * TILE, H]
(``models.layout.to_rows``): every product is one of [G * TILE, H] with [H, TILE]. Keys and values are
[K, TILE + T + TILE, H]. Scores, softmax and the weighted sum are accumulated in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from optimas_jax.models.layout import BLOCK, MASKED, TILE, StoredKeysValues, Tiles, to_rows, to_tokens, within
from optimas_jax.models.numerics import KEPT

Sums = tuple[jax.Array, jax.Array, jax.Array]
State = TypeVar("State")


def tiled_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, tiles: Tiles, stored: StoredKeysValues | None
) -> jax.Array:
    """Causal attention [T, N, H] within each sequence, see ``models.attention.attention``."""
    queries = to_rows(q * (q.shape[-1] ** -0.5), k.shape[1])
    # A tile may reach beyond its sequence, and so beyond the batch.
    keys, values = (jnp.pad(x.swapaxes(0, 1), ((0, 0), (TILE, TILE), (0, 0))) for x in (k, v))
    if stored is None:
        return to_tokens(_tiled_attention(queries, keys, values, tiles))
    return to_tokens(_attend(queries, keys, values, tiles, stored)[0])


def _tile_start(tiles: Tiles, sequence: jax.Array, tile: jax.Array) -> jax.Array:
    """Index of the first key of a key tile in the padded keys of the batch."""
    return TILE + tiles.begins[sequence] - tiles.starts[sequence] + tile * TILE


def _over_key_tiles(tiles: Tiles, query_tile: jax.Array, body: Callable[..., State], state: State) -> State:
    """Folds ``body(sequence, tile, bias, state)`` over the key tiles of a query tile, in the order of positions;
    ``bias`` [TILE, TILE] is 0 for the keys that a query sees and MASKED for others."""
    padded_part = jnp.pad(tiles.part, TILE)
    padded_positions = None if tiles.positions is None else jnp.pad(tiles.positions, TILE)
    q_sequence, q_index, q_part = (
        jax.lax.dynamic_slice(x, (query_tile * TILE,), (TILE,))[:, None]
        for x in (tiles.sequence, tiles.key_index, tiles.part)
    )
    if tiles.positions is not None:
        q_position = jax.lax.dynamic_slice(tiles.positions, (query_tile * TILE,), (TILE,))[:, None]

    def over_segment(number: jax.Array, state: State) -> State:
        """Folds over the key tiles of a segment."""
        sequence, first, stop, shared = tiles.segments[number]
        of_sequence = (shared == 1) | (q_sequence == sequence)

        def over_tile(tile: jax.Array, state: State) -> State:
            key_index = tile * TILE + jnp.arange(TILE)
            part = jax.lax.dynamic_slice(padded_part, (_tile_start(tiles, sequence, tile),), (TILE,))
            part = jnp.where(key_index < tiles.starts[sequence], 0, part)
            visible = of_sequence & (key_index <= q_index) & ((part == q_part) | (part == 0))
            if padded_positions is not None:
                at = jax.lax.dynamic_slice(padded_positions, (_tile_start(tiles, sequence, tile),), (TILE,))
                at = jnp.where(key_index < tiles.starts[sequence], key_index, at)
                visible &= within(tiles.window, q_position, at)
            return body(sequence, tile, jnp.where(visible, 0.0, MASKED), state)

        return jax.lax.fori_loop(first, stop, over_tile, state)

    return jax.lax.fori_loop(tiles.bounds[query_tile], tiles.bounds[query_tile + 1], over_segment, state)


def _key_tile(computed: jax.Array, stored: jax.Array | None, tiles: Tiles, sequence: jax.Array, tile: jax.Array):
    """Keys or values of one tile, [K, TILE, H]."""
    heads, _, size = computed.shape
    values = jax.lax.dynamic_slice(computed, (0, _tile_start(tiles, sequence, tile), 0), (heads, TILE, size))
    if stored is None:
        return values
    count = TILE // BLOCK
    blocks = jax.lax.dynamic_slice(tiles.blocks, (sequence, tile * count), (1, count))[0]
    earlier = stored[blocks].reshape(TILE, heads, size).swapaxes(0, 1).astype(computed.dtype)
    return jnp.where((tile * TILE + jnp.arange(TILE) < tiles.starts[sequence])[:, None], earlier, values)


def _scores(queries: jax.Array, keys: jax.Array, bias: jax.Array) -> jax.Array:
    """[K, G * TILE, TILE] float32 from [K, G * TILE, H], [K, TILE, H] and [TILE, TILE]."""
    scores = jnp.einsum("kqh,ksh->kqs", queries, keys, preferred_element_type=jnp.float32)
    return (scores.reshape(len(keys), -1, TILE, TILE) + bias).reshape(scores.shape)


def _attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, tiles: Tiles, stored: StoredKeysValues | None
) -> tuple[jax.Array, jax.Array]:
    """Outputs, shaped like ``queries``, and the logarithm of each query's sum of weights [T / TILE, K, G * TILE]."""

    def attend(query_tile: jax.Array, outputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Adds the outputs of a query tile."""
        rows = queries[query_tile]

        def add(sequence: jax.Array, tile: jax.Array, bias: jax.Array, state: Sums) -> Sums:
            highest, total, mixed = state
            k, v = (
                _key_tile(new, old, tiles, sequence, tile)
                for new, old in zip((keys, values), stored or (None, None), strict=True)
            )
            scores = _scores(rows, k, bias)
            higher = jnp.maximum(highest, scores.max(axis=-1))
            weights = jnp.exp(scores - higher[..., None])
            decay = jnp.exp(highest - higher)
            added = jnp.einsum("kqs,ksh->kqh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return higher, total * decay + weights.sum(axis=-1), mixed * decay[..., None] + added

        # Sums over keys before the first visible one are multiplied by exp(MASKED) = 0 at that key.
        nothing = jnp.zeros(rows.shape, jnp.float32)
        state = (jnp.full(rows.shape[:2], MASKED), nothing[..., 0], nothing)
        highest, total, mixed = _over_key_tiles(tiles, query_tile, add, state)
        total = jnp.maximum(total, 1e-30)  # tiles of padding alone have no keys
        out = (mixed / total[..., None]).astype(queries.dtype)
        return outputs[0].at[query_tile].set(out), outputs[1].at[query_tile].set(highest + jnp.log(total))

    zeros = (jnp.zeros(queries.shape, queries.dtype), jnp.zeros(queries.shape[:3], jnp.float32))
    return jax.lax.fori_loop(0, len(queries), attend, zeros)


@jax.custom_vjp
def _tiled_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, tiles: Tiles) -> jax.Array:
    return _attend(queries, keys, values, tiles, None)[0]


def _tiled_forward(queries: jax.Array, keys: jax.Array, values: jax.Array, tiles: Tiles):
    out, log_total = checkpoint_name(_attend(queries, keys, values, tiles, None), KEPT)
    return out, (queries, keys, values, tiles, out, log_total)


def _tiled_backward(residuals: tuple[Any, ...], d_out: jax.Array):
    """Computes the weights again, tile by tile (Dao et al., Algorithm 4), so that nothing of size [Q, S] is stored."""
    queries, keys, values, tiles, out, log_total = residuals
    d_out = d_out.astype(jnp.float32)
    inner = (d_out * out).sum(axis=-1)  # [T / TILE, K, G * TILE]

    def attend(query_tile: jax.Array, grads: Sums) -> Sums:
        """Adds the gradients of a query tile."""
        rows, d_rows = queries[query_tile], d_out[query_tile]

        def add(sequence: jax.Array, tile: jax.Array, bias: jax.Array, state: Sums) -> Sums:
            """Adds the gradients of a query tile and a key tile."""
            d_rows_in, d_keys, d_values = state
            k, v = (_key_tile(x, None, tiles, sequence, tile) for x in (keys, values))
            weights = jnp.exp(_scores(rows, k, bias) - log_total[query_tile][..., None])
            d_weights = jnp.einsum("kqh,ksh->kqs", d_rows, v)
            d_scores = weights * (d_weights - inner[query_tile][..., None])
            at = (0, _tile_start(tiles, sequence, tile), 0)

            def add_at(sums: jax.Array, part: jax.Array) -> jax.Array:
                return jax.lax.dynamic_update_slice(sums, jax.lax.dynamic_slice(sums, at, part.shape) + part, at)

            return (
                d_rows_in + jnp.einsum("kqs,ksh->kqh", d_scores, k.astype(jnp.float32)),
                add_at(d_keys, jnp.einsum("kqs,kqh->ksh", d_scores, rows.astype(jnp.float32))),
                add_at(d_values, jnp.einsum("kqs,kqh->ksh", weights, d_rows)),
            )

        d_queries, d_keys, d_values = grads
        zeros = jnp.zeros(rows.shape, jnp.float32)
        d_rows_in, d_keys, d_values = _over_key_tiles(tiles, query_tile, add, (zeros, d_keys, d_values))
        return d_queries.at[query_tile].set(d_rows_in), d_keys, d_values

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (queries, keys, values))
    grads = jax.lax.fori_loop(0, len(queries), attend, zeros)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, (queries, keys, values), strict=True)), None


_tiled_attention.defvjp(_tiled_forward, _tiled_backward)
