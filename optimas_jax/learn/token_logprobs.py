"""Log-probabilities of given tokens, a few at a time: the vocabulary is large."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from optimas_jax.learn.batches import CHUNK
from optimas_jax.models.backbone import Network, merge_model
from optimas_jax.models.lora import Params


def in_chunks(tree: Any) -> Any:
    """[C, ...] -> [C / CHUNK, CHUNK, ...]: so many tokens' distributions exist at a time, and no array [C, V]."""
    return jax.tree.map(lambda part: part.reshape(-1, CHUNK, *part.shape[1:]), tree)


def token_logprobs(
    network: Network, params: Params, x: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability of each token and entropy of its distribution, [n] float32, and hidden states after the final
    norm [n, D], from the last layer's output x [n, D]."""
    model = merge_model(network, params)
    hidden = model.final_norm(x)
    logits = model.logits(hidden)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    entropy = normaliser - (jnp.exp(logits - normaliser[:, None]) * logits).sum(axis=-1)
    return chosen - normaliser, entropy, hidden
