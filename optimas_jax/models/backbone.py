"""Decoder-only transformer: Llama (with 3.1's RoPE scaling), Qwen2 / 2.5 (q/k/v bias), Qwen3 (q/k norm), SmolLM3
(layers without RoPE) and Gemma 3 (layers with a window, norms of outputs, scaled embeddings).

The network is *defined* with Flax NNX and *used* as a graph definition plus a plain nested dict of arrays::

    network = Network(config, compute)                # static and hashable
    params = init_params(config, compute, key)        # or checkpoints.weights.load_params(...)
    hidden = models.forward.forward(network, params, input_ids, positions, layout)

so that every step is a pure function of arrays. The weights of layers are separate arrays, not one stack: decoding
reads each weight once per token and must not copy it out of a stack first.

Parameter names: ``embed``, ``layers/<i>/{attn_norm,q,k,v,o,q_norm,k_norm,post_attn_norm,mlp_norm,gate,up,down,
post_mlp_norm}``, ``final_norm``, ``lm_head`` (absent when tied). Matrices (``weight``, ``embed``, ``lm_head``) are
[out, in], as checkpoints have them.
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
from jax.sharding import Mesh

from optimas_jax.models.attention import attention, decode_attention
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.cpu import over_padded_rows, weight_first
from optimas_jax.models.layout import KeysValues
from optimas_jax.models.lora import Params, init_lora_a, low_rank
from optimas_jax.models.numerics import KEPT, Product, matmul
from optimas_jax.models.rope import Rotation, rope_angles, rotate
from optimas_jax.parallel.platform import Compute
from optimas_jax.parallel.sharding import head_axis, keep_shards

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer: keys [B, K, H, S] and values [B, K, S, H]


class Linear(nnx.Module):
    """``x W^T (+ b)``, with an optional low-rank adapter."""

    def __init__(
        self, name: str, fan_in: int, fan_out: int, *, bias: bool, lora: LoraConfig | None, cpu_forms: bool = False
    ):
        self.weight = nnx.Param(jnp.zeros((fan_out, fan_in), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((fan_out,), jnp.float32)) if bias else None
        self.cpu_forms = cpu_forms
        self.scale = 0.0  # without an adapter
        if lora is not None and name in lora.targets:
            self.scale = lora.scale
            self.lora_a = nnx.LoRAParam(jnp.zeros((fan_in, lora.rank), jnp.float32))
            self.lora_b = nnx.LoRAParam(jnp.zeros((lora.rank, fan_out), jnp.float32))


def linears(
    x: jax.Array, modules: Sequence[Linear], product: Product = matmul, gate: jax.Array | None = None
) -> list[jax.Array]:
    """Outputs [T, out] of several modules with the same input x [T, in].

    Args:
      product: computes ``x W^T``.
      gate: [T, R] in place of the adapters' scale, see ``engine.multi_lora``.
    """
    out = [product(x, module.weight[...]) for module in modules]
    out = [y if module.bias is None else y + module.bias[...] for y, module in zip(out, modules, strict=True)]
    adapted = [index for index, module in enumerate(modules) if module.scale]
    if adapted:
        first = modules[adapted[0]]
        adapters = [(modules[index].lora_a[...], modules[index].lora_b[...]) for index in adapted]
        deltas = low_rank(x, adapters, first.scale if gate is None else gate, cpu_forms=first.cpu_forms)
        for index, delta in zip(adapted, deltas, strict=True):
            out[index] += delta
    return out


def decode_product(cpu_forms: bool) -> Product:
    """The product for the few rows of a decode batch."""
    return weight_first if cpu_forms else matmul


Linears = Callable[[jax.Array, Sequence[Linear]], list[jax.Array]]


class RMSNorm(nnx.Module):
    """Root-mean-square norm."""

    def __init__(self, dim: int, eps: float, cpu_forms: bool):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.eps, self.cpu_forms = eps, cpu_forms

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...], self.eps, self.cpu_forms)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, cpu_forms: bool = False) -> jax.Array:
    """[..., D] -> [..., D]: float32 inside, result in the input's dtype."""

    def norm(x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
        return (y * scale).astype(x.dtype)

    return over_padded_rows(norm, x) if cpu_forms else norm(x)


def _normed(norm: RMSNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


class Layer(nnx.Module):
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: BackboneConfig, compute: Compute, lora: LoraConfig | None, mesh: Mesh | None = None):
        def linear(name: str, fan_in: int, fan_out: int, bias: bool = False) -> Linear:
            return Linear(name, fan_in, fan_out, bias=bias, lora=lora, cpu_forms=compute.cpu_forms)

        def norm(size: int) -> RMSNorm:
            return RMSNorm(size, config.norm_eps, compute.cpu_forms)

        dim, head = config.embed_dim, config.head_dim
        q_dim, kv_dim = config.num_heads * head, config.num_kv_heads * head
        self.attn_norm = norm(dim)
        self.q = linear("q", dim, q_dim, config.qkv_bias)
        self.k = linear("k", dim, kv_dim, config.qkv_bias)
        self.v = linear("v", dim, kv_dim, config.qkv_bias)
        self.o = linear("o", q_dim, dim)
        self.q_norm = norm(head) if config.qk_norm else None
        self.k_norm = norm(head) if config.qk_norm else None
        self.post_attn_norm = norm(dim) if config.post_norms else None
        self.mlp_norm = norm(dim)
        self.gate = linear("gate", dim, config.mlp_dim)
        self.up = linear("up", dim, config.mlp_dim)
        self.down = linear("down", config.mlp_dim, dim)
        self.post_mlp_norm = norm(dim) if config.post_norms else None
        self.config = config
        self.cpu_forms = compute.cpu_forms
        self.use_kernel = compute.attention == "kernel"
        self.mesh = mesh

    def queries_keys_values(
        self, x: jax.Array, rotation: Rotation, apply: Linears = linears
    ) -> tuple[jax.Array, KeysValues]:
        """Rotated queries [..., N, H] and keys, and values [..., K, H], of normed x [..., D]."""
        q, k, v = (self._in_heads(y) for y in apply(x, (self.q, self.k, self.v)))
        q = rotate(q if self.q_norm is None else self.q_norm(q), *rotation)
        if self.config.query_scale is not None:  # attention itself scales by H ** -0.5
            q = q * (self.config.query_scale * self.config.head_dim**0.5)
        return q, (rotate(k if self.k_norm is None else self.k_norm(k), *rotation), v)

    def _in_heads(self, y: jax.Array) -> jax.Array:
        """[..., heads * H] -> [..., heads, H]; on a mesh whole heads on each device."""
        heads = y.shape[-1] // self.config.head_dim
        if self.mesh is not None:
            y = keep_shards(y, self.mesh, None, head_axis(self.mesh, heads))
        return y.reshape(*y.shape[:-1], heads, self.config.head_dim)

    def _add_mixed(self, x: jax.Array, mixed: jax.Array, apply: Linears) -> jax.Array:
        return x + _normed(self.post_attn_norm, apply(mixed, (self.o,))[0])

    def _add_mlp(self, x: jax.Array, apply: Linears) -> jax.Array:
        gate, up = checkpoint_name(apply(self.mlp_norm(x), (self.gate, self.up)), KEPT)
        gate = jax.nn.silu(gate) if self.config.activation == "silu" else jax.nn.gelu(gate, approximate=True)
        return x + _normed(self.post_mlp_norm, apply(gate * up, (self.down,))[0])

    def __call__(self, x, rotation, layout, stored=None, tokens=None, gate=None):
        """Output of the layer, and the keys and values [T, K, H] of its tokens.

        Args:
          x: [T, D]; on a mesh [S, T, D], and so are all other arrays (``parallel.sharding``).
          rotation: from ``rope_angles``.
          layout, stored: see ``attention``.
          tokens: [n] int32 indices, if the output is wanted at these tokens only; not together with ``gate``.
          gate: see ``linears``.

        Returns:
          x [T, D] or [n, D], (keys, values).
        """
        apply = partial(linears, gate=gate)
        q, (k, v) = checkpoint_name(self.queries_keys_values(self.attn_norm(x), rotation, apply), KEPT)
        mixed = attention(q, k, v, layout, stored, self.mesh, self.use_kernel).reshape(*x.shape[:-1], -1)
        if tokens is not None:
            x, mixed = at_tokens(x, tokens), at_tokens(mixed, tokens)
        x = self._add_mlp(checkpoint_name(self._add_mixed(x, mixed, apply), KEPT), apply)
        return keep_shards(x, self.mesh), (k, v)

    def step(self, x, rotation, k_cache, v_cache, positions, gate=None, window=None):
        """One token per row: x [B, D] -> x [B, D], and the caches with keys and values written at ``positions`` [B];
        ``window`` as in ``decode_attention``."""
        apply = partial(linears, product=decode_product(self.cpu_forms), gate=gate)
        q, (k, v) = self.queries_keys_values(self.attn_norm(x), rotation, apply)
        rows = jnp.arange(x.shape[0])
        k_cache = k_cache.at[rows, :, :, positions].set(k.astype(k_cache.dtype), unique_indices=True)
        v_cache = v_cache.at[rows, :, positions].set(v.astype(v_cache.dtype), unique_indices=True)
        mixed = decode_attention(q, k_cache, v_cache, positions, self.cpu_forms, window)
        x = self._add_mixed(x, mixed.reshape(len(x), -1), apply)
        return self._add_mlp(x, apply), k_cache, v_cache


class Backbone(nnx.Module):
    """Embedding, layers, final norm, and the output matrix (the embedding matrix when tied)."""

    def __init__(self, config: BackboneConfig, compute: Compute, lora: LoraConfig | None = None):
        self.embed = nnx.Param(jnp.zeros((config.vocab_size, config.embed_dim), jnp.float32))
        self.layers = nnx.List(
            [
                Layer(config, compute, lora if lora is not None and lora.adapts(index, config.num_layers) else None)
                for index in range(config.num_layers)
            ]
        )
        self.final_norm = RMSNorm(config.embed_dim, config.norm_eps, compute.cpu_forms)
        self.lm_head = (
            None if config.tied_embeddings else nnx.Param(jnp.zeros((config.vocab_size, config.embed_dim), jnp.float32))
        )
        self.config = config
        self.dtype = compute.dtype
        self.decode_product = decode_product(compute.cpu_forms)

    def step(self, tokens, positions, cache: Cache, gate=None):
        """One token a row: tokens [B], positions [B] -> hidden [B, D] and the updated cache; ``gate`` as in
        ``linears``."""
        x = embed(self.embed[...], tokens, self.config, self.dtype)
        rotations = {kind: rope_angles(positions, self.config, kind) for kind in self.config.kinds}
        new_cache = []
        for layer, kind, (k_cache, v_cache) in zip(self.layers, self.config.kinds, cache, strict=True):
            window = self.config.window if kind == "sliding" else None
            x, new_k, new_v = layer.step(x, rotations[kind], k_cache, v_cache, positions, gate, window)
            new_cache.append((new_k, new_v))
        return self.final_norm(x), tuple(new_cache)

    def logits(self, hidden: jax.Array, product: Product = matmul) -> jax.Array:
        """[..., D] -> [..., V] float32."""
        head = self.embed if self.lm_head is None else self.lm_head
        return product(hidden, head[...], jnp.float32)


@dataclasses.dataclass(frozen=True)
class Network:
    """The static part of a backbone: hashable, so that it can be a static argument of jitted functions.

    Attributes:
      config, compute: of the model, and of the device.
      mesh: of several devices, each of which computes its shard of a batch of whole sequences; None for one device.
    """

    config: BackboneConfig
    compute: Compute
    mesh: Mesh | None = None

    def graph(self, lora: LoraConfig | None) -> Any:
        """Graph definition of the whole backbone, with adapters if ``lora`` is given."""
        return _graph(Backbone, self.config, self.compute, lora)

    def layer(self, lora: LoraConfig | None) -> Any:
        """Graph definition of one layer, with adapters if ``lora`` is given."""
        return _graph(Layer, self.config, self.compute, lora, self.mesh)


@cache
def _graph(module: Any, *settings: Any) -> Any:
    return nnx.split(nnx.eval_shape(lambda: module(*settings)))[0]


def abstract_params(config: BackboneConfig, compute: Compute) -> Params:
    """The parameter tree as ``ShapeDtypeStruct``: norms float32, everything else in ``compute.dtype``."""
    state = nnx.split(nnx.eval_shape(lambda: Backbone(config, compute)))[1]

    def typed(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if path[-1].key == "scale" else compute.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(typed, nnx.to_pure_dict(state))


def init_params(config: BackboneConfig, compute: Compute, key: jax.Array) -> Params:
    """Random weights (normal with sd 0.02; norms 1; biases 0), with a key for each leaf derived from its path."""

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
    """The LoRA tree at the start of training, float32: A random, B zero, so that outputs equal the base's outputs."""
    abstract = abstract_params(config, Compute(jnp.dtype(jnp.float32), "tiled"))
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
    """A 31-bit hash of a name, equal in all processes; random models and adapters depend on it."""
    value = 0
    for char in name:
        value = (value * 131 + ord(char)) & 0x7FFFFFFF
    return value


def embed(table: jax.Array, input_ids: jax.Array, config: BackboneConfig, dtype: Any) -> jax.Array:
    """Rows of the embedding, scaled: [...] ids -> [..., D] in the compute dtype, to which the scale is rounded."""
    rows = table[input_ids].astype(dtype)
    return rows if config.embed_scale == 1.0 else rows * jnp.asarray(config.embed_scale, dtype)


def at_tokens(x: jax.Array, tokens: jax.Array) -> jax.Array:
    """x [T, ...] at tokens [n]; on a mesh x [S, T, ...] at tokens [S, n], each shard by itself."""
    if tokens.ndim == 1:
        return x[tokens]
    return jnp.take_along_axis(x, tokens.reshape(*tokens.shape, *[1] * (x.ndim - 2)), axis=1)


def merge_model(
    network: Network, params: Params, lora: LoraConfig | None = None, lora_params: Params | None = None
) -> Backbone:
    """The network with its weights and adapters (if given), for use inside a jitted function."""
    return nnx.merge(network.graph(lora), merge_trees(params, lora_params or {}))


def merge_layer(network: Network, lora: LoraConfig | None, layer_params: Params, lora_params: Params) -> Layer:
    """One layer with its weights and adapters (if the tree is not empty)."""
    return nnx.merge(network.layer(lora if lora_params else None), merge_trees(layer_params, lora_params))


def merge_trees(params: Params, lora_params: Params) -> Params:
    """One tree with the leaves of both."""
    merged = dict(params)
    for name, sub in lora_params.items():
        merged[name] = merge_trees(params[name], sub) if name in params and isinstance(sub, dict) else sub
    return merged
