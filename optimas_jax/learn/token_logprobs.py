"""Log-probabilities of given tokens, computed for few tokens at a time, because the vocabulary is large."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from optimas_jax.models.backbone import Network, merge_model
from optimas_jax.models.lora import Params
from optimas_jax.parallel.mesh import MODEL
from optimas_jax.parallel.sharding import cut_along, keep_shards


def in_chunks(network: Network, tree: Any) -> Any:
    """[C, ...] -> [C / chunk, chunk, ...], and on a mesh [S, C, ...] -> [C / chunk, S, chunk, ...]: only the
    distributions of one chunk of tokens are in memory at a time (``Compute.vocab_chunk``), and no array [C, V]."""
    chunk = network.compute.vocab_chunk

    def cut(part: jax.Array) -> jax.Array:
        if network.mesh is None:
            return part.reshape(-1, chunk, *part.shape[1:])
        return part.reshape(len(part), -1, chunk, *part.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(cut, tree)


def out_of_chunks(network: Network, tree: Any) -> Any:
    """The inverse of ``in_chunks``."""

    def join(part: jax.Array) -> jax.Array:
        if network.mesh is None:
            return part.reshape(-1, *part.shape[2:])
        return keep_shards(part.swapaxes(0, 1).reshape(part.shape[1], -1, *part.shape[3:]), network.mesh)

    return jax.tree.map(join, tree)


def output_params(network: Network, params: Params) -> Params:
    """The parameters with an output matrix that is split along the vocabulary alone, as its many products need it."""
    name = "embed" if network.config.tied_embeddings else "lm_head"
    if network.mesh is None:
        return params
    return {**params, name: cut_along(params[name], network.mesh, MODEL)}


def token_logprobs(
    network: Network, params: Params, x: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability of each token and entropy of its distribution, [n] float32, and hidden states after the final
    norm [n, D], from the last layer's output x [n, D]; on a mesh all have a leading axis of shards."""
    model = merge_model(network, params)
    hidden = model.final_norm(x)
    logits = keep_shards(model.logits(hidden), network.mesh, None, MODEL)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    entropy = normaliser - (jnp.exp(logits - normaliser[..., None]) * logits).sum(axis=-1)
    return chosen - normaliser, entropy, hidden
