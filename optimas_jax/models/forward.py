"""Runs whole sequences through the layers, one compiled layer after another, with and without a gradient.

So 30 layers compile as fast as one, and a device holds the gathered weights of one layer at a time. Inside another
jitted function the layers become part of it. For the backward pass a layer keeps its products and the output of its
attention, and computes the rest again; with ``Compute.remat`` it keeps only its input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from optimas_jax.models.backbone import Network, embed, linears, merge_layer, rms_norm
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.flat import Flat
from optimas_jax.models.layout import AnyLayout, KeysValues, StoredKeysValues, windowed
from optimas_jax.models.lora import Params
from optimas_jax.models.numerics import KEPT
from optimas_jax.models.rope import Rotation, rope_angles
from optimas_jax.parallel.platform import in_turn
from optimas_jax.parallel.sharding import keep_placed, keep_shards

# Adapters, input, weights, rotation, layout, and the tokens whose output is wanted.
LayerArgs = tuple[Params, jax.Array, Params, Rotation, AnyLayout, jax.Array | None]


def forward(
    network: Network,
    params: Params,
    input_ids: jax.Array,
    positions: jax.Array,
    layout: AnyLayout,
    lora: LoraConfig | None = None,
    lora_params: Params | None = None,
) -> jax.Array:
    """Hidden states after the final norm, as one differentiable function.

    Args:
      params: the frozen tree.
      input_ids: [T] int32, a flat batch; on a mesh [S, T], and so are all other arrays (``parallel.sharding``).
      positions: [T] int32 RoPE positions.
      layout: of the sequences of the batch.
      lora, lora_params: configuration and tree of adapters, or None.

    Returns:
      [T, D] in the compute dtype.
    """
    x = _embedded(network, params, input_ids)
    x = run_layers(network, params, x, positions, layout, range(network.config.num_layers), None, lora, lora_params)
    return rms_norm(x, params["final_norm"]["scale"], network.config.norm_eps, network.compute.cpu_forms)


def features(network: Network, params: Params, flat: Flat, lora: LoraConfig) -> jax.Array:
    """Output of the frozen layers below the adapters (of the embedding, if all layers are adapted), [T, D]."""
    x = _embedded(network, params, flat.input_ids)
    return run_layers(network, params, x, flat.positions, flat.layout, range(lora.first(network.config.num_layers)))


def run_layers(
    network: Network,
    params: Params,
    x: jax.Array,
    positions: jax.Array,
    layout: AnyLayout,
    layers: range,
    tokens: jax.Array | None = None,
    lora: LoraConfig | None = None,
    lora_params: Params | None = None,
) -> jax.Array:
    """Runs ``layers``, one compiled layer after another.

    Args:
      x: [T, D] output of the layer before the first.
      tokens: [n] int32 indices, if the output is wanted at these tokens only.
      lora, lora_params: configuration and tree of adapters, or None.

    Returns:
      [T, D] output of the last layer, or [n, D].
    """
    inputs = layer_inputs(network, positions, layout)
    for index in layers:
        weights, adapters, (rotation, layout) = params["layers"][index], _adapters(lora_params, index), inputs[index]
        at = tokens if index == layers[-1] else None
        x, _ = in_turn(_run_layer(network, lora, weights, adapters, x, rotation, layout, None, at), network.mesh)
    return x


def run_layers_vjp(
    network: Network,
    params: Params,
    x: jax.Array,
    positions: jax.Array,
    layout: AnyLayout,
    layers: range,
    tokens: jax.Array | None,
    lora: LoraConfig,
    lora_params: Params,
) -> tuple[jax.Array, Callable[[jax.Array], Params]]:
    """Like ``run_layers``; also returns the VJP with respect to ``lora_params``.

    The VJP can be called only once: it frees the residuals of a layer as soon as they are used. It computes no gradient
    for ``x``. ``jax.grad`` is not used, because it takes 5 ms of tracing for each compiled layer.
    """
    inputs = layer_inputs(network, positions, layout)
    passed: list[tuple[int, LayerArgs, Pullback]] = []
    for index in layers:
        at = tokens if index == layers[-1] else None
        args = (_adapters(lora_params, index), x, params["layers"][index], *inputs[index], at)
        x, pullback = in_turn(forward_layer(network, lora, args), network.mesh)
        passed.append((index, args, pullback))

    def pull_back(d_out: jax.Array) -> Params:
        grads = {}
        while passed:
            index, args, pullback = passed.pop()
            is_lowest = index == layers[0]
            grads[index], d_out = in_turn(backward_layer(network, args, pullback, d_out, is_lowest), network.mesh)
        return {"layers": grads}

    return x, pull_back


def keys_values(
    network: Network,
    params: Params,
    input_ids: jax.Array,
    positions: jax.Array,
    layout: AnyLayout,
    stored: Sequence[StoredKeysValues],
    lora: LoraConfig | None = None,
    lora_params: Params | None = None,
    gate: jax.Array | None = None,
) -> list[KeysValues]:
    """Keys and values of a flat batch, one compiled layer after another; the last layer computes nothing else.

    Args:
      stored: keys and values of earlier batches, by layer.
      lora, lora_params: configuration and tree of adapters, or None.
      gate: [T, R] scale of each adapter column for each token, see ``engine.multi_lora``.

    Returns:
      By layer, [T, K, H] each, T padded to a multiple of ``prefill_tokens``.
    """
    x = _embedded(network, params, input_ids)
    inputs = layer_inputs(network, positions, layout)
    last, computed = network.config.num_layers - 1, []
    for index in range(last):
        weights, adapters, (rotation, layout) = params["layers"][index], _adapters(lora_params, index), inputs[index]
        x, of_layer = in_turn(
            _run_layer(network, lora, weights, adapters, x, rotation, layout, stored[index], None, gate), network.mesh
        )
        computed.append(of_layer)
    weights, adapters, (rotation, _) = params["layers"][last], _adapters(lora_params, last), inputs[last]
    last_computed = _last_keys_values(network, lora, weights, adapters, x, rotation, gate)
    return [*computed, in_turn(last_computed, network.mesh)]


@partial(jax.jit, static_argnums=0)
def _embedded_on_mesh(network: Network, table: jax.Array, input_ids: jax.Array) -> jax.Array:
    return keep_shards(embed(table, input_ids, network.config, network.compute.dtype), network.mesh)


def _embedded(network: Network, params: Params, input_ids: jax.Array) -> jax.Array:
    """The input of the first layer, [T, D]."""
    if network.mesh is None:
        return embed(params["embed"], input_ids, network.config, network.compute.dtype)
    return in_turn(_embedded_on_mesh(network, params["embed"], input_ids), network.mesh)


# Once for all layers of a kind: XLA's CPU code takes 30 ns for a cosine.
_rope_angles = jax.jit(rope_angles, static_argnums=(1, 2))


def layer_inputs(network: Network, positions: jax.Array, layout: AnyLayout) -> list[tuple[Rotation, AnyLayout]]:
    """Rotation and layout of each layer. If some layers have a window, all get one, so that one program fits all."""
    config = network.config
    of_kind = {}
    for kind in set(config.kinds):
        within = layout
        if config.window:
            within = windowed(layout, config.window if kind == "sliding" else config.max_positions, positions)
        of_kind[kind] = (in_turn(_rope_angles(positions, config, kind), network.mesh), within)
    return [of_kind[kind] for kind in config.kinds]


def _adapters(lora_params: Params | None, index: int) -> Params:
    """The adapters of a layer; an empty tree for a layer without adapters."""
    return {} if lora_params is None else lora_params["layers"].get(index, {})


@partial(jax.jit, static_argnums=(0, 1))
def _run_layer(
    network: Network,
    lora: LoraConfig | None,
    layer_params: Params,
    lora_params: Params,
    x: jax.Array,
    rotation: Rotation,
    layout: AnyLayout,
    stored: StoredKeysValues | None,
    tokens: jax.Array | None = None,
    gate: jax.Array | None = None,
) -> tuple[jax.Array, KeysValues | None]:
    layer = merge_layer(network, lora, layer_params, lora_params)
    x, computed = layer(x, rotation, layout, stored, tokens, gate)
    return x, None if stored is None else _pad_to_bucket(network, computed)


@partial(jax.jit, static_argnums=(0, 1))
def forward_layer(network: Network, lora: LoraConfig, args: LayerArgs) -> tuple[jax.Array, Pullback]:
    """Output of an adapted layer, and its VJP with respect to its adapters and its input."""
    lora_params, x, layer_params, rotation, layout, tokens = args

    def run(lora_params: Params, x: jax.Array) -> jax.Array:
        return merge_layer(network, lora, layer_params, lora_params)(x, rotation, layout, None, tokens)[0]

    policy = None if network.compute.remat else jax.checkpoint_policies.save_only_these_names(KEPT)
    # The backward pass is a separate program: the compiler cannot merge it with the forward pass.
    run = jax.checkpoint(run, prevent_cse=False, policy=policy)
    out, vjp = jax.vjp(run, lora_params, x)
    return out, Pullback.of(vjp, args)


@partial(jax.jit, static_argnums=(0, 4))
def backward_layer(
    network: Network, args: LayerArgs, pullback: Pullback, d_out: jax.Array, is_lowest: bool
) -> tuple[Params, jax.Array | None]:
    """Gradients of the layer's adapters, and of its input unless it ``is_lowest``."""
    d_lora, d_x = pullback.restore(args)(d_out)
    d_lora = keep_placed({"layer": d_lora}, network.mesh)["layer"]
    return d_lora, None if is_lowest else keep_shards(d_x, network.mesh)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pullback:
    """A VJP function as the output of a compiled forward pass, without the arguments of that pass.

    The arguments are left out because every output of a compiled program is a new array.

    Attributes:
      residuals: leaves of the VJP function that are not arguments.
      tree: structure of the VJP function.
      argument_of: for each of its leaves, the index of the argument that it is, or None for the next residual.
    """

    residuals: list[jax.Array]
    tree: Any = dataclasses.field(metadata={"static": True})
    argument_of: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, vjp: Any, args: Any) -> Pullback:
        """Splits the function that ``jax.vjp`` returned for ``args``, inside a jitted function."""
        leaves, tree = jax.tree.flatten(vjp)
        index_of = {id(leaf): index for index, leaf in enumerate(jax.tree.leaves(args))}
        argument_of = tuple(index_of.get(id(leaf)) for leaf in leaves)
        residuals = [leaf for leaf, argument in zip(leaves, argument_of, strict=True) if argument is None]
        return cls(residuals, tree, argument_of)

    def restore(self, args: Any) -> Any:
        """The VJP function; ``args`` are the same as in ``of``."""
        residuals, arguments = iter(self.residuals), jax.tree.leaves(args)
        leaves = [next(residuals) if index is None else arguments[index] for index in self.argument_of]
        return jax.tree.unflatten(self.tree, leaves)


@partial(jax.jit, static_argnums=(0, 1))
def _last_keys_values(
    network: Network,
    lora: LoraConfig | None,
    layer_params: Params,
    lora_params: Params,
    x: jax.Array,
    rotation: Rotation,
    gate: jax.Array | None,
) -> KeysValues:
    layer = merge_layer(network, lora, layer_params, lora_params)
    _, computed = layer.queries_keys_values(layer.attn_norm(x), rotation, partial(linears, gate=gate))
    return _pad_to_bucket(network, computed)


def _pad_to_bucket(network: Network, computed: KeysValues) -> KeysValues:
    """Keys and values padded to one of a few sizes, so that programs that read them are not compiled for each T."""
    padding = -computed[0].shape[-3] % network.compute.prefill_tokens
    behind = [(0, padding), (0, 0), (0, 0)]
    keys, values = (jnp.pad(part, [*[(0, 0)] * (part.ndim - 3), *behind]) for part in computed)
    return keys, values
