"""Grouped-query attention within the sequences of a flat batch, and of one new token over a cache.

Shape letters as in ``models.layout``, and B rows of a decode batch, S their slots. Scores, softmax and the weighted sum
are accumulated in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optimas_jax.models.cpu import over_padded_rows
from optimas_jax.models.layout import MASKED, AnyLayout, StoredKeysValues, Tiles, within
from optimas_jax.models.pairs import pairs_attention
from optimas_jax.models.tiles import tiled_attention
from optimas_jax.parallel.mesh import MODEL
from optimas_jax.parallel.sharding import SHARED, head_axis, on_each_shard


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layout: AnyLayout,
    stored: StoredKeysValues | None,
    mesh: Mesh | None = None,
    use_kernel: bool = False,
) -> jax.Array:
    """Causal attention within each sequence; differentiable if ``stored`` is None.

    Args:
      q: [T, N, H] rotated queries; on a mesh [S, T, N, H], and so are all other arrays (``parallel.sharding``).
      k: [T, K, H] rotated keys.
      v: [T, K, H] values.
      layout: of the sequences.
      stored: keys and values of earlier batches, or None if ``layout`` refers to none.
      mesh: of the devices, each of which computes its heads of its shard; None for one device.
      use_kernel: whether ``TilePairs`` are computed by the Pallas kernel.

    Returns:
      [T, N, H] in the dtype of ``q``.
    """

    def of_shard(
        q: jax.Array, k: jax.Array, v: jax.Array, layout: AnyLayout, stored: StoredKeysValues | None
    ) -> jax.Array:
        if isinstance(layout, Tiles):
            return tiled_attention(q, k, v, layout, stored)
        return pairs_attention(q, k, v, layout, stored, use_kernel)

    if mesh is None:
        return of_shard(q, k, v, layout, stored)
    heads, axis = q.shape[2], MODEL
    if stored is None:
        q, k, v = divisible_heads(q, k, v, mesh.shape[MODEL])
    else:  # stored heads are too many to be repeated
        axis = head_axis(mesh, k.shape[2])
    new = P(None, axis, None)
    of_stored = P(None, None, axis, None) if stored is not None else None
    of_layout = jax.tree.map(lambda leaf: P() if leaf.ndim else SHARED, layout)
    of_shards = on_each_shard(of_shard, mesh, (new, new, new, of_layout, of_stored), new)
    return of_shards(q, k, v, layout, stored)[:, :, :heads]


def divisible_heads(q: jax.Array, k: jax.Array, v: jax.Array, devices: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heads [S, T, heads, H] in numbers that ``devices`` can share equally, with as few query heads per device as
    possible: a kv head is repeated for each part of its query heads, and heads of zeros are appended."""
    kv_heads, group = k.shape[2], q.shape[2] // k.shape[2]
    divisors = [count for count in range(1, group + 1) if group % count == 0]
    copies = min(divisors, key=lambda count: -(-kv_heads * count // devices) * (group // count))
    padding = -(kv_heads * copies) % devices

    def pad(x: jax.Array, heads: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, heads), (0, 0))) if heads else x

    k, v = (pad(jnp.repeat(x, copies, axis=2) if copies > 1 else x, padding) for x in (k, v))
    return pad(q, padding * (group // copies)), k, v


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
    scores = jnp.where(visible[:, None, None, :], scores, MASKED)
    weights = over_padded_rows(jax.nn.softmax, scores) if cpu_forms else jax.nn.softmax(scores)
    out = jnp.einsum("bkgs,bksh->bkgh", weights.astype(v_cache.dtype), v_cache, preferred_element_type=jnp.float32)
    return out.reshape(batch, num_heads, head_dim).astype(q.dtype)
