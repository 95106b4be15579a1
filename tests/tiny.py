"""Tiny random models for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import RANDOM_CONFIG
from optimas_jax.engine.sampler import Sampler
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import make_optimizer
from optimas_jax.models.backbone import Network, init_params
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.flat import Flat, FlatSequence, flatten
from optimas_jax.models.lora import Params
from optimas_jax.parallel.platform import Compute, default_compute

F32 = dataclasses.replace(default_compute("cpu"), lanes=1)
CONFIG = dataclasses.replace(RANDOM_CONFIG, num_layers=3, qk_norm=True, qkv_bias=True, tied_embeddings=False)
SHALLOW = dataclasses.replace(CONFIG, num_layers=2)  # compiles faster where one program has all layers
# With everything of Gemma 3's that other models have not; prefixes and candidates are longer than its window.
GEMMA = dataclasses.replace(
    CONFIG,
    qkv_bias=False,
    post_norms=True,
    activation="gelu_tanh",
    embed_scale=8.0,
    query_scale=0.2,
    layer_kinds=("sliding", "full", "unrotated"),
    window=7,
)
LORA = LoraConfig(rank=4, alpha=8.0)
OPTIMIZER = make_optimizer()  # one for all: what is compiled for an optimiser is kept by its identity


def model(config: BackboneConfig = CONFIG, compute: Compute = F32, scale: float = 10.0):
    """Network and weights; scaled up, so that attention and logits are far from uniform."""
    params = init_params(config, compute, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf if leaf.ndim < 2 else leaf * jnp.asarray(scale, leaf.dtype), params)
    return Network(config, compute), params


def random_lora(lora_params: Params, seed: int = 1) -> Params:
    """Adapters that do something: B is not zero."""
    leaves, treedef = jax.tree.flatten(lora_params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        treedef, [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def sampler(compute: Compute = F32, scale: float = 10.0) -> Sampler:
    source = resolve("random:0")
    params = init_params(RANDOM_CONFIG, compute, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf if leaf.ndim < 2 else leaf * scale, params)
    return Sampler(Network(RANDOM_CONFIG, compute), params, load_tokenizer(source))


def plain(*sequences: Sequence[int], tiled: bool = False) -> Flat:
    """Plain sequences as a flat batch."""
    return flatten([FlatSequence(ids) for ids in sequences], pad_id=0, tiled=tiled)


def random_group(rng: np.random.Generator, component: int = 0, candidates: int = 3, prefix: int = 20) -> TokenGroup:
    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(1, 500, rng.integers(low, high)).tolist())

    return TokenGroup(
        prefix_ids=ids(1, prefix),
        candidate_ids=tuple(ids(1, 12) for _ in range(candidates)),
        rewards=tuple(rng.choice([0.0, 0.25, 0.5, 1.0], candidates).tolist()),
        component=component,
    )
