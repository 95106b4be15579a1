"""Grouped-query attention over whole rows, and of one new token over a cache.

Shape letters: B rows, T query tokens, S key positions, N query heads, K kv heads, G = N / K query heads of one kv
head, H head dim. Scores, softmax and the weighted sum are accumulated in float32.

A *packed* row holds groups of ``[prefix | candidate 1 | ... | candidate M]``; ``Segments`` say which tokens see each
other: a candidate sees its prefix and itself, causally. Rows are padded at the right, and nothing real sees padding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_MASKED = -1e30  # a finite stand-in for minus infinity: exp() of it is 0 and its gradient is not NaN
_QUERY_BLOCK = 64  # queries of one causal block; keys after the block are never multiplied


class Segments(NamedTuple):
    """Who sees whom in packed rows. A token sees, causally, the tokens of its own branch and of its trunk.

    Attributes:
      branches: [B, T] int32, a number for each prefix and each candidate of a row.
      trunks: [B, T] int32, the branch number of the token's prefix (its own, for a prefix).
    """

    branches: jax.Array
    trunks: jax.Array

    def visible(self, start: int, stop: int) -> jax.Array:
        """[B, stop - start, stop] bool for queries start..stop and keys 0..stop, without causality."""
        keys = self.branches[:, None, :stop]
        return (keys == self.branches[:, start:stop, None]) | (keys == self.trunks[:, start:stop, None])


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments | None = None, *, implementation: str
) -> jax.Array:
    """Causal attention within each row.

    Args:
      q: [B, T, N, H] rotated queries.
      k: [B, T, K, H] rotated keys.
      v: [B, T, K, H] values.
      segments: for packed rows, None for plain causal rows.
      implementation: ``blocked`` or ``fused``, see ``parallel.platform.Compute``.

    Returns:
      [B, T, N, H] in the dtype of ``q``.
    """
    if implementation == "fused":
        mask = None if segments is None else segments.visible(0, q.shape[1])[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)
    return _blocked_attention(q, k, v, segments)


def _blocked_attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments | None) -> jax.Array:
    """Attention as batched matrix products: the queries of one kv head are stacked, blocks stop at the diagonal."""
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    group = num_heads // num_kv_heads
    # [B, K, T * G, H]: the G query heads of a token are neighbours, so that a block of tokens is one slice.
    queries = q.reshape(batch, length, num_kv_heads, group, head_dim).transpose(0, 2, 1, 3, 4)
    queries = queries.reshape(batch, num_kv_heads, length * group, head_dim) * (head_dim**-0.5)
    keys = k.transpose(0, 2, 3, 1)  # [B, K, H, T]
    values = v.transpose(0, 2, 1, 3)  # [B, K, T, H]
    positions = jnp.arange(length)
    blocks = []
    for start in range(0, length, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, length)
        visible = (positions[None, :stop] <= positions[start:stop, None])[None]  # [1, t, stop]
        if segments is not None:
            visible = visible & segments.visible(start, stop)
        scores = jnp.einsum(
            "bkqh,bkhs->bkqs",
            queries[:, :, start * group : stop * group],
            keys[..., :stop],
            preferred_element_type=jnp.float32,
        )
        bias = jnp.where(visible, 0.0, _MASKED)  # [B or 1, t, stop]
        scores = scores + jnp.repeat(bias, group, axis=1)[:, None]
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bkqs,bksh->bkqh", weights.astype(v.dtype), values[:, :, :stop], preferred_element_type=jnp.float32
        )
        blocks.append((mixed / total).astype(q.dtype))
    out = jnp.concatenate(blocks, axis=2).reshape(batch, num_kv_heads, length, group, head_dim)
    return out.transpose(0, 2, 1, 3, 4).reshape(batch, length, num_heads, head_dim)


def decode_attention(q: jax.Array, k_cache: jax.Array, v_cache: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of one new token over a cache that already holds its own key and value.

    Args:
      q: [B, N, H] rotated query.
      k_cache: [B, K, H, S] rotated keys, transposed: both products then read their cache in memory order.
      v_cache: [B, K, S, H] values.
      visible: [B, S] bool, the filled slots of each row.

    Returns:
      [B, N, H] in the dtype of ``q``.
    """
    batch, num_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[1]
    queries = q.reshape(batch, num_kv_heads, num_heads // num_kv_heads, head_dim) * (head_dim**-0.5)
    scores = jnp.einsum("bkgh,bkhs->bkgs", queries, k_cache, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None, :], scores, _MASKED), axis=-1)
    out = jnp.einsum("bkgs,bksh->bkgh", weights.astype(v_cache.dtype), v_cache, preferred_element_type=jnp.float32)
    return out.reshape(batch, num_heads, head_dim).astype(q.dtype)
