"""Grouped-query attention within the sequences of a flat batch, and of one new token over a cache.

Shape letters: T tokens of a flat batch, B sequences, Q query tokens and S key positions of a sequence, P stored
positions, N query heads, K kv heads, G = N / K query heads of one kv head, H head dim. Scores, softmax and the weighted
sum are accumulated in float32.

A *flat batch* is one axis of tokens, sequence after sequence, with no padding between them: whatever is computed token
by token wastes nothing. Attention alone looks at sequences, and gathers them by the places that ``Spans`` gives. The
keys of a sequence always stand in the order of their positions from slot 0 on, wherever they come from (this batch or
an earlier one): on CPU a sequence then gets the same bits whatever shares its batch, and however much of it was kept
(tests hold this; with Qwen3's q/k norm the last digits may differ).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_MASKED = -1e30  # a finite stand-in for minus infinity: exp() of it is 0 and its gradient is not NaN
_QUERY_BLOCK = 64  # queries of one causal block; keys after the block are never multiplied

KeysValues = tuple[jax.Array, jax.Array]  # [positions, K, H] each


class Spans(NamedTuple):
    """Where the sequences of a flat batch lie.

    Attributes:
      queries: [B, Q] int32 place of each sequence's tokens in the flat batch, T for padding.
      keys: [B, S] int32 place of each sequence's keys in ``[stored | flat batch]``, P + T for padding.
      inverse: [T] int32 place of each token in the flattened [B * Q]; anything for padding tokens.
      starts: [B] int32 keys before the first query, which were stored earlier.
      branches: for groups of candidates (None for plain sequences), [B, S] int32: a number for each part (prefix or
        candidate), -1 for padding. A token sees, causally, its own part and the prefix, which is part 0.
    """

    queries: Any
    keys: Any
    inverse: Any
    starts: Any
    branches: Any = None

    def visible(self, start: int, stop: int, keys: int) -> jax.Array:
        """[B, stop - start, keys] bool for queries start..stop and keys 0..keys. Padding is only seen by padding."""
        places = self.starts[:, None] + jnp.arange(start, stop)
        causal = jnp.arange(keys) <= places[..., None]
        if self.branches is None:
            return causal
        parts = self.branches[:, None, :keys]
        return causal & ((parts == self.branches[:, start:stop, None]) | (parts == 0))


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    spans: Spans,
    stored: KeysValues | None = None,
    *,
    implementation: str,
) -> tuple[jax.Array, KeysValues]:
    """Causal attention within each sequence.

    Args:
      q: [T, N, H] rotated queries.
      k: [T, K, H] rotated keys.
      v: [T, K, H] values.
      spans: where the sequences are.
      stored: keys and values of an earlier batch, [P, K, H] each.
      implementation: ``blocked`` or ``fused``, see ``parallel.platform.Compute``.

    Returns:
      [T, N, H] in the dtype of ``q``; and every sequence's keys and values, [B, S, K, H] each.
    """
    if stored is None:
        k_rows, v_rows = _gather(k, spans.keys), _gather(v, spans.keys)
    else:
        k_rows, v_rows = _gather_both(stored[0], k, spans.keys), _gather_both(stored[1], v, spans.keys)
    q_rows = _gather(q, spans.queries)
    if implementation == "fused":
        mask = spans.visible(0, q_rows.shape[1], k_rows.shape[1])[:, None]
        out = jax.nn.dot_product_attention(q_rows, k_rows, v_rows, mask=mask)
    else:
        out = _blocked_attention(q_rows, k_rows, v_rows, spans, from_start=stored is None)
    return out.reshape(-1, *out.shape[2:])[spans.inverse], (k_rows, v_rows)


def _gather(x: jax.Array, places: jax.Array) -> jax.Array:
    """x [positions, ...], places [B, S] -> [B, S, ...], zeros for places beyond the end."""
    return x.at[places].get(mode="fill", fill_value=0)


def _gather_both(stored: jax.Array, own: jax.Array, places: jax.Array) -> jax.Array:
    """The same from [stored | own], which are too large to be put together: [B, S, ...]."""
    is_stored = (places < stored.shape[0])[..., None, None]
    earlier = stored.at[places].get(mode="fill", fill_value=0).astype(own.dtype)
    beyond = jnp.where(places < stored.shape[0], own.shape[0], places - stored.shape[0])
    return jnp.where(is_stored, earlier, _gather(own, beyond))


def _blocked_attention(q: jax.Array, k: jax.Array, v: jax.Array, spans: Spans, *, from_start: bool) -> jax.Array:
    """Attention as batched matrix products: the queries of one kv head are stacked. Where all sequences begin in this
    batch (``from_start``), blocks of queries stop at the diagonal. [B, Q, N, H] -> [B, Q, N, H]."""
    batch, length, num_heads, head_dim = q.shape
    slots, num_kv_heads = k.shape[1:3]
    group = num_heads // num_kv_heads
    # [B, K, Q * G, H]: the G query heads of a token are neighbours, so that a block of tokens is one slice.
    queries = (q * (head_dim**-0.5)).reshape(batch, length, num_kv_heads, group, head_dim).transpose(0, 2, 1, 3, 4)
    queries = queries.reshape(batch, num_kv_heads, length * group, head_dim)
    keys, values = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
    blocks = []
    for start in range(0, length, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, length)
        seen = min(-(-stop // _QUERY_BLOCK) * _QUERY_BLOCK, slots) if from_start else slots
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
