"""Grouped-query attention within the sequences of a flat batch, and of one new token over a cache.

Shape letters: T tokens of a flat batch, B sequences, Q query tokens and S key positions of a sequence, P stored
positions, N query heads, K kv heads, G = N / K query heads of one kv head, H head dim. Scores, softmax and the weighted
sum are accumulated in float32.

A *flat batch* is one axis of tokens, sequence after sequence, with no padding between them, so that operations on
single tokens compute no padding. Only attention needs the sequences, in one of two layouts:

- ``Tiles``: loops over tiles of queries and tiles of keys. A program depends only on T, padding is not computed, and
  nothing of size [Q, S] is stored for the gradient. Best on CPU.
- ``Spans``: sequences are gathered into rows, for the platform's kernels.

The keys of a sequence are always read in the order of their positions and in the same tiles, whether they come from
this batch or from an earlier one. On CPU a sequence therefore gets the same bits whatever shares its batch, and however
much of it was stored (tests hold this; with Qwen3's q/k norm the last digits may differ).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optimas_jax.models.cpu import over_padded_rows
from optimas_jax.models.numerics import KEPT
from optimas_jax.parallel.mesh import MODEL
from optimas_jax.parallel.sharding import SHARED, head_axis, on_each_shard

BLOCK = 16  # stored keys and values come in blocks of this many positions
TILE = 64  # queries and keys of one tile; a multiple of BLOCK
_MASKED = -1e30  # a finite stand-in for minus infinity: exp() of it is 0 and its gradient is not NaN

KeysValues = tuple[jax.Array, jax.Array]  # [positions, K, H] each
StoredKeysValues = tuple[jax.Array, jax.Array]  # [P / BLOCK, BLOCK, K, H] each
Sums = tuple[jax.Array, jax.Array, jax.Array]
State = TypeVar("State")


class Tiles(NamedTuple):
    """Which key tiles each query tile attends to; every array is int32.

    A query tile is TILE tokens of the flat batch. Its keys come in *segments*: key tiles ``first`` to ``stop`` of one
    sequence (key tile j is its key positions from j * TILE on), seen by the tokens of that sequence, or, where all
    sequences of the query tile begin with the same stored blocks, by all its tokens.

    Attributes:
      sequence: [T] number of each token's sequence, -1 for padding.
      key_index: [T] index of each token's key among the keys of its sequence.
      part: [T] for groups of candidates, 0 for the prefix, else the candidate. A token sees its part and part 0.
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


class Spans(NamedTuple):
    """Where the sequences of a flat batch lie.

    Attributes:
      queries: [B, Q] int32 index of each sequence's tokens in the flat batch, T for padding.
      keys: [B, S] int32 index of each sequence's keys in ``[stored | flat batch]``, P + T for padding.
      inverse: [T] int32 index of each token in the flattened [B * Q]; arbitrary for padding tokens.
      starts: [B] int32 number of keys before the first query, which were stored earlier.
      parts: for groups of candidates (None for plain sequences), [B, S] int32: a number for each part (prefix or
        candidate), -1 for padding. A token sees, causally, its part and the prefix, which is part 0.
      window, positions: see ``within``; None for attention to all that is before.
    """

    queries: Any
    keys: Any
    inverse: Any
    starts: Any
    parts: Any = None
    window: Any = None
    positions: Any = None

    def visible(self, stored: int) -> jax.Array:
        """[B, Q, S] bool, where ``stored`` (P) positions are. Padding is only seen by padding."""
        key_index = jnp.arange(self.keys.shape[1])
        query_index = self.starts[:, None] + jnp.arange(self.queries.shape[1])
        seen = key_index <= query_index[..., None]
        if self.parts is not None:
            parts = self.parts[:, None, :]
            seen &= (parts == self.parts[..., None]) | (parts == 0)
        if self.window is not None:
            computed = gather(self.positions, self.keys - stored)
            key_positions = jnp.where(key_index < self.starts[:, None], key_index, computed)
            seen &= within(self.window, gather(self.positions, self.queries)[..., None], key_positions[:, None, :])
        return seen


def windowed(layout: Tiles | Spans, window: int, positions: jax.Array) -> Tiles | Spans:
    """The layout for a layer in which a token sees ``window`` positions, its own included; ``positions`` [T] int32."""
    return layout._replace(window=jnp.int32(window), positions=positions)


def within(window: jax.Array | int, query: jax.Array, key: jax.Array) -> jax.Array:
    """Whether a key's position is within the window of a query's. Stored keys are at positions from 0 on."""
    return query - key < window


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layout: Tiles | Spans,
    stored: StoredKeysValues | None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Causal attention within each sequence; differentiable if ``stored`` is None.

    Args:
      q: [T, N, H] rotated queries; on a mesh [S, T, N, H], and so are all other arrays (``parallel.sharding``).
      k: [T, K, H] rotated keys.
      v: [T, K, H] values.
      layout: of the sequences.
      stored: keys and values of earlier batches, or None if ``layout`` refers to none.
      mesh: each device computes its heads of its shard.

    Returns:
      [T, N, H] in the dtype of ``q``.
    """
    if mesh is None:
        return _attention(q, k, v, layout, stored)
    heads, axis = q.shape[2], MODEL
    if stored is None:
        q, k, v = divisible_heads(q, k, v, mesh.shape[MODEL])
    else:  # stored heads are too many to be repeated
        axis = head_axis(mesh, k.shape[2])
    new = P(None, axis, None)
    of_stored = P(None, None, axis, None) if stored is not None else None
    of_layout = jax.tree.map(lambda leaf: P() if leaf.ndim else SHARED, layout)
    of_shards = on_each_shard(_attention, mesh, (new, new, new, of_layout, of_stored), new)
    return of_shards(q, k, v, layout, stored)[:, :, :heads]


def divisible_heads(q: jax.Array, k: jax.Array, v: jax.Array, devices: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heads [S, T, heads, H] in numbers that ``devices`` can share, with as few query heads a device as possible: a kv
    head is repeated, once for each part of its query heads, and heads of zeros are added behind."""
    kv_heads, group = k.shape[2], q.shape[2] // k.shape[2]
    divisors = [count for count in range(1, group + 1) if group % count == 0]
    copies = min(divisors, key=lambda count: -(-kv_heads * count // devices) * (group // count))
    padding = -(kv_heads * copies) % devices

    def pad(x: jax.Array, heads: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, heads), (0, 0))) if heads else x

    k, v = (pad(jnp.repeat(x, copies, axis=2) if copies > 1 else x, padding) for x in (k, v))
    return pad(q, padding * (group // copies)), k, v


def _attention(
    q: jax.Array, k: jax.Array, v: jax.Array, layout: Tiles | Spans, stored: StoredKeysValues | None
) -> jax.Array:
    if isinstance(layout, Tiles):
        queries = _to_rows(q * (q.shape[-1] ** -0.5), k.shape[1])
        # A tile may reach beyond its sequence, and so beyond the batch.
        keys, values = (jnp.pad(x.swapaxes(0, 1), ((0, 0), (TILE, TILE), (0, 0))) for x in (k, v))
        if stored is None:
            return _to_tokens(_tiled_attention(queries, keys, values, layout))
        return _to_tokens(_attend(queries, keys, values, layout, stored)[0])
    q_rows = gather(q, layout.queries)
    k_rows, v_rows = (gather(new, layout.keys, old) for new, old in zip((k, v), stored or (None, None), strict=True))
    mask = layout.visible(0 if stored is None else stored[0].shape[0] * BLOCK)[:, None]
    out = jax.nn.dot_product_attention(q_rows, k_rows, v_rows, mask=mask)
    return out.reshape(-1, *out.shape[2:])[layout.inverse]


def gather(computed: jax.Array, indices: jax.Array, stored: jax.Array | None = None) -> jax.Array:
    """Rows at ``indices`` [...] of ``computed`` [T, ...]; zeros beyond the end.

    With ``stored`` [P / BLOCK, BLOCK, ...] the indices count in ``[stored | computed]``, which are too large to be
    concatenated.
    """
    if stored is None:
        return computed.at[indices].get(mode="fill", fill_value=0)
    earlier = stored.reshape(-1, *stored.shape[2:])
    is_stored = indices < earlier.shape[0]
    in_computed = jnp.where(is_stored, computed.shape[0], indices - earlier.shape[0])
    is_stored = is_stored.reshape(*indices.shape, *[1] * (computed.ndim - 1))
    return jnp.where(is_stored, gather(earlier, indices).astype(computed.dtype), gather(computed, in_computed))


# Tiled attention (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135). Queries are rows
# [T / TILE, K, G * TILE, H]: the G query heads that share a kv head are stacked, and every product is one of
# [G * TILE, H] with [H, TILE]. Keys and values are [K, TILE + T + TILE, H].


def _to_rows(x: jax.Array, num_kv_heads: int) -> jax.Array:
    """[T, N, H] -> [T / TILE, K, G * TILE, H]."""
    tokens, heads, size = x.shape
    x = x.reshape(tokens // TILE, TILE, num_kv_heads, heads // num_kv_heads, size).transpose(0, 2, 3, 1, 4)
    return x.reshape(tokens // TILE, num_kv_heads, -1, size)


def _to_tokens(x: jax.Array) -> jax.Array:
    """The inverse of ``_to_rows``."""
    tiles, num_kv_heads, _, size = x.shape
    x = x.reshape(tiles, num_kv_heads, -1, TILE, size).transpose(0, 3, 1, 2, 4)
    return x.reshape(tiles * TILE, -1, size)


def _tile_start(tiles: Tiles, sequence: jax.Array, tile: jax.Array) -> jax.Array:
    """Index of the first key of a key tile in the padded keys of the batch."""
    return TILE + tiles.begins[sequence] - tiles.starts[sequence] + tile * TILE


def _over_key_tiles(tiles: Tiles, query_tile: jax.Array, body: Callable[..., State], state: State) -> State:
    """Folds ``body(sequence, tile, bias, state)`` over the key tiles of a query tile, in the order of positions;
    ``bias`` [TILE, TILE] is 0 for the keys that a query sees and _MASKED for others."""
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
            return body(sequence, tile, jnp.where(visible, 0.0, _MASKED), state)

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

        # Sums over keys before the first visible one are multiplied by exp(_MASKED) = 0 at that key.
        nothing = jnp.zeros(rows.shape, jnp.float32)
        state = (jnp.full(rows.shape[:2], _MASKED), nothing[..., 0], nothing)
        highest, total, mixed = _over_key_tiles(tiles, query_tile, add, state)
        total = jnp.maximum(total, 1e-30)  # tiles of nothing but padding have no keys
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


def decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    positions: jax.Array,
    cpu_forms: bool = False,
    window: int | None = None,
) -> jax.Array:
    """Attention of one new token over a cache that already holds the token's key and value.

    Args:
      q: [B, N, H] rotated query.
      k_cache: [B, K, H, S] rotated keys, transposed: both products then read their cache in memory order.
      v_cache: [B, K, S, H] values.
      positions: [B] int32 position of the token: slots up to it are filled.
      cpu_forms: see ``parallel.platform.Compute``.
      window: number of positions that the token sees, its own included; None for all.

    Returns:
      [B, N, H] in the dtype of ``q``.
    """
    batch, num_heads, head_dim = q.shape
    num_kv_heads, slots = k_cache.shape[1], k_cache.shape[3]
    queries = q.reshape(batch, num_kv_heads, num_heads // num_kv_heads, head_dim) * (head_dim**-0.5)
    scores = jnp.einsum("bkgh,bkhs->bkgs", queries, k_cache, preferred_element_type=jnp.float32)
    visible = jnp.arange(slots) <= positions[:, None]
    if window is not None:
        visible &= within(window, positions[:, None], jnp.arange(slots))
    scores = jnp.where(visible[:, None, None, :], scores, _MASKED)
    weights = over_padded_rows(jax.nn.softmax, scores) if cpu_forms else jax.nn.softmax(scores)
    out = jnp.einsum("bkgs,bksh->bkgh", weights.astype(v_cache.dtype), v_cache, preferred_element_type=jnp.float32)
    return out.reshape(batch, num_heads, head_dim).astype(q.dtype)
