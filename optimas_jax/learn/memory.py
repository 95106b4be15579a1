"""Estimate of the memory of a training step, before anything is compiled."""

from __future__ import annotations

import dataclasses

import numpy as np

from optimas_jax.learn.batches import CHUNK
from optimas_jax.models.backbone import Network
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.lora import module_shapes

_FLOAT32 = 4  # bytes
_STATE = 4  # arrays of the size of the trained parameters: themselves, two moments, a gradient
_LOGITS = 3  # arrays of the size of a chunk's logits: distributions, their gradient, an intermediate result
_TOKENS = 64  # an answer is a multiple of it


def kept_bytes(network: Network, lora: LoraConfig) -> int:
    """Bytes per token that an adapted layer keeps for the backward pass, without its input."""
    config, itemsize = network.config, np.dtype(network.compute.dtype).itemsize
    if network.compute.remat:
        return 0
    q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    # Queries, keys, values; x after attention; gate and up; x A.
    kept = itemsize * (q_dim + 2 * kv_dim + config.embed_dim + 2 * config.mlp_dim)
    kept += _FLOAT32 * len(lora.targets) * lora.rank
    # Attention's output and sums; fused kernels compute them again.
    return kept + (itemsize * q_dim + _FLOAT32 * config.num_heads if network.compute.tiled else 0)


def step_bytes(network: Network, lora: LoraConfig, tokens: int, lanes: int = 1) -> int:
    """Bytes of a step on a batch of ``tokens`` tokens in ``lanes`` lanes, without the frozen weights.

    Adapters with their optimiser state, residuals of the layers, the backward pass of one layer, and the logits of a
    chunk of tokens. An estimate: compilers allocate further buffers.
    """
    config, shapes = network.config, module_shapes(network.config)
    adapted = config.num_layers - lora.first(config.num_layers)
    trained = adapted * sum(lora.rank * sum(shapes[name]) for name in lora.targets)
    x = np.dtype(network.compute.dtype).itemsize * config.embed_dim
    once_more = dataclasses.replace(network, compute=dataclasses.replace(network.compute, remat=False))
    layer = 2 * kept_bytes(once_more, lora) + _FLOAT32 * (4 * config.embed_dim + 3 * config.mlp_dim)
    of_token = layer + adapted * (x + kept_bytes(network, lora))
    logits = _LOGITS * CHUNK * config.vocab_size * _FLOAT32
    return _FLOAT32 * trained * (_STATE + lanes) + tokens * of_token + lanes * logits


def tokens_that_fit(network: Network, lora: LoraConfig, free: int, lanes: int = 1) -> int:
    """The largest batch, in tokens, whose step needs no more than ``free`` bytes; 0 if there is none."""
    fixed = step_bytes(network, lora, 0, lanes)
    of_tokens = step_bytes(network, lora, _TOKENS, lanes) - fixed
    return max((free - fixed) // of_tokens, 0) * _TOKENS
