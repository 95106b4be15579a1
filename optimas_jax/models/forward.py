"""Whole sequences through the layers, one compiled layer after another, with and without a gradient.

30 layers compile as fast as one. Inside another jitted function they become part of it. For the backward pass a layer
keeps its products and attention's output, and the rest is computed again, or it keeps nothing but its input
(``Compute.remat``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from optimas_jax.models.attention import KeysValues, Spans, StoredKeysValues, Tiles
from optimas_jax.models.backbone import Network, embed, linears, merge_layer, rms_norm
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.flat import Flat
from optimas_jax.models.lora import Params
from optimas_jax.models.numerics import KEPT
from optimas_jax.models.rope import Rotation, rope_angles

# Adapters, input, weights, rotation, layout, and the places that are wanted.
LayerArgs = tuple[Params, jax.Array, Params, Rotation, Tiles | Spans, jax.Array | None]


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


def features(network: Network, params: Params, flat: Flat, lora: LoraConfig) -> jax.Array:
    """Output of the frozen layers below the adapters (of the embedding, if all layers are adapted), [T, D]."""
    x = embed(params["embed"], flat.input_ids, network.compute.dtype)
    return run_layers(network, params, x, flat.positions, flat.layout, range(lora.first(network.config.num_layers)))


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
    lora: LoraConfig | None = None,
    lora_params: Params | None = None,
    gate: jax.Array | None = None,
) -> list[KeysValues]:
    """Runs a flat batch for its keys and values alone, one compiled layer after another; the last layer makes nothing
    else.

    Args:
      stored: keys and values of earlier batches, by layer.
      lora, lora_params: configuration and tree of adapters, or None.
      gate: [T, R] which of their columns each token has, see ``engine.multi_lora``.

    Returns:
      By layer, [T, K, H] each, T padded to a multiple of ``prefill_tokens``.
    """
    x = embed(params["embed"], input_ids, network.compute.dtype)
    rotation = _rope_angles(positions, network.config)
    last, made = network.config.num_layers - 1, []
    for index in range(last):
        weights, adapters = params["layers"][index], _adapters(lora_params, index)
        x, own = _run_layer(network, lora, weights, adapters, x, rotation, layout, stored[index], None, gate)
        made.append(own)
    weights, adapters = params["layers"][last], _adapters(lora_params, last)
    return [*made, _last_keys_values(network, lora, weights, adapters, x, rotation, gate)]


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
    gate: jax.Array | None = None,
) -> tuple[jax.Array, KeysValues | None]:
    layer = merge_layer(network, lora, layer_params, lora_params)
    x, own = layer(x, rotation, layout, stored, places, gate)
    return x, None if stored is None else _few_sizes(network, own)


@partial(jax.jit, static_argnums=(0, 1))
def _forward_layer(network: Network, lora: LoraConfig, args: LayerArgs) -> tuple[jax.Array, Pullback]:
    lora_params, x, layer_params, rotation, layout, places = args

    def run(lora_params: Params, x: jax.Array) -> jax.Array:
        return merge_layer(network, lora, layer_params, lora_params)(x, rotation, layout, None, places)[0]

    policy = None if network.compute.remat else jax.checkpoint_policies.save_only_these_names(KEPT)
    # Where the backward pass is a program of its own, nothing has to keep the compiler from computing things once.
    run = jax.checkpoint(run, prevent_cse=not network.compute.layerwise, policy=policy)
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
    _, own = layer.queries_keys_values(layer.attn_norm(x), rotation, partial(linears, gate=gate))
    return _few_sizes(network, own)


def _few_sizes(network: Network, own: KeysValues) -> KeysValues:
    """Keys and values padded to few sizes: what reads them is not compiled again for each T."""
    padding = -len(own[0]) % network.compute.prefill_tokens
    keys, values = (jnp.pad(part, ((0, padding), (0, 0), (0, 0))) for part in own)
    return keys, values
