"""Layouts of flat batches: which keys the tokens of each sequence see.

A *flat batch* is one axis of tokens, sequence after sequence, with no padding between them, so that operations on
single tokens compute no padding. Only attention needs the sequences. It works on tiles of queries and tiles of keys. A
layout lists the pairs of a query tile and a key tile in which a query sees a key, so that work and memory follow the
lengths of the sequences. It has one of two forms:

- ``Tiles``, for CPU: the key tiles of a sequence begin at its first key, whether its keys come from this batch or from
  an earlier one. A sequence therefore gets the same bits whatever shares its batch, and however much of it was stored
  (tests check this; with Qwen3's q/k norm the last digits may differ).
- ``TilePairs``, for accelerators: key tiles are aligned in the batch, as kernels read memory; many pairs are computed
  at once, and keys of earlier batches come before the keys of this batch.

Shape letters: T tokens of a flat batch, B sequences, S key positions of a sequence, P stored positions, N query heads,
K kv heads, G = N / K query heads of one kv head, H head dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 16  # stored keys and values come in blocks of this many positions
TILE = 64  # queries and keys of one tile; a multiple of BLOCK
MASKED = -1e30  # a finite stand-in for minus infinity: exp() of it is 0 and its gradient is not NaN

KeysValues = tuple[jax.Array, jax.Array]  # [positions, K, H] each
StoredKeysValues = tuple[jax.Array, jax.Array]  # [P / BLOCK, BLOCK, K, H] each


class Tiles(NamedTuple):
    """Which key tiles each query tile attends to; every array is int32.

    A query tile is TILE tokens of the flat batch. Its keys come in *segments*: key tiles ``first`` to ``stop`` of one
    sequence (key tile j is its key positions from j * TILE on), seen by the tokens of that sequence, or, where all
    sequences of the query tile begin with the same stored blocks, by all its tokens.

    Attributes:
      sequence: [T] number of each token's sequence, -1 for padding.
      key_index: [T] index of each token's key among the keys of its sequence.
      part: [T] for groups of candidates: 0 for the prefix, else the number of the candidate. A token sees its own part
        and part 0.
      begins: [B] index of each sequence's first token in the flat batch.
      starts: [B] number of keys before that token, which were stored earlier.
      blocks: [B, S / BLOCK] the stored blocks of these keys.
      segments: [n, 4] sequence, first, stop, and 1 if all tokens of the query tile see the segment.
      bounds: [T / TILE + 1] segments of query tile t: from bounds[t] to bounds[t + 1].
      window, positions: see ``within``; None for attention to all that is before.
    """

    sequence: Any
    key_index: Any
    part: Any
    begins: Any
    starts: Any
    blocks: Any
    segments: Any
    bounds: Any
    window: Any = None
    positions: Any = None


class TilePairs(NamedTuple):
    """The pairs of a query tile and a key tile in which a query sees a key; every array is int32.

    Keys are ``[S0 | T]``: first the stored keys with which the sequences of the batch begin, sequence after sequence,
    then the keys of the batch. A query tile is TILE tokens of the batch, a key tile TILE keys.

    Attributes:
      sequence, key_index, part: [T] as in ``Tiles``.
      stored: [S0] index of each stored key in the store [P]; P for padding.
      stored_sequence: [S0] its sequence, -2 for padding.
      stored_index: [S0] its index among the keys of its sequence, which is its position.
      by_query: [n, 3] query tile, key tile, and 1 if a query of the one sees a key of the other, else 0; sorted by
        query tile, with each query tile at least once.
      by_key: [m, 3] the same pairs sorted by key tile, with each key tile at least once.
      counts: [2] number of pairs of ``by_query`` and of ``by_key``; the rest is padding.
      window, positions: see ``within``; None for attention to all that is before.
    """

    sequence: Any
    key_index: Any
    part: Any
    stored: Any
    stored_sequence: Any
    stored_index: Any
    by_query: Any
    by_key: Any
    counts: Any
    window: Any = None
    positions: Any = None


AnyLayout = Tiles | TilePairs


class Seen(NamedTuple):
    """The values that decide whether a query sees a key: sequence, index, part and position of both, int32.

    Attributes:
      queries: [T / TILE, TILE, 4].
      keys: [(S0 + T) / TILE, 4, TILE].
      window: [1] see ``models.layout.within``.
    """

    queries: jax.Array
    keys: jax.Array
    window: jax.Array


class Pairs(NamedTuple):
    """The pairs of ``TilePairs``, by query tile and by key tile."""

    by_query: jax.Array
    by_key: jax.Array
    counts: jax.Array


def visible(queries: jax.Array, keys: jax.Array, window: jax.Array) -> jax.Array:
    """Which keys of a tile the queries of a tile see: [..., TILE, 4] and [..., 4, TILE] -> [..., TILE, TILE] bool."""
    q_sequence, q_index, q_part, q_position = (queries[..., i : i + 1] for i in range(4))
    k_sequence, k_index, k_part, k_position = (keys[..., i : i + 1, :] for i in range(4))
    part = (k_part == q_part) | (k_part == 0)
    return (q_sequence == k_sequence) & (k_index <= q_index) & part & (q_position - k_position < window)


def windowed(layout: AnyLayout, window: int, positions: jax.Array) -> AnyLayout:
    """The layout for a layer in which a token sees ``window`` positions, its own included; ``positions`` [T] int32."""
    return layout._replace(window=jnp.int32(window), positions=positions)


def within(window: jax.Array | int, query: jax.Array, key: jax.Array) -> jax.Array:
    """Whether a key's position is within the window of a query's. Stored keys are at positions from 0 on."""
    return query - key < window


def gather(computed: jax.Array, indices: jax.Array, stored: jax.Array | None = None) -> jax.Array:
    """Rows at ``indices`` [...] of ``computed`` [T, ...]; zeros beyond the end.

    With ``stored`` [P / BLOCK, BLOCK, ...] the indices refer to ``[stored | computed]``; the two are too large to be
    concatenated.
    """
    if stored is None:
        return computed.at[indices].get(mode="fill", fill_value=0)
    earlier = stored.reshape(-1, *stored.shape[2:])
    is_stored = indices < earlier.shape[0]
    in_computed = jnp.where(is_stored, computed.shape[0], indices - earlier.shape[0])
    is_stored = is_stored.reshape(*indices.shape, *[1] * (computed.ndim - 1))
    return jnp.where(is_stored, gather(earlier, indices).astype(computed.dtype), gather(computed, in_computed))


def to_rows(x: jax.Array, num_kv_heads: int) -> jax.Array:
    """Queries [T, N, H] -> [T / TILE, K, G * TILE, H]: the query heads that share a kv head are stacked."""
    tokens, heads, size = x.shape
    x = x.reshape(tokens // TILE, TILE, num_kv_heads, heads // num_kv_heads, size).transpose(0, 2, 3, 1, 4)
    return x.reshape(tokens // TILE, num_kv_heads, -1, size)


def to_tokens(x: jax.Array) -> jax.Array:
    """The inverse of ``to_rows``."""
    tiles, num_kv_heads, _, size = x.shape
    x = x.reshape(tiles, num_kv_heads, -1, TILE, size).transpose(0, 3, 1, 2, 4)
    return x.reshape(tiles * TILE, -1, size)
