"""Memory of a training step on each device: training state, arrays that layers keep, and buffers of programs.

A step runs compiled layers one after another (``models.forward``). The arrays that live between their programs are
counted exactly, by shape and placement. The buffers inside a program are the compiler's figure, or an estimate if
nothing is compiled.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optimas_jax.models.backbone import Network, abstract_params, init_lora
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.flat import FlatSequence, flatten
from optimas_jax.models.forward import LayerArgs, backward_layer, forward_layer, layer_inputs
from optimas_jax.models.layout import TILE
from optimas_jax.models.lora import Params, module_shapes
from optimas_jax.models.pairs import CHUNK
from optimas_jax.parallel.mesh import DATA, MODEL
from optimas_jax.parallel.sharding import AnyMesh, shardings

_FLOAT32 = 4  # bytes
_STATE = 3  # arrays of the size of the trained parameters: the parameters and two moments
_LOGITS = 3  # arrays of the size of a chunk's logits: distributions, their gradient, an intermediate result
_SCORES = 5  # arrays of the size of a chunk's scores: scores, weights, their gradients, copies
_MOST_TOKENS = 1 << 22  # more than any batch has
_TRACED = (128, 640)  # numbers of tokens for which a layer is traced
_TOKENS = 64  # the size of a batch that fits is a multiple of it


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on one device during a training step, beside the frozen weights.

    Attributes:
      state: adapters, the optimiser's moments, and gradients.
      kept: arrays that the layers keep for the backward pass, of all lanes.
      working: buffers of the largest program, of all lanes.
      compiled: whether ``working`` is the compiler's figure.
    """

    state: int
    kept: int
    working: int
    compiled: bool = False

    @property
    def total(self) -> int:
        return self.state + self.kept + self.working


@dataclasses.dataclass(frozen=True)
class Step:
    """A kind of training step.

    Attributes:
      network: with ``Compute.remat`` as training sets it.
      mesh: also for one device; its devices need not exist here (``jax.experimental.topologies``).
      lora: the trained adapters.
      lanes: number of batches that are computed side by side, and share the tokens.
      over_vocabulary: whether the loss reads distributions over the vocabulary, as a policy's does.
    """

    network: Network
    mesh: AnyMesh
    lora: LoraConfig
    lanes: int = 1
    over_vocabulary: bool = False

    def with_remat(self, remat: bool = True) -> Step:
        compute = dataclasses.replace(self.network.compute, remat=remat)
        return dataclasses.replace(self, network=dataclasses.replace(self.network, compute=compute))


def step_memory(step: Step, tokens: int, *, compiled: bool = False) -> StepMemory:
    """Memory of a step on batches of ``tokens`` tokens on each device along ``data``.

    Args:
      compiled: whether the programs of a layer are compiled, for the devices of the mesh.
    """
    network, mesh, lora = step.network, step.mesh, step.lora
    adapted = network.config.num_layers - lora.first(network.config.num_layers)
    kept = kept_by_layer(network, mesh, lora, tokens)
    adapters = _adapter_bytes(network, mesh, lora) * adapted
    if compiled:
        working = compiled_working(network, lora, layer_arguments(network, mesh, lora, tokens))
    else:
        working = estimated_working(network, mesh, lora, tokens)
    if step.over_vocabulary:
        chunk = network.compute.vocab_chunk * network.config.vocab_size * _FLOAT32 // mesh.shape[MODEL]
        working = max(working, _LOGITS * chunk * step.lanes)
    return StepMemory(adapters * (_STATE + step.lanes), adapted * kept, working, compiled)


def tokens_that_fit(step: Step, free: int) -> int:
    """The largest batch, in tokens on each device along ``data``, whose step needs no more than ``free`` bytes by
    estimate; 0 if there is none."""
    sizes = range(_TOKENS, _MOST_TOKENS + 1, _TOKENS)
    return bisect.bisect_right(sizes, free, key=lambda tokens: step_memory(step, tokens).total) * _TOKENS


def layer_arguments(network: Network, mesh: AnyMesh, lora: LoraConfig, tokens: int) -> LayerArgs:
    """Arguments of the programs of an adapted layer, as placed ``jax.ShapeDtypeStruct``, for one sequence of ``tokens``
    tokens on each device along ``data``."""
    config, compute = network.config, network.compute
    shards = () if network.mesh is None else (mesh.shape[DATA],)

    def on_shards(leaf: Any) -> jax.ShapeDtypeStruct:
        spec = P(DATA) if shards and leaf.ndim else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    sequence = FlatSequence(range(tokens), parts=[0] * tokens)
    flat = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*shards, *leaf.shape), leaf.dtype),
        flatten([sequence], pad_id=0, tiled=compute.tiled),
    )
    index = lora.first(config.num_layers)
    x = jax.ShapeDtypeStruct((*flat.input_ids.shape, config.embed_dim), compute.dtype)
    inputs = jax.eval_shape(partial(layer_inputs, network), flat.positions, flat.layout)[index]
    x, rotation, layout = jax.tree.map(on_shards, (x, *inputs))
    weights = place_shapes(abstract_params(config, compute), mesh)
    adapters = place_shapes(jax.eval_shape(partial(init_lora, config, lora), jax.random.key(0)), mesh)
    return adapters["layers"][index], x, weights["layers"][index], rotation, layout, None


def _share(leaf: Any, network: Network, mesh: AnyMesh) -> int:
    """Bytes on a device of an array that a layer keeps: of the device's shard, and of its heads or MLP columns."""
    shards = leaf.shape[0] if network.mesh is not None and leaf.shape[0] == mesh.shape[DATA] else mesh.shape[DATA]
    columns = 1 if leaf.shape[-1] in (network.config.embed_dim, 1) else mesh.shape[MODEL]
    return math.prod(leaf.shape) * leaf.dtype.itemsize // (shards * columns)


def estimated_working(network: Network, mesh: AnyMesh, lora: LoraConfig, tokens: int) -> int:
    """Bytes of the buffers inside a layer's programs: an estimate, which is rather too large."""
    config, size = network.config, np.dtype(network.compute.dtype).itemsize
    weights = sum(math.prod(shape) for shape in module_shapes(config).values()) * size // mesh.shape[MODEL]
    gathered = weights if mesh.shape[DATA] > 1 else 0
    working = tokens * _FLOAT32 * (4 * config.embed_dim + 3 * config.mlp_dim // mesh.shape[MODEL])
    if network.compute.attention == "chunked":
        heads = -(-config.num_heads // mesh.shape[MODEL])
        working += _SCORES * CHUNK * heads * TILE * TILE * _FLOAT32
    if not network.compute.remat:
        return gathered // 2 + working
    once_more = dataclasses.replace(network, compute=dataclasses.replace(network.compute, remat=False))
    return gathered + working + kept_by_layer(once_more, mesh, lora, tokens)


def kept_by_layer(network: Network, mesh: AnyMesh, lora: LoraConfig, tokens: int) -> int:
    """Bytes on a device that an adapted layer keeps for its backward pass, its input included; linear in the tokens."""
    few, more = (_traced_kept(network, mesh, lora, size) for size in _TRACED)
    of_token = (more - few) / (_TRACED[1] - _TRACED[0])
    return round(few + of_token * (tokens - _TRACED[0]))


@cache
def _traced_kept(network: Network, mesh: AnyMesh, lora: LoraConfig, tokens: int) -> int:
    args = layer_arguments(network, mesh, lora, tokens)
    _, pullback = jax.eval_shape(partial(forward_layer, network, lora), args)
    return sum(_share(part, network, mesh) for part in (args[1], *pullback.residuals))


@cache
def _adapter_bytes(network: Network, mesh: AnyMesh, lora: LoraConfig) -> int:
    """Bytes on a device of the adapters of a layer."""
    tree = jax.eval_shape(partial(init_lora, network.config, lora), jax.random.key(0))
    placed = place_shapes(tree, mesh)["layers"]
    return placed_bytes(placed[lora.first(network.config.num_layers)])


def compiled_working(network: Network, lora: LoraConfig, args: LayerArgs) -> int:
    """Bytes of the buffers inside a layer's programs, and of the gradients that they return: the compiler's figure."""
    forward, backward = (program.memory_analysis() for program in compile_layer(network, lora, args))
    return max(forward.temp_size_in_bytes, backward.temp_size_in_bytes + backward.output_size_in_bytes)


def compile_layer(network: Network, lora: LoraConfig, args: LayerArgs) -> tuple[Any, Any]:
    """The compiled forward and backward pass of an adapted layer."""
    lowered = forward_layer.lower(network, lora, args)
    forward = lowered.compile()
    x, pullback = jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        lowered.out_info,
        forward.output_shardings,
    )
    return forward, backward_layer.lower(network, args, pullback, x, False).compile()


def place_shapes(tree: Params, mesh: AnyMesh) -> Params:
    """Shapes of parameters with their placement on a mesh, by the rules of ``parallel.sharding``."""
    return jax.tree.map(
        lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), tree, shardings(tree, mesh)
    )


def placed_bytes(tree: Any) -> int:
    """Bytes on each device of placed arrays or shapes."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
