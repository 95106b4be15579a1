"""Grouped-query attention within the sequences of a flat batch, and of one new token over a cache.

Shape letters: T tokens of a flat batch, B sequences, Q query tokens and S key positions of a sequence, P stored
positions, N query heads, K kv heads, G = N / K query heads of one kv head, H head dim. Scores, softmax and the weighted
sum are accumulated in float32.

A *flat batch* is one axis of tokens, sequence after sequence, with no padding between them: whatever is computed token
by token wastes nothing. Attention alone looks at sequences, in one of two layouts:

- ``Tiles``: loops over tiles of queries and tiles of keys, as many as there are. A program depends on T and on nothing
  else, and no work is done for padding. It has no gradient.
- ``Spans``: sequences are gathered into rows, for gradients and for the platform's own kernels.

The keys of a sequence always stand in the order of their positions, wherever they come from (this batch or an earlier
one), and are read in the same tiles: on CPU a sequence gets the same bits whatever shares its batch, and however much
of it was kept (tests hold this; with Qwen3's q/k norm the last digits may differ).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 16  # stored keys and values come in blocks of this many positions
TILE = 64  # queries and keys of one tile; a multiple of BLOCK
_MASKED = -1e30  # a finite stand-in for minus infinity: exp() of it is 0 and its gradient is not NaN

KeysValues = tuple[jax.Array, jax.Array]  # [positions, K, H] each
StoredKeysValues = tuple[jax.Array, jax.Array]  # [P / BLOCK, BLOCK, K, H] each


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

    def visible(self, start: int, stop: int, keys: int) -> jax.Array:
        """[B, stop - start, keys] bool for queries start..stop and keys 0..keys. Padding is only seen by padding."""
        places = self.starts[:, None] + jnp.arange(start, stop)
        causal = jnp.arange(keys) <= places[..., None]
        if self.parts is None:
            return causal
        parts = self.parts[:, None, :keys]
        return causal & ((parts == self.parts[:, start:stop, None]) | (parts == 0))


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, layout: Tiles | Spans, stored: StoredKeysValues | None, *, fused: bool
) -> jax.Array:
    """Causal attention within each sequence.

    Args:
      q: [T, N, H] rotated queries.
      k: [T, K, H] rotated keys.
      v: [T, K, H] values.
      layout: where the sequences are.
      stored: keys and values of earlier batches, or None if ``layout`` refers to none.
      fused: whether ``Spans`` are computed by the platform's kernel (``jax.nn.dot_product_attention``).

    Returns:
      [T, N, H] in the dtype of ``q``.
    """
    if isinstance(layout, Tiles):
        return _tiled_attention(q, k, v, layout, stored)
    q_rows = gather(q, layout.queries)
    k_rows, v_rows = (gather(own, layout.keys, old) for own, old in zip((k, v), stored or (None, None), strict=True))
    if fused:
        mask = layout.visible(0, q_rows.shape[1], k_rows.shape[1])[:, None]
        out = jax.nn.dot_product_attention(q_rows, k_rows, v_rows, mask=mask)
    else:
        out = _blocked_attention(q_rows, k_rows, v_rows, layout)
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


def _tiled_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, tiles: Tiles, stored: StoredKeysValues | None
) -> jax.Array:
    """Softmax over one key tile after another (Milakov and Gimelshein, arXiv 1805.02867), in matrix products of one
    shape: the queries of one kv head are stacked."""
    length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    group = num_heads // num_kv_heads
    # [T / TILE, K, G * TILE, H]
    queries = (q * (head_dim**-0.5)).reshape(-1, TILE, num_kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    queries = queries.reshape(-1, num_kv_heads, group * TILE, head_dim)
    own = tuple(jnp.pad(x, ((TILE, TILE), (0, 0), (0, 0))) for x in (k, v))  # a tile may reach beyond a sequence
    own_part = jnp.pad(tiles.part, TILE)

    def key_tile(sequence: jax.Array, tile: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys and values [TILE, K, H] of a sequence, and the part that they belong to [TILE]."""
        start = tiles.starts[sequence]
        place = TILE + tiles.begins[sequence] - start + tile * TILE
        part = jax.lax.dynamic_slice(own_part, (place,), (TILE,))
        keys, values = (jax.lax.dynamic_slice(x, (place, 0, 0), (TILE, *x.shape[1:])) for x in own)
        if stored is not None:
            per_tile = TILE // BLOCK
            blocks = jax.lax.dynamic_slice(tiles.blocks, (sequence, tile * per_tile), (1, per_tile))[0]
            is_stored = (tile * TILE + jnp.arange(TILE)) < start
            part = jnp.where(is_stored, 0, part)
            keys, values = (
                jnp.where(is_stored[:, None, None], old[blocks].reshape(new.shape).astype(new.dtype), new)
                for old, new in zip(stored, (keys, values), strict=True)
            )
        return keys, values, part

    def attend(query_tile: jax.Array, out: jax.Array) -> jax.Array:
        begin = query_tile * TILE
        q_sequence, q_place, q_part = (
            jax.lax.dynamic_slice(x, (begin,), (TILE,)) for x in (tiles.sequence, tiles.place, tiles.part)
        )

        def add_segment(number: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]):
            sequence, first, stop, shared = tiles.segments[number]
            seen = (shared == 1) | (q_sequence == sequence)

            def add_tile(tile: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]):
                highest, total, mixed = state
                keys, values, part = key_tile(sequence, tile)
                scores = jnp.einsum("kqh,skh->kqs", queries[query_tile], keys, preferred_element_type=jnp.float32)
                causal = (tile * TILE + jnp.arange(TILE)) <= q_place[:, None]
                visible = causal & seen[:, None] & ((part == q_part[:, None]) | (part == 0))
                scores = scores.reshape(num_kv_heads, group, TILE, TILE) + jnp.where(visible, 0.0, _MASKED)
                scores = scores.reshape(num_kv_heads, group * TILE, TILE)
                higher = jnp.maximum(highest, scores.max(axis=-1))
                weights = jnp.exp(scores - higher[..., None])
                kept = jnp.exp(highest - higher)
                added = jnp.einsum("kqs,skh->kqh", weights.astype(v.dtype), values, preferred_element_type=jnp.float32)
                return higher, total * kept + weights.sum(axis=-1), mixed * kept[..., None] + added

            return jax.lax.fori_loop(first, stop, add_tile, state)

        # What a token adds up before the first key that it sees is multiplied by exp(_MASKED) = 0 when that one comes.
        nothing = jnp.zeros(queries.shape[1:], jnp.float32)
        state = (jnp.full(nothing.shape[:2], _MASKED), nothing[..., 0], nothing)
        _, total, mixed = jax.lax.fori_loop(tiles.bounds[query_tile], tiles.bounds[query_tile + 1], add_segment, state)
        mixed = (mixed / jnp.maximum(total, 1e-30)[..., None]).astype(q.dtype)
        mixed = mixed.reshape(num_kv_heads, group, TILE, head_dim).transpose(2, 0, 1, 3)
        return jax.lax.dynamic_update_slice(out, mixed.reshape(TILE, num_heads, head_dim), (begin, 0, 0))

    return jax.lax.fori_loop(0, length // TILE, attend, jnp.zeros(q.shape, q.dtype))


def _blocked_attention(q: jax.Array, k: jax.Array, v: jax.Array, spans: Spans) -> jax.Array:
    """Attention as batched matrix products: the queries of one kv head are stacked, and blocks of queries stop at the
    diagonal (nothing was stored). [B, Q, N, H] -> [B, Q, N, H]."""
    batch, length, num_heads, head_dim = q.shape
    slots, num_kv_heads = k.shape[1:3]
    group = num_heads // num_kv_heads
    # [B, K, Q * G, H]: the G query heads of a token are neighbours, so that a block of tokens is one slice.
    queries = (q * (head_dim**-0.5)).reshape(batch, length, num_kv_heads, group, head_dim).transpose(0, 2, 1, 3, 4)
    queries = queries.reshape(batch, num_kv_heads, length * group, head_dim)
    keys, values = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
    blocks = []
    for start in range(0, length, TILE):
        stop = min(start + TILE, length)
        seen = min(stop, slots)
        scores = jnp.einsum(
            "bkqh,bkhs->bkqs",
            queries[:, :, start * group : stop * group],
            keys[..., :seen],
            preferred_element_type=jnp.float32,
        )
        bias = jnp.where(spans.visible(start, stop, seen), 0.0, _MASKED)  # [B, q, seen]
        scores = scores + jnp.repeat(bias, group, axis=1)[:, None]
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bkqs,bksh->bkqh", weights.astype(v.dtype), values[:, :, :seen], preferred_element_type=jnp.float32
        )
        blocks.append((mixed / total).astype(q.dtype))
    out = jnp.concatenate(blocks, axis=2).reshape(batch, num_kv_heads, length, group, head_dim)
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, length, num_heads, head_dim)


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
    weights = jax.nn.softmax(jnp.where(visible[:, None, None, :], scores, _MASKED), axis=-1)
    out = jnp.einsum("bkgs,bksh->bkgh", weights.astype(v_cache.dtype), v_cache, preferred_element_type=jnp.float32)
    return out.reshape(batch, num_heads, head_dim).astype(q.dtype)
