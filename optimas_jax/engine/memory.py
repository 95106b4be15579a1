"""Sizes of the caches of keys and values: from the memory that a model leaves free, and from the requests."""

from __future__ import annotations

import dataclasses

import numpy as np

from optimas_jax.models.backbone import Network
from optimas_jax.models.flat import bucket
from optimas_jax.models.layout import BLOCK
from optimas_jax.parallel.mesh import MODEL
from optimas_jax.parallel.platform import Compute
from optimas_jax.parallel.sharding import head_axis

_CACHE, _PREFIXES = 0.5, 0.15  # shares of free memory; the rest is for activations, logits and a cache that is resized
_LEAST = 10 * 1024  # least tokens of a cache
_FIRST_TOKENS = 256  # tokens of an answer that a batch has slots for at first; four times as many when they are full


def token_bytes(network: Network) -> int:
    """Bytes that the keys and values of one token take on a device, in all layers."""
    config, mesh = network.config, network.mesh
    heads = config.num_kv_heads
    if mesh is not None and head_axis(mesh, heads):
        heads //= mesh.shape[MODEL]
    return 2 * config.num_layers * heads * config.head_dim * np.dtype(network.compute.dtype).itemsize


def with_caches(network: Network, free: int | None) -> Network:
    """The network with the sizes of its caches filled in, if its platform leaves them open (``Compute.cache_tokens`` is
    0).

    Args:
      free: bytes of a device beside the weights; None if unknown.
    """
    compute = network.compute
    if compute.cache_tokens:
        return network
    cache, prefixes = _LEAST, compute.prefix_tokens
    if free is not None:
        cache = max(_LEAST, int(_CACHE * free) // token_bytes(network))
        prefixes = min(prefixes, int(_PREFIXES * free) // token_bytes(network) // BLOCK * BLOCK)
    return dataclasses.replace(
        network, compute=dataclasses.replace(compute, cache_tokens=cache, prefix_tokens=max(prefixes, BLOCK))
    )


def most_rows(compute: Compute, slots: int) -> int:
    """Most requests of a shard that are decoded together, with ``slots`` slots each."""
    least = compute.decode_rows[0]
    return max(rows for rows in compute.decode_rows if rows == least or rows * slots <= compute.cache_tokens)


def wanted_slots(prompt: int, limit: int, count: int = 0) -> int:
    """Slots for a request of ``prompt`` tokens and an answer of at most ``limit`` tokens, ``count`` of which are there:
    enough for these and for some more."""
    tokens = _FIRST_TOKENS
    while tokens <= count:
        tokens *= 4
    return slot_bucket(prompt + min(limit, tokens) - 1)


def slot_bucket(slots: int) -> int:
    """``slots`` rounded up to a size that batches have."""
    return bucket(slots, 128)
