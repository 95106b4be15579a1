"""Grouped-query attention within the sequences of a flat batch, and of one new token over a cache.

Shape letters: T tokens of a flat batch, B sequences, Q query tokens and S key positions of a sequence, P stored
positions, N query heads, K kv heads, G = N / K query heads of one kv head, H head dim. Scores, softmax and the weighted
sum are accumulated in float32.

A *flat batch* is one axis of tokens, sequence after sequence, with no padding between them: whatever is computed token
by token wastes nothing. Attention alone looks at sequences, in one of two layouts:

- ``Tiles``: loops over tiles of queries and tiles of keys, as many as there are. A program depends on T and on nothing
  else, no work is done for padding, and nothing of size [Q, S] is stored for the gradient. Best on CPU.
- ``Spans``: sequences are gathered into rows, for the platform's own kernels.

The keys of a sequence always stand in the order of their positions, wherever they come from (this batch or an earlier
one), and are read in the same tiles: on CPU a sequence gets the same bits whatever shares its batch, and however much
of it was kept (tests hold this; with Qwen3's q/k norm the last digits may differ).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from optimas_jax.models.numerics import KEPT, whatever_the_rows

BLOCK = 16  # stored keys and values come in blocks of this many positions
TILE = 64  # queries and keys of one tile; a multiple of BLOCK
_MASKED = -1e30  # a finite stand-in for minus infinity: exp() of it is 0 and its gradient is not NaN

KeysValues = tuple[jax.Array, jax.Array]  # [positions, K, H] each
StoredKeysValues = tuple[jax.Array, jax.Array]  # [P / BLOCK, BLOCK, K, H] each
Sums = tuple[jax.Array, jax.Array, jax.Array]
State = TypeVar("State")


class Tiles(NamedTuple):
    """What attention has to compute, tile by tile; every array is int32.

    A query tile is TILE tokens of the flat batch. Its keys come in *segments*: key tiles ``first`` to ``stop`` of one
    sequence (key tile j is its key positions from j * TILE on), seen by the tokens of that sequence, or, where all
    sequences of the query tile begin with the same stored blocks, by all its tokens.

    Attributes:
      sequence: [T] number of each token's sequence, -1 for padding.
      place: [T] its position among the keys of its sequence.
      part: [T] for groups of candidates, 0 for the prefix, else the candidate. A token sees its own part and part 0.
      begins: [B] place of each sequence's first token in the flat batch.
      starts: [B] keys before it, which were stored earlier.
      blocks: [B, S / BLOCK] the stored blocks of these.
      segments: [n, 4] sequence, first, stop, and whether all tokens see it.
      bounds: [T / TILE + 1] segments of query tile t: from bounds[t] to bounds[t + 1].
    """

    sequence: Any
    place: Any
    part: Any
    begins: Any
    starts: Any
    blocks: Any
    segments: Any
    bounds: Any


class Spans(NamedTuple):
    """Where the sequences of a flat batch lie.

    Attributes:
      queries: [B, Q] int32 place of each sequence's tokens in the flat batch, T for padding.
      keys: [B, S] int32 place of each sequence's keys in ``[stored | flat batch]``, P + T for padding.
      inverse: [T] int32 place of each token in the flattened [B * Q]; anything for padding tokens.
      starts: [B] int32 keys before the first query, which were stored earlier.
      parts: for groups of candidates (None for plain sequences), [B, S] int32: a number for each part (prefix or
        candidate), -1 for padding. A token sees, causally, its own part and the prefix, which is part 0.
    """

    queries: Any
    keys: Any
    inverse: Any
    starts: Any
    parts: Any = None

    def visible(self, queries: int, keys: int) -> jax.Array:
        """[B, queries, keys] bool. Padding is only seen by padding."""
        places = self.starts[:, None] + jnp.arange(queries)
        causal = jnp.arange(keys) <= places[..., None]
        if self.parts is None:
            return causal
        parts = self.parts[:, None, :]
        return causal & ((parts == self.parts[..., None]) | (parts == 0))


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, layout: Tiles | Spans, stored: StoredKeysValues | None
) -> jax.Array:
    """Causal attention within each sequence. Has a gradient where nothing is stored.

    Args:
      q: [T, N, H] rotated queries.
      k: [T, K, H] rotated keys.
      v: [T, K, H] values.
      layout: where the sequences are.
      stored: keys and values of earlier batches, or None if ``layout`` refers to none.

    Returns:
      [T, N, H] in the dtype of ``q``.
    """
    if isinstance(layout, Tiles):
        queries = _to_rows(q * (q.shape[-1] ** -0.5), k.shape[1])
        # A tile may reach beyond its sequence, and so beyond the batch.
        keys, values = (jnp.pad(x.swapaxes(0, 1), ((0, 0), (TILE, TILE), (0, 0))) for x in (k, v))
        if stored is None:
            return _to_tokens(_tiled_attention(queries, keys, values, layout))
        return _to_tokens(_attend(queries, keys, values, layout, stored)[0])
    q_rows = gather(q, layout.queries)
    k_rows, v_rows = (gather(own, layout.keys, old) for own, old in zip((k, v), stored or (None, None), strict=True))
    mask = layout.visible(q_rows.shape[1], k_rows.shape[1])[:, None]
    out = jax.nn.dot_product_attention(q_rows, k_rows, v_rows, mask=mask)
    return out.reshape(-1, *out.shape[2:])[layout.inverse]


def gather(own: jax.Array, places: jax.Array, stored: jax.Array | None = None) -> jax.Array:
    """Rows of ``own`` [T, ...] at ``places`` [...], zeros beyond the end. With ``stored`` [P / BLOCK, BLOCK, ...],
    places count in [stored | own], which are too large to be put together."""
    if stored is None:
        return own.at[places].get(mode="fill", fill_value=0)
    earlier = stored.reshape(-1, *stored.shape[2:])
    is_stored = places < earlier.shape[0]
    beyond = jnp.where(is_stored, own.shape[0], places - earlier.shape[0])
    is_stored = is_stored.reshape(*places.shape, *[1] * (own.ndim - 1))
    return jnp.where(is_stored, gather(earlier, places).astype(own.dtype), gather(own, beyond))


# Tiled attention (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). Queries are rows
# [T / TILE, K, G * TILE, H]: the G query heads that share a kv head are stacked, and every product is one of
# [G * TILE, H] with [H, TILE]. Keys and values are [K, TILE + T + TILE, H].


def _to_rows(x: jax.Array, num_kv_heads: int) -> jax.Array:
    """[T, N, H] -> [T / TILE, K, G * TILE, H]."""
    tokens, heads, size = x.shape
    x = x.reshape(tokens // TILE, TILE, num_kv_heads, heads // num_kv_heads, size).transpose(0, 2, 3, 1, 4)
    return x.reshape(tokens // TILE, num_kv_heads, -1, size)


def _to_tokens(x: jax.Array) -> jax.Array:
    """The inverse."""
    tiles, num_kv_heads, _, size = x.shape
    x = x.reshape(tiles, num_kv_heads, -1, TILE, size).transpose(0, 3, 1, 2, 4)
    return x.reshape(tiles * TILE, -1, size)


def _own_place(tiles: Tiles, sequence: jax.Array, tile: jax.Array) -> jax.Array:
    """Where a key tile begins in the padded keys of the batch."""
    return TILE + tiles.begins[sequence] - tiles.starts[sequence] + tile * TILE


def _over_key_tiles(tiles: Tiles, query_tile: jax.Array, body: Callable[..., State], state: State) -> State:
    """Folds ``body(sequence, tile, bias, state)`` over the key tiles of a query tile, in the order of positions;
    ``bias`` [TILE, TILE] is 0 for the keys that a query sees and _MASKED for others."""
    own_part = jnp.pad(tiles.part, TILE)
    q_sequence, q_place, q_part = (
        jax.lax.dynamic_slice(x, (query_tile * TILE,), (TILE,))[:, None]
        for x in (tiles.sequence, tiles.place, tiles.part)
    )

    def over_segment(number: jax.Array, state: State) -> State:
        sequence, first, stop, shared = tiles.segments[number]
        of_sequence = (shared == 1) | (q_sequence == sequence)

        def over_tile(tile: jax.Array, state: State) -> State:
            places = tile * TILE + jnp.arange(TILE)
            part = jax.lax.dynamic_slice(own_part, (_own_place(tiles, sequence, tile),), (TILE,))
            part = jnp.where(places < tiles.starts[sequence], 0, part)
            visible = of_sequence & (places <= q_place) & ((part == q_part) | (part == 0))
            return body(sequence, tile, jnp.where(visible, 0.0, _MASKED), state)

        return jax.lax.fori_loop(first, stop, over_tile, state)

    return jax.lax.fori_loop(tiles.bounds[query_tile], tiles.bounds[query_tile + 1], over_segment, state)


def _key_tile(own: jax.Array, stored: jax.Array | None, tiles: Tiles, sequence: jax.Array, tile: jax.Array):
    """Keys or values of one tile, [K, TILE, H]."""
    heads, _, size = own.shape
    values = jax.lax.dynamic_slice(own, (0, _own_place(tiles, sequence, tile), 0), (heads, TILE, size))
    if stored is None:
        return values
    count = TILE // BLOCK
    blocks = jax.lax.dynamic_slice(tiles.blocks, (sequence, tile * count), (1, count))[0]
    earlier = stored[blocks].reshape(TILE, heads, size).swapaxes(0, 1).astype(own.dtype)
    return jnp.where((tile * TILE + jnp.arange(TILE) < tiles.starts[sequence])[:, None], earlier, values)


def _scores(queries: jax.Array, keys: jax.Array, bias: jax.Array) -> jax.Array:
    """[K, G * TILE, TILE] float32 from [K, G * TILE, H], [K, TILE, H] and [TILE, TILE]."""
    scores = jnp.einsum("kqh,ksh->kqs", queries, keys, preferred_element_type=jnp.float32)
    return (scores.reshape(len(keys), -1, TILE, TILE) + bias).reshape(scores.shape)


def _attend(
    queries: jax.Array, keys: jax.Array, values: jax.Array, tiles: Tiles, stored: StoredKeysValues | None
) -> tuple[jax.Array, jax.Array]:
    """The outputs, like ``queries``, and the logarithm of each query's sum of weights [T / TILE, K, G * TILE]."""

    def attend(query_tile: jax.Array, done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows = queries[query_tile]

        def add(sequence: jax.Array, tile: jax.Array, bias: jax.Array, state: Sums) -> Sums:
            highest, total, mixed = state
            k, v = (
                _key_tile(own, old, tiles, sequence, tile)
                for own, old in zip((keys, values), stored or (None, None), strict=True)
            )
            scores = _scores(rows, k, bias)
            higher = jnp.maximum(highest, scores.max(axis=-1))
            weights = jnp.exp(scores - higher[..., None])
            kept = jnp.exp(highest - higher)
            added = jnp.einsum("kqs,ksh->kqh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return higher, total * kept + weights.sum(axis=-1), mixed * kept[..., None] + added

        # What a token adds up before the first key that it sees is multiplied by exp(_MASKED) = 0 when that one comes.
        nothing = jnp.zeros(rows.shape, jnp.float32)
        state = (jnp.full(rows.shape[:2], _MASKED), nothing[..., 0], nothing)
        highest, total, mixed = _over_key_tiles(tiles, query_tile, add, state)
        total = jnp.maximum(total, 1e-30)  # tiles of nothing but padding have no keys
        out = (mixed / total[..., None]).astype(queries.dtype)
        return done[0].at[query_tile].set(out), done[1].at[query_tile].set(highest + jnp.log(total))

    done = (jnp.zeros(queries.shape, queries.dtype), jnp.zeros(queries.shape[:3], jnp.float32))
    return jax.lax.fori_loop(0, len(queries), attend, done)


@jax.custom_vjp
def _tiled_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, tiles: Tiles) -> jax.Array:
    return _attend(queries, keys, values, tiles, None)[0]


def _tiled_forward(queries: jax.Array, keys: jax.Array, values: jax.Array, tiles: Tiles):
    out, log_total = checkpoint_name(_attend(queries, keys, values, tiles, None), KEPT)
    return out, (queries, keys, values, tiles, out, log_total)


def _tiled_backward(residuals: tuple[Any, ...], d_out: jax.Array):
    """Weights are computed again, tile by tile (Dao et al., Algorithm 4): nothing of size [Q, S] is ever stored."""
    queries, keys, values, tiles, out, log_total = residuals
    d_out = d_out.astype(jnp.float32)
    inner = (d_out * out).sum(axis=-1)  # [T / TILE, K, G * TILE]

    def attend(query_tile: jax.Array, grads: Sums) -> Sums:
        rows, d_rows = queries[query_tile], d_out[query_tile]

        def add(sequence: jax.Array, tile: jax.Array, bias: jax.Array, state: Sums) -> Sums:
            d_rows_in, d_keys, d_values = state
            k, v = (_key_tile(own, None, tiles, sequence, tile) for own in (keys, values))
            weights = jnp.exp(_scores(rows, k, bias) - log_total[query_tile][..., None])
            d_weights = jnp.einsum("kqh,ksh->kqs", d_rows, v)
            d_scores = weights * (d_weights - inner[query_tile][..., None])
            at = (0, _own_place(tiles, sequence, tile), 0)

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


def decode_attention(q: jax.Array, k_cache: jax.Array, v_cache: jax.Array, positions: jax.Array) -> jax.Array:
    """Attention of one new token over a cache that already holds its own key and value.

    Args:
      q: [B, N, H] rotated query.
      k_cache: [B, K, H, S] rotated keys, transposed: both products then read their cache in memory order.
      v_cache: [B, K, S, H] values.
      positions: [B] int32 position of the token: slots up to it are filled.

    Returns:
      [B, N, H] in the dtype of ``q``.
    """
    batch, num_heads, head_dim = q.shape
    num_kv_heads, slots = k_cache.shape[1], k_cache.shape[3]
    queries = q.reshape(batch, num_kv_heads, num_heads // num_kv_heads, head_dim) * (head_dim**-0.5)
    scores = jnp.einsum("bkgh,bkhs->bkgs", queries, k_cache, preferred_element_type=jnp.float32)
    visible = jnp.arange(slots) <= positions[:, None]
    weights = whatever_the_rows(jax.nn.softmax, jnp.where(visible[:, None, None, :], scores, _MASKED))
    out = jnp.einsum("bkgs,bksh->bkgh", weights.astype(v_cache.dtype), v_cache, preferred_element_type=jnp.float32)
    return out.reshape(batch, num_heads, head_dim).astype(q.dtype)
