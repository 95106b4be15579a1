"""Decoder-only transformer: Llama (with 3.1's RoPE scaling), Qwen2 / 2.5 (q/k/v bias) and Qwen3 (q/k norm).

The network is *defined* with Flax NNX and *used* as a graph definition plus a plain nested dict of arrays::

    network = Network(config, compute)                # static and hashable
    params = init_params(config, compute, key)        # or models.weights.load(...)
    hidden = forward(network, params, input_ids, positions, layout)

so that every step is a pure function of arrays. Layers are kept apart, not stacked: decoding reads each weight once
per token and must not copy it out of a stack first. Whole sequences run one compiled layer after another
(``run_layers``): 30 layers compile as fast as one. Inside another jitted function they become part of it.

Parameter names: ``embed``, ``layers/<i>/{attn_norm,q,k,v,o,q_norm,k_norm,mlp_norm,gate,up,down}``, ``final_norm``,
``lm_head`` (absent when tied). Matrices (``weight``, ``embed``, ``lm_head``) are [out, in], as checkpoints have them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from optimas_jax.models.attention import KEPT, KeysValues, Spans, StoredKeysValues, Tiles, attention, decode_attention
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.lora import LoraConfig, Params, init_lora_a, lora_linear
from optimas_jax.models.numerics import Product, matmul, weight_first, whatever_the_rows
from optimas_jax.models.rope import Rotation, rope_angles, rotate
from optimas_jax.parallel.platform import Compute

# Adapters, input, weights, rotation, layout, and the places that are wanted.
LayerArgs = tuple[Params, jax.Array, Params, Rotation, Tiles | Spans, jax.Array | None]
Cache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer: keys [B, K, H, S] and values [B, K, S, H]


class Linear(nnx.Module):
    """``x W^T (+ b)``, with an optional low-rank adapter."""

    def __init__(self, name: str, fan_in: int, fan_out: int, *, bias: bool, lora: LoraConfig | None, merge_lora: bool):
        self.weight = nnx.Param(jnp.zeros((fan_out, fan_in), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((fan_out,), jnp.float32)) if bias else None
        self.merge_lora = merge_lora
        self.scale = None
        if lora is not None and name in lora.targets:
            self.scale = lora.scale
            self.lora_a = nnx.LoRAParam(jnp.zeros((fan_in, lora.rank), jnp.float32))
            self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, fan_out), jnp.float32))

    def __call__(self, x: jax.Array, product: Product = matmul) -> jax.Array:
        if self.scale is None:
            y = product(x, self.weight[...])
        else:
            y = lora_linear(
                x, self.weight[...], self.lora_a[...], self.lora_b[...], scale=self.scale, merge=self.merge_lora
            )
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    """Root-mean-square norm."""

    def __init__(self, dim: int, eps: float):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """[..., D] -> [..., D]: float32 inside, result in the input's dtype."""

    def norm(x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
        return (y * scale).astype(x.dtype)

    return whatever_the_rows(norm, x)


class Layer(nnx.Module):
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: BackboneConfig, compute: Compute, lora: LoraConfig | None):
        def linear(name: str, fan_in: int, fan_out: int, bias: bool = False) -> Linear:
            return Linear(name, fan_in, fan_out, bias=bias, lora=lora, merge_lora=compute.merge_lora)

        dim, head = config.embed_dim, config.head_dim
        q_dim, kv_dim = config.num_heads * head, config.num_kv_heads * head
        self.attn_norm = RMSNorm(dim, config.norm_eps)
        self.q = linear("q", dim, q_dim, config.qkv_bias)
        self.k = linear("k", dim, kv_dim, config.qkv_bias)
        self.v = linear("v", dim, kv_dim, config.qkv_bias)
        self.o = linear("o", q_dim, dim)
        self.q_norm = RMSNorm(head, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(head, config.norm_eps) if config.qk_norm else None
        self.mlp_norm = RMSNorm(dim, config.norm_eps)
        self.gate = linear("gate", dim, config.mlp_dim)
        self.up = linear("up", dim, config.mlp_dim)
        self.down = linear("down", config.mlp_dim, dim)
        self.config = config
        self.few = weight_first if compute.weight_first else matmul

    def queries(self, x: jax.Array, rotation: Rotation, product: Product = matmul) -> jax.Array:
        """Rotated queries [T, N, H] of normed x [T, D]."""
        q = self.q(x, product).reshape(len(x), self.config.num_heads, self.config.head_dim)
        return rotate(q if self.q_norm is None else self.q_norm(q), *rotation)

    def keys_values(self, x: jax.Array, rotation: Rotation, product: Product = matmul) -> KeysValues:
        """Rotated keys and values [T, K, H] of normed x [T, D]."""
        k, v = (
            one(x, product).reshape(len(x), self.config.num_kv_heads, self.config.head_dim) for one in (self.k, self.v)
        )
        return rotate(k if self.k_norm is None else self.k_norm(k), *rotation), v

    def _mlp(self, x: jax.Array, product: Product = matmul) -> jax.Array:
        h = self.mlp_norm(x)
        gate, up = checkpoint_name((self.gate(h, product), self.up(h, product)), KEPT)
        return x + self.down(jax.nn.silu(gate) * up, product)

    def __call__(self, x, rotation, layout, stored=None, places=None):
        """x [T, D] -> x [T, D], or [n, D] at ``places`` [n] alone, and the tokens' own keys and values [T, K, H]; see
        ``attention``."""
        h = self.attn_norm(x)
        q, (k, v) = checkpoint_name((self.queries(h, rotation), self.keys_values(h, rotation)), KEPT)
        mixed = attention(q, k, v, layout, stored).reshape(len(x), -1)
        if places is not None:
            x, mixed = x[places], mixed[places]
        return self._mlp(checkpoint_name(x + self.o(mixed), KEPT)), (k, v)

    def step(self, x, rotation, k_cache, v_cache, positions):
        """x [B, D] -> x [B, D] and the caches (see ``Cache``) with these tokens written at ``positions`` [B]."""
        h = self.attn_norm(x)
        q, (k, v) = self.queries(h, rotation, self.few), self.keys_values(h, rotation, self.few)
        rows = jnp.arange(x.shape[0])
        k_cache = k_cache.at[rows, :, :, positions].set(k.astype(k_cache.dtype), unique_indices=True)
        v_cache = v_cache.at[rows, :, positions].set(v.astype(v_cache.dtype), unique_indices=True)
        mixed = decode_attention(q, k_cache, v_cache, positions)
        x = x + self.o(mixed.reshape(x.shape[0], -1), self.few)
        return self._mlp(x, self.few), k_cache, v_cache


class Backbone(nnx.Module):
    """Embedding, layers, final norm, and the output matrix (the embedding again when tied)."""

    def __init__(self, config: BackboneConfig, compute: Compute, lora: LoraConfig | None = None):
        self.embed = nnx.Param(jnp.zeros((config.vocab_size, config.embed_dim), jnp.float32))
        self.layers = nnx.List(
            [
                Layer(config, compute, lora if lora is not None and lora.adapts(index, config.num_layers) else None)
                for index in range(config.num_layers)
            ]
        )
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps)
        self.lm_head = (
            None if config.tied_embeddings else nnx.Param(jnp.zeros((config.vocab_size, config.embed_dim), jnp.float32))
        )
        self.config = config
        self.dtype = compute.dtype
        self.few = weight_first if compute.weight_first else matmul

    def step(self, tokens, positions, cache: Cache):
        """One token a row: tokens [B], positions [B] -> hidden [B, D] and the updated cache."""
        x = embed(self.embed[...], tokens, self.dtype)
        rotation = rope_angles(positions, self.config)
        new_cache = []
        for layer, (k_cache, v_cache) in zip(self.layers, cache, strict=True):
            x, new_k, new_v = layer.step(x, rotation, k_cache, v_cache, positions)
            new_cache.append((new_k, new_v))
        return self.final_norm(x), tuple(new_cache)

    def logits(self, hidden: jax.Array, product: Product = matmul) -> jax.Array:
        """[..., D] -> [..., V] float32."""
        head = self.embed if self.lm_head is None else self.lm_head
        return product(hidden, head[...], jnp.float32)


@dataclasses.dataclass(frozen=True)
class Network:
    """The static part of a backbone: hashable, safe to close over or to pass as a static argument."""

    config: BackboneConfig
    compute: Compute

    @property
    def graph(self) -> Any:
        """Graph definition of the whole backbone, without adapters."""
        return _graph(Backbone, self.config, self.compute, None)

    def layer(self, lora: LoraConfig | None) -> Any:
        """Graph definition of one layer, with adapters if ``lora`` is given."""
        return _graph(Layer, self.config, self.compute, lora)


@cache
def _graph(module: Any, config: BackboneConfig, compute: Compute, lora: LoraConfig | None) -> Any:
    return nnx.split(nnx.eval_shape(lambda: module(config, compute, lora)))[0]


def abstract_params(config: BackboneConfig, compute: Compute) -> Params:
    """The parameter tree as ``ShapeDtypeStruct``: norms float32, everything else in ``compute.dtype``."""
    state = nnx.split(nnx.eval_shape(lambda: Backbone(config, compute)))[1]

    def typed(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if path[-1].key == "scale" else compute.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(typed, nnx.to_pure_dict(state))


def init_params(config: BackboneConfig, compute: Compute, key: jax.Array) -> Params:
    """Random weights (normal, 0.02; norms 1; biases 0), each leaf from its own key named by its path."""

    def init(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        if name == "bias":
            return jnp.zeros(leaf.shape, leaf.dtype)
        leaf_key = key
        for part in path:
            leaf_key = jax.random.fold_in(leaf_key, _path_hash(str(part.key)))
        return (0.02 * jax.random.normal(leaf_key, leaf.shape, jnp.float32)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(init, abstract_params(config, compute))


def init_lora(config: BackboneConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """A LoRA tree that changes nothing yet: A random, B zero, float32."""
    abstract = abstract_params(config, Compute(jnp.dtype(jnp.float32), "tiled", True))
    layers = {}
    for index, layer in abstract["layers"].items():
        if not lora.adapts(index, config.num_layers):
            continue
        layers[index] = {}
        for name in lora.targets:
            fan_out, fan_in = layer[name]["weight"].shape
            leaf_key = jax.random.fold_in(jax.random.fold_in(key, index), _path_hash(name))
            layers[index][name] = {
                "lora_a": init_lora_a(leaf_key, fan_in, lora.rank),
                "lora_b": jnp.zeros((lora.rank, fan_out), jnp.float32),
            }
    return {"layers": layers}


def _path_hash(name: str) -> int:
    """A stable 31-bit number for a name (Python's own hash changes from run to run)."""
    value = 0
    for char in name:
        value = (value * 131 + ord(char)) & 0x7FFFFFFF
    return value


def embed(table: jax.Array, input_ids: jax.Array, dtype: Any) -> jax.Array:
    """Rows of the embedding: [...] ids -> [..., D] in the compute dtype."""
    return table[input_ids].astype(dtype)


def forward(
    network: Network,
    params: Params,
    input_ids: jax.Array,
    positions: jax.Array,
    layout: Tiles | Spans,
    lora: LoraConfig | None = None,
    lora_params: Params | None = None,
) -> jax.Array:
    """Hidden states after the final norm, as one function, differentiable.

    Args:
      params: the frozen tree.
      input_ids: [T] int32, a flat batch.
      positions: [T] int32 RoPE positions.
      layout: its sequences.
      lora, lora_params: configuration and tree of adapters, or None.

    Returns:
      [T, D] in the compute dtype.
    """
    x = embed(params["embed"], input_ids, network.compute.dtype)
    x = run_layers(network, params, x, positions, layout, range(network.config.num_layers), None, lora, lora_params)
    return rms_norm(x, params["final_norm"]["scale"], network.config.norm_eps)


def merge_model(network: Network, params: Params) -> Backbone:
    """The network with its weights, for use inside a jitted function."""
    return nnx.merge(network.graph, params)


def run_layers(
    network: Network,
    params: Params,
    x: jax.Array,
    positions: jax.Array,
    layout: Tiles | Spans,
    layers: range,
    places: jax.Array | None = None,
    lora: LoraConfig | None = None,
    lora_params: Params | None = None,
) -> jax.Array:
    """Runs ``layers``, one compiled layer after another.

    Args:
      x: [T, D] output of the layer before the first.
      places: [n] int32, if the output is wanted at these tokens only.
      lora, lora_params: configuration and tree of adapters, or None.

    Returns:
      [T, D] output of the last layer, or [n, D].
    """
    rotation = _rope_angles(positions, network.config)
    for index in layers:
        weights, adapters = params["layers"][index], _adapters(lora_params, index)
        at = places if index == layers[-1] else None
        x, _ = _run_layer(network, lora, weights, adapters, x, rotation, layout, None, at)
    return x


def run_layers_vjp(
    network: Network,
    params: Params,
    x: jax.Array,
    positions: jax.Array,
    layout: Tiles | Spans,
    layers: range,
    places: jax.Array | None,
    lora: LoraConfig,
    lora_params: Params,
) -> tuple[jax.Array, Callable[[jax.Array], Params]]:
    """``run_layers``, and the function that takes the gradient of its output to that of ``lora_params``.

    That function can be called once: it lets go of what a layer kept as soon as it has been used. Nothing is computed
    for ``x``. Written out, because ``jax.grad`` over compiled layers takes 5 ms a layer to find out what to run.
    """
    rotation = _rope_angles(positions, network.config)
    done: list[tuple[int, LayerArgs, Pullback]] = []
    for index in layers:
        at = places if index == layers[-1] else None
        args = (_adapters(lora_params, index), x, params["layers"][index], rotation, layout, at)
        x, pullback = _forward_layer(network, lora, args)
        done.append((index, args, pullback))

    def pull_back(d_out: jax.Array) -> Params:
        grads = {}
        while done:
            index, args, pullback = done.pop()
            grads[index], d_out = _backward_layer(args, pullback, d_out, index == layers[0])
        return {"layers": grads}

    return x, pull_back


def keys_values(
    network: Network,
    params: Params,
    input_ids: jax.Array,
    positions: jax.Array,
    layout: Tiles | Spans,
    stored: Sequence[StoredKeysValues],
) -> list[KeysValues]:
    """Runs a flat batch for its keys and values alone, one compiled layer after another; the last layer makes nothing
    else.

    Args:
      stored: keys and values of earlier batches, by layer.

    Returns:
      By layer, [T, K, H] each, T padded to a multiple of ``prefill_tokens``.
    """
    x = embed(params["embed"], input_ids, network.compute.dtype)
    rotation = _rope_angles(positions, network.config)
    last, made = network.config.num_layers - 1, []
    for index in range(last):
        x, own = _run_layer(network, None, params["layers"][index], {}, x, rotation, layout, stored[index])
        made.append(own)
    return [*made, _last_keys_values(network, params["layers"][last], x, rotation)]


_rope_angles = jax.jit(rope_angles, static_argnums=1)  # once for all layers: XLA's CPU code takes 30 ns for a cosine


def _adapters(lora_params: Params | None, index: int) -> Params:
    """Those of a layer; none below the lowest adapted one."""
    return {} if lora_params is None else lora_params["layers"].get(index, {})


@partial(jax.jit, static_argnums=(0, 1))
def _run_layer(
    network: Network,
    lora: LoraConfig | None,
    layer_params: Params,
    lora_params: Params,
    x: jax.Array,
    rotation: Rotation,
    layout: Tiles | Spans,
    stored: StoredKeysValues | None,
    places: jax.Array | None = None,
) -> tuple[jax.Array, KeysValues | None]:
    layer = _merge_layer(network, lora, layer_params, lora_params)
    x, own = layer(x, rotation, layout, stored, places)
    return x, None if stored is None else _few_sizes(network, own)


def _merge_layer(network: Network, lora: LoraConfig | None, layer_params: Params, lora_params: Params) -> Layer:
    return nnx.merge(network.layer(lora if lora_params else None), merge_trees(layer_params, lora_params))


@partial(jax.jit, static_argnums=(0, 1))
def _forward_layer(network: Network, lora: LoraConfig, args: LayerArgs) -> tuple[jax.Array, Pullback]:
    lora_params, x, layer_params, rotation, layout, places = args

    def run(lora_params: Params, x: jax.Array) -> jax.Array:
        return _merge_layer(network, lora, layer_params, lora_params)(x, rotation, layout, None, places)[0]

    if network.compute.layerwise:
        # What is cheap to compute again is not kept; the backward pass is a program of its own.
        policy = jax.checkpoint_policies.save_only_these_names(KEPT)
        run = jax.checkpoint(run, prevent_cse=False, policy=policy)
    out, vjp = jax.vjp(run, lora_params, x)
    return out, Pullback.of(vjp, args)


@partial(jax.jit, static_argnums=3)
def _backward_layer(
    args: LayerArgs, pullback: Pullback, d_out: jax.Array, is_lowest: bool
) -> tuple[Params, jax.Array | None]:
    d_lora, d_x = pullback.restore(args)(d_out)
    return d_lora, None if is_lowest else d_x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pullback:
    """What a compiled forward pass keeps for its backward pass, without what went into it, of which every output of a
    program would be a copy.

    Attributes:
      kept: arrays of the function that ``jax.vjp`` returns.
      tree: its structure.
      places: for each of its leaves, which leaf of the arguments it is, or None for the next one of ``kept``.
    """

    kept: list[jax.Array]
    tree: Any = dataclasses.field(metadata={"static": True})
    places: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, vjp: Any, args: Any) -> Pullback:
        """Takes apart what ``jax.vjp`` made of arguments, inside a jitted function."""
        leaves, tree = jax.tree.flatten(vjp)
        given = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(args))}
        places = tuple(given.get(id(leaf)) for leaf in leaves)
        return cls([leaf for leaf, place in zip(leaves, places, strict=True) if place is None], tree, places)

    def restore(self, args: Any) -> Any:
        """The function, given the same arguments again."""
        kept, given = iter(self.kept), jax.tree.leaves(args)
        return jax.tree.unflatten(self.tree, [next(kept) if place is None else given[place] for place in self.places])


@partial(jax.jit, static_argnums=0)
def _last_keys_values(network: Network, layer_params: Params, x: jax.Array, rotation: Rotation) -> KeysValues:
    layer = _merge_layer(network, None, layer_params, {})
    return _few_sizes(network, layer.keys_values(layer.attn_norm(x), rotation))


def _few_sizes(network: Network, own: KeysValues) -> KeysValues:
    """Keys and values padded to few sizes: what reads them is not compiled again for each T."""
    padding = -len(own[0]) % network.compute.prefill_tokens
    keys, values = (jnp.pad(part, ((0, padding), (0, 0), (0, 0))) for part in own)
    return keys, values


def merge_trees(params: Params, lora_params: Params) -> Params:
    """One tree with the leaves of both."""
    merged = dict(params)
    for name, sub in lora_params.items():
        merged[name] = merge_trees(params[name], sub) if name in params and isinstance(sub, dict) else sub
    return merged
